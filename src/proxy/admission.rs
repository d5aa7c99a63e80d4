//! How many requests are served at a time (`--max-requests-inflight`,
//! `--max-mutating-requests-inflight`; `apiserver/pkg/server/filters/maxinflight.go`).
//!
//! Long-running requests and health pages are not counted; members of `system:masters` are let in
//! where others are told to come later, so that an overloaded portico can be looked into.

use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::IntGauge;

use super::Config;
use crate::model::rejection::Rejection;
use crate::runtime::telemetry::Metrics;

/// The limits and what is open under them; shared by all threads.
#[derive(Debug)]
pub(super) struct Admission {
    read_only: Limit,
    mutating: Limit,
}

/// Which limit a request counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It changes nothing.
    ReadOnly,
    /// It may change something.
    Mutating,
}

#[derive(Debug)]
struct Limit {
    open: AtomicUsize,
    /// 0 for any number.
    most: usize,
    gauge: IntGauge,
}

impl Admission {
    pub(super) fn new(config: &Config, metrics: &Metrics) -> Self {
        let limit = |most, kind| Limit {
            open: AtomicUsize::new(0),
            most,
            gauge: metrics.inflight.with_label_values(&[kind]),
        };
        Self {
            read_only: limit(config.requests_max, "readOnly"),
            mutating: limit(config.mutating_requests_max, "mutating"),
        }
    }

    /// Lets a request in, to be told with [`Admission::leave`] when it is over.
    pub(super) fn enter(&self, kind: Kind, privileged: bool) -> Result<(), Rejection> {
        let limit = self.limit(kind);
        let open = limit.open.fetch_add(1, Ordering::Relaxed);
        if limit.most > 0 && open >= limit.most && !privileged {
            limit.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Rejection::TooManyRequests);
        }
        limit.gauge.inc();
        Ok(())
    }

    /// A request that was let in is over.
    pub(super) fn leave(&self, kind: Kind) {
        let limit = self.limit(kind);
        limit.open.fetch_sub(1, Ordering::Relaxed);
        limit.gauge.dec();
    }

    fn limit(&self, kind: Kind) -> &Limit {
        match kind {
            Kind::ReadOnly => &self.read_only,
            Kind::Mutating => &self.mutating,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(requests_max: usize) -> Admission {
        let config = Config { requests_max, mutating_requests_max: 1, ..Config::default() };
        Admission::new(&config, &Metrics::new().unwrap())
    }

    #[test]
    fn each_kind_has_its_own_limit_and_masters_pass_it() {
        let admission = admission(2);
        assert!(admission.enter(Kind::ReadOnly, false).is_ok());
        assert!(admission.enter(Kind::ReadOnly, false).is_ok());
        assert_eq!(admission.enter(Kind::ReadOnly, false), Err(Rejection::TooManyRequests));
        assert!(admission.enter(Kind::Mutating, false).is_ok());
        assert!(admission.enter(Kind::ReadOnly, true).is_ok());
        admission.leave(Kind::ReadOnly);
        assert!(admission.enter(Kind::ReadOnly, false).is_err());
        admission.leave(Kind::ReadOnly);
        assert!(admission.enter(Kind::ReadOnly, false).is_ok());
    }

    #[test]
    fn zero_is_no_limit() {
        let admission = admission(0);
        assert!((0..1000).all(|_| admission.enter(Kind::ReadOnly, false).is_ok()));
    }
}
