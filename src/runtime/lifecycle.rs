//! The program's life: readiness as guards that must be released, and an ending in two steps.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

/// What must have happened before `/readyz` says so.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    named: Arc<Mutex<BTreeMap<Cow<'static, str>, Awaited>>>,
}

#[derive(Debug, Default)]
struct Awaited {
    /// Guards that are still held.
    held: usize,
    /// True when the name stays after it is done, so that its check does not vanish.
    stays: bool,
}

impl Readiness {
    /// Names something that is awaited; it counts as done when the guard is dropped.
    pub fn wait_for(&self, name: &'static str) -> ReadyGuard {
        self.hold(name.into(), true)
    }

    /// Names something that is awaited once, such as one server of many: its name goes with it.
    pub fn wait_once_for(&self, name: String) -> ReadyGuard {
        self.hold(name.into(), false)
    }

    fn hold(&self, name: Cow<'static, str>, stays: bool) -> ReadyGuard {
        let mut named = self.lock();
        let awaited = named.entry(name.clone()).or_default();
        awaited.held += 1;
        awaited.stays |= stays;
        drop(named);
        ReadyGuard { readiness: self.clone(), name }
    }

    /// What is still awaited, in order of name.
    pub fn awaited(&self) -> Vec<Cow<'static, str>> {
        self.named().into_iter().filter(|(_, done)| !done).map(|(name, _)| name).collect()
    }

    /// What is awaited and what was, in order of name, and whether it is done.
    pub fn named(&self) -> Vec<(Cow<'static, str>, bool)> {
        self.lock().iter().map(|(name, awaited)| (name.clone(), awaited.held == 0)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Cow<'static, str>, Awaited>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds readiness back until it is dropped.
#[derive(Debug)]
pub struct ReadyGuard {
    readiness: Readiness,
    name: Cow<'static, str>,
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        let mut named = self.readiness.lock();
        let Some(awaited) = named.get_mut(&self.name) else { return };
        awaited.held = awaited.held.saturating_sub(1);
        if awaited.held == 0 && !awaited.stays {
            named.remove(&self.name);
        }
    }
}

/// How far the ending has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Running,
    /// No new connections; open ones finish what they have begun.
    Draining,
    /// What is still open is cut.
    Ended,
}

/// How much time the ending gives to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Graces {
    /// For load balancers to learn of it, while all is served as ever
    /// (`--shutdown-delay-duration`).
    pub delay: Duration,
    /// For watches to be ended one after the other, so that their clients do not all come back at
    /// once; zero to cut them (`--shutdown-watch-termination-grace-period`).
    pub watches: Duration,
}

/// Tells every part how far the ending has come, and counts what is still under way.
#[derive(Clone, Debug)]
pub struct Drain {
    phase: watch::Receiver<Phase>,
    open: Arc<Open>,
    graces: Graces,
}

/// The one that decides when the ending goes a step further.
#[derive(Debug)]
pub struct DrainTrigger {
    phase: watch::Sender<Phase>,
    open: Arc<Open>,
    /// What is given to others.
    pub graces: Graces,
}

/// Requests under way, by kind.
#[derive(Debug, Default)]
struct Open {
    short: AtomicUsize,
    long: AtomicUsize,
    connections: AtomicUsize,
    /// Watches that end when it is their turn.
    watches: AtomicUsize,
    /// How many there were when the ending began, and how many of them have had their turn.
    watches_to_end: AtomicUsize,
    turns: AtomicUsize,
    draining: AtomicBool,
}

/// A running program's drain, with the handle that starts it.
pub fn drain(graces: Graces) -> (DrainTrigger, Drain) {
    let (sender, receiver) = watch::channel(Phase::Running);
    let open = Arc::new(Open::default());
    let trigger = DrainTrigger { phase: sender, open: Arc::clone(&open), graces };
    (trigger, Drain { phase: receiver, open, graces })
}

/// Watches that are ended in a second at least (`genericapiserver.go`).
const WATCH_ENDS_PER_SECOND_MIN: f64 = 200.0;

/// How long after the ending has begun a watch ends, as the `number`th of so many.
fn turn(number: usize, watches: usize, grace: Duration) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "nobody has so many watches")]
    let (number, watches) = (number as f64, watches as f64);
    let per_second = (watches / grace.as_secs_f64()).max(WATCH_ENDS_PER_SECOND_MIN);
    Duration::try_from_secs_f64(number / per_second).map_or(grace, |after| after.min(grace))
}

impl DrainTrigger {
    /// Says that the ending will begin.
    pub fn announce(&self) {
        self.open.draining.store(true, Ordering::Relaxed);
    }

    /// Goes on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.announce();
        if phase == Phase::Draining {
            self.open.watches_to_end.store(self.watches(), Ordering::Relaxed);
        }
        self.phase.send_if_modified(|current| {
            let forward = phase > *current;
            if forward {
                *current = phase;
            }
            forward
        });
    }

    /// Requests that have a deadline and are not answered yet.
    pub fn short_requests(&self) -> usize {
        self.open.short.load(Ordering::Relaxed)
    }

    /// Watches and the like that are open.
    pub fn long_requests(&self) -> usize {
        self.open.long.load(Ordering::Relaxed)
    }

    /// Watches of which each ends when it is its turn.
    pub fn watches(&self) -> usize {
        self.open.watches.load(Ordering::Relaxed)
    }

    /// Client connections that are open.
    pub fn connections(&self) -> usize {
        self.open.connections.load(Ordering::Relaxed)
    }
}

impl Drain {
    /// Waits until the ending has come to `phase` or further (also when the trigger is gone).
    pub async fn reached(&mut self, phase: Phase) {
        // An error means that the trigger is gone: the program ends.
        if self.phase.wait_for(|current| *current >= phase).await.is_err() {
            tracing::debug!("drain trigger gone");
        }
    }

    /// Waits for a watch's turn to end, and counts it until then; `None` where watches are cut.
    pub fn turn(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let grace = self.graces.watches;
        if grace.is_zero() {
            return None;
        }
        let (mut drain, open) = (self.clone(), Arc::clone(&self.open));
        let counted = OpenGuard::new(Arc::clone(&open), Kind::Watch);
        Some(async move {
            let _counted = counted;
            drain.reached(Phase::Draining).await;
            let number = open.turns.fetch_add(1, Ordering::Relaxed);
            sleep(turn(number, open.watches_to_end.load(Ordering::Relaxed), grace)).await;
        })
    }

    /// True once the ending is announced; one relaxed load.
    pub fn is_draining(&self) -> bool {
        self.open.draining.load(Ordering::Relaxed)
    }

    /// Counts a request until the guard is dropped.
    pub fn request(&self, long_running: bool) -> OpenGuard {
        let kind = if long_running { Kind::Long } else { Kind::Short };
        OpenGuard::new(Arc::clone(&self.open), kind)
    }

    /// Counts a client connection until the guard is dropped.
    pub fn connection(&self) -> OpenGuard {
        OpenGuard::new(Arc::clone(&self.open), Kind::Connection)
    }

    /// Client connections that are open.
    pub fn connections(&self) -> usize {
        self.open.connections.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Short,
    Long,
    Watch,
    Connection,
}

/// One request or connection under way.
#[derive(Debug)]
pub struct OpenGuard {
    open: Arc<Open>,
    kind: Kind,
}

impl OpenGuard {
    fn new(open: Arc<Open>, kind: Kind) -> Self {
        let guard = Self { open, kind };
        guard.counter().fetch_add(1, Ordering::Relaxed);
        guard
    }

    fn counter(&self) -> &AtomicUsize {
        match self.kind {
            Kind::Short => &self.open.short,
            Kind::Long => &self.open.long,
            Kind::Watch => &self.open.watches,
            Kind::Connection => &self.open.connections,
        }
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.counter().fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_is_awaited_until_its_guard_is_dropped() {
        let readiness = Readiness::default();
        let (one, _two) = (readiness.wait_for("one"), readiness.wait_for("two"));
        assert_eq!(readiness.awaited(), ["one", "two"]);
        drop(one);
        assert_eq!(readiness.awaited(), ["two"]);
        let server = readiness.wait_once_for("server".to_owned());
        assert_eq!(readiness.awaited(), ["server", "two"]);
        drop(server);
        assert_eq!(readiness.named(), [("one".into(), true), ("two".into(), false)]);
    }

    #[tokio::test]
    async fn the_ending_goes_forward_only() {
        let (trigger, mut drain) = drain(Graces::default());
        trigger.advance(Phase::Ended);
        trigger.advance(Phase::Draining);
        drain.reached(Phase::Ended).await;
        assert!(drain.is_draining());
    }

    #[test]
    fn watches_end_one_after_the_other_and_fast_enough_for_the_grace() {
        let secs = Duration::from_secs;
        assert_eq!(turn(0, 1000, secs(10)), Duration::ZERO);
        // No slower than 200 a second, and faster where there are many.
        assert_eq!(turn(200, 1000, secs(10)), secs(1));
        assert_eq!(turn(5000, 10_000, secs(10)), secs(5));
        assert_eq!(turn(20_000, 10_000, secs(10)), secs(10));
    }

    #[tokio::test]
    async fn a_watchs_turn_comes_with_the_ending_and_it_is_counted_until_then() {
        let (_, drain_without) = drain(Graces::default());
        assert!(drain_without.turn().is_none());
        let (trigger, drain) =
            drain(Graces { watches: Duration::from_secs(10), ..Graces::default() });
        let turns = [drain.turn().unwrap(), drain.turn().unwrap()];
        let [mut first, second] = turns.map(Box::pin);
        assert_eq!(trigger.watches(), 2);
        trigger.announce();
        assert!(futures_util::poll!(&mut first).is_pending());
        trigger.advance(Phase::Draining);
        tokio::join!(first, second);
        assert_eq!(trigger.watches(), 0);
    }

    #[test]
    fn requests_are_counted_until_their_guard_is_dropped() {
        let (trigger, drain) = drain(Graces::default());
        let guard = drain.request(true);
        assert_eq!((trigger.short_requests(), trigger.long_requests()), (0, 1));
        drop(guard);
        assert_eq!(trigger.long_requests(), 0);
    }
}
