//! How a simulated server behaves: how long it takes to answer, and what is wrong with it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http::StatusCode;

use crate::model::duration::{self, Signed};

/// The quantile of the standard normal distribution below which 99 % of it lie.
const NORMAL_P99: f64 = 2.326_347_874_040_841;
/// No answer takes longer, however the distribution is drawn from.
const LATENCY_MAX: Duration = Duration::from_secs(600);
/// The shortest period in which a server may go down and come back.
pub(crate) const FLAP_PERIOD_MIN: Duration = Duration::from_millis(100);

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Behaviour {
    /// How long each answer takes.
    pub latency: Latency,
    /// What is wrong.
    pub fault: Fault,
}

impl Behaviour {
    /// Nothing is wrong, and each answer takes this long.
    pub const fn well(latency: Latency) -> Self {
        Self { latency, fault: Fault::None }
    }

    /// The same latency with this fault.
    #[must_use]
    pub const fn with(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }
}

/// What is wrong with a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It accepts connections with TLS and answers nothing, until it behaves otherwise again.
    Hang,
    /// Every answer has this code.
    Status(StatusCode),
    /// Its port is closed, and so are its connections.
    Refuse,
    /// It comes and goes: it refuses for a part of each period, in turns with being well.
    Flap {
        /// A whole turn, at least 100 ms.
        period: Duration,
        /// The part of the period that it refuses, between 0 and 1.
        down: f64,
    },
}

/// How long an answer takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Latency {
    /// Always this long.
    Constant(Duration),
    /// Anything between these two is as likely.
    Uniform(Duration, Duration),
    /// Lognormal, given by its median and the value below which 99 % are.
    Lognormal {
        /// Half of the answers take less.
        median: Duration,
        /// 99 of 100 take less.
        p99: Duration,
    },
}

impl Latency {
    /// No time at all.
    pub const NONE: Self = Self::Constant(Duration::ZERO);

    /// Draws from the distribution.
    pub fn draw(self, random: &mut fastrand::Rng) -> Duration {
        let drawn = match self {
            Self::Constant(latency) => latency,
            Self::Uniform(least, most) => least + most.saturating_sub(least).mul_f64(random.f64()),
            Self::Lognormal { median, p99 } => {
                let sigma = (p99.as_secs_f64() / median.as_secs_f64()).ln() / NORMAL_P99;
                let seconds = median.as_secs_f64() * (sigma * normal(random)).exp();
                Duration::try_from_secs_f64(seconds).unwrap_or(LATENCY_MAX)
            }
        };
        drawn.min(LATENCY_MAX)
    }
}

/// One draw from the standard normal distribution (Box and Muller).
fn normal(random: &mut fastrand::Rng) -> f64 {
    // From (0, 1], for the logarithm.
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * random.f64()).cos()
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(latency) => write!(f, "{latency:?}"),
            Self::Uniform(least, most) => write!(f, "uniform:{least:?}-{most:?}"),
            Self::Lognormal { median, p99 } => write!(f, "lognormal:{median:?},{p99:?}"),
        }
    }
}

impl FromStr for Latency {
    type Err = String;

    /// Reads `100ms`, `uniform:50ms-150ms` or `lognormal:100ms,400ms`.
    fn from_str(text: &str) -> Result<Self, String> {
        let latency = if let Some(range) = text.strip_prefix("uniform:") {
            let bounds = range.split_once('-').ok_or("uniform needs two durations: 50ms-150ms")?;
            let (least, most) = (span(bounds.0)?, span(bounds.1)?);
            if least > most {
                return Err(format!("{least:?} is more than {most:?}"));
            }
            Self::Uniform(least, most)
        } else if let Some(quantiles) = text.strip_prefix("lognormal:") {
            let (median, p99) = quantiles
                .split_once(',')
                .ok_or("lognormal needs its median and its 99th percentile: 100ms,400ms")?;
            let (median, p99) = (span(median)?, span(p99)?);
            if median.is_zero() || p99 < median {
                return Err(format!(
                    "the 99th percentile ({p99:?}) must be at least the median ({median:?}), and \
                     both more than 0"
                ));
            }
            Self::Lognormal { median, p99 }
        } else {
            Self::Constant(span(text)?)
        };
        Ok(latency)
    }
}

/// A duration that is not negative and not absurd.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        Signed::Positive(span) if span <= LATENCY_MAX => Ok(span),
        Signed::Positive(_) => Err(format!("{text} is more than {LATENCY_MAX:?}")),
        Signed::Negative(_) => Err(format!("{text} is negative")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 20_000;

    /// The value below which this share of the draws is, in milliseconds.
    fn quantile(latency: Latency, share: f64) -> f64 {
        let mut random = fastrand::Rng::with_seed(7);
        let mut drawn: Vec<Duration> = (0..DRAWS).map(|_| latency.draw(&mut random)).collect();
        drawn.sort_unstable();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in a short list"
        )]
        let at = (share * DRAWS as f64) as usize;
        drawn[at].as_secs_f64() * 1000.0
    }

    #[track_caller]
    fn check_quantiles(text: &str, p50: f64, p99: f64, tolerance: f64) {
        let latency: Latency = text.parse().unwrap();
        for (share, expected) in [(0.5, p50), (0.99, p99)] {
            let got = quantile(latency, share);
            let off = (got - expected).abs() / expected;
            assert!(off <= tolerance, "{text}: {share} is {got} ms, not {expected}");
        }
    }

    #[test]
    fn latencies_are_distributed_as_they_say() {
        check_quantiles("100ms", 100.0, 100.0, 0.0);
        check_quantiles("uniform:50ms-150ms", 100.0, 149.0, 0.02);
        check_quantiles("lognormal:100ms,400ms", 100.0, 400.0, 0.05);
        check_quantiles("lognormal:2ms,2ms", 2.0, 2.0, 0.001);
    }

    #[test]
    fn a_seed_gives_the_same_latencies_again() {
        let latency: Latency = "lognormal:10ms,90ms".parse().unwrap();
        let draw = |seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            [latency.draw(&mut random), latency.draw(&mut random)]
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[track_caller]
    fn check_refused(text: &str, why: &str) {
        let error = text.parse::<Latency>().unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }

    #[test]
    fn a_latency_that_makes_no_sense_is_refused_with_the_reason() {
        check_refused("100", "missing unit");
        check_refused("", "invalid duration");
        check_refused("-5ms", "negative");
        check_refused("11m", "more than 600s");
        check_refused("uniform:50ms", "needs two durations");
        check_refused("uniform:150ms-50ms", "150ms is more than 50ms");
        check_refused("lognormal:100ms", "needs its median");
        check_refused("lognormal:100ms,50ms", "at least the median");
        check_refused("lognormal:0s,50ms", "more than 0");
        check_refused("normal:1s", "time: invalid duration");
    }

    #[test]
    fn a_latency_reads_back_what_it_shows() {
        for text in ["100ms", "uniform:50ms-150ms", "lognormal:100ms,400ms"] {
            assert_eq!(text.parse::<Latency>().unwrap().to_string(), text);
        }
    }
}
