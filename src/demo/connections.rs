//! Accepting connections over TLS and serving HTTP on them: for the toys, and for the servers that
//! `portico bench` simulates.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait when no connection can be accepted, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Gives each connection to `start`, which must not wait; never ends by itself.
pub async fn accept(listener: TcpListener, mut start: impl FnMut(TcpStream)) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => start(stream),
            Err(error) => {
                tracing::warn!(%error, "simulated server cannot accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves HTTP/1.1 or HTTP/2 on one connection until it ends; `service` is told the certificates
/// that the client has shown, and makes what answers the connection's requests.
pub async fn serve<S, F, B>(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    service: impl FnOnce(Option<&[CertificateDer<'_>]>) -> S,
) where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Error = Infallible> + Send + 'static,
    B::Data: Send,
{
    // Small frames, as watches send them, shall not wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "simulated server cannot set nodelay");
    }
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "simulated server's handshake failed"),
        Err(_) => return tracing::debug!("simulated server's handshake timed out"),
    };
    let service = service(stream.get_ref().1.peer_certificates());
    let service = service_fn(move |request| {
        let answer = service(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let http = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error, "simulated server's connection ended");
    }
}
