//! Watches over connections: one that falls silent while requests are open is pinged; where no pong
//! comes, a new dial tells whether the endpoint is dead or only this connection. The dead are dialled
//! anew until they live. The rules are `model::suspicion`'s.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::backend::Backend;
use super::connection::State;
use super::endpoint::Endpoint;
use super::pool::Pool;
use super::slot::{Class, Dialing, SlotKey};
use super::standing::Doubting;
use crate::model::fault::{Fault, Hop};
use crate::model::suspicion::{self, Dialled, Finding, Patience, Silence};
use crate::runtime::tasks;

/// Looks at a connection without open requests until nobody watches over it.
const IDLE_LOOKS_MAX: u32 = 40;
/// How long nobody may want a dead endpoint until it is no longer dialled.
const UNWANTED_MAX: Duration = Duration::from_secs(60);
/// The longest pause between two dials while a request over HTTP/1.1 waits.
const HTTP1_DIAL_PAUSE_MAX: Duration = Duration::from_secs(10);

/// How to make another connection of the kind.
#[derive(Debug)]
pub(super) struct Redial {
    pool: Weak<Pool>,
    backend: Weak<Backend>,
    endpoint: Arc<Endpoint>,
    key: SlotKey,
}

impl Redial {
    pub(super) fn new(
        pool: &Arc<Pool>,
        backend: &Arc<Backend>,
        endpoint: &Arc<Endpoint>,
        key: SlotKey,
    ) -> Self {
        Self {
            pool: Arc::downgrade(pool),
            backend: Arc::downgrade(backend),
            endpoint: Arc::clone(endpoint),
            key,
        }
    }

    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Something came from the endpoint.
    fn heard(&self) {
        if self.endpoint.heard()
            && let Some(backend) = self.backend.upgrade()
        {
            backend.want_probe();
        }
    }

    /// None when the program, or this thread, ends.
    fn patience(&self) -> Option<Patience> {
        let pool = self.pool.upgrade()?;
        let config = pool.config();
        Some(match self.key.1 {
            Class::Short | Class::Anonymous => Patience::with_short_requests(config.verdict_after),
            Class::Long => Patience::with_watches(
                config.verdict_after,
                config.ping_interval,
                config.ping_timeout,
            ),
        })
    }

    /// None when the backend, or this endpoint of it, is not wanted any more.
    fn dial(&self) -> Option<Dialing> {
        let (pool, backend) = (self.pool.upgrade()?, self.backend.upgrade()?);
        backend.has(&self.endpoint).then_some(())?;
        Some(pool.dial_anew(&backend, &self.endpoint, self.key))
    }
}

/// What a ping has come to.
enum Asked {
    /// The peer lives.
    Answered,
    /// The connection's own end says what happened.
    Ended,
    /// Neither a pong nor a byte came.
    GivenUp(Fault),
}

/// Returns when the connection is to be given up, with the fault of what is open on it.
pub(super) async fn watch_over(ping: Option<PingPong>, state: &State, redial: &Redial) -> Fault {
    let (Some(mut ping), Some(patience)) = (ping, redial.patience()) else {
        return std::future::pending().await;
    };
    let interval = patience.look_interval();
    let (mut now, mut heard, mut idle_looks) = (Duration::ZERO, state.reads(), 0);
    let mut silence = Silence::new(&patience, heard, now);
    loop {
        if idle_looks >= IDLE_LOOKS_MAX {
            state.used().await;
            idle_looks = 0;
        }
        sleep(interval).await;
        now += interval;
        let is_open = state.in_flight() > 0;
        idle_looks = if is_open { 0 } else { idle_looks + 1 };
        if heard != state.reads() {
            heard = state.reads();
            redial.heard();
        }
        let is_suspicious = silence.is_suspicious(&patience, heard, is_open, now);
        if !(is_suspicious || is_open && redial.endpoint.hopeless().is_some()) {
            continue;
        }
        match ask(&mut ping, state, redial, &patience).await {
            Asked::Answered => {
                heard = state.reads();
                redial.heard();
                silence.answered(&patience, heard, now);
            }
            Asked::Ended => return std::future::pending().await,
            Asked::GivenUp(fault) => return fault,
        }
    }
}

/// Takes a doubt back when the question is over, however it ends.
struct InDoubt<'a> {
    state: &'a State,
    _counted: Doubting<'a>,
}

impl<'a> InDoubt<'a> {
    fn new(state: &'a State, endpoint: &'a Endpoint) -> Self {
        state.set_doubted(true);
        Self { state, _counted: endpoint.doubt() }
    }
}

impl Drop for InDoubt<'_> {
    fn drop(&mut self) {
        self.state.set_doubted(false);
    }
}

/// Asks the peer whether it is there.
async fn ask(ping: &mut PingPong, state: &State, redial: &Redial, patience: &Patience) -> Asked {
    if ping.send_ping(Ping::opaque()).is_err() {
        return Asked::Ended;
    }
    let interval = suspicion::look_interval(patience.verdict);
    let (mut waited, mut heard) = (Duration::ZERO, state.reads());
    let (mut doubt, mut dialing) = (None, None);
    loop {
        match timeout(interval, poll_fn(|cx| ping.poll_pong(cx))).await {
            Ok(Ok(_)) => return Asked::Answered,
            Ok(Err(_)) => return Asked::Ended,
            Err(_) => waited += interval,
        }
        if heard != state.reads() {
            // The pong is behind something large.
            (heard, waited) = (state.reads(), Duration::ZERO);
            redial.heard();
            continue;
        }
        if doubt.is_none() {
            doubt = Some(InDoubt::new(state, &redial.endpoint));
            dialing = redial.dial();
        }
        let (dialled, fault) = match dialing.as_ref().map(|dialing| dialing.borrow().clone()) {
            Some(None) => (Dialled::Open, None),
            Some(Some(Err(fault))) => (Dialled::Failed, Some(fault)),
            // None where nobody wants the endpoint any more.
            Some(Some(Ok(()))) | None => (Dialled::Made, None),
        };
        let ms = waited.as_millis();
        match suspicion::find(patience, waited, dialled) {
            Finding::Open => {}
            Finding::Condemned => {
                let text = format!("no answer to a ping within {ms} ms; a new connection was made");
                return Asked::GivenUp(Fault::new(Hop::Unresponsive, text));
            }
            Finding::Dead => {
                let why = fault.map(|fault| fault.detail).unwrap_or_default();
                let text =
                    format!("no answer to a ping within {ms} ms, and no new connection: {why}");
                return Asked::GivenUp(Fault::new(Hop::Unresponsive, text));
            }
        }
    }
}

/// Waits while a request over HTTP/1.1, which knows no pings, is not answered: returns when its
/// endpoint makes no new connections either. Where it does, the handler may be slow.
pub(super) async fn watch_over_http1(redial: &Redial) -> Fault {
    let Some(patience) = redial.patience() else { return std::future::pending().await };
    let mut bearable = patience.silence_min;
    loop {
        sleep(bearable).await;
        let Some(mut dialing) = redial.dial() else { return std::future::pending().await };
        let outcome = dialing.wait_for(Option::is_some).await.ok().and_then(|made| made.clone());
        if let Some(Err(fault)) = outcome
            && redial.endpoint.is_dead()
        {
            let text = format!("no answer, and no new connection: {}", fault.detail);
            return Fault::new(Hop::Unresponsive, text);
        }
        bearable = (2 * bearable).min(HTTP1_DIAL_PAUSE_MAX);
    }
}

/// Dials a dead endpoint anew until it lives or nobody wants it any more.
pub(super) fn revive(redial: Redial) {
    drop(tasks::spawn("upstream-revival", async move {
        let _counted = Reviving::begin();
        tokio::select! {
            () = dial_often(&redial) => {}
            () = dial_patiently(&redial) => {}
            () = unwanted(&redial) => {}
        }
        if redial.endpoint.is_dead() {
            redial.endpoint.forget_death();
        }
    }));
}

/// Counts the endpoints that are being revived, over all threads.
struct Reviving;

static REVIVING: AtomicUsize = AtomicUsize::new(0);

impl Reviving {
    fn begin() -> Self {
        REVIVING.fetch_add(1, Ordering::Relaxed);
        Self
    }

    fn count() -> usize {
        REVIVING.load(Ordering::Relaxed)
    }
}

impl Drop for Reviving {
    fn drop(&mut self) {
        REVIVING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ends when it lives: each dial may take as long as a verdict.
async fn dial_often(redial: &Redial) {
    let (mut begun, mut pause) = (Instant::now(), Duration::ZERO);
    while let Some(pool) = redial.pool.upgrade() {
        let interval = pool.config().revival_interval;
        drop(pool);
        pause = suspicion::revival_pause(pause, interval, Reviving::count());
        sleep_until(begun + pause).await;
        begun = Instant::now();
        if redial.endpoint.is_dead() {
            let Some(mut dialing) = redial.dial() else { return };
            dialing.wait_for(Option::is_some).await.ok();
        }
        if !redial.endpoint.is_dead() {
            return;
        }
    }
}

/// For an endpoint that takes longer than a verdict for each handshake: one dial after the other
/// that may take as long as is configured.
async fn dial_patiently(redial: &Redial) {
    loop {
        let Some((pool, backend)) = redial.pool.upgrade().zip(redial.backend.upgrade()) else {
            return;
        };
        let pause = pool.config().handshake_timeout;
        let dialling = pool.connect(&backend, &redial.endpoint, redial.key, Duration::MAX);
        if dialling.await.is_ok() {
            return;
        }
        drop((pool, backend));
        sleep(pause).await;
    }
}

/// Ends when the endpoint was not wanted for long.
async fn unwanted(redial: &Redial) {
    loop {
        sleep(UNWANTED_MAX).await;
        if !redial.endpoint.was_wanted() {
            return;
        }
    }
}
