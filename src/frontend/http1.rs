//! HTTP/1.1 towards clients, on hyper; and the tunnel that a connection may become.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{Request, Response};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::Context;
use super::connection::ClientStream;
use crate::body::{Body, Tunnel};
use crate::runtime::lifecycle::{Drain, Phase};

/// Smallest read buffer that hyper takes, in bytes.
const BUFFER_MIN: usize = 8 * 1024;
/// Header lines of one request.
const HEADER_LINES_MAX: usize = 256;
/// How long a connection whose client asked for another protocol in vain may take to close.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// Serves requests one after the other until the client, a limit or the ending ends it.
pub(super) async fn serve<H, R>(stream: ClientStream, handler: H, context: &Context)
where
    H: Fn(Request<Body>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let limits = &context.limits;
    let header_bytes = usize::try_from(limits.header_bytes_max).unwrap_or(usize::MAX);
    let switch = Switch::default();
    let asked = Arc::clone(&switch);
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        // There only when the client asks for another protocol.
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let upgrade = upgrade.map(|upgrade| (upgrade, Arc::clone(&asked)));
        // Chained and not an async block: that would hold the future twice.
        handler(request.map(Body::http1)).map(move |mut response| {
            if let Some((upgrade, asked)) = upgrade {
                let tunnel = response.body_mut().take_tunnel();
                *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, tunnel));
            }
            Ok::<_, Infallible>(response)
        })
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.first_request_timeout)
        .max_buf_size(header_bytes.max(BUFFER_MIN))
        .max_headers(HEADER_LINES_MAX)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
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
        return tracing::debug!(%error, "HTTP/1.1 connection ended with an error");
    }
    let switched = switch.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((upgrade, tunnel)) = switched {
        take_over(upgrade, tunnel, drain).await;
    }
}

/// The last request for another protocol, and the tunnel when it was granted.
type Switch = Arc<Mutex<Option<(OnUpgrade, Option<Tunnel>)>>>;

/// Runs what a connection has become after its last response. Boxed: most become nothing.
fn take_over(
    upgrade: OnUpgrade,
    tunnel: Option<Tunnel>,
    mut drain: Drain,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        // The connection is over, so it is there or never will be.
        let Some(Ok(client)) = upgrade.now_or_never() else { return };
        let Some(tunnel) = tunnel else { return close(client).await };
        tokio::select! {
            () = tunnel.carry(client) => {}
            () = drain.reached(Phase::Ended) => {}
        }
    })
}

/// Ends a connection whose client asked in vain: the library gives it back open.
async fn close(client: Upgraded) {
    let mut client = TokioIo::new(client);
    match timeout(CLOSE_MAX, client.shutdown()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "connection not closed cleanly"),
        Err(_) => tracing::debug!("connection not closed in time"),
    }
}
