//! One connection of the load: HTTP/2 on h2's frames or HTTP/1.1, with as little between the wire and
//! the clock as can be.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HOST, IF_NONE_MATCH, USER_AGENT,
};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::cli::innermost;
use crate::cli::target::Endpoint;
use crate::runtime::tasks::{AbortOnDrop, spawn_owned};

/// From the first packet to the end of the handshakes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of one answer that may be on their way: client-go's, by Go's HTTP/2 client.
const STREAM_WINDOW: u32 = 4 << 20;
/// The same of a whole connection.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// Bytes of an answer that is read whole; a larger one is refused.
const BODY_MAX: u64 = 1 << 30;

/// Why a read failed, in few words that many failures share; they are counted by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault(pub(super) String);

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

impl Fault {
    pub(super) fn new(hop: &str, error: impl fmt::Display) -> Self {
        Self(format!("{hop}: {error}"))
    }

    /// Whether the answer was whole, so that the connection can be used again.
    pub(super) fn leaves_connection(&self) -> bool {
        self.0.starts_with("answered ")
    }
}

/// Where to connect, and what every request carries.
#[derive(Clone)]
pub(super) struct Caller {
    /// The server.
    pub(super) endpoint: Endpoint,
    /// Credentials.
    pub(super) headers: HeaderMap,
}

/// What to get.
#[derive(Clone, Debug)]
pub(super) struct Ask<'a> {
    /// From the slash on.
    pub(super) path: &'a str,
    /// The Accept header.
    pub(super) accept: &'static str,
    /// Whether the answer may be compressed.
    pub(super) gzip: bool,
    /// The ETag that is known.
    pub(super) if_none_match: Option<HeaderValue>,
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
}

impl Head {
    /// The media type with its parameters; empty when there is none.
    pub(super) fn content_type(&self) -> &str {
        self.text(&CONTENT_TYPE)
    }

    /// Whether the body is compressed.
    pub(super) fn is_gzip(&self) -> bool {
        self.text(&CONTENT_ENCODING).eq_ignore_ascii_case("gzip")
    }

    /// The entity tag.
    pub(super) fn etag(&self) -> Option<&HeaderValue> {
        self.headers.get(ETAG)
    }

    fn text(&self, name: &http::HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// What came after the head.
#[derive(Debug)]
pub(super) struct Body {
    /// Bytes on the wire, as the server encoded them.
    pub(super) length: u64,
    /// The bytes, if they were asked for.
    pub(super) kept: Option<Vec<u8>>,
}

/// A connection with its HTTP side running on this thread's runtime.
pub(super) struct Connection {
    requests: Requests,
    caller: Arc<Caller>,
    _running: AbortOnDrop,
}

enum Requests {
    Http2(h2::client::SendRequest<Bytes>),
    /// One request at a time.
    Http1(Mutex<http1::SendRequest<Empty<Bytes>>>),
}

impl Connection {
    /// Connects; a failure names the hop.
    pub(super) async fn open(caller: Arc<Caller>) -> Result<Self, Fault> {
        let opening = async {
            let stream = dial(&caller.endpoint).await?;
            let (requests, running) = match &caller.endpoint.tls {
                None => http1_over(stream).await?,
                Some((config, name)) => {
                    let connector = TlsConnector::from(Arc::clone(config));
                    let name: ServerName<'static> = name.clone();
                    let stream = connector.connect(name, stream).await;
                    let stream = stream.map_err(|error| Fault::new("TLS handshake", error))?;
                    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                        http2_over(stream).await?
                    } else {
                        http1_over(stream).await?
                    }
                }
            };
            Ok(Self { requests, caller: Arc::clone(&caller), _running: running })
        };
        match timeout(CONNECT_TIMEOUT, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Fault(format!("connecting took over {} s", CONNECT_TIMEOUT.as_secs()))),
        }
    }

    /// As people call it.
    pub(super) fn protocol(&self) -> &'static str {
        match self.requests {
            Requests::Http2(_) => "HTTP/2",
            Requests::Http1(_) => "HTTP/1.1",
        }
    }

    /// One GET, read to its end; `keep` decides by the head whether the body is wanted.
    pub(super) async fn get(
        &self,
        ask: &Ask<'_>,
        keep: impl FnOnce(&Head) -> bool,
    ) -> Result<(Head, Body), Fault> {
        match &self.requests {
            Requests::Http2(requests) => {
                let request = self.request(ask, Version::HTTP_2)?;
                let (head, body) = open_http2(requests.clone(), request).await?;
                let keep = keep(&head);
                Ok((head, read_http2(body, keep).await?))
            }
            Requests::Http1(requests) => {
                let request = self.request(ask, Version::HTTP_11)?;
                let mut requests = requests.lock().await;
                requests.ready().await.map_err(broken)?;
                let response = requests.send_request(request.map(|()| Empty::new())).await;
                let (parts, body) = response.map_err(broken)?.into_parts();
                let head = Head { status: parts.status, headers: parts.headers };
                let keep = keep(&head);
                Ok((head, read_http1(body, keep).await?))
            }
        }
    }

    fn request(&self, ask: &Ask<'_>, version: Version) -> Result<Request<()>, Fault> {
        let Endpoint { authority, prefix, tls, .. } = &self.caller.endpoint;
        let builder = Request::get(if version == Version::HTTP_2 {
            let scheme = if tls.is_some() { "https" } else { "http" };
            format!("{scheme}://{authority}{prefix}{}", ask.path)
        } else {
            format!("{prefix}{}", ask.path)
        });
        let made = builder.version(version).body(());
        let mut request = made.map_err(|error| Fault::new("request", error))?;
        let headers = request.headers_mut();
        headers.clone_from(&self.caller.headers);
        if version != Version::HTTP_2 {
            let host = HeaderValue::from_str(authority);
            headers.insert(HOST, host.map_err(|error| Fault::new("request", error))?);
        }
        headers.insert(ACCEPT, HeaderValue::from_static(ask.accept));
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("portico-bench/", env!("CARGO_PKG_VERSION"))),
        );
        if ask.gzip {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        }
        if let Some(etag) = &ask.if_none_match {
            headers.insert(IF_NONE_MATCH, etag.clone());
        }
        Ok(request)
    }
}

fn broken(error: impl std::error::Error + 'static) -> Fault {
    Fault::new("connection broke", innermost(&error))
}

async fn dial(endpoint: &Endpoint) -> Result<TcpStream, Fault> {
    let Endpoint { host, port, .. } = endpoint;
    let addresses = tokio::net::lookup_host((host.as_str(), *port)).await;
    let addresses = addresses.map_err(|error| Fault::new("name lookup", error))?;
    let mut fault = Fault::new("name lookup", format!("no address of {host}"));
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                let set = stream.set_nodelay(true);
                set.map_err(|error| Fault::new("TCP connection", error))?;
                return Ok(stream);
            }
            Err(error) => fault = Fault::new(&format!("TCP connection to {address}"), error),
        }
    }
    Err(fault)
}

async fn http2_over<S>(stream: S) -> Result<(Requests, AbortOnDrop), Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .enable_push(false)
        .handshake(stream)
        .await
        .map_err(|error| Fault::new("HTTP/2 start", error))?;
    let running = spawn_owned("bench connection", async move {
        // Each request on it is told why, too.
        drop(connection.await);
    });
    Ok((Requests::Http2(requests), running))
}

async fn http1_over<S>(stream: S) -> Result<(Requests, AbortOnDrop), Fault>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (requests, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Fault::new("HTTP/1.1 start", error))?;
    let running = spawn_owned("bench connection", async move {
        drop(connection.await);
    });
    Ok((Requests::Http1(Mutex::new(requests)), running))
}

async fn open_http2(
    requests: h2::client::SendRequest<Bytes>,
    request: Request<()>,
) -> Result<(Head, h2::RecvStream), Fault> {
    let mut requests = requests.ready().await.map_err(broken)?;
    let (response, _) = requests.send_request(request, true).map_err(broken)?;
    let (parts, body) = response.await.map_err(broken)?.into_parts();
    Ok((Head { status: parts.status, headers: parts.headers }, body))
}

async fn read_http2(mut body: h2::RecvStream, keep: bool) -> Result<Body, Fault> {
    let mut read = Reading::new(keep);
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| Fault::new("answer cut", error))?;
        let released = body.flow_control().release_capacity(data.len());
        released.map_err(|error| Fault::new("answer cut", error))?;
        read.add(&data)?;
    }
    Ok(read.body)
}

async fn read_http1(mut body: hyper::body::Incoming, keep: bool) -> Result<Body, Fault> {
    let mut read = Reading::new(keep);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Fault::new("answer cut", error))?;
        if let Some(data) = frame.data_ref() {
            read.add(data)?;
        }
    }
    Ok(read.body)
}

struct Reading {
    body: Body,
}

impl Reading {
    fn new(keep: bool) -> Self {
        Self { body: Body { length: 0, kept: keep.then(Vec::new) } }
    }

    fn add(&mut self, data: &[u8]) -> Result<(), Fault> {
        self.body.length += data.len() as u64;
        if self.body.length > BODY_MAX {
            return Err(Fault(format!("answer over {} MiB", BODY_MAX >> 20)));
        }
        if let Some(kept) = &mut self.body.kept {
            kept.extend_from_slice(data);
        }
        Ok(())
    }
}
