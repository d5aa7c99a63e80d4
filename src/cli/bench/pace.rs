//! When reads are sent: at once after the last answer, or at a rate that does not wait for answers.
//!
//! At a rate, read number `k` is due `k` intervals after the start. A thread of its own hands out
//! reads as they fall due, since the runtime's timers count in whole milliseconds. A client that
//! was waiting for its read begins to count when it gets it: that it woke late is no fault of the
//! server's. A client that was busy takes a read that was due before, and counts from when it was
//! due. So a server that stalls is charged for all reads that it kept waiting (no coordinated
//! omission).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Which reads are due when, at a rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Schedule {
    /// Reads a second.
    pub(super) rate: f64,
}

impl Schedule {
    /// How long after the start read number `number` is due.
    #[expect(clippy::cast_precision_loss, reason = "no run has 2^52 reads")]
    pub(super) fn due(self, number: u64) -> Duration {
        Duration::from_secs_f64(number as f64 / self.rate)
    }

    /// How many reads are due before `end`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive, and no run has 2^52 reads"
    )]
    pub(super) fn count(self, end: Duration) -> u64 {
        let about = (end.as_secs_f64() * self.rate) as u64;
        // Rounding may have hidden or added one.
        (about.saturating_sub(1)..=about + 1)
            .find(|&number| self.due(number) >= end)
            .unwrap_or(about)
    }
}

/// Hands out reads to clients until the end.
#[derive(Clone)]
pub(super) enum Pace {
    /// Each client reads again as soon as it has its answer.
    Closed {
        /// No read is begun from here on.
        end: Instant,
    },
    /// At a rate.
    Rate(Arc<Rate>),
}

/// The reads of a rate.
pub(super) struct Rate {
    schedule: Schedule,
    start: Instant,
    /// From here on reads that were due before it are no longer begun: the measurement is not to
    /// work off what the warm-up left.
    counted: Instant,
    end: Instant,
    /// Reads that are due and not begun.
    due: Semaphore,
    begun: AtomicU64,
}

/// A read that may begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// From when its latency counts.
    pub(super) since: Instant,
    /// How much later than due a client that waited for it got it.
    pub(super) late: Duration,
}

impl Pace {
    /// Begins to hand out reads at `start`; they count from `counted` on.
    pub(super) fn new(
        rate: Option<f64>,
        start: Instant,
        counted: Instant,
        end: Instant,
    ) -> std::io::Result<Self> {
        let Some(rate) = rate else { return Ok(Self::Closed { end }) };
        let rate = Arc::new(Rate {
            schedule: Schedule { rate },
            start,
            counted,
            end,
            due: Semaphore::new(0),
            begun: AtomicU64::new(0),
        });
        let pacer = Arc::clone(&rate);
        std::thread::Builder::new().name("bench-pacer".to_owned()).spawn(move || pacer.run())?;
        Ok(Self::Rate(rate))
    }

    /// The next read; none after the end.
    pub(super) async fn next(&self) -> Option<Turn> {
        match self {
            Self::Closed { end } => {
                let since = Instant::now();
                (since < *end).then_some(Turn { since, late: Duration::ZERO })
            }
            Self::Rate(rate) => rate.next(Instant::now).await,
        }
    }

    /// Ends it early.
    pub(super) fn stop(&self) {
        if let Self::Rate(rate) = self {
            rate.due.close();
        }
    }

    /// Reads that were due between two times and were never begun.
    pub(super) fn unsent(&self, from: Instant, to: Instant) -> u64 {
        let Self::Rate(rate) = self else { return 0 };
        let count = |at: Instant| rate.schedule.count(at.saturating_duration_since(rate.start));
        let begun = rate.begun.load(Ordering::Relaxed);
        count(to.min(rate.end)).saturating_sub(begun.max(count(from)))
    }
}

impl Rate {
    async fn next(&self, clock: impl Fn() -> Instant) -> Option<Turn> {
        loop {
            let at_once = self.due.try_acquire().map(SemaphorePermit::forget).is_ok();
            if !at_once {
                self.due.acquire().await.ok()?.forget();
            }
            let (due, now) = (self.take(), clock());
            if due < self.counted && now >= self.counted {
                continue;
            }
            return Some(if at_once {
                Turn { since: due, late: Duration::ZERO }
            } else {
                Turn { since: now, late: now.saturating_duration_since(due) }
            });
        }
    }

    /// When the read that begins now was due.
    fn take(&self) -> Instant {
        self.start + self.schedule.due(self.begun.fetch_add(1, Ordering::Relaxed))
    }

    fn run(&self) {
        let mut released = 0;
        while !self.due.is_closed() {
            let now = Instant::now();
            if now >= self.end {
                break;
            }
            let next = self.start + self.schedule.due(released);
            if now < next {
                // May end early, and then looks again.
                std::thread::park_timeout((next.min(self.end) - now).min(LOOK));
                continue;
            }
            // One more than are due before now: the one that is due right now.
            let due =
                self.schedule.count(now.saturating_duration_since(self.start)).max(released + 1);
            self.due.add_permits(usize::try_from(due - released).unwrap_or(0));
            released = due;
        }
        self.due.close();
    }
}

/// Between two looks at whether the run was ended early.
const LOOK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_due_at_equal_intervals_from_the_start_on() {
        let schedule = Schedule { rate: 4000.0 };
        assert_eq!(schedule.due(0), Duration::ZERO);
        assert_eq!(schedule.due(1), Duration::from_micros(250));
        assert_eq!(schedule.due(4001), Duration::from_micros(1_000_250));
    }

    #[test]
    fn those_due_before_a_time_are_counted_and_none_twice() {
        for rate in [0.1, 1.0, 3.0, 7.0, 1000.0, 4000.0, 1e6] {
            let schedule = Schedule { rate };
            for millis in [0, 1, 10, 333, 1000, 60_000] {
                let end = Duration::from_millis(millis);
                let count = schedule.count(end);
                assert!(schedule.due(count) >= end, "{rate} {millis} {count}");
                assert!(count == 0 || schedule.due(count - 1) < end, "{rate} {millis} {count}");
            }
        }
    }

    /// A hundred reads a second, all of them released.
    fn released(start: Instant, counted: Instant, end: Instant) -> Rate {
        Rate {
            schedule: Schedule { rate: 100.0 },
            start,
            counted,
            end,
            due: Semaphore::new(Semaphore::MAX_PERMITS),
            begun: AtomicU64::new(0),
        }
    }

    #[tokio::test]
    async fn a_read_that_had_to_wait_counts_from_when_it_was_due_and_the_rest_is_unsent() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let rate = released(start, start, at(200));
        assert_eq!(rate.next(|| at(1)).await.unwrap().since, start);
        // The server keeps the only client busy nearly to the end.
        let second = rate.next(|| at(180)).await.unwrap();
        assert_eq!((second.since, second.late), (at(10), Duration::ZERO));
        let pace = Pace::Rate(Arc::new(rate));
        assert_eq!(pace.unsent(start, at(200)), 18);
        assert_eq!(pace.unsent(at(100), at(200)), 10);
    }

    #[tokio::test]
    async fn reads_are_handed_out_until_the_end() {
        let start = Instant::now();
        let end = start + Duration::from_millis(50);
        let pace = Pace::new(Some(1000.0), start, start, end).unwrap();
        let mut turns: u64 = 0;
        while let Some(turn) = pace.next().await {
            assert!(turn.since >= start);
            turns += 1;
        }
        assert_eq!(turns + pace.unsent(start, end), 50);
    }

    #[tokio::test]
    async fn what_the_warm_up_left_is_dropped_when_the_measurement_begins() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        for warm_up in [0, 500, 5000] {
            let (counted, end) = (at(warm_up), at(warm_up + 1000));
            let rate = released(start, counted, end);
            if warm_up > 0 {
                let first = rate.next(|| at(warm_up - 1)).await.unwrap();
                assert_eq!(first.since, start);
            }
            // The server kept the only client busy until then.
            for number in 0..3 {
                let next = rate.next(|| at(warm_up + 200)).await.unwrap();
                assert_eq!(next.since, counted + Duration::from_millis(10 * number));
            }
            let pace = Pace::Rate(Arc::new(rate));
            assert_eq!(pace.unsent(counted, end), 97, "with {warm_up} ms of warm-up");
        }
    }

    #[tokio::test]
    async fn a_closed_loop_is_over_at_its_end() {
        let now = Instant::now();
        assert!(Pace::new(None, now, now, now + LOOK).unwrap().next().await.is_some());
        assert!(Pace::new(None, now, now, now).unwrap().next().await.is_none());
    }
}
