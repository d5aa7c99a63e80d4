//! Who of several replicas leads: what a candidate does with the Lease that it sees
//! (`client-go/tools/leaderelection:tryAcquireOrRenew`).
//!
//! Clocks of other machines are never believed: a Lease that somebody else holds ends a while after
//! it was last seen to change.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

/// For how long a Lease counts after it was renewed; client-go's default, as the others.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// Who could not renew for so long leads no more.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// What a candidate is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Create the Lease.
    Create(LeaseSpec),
    /// Replace the Lease that was seen.
    Update(LeaseSpec),
    /// Look again later.
    Wait,
}

/// A candidate.
#[derive(Debug)]
pub struct Candidate {
    identity: String,
    /// The Lease as it was seen last, and when it was first seen so.
    seen: Option<(LeaseSpec, Instant)>,
    renewed: Option<Instant>,
}

impl Candidate {
    /// A candidate of that name, which no other must have.
    pub fn new(identity: String) -> Self {
        Self { identity, seen: None, renewed: None }
    }

    /// What to do about the Lease; `wall` is written into it.
    pub fn step(&mut self, lease: Option<&LeaseSpec>, now: Instant, wall: Timestamp) -> Step {
        let Some(lease) = lease else {
            self.seen = None;
            return Step::Create(self.held(wall, wall, 0));
        };
        let since = match &self.seen {
            Some((seen, since)) if seen == lease => *since,
            _ => now,
        };
        self.seen = Some((lease.clone(), since));
        let transitions = lease.lease_transitions.unwrap_or_default();
        match lease.holder_identity.as_deref() {
            Some(holder) if holder == self.identity => {
                let acquired = lease.acquire_time.as_ref().map_or(wall, |time| time.0);
                Step::Update(self.held(acquired, wall, transitions))
            }
            Some(holder) if !holder.is_empty() && now < since + duration(lease) => Step::Wait,
            _ => Step::Update(self.held(wall, wall, transitions.saturating_add(1))),
        }
    }

    /// What was to be done is done.
    pub fn renewed(&mut self, now: Instant) {
        self.renewed = Some(now);
    }

    /// Somebody else holds the Lease.
    pub fn lost(&mut self) {
        self.renewed = None;
    }

    /// Whether it leads.
    pub fn leads(&self, now: Instant) -> bool {
        self.renewed.is_some_and(|renewed| now < renewed + RENEW_DEADLINE)
    }

    /// What to write so that another may lead at once; none when it does not hold the Lease.
    pub fn release(&mut self, lease: &LeaseSpec, wall: Timestamp) -> Option<LeaseSpec> {
        self.renewed = None;
        (lease.holder_identity.as_deref() == Some(&self.identity)).then(|| LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            ..self.held(wall, wall, lease.lease_transitions.unwrap_or_default())
        })
    }

    fn held(&self, acquired: Timestamp, renewed: Timestamp, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: Some(MicroTime(acquired)),
            renew_time: Some(MicroTime(renewed)),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

/// For how long the holder says that it counts.
fn duration(lease: &LeaseSpec) -> Duration {
    let seconds = lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    seconds.map_or(LEASE_DURATION, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, transitions: i32) -> LeaseSpec {
        Candidate::new(holder.to_owned()).held(
            Timestamp::UNIX_EPOCH,
            Timestamp::UNIX_EPOCH,
            transitions,
        )
    }

    #[track_caller]
    fn check(step: &Step, expected: Option<(&str, i32)>) {
        let got = match step {
            Step::Create(lease) | Step::Update(lease) => {
                Some((lease.holder_identity.as_deref().unwrap(), lease.lease_transitions.unwrap()))
            }
            Step::Wait => None,
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn a_lease_is_taken_when_there_is_none_or_nobodys_and_renewed_when_it_is_ours() {
        let (now, wall) = (Instant::now(), Timestamp::now());
        let mut me = Candidate::new("me".to_owned());
        assert!(matches!(me.step(None, now, wall), Step::Create(_)));
        check(&me.step(None, now, wall), Some(("me", 0)));
        check(&me.step(Some(&lease("", 3)), now, wall), Some(("me", 4)));
        let renewed = me.step(Some(&lease("me", 3)), now, wall);
        check(&renewed, Some(("me", 3)));
        let Step::Update(renewed) = renewed else { panic!("not renewed") };
        assert_eq!(renewed.acquire_time, Some(MicroTime(Timestamp::UNIX_EPOCH)));
        assert_eq!(renewed.renew_time, Some(MicroTime(wall)));
    }

    #[test]
    fn anothers_lease_ends_a_while_after_it_was_last_seen_to_change() {
        let (start, wall) = (Instant::now(), Timestamp::now());
        let mut me = Candidate::new("me".to_owned());
        let at = |seconds| start + Duration::from_secs(seconds);
        check(&me.step(Some(&lease("other", 1)), at(0), wall), None);
        check(&me.step(Some(&lease("other", 1)), at(14), wall), None);
        let mut renewed = lease("other", 1);
        renewed.renew_time = Some(MicroTime(wall));
        check(&me.step(Some(&renewed), at(14), wall), None);
        check(&me.step(Some(&renewed), at(28), wall), None);
        check(&me.step(Some(&renewed), at(29), wall), Some(("me", 2)));
        // A holder that goes says so by a short duration.
        let mut short = lease("other", 5);
        short.lease_duration_seconds = Some(1);
        check(&me.step(Some(&short), at(30), wall), None);
        check(&me.step(Some(&short), at(31), wall), Some(("me", 6)));
    }

    #[test]
    fn who_cannot_renew_leads_no_more_before_another_can() {
        let start = Instant::now();
        let mut me = Candidate::new("me".to_owned());
        assert!(!me.leads(start));
        me.renewed(start);
        assert!(me.leads(start + Duration::from_secs(9)));
        assert!(!me.leads(start + RENEW_DEADLINE) && RENEW_DEADLINE < LEASE_DURATION);
        me.renewed(start);
        me.lost();
        assert!(!me.leads(start));
    }

    #[test]
    fn only_ones_own_lease_is_released() {
        let mut me = Candidate::new("me".to_owned());
        me.renewed(Instant::now());
        let released = me.release(&lease("me", 2), Timestamp::now()).unwrap();
        assert_eq!(released.holder_identity.as_deref(), Some(""));
        assert_eq!(
            (released.lease_duration_seconds, released.lease_transitions),
            (Some(1), Some(2))
        );
        assert!(me.release(&lease("other", 2), Timestamp::now()).is_none());
        assert!(!me.leads(Instant::now()));
    }
}
