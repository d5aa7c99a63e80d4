//! HTTP/1.1 towards clients, on hyper.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;

use http::{Request, Response};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::Context;
use crate::body::Body;
use crate::runtime::lifecycle::Phase;

/// Smallest read buffer that hyper takes, in bytes.
const BUFFER_MIN: usize = 8 * 1024;
/// Header lines of one request.
const HEADER_LINES_MAX: usize = 256;

/// Serves requests one after the other until the client, a limit or the ending ends it.
pub(super) async fn serve<H, R>(stream: TlsStream<TcpStream>, handler: H, context: &Context)
where
    H: Fn(Request<Body>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let limits = &context.limits;
    let header_bytes = usize::try_from(limits.header_bytes_max).unwrap_or(usize::MAX);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let response = handler(request.map(Body::http1));
        async move { Ok::<_, Infallible>(response.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.first_request_timeout)
        .max_buf_size(header_bytes.max(BUFFER_MIN))
        .max_headers(HEADER_LINES_MAX)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut drain = context.drain.clone();
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.reached(Phase::Draining) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = drain.reached(Phase::Ended) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP/1.1 connection ended with an error");
    }
}
