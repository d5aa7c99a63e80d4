//! How an endpoint stands with those who send it requests: well, doubted, dead, or just revived.
//!
//! All threads share it, so that one thread's finding is every thread's. A request reads one atomic.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Config;
use super::endpoint::Endpoint;
use crate::model::fault::Fault;
use crate::model::suspicion::{dial_limit, is_death, is_hopeless, slow_start_percent};

/// Neither answers what is open nor makes new connections.
const DEAD: u32 = 1;
/// Was dead until lately.
const REVIVED: u32 = 2;
/// One connection in doubt; above the marks, so that doubts can be counted.
const DOUBT: u32 = 4;

/// What is held against an endpoint.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Nothing when it is 0.
    marks: AtomicU32,
    /// When anything was heard of it, in milliseconds of [`EPOCH`]; 0 for never.
    heard_ms: AtomicU64,
    /// What its last connection took to be made, in microseconds; 0 when there was none.
    dial_us: AtomicU64,
    /// True when a request would have been sent to it.
    wanted: AtomicBool,
    history: Mutex<History>,
}

#[derive(Debug, Default)]
struct History {
    /// Why and since when it is dead.
    dead: Option<(Fault, Instant)>,
    /// When it came back.
    revived: Option<Instant>,
}

/// What times are counted from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What all threads' times are counted from.
pub(super) fn since_epoch() -> Duration {
    EPOCH.elapsed()
}

/// A connection's doubt in its endpoint.
#[derive(Debug)]
pub(super) struct Doubting<'a>(&'a Standing);

impl Drop for Doubting<'_> {
    fn drop(&mut self) {
        self.0.marks.fetch_sub(DOUBT, Ordering::Relaxed);
    }
}

impl Standing {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, mark: u32) -> bool {
        self.marks.load(Ordering::Relaxed) & mark != 0
    }
}

impl Endpoint {
    /// Nothing is held against it.
    pub(super) fn is_well(&self) -> bool {
        self.standing.marks.load(Ordering::Relaxed) == 0
    }

    /// It neither answers what is open nor makes new connections.
    pub fn is_dead(&self) -> bool {
        self.standing.is(DEAD)
    }

    /// Something is awaited on a connection that has fallen silent.
    pub(super) fn is_doubted(&self) -> bool {
        self.standing.marks.load(Ordering::Relaxed) >= DOUBT
    }

    /// Its standing in one word.
    pub(super) fn standing_word(&self) -> &'static str {
        match (self.is_dead(), self.is_doubted(), self.standing.is(REVIVED)) {
            (true, _, _) => "dead",
            (_, true, _) => "doubted",
            (_, _, true) => "revived",
            _ => "well",
        }
    }

    /// Counts a connection that is in doubt.
    pub(super) fn doubt(&self) -> Doubting<'_> {
        self.standing.marks.fetch_add(DOUBT, Ordering::Relaxed);
        Doubting(&self.standing)
    }

    /// Something came from it just now. One that hung lives, then, which is true when this is news; one
    /// that refused connections may do so still, and answer on those that it has.
    pub(super) fn heard(&self) -> bool {
        let now = u64::try_from(EPOCH.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.standing.heard_ms.store(now.max(1), Ordering::Relaxed);
        let is_news = self.hopeless().is_some();
        if is_news {
            self.revive();
        }
        is_news
    }

    /// When anything was heard of it last, on a clock of its own; 0 for never.
    pub fn heard_ms(&self) -> u64 {
        self.standing.heard_ms.load(Ordering::Relaxed)
    }

    /// True when anything came from it within that time.
    fn heard_within(&self, time: Duration) -> bool {
        let heard = self.standing.heard_ms.load(Ordering::Relaxed);
        heard > 0 && EPOCH.elapsed().saturating_sub(Duration::from_millis(heard)) <= time
    }

    /// How long a dial may take that requests wait for: twice as long while none has been made.
    pub(super) fn dial_limit(&self, config: &Config) -> Duration {
        match self.standing.dial_us.load(Ordering::Relaxed) {
            0 => 2 * config.verdict_after,
            us => dial_limit(config.verdict_after, Duration::from_micros(us)),
        }
    }

    /// A connection was made, in that time; true when it was dead until now.
    pub(super) fn dialled(&self, time: Duration) -> bool {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.standing.dial_us.store(us.max(1), Ordering::Relaxed);
        let was_dead = self.is_dead();
        if !self.heard() && was_dead {
            self.revive();
        }
        was_dead
    }

    /// No connection could be made; true when that is its death. What was heard on others within
    /// `verdict` speaks for it.
    pub(super) fn not_dialled(&self, fault: &Fault, verdict: Duration) -> bool {
        let lives = self.metrics().connections.get() > 0 && self.heard_within(verdict);
        if !is_death(fault.hop, lives) {
            return false;
        }
        let mut history = self.standing.history();
        let since = history.dead.take().map(|(_, since)| since);
        history.dead = Some((fault.clone(), since.unwrap_or_else(Instant::now)));
        drop(history);
        let is_new = self.standing.marks.fetch_or(DEAD, Ordering::Relaxed) & DEAD == 0;
        if is_new {
            self.metrics().dead.set(1);
            tracing::warn!(
                service = %self.service(), endpoint = %self.address, cause = fault.hop.word(),
                detail = %fault.detail, "endpoint is dead"
            );
        }
        is_new
    }

    fn revive(&self) {
        let mut history = self.standing.history();
        let dead = history.dead.take();
        history.revived = Some(Instant::now());
        drop(history);
        self.standing.marks.fetch_or(REVIVED, Ordering::Relaxed);
        self.standing.marks.fetch_and(!DEAD, Ordering::Relaxed);
        self.metrics().dead.set(0);
        if let Some((_, since)) = dead {
            let secs = since.elapsed().as_secs_f64();
            tracing::info!(
                service = %self.service(), endpoint = %self.address, secs, "endpoint is back"
            );
        }
    }

    /// It counts as dead no more: whoever asks next finds out.
    pub(super) fn forget_death(&self) {
        self.standing.history().dead = None;
        self.standing.marks.fetch_and(!DEAD, Ordering::Relaxed);
        self.metrics().dead.set(0);
    }

    /// Why it is of no use to ask it.
    pub(super) fn hopeless(&self) -> Option<Fault> {
        self.death().filter(|fault| is_hopeless(fault.hop))
    }

    /// Why it is dead.
    pub(super) fn death(&self) -> Option<Fault> {
        if !self.is_dead() {
            return None;
        }
        self.standing.history().dead.as_ref().map(|(fault, _)| fault.clone())
    }

    /// A request would have been sent to it.
    pub(super) fn want(&self) {
        if !self.standing.wanted.load(Ordering::Relaxed) {
            self.standing.wanted.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it was wanted since this was asked last.
    pub(super) fn was_wanted(&self) -> bool {
        self.standing.wanted.swap(false, Ordering::Relaxed)
    }

    /// How much of its share of requests it takes, in percent: less than 100 after it came back.
    pub(super) fn share(&self, slow_start: Duration) -> u32 {
        if !self.standing.is(REVIVED) {
            return 100;
        }
        let revived = self.standing.history().revived;
        let share = revived.map_or(100, |at| slow_start_percent(at.elapsed(), slow_start));
        if share >= 100 {
            self.standing.marks.fetch_and(!REVIVED, Ordering::Relaxed);
        }
        share
    }
}
