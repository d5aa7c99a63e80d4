//! A thread's connections, and the call of a backend over them.
//!
//! Connections are kept by endpoint and class: long-running requests and anonymous callers have
//! connections of their own. The map's lock is never contended (one thread uses it) and never held
//! over an await. Where an endpoint speaks HTTP/2 there is one dial at a time, and more connections
//! are opened before the peer's stream limit bites.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use foldhash::fast::FixedState;
use h2::SendStream;
use h2::client::ResponseFuture;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri, response, uri};
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::{Http1, Http2, Lease};
use super::dial::dial;
use super::endpoint::{Backend, Endpoint};
use super::retry::{Failed, TRIES_MAX};
use super::{Config, balance};
use crate::body::{Body, pump};
use crate::model::fault::{Fault, Hop};
use crate::runtime::tasks;

/// How often idle connections are looked for.
const SWEEP_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);
/// Connections to one endpoint per thread and class: a backend with a tiny stream limit gets no more.
const CONNECTIONS_MAX: usize = 256;

/// What kinds of requests do not share connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Requests with a deadline.
    Short,
    /// Watches and the like.
    Long,
    /// Anonymous callers, one at a time: Kubernetes' servers end each such answer's connection.
    Anonymous,
}

/// Which connections: an endpoint's id and the class.
pub(super) type SlotKey = (u64, Class);

/// One data-plane thread's connections to all backends.
#[derive(Debug)]
pub struct Pool {
    slots: Mutex<HashMap<SlotKey, Slot, FixedState>>,
    config: Config,
}

#[derive(Debug, Default)]
struct Slot {
    http2: Vec<Http2>,
    http1: Vec<Http1>,
    /// True once the endpoint chose HTTP/1.1: then each request dials for itself.
    speaks_http1: bool,
    dialing: Option<watch::Receiver<Option<Result<(), Fault>>>>,
}

/// A request as it goes out; headers are made anew for each try.
pub struct Outgoing<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path and query, byte for byte as the client sent them.
    pub path: &'a PathAndQuery,
    /// Makes the headers, without Host.
    pub headers: &'a (dyn Fn() -> HeaderMap + Sync),
    /// Is told which endpoint is tried, so that a deadline's log line can name it.
    pub tried: &'a Mutex<Option<SocketAddr>>,
}

/// A backend's answer.
#[derive(Debug)]
pub struct Answer {
    /// Status and headers.
    pub head: response::Parts,
    /// The body as it comes.
    pub body: Body,
    /// To be kept until the body is over.
    pub lease: Lease,
}

/// What a look into a slot finds.
enum Found {
    Http2(ResponseFuture, SendStream<Bytes>, Lease),
    Http1(Lease),
    /// Wait for the dial that is under way.
    Wait(watch::Receiver<Option<Result<(), Fault>>>),
    /// Dial for this request alone.
    Dial,
}

impl Pool {
    /// An empty pool with the task that closes its idle connections; to be called on the thread
    /// whose connections it keeps.
    pub fn new(config: Config) -> Arc<Self> {
        let pool = Arc::new(Self { slots: Mutex::default(), config });
        let swept = Arc::downgrade(&pool);
        drop(tasks::spawn("upstream-idle", async move {
            loop {
                tokio::time::sleep(SWEEP_INTERVAL.min(idle_timeout(&swept))).await;
                let Some(pool) = swept.upgrade() else { return };
                pool.close_idle();
            }
        }));
        pool
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<SlotKey, Slot, FixedState>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request to one of the backend's endpoints and waits for the head of its answer.
    /// Tried again elsewhere only while the backend provably never acted on it and the body is
    /// untouched.
    pub async fn call(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        class: Class,
        request: &Outgoing<'_>,
        mut body: Body,
    ) -> Result<Answer, Fault> {
        let endpoints = backend.endpoints().await?;
        let mut tried = smallvec::SmallVec::<[u64; TRIES_MAX]>::new();
        loop {
            let Some(endpoint) = balance::choose(&endpoints, &tried) else {
                return Err(Hop::NoEndpoints.into());
            };
            *request.tried.lock().unwrap_or_else(PoisonError::into_inner) = Some(endpoint.address);
            match self.attempt(backend, endpoint, class, request, &mut body).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => {
                    endpoint.metrics().failed(failed.fault.hop.word());
                    tried.push(endpoint.id);
                    let more = tried.len() < TRIES_MAX.min(endpoints.len().max(2));
                    if !(failed.never_acted_on && more) {
                        return Err(failed.fault);
                    }
                    if endpoints.len() == 1 {
                        // The same endpoint once more, over a new connection.
                        tried.clear();
                        tried.push(0);
                    }
                    tracing::debug!(
                        endpoint = %endpoint.address, cause = failed.fault.hop.word(), "trying again"
                    );
                }
            }
        }
    }

    async fn attempt(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        endpoint: &Arc<Endpoint>,
        class: Class,
        request: &Outgoing<'_>,
        body: &mut Body,
    ) -> Result<Answer, Failed> {
        let key = (endpoint.id, class);
        let mut waiting = None;
        loop {
            match self.look(backend, endpoint, key, request, body.is_end_stream()) {
                Found::Http2(response, stream, lease) => {
                    return exchange_http2(response, stream, lease, body).await;
                }
                Found::Http1(lease) => {
                    return Box::pin(exchange_http1(backend, lease, request, body)).await;
                }
                Found::Wait(mut dialing) => {
                    if waiting.is_none() {
                        waiting = Some(backend.wait().map_err(not_sent)?);
                    }
                    wait_for(&mut dialing).await.map_err(Failed::before_sending)?;
                }
                Found::Dial => {
                    if waiting.is_none() {
                        waiting = Some(backend.wait().map_err(not_sent)?);
                    }
                    let connecting = self.connect(backend, endpoint, key);
                    Box::pin(connecting).await.map_err(Failed::before_sending)?;
                }
            }
        }
    }

    /// Finds a connection with room and opens a stream on it, without waiting.
    fn look(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        endpoint: &Arc<Endpoint>,
        key: SlotKey,
        request: &Outgoing<'_>,
        end_of_stream: bool,
    ) -> Found {
        let mut slots = self.slots();
        let slot = slots.entry(key).or_default();
        while let Some(connection) = slot.http1.pop() {
            if connection.sender.is_ready() {
                return Found::Http1(Lease::http1(endpoint, connection, self, key));
            }
        }
        let head = || http2_head(backend, request);
        while let Some((at, room)) = slot.roomiest(key.1) {
            let Some(connection) = slot.http2.get_mut(at) else { break };
            match connection.try_send(head, end_of_stream) {
                Ok(Some((response, stream))) => {
                    let lease = Lease::http2(endpoint, &connection.state);
                    if room == Room::Little {
                        self.dial_ahead(slot, backend, endpoint, key);
                    }
                    return Found::Http2(response, stream, lease);
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(endpoint = %endpoint.address, %error, "connection takes no more requests");
                    connection.state.close();
                    slot.http2.swap_remove(at);
                }
            }
        }
        if slot.speaks_http1 || (key.1 == Class::Anonymous && slot.http2.len() < CONNECTIONS_MAX) {
            return Found::Dial;
        }
        Found::Wait(self.dial_ahead(slot, backend, endpoint, key))
    }

    /// The dial that is under way, or a new one.
    fn dial_ahead(
        self: &Arc<Self>,
        slot: &mut Slot,
        backend: &Arc<Backend>,
        endpoint: &Arc<Endpoint>,
        key: SlotKey,
    ) -> watch::Receiver<Option<Result<(), Fault>>> {
        if let Some(dialing) = &slot.dialing {
            return dialing.clone();
        }
        let (sender, receiver) = watch::channel(None);
        slot.dialing = Some(receiver.clone());
        let (pool, backend, endpoint) =
            (Arc::clone(self), Arc::clone(backend), Arc::clone(endpoint));
        drop(tasks::spawn("upstream-dial", async move {
            let outcome = pool.connect(&backend, &endpoint, key).await;
            if let Some(slot) = pool.slots().get_mut(&key) {
                slot.dialing = None;
            }
            sender.send_replace(Some(outcome));
        }));
        receiver
    }

    /// Dials, starts HTTP on the connection and adds it to the pool.
    async fn connect(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        endpoint: &Arc<Endpoint>,
        key: SlotKey,
    ) -> Result<(), Fault> {
        let dialed = dial(backend, endpoint).await?;
        if dialed.http2 {
            let connection = Http2::start(dialed, &self.config, endpoint).await?;
            self.slots().entry(key).or_default().http2.push(connection);
        } else {
            let noted = Arc::clone(&dialed.noted);
            let connection = Http1::start(dialed, endpoint).await.map_err(|error| {
                let closed = || Fault::new(Hop::BackendReset, error.to_string());
                noted.get().cloned().unwrap_or_else(closed)
            })?;
            let mut slots = self.slots();
            let slot = slots.entry(key).or_default();
            slot.speaks_http1 = true;
            slot.http1.push(connection);
        }
        Ok(())
    }

    /// Takes an HTTP/1.1 connection back after its response is over.
    pub(super) fn give_back(&self, key: SlotKey, connection: Http1) {
        self.slots().entry(key).or_default().http1.push(connection);
    }

    fn close_idle(&self) {
        let now = Instant::now();
        let timeout = self.config.idle_timeout;
        self.slots().retain(|_, slot| {
            slot.http1.retain(|connection| {
                connection.sender.is_ready() && now - connection.idle_since < timeout
            });
            slot.http2.retain(|connection| {
                !connection.state.is_closed() && !connection.state.is_idle_for(now, timeout)
            });
            !slot.http1.is_empty() || !slot.http2.is_empty() || slot.dialing.is_some()
        });
    }
}

fn idle_timeout(pool: &std::sync::Weak<Pool>) -> std::time::Duration {
    pool.upgrade().map_or(SWEEP_INTERVAL, |pool| pool.config.idle_timeout)
}

fn not_sent(fault: Fault) -> Failed {
    // Not to be tried elsewhere: the limit is the backend's as a whole.
    Failed { fault, never_acted_on: false }
}

async fn wait_for(dialing: &mut watch::Receiver<Option<Result<(), Fault>>>) -> Result<(), Fault> {
    match dialing.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
        Err(_) => Err(Fault::new(Hop::ConnectFailed, "the dial was given up")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Enough,
    /// The next connection should be opened now, before the limit is reached.
    Little,
}

impl Slot {
    /// The least loaded connection that has room, and whether that is running out.
    fn roomiest(&self, class: Class) -> Option<(usize, Room)> {
        let (at, connection) = self
            .http2
            .iter()
            .enumerate()
            .filter(|(_, connection)| !connection.state.is_closed())
            .min_by_key(|(_, connection)| connection.state.in_flight())?;
        let in_flight = connection.state.in_flight();
        if class == Class::Anonymous {
            return (in_flight == 0).then_some((at, Room::Enough));
        }
        let limit = connection.limit();
        let little = in_flight + 1 >= limit - limit / 4 && self.http2.len() < CONNECTIONS_MAX;
        (in_flight < limit).then_some((at, if little { Room::Little } else { Room::Enough }))
    }
}

fn http2_head(backend: &Backend, request: &Outgoing<'_>) -> http::Request<()> {
    let mut parts = uri::Parts::default();
    parts.scheme = Some(uri::Scheme::HTTPS);
    parts.authority = Some(backend.authority.clone());
    parts.path_and_query = Some(request.path.clone());
    let mut head = http::Request::new(());
    *head.method_mut() = request.method.clone();
    // Scheme, authority and path together always make a URI.
    *head.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    *head.headers_mut() = (request.headers)();
    head
}

async fn exchange_http2(
    response: ResponseFuture,
    stream: SendStream<Bytes>,
    mut lease: Lease,
    body: &mut Body,
) -> Result<Answer, Failed> {
    let mut untouched = true;
    if !body.is_end_stream() {
        untouched = false;
        lease.upload = Some(upload(std::mem::replace(body, Body::empty()), stream));
    }
    match response.await {
        Ok(response) => {
            let (head, stream) = response.into_parts();
            Ok(Answer { head, body: Body::http2(stream), lease })
        }
        Err(error) => {
            let noted = lease.noted();
            let mut failed = Failed::http2(&error, noted);
            failed.never_acted_on &= untouched;
            Err(failed)
        }
    }
}

/// Carries the request's body while the answer may come already.
fn upload(body: Body, mut stream: SendStream<Bytes>) -> tasks::AbortOnDrop {
    tasks::spawn_owned("upload", async move {
        if let Err(error) = pump(body, &mut stream).await {
            tracing::debug!(%error, "request body not carried to its end");
        }
    })
}

async fn exchange_http1(
    backend: &Backend,
    mut lease: Lease,
    request: &Outgoing<'_>,
    body: &mut Body,
) -> Result<Answer, Failed> {
    let mut head = http::Request::new(());
    *head.method_mut() = request.method.clone();
    *head.uri_mut() = Uri::from(request.path.clone());
    *head.headers_mut() = (request.headers)();
    if let Ok(host) = HeaderValue::from_str(backend.authority.as_str()) {
        head.headers_mut().insert(HOST, host);
    }
    let untouched = body.is_end_stream();
    if !untouched && !head.headers().contains_key(CONTENT_LENGTH) {
        // Without it hyper drops the body of a GET.
        head.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let outgoing = head.map(|()| std::mem::replace(body, Body::empty()));
    let Some(connection) = lease.http1_mut() else {
        return Err(not_sent(Fault::new(Hop::ProtocolError, "no HTTP/1.1 connection")));
    };
    match connection.sender.try_send_request(outgoing).await {
        Ok(response) => {
            let (head, incoming) = response.into_parts();
            let body = Body::http1(incoming);
            if body.is_end_stream() {
                lease.complete();
            }
            Ok(Answer { head, body, lease })
        }
        Err(mut error) => {
            let noted = connection.noted.get().cloned();
            let unsent = error.take_message();
            let never_acted_on = unsent.is_some();
            if let Some(unsent) = unsent {
                *body = unsent.into_body();
            }
            let text = error.into_error().to_string();
            let fault = noted.unwrap_or_else(|| Fault::new(Hop::BackendReset, text));
            Err(Failed { fault, never_acted_on })
        }
    }
}
