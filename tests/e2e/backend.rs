//! Scripted backends: one that does what the path says and tells what it received, and listeners
//! on which a test writes its own TLS, HTTP/2 or raw bytes.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use portico::runtime::tasks::{AbortOnDrop, spawn_owned};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::pki::backend_tls;
use crate::rig::within;

/// A listener on a free port; dropping it closes it and cuts every connection.
pub(crate) struct Listener {
    pub(crate) address: SocketAddr,
    connections: Arc<Connections>,
    _accepting: AbortOnDrop,
}

#[derive(Default)]
struct Connections {
    accepted: AtomicUsize,
    open: AtomicUsize,
}

struct Open(Arc<Connections>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Listener {
    /// Serves each TCP connection, which is given its number.
    pub(crate) fn tcp<F, R>(serve: F) -> Self
    where
        F: Fn(TcpStream, usize) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let connections = Arc::new(Connections::default());
        let counted = Arc::clone(&connections);
        let accepting = spawn_owned("backend", async move {
            let mut serving = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let number = counted.accepted.fetch_add(1, Ordering::SeqCst);
                counted.open.fetch_add(1, Ordering::SeqCst);
                let (open, served) = (Open(Arc::clone(&counted)), serve(stream, number));
                serving.spawn(async move {
                    let _open = open;
                    served.await;
                });
            }
        });
        Self { address, connections, _accepting: accepting }
    }

    /// Serves each TLS connection whose handshake succeeds.
    pub(crate) fn tls<F, R>(config: ServerConfig, serve: F) -> Self
    where
        F: Fn(TlsStream<TcpStream>, usize) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self::tcp(move |stream, number| {
            let (acceptor, serve) = (acceptor.clone(), serve.clone());
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream, number).await;
                }
            }
        })
    }

    /// Serves each HTTP/2 connection frame by frame.
    pub(crate) fn http2<F, R>(service: &str, builder: h2::server::Builder, serve: F) -> Self
    where
        F: Fn(h2::server::Connection<TlsStream<TcpStream>, Bytes>, usize) -> R
            + Clone
            + Send
            + Sync
            + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self::tls(backend_tls(service, &["h2"]), move |stream, number| {
            let (builder, serve) = (builder.clone(), serve.clone());
            async move {
                if let Ok(connection) = builder.handshake(stream).await {
                    serve(connection, number).await;
                }
            }
        })
    }

    /// Connections accepted so far.
    pub(crate) fn accepted(&self) -> usize {
        self.connections.accepted.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.connections.open.load(Ordering::SeqCst)
    }
}

pub(crate) type Sent = UnsyncBoxBody<Bytes, std::io::Error>;

/// A watch as the backend holds it: what is sent goes out; it is closed when the client has gone.
pub(crate) type Watch = mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>;

/// A backend that does what the last part of the path says, see [`Backend::answer`].
pub(crate) struct Backend {
    pub(crate) listener: Listener,
    state: Arc<State>,
    watches: mpsc::Receiver<Watch>,
}

/// What a backend was asked, and the watches that it serves.
pub(crate) struct State {
    seen: Mutex<Vec<Value>>,
    watches: mpsc::Sender<Watch>,
}

pub(crate) const HTTP2: &[&str] = &["h2", "http/1.1"];
pub(crate) const HTTP1: &[&str] = &["http/1.1"];

/// What is told besides the body when trailers are.
pub(crate) const MIRRORED: &[u8] = b"with trailers";

impl Backend {
    /// The backend of a service.
    pub(crate) fn start(service: &str, protocols: &[&str]) -> Self {
        Self::start_with(backend_tls(service, protocols), serve)
    }

    /// A backend of the test's own TLS, which serves each connection by itself.
    pub(crate) fn start_with<F, R>(config: ServerConfig, serve: F) -> Self
    where
        F: Fn(TlsStream<TcpStream>, usize, Arc<State>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let (sender, watches) = mpsc::channel(1024);
        let state = Arc::new(State { seen: Mutex::default(), watches: sender });
        let serving = Arc::clone(&state);
        let listener = Listener::tls(config, move |stream, number| {
            let state = Arc::clone(&serving);
            serve(stream, number, state)
        });
        Self { listener, state, watches }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// Everything that was received, oldest first.
    pub(crate) fn seen(&self) -> Vec<Value> {
        self.state.seen.lock().unwrap().clone()
    }

    /// The next watch that was opened.
    pub(crate) async fn watch(&mut self) -> Watch {
        within("a watch at the backend", self.watches.recv()).await.unwrap()
    }
}

pub(crate) async fn serve(stream: TlsStream<TcpStream>, number: usize, state: Arc<State>) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(&state, number, request).await) }
    });
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http2().max_concurrent_streams(1000).max_header_list_size(1 << 20);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error, "backend connection ended");
    }
}

/// By the path's last part: `mirror` gives the body back, `code-<n>` answers with that code and no
/// body, `large-<n>` sends n bytes, `trailers` sends trailers, `announced` announces them too,
/// `events` sends what the test sends, `hang` never answers; anything else tells what was received.
pub(crate) async fn answer(
    state: &State,
    number: usize,
    request: Request<Incoming>,
) -> Response<Sent> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let last = path.rsplit('/').next().unwrap_or_default();
    let collected = match body.collect().await {
        Ok(collected) => collected,
        Err(error) => {
            tell(state, json!({ "aborted": error.to_string() }));
            return Response::new(full(Bytes::new()));
        }
    };
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let body = collected.to_bytes();
    let told = json!({
        "connection": number,
        "method": parts.method.as_str(),
        "target": parts.uri.path_and_query().map(ToString::to_string),
        "authority": parts.uri.authority().map(ToString::to_string),
        "version": format!("{:?}", parts.version),
        "headers": pairs(&parts.headers),
        "trailers": pairs(&trailers),
        "bytes": body.len(),
    });
    tell(state, told.clone());
    if parts.method == Method::HEAD {
        return Response::builder().header("content-length", "7").body(full(Bytes::new())).unwrap();
    }
    match last.split_once('-') {
        None if last == "mirror" => Response::new(full(body)),
        None if last == "trailers" => with_trailers(false),
        None if last == "announced" => with_trailers(true),
        None if last == "hang" => std::future::pending().await,
        None if last == "events" => watch(state).await,
        Some(("code", code)) => Response::builder()
            .status(code.parse::<u16>().unwrap())
            .body(full(Bytes::new()))
            .unwrap(),
        Some(("large", size)) => Response::new(full(vec![b'x'; size.parse().unwrap()].into())),
        _ => Response::new(full(told.to_string().into())),
    }
}

fn tell(state: &State, told: Value) {
    state.seen.lock().unwrap().push(told);
}

pub(crate) fn full(bytes: Bytes) -> Sent {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn with_trailers(announced: bool) -> Response<Sent> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", "abc".parse().unwrap());
    let frames = [Ok(Frame::data(Bytes::from_static(MIRRORED))), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync());
    if announced {
        response.headers_mut().insert("trailer", "x-checksum".parse().unwrap());
    }
    response
}

async fn watch(state: &State) -> Response<Sent> {
    let (sender, receiver) = mpsc::channel(16);
    state.watches.send(sender).await.unwrap();
    let frames = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|frame| (frame, receiver))
    });
    Response::builder()
        .header("content-type", "application/json")
        .body(StreamBody::new(frames).boxed_unsync())
        .unwrap()
}

fn pairs(headers: &HeaderMap) -> Value {
    headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect()
}

/// The values of a header in what a backend told.
pub(crate) fn told<'a>(told: &'a Value, part: &str, name: &str) -> Vec<&'a str> {
    told[part]
        .as_array()
        .unwrap()
        .iter()
        .filter(|pair| pair[0] == name)
        .map(|pair| pair[1].as_str().unwrap())
        .collect()
}
