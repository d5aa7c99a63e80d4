//! What fetches issuers' keys: one task for each place where keys are, which goes on when rules change
//! and the place does not.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::fetched_keys::FetchedKeys;
use super::keys::KeySet;
use super::location::Location;
use super::validation::Rules;
use super::{Issuer, Issuers};
use crate::runtime::tasks::{AbortOnDrop, spawn_owned};
use crate::runtime::telemetry::TokenMetrics;

/// All fetchers that are needed.
#[derive(Debug)]
pub(super) struct Fetchers {
    generation: u64,
    retry_interval: Duration,
    metrics: TokenMetrics,
    running: Running,
}

type Running = HashMap<Location, Fetcher>;

/// Fetches for as long as somebody holds it.
#[derive(Clone, Debug)]
struct Fetcher {
    keys: Arc<FetchedKeys>,
    task: Arc<AbortOnDrop>,
}

/// Issuers that are not yet in force, with what fetches their keys.
#[derive(Debug)]
pub(super) struct Prepared {
    issuers: Issuers,
    running: Running,
    /// Those that were not fetched for the issuers in force.
    new: Vec<Arc<FetchedKeys>>,
}

impl Prepared {
    /// Waits until the keys of each new issuer have been fetched once.
    pub(super) async fn ready(&self) {
        for keys in &self.new {
            keys.there().await;
        }
    }

    /// The new issuers whose keys have not been fetched.
    pub(super) fn missing(&self) -> Vec<&str> {
        let missing = self.new.iter().filter(|keys| keys.current().is_none());
        missing.map(|keys| keys.issuer()).collect()
    }
}

impl Fetchers {
    pub(super) fn new(retry_interval: Duration, metrics: TokenMetrics) -> Self {
        Self { generation: 0, retry_interval, metrics, running: HashMap::new() }
    }

    /// The issuers with these rules. Keys that are fetched already, also for what `before` was to be,
    /// are shared; others begin to be fetched.
    pub(super) fn prepare(&self, rules: Vec<Rules>, before: Option<&Prepared>) -> Prepared {
        let (mut running, mut new) = (Running::new(), Vec::new());
        let mut all = Vec::with_capacity(rules.len());
        for rules in rules {
            let location = &rules.location;
            let before = before.and_then(|before| before.running.get(location));
            let in_force = self.running.get(location);
            let fetcher =
                in_force.or(before).cloned().unwrap_or_else(|| self.begin(location, None));
            if in_force.is_none() {
                new.push(Arc::clone(&fetcher.keys));
            }
            all.push(Issuer { keys: Arc::clone(&fetcher.keys), rules });
            if let Some(issuer) = all.last() {
                running.insert(issuer.rules.location.clone(), fetcher);
            }
        }
        Prepared { issuers: Issuers { generation: self.generation + 1, all }, running, new }
    }

    /// Puts issuers in force; keys that nobody needs any more are given up.
    pub(super) fn put(&mut self, prepared: Prepared) -> Issuers {
        self.generation = prepared.issuers.generation;
        self.running = prepared.running;
        prepared.issuers
    }

    /// Puts issuers with these rules in force at once: until their keys are fetched where they are now,
    /// those count that were fetched for the issuer before.
    pub(super) fn replace(&mut self, rules: Vec<Rules>) -> Issuers {
        let before = |rules: &Rules| {
            let issuer = &rules.location.issuer;
            let known = self.running.iter().find(|(location, _)| location.issuer == *issuer);
            known.and_then(|(_, fetcher)| fetcher.keys.current())
        };
        let fetchers = rules.iter().map(|rules| {
            let known = self.running.get(&rules.location).cloned();
            let fetcher = known.unwrap_or_else(|| self.begin(&rules.location, before(rules)));
            (rules.location.clone(), fetcher)
        });
        self.running = fetchers.collect();
        let prepared = self.prepare(rules, None);
        self.put(prepared)
    }

    /// What fetches, for who will not change it any more.
    pub(super) fn into_tasks(self) -> Vec<AbortOnDrop> {
        self.running.into_values().filter_map(|fetcher| Arc::into_inner(fetcher.task)).collect()
    }

    fn begin(&self, location: &Location, known: Option<Arc<KeySet>>) -> Fetcher {
        let location = location.clone();
        let keys = FetchedKeys::new(&location.issuer, self.retry_interval);
        keys.know(known);
        let fetching =
            Arc::clone(&keys).run(self.metrics.clone(), async move || location.fetch().await);
        Fetcher { keys, task: Arc::new(spawn_owned("issuer-keys", fetching)) }
    }
}
