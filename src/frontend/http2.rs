//! HTTP/2 towards clients, on `h2` itself.
//!
//! What a server library would do is ours here: the Date header, limits, idle and keep-alive pings,
//! and the GOAWAY after an anonymous answer that keeps Kubernetes' servers from a flood of such
//! requests on one connection (`UnauthenticatedHTTP2DOSMitigation`).

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::header::{CONNECTION, DATE};
use http::{HeaderValue, Method, Request, Response};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};

use super::connection::ClientStream;
use super::frames::Metered;
use super::gathered::Gathered;
use super::{Context, Limits};
use crate::body::{Body, Stalls, pump_to_client};
use crate::runtime::lifecycle::Phase;
use crate::runtime::tasks;

/// Receive window of a stream, in bytes; upstream's (`secure_serving.go`).
const STREAM_WINDOW: u32 = 256 * 1024;
/// Largest frame accepted, in bytes.
const FRAME_MAX: u32 = 64 * 1024;
/// Bytes buffered per stream towards the client.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that the client reset and that are remembered: more of them end the connection.
const RESET_STREAMS_MAX: usize = 50;
/// Streams that were answered before all of their body had come, and are remembered for a while.
const ANSWERED_EARLY_MAX: usize = 4096;
/// For how long.
const ANSWERED_EARLY_TIME: Duration = Duration::from_secs(10);
/// How long a connection that is ended for what its client does may take to say so.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// How often a connection looks at its own time limits.
const TICK: Duration = Duration::from_secs(5);

type Stream = (Request<RecvStream>, SendResponse<Bytes>);
type ServerConnection = Connection<Metered<Gathered<ClientStream>>, Bytes>;

/// Serves streams until the client, a limit or the ending ends it.
pub(super) async fn serve<H, R>(stream: ClientStream, handler: H, context: &Context)
where
    H: Fn(Request<Body>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let limits = &context.limits;
    let (stream, flooded) = Metered::new(Gathered::new(stream), limits.idle_frames_max);
    let handshake = builder(limits).handshake::<_, Bytes>(stream);
    let mut connection = match timeout(limits.first_request_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%error, "HTTP/2 handshake failed"),
        Err(_) => return tracing::debug!("HTTP/2 handshake timed out"),
    };
    let mut watch = Watch::new(&mut connection, limits);
    let (mut draining, mut ended) = (context.drain.clone(), context.drain.clone());
    let mut draining = pin!(async move { draining.reached(Phase::Draining).await });
    let mut ended = pin!(async move { ended.reached(Phase::Ended).await });
    let close = Arc::new(AtomicBool::new(false));
    loop {
        let next = poll_fn(|cx| {
            match connection.poll_accept(cx) {
                Poll::Ready(next) => return Poll::Ready(Event::Accepted(next)),
                Poll::Pending if flooded.load(Ordering::Relaxed) => {
                    return Poll::Ready(Event::Flooded);
                }
                Poll::Pending if close.load(Ordering::Relaxed) => return Poll::Ready(Event::Close),
                Poll::Pending => {}
            }
            if !watch.closing && draining.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Close);
            }
            if ended.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Event::Cut);
            }
            watch.poll(connection.has_streams(), cx)
        });
        match next.await {
            Event::Accepted(Some(Ok((request, respond)))) => {
                if !watch.accepts() {
                    return tracing::debug!("HTTP/2 client goes on after GOAWAY");
                }
                // Boxed where it is made: moving it into a task costs more than the allocation.
                let marks = (Arc::clone(&close), Arc::clone(&limits.stalls));
                let stream = Box::pin(serve_stream(handler.clone(), request, respond, marks));
                drop(tasks::spawn("stream", stream));
            }
            Event::Accepted(None) | Event::Cut => return,
            Event::Accepted(Some(Err(error))) => {
                return tracing::debug!(%error, "HTTP/2 connection ended with an error");
            }
            Event::Flooded => {
                context.metrics.rejected_connections.with_label_values(&["flood"]).inc();
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                let ended = timeout(FAREWELL_MAX, poll_fn(|cx| connection.poll_closed(cx))).await;
                return tracing::debug!(?ended, "HTTP/2 client sent too many frames");
            }
            Event::Close => {
                close.store(false, Ordering::Relaxed);
                if !std::mem::replace(&mut watch.closing, true) {
                    connection.graceful_shutdown();
                }
            }
        }
    }
}

/// What h2 bounds by itself.
fn builder(limits: &Limits) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW.saturating_mul(limits.streams_max.min(1024)))
        .max_frame_size(FRAME_MAX)
        .max_concurrent_streams(limits.streams_max)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(limits.header_bytes_max)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        // What still comes of a body that was answered early is no fault of the client's; only what
        // comes on a stream that is forgotten counts, over the connection's whole life.
        .max_concurrent_reset_streams(ANSWERED_EARLY_MAX)
        .reset_stream_duration(ANSWERED_EARLY_TIME);
    builder
}

#[expect(clippy::large_enum_variant, reason = "boxing it would cost an allocation a request")]
enum Event {
    Accepted(Option<Result<Stream, h2::Error>>),
    /// The client has sent too many frames that bring nothing.
    Flooded,
    /// Take no more streams and end when the open ones have.
    Close,
    /// End at once.
    Cut,
}

/// A connection's own time limits: for its first request, for idleness, for silence.
struct Watch {
    tick: Interval,
    ping: Option<PingPong>,
    pinged_at: Option<Instant>,
    last_pong: Instant,
    idle_since: Instant,
    served: bool,
    closing: bool,
    /// Streams accepted since then.
    late_streams: u32,
    limits: Limits,
}

impl Watch {
    fn new(connection: &mut ServerConnection, limits: &Limits) -> Self {
        let mut tick = interval(TICK.min(limits.idle_timeout).min(limits.first_request_timeout));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        Self {
            tick,
            ping: connection.ping_pong(),
            pinged_at: None,
            last_pong: now,
            idle_since: now,
            served: false,
            closing: false,
            late_streams: 0,
            limits: limits.clone(),
        }
    }

    /// Whether another stream is served. As many as a client may have open can be on their way when
    /// GOAWAY is sent; one that opens more does not heed it. (h2 refuses streams only after its own
    /// ping was answered, which such a client need not do.)
    fn accepts(&mut self) -> bool {
        self.idle_since = Instant::now();
        self.served = true;
        self.late_streams += u32::from(self.closing);
        self.late_streams <= self.limits.streams_max
    }

    fn poll(&mut self, busy: bool, cx: &mut TaskContext<'_>) -> Poll<Event> {
        if self.pinged_at.is_some()
            && let Some(ping) = &mut self.ping
            && let Poll::Ready(Ok(_)) = ping.poll_pong(cx)
        {
            self.pinged_at = None;
            self.last_pong = Instant::now();
        }
        while let Poll::Ready(now) = self.tick.poll_tick(cx) {
            if let Some(event) = self.judge(busy, now) {
                return Poll::Ready(event);
            }
        }
        Poll::Pending
    }

    fn judge(&mut self, busy: bool, now: Instant) -> Option<Event> {
        if let Some(pinged_at) = self.pinged_at {
            return (now - pinged_at >= self.limits.ping_timeout).then_some(Event::Cut);
        }
        if busy {
            self.idle_since = now;
            if now - self.last_pong >= self.limits.ping_interval
                && let Some(ping) = &mut self.ping
                && ping.send_ping(Ping::opaque()).is_ok()
            {
                self.pinged_at = Some(now);
            }
            return None;
        }
        let idle = now - self.idle_since;
        if self.closing && idle >= self.limits.ping_timeout {
            return Some(Event::Cut);
        }
        let limit =
            if self.served { self.limits.idle_timeout } else { self.limits.first_request_timeout };
        (idle >= limit && !self.closing).then_some(Event::Close)
    }
}

/// Serves one request; its headers go out before any body byte.
async fn serve_stream<H, R>(
    handler: H,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    (close, stalls): (Arc<AtomicBool>, Arc<Stalls>),
) where
    H: Fn(Request<Body>) -> R,
    R: Future<Output = Response<Body>>,
{
    // What was reset at once is not begun: its backend would have to forget it again, and may end for
    // that the connection of all its callers.
    if poll_fn(|cx| Poll::Ready(respond.poll_reset(cx).is_ready())).await {
        return;
    }
    let is_head = request.method() == Method::HEAD;
    let response = {
        let mut handling = pin!(handler(request.map(Body::http2)));
        poll_fn(|cx| poll_response(handling.as_mut(), &mut respond, cx)).await
    };
    // A client that has gone takes its request with it.
    let Some(response) = response else { return };
    let (mut head, body) = response.into_parts();
    if head.headers.remove(CONNECTION).is_some() {
        close.store(true, Ordering::Relaxed);
    }
    if !head.headers.contains_key(DATE) {
        head.headers.insert(DATE, date());
    }
    let end = is_head || body.is_end_stream();
    let sent = respond.send_response(Response::from_parts(head, ()), end);
    match sent {
        Ok(_) if end => body.finish(),
        Ok(mut stream) => {
            if let Err(error) = pump_to_client(body, &mut stream, &stalls).await {
                tracing::debug!(%error, "response body not carried to its end");
            }
        }
        Err(error) => tracing::debug!(%error, "response not sent"),
    }
}

/// The response, or `None` when the client reset the stream before it came.
fn poll_response<R>(
    handling: Pin<&mut R>,
    respond: &mut SendResponse<Bytes>,
    cx: &mut TaskContext<'_>,
) -> Poll<Option<Response<Body>>>
where
    R: Future<Output = Response<Body>>,
{
    if let Poll::Ready(response) = handling.poll(cx) {
        return Poll::Ready(Some(response));
    }
    match respond.poll_reset(cx) {
        Poll::Ready(_) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    }
}

/// The Date header, made once a second.
fn date() -> HeaderValue {
    thread_local! {
        static LAST: RefCell<(u64, HeaderValue)> =
            const { RefCell::new((0, HeaderValue::from_static(""))) };
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    LAST.with_borrow_mut(|(second, value)| {
        if *second != now {
            *second = now;
            *value = format_date(now);
        }
        value.clone()
    })
}

fn format_date(seconds: u64) -> HeaderValue {
    let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
    let text = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .and_then(|timestamp| printer.timestamp_to_rfc9110_string(&timestamp).ok());
    text.and_then(|text| HeaderValue::try_from(text).ok())
        .unwrap_or_else(|| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_in_the_form_http_wants() {
        assert_eq!(format_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
