//! One client connection: handshake, protocol by ALPN, and the time each of these may take.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::pin;
use std::sync::Arc;

use futures_util::FutureExt as _;
use http::{Request, Response};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::gathered::{Corked, TLS_BUFFER};
use super::short_slices::ShortSlices;
use super::{Accepted, Context, Peer, http1, http2};
use crate::body::Body;

/// A client's connection after the handshake; in a box, since it is moved from hand to hand.
pub(super) type ClientStream = Box<ShortSlices<TlsStream<Corked<TcpStream>>>>;

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
    let (_, session) = stream.0.get_ref();
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
    if speaks_http(&stream) {
        refuse_http(&stream);
        return Err(io::Error::new(ErrorKind::InvalidData, "HTTP without TLS"));
    }
    let turn = turns.acquire().await.map_err(io::Error::other)?;
    let acceptor = TlsAcceptor::from(context.tls.load());
    let accepting = acceptor.accept_with(Corked::new(stream), |session| {
        session.set_buffer_limit(Some(TLS_BUFFER));
    });
    let mut shaking = pin!(timeout(limit, accepting));
    let shaken = if let Ok(shaken) = timeout(context.limits.handshake_turn, shaking.as_mut()).await
    {
        shaken
    } else {
        // It waits for its client: others need not wait for that.
        drop(turn);
        shaking.await
    };
    shaken.map_err(late)?.map(|stream| Box::new(ShortSlices(stream)))
}

/// Reads of 4 KiB in which what such a client has sent is taken.
const HTTP_READS_MAX: usize = 16;

/// True when a client's first bytes are those of a request (`tlsRecordHeaderLooksLikeHTTP` in Go).
fn speaks_http(stream: &TcpStream) -> bool {
    let mut first = [0; 5];
    let known = [b"GET /", b"HEAD ", b"POST ", b"PUT /", b"PATCH", b"DELET", b"OPTIO"];
    matches!(stream.peek(&mut first).now_or_never(), Some(Ok(5))) && known.contains(&&first)
}

/// Go's answer to such a client.
fn refuse_http(stream: &TcpStream) {
    let answer =
        b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
    // Unread bytes would make the connection's end a reset, and the answer be lost with it.
    let mut scratch = [0; 4096];
    for _ in 0..HTTP_READS_MAX {
        match stream.try_read(&mut scratch) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    stream.try_write(answer).ok();
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
