//! What was asked of a simulated server, and by whom; and when each of its changes left it.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

/// Different callers, and different paths, that are counted apart; more are counted as `other`.
const NAMES_MAX: usize = 1000;
const OTHER: &str = "other";

/// How often a server was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests.
    pub requests: u64,
    /// Those answered with 304.
    pub not_modified: u64,
    /// Requests by path.
    pub by_path: BTreeMap<String, u64>,
    /// Requests by the user that the front proxy named; empty where it named none.
    pub by_user: BTreeMap<String, u64>,
    /// Connections whose client showed a certificate.
    pub connections_with_certificate: u64,
    /// Connections whose client showed none.
    pub connections_without_certificate: u64,
}

impl Counts {
    pub(super) fn request(&mut self, path: &str, user: &str) {
        self.requests += 1;
        count(&mut self.by_path, path, 1);
        count(&mut self.by_user, user, 1);
    }

    pub(super) fn connection(&mut self, with_certificate: bool) {
        if with_certificate {
            self.connections_with_certificate += 1;
        } else {
            self.connections_without_certificate += 1;
        }
    }

    /// Adds another server's.
    pub(super) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.not_modified += other.not_modified;
        self.connections_with_certificate += other.connections_with_certificate;
        self.connections_without_certificate += other.connections_without_certificate;
        for (path, more) in &other.by_path {
            count(&mut self.by_path, path, *more);
        }
        for (user, more) in &other.by_user {
            count(&mut self.by_user, user, *more);
        }
    }
}

/// The names come from the network.
fn count(counts: &mut BTreeMap<String, u64>, name: &str, more: u64) {
    let known = counts.contains_key(name) || counts.len() < NAMES_MAX;
    *counts.entry(if known { name } else { OTHER }.to_owned()).or_default() += more;
}

/// A state of a server's documents on its way out. The first one is that of the start.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// When it came about.
    pub made: Instant,
    /// When the first request came that was answered with it, for the aggregated document.
    pub asked: Option<Instant>,
    /// When that answer left the server.
    pub sent: Option<Instant>,
}

impl Change {
    pub(super) fn now() -> Self {
        Self { made: Instant::now(), asked: None, sent: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_the_network_are_bounded() {
        let mut counts = Counts::default();
        for number in 0..NAMES_MAX + 5 {
            counts.request("/apis", &format!("user-{number}"));
        }
        assert_eq!(counts.by_path["/apis"], counts.requests);
        assert_eq!(counts.by_user.len(), NAMES_MAX + 1);
        assert_eq!(counts.by_user[OTHER], 5);
        let mut sum = counts.clone();
        sum.add(&counts);
        assert_eq!(sum.requests, 2 * counts.requests);
        assert_eq!(sum.by_user["user-7"], 2);
    }
}
