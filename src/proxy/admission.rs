//! How many requests are served at a time (`--max-requests-inflight`,
//! `--max-mutating-requests-inflight`; `apiserver/pkg/server/filters/maxinflight.go`).
//!
//! Long-running requests and health pages are not counted; members of `system:masters` are let in
//! where others are told to come later, so that an overloaded portico can be looked into.
//!
//! No backend can fill a limit alone, however slow it is: it may hold a multiple of the places that
//! are free, so that there is always room for requests to others (dynamic thresholds, as in the
//! buffers of switches: Choudhury and Hahne, 1998).

use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::IntGauge;

use super::Config;
use crate::model::rejection::Rejection;
use crate::runtime::telemetry::Metrics;

/// How many times as many places as are free one backend may hold: one alone gets four fifths of all,
/// of two each four ninths.
const PLACES_PER_FREE_ONE: usize = 4;

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

    /// True where one more request to a backend that has `open` open ones would leave too little room
    /// for others.
    pub(super) fn crowds_out(&self, kind: Kind, open: impl FnOnce() -> usize) -> bool {
        let limit = self.limit(kind);
        // The request's own place is not taken by anybody else.
        let free = (limit.most + 1).saturating_sub(limit.open.load(Ordering::Relaxed));
        // With half of the places free, no backend has too many.
        limit.most > 0 && free < limit.most / 2 && open() > PLACES_PER_FREE_ONE * free
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

    /// How many of `wanted` requests to a backend with `open` open ones are let in.
    fn let_in(admission: &Admission, open: &mut usize, wanted: usize) -> usize {
        let before = *open;
        for _ in 0..wanted {
            if admission.enter(Kind::ReadOnly, false).is_err() {
                continue;
            }
            if admission.crowds_out(Kind::ReadOnly, || *open) {
                admission.leave(Kind::ReadOnly);
            } else {
                *open += 1;
            }
        }
        *open - before
    }

    #[test]
    fn a_backend_that_answers_nothing_leaves_room_for_the_others() {
        let admission = admission(400);
        let (mut hung, mut second, mut third) = (0, 0, 0);
        assert_eq!(let_in(&admission, &mut hung, 1000), 321);
        assert_eq!(let_in(&admission, &mut second, 1000), 64);
        assert_eq!(let_in(&admission, &mut third, 10), 10);
    }

    #[test]
    fn zero_is_no_limit() {
        let admission = admission(0);
        assert!(!admission.crowds_out(Kind::ReadOnly, || 1_000_000));
        assert!((0..1000).all(|_| admission.enter(Kind::ReadOnly, false).is_ok()));
    }
}
