//! What is counted of reads: latencies, bytes, errors by cause, and their course over time.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::client::Fault;
use super::process::Memory;

/// The width of a slot of the course over time.
pub(super) const SLOT: Duration = Duration::from_millis(100);
/// Causes that are told apart; further ones are counted together.
const CAUSES_MAX: usize = 20;
/// What further causes are counted as.
const OTHER_CAUSES: &str = "other causes";
/// Digits of a latency that are kept.
const DIGITS: u8 = 3;

/// Latencies in ns, to three digits.
#[derive(Clone, Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    fn new() -> Self {
        Self(Histogram::new(DIGITS).expect("the library keeps up to five digits"))
    }

    /// Counts one.
    pub(super) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        // Never refused: it grows as it must.
        self.0.record(nanos.max(1)).ok();
    }

    /// How many.
    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share of reads does not exceed; none without reads.
    pub(super) fn quantile(&self, share: f64) -> Option<Duration> {
        let nanos = self.0.value_at_quantile(share).min(self.0.max());
        (!self.0.is_empty()).then(|| Duration::from_nanos(nanos))
    }

    /// Each latency that was seen, ascending, with the share of reads up to it.
    #[expect(clippy::cast_precision_loss, reason = "counts of reads")]
    pub(super) fn shares(&self) -> Vec<(Duration, f64)> {
        let mut sum = 0;
        let all = self.0.len() as f64;
        self.0
            .iter_recorded()
            .map(|step| {
                sum += step.count_since_last_iteration();
                (Duration::from_nanos(step.value_iterated_to()), sum as f64 / all)
            })
            .collect()
    }

    fn add(&mut self, other: &Self) {
        // Never refused: it grows as it must.
        self.0.add(&other.0).ok();
    }
}

/// One slot of the course over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Slot {
    /// Right answers that ended in it.
    pub(super) reads: u64,
    /// Failures that ended in it.
    pub(super) errors: u64,
}

/// What was counted.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// Of right answers.
    pub(super) latencies: Latencies,
    /// By how much waiting clients got their reads late: this program's own fault.
    pub(super) late: Latencies,
    /// Bytes of right answers, on the wire.
    pub(super) bytes: u64,
    /// Failed reads by cause.
    pub(super) errors: BTreeMap<String, u64>,
    /// Reads that were due, and not begun at the end.
    pub(super) unsent: u64,
    /// The course over time.
    pub(super) slots: Vec<Slot>,
    /// From the first read's beginning to the last one's end.
    pub(super) time: Duration,
    /// CPU time of the server's process.
    pub(super) cpu: Option<Duration>,
    /// Memory of the server's process, at its highest.
    pub(super) memory: Option<Memory>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            latencies: Latencies::new(),
            late: Latencies::new(),
            bytes: 0,
            errors: BTreeMap::new(),
            unsent: 0,
            slots: Vec::new(),
            time: Duration::ZERO,
            cpu: None,
            memory: None,
        }
    }

    /// Counts a read that ended `at` after the start.
    pub(super) fn record(&mut self, at: Duration, latency: Duration, read: Result<u64, Fault>) {
        let slot = usize::try_from(at.as_millis() / SLOT.as_millis()).unwrap_or(usize::MAX);
        // A day at most, in case that a clock jumps.
        let slot = slot.min(10 * 86_400);
        if self.slots.len() <= slot {
            self.slots.resize(slot + 1, Slot::default());
        }
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.reads += u64::from(read.is_ok());
            slot.errors += u64::from(read.is_err());
        }
        match read {
            Ok(bytes) => {
                self.latencies.record(latency);
                self.bytes += bytes;
            }
            Err(Fault(cause)) => self.fail(cause, 1),
        }
        self.time = self.time.max(at);
    }

    fn fail(&mut self, cause: String, count: u64) {
        let known = self.errors.len() < CAUSES_MAX || self.errors.contains_key(&cause);
        let cause = if known { cause } else { OTHER_CAUSES.to_owned() };
        *self.errors.entry(cause).or_default() += count;
    }

    /// Adds what another thread counted at the same time.
    pub(super) fn beside(&mut self, other: &Self) {
        if self.slots.len() < other.slots.len() {
            self.slots.resize(other.slots.len(), Slot::default());
        }
        for (slot, added) in self.slots.iter_mut().zip(&other.slots) {
            slot.reads += added.reads;
            slot.errors += added.errors;
        }
        self.time = self.time.max(other.time);
        self.counts(other);
    }

    /// Adds what a later round counted.
    pub(super) fn after(&mut self, other: &Self) {
        self.slots.extend_from_slice(&other.slots);
        self.time += other.time;
        // One round that could not be measured makes the sum no sum.
        self.cpu = self.cpu.zip(other.cpu).map(|(one, more)| one + more);
        self.memory = self.memory.into_iter().chain(other.memory).reduce(Memory::max);
        self.counts(other);
    }

    fn counts(&mut self, other: &Self) {
        self.latencies.add(&other.latencies);
        self.late.add(&other.late);
        self.bytes += other.bytes;
        self.unsent += other.unsent;
        for (cause, count) in &other.errors {
            self.fail(cause.clone(), *count);
        }
    }

    /// Failed reads.
    pub(super) fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Reads that ended, right or failed.
    pub(super) fn ended(&self) -> u64 {
        self.latencies.count() + self.error_count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(latencies: &[u64], errors: &[&str]) -> Tally {
        let mut tally = Tally::new();
        for &millis in latencies {
            let at = Duration::from_millis(millis);
            tally.record(at, at, Ok(10));
        }
        for &cause in errors {
            tally.record(SLOT, SLOT, Err(Fault(cause.to_owned())));
        }
        tally
    }

    fn millis(tally: &Tally, share: f64) -> f64 {
        tally.latencies.quantile(share).unwrap().as_secs_f64() * 1e3
    }

    #[test]
    fn one_read_is_all_quantiles_and_no_read_is_none() {
        let one = tally(&[20], &[]);
        for share in [0.0, 0.5, 0.99, 1.0] {
            assert!((millis(&one, share) - 20.0).abs() < 0.03);
        }
        let none = tally(&[], &["answered 503"]);
        assert_eq!(none.latencies.quantile(0.5), None);
        assert!(none.latencies.shares().is_empty());
        assert_eq!((none.ended(), none.error_count()), (1, 1));
    }

    #[test]
    fn threads_are_added_side_by_side_and_rounds_one_after_the_other() {
        let (one, other) = (tally(&[10, 250], &["x"]), tally(&[30], &["x", "y"]));
        let mut beside = one.clone();
        beside.beside(&other);
        assert_eq!((beside.latencies.count(), beside.bytes, beside.slots.len()), (3, 30, 3));
        assert_eq!(beside.errors, BTreeMap::from([("x".to_owned(), 2), ("y".to_owned(), 1)]));
        assert_eq!(beside.slots[0], Slot { reads: 2, errors: 0 });
        assert_eq!(beside.slots[1], Slot { reads: 0, errors: 3 });
        assert_eq!(beside.time, Duration::from_millis(250));
        let mut after = one;
        after.after(&other);
        assert_eq!((after.latencies.count(), after.slots.len()), (3, 5));
        assert_eq!(after.time, Duration::from_millis(350));
        assert!((millis(&after, 0.5) - 30.0).abs() < 0.05);
        let shares = after.latencies.shares();
        assert_eq!(shares.len(), 3);
        assert!((shares[0].1 - 1.0 / 3.0).abs() < 1e-9 && (shares[2].1 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn causes_are_bounded_and_no_error_is_lost() {
        let mut tally = Tally::new();
        for cause in 0..100 {
            tally.record(SLOT, SLOT, Err(Fault(cause.to_string())));
        }
        assert_eq!((tally.errors.len(), tally.error_count()), (CAUSES_MAX + 1, 100));
        assert_eq!(tally.errors[OTHER_CAUSES], 80);
    }
}
