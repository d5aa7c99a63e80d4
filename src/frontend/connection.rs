//! One client connection: handshake, protocol by ALPN, and the time each of these may take.

use std::future::Future;
use std::sync::Arc;

use http::{Request, Response};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Accepted, Context, Peer, http1, http2};
use crate::body::Body;
use crate::runtime::socket;

/// Serves one connection to its end.
pub(super) async fn serve<F, H, R>(accepted: Accepted, context: Context, factory: Arc<F>)
where
    F: Fn(Peer) -> H + Send + Sync + 'static,
    H: Fn(Request<Body>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let Accepted { stream, address, _open, _held } = accepted;
    context.metrics.connections.inc();
    let _counted = scopeguard(&context);
    let stream = match handshake(stream, &context).await {
        Ok(stream) => stream,
        Err(error) => {
            context.metrics.handshake_errors.inc();
            tracing::debug!(client = %address, %error, "TLS handshake error");
            return;
        }
    };
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().unwrap_or_default().to_vec();
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    let handler = factory(Peer { address, chain });
    drop(factory);
    if is_http2 {
        http2::serve(stream, handler, &context).await;
    } else {
        http1::serve(stream, handler, &context).await;
    }
}

async fn handshake(
    stream: std::net::TcpStream,
    context: &Context,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::from_std(stream)?;
    socket::set_up(&stream)?;
    let acceptor = TlsAcceptor::from(context.tls.load());
    match timeout(context.limits.handshake_timeout, acceptor.accept(stream)).await {
        Ok(accepted) => accepted,
        Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "timed out")),
    }
}

/// Takes the connection out of the gauge when it is over.
fn scopeguard(context: &Context) -> impl Drop + use<> {
    struct Counted(prometheus::IntGauge);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.dec();
        }
    }
    Counted(context.metrics.connections.clone())
}
