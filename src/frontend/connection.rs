//! One client connection: handshake, protocol by ALPN, and the time each of these may take.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use http::{Request, Response};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Accepted, Context, Peer, http1, http2};
use crate::body::Body;

/// A client's connection after the handshake; in a box, since it is moved from hand to hand.
pub(super) type ClientStream = Box<TlsStream<TcpStream>>;

/// Serves one connection to its end.
pub(super) async fn serve<F, H, R>(
    accepted: Accepted,
    context: Arc<Context>,
    turns: Arc<Semaphore>,
    factory: Arc<F>,
) where
    F: Fn(Peer) -> H + Send + Sync + 'static,
    H: Fn(Request<Body>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let Accepted { stream, address, _open, _held } = accepted;
    context.metrics.connections.inc();
    let _counted = scopeguard(&context);
    // Each in a box of its own, so that a connection does not keep the room of what is over.
    let shaken = Box::pin(handshake(stream, &context, &turns)).await;
    drop(turns);
    let stream = match shaken {
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
        Box::pin(http2::serve(stream, handler, &context)).await;
    } else {
        Box::pin(http1::serve(stream, handler, &context)).await;
    }
}

/// A handshake begins when the client's first bytes are there and it is its turn: who says nothing
/// takes nobody's turn, and who waits is not timed. Waiting is bounded by the connections there may
/// be, and in order.
async fn handshake(
    stream: std::net::TcpStream,
    context: &Context,
    turns: &Semaphore,
) -> io::Result<ClientStream> {
    let limit = context.limits.handshake_timeout;
    let late = |_| io::Error::new(ErrorKind::TimedOut, "timed out");
    let stream = TcpStream::from_std(stream)?;
    timeout(limit, stream.readable()).await.map_err(late)??;
    let _turn = turns.acquire().await.map_err(io::Error::other)?;
    let acceptor = TlsAcceptor::from(context.tls.load());
    timeout(limit, acceptor.accept(stream)).await.map_err(late)?.map(Box::new)
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
