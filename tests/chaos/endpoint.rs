//! An endpoint that can be frozen, killed, started again on its port, and told to send its
//! connections away; it notes what it is sent, and answers what the request asks for.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use portico::runtime::tasks::spawn;
use rustls::ServerConfig;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::handler::{answer_http1, answer_http2};
use crate::ledger::Ledger;
use crate::pki::backend_tls;

/// Streams that an endpoint takes on one connection.
const STREAMS_MAX: u32 = 40;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// How connections are sent away.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Farewell {
    /// When what is open on them is over.
    #[default]
    Graceful,
    AtOnce,
}

/// One endpoint.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    config: Arc<ServerConfig>,
    frozen: watch::Sender<bool>,
    farewells: watch::Sender<Farewell>,
    ledger: Arc<Ledger>,
    /// Keeps the port while nobody listens there.
    _port: Socket,
    listening: Option<JoinHandle<()>>,
}

/// What a connection of an endpoint is told.
struct Told {
    frozen: watch::Receiver<bool>,
    farewells: watch::Receiver<Farewell>,
    ledger: Arc<Ledger>,
}

impl Endpoint {
    /// An endpoint of a service that speaks these protocols, on a port of its own.
    pub(crate) fn start(service: &str, protocols: &[&str], ledger: &Arc<Ledger>) -> Self {
        let port = bound(([127, 0, 0, 1], 0).into());
        let address = port.local_addr().unwrap().as_socket().unwrap();
        let mut made = Self {
            address,
            config: Arc::new(backend_tls(service, protocols)),
            frozen: watch::Sender::new(false),
            farewells: watch::Sender::new(Farewell::Graceful),
            ledger: Arc::clone(ledger),
            _port: port,
            listening: None,
        };
        made.restart();
        made
    }

    /// Listens again, thawed, unless it does.
    pub(crate) fn restart(&mut self) {
        if self.listening.is_some() {
            return;
        }
        self.freeze(false);
        let socket = bound(self.address);
        socket.listen(BACKLOG).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        let acceptor = TlsAcceptor::from(Arc::clone(&self.config));
        let (frozen, farewells) = (self.frozen.subscribe(), self.farewells.subscribe());
        let ledger = Arc::clone(&self.ledger);
        self.listening = Some(spawn("endpoint", async move {
            let mut serving = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (stream, _) = accepted.unwrap();
                        stream.set_nodelay(true).unwrap();
                        let mut farewells = farewells.clone();
                        farewells.mark_unchanged();
                        let (frozen, ledger) = (frozen.clone(), Arc::clone(&ledger));
                        let told = Told { frozen, farewells, ledger };
                        serving.spawn(serve(stream, acceptor.clone(), told));
                    }
                    Some(_) = serving.join_next() => {}
                }
            }
        }));
    }

    /// Closes the listener and every connection.
    pub(crate) async fn kill(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
            // An error says that it was.
            listening.await.ok();
        }
    }

    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    /// Sends every connection away.
    pub(crate) fn say_farewell(&self, farewell: Farewell) {
        self.farewells.send_replace(farewell);
    }
}

/// A socket on this address that does not listen yet; a second one may be bound beside it.
fn bound(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, told: Told) {
    let freezing = Freezing { stream, frozen: told.frozen.clone(), thaw: None };
    let Ok(stream) = acceptor.accept(freezing).await else { return };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        serve_http2(stream, told).await;
    } else {
        serve_http1(stream, told).await;
    }
}

async fn serve_http2(stream: TlsStream<Freezing>, told: Told) {
    let Told { mut farewells, ledger, .. } = told;
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(128 * 1024).initial_connection_window_size(1 << 20);
    builder.max_concurrent_streams(STREAMS_MAX);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let (go, mut goes) = mpsc::channel(1);
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    streams.spawn(answer_http2(request, respond, Arc::clone(&ledger), go.clone()));
                }
                Some(Err(_)) | None => return,
            },
            Ok(()) = farewells.changed() => match *farewells.borrow_and_update() {
                Farewell::Graceful => connection.graceful_shutdown(),
                Farewell::AtOnce => connection.abrupt_shutdown(h2::Reason::NO_ERROR),
            },
            Some(()) = goes.recv() => connection.graceful_shutdown(),
            Some(_) = streams.join_next() => {}
        }
    }
}

async fn serve_http1(stream: TlsStream<Freezing>, told: Told) {
    let Told { mut farewells, ledger, .. } = told;
    let service = service_fn(move |request: Request<Incoming>| {
        let ledger = Arc::clone(&ledger);
        async move { Ok::<Response<_>, Infallible>(answer_http1(request, ledger).await) }
    });
    let serving =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    loop {
        tokio::select! {
            _ = &mut serving => return,
            Ok(()) = farewells.changed() => match *farewells.borrow_and_update() {
                Farewell::Graceful => serving.as_mut().graceful_shutdown(),
                // HTTP/1.1 has no word for it.
                Farewell::AtOnce => return,
            },
        }
    }
}

/// A socket of a process that may be stopped: it stays open, and nothing is read or written.
struct Freezing {
    stream: TcpStream,
    frozen: watch::Receiver<bool>,
    thaw: Option<BoxFuture<'static, ()>>,
}

impl Freezing {
    fn poll_thawed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.thaw.is_some() || *self.frozen.borrow() {
            let mut frozen = self.frozen.clone();
            let thaw = self.thaw.get_or_insert_with(|| {
                Box::pin(async move {
                    // Without its endpoint nothing thaws it; then it is cut.
                    frozen.wait_for(|frozen| !frozen).await.ok();
                })
            });
            ready!(thaw.as_mut().poll(cx));
            self.thaw = None;
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Freezing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_thawed(cx));
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Freezing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_thawed(cx));
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_thawed(cx));
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_thawed(cx));
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
