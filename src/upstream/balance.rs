//! Chooses an endpoint: the less loaded of two random ones, by the in-flight counts of all threads.
//! Those that are dead, in doubt or just revived are avoided as far as others are there.

use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Endpoint;
use crate::model::fault::{Fault, Hop};
use crate::model::suspicion::may_avoid;

/// How gladly an endpoint is taken, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Well,
    /// It came back lately, and this request is not in its share.
    Spared,
    Doubted,
    /// To ask it again costs nothing: the last time it refused at once.
    Refusing,
}

/// The endpoint for the next try, those in `tried` only when there is no other; or why there is none.
pub(super) fn choose<'a>(
    endpoints: &'a [Arc<Endpoint>],
    tried: &[u64],
    slow_start: Duration,
) -> Result<&'a Arc<Endpoint>, Fault> {
    match endpoints {
        [] => Err(Hop::NoEndpoints.into()),
        [only] if only.is_well() => Ok(only),
        several if several.len() > 1 && tried.is_empty() => {
            let first = fastrand::usize(..several.len());
            let second = (first + fastrand::usize(1..several.len())) % several.len();
            match (several.get(first), several.get(second)) {
                (Some(a), Some(b)) if a.is_well() && b.is_well() => Ok(less_loaded(a, b)),
                _ => choose_carefully(several, tried, slow_start),
            }
        }
        several => choose_carefully(several, tried, slow_start),
    }
}

fn less_loaded<'a>(a: &'a Arc<Endpoint>, b: &'a Arc<Endpoint>) -> &'a Arc<Endpoint> {
    if b.in_flight() < a.in_flight() { b } else { a }
}

fn choose_carefully<'a>(
    endpoints: &'a [Arc<Endpoint>],
    tried: &[u64],
    slow_start: Duration,
) -> Result<&'a Arc<Endpoint>, Fault> {
    let doubted = endpoints.iter().filter(|endpoint| endpoint.is_doubted()).count();
    let doubt_counts = may_avoid(doubted, endpoints.len());
    let mut death = None;
    let ranked = endpoints.iter().filter_map(|endpoint| {
        if endpoint.is_dead() {
            endpoint.want();
        }
        if let Some(fault) = endpoint.hopeless() {
            death = Some(fault);
            return None;
        }
        let rank = if endpoint.is_dead() {
            Rank::Refusing
        } else if doubt_counts && endpoint.is_doubted() {
            Rank::Doubted
        } else if fastrand::u32(..100) >= endpoint.share(slow_start) {
            Rank::Spared
        } else {
            Rank::Well
        };
        // Among equals the order of the list must not decide.
        let key = (tried.contains(&endpoint.id), rank, endpoint.in_flight(), fastrand::u16(..));
        Some((key, endpoint))
    });
    let chosen = ranked.min_by_key(|(key, _)| *key).map(|(_, endpoint)| endpoint);
    chosen.ok_or_else(|| death.unwrap_or_else(|| Hop::NoEndpoints.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::endpoint::for_tests;

    const SLOW_START: Duration = Duration::from_secs(3600);

    fn chosen(endpoints: &[Arc<Endpoint>], tried: &[u64]) -> Vec<usize> {
        let mut found: Vec<usize> = (0..400)
            .map(|_| {
                let chosen = choose(endpoints, tried, SLOW_START).unwrap();
                endpoints.iter().position(|endpoint| endpoint.id == chosen.id).unwrap()
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn dies(endpoint: &Endpoint, hop: Hop) {
        assert!(endpoint.not_dialled(&hop.into(), Duration::ZERO));
    }

    #[test]
    fn the_dead_and_the_doubted_are_avoided_while_others_are_there() {
        let endpoints = for_tests(3);
        assert_eq!(chosen(&endpoints, &[]), [0, 1, 2]);
        let doubt = endpoints[1].doubt();
        assert_eq!(chosen(&endpoints, &[]), [0, 2]);
        dies(&endpoints[0], Hop::ConnectRefused);
        assert_eq!(chosen(&endpoints, &[]), [2]);
        assert_eq!(chosen(&endpoints, &[endpoints[2].id]), [1]);
        drop(doubt);
        assert_eq!(chosen(&endpoints, &[]), [1, 2]);
    }

    #[test]
    fn doubt_of_more_than_half_is_no_reason_to_avoid_anybody() {
        let endpoints = for_tests(3);
        let doubts = (endpoints[0].doubt(), endpoints[1].doubt());
        assert_eq!(chosen(&endpoints, &[]), [0, 1, 2]);
        drop(doubts);
    }

    #[test]
    fn where_all_are_dead_only_those_that_refuse_at_once_are_asked_again() {
        let endpoints = for_tests(2);
        dies(&endpoints[0], Hop::HandshakeTimeout);
        dies(&endpoints[1], Hop::ConnectRefused);
        assert_eq!(chosen(&endpoints, &[]), [1]);
        let frozen = for_tests(1);
        dies(&frozen[0], Hop::HandshakeTimeout);
        assert_eq!(choose(&frozen, &[], SLOW_START).unwrap_err().hop, Hop::HandshakeTimeout);
        assert!(frozen[0].was_wanted());
        assert_eq!(choose(&[], &[], SLOW_START).unwrap_err().hop, Hop::NoEndpoints);
    }

    #[test]
    fn one_that_came_back_gets_a_part_of_its_share_and_all_where_it_is_alone() {
        let endpoints = for_tests(2);
        dies(&endpoints[0], Hop::ConnectRefused);
        assert!(!endpoints[0].heard());
        assert!(endpoints[0].is_dead());
        assert!(endpoints[0].dialled(Duration::from_millis(1)));
        let its = (0..2000)
            .filter(|_| choose(&endpoints, &[], SLOW_START).unwrap().id == endpoints[0].id)
            .count();
        assert!((20..400).contains(&its), "{its} of 2000");
        assert_eq!(chosen(&endpoints[..1], &[]), [0]);
        // Over at once where there is no slow start.
        assert!(choose(&endpoints[..1], &[], Duration::ZERO).is_ok());
        assert!(endpoints[0].is_well());
    }
}
