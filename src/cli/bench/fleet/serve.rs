//! One simulated server at work: its port, its connections, its answers.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use rustls_pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::Server;
use super::behaviour::Fault;
use super::documents::Documents;
use crate::demo::connections;
use crate::runtime::tasks;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const REMOTE_USER: HeaderName = HeaderName::from_static("x-remote-user");

/// A server's port, which stays its own also while nobody listens there.
#[derive(Debug)]
pub(super) struct Port {
    /// Bound, but never listening.
    _reserved: Socket,
    pub(super) address: SocketAddr,
}

impl Port {
    /// A free one on loopback.
    pub(super) fn reserve() -> io::Result<Self> {
        let reserved = bound(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let address = reserved.local_addr()?.as_socket();
        let address = address.ok_or_else(|| io::Error::other("no address of the Internet"))?;
        Ok(Self { _reserved: reserved, address })
    }

    /// Opens it.
    pub(super) fn listen(&self) -> io::Result<std::net::TcpListener> {
        let socket = bound(self.address)?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }
}

fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    // So that the port can be reserved and listened at; the system never gives it to others.
    socket.set_reuse_port(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Serves for as long as the runtime lives: open or closed, as the server is to behave.
pub(super) async fn run(
    server: Arc<Server>,
    first: Option<std::net::TcpListener>,
    acceptor: TlsAcceptor,
) {
    let mut behaviour = server.behaviour.subscribe();
    let mut first = first;
    loop {
        if behaviour.wait_for(|now| now.fault != Fault::Refuse).await.is_err() {
            return;
        }
        let listener = match first.take() {
            Some(listener) => Ok(listener),
            None => server.port.listen(),
        };
        let listener = match listener.and_then(TcpListener::from_std) {
            Ok(listener) => listener,
            Err(error) => {
                return tracing::error!(%error, address = %server.address(), "simulated server cannot listen");
            }
        };
        let open = CancellationToken::new();
        let start = |stream| connection(stream, &server, &acceptor, &open);
        tokio::select! {
            () = connections::accept(listener, start) => {}
            ended = behaviour.wait_for(|now| now.fault == Fault::Refuse) => {
                if ended.is_err() {
                    return;
                }
            }
        }
        open.cancel();
    }
}

fn connection(
    stream: TcpStream,
    server: &Arc<Server>,
    acceptor: &TlsAcceptor,
    open: &CancellationToken,
) {
    let (server, acceptor, open) = (Arc::clone(server), acceptor.clone(), open.clone());
    let connection = open.run_until_cancelled_owned(async move {
        let service = |certificates: Option<&[CertificateDer<'_>]>| {
            let shown = certificates.is_some_and(|chain| !chain.is_empty());
            server.count(|counts| counts.connection(shown));
            let server = Arc::clone(&server);
            move |request| {
                let server = Arc::clone(&server);
                async move { handle(&server, request).await }
            }
        };
        connections::serve(stream, &acceptor, service).await;
    });
    tasks::spawn("bench-connection", async move {
        connection.await;
    });
}

async fn handle(server: &Server, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let asked = Instant::now();
    let (parts, _) = request.into_parts();
    let path = parts.uri.path();
    let user = parts.headers.get(REMOTE_USER).and_then(|user| user.to_str().ok());
    server.count(|counts| counts.request(path, user.unwrap_or_default()));
    let mut behaviour = server.behaviour.subscribe();
    let latency = behaviour.borrow().latency.draw(&mut fastrand::Rng::new());
    tokio::time::sleep(latency).await;
    let fault = match behaviour.wait_for(|now| now.fault != Fault::Hang).await {
        Ok(now) => now.fault,
        Err(_) => Fault::Refuse,
    };
    let mut response = if let Fault::Status(code) = fault {
        plain(code, "the benchmark wants this server to fail\n")
    } else if parts.method == Method::GET || parts.method == Method::HEAD {
        answer(server, path, &parts.headers, asked)
    } else {
        plain(StatusCode::METHOD_NOT_ALLOWED, "simulated servers are only read\n")
    };
    if parts.method == Method::HEAD {
        // Over HTTP/2 hyper would send the body even here.
        *response.body_mut() = Full::default();
    }
    response
}

fn answer(
    server: &Server,
    path: &str,
    headers: &HeaderMap,
    asked: Instant,
) -> Response<Full<Bytes>> {
    if matches!(path, "/livez" | "/readyz" | "/healthz") {
        return plain(StatusCode::OK, "ok");
    }
    let documents = server.documents();
    if path == "/apis" && wants_aggregated(headers) {
        return aggregated(server, &documents, headers, asked);
    }
    let found = documents.by_path.get(path.trim_end_matches('/'));
    match found.or_else(|| documents.by_path.get(&across_namespaces(path)?)) {
        Some(bytes) => with_body(StatusCode::OK, JSON, bytes.clone()),
        None => plain(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// The path of the list of all namespaces, if this is that of one namespace's.
fn across_namespaces(path: &str) -> Option<String> {
    let (before, rest) = path.split_once("/namespaces/")?;
    let (_, resource) = rest.split_once('/')?;
    Some(format!("{before}/{resource}"))
}

fn aggregated(
    server: &Server,
    documents: &Documents,
    headers: &HeaderMap,
    asked: Instant,
) -> Response<Full<Bytes>> {
    let known = headers.get(IF_NONE_MATCH).map(HeaderValue::as_bytes);
    let mut response = if known == Some(documents.etag.as_bytes()) {
        server.count(|counts| counts.not_modified += 1);
        let mut response = Response::default();
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        server.sent(documents.generation, asked);
        with_body(StatusCode::OK, AGGREGATED, documents.aggregated.clone())
    };
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(&documents.etag) {
        headers.insert(ETAG, etag);
    }
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
    response
}

/// Whether one of the clauses asks for the aggregated form, in JSON.
fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|clause| {
        let mut parts = clause.split(';').map(str::trim);
        let json = parts.next().is_some_and(|kind| [JSON, "application/*", "*/*"].contains(&kind));
        let parts: Vec<&str> = parts.collect();
        let asked = ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"];
        json && asked.iter().all(|part| parts.contains(part))
    })
}

fn plain(code: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    with_body(code, TEXT, Bytes::from_static(text.as_bytes()))
}

fn with_body(code: StatusCode, content_type: &'static str, bytes: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_accept(accept: &'static str, aggregated: bool) {
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
        assert_eq!(wants_aggregated(&headers), aggregated, "{accept}");
    }

    #[test]
    fn the_aggregated_form_is_for_those_who_name_it() {
        check_accept(AGGREGATED, true);
        check_accept(
            "application/json, application/json;v=v2;as=APIGroupDiscoveryList;g=apidiscovery.k8s.io;q=0.5",
            true,
        );
        check_accept(
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
            false,
        );
        check_accept("application/json", false);
        check_accept("", false);
    }

    #[test]
    fn a_closed_port_is_refused_and_opens_again() {
        let port = Port::reserve().unwrap();
        let connect = || std::net::TcpStream::connect(port.address);
        assert_eq!(connect().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let listener = port.listen().unwrap();
        connect().unwrap();
        drop(listener);
        assert_eq!(connect().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let _listener = port.listen().unwrap();
        connect().unwrap();
    }

    #[test]
    fn a_namespaces_list_is_that_of_all_namespaces() {
        let across = |path| across_namespaces(path);
        let expected = Some("/apis/g/v1/widgets01".to_owned());
        assert_eq!(across("/apis/g/v1/namespaces/default/widgets01"), expected);
        assert_eq!(across("/apis/g/v1/widgets01"), None);
        assert_eq!(across("/apis/g/v1/namespaces/default"), None);
    }
}
