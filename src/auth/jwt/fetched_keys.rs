//! Keys that are fetched in the background, on the control plane, from an issuer or from the cluster.
//!
//! Until the first time has succeeded it is tried every 10 s, as upstream does. From then on they are
//! fetched anew when a token names a key that is not known, at most every 10 s, and now and then, so
//! that a key that was withdrawn does not count for ever. Keys stay when fetching fails.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout_at};

use super::keys::KeySet;
use crate::runtime::telemetry::TokenMetrics;

/// Between two tries (upstream's poll), and between two fetches that unknown keys ask for.
pub(in crate::auth) const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// Keys are fetched anew at least this often.
const REFRESH_INTERVAL: Duration = Duration::from_secs(600);
/// How long a token waits for keys that are fetched because of it.
const AWAIT_MAX: Duration = Duration::from_secs(5);

/// Keys as far as they are known.
#[derive(Debug)]
pub(in crate::auth) struct FetchedKeys {
    /// Whose they are, as messages name it.
    issuer: String,
    retry_interval: Duration,
    set: ArcSwapOption<KeySet>,
    /// Asks for the keys to be fetched anew.
    wanted: Notify,
    /// True while they are being fetched.
    is_trying: AtomicBool,
    /// Tries that have ended, however.
    tries: watch::Sender<u64>,
    /// When the last try began, or ended when it failed, in Unix milliseconds.
    last_try_ms: AtomicU64,
}

/// Keys that are being fetched because of a token.
#[derive(Debug)]
pub(in crate::auth) struct Awaited {
    keys: Arc<FetchedKeys>,
    tries: watch::Receiver<u64>,
}

impl Awaited {
    /// Waits until they are there, or not for longer than makes sense, or until `deadline`; the token
    /// is then to be looked at again.
    pub(in crate::auth) async fn fetched(mut self, deadline: Option<Instant>) {
        let patience = Instant::now() + AWAIT_MAX;
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        let ended = timeout_at(until.into(), self.tries.changed()).await;
        if !matches!(ended, Ok(Ok(()))) {
            let issuer = &self.keys.issuer;
            tracing::debug!(%issuer, "keys that a token waits for did not come in time");
        }
    }
}

impl FetchedKeys {
    pub(in crate::auth) fn new(issuer: &str, retry_interval: Duration) -> Arc<Self> {
        Arc::new(Self {
            issuer: issuer.to_owned(),
            retry_interval,
            set: ArcSwapOption::empty(),
            wanted: Notify::new(),
            is_trying: AtomicBool::new(false),
            tries: watch::Sender::new(0),
            last_try_ms: AtomicU64::new(0),
        })
    }

    /// The keys, once they have been fetched.
    pub(in crate::auth) fn current(&self) -> Option<Arc<KeySet>> {
        self.set.load_full()
    }

    /// These count until they are fetched.
    pub(super) fn know(&self, set: Option<Arc<KeySet>>) {
        self.set.store(set);
    }

    /// Whose they are.
    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Waits until the keys have been fetched once.
    pub(super) async fn there(&self) {
        let mut tries = self.tries.subscribe();
        // Its sender is here, so that it does not end before the keys are there.
        while self.current().is_none() && tries.changed().await.is_ok() {}
    }

    /// What to wait for when a key is not among `seen`: the keys that are being fetched, are fetched
    /// because of this, or came in the meantime; `None` when that was done just before. `now` is in
    /// Unix seconds.
    pub(in crate::auth) fn anew(
        keys: &Arc<Self>,
        seen: &Arc<KeySet>,
        now: Duration,
    ) -> Option<Awaited> {
        let mut awaited = Awaited { keys: Arc::clone(keys), tries: keys.tries.subscribe() };
        if keys.is_trying.load(Ordering::Acquire) {
            return Some(awaited);
        }
        if !keys.current().is_some_and(|current| Arc::ptr_eq(&current, seen)) {
            awaited.tries.mark_changed();
            return Some(awaited);
        }
        if !keys.pause(now).is_zero() {
            return None;
        }
        keys.wanted.notify_one();
        Some(awaited)
    }

    /// How long it is until the next try may begin. A clock that was set back counts as no time.
    fn pause(&self, now: Duration) -> Duration {
        let last = Duration::from_millis(self.last_try_ms.load(Ordering::Relaxed));
        let passed = now.checked_sub(last).unwrap_or(self.retry_interval);
        self.retry_interval.saturating_sub(passed)
    }

    /// Notes that a try begins, at this time since the Unix epoch.
    pub(super) fn begin(&self, now: Duration) {
        self.note(now);
        self.is_trying.store(true, Ordering::Release);
    }

    fn note(&self, now: Duration) {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.last_try_ms.store(now, Ordering::Relaxed);
    }

    /// Notes that a try has ended, with these keys or none.
    pub(in crate::auth) fn end(&self, set: Option<KeySet>) {
        if let Some(set) = set {
            self.set.store(Some(Arc::new(set)));
        }
        // In this order: who sees that nothing is under way sees the keys as well, and who sees that
        // something is will see it end.
        self.is_trying.store(false, Ordering::Release);
        self.tries.send_modify(|tries| *tries += 1);
    }

    /// True once when somebody has asked for the keys to be fetched anew.
    #[cfg(test)]
    pub(in crate::auth) fn are_wanted(&self) -> bool {
        use futures_util::FutureExt as _;
        self.wanted.notified().now_or_never().is_some()
    }

    /// Fetches the keys and keeps them up to date, for ever.
    pub(in crate::auth) async fn run<E: Display>(
        self: Arc<Self>,
        metrics: TokenMetrics,
        fetch: impl AsyncFn() -> Result<KeySet, E>,
    ) {
        let issuer = &self.issuer;
        let mut failure: Option<String> = None;
        loop {
            self.begin(unix_time());
            let fetched = fetch().await.map_err(|error| error.to_string());
            metrics.fetched(issuer, fetched.is_ok());
            let is_first = self.set.load().is_none();
            let failed = match fetched {
                Ok(set) => {
                    if failure.take().is_some() || is_first {
                        tracing::info!(%issuer, "keys of token issuer fetched");
                    }
                    self.end(Some(set));
                    false
                }
                Err(error) => {
                    // Told once, and not at every try.
                    if failure.as_ref() != Some(&error) {
                        tracing::error!(%issuer, %error, "keys of token issuer cannot be fetched");
                    }
                    failure = Some(error);
                    // However long it took, no other begins before the pause is over: no token waits.
                    self.note(unix_time());
                    self.end(None);
                    true
                }
            };
            if failed {
                sleep(self.retry_interval).await;
                continue;
            }
            tokio::select! {
                () = sleep(REFRESH_INTERVAL) => {}
                () = self.wanted.notified() => sleep(self.pause(unix_time())).await,
            }
        }
    }
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
