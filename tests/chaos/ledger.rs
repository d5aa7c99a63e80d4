//! What the endpoints saw, and everything that must not have happened.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use crate::plan::{Kind, Planned};

/// Faults of portico's that are shown; one is enough to fail.
const SHOWN_MAX: usize = 20;
/// The last events that are shown with them.
const EVENTS_SHOWN: usize = 40;

/// Shared by endpoints, callers and who makes the faults.
pub(crate) struct Ledger {
    begun: Instant,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// How often each POST began to be executed.
    posts: HashMap<u64, u32>,
    /// Requests whose answer was begun.
    begun: HashSet<u64>,
    /// Requests that were refused once.
    refused: HashSet<u64>,
    counts: BTreeMap<String, u64>,
    events: Vec<String>,
    broken: Vec<String>,
    /// Milliseconds that answers of the healthy API took.
    steady_millis: Vec<u32>,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// A POST begins to be executed.
    pub(crate) fn executes(&self, nonce: u64) {
        let times = {
            let mut inner = self.lock();
            let times = inner.posts.entry(nonce).or_default();
            *times += 1;
            *times
        };
        if times > 1 {
            self.broken(&format!("POST {nonce:x} is executed {times} times"));
        }
    }

    /// How often a POST was executed.
    pub(crate) fn executed(&self, nonce: u64) -> u32 {
        self.lock().posts.get(&nonce).copied().unwrap_or_default()
    }

    /// An endpoint begins to answer.
    pub(crate) fn answers(&self, nonce: u64) {
        self.lock().begun.insert(nonce);
    }

    /// Whether an endpoint began to answer.
    pub(crate) fn was_begun(&self, nonce: u64) -> bool {
        self.lock().begun.contains(&nonce)
    }

    /// True the first time that a request is to be refused.
    pub(crate) fn refuses(&self, nonce: u64) -> bool {
        let first = self.lock().refused.insert(nonce);
        if first {
            self.counts("refused stream");
        }
        first
    }

    pub(crate) fn counts(&self, what: &str) {
        *self.lock().counts.entry(what.to_owned()).or_default() += 1;
    }

    /// What became of a request.
    pub(crate) fn outcome(&self, planned: &Planned, outcome: &str) {
        let (api, kind) = (planned.api, planned.kind);
        self.counts(&format!("{api:?} {kind:?}: {outcome}"));
    }

    pub(crate) fn steady_took(&self, millis: u32) {
        self.lock().steady_millis.push(millis);
    }

    pub(crate) fn event(&self, text: &str) {
        let at = self.begun.elapsed().as_millis();
        self.lock().events.push(format!("{at:>7} ms {text}"));
    }

    /// Something that must never be.
    pub(crate) fn broken(&self, text: &str) {
        let at = self.begun.elapsed().as_millis();
        let mut inner = self.lock();
        let line = format!("{at:>7} ms BROKEN {text}");
        inner.events.push(line.clone());
        inner.broken.push(line);
    }

    /// Requests that were answered by a backend, of this kind.
    pub(crate) fn answered(&self, kind: Kind) -> u64 {
        let inner = self.lock();
        let of = |api| inner.counts.get(&format!("{api} {kind:?}: answered"));
        of("Shaky").copied().unwrap_or_default() + of("Steady").copied().unwrap_or_default()
    }

    /// Everything that was counted, a line each.
    pub(crate) fn summary(&self) -> String {
        let mut inner = self.lock();
        let count = |(what, count): (&String, &u64)| format!("{count:>8}  {what}");
        let mut lines: Vec<String> = inner.counts.iter().map(count).collect();
        inner.steady_millis.sort_unstable();
        let millis = &inner.steady_millis;
        let at = |part: usize| millis.get(millis.len() * part / 1000).copied().unwrap_or_default();
        let last = millis.last().copied().unwrap_or_default();
        let (half, most) = (at(500), at(990));
        lines.push(format!("healthy API: p50 {half} ms, p99 {most} ms, max {last} ms"));
        lines.join("\n")
    }

    /// What was broken, with the events before it; none when nothing was.
    pub(crate) fn verdict(&self) -> Option<String> {
        let inner = self.lock();
        let first = inner.broken.first()?;
        let end = inner.events.iter().position(|line| line == first).map_or(0, |at| at + 1);
        let before = &inner.events[end.saturating_sub(EVENTS_SHOWN)..end];
        let shown = &inner.broken[..inner.broken.len().min(SHOWN_MAX)];
        let (count, before, shown) = (inner.broken.len(), before.join("\n"), shown.join("\n"));
        Some(format!("{count} things that must never be:\n{shown}\nbefore the first:\n{before}"))
    }
}
