//! How many requests may be tried again, so that a service in trouble is not given more work than it
//! has: a share of its recent requests, and a few in any case.

use std::time::Duration;

/// Over how many seconds is counted.
const WINDOW_SECS: usize = 10;
/// One in how many of the recent requests may be tried again.
const REQUESTS_PER_RETRY: u64 = 5;
/// Tries a second that are allowed however few requests there are.
const RETRIES_PER_SEC_MIN: u64 = 10;

/// What was tried again of one service's requests.
#[derive(Debug)]
pub struct RetryBudget {
    /// The second from which on requests are counted.
    begun: u64,
    seconds: [Second; WINDOW_SECS],
}

/// A second in which there was a question.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    /// Which one.
    at: u64,
    /// Requests in all before it.
    requests_before: u64,
    retries: u64,
}

impl RetryBudget {
    /// A budget of requests that come from now on.
    pub fn new(now: Duration) -> Self {
        Self { begun: now.as_secs(), seconds: Default::default() }
    }

    /// Takes a try from the budget, if it is in it; `requests` is how many there were in all.
    pub fn take(&mut self, now: Duration, requests: u64) -> bool {
        let now = now.as_secs();
        let recent = self.recent_requests(now, requests);
        let is_recent = |second: &&Second| second.at + WINDOW_SECS as u64 > now;
        let retries: u64 = self.seconds.iter().filter(is_recent).map(|second| second.retries).sum();
        let least = RETRIES_PER_SEC_MIN * WINDOW_SECS as u64;
        if retries >= least.max(recent / REQUESTS_PER_RETRY) {
            return false;
        }
        let slot = usize::try_from(now).unwrap_or_default() % WINDOW_SECS;
        if let Some(second) = self.seconds.get_mut(slot) {
            if second.at != now {
                *second = Second { at: now, requests_before: requests, retries: 0 };
            }
            second.retries += 1;
        }
        true
    }

    /// Requests within the window, reckoned from the rate since the oldest second that is known; after
    /// a long time without a question that is the rate since then, at first the rate since the begin.
    fn recent_requests(&self, now: u64, requests: u64) -> u64 {
        let past = self.seconds.iter().filter(|second| second.at > self.begun && second.at < now);
        let oldest = past.min_by_key(|second| second.at);
        let (since, before) =
            oldest.map_or((self.begun, 0), |oldest| (oldest.at, oldest.requests_before));
        let came = requests.saturating_sub(before);
        came.saturating_mul(WINDOW_SECS as u64) / now.saturating_sub(since).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(budget: &mut RetryBudget, at: u64, requests: u64, wanted: u64) -> u64 {
        let now = Duration::from_secs(at);
        (0..wanted).map(|_| u64::from(budget.take(now, requests))).sum()
    }

    #[test]
    fn a_fifth_of_the_recent_requests_may_be_tried_again() {
        let mut budget = RetryBudget::new(Duration::ZERO);
        // 500 a second for a minute: not what there was in all counts.
        assert_eq!(taken(&mut budget, 60, 30_000, 5000), 1000);
        assert_eq!(taken(&mut budget, 69, 34_500, 5000), 0);
        // What was tried in second 60 no longer counts.
        assert!((900..=1000).contains(&taken(&mut budget, 70, 35_000, 5000)));
    }

    #[test]
    fn ten_a_second_are_allowed_in_any_case() {
        let mut budget = RetryBudget::new(Duration::ZERO);
        assert_eq!(taken(&mut budget, 1_000_000, 3, 500), 100);
        assert_eq!(taken(&mut budget, 1_000_010, 3, 500), 100);
    }

    proptest! {
        #[test]
        fn at_a_steady_rate_no_window_has_more_than_its_share(
            rate in 0_u64..3000,
            wanted in proptest::collection::vec(0_u64..900, 11..60),
        ) {
            let mut budget = RetryBudget::new(Duration::ZERO);
            let seconds = wanted.iter().zip(1000..);
            let given: Vec<u64> =
                seconds.map(|(wanted, at)| taken(&mut budget, at, at * rate, *wanted)).collect();
            let most = 100.max(rate * WINDOW_SECS as u64 / REQUESTS_PER_RETRY);
            for window in given.windows(WINDOW_SECS) {
                let sum: u64 = window.iter().sum();
                prop_assert!(sum <= most, "{window:?} at {rate}/s");
            }
        }
    }
}
