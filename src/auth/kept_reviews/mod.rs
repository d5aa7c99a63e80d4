//! Answers of a reviewer that are kept for a while, and one question at a time for each.
//!
//! A question is asked on the data-plane thread of the request that asked first, by a task of its own,
//! which ends whatever becomes of that request. Requests on all threads wait for its answer. No thread
//! waits for long for another one's task, since that thread may be stuck: after [`PATIENCE`] it asks
//! for itself. So a question is asked once, and at worst once a thread.
//!
//! Keys are digests under a secret that is made at start: neither tokens nor who asked for what can be
//! read out of what is kept.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use futures_util::future::BoxFuture;
use moka::Expiry;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use prometheus::IntGauge;
use smallvec::SmallVec;
use tokio::sync::watch;
use tokio::time::timeout_at;

use crate::model::review::reply::Failure;
use crate::runtime::tasks;
use crate::runtime::telemetry::CacheMetrics;

/// How long a request waits for a task of another thread before its own thread asks too.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a request that has an answer past its time waits while the reviewer answers nobody; and
/// how long after a failure nobody asks who has one.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(1);

/// A digest of a question.
pub(super) type Key = [u8; 32];
/// To be called when a first try has failed and others are to follow.
pub(super) type Failing = Box<dyn Fn() + Send + Sync>;
/// A question that is being asked; it must end by itself.
pub(super) type Lookup<A> = BoxFuture<'static, Result<Found<A>, Failure>>;

/// How many answers are kept, and for how long past their time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Answers.
    pub(super) answers_max: u64,
    /// Answers of the kind that strangers can cause, which are kept apart; they push out no others.
    pub(super) refusals_max: u64,
    /// How long an answer past its time is good while the reviewer cannot be reached.
    pub(super) outage_ttl: Duration,
}

/// A reviewer's answer, to be kept.
#[derive(Debug)]
pub(super) struct Found<A> {
    pub(super) answer: A,
    /// How long it is good; none when it is not to be kept.
    pub(super) ttl: Option<Duration>,
    /// True when it is to be kept apart.
    pub(super) is_refusal: bool,
}

/// What is known of a question.
#[derive(Debug)]
enum Look<A> {
    /// The answer.
    Known(A),
    /// An answer past its time, which counts: the reviewer could not be reached just now.
    Old(A),
    /// The reviewer is to be asked; when it cannot be reached, there may be an old answer.
    Ask(Option<A>),
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum NoAnswer {
    /// The request's own time is over.
    Deadline,
    /// What the reviewer's failure was.
    Failed(String),
}

#[derive(Clone, Debug)]
struct Kept<A> {
    answer: A,
    fresh_until: Instant,
    /// How long it is kept in all.
    lifetime: Duration,
}

/// Drops each answer when its own time is over.
struct Lifetime;

impl<A> Expiry<Key, Kept<A>> for Lifetime {
    fn expire_after_create(&self, _: &Key, kept: &Kept<A>, _: Instant) -> Option<Duration> {
        Some(kept.lifetime)
    }

    fn expire_after_update(
        &self,
        _: &Key,
        kept: &Kept<A>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(kept.lifetime)
    }
}

/// How far a question has come.
#[derive(Clone, Debug)]
enum State<A> {
    Asking,
    /// The first try failed; others follow.
    Failing,
    Ended(Result<A, Failure>),
}

/// A question that is being asked on a thread.
#[derive(Debug)]
struct Flight<A> {
    thread: ThreadId,
    state: watch::Receiver<State<A>>,
}

type Flights<A> = HashMap<Key, SmallVec<[Flight<A>; 1]>, RandomState>;

struct Shared<A> {
    answers: Cache<Key, Kept<A>, RandomState>,
    refusals: Cache<Key, Kept<A>, RandomState>,
    flights: Mutex<Flights<A>>,
    outage_ttl: Duration,
    outage: Outage,
    metrics: CacheMetrics,
}

/// When the reviewer was found out of reach last, and when it was there.
struct Outage {
    start: Instant,
    /// Milliseconds after `start`, from 1 on; 0 when it answered since.
    failed_at_ms: AtomicU64,
    /// Milliseconds after `start`.
    answered_at_ms: AtomicU64,
}

impl Outage {
    fn new(start: Instant) -> Self {
        Self { start, failed_at_ms: AtomicU64::new(0), answered_at_ms: AtomicU64::new(0) }
    }

    fn elapsed_ms(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.start).as_millis();
        u64::try_from(elapsed).unwrap_or(u64::MAX)
    }

    fn fails(&self, now: Instant) {
        self.failed_at_ms.store(self.elapsed_ms(now).max(1), Ordering::Relaxed);
    }

    fn ends(&self, now: Instant) {
        self.answered_at_ms.store(self.elapsed_ms(now), Ordering::Relaxed);
        self.failed_at_ms.store(0, Ordering::Relaxed);
    }

    /// True when asking is of no use yet.
    fn is_recent(&self, now: Instant) -> bool {
        let failed_at = self.failed_at_ms.load(Ordering::Relaxed);
        failed_at != 0 && now < self.start + Duration::from_millis(failed_at) + OUTAGE_PATIENCE
    }

    /// True of a failure that only took long: who asks a lot can make it so for its own questions, and
    /// others were answered meanwhile.
    fn is_slow(&self, since: Instant, now: Instant) -> bool {
        since + OUTAGE_PATIENCE <= now && now < self.patience_ends(since)
    }

    /// Until when who asked then waits for the answer, and does not take an old one. A reviewer that
    /// answers others meanwhile is slow, which strangers can make it, but not out of reach.
    fn patience_ends(&self, since: Instant) -> Instant {
        let answered_at = Duration::from_millis(self.answered_at_ms.load(Ordering::Relaxed));
        since.max(self.start + answered_at) + OUTAGE_PATIENCE
    }
}

/// Answers that are kept, and questions that are being asked; shared by all threads.
pub(super) struct KeptReviews<A>(Arc<Shared<A>>);

impl<A> fmt::Debug for KeptReviews<A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KeptReviews")
    }
}

impl<A: Clone + Send + Sync + 'static> KeptReviews<A> {
    pub(super) fn new(limits: Limits, metrics: CacheMetrics) -> Self {
        // Upstream's: the one that was not asked for the longest goes first.
        let cache = |answers_max| {
            Cache::builder()
                .max_capacity(answers_max)
                .eviction_policy(EvictionPolicy::lru())
                .expire_after(Lifetime)
                .build_with_hasher(RandomState::default())
        };
        Self(Arc::new(Shared {
            answers: cache(limits.answers_max),
            refusals: cache(limits.refusals_max),
            flights: Mutex::default(),
            outage_ttl: limits.outage_ttl,
            outage: Outage::new(Instant::now()),
            metrics,
        }))
    }

    /// The answer, where nobody needs to be asked.
    pub(super) fn look(&self, key: &Key) -> Option<A> {
        let metrics = &self.0.metrics;
        let (counter, answer) = match self.0.look(key, Instant::now()) {
            Look::Known(answer) => (&metrics.hits, Some(answer)),
            Look::Old(answer) => (&metrics.outages, Some(answer)),
            Look::Ask(_) => (&metrics.misses, None),
        };
        counter.inc();
        answer
    }

    /// The answer to a question, which `begin` begins to ask unless it was answered just now or that
    /// is under way. For who has looked and found none.
    pub(super) async fn ask(
        &self,
        key: Key,
        deadline: Option<Instant>,
        begin: impl Fn(Failing) -> Lookup<A>,
    ) -> Result<A, NoAnswer> {
        let metrics = &self.0.metrics;
        let mut old = match self.0.look(&key, Instant::now()) {
            Look::Known(answer) | Look::Old(answer) => return Ok(answer),
            Look::Ask(old) => old,
        };
        let _blocked = Counted::new(&metrics.blocked);
        let since = Instant::now();
        let (mut joins_others, mut lost) = (true, false);
        loop {
            let (mut state, is_own) = match self.join(key, joins_others, &begin) {
                Joined::Known(answer) => return Ok(answer),
                Joined::Flight { state, is_own } => (state, is_own),
            };
            let until = match (&old, is_own) {
                (Some(_), _) => Some(self.0.outage.patience_ends(since)),
                (None, false) if joins_others => Some(since + PATIENCE),
                (None, _) => None,
            };
            let waited = wait(&mut state, old.is_some(), earlier(until, deadline)).await;
            if let Waited::Ended(Ok(answer)) = waited {
                return Ok(answer);
            }
            let is_there = match &waited {
                Waited::Ended(answer) => answer.as_ref().is_err_and(|failure| !failure.is_outage),
                Waited::TimeOver => self.0.outage.patience_ends(since) > Instant::now(),
                Waited::Failing | Waited::Lost => false,
            };
            // Whatever else it is, an old answer is better, unless the reviewer is there.
            if !is_there && let Some(answer) = old.take() {
                metrics.outages.inc();
                return Ok(answer);
            }
            match waited {
                Waited::Ended(Err(failure)) => return Err(NoAnswer::Failed(failure.text)),
                Waited::Lost if is_own && lost => {
                    return Err(NoAnswer::Failed("the review was given up".to_owned()));
                }
                Waited::Lost => lost = true,
                Waited::TimeOver if deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
                    return Err(NoAnswer::Deadline);
                }
                Waited::TimeOver | Waited::Failing | Waited::Ended(Ok(_)) => joins_others = false,
            }
        }
    }

    /// The question that is under way, on this thread or, with `joins_others`, on any; else a new one.
    fn join(
        &self,
        key: Key,
        joins_others: bool,
        begin: &impl Fn(Failing) -> Lookup<A>,
    ) -> Joined<A> {
        let thread = thread::current().id();
        let mut flights = self.0.flights();
        let known = flights.get(&key).and_then(|flights| {
            let own = flights.iter().find(|flight| flight.thread == thread);
            own.or_else(|| flights.first().filter(|_| joins_others))
        });
        if let Some(flight) = known {
            let is_own = flight.thread == thread;
            return Joined::Flight { state: flight.state.clone(), is_own };
        }
        // It may have ended just now.
        if let Look::Known(answer) | Look::Old(answer) = self.0.look(&key, Instant::now()) {
            return Joined::Known(answer);
        }
        let (sender, state) = watch::channel(State::Asking);
        flights.entry(key).or_default().push(Flight { thread, state: state.clone() });
        drop(flights);
        let sender = Arc::new(sender);
        let flying = Flying { shared: Arc::clone(&self.0), key, thread };
        let in_flight = Counted::new(&self.0.metrics.in_flight);
        let since = Instant::now();
        let lookup = begin(self.failing(&sender, since));
        drop(tasks::spawn("review", async move {
            let found = lookup.await;
            let found = found.map_err(|failure| flying.shared.judged(failure, since));
            let ended = flying.shared.keep(key, found);
            // Kept before it is taken off, so that no other begins in between.
            drop((flying, in_flight));
            sender.send_replace(State::Ended(ended));
        }));
        Joined::Flight { state, is_own: true }
    }

    fn failing(&self, sender: &Arc<watch::Sender<State<A>>>, since: Instant) -> Failing {
        let (shared, sender) = (Arc::clone(&self.0), Arc::clone(sender));
        Box::new(move || {
            let now = Instant::now();
            if !shared.outage.is_slow(since, now) {
                shared.outage.fails(now);
                sender.send_replace(State::Failing);
            }
        })
    }
}

impl<A: Clone + Send + Sync + 'static> Shared<A> {
    fn flights(&self) -> MutexGuard<'_, Flights<A>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, key: &Key, now: Instant) -> Look<A> {
        let kept = self.answers.get(key).or_else(|| self.refusals.get(key));
        match kept {
            Some(kept) if now < kept.fresh_until => Look::Known(kept.answer),
            Some(kept) if now < kept.fresh_until + self.outage_ttl => {
                if self.outage.is_recent(now) {
                    Look::Old(kept.answer)
                } else {
                    Look::Ask(Some(kept.answer))
                }
            }
            Some(_) | None => Look::Ask(None),
        }
    }

    /// A failure, which counts as an outage only where it is none of its question's own making.
    fn judged(&self, failure: Failure, since: Instant) -> Failure {
        let is_outage = failure.is_outage && !self.outage.is_slow(since, Instant::now());
        Failure { is_outage, ..failure }
    }

    fn keep(&self, key: Key, found: Result<Found<A>, Failure>) -> Result<A, Failure> {
        let Found { answer, ttl, is_refusal } = found.inspect_err(|failure| {
            if failure.is_outage {
                self.outage.fails(Instant::now());
            }
        })?;
        let now = Instant::now();
        self.outage.ends(now);
        // What was said before does not count any more.
        let (cache, other) = if is_refusal {
            (&self.refusals, &self.answers)
        } else {
            (&self.answers, &self.refusals)
        };
        other.invalidate(&key);
        let lifetime = ttl.map(|ttl| ttl + self.outage_ttl).filter(|lifetime| !lifetime.is_zero());
        match (ttl, lifetime) {
            (Some(ttl), Some(lifetime)) => {
                let (answer, fresh_until) = (answer.clone(), now + ttl);
                cache.insert(key, Kept { answer, fresh_until, lifetime });
            }
            _ => cache.invalidate(&key),
        }
        Ok(answer)
    }
}

enum Joined<A> {
    Known(A),
    Flight { state: watch::Receiver<State<A>>, is_own: bool },
}

/// Takes a question off when its task ends, also by a panic or with its thread.
struct Flying<A: Clone + Send + Sync + 'static> {
    shared: Arc<Shared<A>>,
    key: Key,
    thread: ThreadId,
}

impl<A: Clone + Send + Sync + 'static> Drop for Flying<A> {
    fn drop(&mut self) {
        let mut flights = self.shared.flights();
        let Some(of_key) = flights.get_mut(&self.key) else { return };
        of_key.retain(|flight| flight.thread != self.thread);
        if of_key.is_empty() {
            flights.remove(&self.key);
        }
    }
}

enum Waited<A> {
    Ended(Result<A, Failure>),
    /// A try failed, which only who has an old answer wants to know.
    Failing,
    /// The task is gone with its thread.
    Lost,
    TimeOver,
}

async fn wait<A: Clone>(
    state: &mut watch::Receiver<State<A>>,
    until_failing: bool,
    until: Option<Instant>,
) -> Waited<A> {
    let reached = |state: &State<A>| match state {
        State::Asking => false,
        State::Failing => until_failing,
        State::Ended(_) => true,
    };
    let waiting = async {
        match state.wait_for(reached).await.as_deref() {
            Ok(State::Ended(ended)) => Waited::Ended(ended.clone()),
            Ok(State::Asking | State::Failing) => Waited::Failing,
            Err(_) => Waited::Lost,
        }
    };
    match until {
        Some(until) => timeout_at(until.into(), waiting).await.unwrap_or(Waited::TimeOver),
        None => waiting.await,
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    [one, other].into_iter().flatten().min()
}

/// One in a gauge.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests;
