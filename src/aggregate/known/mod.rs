//! What is known of every extension API server, and who is to be asked next.
//!
//! The effect without tasks: facts and the time come in, the assembly learns what is shown, and
//! questions to be asked come out. The async part (`aggregator::Aggregator`) only carries.

mod asked;
mod awaited;
mod server;
#[cfg(test)]
mod tests;
mod version;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::FixedState;
use http::HeaderValue;
use tokio::time::Instant;

use self::asked::Asked;
use self::server::Server;
use self::version::Version;
use super::assembly::{Assembly, Entry as ShownEntry, Published, Shown, Source};
use super::fetch::{Answer, GroupVersion, Learnt};
use super::kept::Record;
use crate::model::discovery::aggregated::Freshness;
use crate::model::discovery::policy::Showing;
use crate::model::discovery::schedule::Schedule;
use crate::model::fault::{Fault, Hop};
use crate::model::routing_table::{Entry, RoutingTable};
use crate::runtime::telemetry::Metrics;
use crate::upstream::{Backend, Doubt, Upstream};

type Table = RoutingTable<Upstream>;

/// Between two questions to one server that only a caller's request gives rise to.
const DOUBT_INTERVAL: Duration = Duration::from_secs(5);
/// A question that is younger than this is not given up when its server moves: it may have gone to
/// the new place already.
const YOUNG: Duration = Duration::from_millis(100);
/// The list of a version of which nothing is known.
const NO_RESOURCES: Bytes = Bytes::from_static(b"[]");

/// A backend's address in memory, which is its own while it is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct BackendKey(usize);

impl BackendKey {
    pub(super) fn of(backend: &Arc<Backend>) -> Self {
        Self(Arc::as_ptr(backend).addr())
    }
}

/// A question to be asked.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) key: BackendKey,
    pub(super) backend: Arc<Backend>,
    pub(super) versions: Vec<GroupVersion>,
    /// Of the document that is known.
    pub(super) etag: Option<HeaderValue>,
    /// Tells a late answer from the one that is waited for.
    pub(super) number: u64,
    /// True when it failed the last time: such may not take all places.
    pub(super) failed_before: bool,
}

/// Two times of now: one that never jumps, and one that means something after a restart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) instant: Instant,
    pub(super) unix_ms: u64,
}

/// Everything that is known.
#[derive(Debug)]
pub(super) struct Known {
    schedule: Schedule,
    assembly: Assembly,
    metrics: Arc<Metrics>,
    table: Arc<Table>,
    asked: HashMap<BackendKey, Asked, FixedState>,
    due: BTreeSet<(Instant, BackendKey)>,
    /// Versions that are held, by the end of it.
    held: BTreeSet<(u64, GroupVersion)>,
    /// The backend of each version.
    places: HashMap<GroupVersion, BackendKey, FixedState>,
    /// Serves what no service serves, in front of kube-apiserver.
    core: Option<Arc<Backend>>,
    /// What was known before the restart, by the APIService's name.
    kept: HashMap<Arc<str>, Record, FixedState>,
    /// What is to be kept from now on; none for what is gone.
    to_keep: BTreeMap<Arc<str>, Option<Record>>,
    keeps: bool,
    questions: u64,
}

impl Known {
    /// Knows nothing but what was kept; with `keeps` it says what is to be kept.
    pub(super) fn new(
        schedule: Schedule,
        assembly: Assembly,
        metrics: Arc<Metrics>,
        kept: Option<Vec<(String, Record)>>,
    ) -> Self {
        let keeps = kept.is_some();
        let kept = kept.into_iter().flatten().map(|(name, record)| (name.into(), record));
        Self {
            schedule,
            assembly,
            metrics,
            table: Arc::default(),
            asked: HashMap::default(),
            due: BTreeSet::new(),
            held: BTreeSet::new(),
            places: HashMap::default(),
            core: None,
            kept: kept.collect(),
            to_keep: BTreeMap::new(),
            keeps,
            questions: 0,
        }
    }

    /// Where `/api` is served, as `host:port`.
    pub(super) fn serve_at(&mut self, address: &str) {
        self.assembly.serve_at(address);
    }

    /// From now on `core` serves what no service serves.
    pub(super) fn ask_core(&mut self, core: Arc<Backend>) {
        self.core = Some(core);
    }

    /// Takes in what is registered now.
    pub(super) fn reconcile(&mut self, table: &Arc<Table>, now: Now) {
        let before = std::mem::replace(&mut self.table, Arc::clone(table));
        for name in table.groups_changed_since(&before) {
            let entries = |table: &Table| {
                table.group(&name).map(|group| group.entries.clone()).unwrap_or_default()
            };
            let (old, new) = (entries(&before), entries(table));
            for entry in &old {
                if !new.iter().any(|other| other.version == entry.version) {
                    self.remove(&GroupVersion::of(entry));
                }
            }
            for entry in &new {
                if !old.iter().any(|other| Arc::ptr_eq(other, entry)) {
                    self.put(entry, now);
                }
            }
        }
        if table.is_complete() && !before.is_complete() {
            // What is not registered any more needs not be remembered.
            let gone = std::mem::take(&mut self.kept).into_keys();
            self.to_keep.extend(gone.map(|name| (name, None)));
        }
    }

    fn put(&mut self, entry: &Entry<Upstream>, now: Now) {
        let wanted = GroupVersion::of(entry);
        let Some(server) = Server::of(entry, self.core.as_ref()) else {
            self.remove(&wanted);
            let shown = Shown {
                group_priority: entry.group_priority,
                version_priority: entry.version_priority,
                listed: true,
                entry: None,
                legacy: None,
                fault: None,
            };
            self.assembly.set(Source::Remote, &wanted.group, &wanted.version, shown);
            return;
        };
        let key = BackendKey::of(&server.backend);
        let before = self.places.insert(wanted.clone(), key);
        let known = match before {
            // The server is not gone meanwhile, though this may be its only version.
            Some(before) if before == key => {
                self.asked.get_mut(&key).and_then(|asked| asked.versions.remove(&wanted))
            }
            Some(before) => self.take_version(before, &wanted),
            None => None,
        };
        let mut version =
            known.unwrap_or_else(|| Version::new(&wanted, self.kept.remove(&server.name), &server));
        version.priority_of_group = entry.group_priority;
        version.priority = entry.version_priority;
        version.policy = server.policy;
        if before != Some(key) {
            // What is kept of it is another server's.
            version.learnt_at = None;
        }
        version.table_fault = server.fault;
        let backend = server.backend;
        let asked = self.asked.entry(key).or_insert_with(|| Asked::new(Arc::clone(&backend)));
        asked.versions.insert(wanted.clone(), version);
        if before != Some(key) {
            // The document that is known was read for the other versions only.
            asked.etag = None;
        }
        // Where it is was set before it was published: that is no news any more.
        backend.forget_doubt();
        self.ask_now(key, now);
        self.show(&wanted, now);
    }

    /// Takes a version out of its server, and the server with its last version.
    fn take_version(&mut self, key: BackendKey, wanted: &GroupVersion) -> Option<Version> {
        let asked = self.asked.get_mut(&key)?;
        let version = asked.versions.remove(wanted);
        if asked.versions.is_empty()
            && let Some(asked) = self.asked.remove(&key)
            && let Some(due) = asked.due
        {
            self.due.remove(&(due, key));
        }
        version
    }

    fn remove(&mut self, wanted: &GroupVersion) {
        let version = self.places.remove(wanted).and_then(|key| self.take_version(key, wanted));
        if let Some(version) = version {
            if let Some(until) = version.held {
                self.held.remove(&(until, wanted.clone()));
            }
            self.metrics.discovery.moved(version.showing.map(Showing::word), None);
            if self.keeps {
                self.to_keep.insert(version.name, None);
            }
        }
        self.assembly.remove(Source::Remote, &wanted.group, &wanted.version);
    }

    /// Has a server asked at once, whatever it answered before.
    fn ask_now(&mut self, key: BackendKey, now: Now) {
        let Some(asked) = self.asked.get_mut(&key) else { return };
        asked.failures = 0;
        // It may be served by others now, whose own documents may be others.
        asked.own_documents = None;
        let at = now.instant + self.schedule.settle;
        match asked.waiting {
            Some((begun, _)) if now.instant - begun < YOUNG => {
                asked.again = Some(at);
                // Without an answer till then it went to the old place.
                self.schedule(key, at.max(begun + YOUNG));
            }
            _ => {
                asked.waiting = None;
                self.schedule(key, at);
            }
        }
    }

    fn schedule(&mut self, key: BackendKey, at: Instant) {
        let Some(asked) = self.asked.get_mut(&key) else { return };
        if let Some(before) = asked.due.replace(at) {
            self.due.remove(&(before, key));
        }
        self.due.insert((at, key));
    }

    /// Looks at the servers that are in doubt.
    pub(super) fn doubted(&mut self, now: Now) {
        let doubts: Vec<(BackendKey, Doubt)> = self
            .asked
            .iter()
            .filter_map(|(key, asked)| Some((*key, asked.backend.doubted()?)))
            .collect();
        for (key, doubt) in doubts {
            match doubt {
                Doubt::Moved => {
                    if let Some(asked) = self.asked.get(&key) {
                        asked.backend.forget_doubt();
                    }
                    self.ask_now(key, now);
                }
                // Stays until it is asked, so that no more requests wake the loop meanwhile.
                Doubt::UnknownResource => self.ask_soon(key, now),
            }
        }
    }

    /// Has a server asked again, but not more often than callers may cause it.
    fn ask_soon(&mut self, key: BackendKey, now: Now) {
        let Some(asked) = self.asked.get_mut(&key).filter(|asked| asked.failures == 0) else {
            return;
        };
        let at = asked.begun.map_or(now.instant, |begun| now.instant.max(begun + DOUBT_INTERVAL));
        if asked.waiting.is_some() {
            asked.again = Some(asked.again.map_or(at, |before| before.min(at)));
        } else if asked.due.is_none_or(|due| at < due) {
            self.schedule(key, at);
        }
    }

    /// The questions whose time has come.
    pub(super) fn questions(&mut self, now: Now) -> Vec<Question> {
        let mut questions = Vec::new();
        while let Some(&(at, key)) = self.due.first()
            && at <= now.instant
        {
            self.due.pop_first();
            let Some(asked) = self.asked.get_mut(&key) else { continue };
            self.questions += 1;
            (asked.due, asked.again) = (None, None);
            asked.begun = Some(now.instant);
            asked.waiting = Some((now.instant, self.questions));
            questions.push(Question {
                key,
                number: self.questions,
                backend: Arc::clone(&asked.backend),
                versions: asked.versions.keys().cloned().collect(),
                etag: asked.etag.clone(),
                failed_before: asked.is_reported,
            });
        }
        questions
    }

    /// Takes in an answer; the versions whose own documents are to be asked for besides.
    pub(super) fn answered(
        &mut self,
        question: &Question,
        answer: Result<Answer, Fault>,
        now: Now,
    ) -> Vec<GroupVersion> {
        let key = question.key;
        let Some(asked) = self.asked.get_mut(&key) else { return Vec::new() };
        if asked.waiting.take_if(|(_, number)| *number == question.number).is_none() {
            return Vec::new();
        }
        (asked.is_awaited, asked.awaited) = (false, None);
        let from_legacy = matches!(answer, Ok(Answer::Versions { from_legacy: true, .. }));
        let failed = asked.take_in(question, answer, now.unix_ms, &self.assembly);
        asked.report(failed.as_ref());
        asked.failures = if failed.is_some() { asked.failures.saturating_add(1) } else { 0 };
        let is_core = self.core.as_ref().is_some_and(|core| Arc::ptr_eq(core, &asked.backend));
        let schedule = if is_core { self.schedule.of_core() } else { self.schedule };
        let mut next = now.instant + schedule.pause(asked.failures, fastrand::f64());
        if let Some(again) = asked.again.take() {
            next = next.min(again.max(now.instant));
        }
        let own = asked.own_documents(now.instant, from_legacy);
        self.schedule(key, next);
        for version in &question.versions {
            self.show_if_changed(version, now);
        }
        own
    }

    /// Takes in versions' own documents; those that could not be had are made of the aggregated one.
    pub(super) fn own_documents(
        &mut self,
        key: BackendKey,
        documents: Vec<(GroupVersion, Result<Learnt, Fault>)>,
        now: Now,
    ) {
        for (wanted, learnt) in documents {
            let asked = self.asked.get_mut(&key);
            let Some(version) = asked.and_then(|asked| asked.versions.get_mut(&wanted)) else {
                continue;
            };
            match learnt {
                Ok(Learnt { legacy, .. }) => version.learn_own(legacy, now.unix_ms),
                Err(fault) => {
                    tracing::debug!(
                        apiservice = %version.name, cause = fault.hop.word(), detail = %fault.detail,
                        "version's own document not fetched"
                    );
                    // One that the server refuses is not there, as far as can be known.
                    version.wants_own = fault.hop != Hop::DiscoveryRefused;
                }
            }
            self.show_if_changed(&wanted, now);
        }
    }

    fn show_if_changed(&mut self, wanted: &GroupVersion, now: Now) {
        let version = self.version(wanted);
        if version.is_some_and(|version| std::mem::take(&mut version.changed)) {
            self.show(wanted, now);
        }
    }

    fn version(&mut self, wanted: &GroupVersion) -> Option<&mut Version> {
        self.asked.get_mut(self.places.get(wanted)?)?.versions.get_mut(wanted)
    }

    /// Tells the assembly how a version is shown from now on.
    fn show(&mut self, wanted: &GroupVersion, now: Now) {
        let GroupVersion { group, version: name } = wanted;
        let shown = self.assembly.resources(Source::Remote, group, name);
        let Some(key) = self.places.get(wanted) else { return };
        let Some(asked) = self.asked.get_mut(key) else { return };
        let backend = Arc::clone(&asked.backend);
        let Some(version) = asked.versions.get_mut(wanted) else { return };
        let resources = version.parked.take().or(shown);
        let showing = version.policy.showing(version.known(), now.unix_ms);
        if self.keeps && version.learnt_at != version.kept_at {
            version.kept_at = version.learnt_at;
            let record = version.record(&backend, resources.as_ref());
            self.to_keep.insert(Arc::clone(&version.name), record);
        }
        let freshness = match showing {
            Showing::Current | Showing::Held { .. } => Some(Freshness::Current),
            Showing::Stale => Some(Freshness::Stale),
            Showing::Omitted => None,
        };
        let shown = Shown {
            group_priority: version.priority_of_group,
            version_priority: version.priority,
            listed: freshness.is_some(),
            entry: freshness.map(|freshness| ShownEntry {
                freshness,
                resources: resources.clone().unwrap_or(NO_RESOURCES),
            }),
            legacy: freshness.and(version.legacy.as_ref()).map(|legacy| legacy.json.clone()),
            fault: version.table_fault.clone().or_else(|| version.fault.clone()),
        };
        if freshness.is_none() {
            // A copy, so that it does not keep the document alive of which it was a part.
            version.parked = resources.map(|resources| Bytes::copy_from_slice(&resources));
        }
        let until = if let Showing::Held { until } = showing { Some(until) } else { None };
        let held_before = std::mem::replace(&mut version.held, until);
        let before = version.showing.replace(showing);
        self.metrics.discovery.moved(before.map(Showing::word), Some(showing.word()));
        if let Some(until) = held_before {
            self.held.remove(&(until, wanted.clone()));
        }
        if let Some(until) = until {
            self.held.insert((until, wanted.clone()));
        }
        self.assembly.set(Source::Remote, group, name, shown);
    }

    /// Ends what was held long enough.
    pub(super) fn release_held(&mut self, now: Now) {
        while let Some((until, wanted)) = self.held.first().cloned()
            && until <= now.unix_ms
        {
            self.held.pop_first();
            if let Some(version) = self.version(&wanted) {
                tracing::warn!(apiservice = %version.name, "held for as long as it may be, now stale");
            }
            self.show(&wanted, now);
        }
    }

    /// When something is to be done next.
    pub(super) fn next(&self, now: Now) -> Option<Instant> {
        let due = self.due.first().map(|(at, _)| *at);
        let held = self.held.first().map(|(until, _)| {
            now.instant + Duration::from_millis(until.saturating_sub(now.unix_ms))
        });
        due.into_iter().chain(held).min()
    }

    /// True for a server that has a version.
    pub(super) fn asks(&self, key: BackendKey) -> bool {
        self.asked.contains_key(&key)
    }

    /// True once everything that is registered has been read.
    pub(super) fn is_complete(&self) -> bool {
        self.table.is_complete()
    }

    /// The documents as they are to be now.
    pub(super) fn publish(&mut self) -> Published {
        self.assembly.publish()
    }

    /// True when the documents are to be made anew.
    pub(super) fn has_changed(&self) -> bool {
        self.assembly.is_changed()
    }

    /// What is to be kept on disk since this was asked last, none for what is gone.
    pub(super) fn take_to_keep(&mut self) -> BTreeMap<Arc<str>, Option<Record>> {
        std::mem::take(&mut self.to_keep)
    }
}
