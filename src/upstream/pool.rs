//! A thread's connections, and the call of a backend over them.
//!
//! Connections are kept by endpoint and class: long-running requests and anonymous callers have
//! connections of their own. The map's lock is never contended (one thread uses it) and never held
//! over an await. Where an endpoint speaks HTTP/2 there is one dial at a time and class, and more
//! connections are opened before the peer's stream limit bites; HTTP/1.1 and anonymous callers dial
//! for themselves.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::FixedState;
use h2::SendStream;
use h2::client::ResponseFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::backend::Backend;
use super::connection::{Http1, Http2, Lease};
use super::describe::{QUESTIONS_MAX, Question, SlotState};
use super::dial::{Protocols, dial};
use super::endpoint::{Endpoint, Place};
use super::exchange::{Answer, Outgoing, Step, exchange_http1, exchange_http2, http2_head};
use super::retry::{Failed, Retry, Tried};
use super::slot::{CONNECTIONS_MAX, Class, Dialing, Room, Slot, SlotKey, USELESS_MAX, useless};
use super::watchdog::{Redial, revive};
use super::{Config, balance};
use crate::body::{Body, Kept, KeptRoom};
use crate::model::fault::{Fault, Hop};
use crate::runtime::snapshot::{View, replaced};
use crate::runtime::tasks;
use crate::tls::KeyPair;

/// How often idle connections are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// The shortest time between two looks, whatever the idle timeout.
const SWEEP_MIN: Duration = Duration::from_millis(1);
/// Requests open on one endpoint past which no connection is opened for a single request, which is
/// what HTTP/1.1, upgrades and anonymous callers need.
pub(super) const EXCLUSIVE_MAX: usize = 4096;
/// Bytes of a request's body that are kept until it is answered, so that it can be tried again.
const KEPT_BODY_MAX: usize = 64 * 1024;
/// Bytes that one thread keeps of all such bodies; past it requests are tried once.
const KEPT_BODIES_MAX: usize = 16 * 1024 * 1024;

/// One data-plane thread's connections to all backends.
#[derive(Debug)]
pub struct Pool {
    slots: Mutex<HashMap<SlotKey, Slot, FixedState>>,
    /// How often all connections were retired.
    generation: AtomicU64,
    /// For bodies of requests that are not answered yet.
    room: Arc<KeptRoom>,
    config: Config,
    questions: mpsc::Sender<Question>,
}

/// What a look into a slot finds.
enum Found {
    Http2(ResponseFuture, SendStream<Bytes>, Lease),
    Http1(Lease),
    /// Wait for the dial that is under way.
    Wait(Dialing),
    /// Dial for this request alone.
    Dial,
    /// There will be none.
    Failed(Failed),
}

impl Pool {
    /// An empty pool with the task that closes its idle connections and says what it holds; to be
    /// called on the thread whose connections it keeps.
    pub fn new(config: Config) -> Arc<Self> {
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let identity = config.identity.clone();
        let (slots, generation) = (Mutex::default(), AtomicU64::new(0));
        let pool = Arc::new(Self {
            slots,
            generation,
            room: KeptRoom::new(KEPT_BODIES_MAX),
            config,
            questions,
        });
        drop(tasks::spawn("upstream-pool", keep(Arc::downgrade(&pool), asked, identity)));
        pool
    }

    /// Where to ask what is in it.
    pub(super) fn questions(&self) -> &mpsc::Sender<Question> {
        &self.questions
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    fn describe(&self, endpoints: &[u64]) -> Vec<SlotState> {
        let slots = self.slots();
        let keys = endpoints.iter().flat_map(|id| Class::ALL.map(|class| (*id, class)));
        keys.filter_map(|key| Some(slots.get(&key)?.describe(key))).collect()
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<SlotKey, Slot, FixedState>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request to one of the backend's endpoints and waits for the head of its answer.
    /// Tried again, elsewhere first, where the backend provably never acted on it, or a read's
    /// connection was lost, and its body is known from its start (`retry`).
    pub async fn call(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        class: Class,
        request: &Outgoing<'_>,
        mut body: Body,
    ) -> Result<Answer, Fault> {
        let endpoints = backend.endpoints().await?;
        let mut tried = Tried::new();
        let kept = self.keep(&mut body);
        let mut met = None;
        loop {
            let endpoint = balance::choose(&endpoints, &tried, self.config.slow_start)
                .map_err(|fault| met.take().unwrap_or(fault))?;
            request.tries(endpoint.address);
            match self.attempt(backend, endpoint, class, request, &mut body).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => {
                    endpoint.metrics().failed(failed.fault.hop.word());
                    tried.push(endpoint.id);
                    if !failed.may_try_again(&endpoints, &tried) || !backend.may_retry() {
                        return Err(failed.fault);
                    }
                    // Only a body that was handed on is empty now.
                    if let (Some(kept), true) = (&kept, body.is_end_stream()) {
                        match kept.from_start() {
                            Some(again) => body = again,
                            None => return Err(failed.fault),
                        }
                    }
                    let cause = failed.fault.hop.word();
                    request.tries_again(endpoint, cause);
                    tracing::debug!(endpoint = %endpoint.address, cause, "trying again");
                    met = Some(failed.fault);
                }
            }
        }
    }

    /// Keeps what passes of a request's body, unless it is known to be too long for that.
    fn keep(&self, body: &mut Body) -> Option<Kept> {
        let least = http_body::Body::size_hint(body).lower();
        if body.is_end_stream() || least > KEPT_BODY_MAX as u64 {
            return None;
        }
        let kept = Kept::new(std::mem::replace(body, Body::empty()), KEPT_BODY_MAX, &self.room);
        *body = kept.from_start().unwrap_or_else(Body::empty);
        Some(kept)
    }

    /// One try at one endpoint.
    pub(super) async fn attempt(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        endpoint: &Arc<Endpoint>,
        class: Class,
        request: &Outgoing<'_>,
        body: &mut Body,
    ) -> Result<Answer, Failed> {
        let key = (endpoint.id, class);
        let mut place = Some(Place::take(endpoint, class == Class::Long));
        let mut waiting = None;
        loop {
            match self.look(backend, &mut place, key, request, body.is_end_stream()) {
                Found::Http2(response, stream, lease) => {
                    drop(waiting);
                    return exchange_http2(response, stream, lease, request, body).await;
                }
                Found::Http1(lease) => {
                    drop(waiting);
                    let redial = Redial::new(self, backend, endpoint, key);
                    let exchange = exchange_http1(backend, lease, request, body, &redial);
                    return Box::pin(exchange).await;
                }
                Found::Failed(failed) => return Err(failed),
                Found::Wait(mut dialing) => {
                    if waiting.is_none() {
                        waiting = Some(backend.wait().map_err(Failed::finally)?);
                    }
                    request.waits_for(Step::Connection);
                    wait_for(&mut dialing).await.map_err(Failed::unreachable)?;
                }
                Found::Dial => {
                    if waiting.is_none() {
                        waiting = Some(backend.wait().map_err(Failed::finally)?);
                    }
                    request.waits_for(Step::Connection);
                    let connecting =
                        self.connect(backend, endpoint, key, endpoint.dial_limit(&self.config));
                    Box::pin(connecting).await.map_err(Failed::unreachable)?;
                }
            }
            request.waits_for(Step::Answer);
        }
    }

    /// Finds a connection with room and opens a stream on it, without waiting.
    fn look(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        place: &mut Option<Place>,
        key: SlotKey,
        request: &Outgoing<'_>,
        end_of_stream: bool,
    ) -> Found {
        let Some(endpoint) = place.as_ref().map(|place| Arc::clone(place.endpoint())) else {
            let lost = Fault::new(Hop::ConnectFailed, "the request has no place");
            return Found::Failed(Failed::finally(lost));
        };
        let mut slots = self.slots();
        let slot = slots.entry(key).or_default();
        while let Some(connection) = slot.http1.pop() {
            if connection.sender.is_ready()
                && let Some(place) = place.take()
            {
                return Found::Http1(Lease::http1(place, connection, self, key));
            }
        }
        let ended = slot.take_closed();
        if slot.useless >= USELESS_MAX {
            slot.useless = 0;
            let fault = ended.unwrap_or_else(|| Hop::BackendReset.into());
            return Found::Failed(Failed { fault, retry: Retry::Elsewhere });
        }
        let head = || http2_head(backend, request);
        while let Some((at, room)) = slot.roomiest(key.1) {
            let Some(connection) = slot.http2.get(at) else { break };
            match connection.try_send(head, end_of_stream) {
                Ok(Some((response, stream))) => {
                    let Some(place) = place.take() else { break };
                    let lease = Lease::http2(place, &connection.state);
                    if connection.state.has_served() {
                        slot.useless = 0;
                    }
                    if room == Room::Little {
                        self.dial_ahead(slot, backend, &endpoint, key);
                    }
                    return Found::Http2(response, stream, lease);
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(
                        endpoint = %endpoint.address, %error, "connection takes no more requests"
                    );
                    connection.state.close();
                    let noted = connection.state.noted();
                    slot.useless = useless(slot.useless, &connection.state);
                    slot.http2.swap_remove(at);
                    if slot.useless >= USELESS_MAX {
                        slot.useless = 0;
                        let mut failed = Failed::http2(&error, noted, false);
                        failed.retry = Retry::Elsewhere;
                        return Found::Failed(failed);
                    }
                }
            }
        }
        let exclusive = slot.speaks_http1 || key.1 == Class::Anonymous;
        let full = if exclusive {
            endpoint.in_flight() > EXCLUSIVE_MAX
        } else {
            slot.http2.len() >= CONNECTIONS_MAX
        };
        if full {
            let text = "as many connections as one endpoint may have";
            return Found::Failed(Failed::unreachable(Fault::new(Hop::Overloaded, text)));
        }
        if exclusive {
            return Found::Dial;
        }
        Found::Wait(self.dial_ahead(slot, backend, &endpoint, key))
    }

    /// The dial that is under way, or a new one, be there connections or not.
    pub(super) fn dial_anew(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        endpoint: &Arc<Endpoint>,
        key: SlotKey,
    ) -> Dialing {
        self.dial_ahead(self.slots().entry(key).or_default(), backend, endpoint, key)
    }

    /// The dial that is under way, or a new one.
    fn dial_ahead(
        self: &Arc<Self>,
        slot: &mut Slot,
        backend: &Arc<Backend>,
        endpoint: &Arc<Endpoint>,
        key: SlotKey,
    ) -> Dialing {
        if let Some(dialing) = &slot.dialing {
            return dialing.clone();
        }
        let (sender, receiver) = watch::channel(None);
        slot.dialing = Some(receiver.clone());
        let (pool, backend, endpoint) =
            (Arc::clone(self), Arc::clone(backend), Arc::clone(endpoint));
        let limit = endpoint.dial_limit(&self.config);
        drop(tasks::spawn("upstream-dial", async move {
            // Also when the dial panics: the next request must be able to begin another.
            let ended = DialEnd { pool: &pool, key };
            let outcome = pool.connect(&backend, &endpoint, key, limit).await;
            drop(ended);
            sender.send_replace(Some(outcome));
        }));
        receiver
    }

    /// Makes a connection and adds it to the pool; tells the endpoint's standing of it.
    pub(super) async fn connect(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        endpoint: &Arc<Endpoint>,
        key: SlotKey,
        limit: Duration,
    ) -> Result<(), Fault> {
        let begun = Instant::now();
        let made = self.make(backend, endpoint, key, limit).await;
        match &made {
            Ok(()) => {
                if endpoint.dialled(begun.elapsed()) {
                    backend.want_probe();
                }
            }
            Err(fault) => {
                if endpoint.not_dialled(fault, self.config.verdict_after) {
                    backend.want_probe();
                    revive(Redial::new(self, backend, endpoint, key));
                }
            }
        }
        made
    }

    /// Dials, starts HTTP on the connection and adds it to the pool, unless it was retired meanwhile:
    /// then who needs it finds none and dials again.
    async fn make(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        endpoint: &Arc<Endpoint>,
        key: SlotKey,
        limit: Duration,
    ) -> Result<(), Fault> {
        let generation = self.generation();
        let dialed = dial(backend, endpoint, Protocols::Any, limit).await?;
        if dialed.http2 {
            let limit = self.config.handshake_timeout.min(limit);
            let redial = Redial::new(self, backend, endpoint, key);
            let connection = Http2::start(dialed, limit, redial).await?;
            let mut slots = self.slots();
            if generation == self.generation() {
                slots.entry(key).or_default().http2.push(connection);
            }
        } else {
            let noted = Arc::clone(&dialed.noted);
            let connection = Http1::start(dialed, endpoint, generation).await.map_err(|error| {
                let closed = || Fault::new(Hop::BackendReset, error.to_string());
                noted.get().cloned().unwrap_or_else(closed)
            })?;
            let mut slots = self.slots();
            let slot = slots.entry(key).or_default();
            slot.speaks_http1 = true;
            if generation == self.generation() {
                slot.http1.push(connection);
            }
        }
        Ok(())
    }

    /// Takes an HTTP/1.1 connection back after its response is over.
    pub(super) fn give_back(&self, key: SlotKey, connection: Http1) {
        let mut slots = self.slots();
        if connection.generation == self.generation() {
            slots.entry(key).or_default().http1.push(connection);
        }
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Lets go of all connections: each ends when nothing is open on it any more. Those that are
    /// being dialled, or are with a request, are not taken into the pool.
    fn retire(&self) {
        let mut slots = self.slots();
        self.generation.fetch_add(1, Ordering::Relaxed);
        for slot in slots.values_mut() {
            slot.http1.clear();
            slot.http2.clear();
        }
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

/// What there is to do for a pool.
enum Duty {
    Sweep,
    Retire,
    Answer(Question),
}

/// Closes a pool's idle connections, retires all when the pair that they showed is replaced, and
/// answers questions about it for as long as it is there.
async fn keep(
    pool: Weak<Pool>,
    mut asked: mpsc::Receiver<Question>,
    mut identity: Option<View<KeyPair>>,
) {
    let idle_timeout = || pool.upgrade().map_or(SWEEP_INTERVAL, |pool| pool.config.idle_timeout);
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL.min(idle_timeout()).max(SWEEP_MIN));
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let duty = tokio::select! {
            _ = sweep.tick() => Duty::Sweep,
            question = asked.recv() => question.map_or(Duty::Sweep, Duty::Answer),
            () = replaced(&mut identity) => Duty::Retire,
        };
        let Some(pool) = pool.upgrade() else { return };
        match duty {
            Duty::Sweep => pool.close_idle(),
            Duty::Retire => pool.retire(),
            // Who asked may have gone in the meantime.
            Duty::Answer(question) => {
                question.answer.send(pool.describe(&question.endpoints)).ok();
            }
        }
    }
}

async fn wait_for(dialing: &mut Dialing) -> Result<(), Fault> {
    match dialing.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
        Err(_) => Err(Fault::new(Hop::ConnectFailed, "the dial was given up")),
    }
}

/// Takes the mark off a slot that a dial is under way.
struct DialEnd<'a> {
    pool: &'a Pool,
    key: SlotKey,
}

impl Drop for DialEnd<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.pool.slots().get_mut(&self.key) {
            slot.dialing = None;
        }
    }
}
