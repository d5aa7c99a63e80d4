//! HTTP/1.1 towards clients, on hyper; and the tunnel that a connection may become.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncWriteExt as _, copy, sink};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::Context;
use super::connection::ClientStream;
use crate::body::{Body, BodyError, Tunnel};
use crate::runtime::lifecycle::{Drain, Phase};

/// Smallest read buffer that hyper takes, in bytes.
const BUFFER_MIN: usize = 8 * 1024;
/// Header lines of one request.
const HEADER_LINES_MAX: usize = 256;
/// How long what a client still sends after its connection's last answer is read.
const LINGER_MAX: Duration = Duration::from_secs(1);
/// How long after its deadline a response may take to be cut in an orderly way.
const OVERDUE_MAX: Duration = Duration::from_secs(1);
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
    let due = Due::default();
    let piece_timeout = limits.stalls.piece_timeout;
    let mut overdue = Overdue { due: Arc::clone(&due), piece_timeout, armed: None };
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        // There only when the client asks for another protocol.
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let upgrade = upgrade.map(|upgrade| (upgrade, Arc::clone(&asked)));
        let sending = Arc::clone(&due);
        // Chained and not an async block: that would hold the future twice.
        handler(request.map(Body::http1)).map(move |mut response| {
            if let Some((upgrade, asked)) = upgrade {
                let tunnel = response.body_mut().take_tunnel();
                *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, tunnel));
            }
            Ok::<_, Infallible>(response.map(|body| Sending::new(body, sending)))
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
    let serving = async {
        tokio::select! {
            ended = connection.as_mut() => return Some(ended),
            () = drain.reached(Phase::Draining) => {}
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = drain.reached(Phase::Ended) => None,
        }
    };
    let ended = tokio::select! {
        biased;
        ended = serving => ended,
        () = poll_fn(|cx| overdue.poll(cx)) => {
            return tracing::debug!("connection cut whose client did not read its answer in time");
        }
    };
    let Some(ended) = ended else { return };
    if let Err(error) = ended {
        return tracing::debug!(%error, "HTTP/1.1 connection ended with an error");
    }
    let switched = switch.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((upgrade, tunnel)) = switched {
        take_over(upgrade, tunnel, drain).await;
    }
}

/// What the connection knows of the response that is being sent.
type Due = Arc<Mutex<Progress>>;

#[derive(Debug, Default)]
struct Progress {
    /// When it must be over.
    deadline: Option<Instant>,
    /// Since when the client takes what it was handed last.
    handed: Option<Instant>,
    /// The client took too long.
    stalled: bool,
}

/// A response's body on its way. The library asks it for nothing while the client takes nothing, so
/// the connection has to know of its deadline.
struct Sending {
    body: Body,
    due: Due,
}

impl Sending {
    fn new(body: Body, due: Due) -> Self {
        let deadline = body.deadline();
        *lock(&due) = Progress { deadline, ..Progress::default() };
        Self { body, due }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if std::mem::take(&mut *lock(&self.due)).stalled {
            self.body.abort(&BodyError::Stalled);
        }
    }
}

fn lock(due: &Due) -> MutexGuard<'_, Progress> {
    due.lock().unwrap_or_else(PoisonError::into_inner)
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let next = Pin::new(&mut self.body).poll_frame(cx);
        lock(&self.due).handed = next.is_ready().then(Instant::now);
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Ready when a response is not over some time after its deadline, or its client takes nothing of it.
struct Overdue {
    due: Due,
    piece_timeout: Duration,
    armed: Option<Pin<Box<Sleep>>>,
}

impl Overdue {
    /// To be asked after the connection, in the same task: it has no waker of its own for a response
    /// that begins. One that is handed on anew finds the clock set for what was before, which then is
    /// set again: that is cheaper than once for each piece.
    fn poll(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        loop {
            let Some((when, stalls)) = self.limit() else { return Poll::Pending };
            let armed = match &mut self.armed {
                Some(armed) if armed.deadline() <= when => armed,
                armed => armed.insert(Box::pin(sleep_until(when))),
            };
            if armed.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if armed.deadline() == when {
                lock(&self.due).stalled = stalls;
                return Poll::Ready(());
            }
            self.armed = None;
        }
    }

    /// When it is over, and whether that is because its client takes nothing.
    fn limit(&self) -> Option<(Instant, bool)> {
        let progress = lock(&self.due);
        let deadline = progress.deadline.map(|deadline| (deadline + OVERDUE_MAX, false));
        let handed = progress.handed.map(|handed| (handed + self.piece_timeout, true));
        deadline.into_iter().chain(handed).min()
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

/// Ends a connection whose client asked in vain: the library gives it back open. What the client still
/// sends is read and dropped: a connection that is closed with unread bytes is reset, and the answer
/// may be lost with it.
async fn close(client: Upgraded) {
    let mut client = TokioIo::new(client);
    match timeout(CLOSE_MAX, client.shutdown()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return tracing::debug!(%error, "connection not closed cleanly"),
        Err(_) => return tracing::debug!("connection not closed in time"),
    }
    if timeout(LINGER_MAX, copy(&mut client, &mut sink())).await.is_err() {
        tracing::debug!("connection cut at an end that did not close");
    }
}
