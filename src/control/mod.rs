//! THE LOOP: objects change, the loop decides about the `APIServices` concerned, and one new
//! routing table is published.
//!
//! `Reconciler` is the effect without tasks: it reads what happened in the store since it looked
//! last, decides (`model::availability`) and acts. The async part only says when to look.

pub mod availability;
mod ca_bundles;
mod directory;
mod index;
pub mod manifest_file;
pub mod manifests;
pub mod prober;
pub mod watch;

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use foldhash::fast::FixedState;

use tokio::sync::mpsc;

use crate::model::api_service;
use crate::model::availability::{Condition, Status, Verdict};
use crate::model::endpoints::{EndpointRouting, Targets};
use crate::model::fault::Fault;
use crate::model::probing::Probed;
use crate::model::routing_table::{Entry, Remote, Route, RoutingTable};
use crate::runtime::lifecycle::ReadyGuard;
use crate::runtime::snapshot::Publisher;
use crate::runtime::telemetry::Metrics;
use crate::store::Store;
use crate::upstream::{Upstream, Upstreams};

use index::{Decision, Index, Names, Outline};
use prober::Report;

/// What the loop works with.
#[derive(Debug)]
pub struct Control {
    /// Where the objects are, and where conditions are written.
    pub store: Store,
    /// Where the table is published; the loop is its only writer.
    pub publisher: Publisher<RoutingTable<Upstream>>,
    /// All backends.
    pub upstreams: Upstreams,
    /// The availability metrics.
    pub metrics: Arc<Metrics>,
    /// How services are reached.
    pub routing: EndpointRouting,
    /// What backends say when they are asked whether they are available.
    pub reports: mpsc::Receiver<Vec<Report>>,
}

impl Control {
    /// Follows the store for ever. Until `loaded` ends, unknown paths are not ready, not missing;
    /// `ready` is released when the table of what was loaded is published.
    pub async fn run(self, loaded: impl Future<Output = ()>, ready: Vec<ReadyGuard>) {
        let mut revisions = self.store.subscribe();
        let mut reconciler = Reconciler::new(self);
        let mut loaded = pin!(loaded);
        let mut ready = ready;
        let mut complete = false;
        loop {
            revisions.mark_unchanged();
            reconciler.sync(complete);
            if complete {
                ready.clear();
            }
            tokio::select! {
                changed = revisions.changed() => if changed.is_err() { return },
                () = &mut loaded, if !complete => complete = true,
                Some(reports) = reconciler.control.reports.recv() => reconciler.have_probed(reports),
            }
        }
    }
}

/// The loop's state and its effect.
#[derive(Debug)]
struct Reconciler {
    control: Control,
    index: Index,
    /// What was done last about each APIService.
    done: HashMap<Arc<str>, Done, FixedState>,
    /// Up to where the store has been read; none before the first time.
    revision: Option<u64>,
}

/// What was done last about one APIService.
#[derive(Debug)]
struct Done {
    outline: Outline,
    fault: Option<Fault>,
    upstream: Option<Upstream>,
    probed: Probed,
    /// None until anything was said of it.
    available: Option<bool>,
}

/// One batch of changes on its way into a table.
#[derive(Debug)]
struct Batch {
    table: RoutingTable<Upstream>,
    changed: bool,
    conditions: Vec<(Arc<str>, Condition)>,
}

impl Reconciler {
    fn new(control: Control) -> Self {
        Self { control, index: Index::default(), done: HashMap::default(), revision: None }
    }

    /// Acts on what happened since the last time; `complete`: from now on, the table is sure of
    /// what is missing.
    fn sync(&mut self, complete: bool) {
        let affected = self.affected();
        self.act(affected, complete);
    }

    /// Takes in what backends said of those APIServices that are still theirs.
    fn have_probed(&mut self, mut reports: Vec<Report>) {
        // What waits is one change.
        while let Ok(more) = self.control.reports.try_recv() {
            reports.extend(more);
        }
        let mut affected = Names::new();
        for Report { name, backend, probed } in reports {
            let Some(done) = self.done.get_mut(&name) else { continue };
            let is_its =
                done.upstream.as_ref().is_some_and(|its| Arc::ptr_eq(&its.backend, &backend));
            if is_its && !done.probed.says_the_same(&probed) {
                done.probed = probed;
                affected.insert(name);
            }
        }
        if !affected.is_empty() {
            self.act(affected, false);
        }
    }

    fn act(&mut self, affected: Names, complete: bool) {
        let table = RoutingTable::clone(&self.control.publisher.current());
        let mut batch = Batch { table, changed: false, conditions: Vec::new() };
        for name in affected {
            batch = match self.index.decide(&name, self.control.routing) {
                Some(decision) => self.route(batch, &name, decision),
                None => self.remove(batch, &name),
            };
        }
        if complete && !batch.table.is_complete() {
            batch.table = batch.table.completed();
            batch.changed = true;
        }
        if batch.changed {
            self.control.publisher.publish(batch.table);
        }
        self.control.store.set_statuses(&batch.conditions);
    }

    fn affected(&mut self) -> Names {
        let store = &self.control.store;
        if let Some(events) = self.revision.and_then(|revision| store.since(revision, None).ok()) {
            self.revision = Some(events.1);
            return self.index.apply(&events.0);
        }
        // The first time, or so late that the store has forgotten what happened between.
        let (objects, revision) = store.list(None);
        self.revision = Some(revision);
        self.index.reset(&objects)
    }

    fn route(&mut self, mut batch: Batch, name: &Arc<str>, decision: Decision) -> Batch {
        let Decision { outline, verdict } = decision;
        let before = self.done.remove(name);
        let upstream = self.upstream(name, before.as_ref(), &outline);
        let probed = probed(before.as_ref(), upstream.as_ref(), &verdict);
        let verdict = match &outline.backend {
            Some(spec) => {
                let path = api_service::path(&outline.group, &outline.version);
                verdict.asked(&probed, &spec.service, &path)
            }
            None => verdict,
        };
        let was_available = before.as_ref().and_then(|done| done.available);
        let available = match &verdict.condition {
            Some(condition) => Some(self.count(name, condition, was_available)),
            None => was_available,
        };
        if let Some(upstream) = &upstream {
            // A service that cannot be reached has no addresses any more.
            let nothing = || Targets::Addresses(Vec::new());
            upstream.set_targets(&verdict.targets.clone().unwrap_or_else(nothing));
        }
        let Verdict { condition, fault, .. } = verdict;
        batch.conditions.extend(condition.map(|condition| (Arc::clone(name), condition)));
        let same = |done: &Done| done.outline == outline && done.fault == fault;
        if !before.as_ref().is_some_and(same) {
            if let Some(old) = before.as_ref().map(|done| &done.outline)
                && (&old.group, &old.version) != (&outline.group, &outline.version)
            {
                batch.table = batch.table.without(&old.group, &old.version);
            }
            let entry = entry(name, &outline, upstream.clone(), fault.clone());
            batch.table = batch.table.with(entry);
            batch.changed = true;
        }
        let done = Done { outline, fault, upstream, probed, available };
        self.done.insert(Arc::clone(name), done);
        batch
    }

    /// The backend of an APIService, asked for again only when it is another one.
    fn upstream(
        &mut self,
        name: &Arc<str>,
        before: Option<&Done>,
        outline: &Outline,
    ) -> Option<Upstream> {
        let backend = outline.backend.as_ref()?;
        let unchanged = before.filter(|done| done.outline.backend.as_ref() == Some(backend));
        unchanged.and_then(|done| done.upstream.clone()).or_else(|| {
            let (group, version) = (&outline.group, &outline.version);
            Some(self.control.upstreams.upstream(name, group, version, backend.clone()))
        })
    }

    fn count(&self, name: &str, condition: &Condition, was_available: Option<bool>) -> bool {
        let available = condition.status == Status::True;
        let metrics = &self.control.metrics;
        let gauge = metrics.unavailable.with_label_values(&[name]);
        gauge.set(if available { 0.0 } else { 1.0 });
        if was_available == Some(true) && !available {
            metrics.unavailable_total.with_label_values(&[name, condition.reason]).inc();
        }
        if available {
            if was_available == Some(false) {
                tracing::info!(apiservice = name, "api service is available again");
            }
        } else if was_available != Some(false) {
            tracing::warn!(
                apiservice = name,
                reason = condition.reason,
                detail = %condition.message,
                "api service is not available"
            );
        }
        available
    }

    fn remove(&mut self, mut batch: Batch, name: &Arc<str>) -> Batch {
        let Some(Done { outline, .. }) = self.done.remove(name) else { return batch };
        batch.table = batch.table.without(&outline.group, &outline.version);
        batch.changed = true;
        if self.control.metrics.unavailable.remove_label_values(&[name]).is_err() {
            tracing::debug!(apiservice = %name, "no gauge to remove");
        }
        batch
    }
}

/// What is known by asking, as long as it is the same backend, and it has somebody to ask.
fn probed(before: Option<&Done>, upstream: Option<&Upstream>, verdict: &Verdict) -> Probed {
    let (Some(before), Some(upstream)) = (before, upstream) else { return Probed::Awaited };
    let same =
        before.upstream.as_ref().is_some_and(|its| Arc::ptr_eq(&its.backend, &upstream.backend));
    if same && verdict.targets.is_some() { before.probed.clone() } else { Probed::Awaited }
}

fn entry(
    name: &Arc<str>,
    outline: &Outline,
    upstream: Option<Upstream>,
    fault: Option<Fault>,
) -> Entry<Upstream> {
    let route = match (&outline.backend, upstream) {
        (Some(spec), Some(backend)) => Route::Remote(Remote {
            name: Arc::clone(name),
            service: spec.service.clone(),
            backend,
            fault,
            discovery: outline.discovery,
        }),
        _ => Route::Local,
    };
    Entry {
        group: Arc::clone(&outline.group),
        version: Arc::clone(&outline.version),
        group_priority: outline.group_priority,
        version_priority: outline.version_priority,
        route: Arc::new(route),
    }
}

#[cfg(test)]
mod tests;
