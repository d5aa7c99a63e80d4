//! Chooses an endpoint: the less loaded of two random ones, by the in-flight counts of all threads.

use std::sync::Arc;

use super::endpoint::Endpoint;

/// The endpoint for the next try; those in `tried` only when there is no other.
pub(super) fn choose<'a>(
    endpoints: &'a [Arc<Endpoint>],
    tried: &[u64],
) -> Option<&'a Arc<Endpoint>> {
    match endpoints {
        [] => None,
        [only] => Some(only),
        several if tried.is_empty() => {
            let first = fastrand::usize(..several.len());
            let second = (first + fastrand::usize(1..several.len())) % several.len();
            Some(less_loaded(several.get(first)?, several.get(second)?))
        }
        several => several
            .iter()
            .filter(|endpoint| !tried.contains(&endpoint.id))
            .min_by_key(|endpoint| endpoint.in_flight()),
    }
}

fn less_loaded<'a>(a: &'a Arc<Endpoint>, b: &'a Arc<Endpoint>) -> &'a Arc<Endpoint> {
    if b.in_flight() < a.in_flight() { b } else { a }
}
