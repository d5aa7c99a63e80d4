//! One connection to an endpoint, HTTP/2 or HTTP/1.1, and the lease of a request on it.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{PingPong, SendStream};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::describe::ConnectionState;
use super::dial::{DialTimes, Dialed, Noted, Reads, Watched, within};
use super::endpoint::{Endpoint, Place};
use super::pool::Pool;
use super::retry::Failed;
use super::slot::SlotKey;
use super::watchdog::{Redial, watch_over};
use crate::body::Body;
use crate::model::fault::{Fault, Hop};
use crate::runtime::tasks::{self, AbortOnDrop};

/// Receive window of a stream, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Requests that one connection carries at most, whatever the peer allows.
pub(super) const STREAMS_MAX: usize = 250;
/// What stands for a stream limit until the peer tells one.
const STREAMS_UNKNOWN: usize = 0;
/// Receive window of a connection: as large as all its streams' windows, so that callers who do not
/// read cannot stop the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * 250;
/// Largest frame accepted, in bytes; larger frames carry large lists at less cost.
const FRAME_MAX: u32 = 64 * 1024;
/// Bytes buffered per stream towards the backend.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that were given up here and are remembered until what was on its way on them has come.
const GIVEN_UP_MAX: usize = 4 * STREAMS_MAX;
/// Decoded header bytes accepted from a backend; Go's limit.
const HEADER_LIST_MAX: u32 = 1024 * 1024;

/// A connection that carries many requests.
#[derive(Debug)]
pub(super) struct Http2 {
    pub(super) sender: SendRequest<Bytes>,
    pub(super) state: Arc<State>,
}

/// What a connection's driver, its pool and its requests share.
#[derive(Debug)]
pub(super) struct State {
    in_flight: AtomicUsize,
    closed: AtomicBool,
    /// True once a request on it was answered, or may have been acted on.
    served: AtomicBool,
    /// True while a ping on it is not answered.
    doubted: AtomicBool,
    noted: Noted,
    reads: Reads,
    times: DialTimes,
    /// True while nobody watches over it, for nothing was open on it for long.
    unwatched: AtomicBool,
    used: Notify,
    /// Since when nothing is open on it, as the pool's sweep saw it.
    idle_since: Mutex<Option<Instant>>,
}

/// An idle HTTP/1.1 connection.
#[derive(Debug)]
pub(super) struct Http1 {
    pub(super) sender: http1::SendRequest<Body>,
    pub(super) noted: Noted,
    times: DialTimes,
    pub(super) idle_since: Instant,
    /// Of the pool's, when it was dialled.
    pub(super) generation: u64,
}

/// A request's hold on its connection and endpoint; it ends when this is dropped.
#[derive(Debug)]
pub struct Lease {
    place: Place,
    kind: Kind,
    times: DialTimes,
    /// Carries the request's body; ends with the lease.
    pub(super) upload: Option<AbortOnDrop>,
}

#[derive(Debug)]
enum Kind {
    Http2(Arc<State>),
    Http1 {
        connection: Option<Http1>,
        pool: Arc<Pool>,
        key: SlotKey,
    },
    /// A connection for this request alone; what carries it ends with the lease.
    Dedicated {
        _driver: AbortOnDrop,
        _counted: Counted,
    },
}

impl State {
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// A request begins on it.
    fn open(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        if self.unwatched.load(Ordering::Relaxed) {
            self.unwatched.store(false, Ordering::Relaxed);
            self.used.notify_one();
        }
    }

    /// Waits until a request begins on it.
    pub(super) async fn used(&self) {
        self.unwatched.store(true, Ordering::Relaxed);
        if self.in_flight() == 0 {
            self.used.notified().await;
        }
    }

    /// How often anything was read from it.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// It answers no ping for now: new requests avoid it.
    pub(super) fn set_doubted(&self, doubted: bool) {
        self.doubted.store(doubted, Ordering::Relaxed);
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Relaxed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn has_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// True when nothing was open on it at any sweep for that long. Between two sweeps a request
    /// may come and go unseen; then the connection is closed somewhat early, which costs one dial.
    pub(super) fn is_idle_for(&self, now: Instant, timeout: Duration) -> bool {
        let mut since = self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        if self.in_flight() > 0 {
            *since = None;
            return false;
        }
        now - *since.get_or_insert(now) >= timeout
    }

    /// For how long nothing has been open on it, as far as the sweep has seen it.
    fn idle(&self) -> Option<Duration> {
        let since = *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.filter(|_| self.in_flight() == 0).map(|since| since.elapsed())
    }

    /// The fault that ended the connection, if TLS told one.
    pub(super) fn noted(&self) -> Option<Fault> {
        self.noted.get().cloned()
    }
}

impl Lease {
    /// Holds a stream of an HTTP/2 connection.
    pub(super) fn http2(place: Place, state: &Arc<State>) -> Self {
        state.open();
        Self { place, kind: Kind::Http2(Arc::clone(state)), times: state.times, upload: None }
    }

    /// Holds a whole HTTP/1.1 connection.
    pub(super) fn http1(place: Place, connection: Http1, pool: &Arc<Pool>, key: SlotKey) -> Self {
        let times = connection.times;
        let kind = Kind::Http1 { connection: Some(connection), pool: Arc::clone(pool), key };
        Self { place, kind, times, upload: None }
    }

    /// Holds a connection that is for one request only, with the task that carries it.
    pub(super) fn dedicated(place: Place, times: DialTimes, driver: AbortOnDrop) -> Self {
        let counted = Counted::new(Arc::clone(place.endpoint()));
        let kind = Kind::Dedicated { _driver: driver, _counted: counted };
        Self { place, kind, times, upload: None }
    }

    /// The connection's sender, for HTTP/1.1.
    pub(super) fn http1_mut(&mut self) -> Option<&mut Http1> {
        match &mut self.kind {
            Kind::Http1 { connection, .. } => connection.as_mut(),
            Kind::Http2(_) | Kind::Dedicated { .. } => None,
        }
    }

    /// The fault that ended the connection, if TLS told one.
    pub(super) fn noted(&self) -> Option<Fault> {
        match &self.kind {
            Kind::Http2(state) => state.noted(),
            Kind::Http1 { connection, .. } => connection.as_ref()?.noted.get().cloned(),
            Kind::Dedicated { .. } => None,
        }
    }

    /// The request was answered, or may have been acted on: the connection was of use.
    pub(super) fn served(&self) {
        if let Kind::Http2(state) = &self.kind {
            state.served.store(true, Ordering::Relaxed);
        }
    }

    /// How long its connection took to be made.
    pub fn dial_times(&self) -> DialTimes {
        self.times
    }

    /// The endpoint that serves the request.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        self.place.endpoint()
    }

    /// The response came to its end: an HTTP/1.1 connection may serve the next request.
    pub fn complete(&mut self) {
        let Kind::Http1 { connection, pool, key } = &mut self.kind else { return };
        let Some(mut connection) = connection.take() else { return };
        let (pool, key) = (Arc::clone(pool), *key);
        drop(tasks::spawn("http1-return", async move {
            if connection.sender.ready().await.is_ok() {
                connection.idle_since = Instant::now();
                pool.give_back(key, connection);
            }
        }));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Kind::Http2(state) = &self.kind {
            state.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Http2 {
    /// Starts HTTP/2 on a connection; its driver is a task of its own that ends with it.
    ///
    /// The peer's settings are awaited: requests above its stream limit that are sent before it is
    /// known would wait inside the library for others to end, watches for ever.
    pub(super) async fn start(
        dialed: Dialed,
        limit: Duration,
        redial: Redial,
    ) -> Result<Self, Fault> {
        let Dialed { stream, noted, reads, times, .. } = dialed;
        let failed = |error: &h2::Error| Failed::http2(error, noted.get().cloned(), false).fault;
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_MAX)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(HEADER_LIST_MAX)
            // What still comes on a stream that was given up is nobody's fault: counted as one, as the
            // library does it over a connection's whole life, it would end that for all its callers.
            .max_concurrent_reset_streams(GIVEN_UP_MAX)
            .max_local_error_reset_streams(None)
            .enable_push(false)
            .initial_max_send_streams(STREAMS_UNKNOWN)
            .handshake::<_, Bytes>(stream)
            .await
            .map_err(|error| failed(&error))?;
        let settings = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(Ok(())) => {
                let closed = || Fault::new(Hop::BackendReset, "closed before its settings came");
                Poll::Ready(Err(noted.get().cloned().unwrap_or_else(closed)))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(failed(&error))),
            Poll::Pending if sender.current_max_send_streams() == STREAMS_UNKNOWN => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(())),
        });
        match within(limit, settings).await {
            Some(settled) => settled?,
            None => return Err(Fault::new(Hop::HandshakeTimeout, "no HTTP/2 settings came")),
        }
        let state = Arc::new(State {
            in_flight: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            served: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            noted,
            reads,
            times,
            unwatched: AtomicBool::new(false),
            used: Notify::new(),
            idle_since: Mutex::new(None),
        });
        let ping = connection.ping_pong();
        drop(tasks::spawn("upstream-http2", drive(connection, ping, Arc::clone(&state), redial)));
        Ok(Self { sender, state })
    }

    /// Opens a stream when there is room: `Ok(None)` when the peer's limit is reached, an error
    /// when the connection takes no more requests.
    pub(super) fn try_send(
        &self,
        request: impl FnOnce() -> http::Request<()>,
        end_of_stream: bool,
    ) -> Result<Option<(ResponseFuture, SendStream<Bytes>)>, h2::Error> {
        // A handle of its own: one that remembers a stream that waits to open would take the wake-up
        // of that stream's body when it is asked whether it is ready.
        let mut sender = self.sender.clone();
        match sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => sender.send_request(request(), end_of_stream).map(Some),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(None),
        }
    }

    /// What it is like now.
    pub(super) fn describe(&self) -> ConnectionState {
        ConnectionState {
            protocol: "h2",
            streams: self.state.in_flight(),
            streams_max: self.sender.current_max_send_streams(),
            idle: self.state.idle(),
        }
    }

    /// How many requests the connection may carry at a time.
    pub(super) fn limit(&self) -> usize {
        self.sender.current_max_send_streams().min(STREAMS_MAX)
    }
}

/// Counts a connection for as long as it is open.
#[derive(Debug)]
struct Counted(Arc<Endpoint>);

impl Counted {
    fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.metrics().connections.inc();
        Self(endpoint)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.metrics().connections.dec();
    }
}

/// Runs a connection to its end, or until it is condemned.
async fn drive(
    connection: h2::client::Connection<Watched, Bytes>,
    ping: Option<PingPong>,
    state: Arc<State>,
    redial: Redial,
) {
    let endpoint = Arc::clone(redial.endpoint());
    let _counted = Counted::new(Arc::clone(&endpoint));
    // First what came, then what did not: a thread that was kept waiting finds both.
    tokio::select! {
        biased;
        ended = connection => match ended {
            Ok(()) => tracing::debug!(endpoint = %endpoint.address, "upstream connection closed"),
            Err(error) => {
                tracing::debug!(endpoint = %endpoint.address, %error, "upstream connection failed");
            }
        },
        fault = watch_over(ping, &state, &redial) => {
            tracing::warn!(
                service = %endpoint.service(), endpoint = %endpoint.address,
                requests = state.in_flight(), detail = %fault.detail,
                "upstream connection is given up"
            );
            // The first fault is the cause.
            state.noted.set(fault).ok();
        }
    }
    state.close();
}

impl Http1 {
    /// What it is like while it is idle.
    pub(super) fn describe(&self) -> ConnectionState {
        ConnectionState {
            protocol: "http/1.1",
            streams: 0,
            streams_max: 1,
            idle: Some(self.idle_since.elapsed()),
        }
    }

    /// Starts HTTP/1.1 on a connection; its driver is a task of its own that ends with it.
    pub(super) async fn start(
        dialed: Dialed,
        endpoint: &Arc<Endpoint>,
        generation: u64,
    ) -> Result<Self, hyper::Error> {
        let (mut sender, connection) =
            http1::Builder::new().handshake(TokioIo::new(dialed.stream)).await?;
        let counted = Counted::new(Arc::clone(endpoint));
        drop(tasks::spawn("upstream-http1", async move {
            if let Err(error) = connection.await {
                tracing::debug!(endpoint = %counted.0.address, %error, "upstream connection failed");
            }
        }));
        // Until its driver has run once, a new connection looks like one that takes no request.
        sender.ready().await?;
        let idle_since = Instant::now();
        Ok(Self { sender, noted: dialed.noted, times: dialed.times, idle_since, generation })
    }
}
