//! Clients that see what goes over the wire: one that speaks HTTP/1.1 by itself, one on h2's frames.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use portico::tls::pki::PemPair;
use portico::tls::{certificates, provider};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::http1_client::Http1;
use crate::http2_client::Http2;
use crate::pki::PKI;
use crate::rig::within;

/// How to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

pub(crate) const BOTH: [Protocol; 2] = [Protocol::Http1, Protocol::Http2];

/// A request to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    /// On HTTP/1.1 the body goes in chunks; on HTTP/2 without a length.
    pub(crate) chunked: bool,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Ask {
    pub(crate) fn new(method: &str, target: impl Into<String>) -> Self {
        Self {
            method: method.to_owned(),
            target: target.into(),
            headers: Vec::new(),
            body: Bytes::new(),
            chunked: false,
            trailers: Vec::new(),
        }
    }

    pub(crate) fn get(target: impl Into<String>) -> Self {
        Self::new("GET", target)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn chunked(mut self) -> Self {
        self.chunked = true;
        self
    }

    pub(crate) fn trailer(mut self, name: &str, value: &str) -> Self {
        self.trailers.push((name.to_owned(), value.to_owned()));
        self.chunked()
    }

    pub(crate) fn has_body(&self) -> bool {
        self.chunked || !self.body.is_empty()
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {} {}", self.status, self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// The first of `details.causes[].reason`.
    pub(crate) fn cause(&self) -> String {
        let status = self.json();
        let cause = &status["details"]["causes"][0]["reason"];
        cause.as_str().unwrap_or_default().to_owned()
    }
}

/// An answer whose head has come.
pub(crate) struct Opened<'a> {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Incoming<'a>,
}

/// A body on its way.
pub(crate) enum Incoming<'a> {
    Http1(&'a mut Http1),
    Http2(h2::RecvStream),
}

impl Incoming<'_> {
    /// The next bytes; `None` at the clean end, an error when the body was cut.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, String>> {
        within("next bytes of a body", async {
            match self {
                Self::Http1(client) => client.next_chunk().await,
                Self::Http2(stream) => {
                    let data = stream.data().await?;
                    Some(data.map_err(|error| error.to_string()).inspect(|bytes| {
                        stream.flow_control().release_capacity(bytes.len()).unwrap();
                    }))
                }
            }
        })
        .await
    }

    /// Reads until `count` bytes have come.
    pub(crate) async fn read(&mut self, count: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < count {
            read.extend_from_slice(&self.next().await.unwrap().unwrap());
        }
        read
    }

    /// Why the body was cut; fails when it ends cleanly.
    pub(crate) async fn cut(&mut self) -> String {
        loop {
            match self.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error,
                None => panic!("the body ended cleanly"),
            }
        }
    }

    /// The rest of it, with the trailers.
    pub(crate) async fn collect(&mut self) -> Result<(Bytes, HeaderMap), String> {
        let mut body = Vec::new();
        while let Some(data) = self.next().await {
            body.extend_from_slice(&data?);
        }
        let trailers = match self {
            Self::Http1(client) => client.take_trailers(),
            Self::Http2(stream) => {
                stream.trailers().await.map_err(|error| error.to_string())?.unwrap_or_default()
            }
        };
        Ok((body.into(), trailers))
    }
}

/// One connection.
pub(crate) enum Client {
    Http1(Box<Http1>),
    Http2(Box<Http2>),
}

impl Client {
    pub(crate) async fn connect(
        address: SocketAddr,
        protocol: Protocol,
        pair: Option<&PemPair>,
    ) -> Self {
        match protocol {
            Protocol::Http1 => {
                Self::Http1(Box::new(Http1::new(tls(address, "http/1.1", pair).await)))
            }
            Protocol::Http2 => {
                Self::Http2(Box::new(Http2::new(tls(address, "h2", pair).await).await))
            }
        }
    }

    pub(crate) async fn get(&mut self, target: &str) -> Answer {
        self.send(&Ask::get(target)).await
    }

    /// The whole answer.
    pub(crate) async fn send(&mut self, ask: &Ask) -> Answer {
        self.try_send(ask).await.unwrap()
    }

    /// The whole answer, or how it broke off.
    pub(crate) async fn try_send(&mut self, ask: &Ask) -> Result<Answer, String> {
        let mut opened = self.try_open(ask).await?;
        let (body, trailers) = opened.body.collect().await?;
        Ok(Answer { status: opened.status, headers: opened.headers, body, trailers })
    }

    /// The head of the answer; the body is still on its way.
    pub(crate) async fn open(&mut self, ask: &Ask) -> Opened<'_> {
        self.try_open(ask).await.unwrap()
    }

    pub(crate) async fn try_open(&mut self, ask: &Ask) -> Result<Opened<'_>, String> {
        within("the head of an answer", async {
            match self {
                Self::Http1(client) => client.open(ask).await,
                Self::Http2(client) => client.open(ask).await,
            }
        })
        .await
    }

    pub(crate) fn http2(self) -> Http2 {
        match self {
            Self::Http2(client) => *client,
            Self::Http1(_) => panic!("an HTTP/1.1 connection"),
        }
    }
}

/// A TLS connection to portico that offers one protocol.
pub(crate) async fn tls(
    address: SocketAddr,
    protocol: &str,
    pair: Option<&PemPair>,
) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    for root in certificates("ca", PKI.authority.certificate().as_bytes()).unwrap() {
        roots.add(root).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match pair {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let pair = pair.key_pair().unwrap();
            builder.with_client_auth_cert(pair.chain, pair.key).unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    within("a TLS connection", async {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    })
    .await
}
