//! When a question is asked again, and how long all of it may take
//! (`webhook.DefaultRetryBackoffWithInitialDelay`).

use std::time::Duration;

/// How often a question is asked.
const TRIES_MAX: u32 = 5;
/// How long all tries may take together.
pub const REVIEW_TIME_MAX: Duration = Duration::from_secs(10);
/// How long is waited after the first try.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const GROWTH: f64 = 1.5;
const JITTER: f64 = 0.2;

/// How long is waited after so many tries, from 1 on; `None` when there is no further one. `chance`,
/// from 0 to 1, spreads those that failed together.
pub fn pause(tries: u32, chance: f64) -> Option<Duration> {
    if tries == 0 || tries >= TRIES_MAX {
        return None;
    }
    let grown = (1..tries).fold(FIRST_PAUSE, |pause, _| pause.mul_f64(GROWTH));
    Some(grown.mul_f64(1.0 + JITTER * chance.clamp(0.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_by_half_and_end_before_the_time_is_over() {
        let pauses: Vec<Duration> = (1..).map_while(|tries| pause(tries, 0.0)).collect();
        let expected = [500_000, 750_000, 1_125_000, 1_687_500].map(Duration::from_micros);
        assert_eq!(pauses, expected);
        assert_eq!(pause(1, 1.0), Some(Duration::from_millis(600)));
        let longest: Duration = (1..).map_while(|tries| pause(tries, 1.0)).sum();
        assert!(longest < REVIEW_TIME_MAX);
    }
}
