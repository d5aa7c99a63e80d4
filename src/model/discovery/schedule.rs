//! When a server is asked for its discovery again (`handler_discovery.go` upstream).

use std::time::Duration;

/// The times between two questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// After its APIService, Service or endpoints changed.
    pub settle: Duration,
    /// After an answer.
    pub refresh: Duration,
    /// After the first failure; each further one doubles it.
    pub backoff: Duration,
    /// After many failures.
    pub backoff_max: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            settle: Duration::ZERO,
            refresh: Duration::from_secs(60),
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(60),
        }
    }
}

/// How far a pause may be from what it should be, as a part of it: servers must not all be asked
/// at the same moment.
const JITTER: f64 = 0.1;

impl Schedule {
    /// That of kube-apiserver, which tells nobody when its own resources change: a 304 costs it
    /// 0.2 ms of CPU, and who has made a `CustomResourceDefinition` waits to see it.
    #[must_use]
    pub fn of_core(self) -> Self {
        let refresh = self.refresh.min(Duration::from_secs(1));
        Self { refresh, backoff_max: self.backoff_max.min(Duration::from_secs(5)), ..self }
    }

    /// The pause after the `failures`th failure in a row, 0 for an answer; `random` is from 0 to 1.
    pub fn pause(&self, failures: u32, random: f64) -> Duration {
        let even = match failures.checked_sub(1) {
            None => self.refresh,
            Some(doublings) => {
                let factor = 2_u32.saturating_pow(doublings);
                self.backoff.saturating_mul(factor).min(self.backoff_max)
            }
        };
        even.mul_f64(1.0 + JITTER * (2.0 * random - 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_differ_by_a_tenth() {
        let schedule = Schedule::default();
        let pauses: Vec<u128> =
            (0..10).map(|failures| schedule.pause(failures, 0.5).as_millis()).collect();
        assert_eq!(
            pauses,
            [60_000, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]
        );
        assert_eq!(schedule.pause(u32::MAX, 0.5).as_millis(), 60_000);
        assert_eq!(schedule.pause(0, 0.0), Duration::from_secs(54));
        assert_eq!(schedule.pause(0, 1.0), Duration::from_secs(66));
    }
}
