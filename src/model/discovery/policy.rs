//! What is shown of a version whose server does not answer: the choice of whoever registers it.
//!
//! client-go takes every Stale version for one that it knows nothing about: then `kubectl get` does
//! not find its kinds, and no namespace can be deleted. `hold` keeps it known, and is for servers
//! that leave nothing behind to be deleted (`docs/differences.md` has the risks).

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::duration::{self, Signed};

/// `stale`, `hold` or `omit`.
pub const STALE_DISCOVERY: &str = "portico.dev/stale-discovery";
/// A Go duration: how long `hold` holds.
pub const HOLD_FOR: &str = "portico.dev/hold-for";
/// `snapshot` or `proxy`.
pub const LEGACY_DISCOVERY: &str = "portico.dev/legacy-discovery";

/// How long `hold` holds when [`HOLD_FOR`] is not there.
pub const HOLD_FOR_DEFAULT: Duration = Duration::from_secs(60 * 60);

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What one APIService's annotations say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What is shown while the server fails.
    pub while_down: WhileDown,
    /// True when `/apis/<group>/<version>` is always asked of the server.
    pub legacy_from_backend: bool,
}

/// What is shown while a server fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhileDown {
    /// The last good list, marked as Stale.
    Stale,
    /// The last good list as if it were Current, so long after it was fetched.
    Hold(Duration),
    /// Nothing.
    Omit,
}

impl Default for Policy {
    fn default() -> Self {
        Self { while_down: WhileDown::Stale, legacy_from_backend: false }
    }
}

/// An annotation that says nothing; the default counts in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {annotation}: {fault}")]
pub struct AnnotationError {
    annotation: &'static str,
    fault: String,
}

impl Policy {
    /// That of kube-apiserver's own versions: while it is away, what it served stays known, longer than
    /// any outage. Nobody is to forget kinds that come back as they were.
    pub const fn of_core() -> Self {
        Self { while_down: WhileDown::Hold(YEAR), legacy_from_backend: true }
    }

    /// Reads an APIService's annotations.
    pub fn read(annotations: &BTreeMap<String, String>) -> (Self, Vec<AnnotationError>) {
        let mut errors = Vec::new();
        let hold_for = annotations.get(HOLD_FOR).map(|text| positive(text));
        let hold_for = hold_for.unwrap_or(Ok(HOLD_FOR_DEFAULT)).unwrap_or_else(|fault| {
            errors.push(AnnotationError { annotation: HOLD_FOR, fault });
            HOLD_FOR_DEFAULT
        });
        let mut unknown = |annotation, value: &str, known| {
            let fault = format!("unknown value {value:?}, expected {known}");
            errors.push(AnnotationError { annotation, fault });
        };
        let while_down = match annotations.get(STALE_DISCOVERY).map(String::as_str) {
            None | Some("stale") => WhileDown::Stale,
            Some("hold") => WhileDown::Hold(hold_for),
            Some("omit") => WhileDown::Omit,
            Some(other) => {
                unknown(STALE_DISCOVERY, other, "stale, hold or omit");
                WhileDown::Stale
            }
        };
        let legacy_from_backend = match annotations.get(LEGACY_DISCOVERY).map(String::as_str) {
            None | Some("snapshot") => false,
            Some("proxy") => true,
            Some(other) => {
                unknown(LEGACY_DISCOVERY, other, "snapshot or proxy");
                false
            }
        };
        (Self { while_down, legacy_from_backend }, errors)
    }
}

fn positive(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        Signed::Positive(duration) => Ok(duration),
        Signed::Negative(_) => Err(format!("{text:?} is negative")),
    }
}

/// What is known of one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// When its list was fetched last, in Unix milliseconds; none when it never was.
    pub fetched: Option<u64>,
    /// True unless its server answered when it was asked last.
    pub failing: bool,
}

/// How a version is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Showing {
    /// As it is.
    Current,
    /// As Current though its server fails, until that time in Unix milliseconds.
    Held {
        /// The end.
        until: u64,
    },
    /// As Stale, with the last good list if there is one.
    Stale,
    /// Not at all.
    Omitted,
}

impl Showing {
    /// In one word, for metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Held { .. } => "held",
            Self::Stale => "stale",
            Self::Omitted => "omitted",
        }
    }
}

impl Policy {
    /// How a version is shown at `now`, in Unix milliseconds. What was never fetched is never shown
    /// as Current: a version that is Current and has no resources defeats kubectl's cache.
    pub fn showing(self, known: Known, now: u64) -> Showing {
        let Some(fetched) = known.fetched else {
            return match self.while_down {
                WhileDown::Omit => Showing::Omitted,
                WhileDown::Stale | WhileDown::Hold(_) => Showing::Stale,
            };
        };
        if !known.failing {
            return Showing::Current;
        }
        match self.while_down {
            WhileDown::Omit => Showing::Omitted,
            WhileDown::Stale => Showing::Stale,
            WhileDown::Hold(at_most) => {
                let at_most = u64::try_from(at_most.as_millis()).unwrap_or(u64::MAX);
                let until = fetched.saturating_add(at_most);
                if now < until { Showing::Held { until } } else { Showing::Stale }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(annotations: &[(&str, &str)]) -> (Policy, Vec<String>) {
        let annotations =
            annotations.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        let (policy, errors) = Policy::read(&annotations);
        (policy, errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn annotations_choose_and_what_they_cannot_say_is_named_and_does_not_count() {
        let hold = |seconds| Policy {
            while_down: WhileDown::Hold(Duration::from_secs(seconds)),
            ..Policy::default()
        };
        assert_eq!(policy(&[]), (Policy::default(), Vec::new()));
        assert_eq!(policy(&[(STALE_DISCOVERY, "hold")]).0, hold(3600));
        assert_eq!(policy(&[(STALE_DISCOVERY, "hold"), (HOLD_FOR, "90s")]).0, hold(90));
        let (omit, _) = policy(&[(STALE_DISCOVERY, "omit"), (LEGACY_DISCOVERY, "proxy")]);
        assert_eq!(omit, Policy { while_down: WhileDown::Omit, legacy_from_backend: true });
        let (wrong, errors) = policy(&[
            (STALE_DISCOVERY, "Hold"),
            (HOLD_FOR, "-1s"),
            (LEGACY_DISCOVERY, "off"),
            ("other", "x"),
        ]);
        assert_eq!(wrong, Policy::default());
        assert_eq!(
            errors,
            [
                "annotation portico.dev/hold-for: \"-1s\" is negative",
                "annotation portico.dev/stale-discovery: unknown value \"Hold\", expected stale, \
                 hold or omit",
                "annotation portico.dev/legacy-discovery: unknown value \"off\", expected snapshot \
                 or proxy",
            ]
        );
    }

    #[test]
    fn a_version_is_shown_as_its_policy_says() {
        let hold = WhileDown::Hold(Duration::from_millis(10));
        let good = Known { fetched: Some(100), failing: false };
        let down = Known { fetched: Some(100), failing: true };
        let never = Known { fetched: None, failing: true };
        let cases = [
            (WhileDown::Stale, good, Showing::Current),
            (WhileDown::Stale, down, Showing::Stale),
            (WhileDown::Stale, never, Showing::Stale),
            (hold, good, Showing::Current),
            (hold, down, Showing::Held { until: 110 }),
            (hold, Known { fetched: Some(95), failing: true }, Showing::Stale),
            (hold, never, Showing::Stale),
            (WhileDown::Omit, good, Showing::Current),
            (WhileDown::Omit, down, Showing::Omitted),
            (WhileDown::Omit, never, Showing::Omitted),
        ];
        for (while_down, known, expected) in cases {
            let policy = Policy { while_down, ..Policy::default() };
            assert_eq!(policy.showing(known, 105), expected, "{while_down:?} {known:?}");
        }
    }
}
