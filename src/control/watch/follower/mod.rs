//! The one that follows the watches of objects: what they show goes into the store in batches, and
//! which namespaces are watched follows what APIServices name.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::Resource;
use kube::api::Api;
use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::control::watch::feed::{Trouble, feed};
use crate::control::watch::held::{Held, namespace};
use crate::control::watch::kept::{Kept, State};
use crate::control::watch::mirror::{Mirror, Step};
use crate::control::watch::scope::{Named, Scope};
use crate::control::watch::servers::{ClusterId, Servers, Watched};
use crate::control::watch::{CORE_WAIT, trim};
use crate::model::availability::Reported;
use crate::model::routing_table::OWN_GROUP;
use crate::runtime::snapshot::{Publisher, View};
use crate::runtime::tasks::{self, AbortOnDrop};
use crate::store::{Change, Key, Kind, Object, Store};
use crate::tls::cluster_trust::ClusterTrust;

/// Steps that wait for the follower, of all watches; then the watches wait.
const STEPS_MAX: usize = 256;
/// What changed is kept at most this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);

/// What one watch sees: a kind within a scope.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sight {
    kind: Kind,
    scope: Scope,
}

/// A watch under way.
#[derive(Debug)]
struct Watch {
    /// Tells it from an earlier one of the same sight.
    number: u64,
    mirror: Mirror,
    _task: AbortOnDrop,
}

/// What a watch tells.
#[derive(Debug)]
struct Told {
    sight: Sight,
    number: u64,
    step: Result<Option<Step>, Trouble>,
}

/// Follows the watches.
#[derive(Debug)]
pub(super) struct Follower {
    servers: Servers,
    store: Store,
    reports: Publisher<Reported>,
    reported: Reported,
    watches: BTreeMap<Sight, Watch>,
    begun: u64,
    sender: mpsc::Sender<Told>,
    receiver: mpsc::Receiver<Told>,
    named: Named,
    /// What is not in the store yet.
    changes: Vec<Change>,
    /// Until everything was seen once: what is to become of each object then, however often lists
    /// break off and begin again.
    first: BTreeMap<Key, Change>,
    held: Held,
    is_synced: bool,
    /// What was kept and is in the store, until everything was seen once.
    in_force: BTreeSet<Key>,
    keeping: Keeping,
    /// Why watches do not go on, by their sight.
    troubles: BTreeMap<Sight, String>,
}

/// What is kept, and when.
#[derive(Debug)]
struct Keeping {
    kept: Option<Kept>,
    /// What was kept by an earlier run, until it is used or not needed.
    objects: Vec<Object>,
    trust: View<ClusterTrust>,
    /// By what it is known at the next start.
    cluster: View<ClusterId>,
    /// When what changed is to be kept; none while nothing did.
    due: Option<Instant>,
    saving: Option<JoinHandle<()>>,
}

impl Follower {
    pub(super) fn new(
        servers: Servers,
        store: Store,
        reports: Publisher<Reported>,
        (kept, objects, trust): (Option<Kept>, Vec<Object>, View<ClusterTrust>),
    ) -> Self {
        let (sender, receiver) = mpsc::channel(STEPS_MAX);
        let cluster = servers.cluster();
        Self {
            servers,
            store,
            reports,
            reported: Reported::new(),
            watches: BTreeMap::new(),
            begun: 0,
            sender,
            receiver,
            named: Named::default(),
            changes: Vec::new(),
            first: BTreeMap::new(),
            held: Held::default(),
            is_synced: false,
            in_force: BTreeSet::new(),
            keeping: Keeping { kept, objects, trust, cluster, due: None, saving: None },
            troubles: BTreeMap::new(),
        }
    }

    /// Follows for ever; says to `loaded` when what is in the store can be routed by.
    pub(super) async fn run(mut self, loaded: oneshot::Sender<()>) {
        let mut loaded = Some(loaded);
        let mut batch = Vec::with_capacity(STEPS_MAX);
        let patience = Instant::now() + CORE_WAIT;
        self.begin(Sight { kind: Kind::ApiService, scope: Scope::Cluster });
        loop {
            let save = self.keeping.due.unwrap_or(patience);
            let may_use_kept = !self.keeping.objects.is_empty();
            tokio::select! {
                _ = self.receiver.recv_many(&mut batch, STEPS_MAX) => {}
                () = sleep_until(patience), if may_use_kept => self.use_kept(),
                () = sleep_until(save), if self.keeping.due.is_some() => self.save(),
                // A publisher that is gone changes nothing any more, nor does it wake this.
                true = self.keeping.trust.changed() => self.keep_soon(),
                true = self.keeping.cluster.changed() => self.keep_soon(),
            }
            for told in batch.drain(..) {
                self.take(told);
            }
            self.hold();
            self.follow_names();
            self.flush();
            if self.is_synced || !self.in_force.is_empty() {
                // Nobody may be waiting for it.
                loaded.take().map(|loaded| loaded.send(()).ok());
            }
        }
    }

    fn take(&mut self, told: Told) {
        let Told { sight, number, step } = told;
        let Some(watch) = self.watches.get(&sight) else { return };
        if watch.number != number {
            return;
        }
        match step {
            Ok(Some(step)) => {
                // A list that is asked for says nothing of whether it comes.
                if !matches!(step, Step::Begin) {
                    self.recovered(&sight);
                }
                self.step(&sight, step);
            }
            Ok(None) => self.recovered(&sight),
            Err(trouble) => self.trouble(sight, trouble),
        }
    }

    fn step(&mut self, sight: &Sight, step: Step) {
        let Some(step) = self.trimmed(step) else { return };
        let is_complete = matches!(step, Step::Complete);
        let narrower: Vec<Sight> = self.narrower(sight).filter(|_| is_complete).collect();
        // Before the list is compared: what they saw and it does not name is gone.
        let replaced: Vec<Watch> = narrower.iter().filter_map(|sight| self.end(sight)).collect();
        let Some(watch) = self.watches.get_mut(sight) else { return };
        for replaced in &replaced {
            watch.mirror.take_over(&replaced.mirror);
        }
        let before = self.changes.len();
        watch.mirror.step(step, &mut self.changes);
        if sight.kind == Kind::ApiService {
            for change in self.changes.get(before..).unwrap_or_default() {
                match change {
                    Change::Put(object) => {
                        self.named.put(&object.key().name, namespace(object));
                    }
                    Change::Delete(key) => {
                        self.named.remove(&key.name);
                        self.reported.remove(&key.name);
                    }
                }
            }
        }
    }

    /// The watches of namespaces that a watch of the whole cluster takes the place of.
    fn narrower(&self, sight: &Sight) -> impl Iterator<Item = Sight> {
        let kind = sight.kind;
        let is_widest = sight.scope == Scope::Cluster;
        let sights = self
            .watches
            .keys()
            .filter(move |other| is_widest && other.kind == kind && other.scope != Scope::Cluster);
        sights.cloned().collect::<Vec<_>>().into_iter()
    }

    /// The step without what routing does not read; none when it is of no concern.
    fn trimmed(&mut self, step: Step) -> Option<Step> {
        let trimmed = |object| match object {
            Object::ApiService(object) => Object::ApiService(Box::new(trim::api_service(*object))),
            Object::Service(object) => Object::Service(Box::new(trim::service(*object))),
            Object::EndpointSlice(object) => {
                Object::EndpointSlice(Box::new(trim::endpoint_slice(*object)))
            }
            Object::Endpoints(object) => Object::Endpoints(object),
        };
        if let Step::Listed(object) | Step::Put(object) = &step
            && let Some(api_service) = object.as_api_service()
        {
            let group = api_service.spec.as_ref().and_then(|spec| spec.group.as_deref());
            // The group by which APIServices themselves are served needs no entry.
            if group == Some(OWN_GROUP) {
                return None;
            }
            let name = object.key().name;
            match trim::reported(api_service) {
                Some(condition) => drop(self.reported.insert(name, condition)),
                None => drop(self.reported.remove(&name)),
            }
        }
        Some(match step {
            Step::Listed(object) => Step::Listed(trimmed(object)),
            Step::Put(object) => Step::Put(trimmed(object)),
            Step::Begin | Step::Complete | Step::Gone(_) => step,
        })
    }

    /// Begins and ends watches as the APIServices' names demand.
    fn follow_names(&mut self) {
        let api_services = Sight { kind: Kind::ApiService, scope: Scope::Cluster };
        if !self.watches.get(&api_services).is_some_and(|watch| watch.mirror.is_synced()) {
            return;
        }
        let scopes = self.named.scopes();
        let kinds = [Kind::Service, Kind::EndpointSlice];
        for scope in &scopes {
            for kind in kinds {
                let sight = Sight { kind, scope: scope.clone() };
                if !self.watches.contains_key(&sight) {
                    self.begin(sight);
                }
            }
        }
        // Those of namespaces go on until the one of the whole cluster has seen what they saw, and
        // until what names another namespace now is routed there.
        if scopes.contains(&Scope::Cluster) || !self.held.is_empty() {
            return;
        }
        let is_over = |sight: &Sight| kinds.contains(&sight.kind) && !scopes.contains(&sight.scope);
        let over: Vec<Sight> =
            self.watches.keys().filter(|sight| is_over(sight)).cloned().collect();
        for sight in over {
            let Some(watch) = self.end(&sight) else { continue };
            self.changes.extend(watch.mirror.end());
        }
    }

    /// Brings the changes into the store, but not before all is there that they depend on.
    fn flush(&mut self) {
        if !self.is_synced {
            let changes = std::mem::take(&mut self.changes);
            self.first.extend(changes.into_iter().map(|change| (change.key(), change)));
            let all = self.watches.values().all(|watch| watch.mirror.is_synced());
            if self.watches.is_empty() || !all {
                return;
            }
            self.is_synced = true;
            self.changes = std::mem::take(&mut self.first).into_values().collect();
            self.forget_kept();
            tracing::info!(objects = self.known().count(), "cluster is known");
        }
        if *self.reports.current() != self.reported {
            self.reports.publish(self.reported.clone());
        }
        while !self.changes.is_empty() {
            let before = self.store.revision();
            if self.store.apply(std::mem::take(&mut self.changes)) != before {
                self.keep_soon();
            }
            // What was held may have been all that kept a watch.
            self.follow_names();
        }
    }

    /// Puts aside what depends on what was not seen yet; before everything was seen once, all waits.
    fn hold(&mut self) {
        if self.is_synced {
            let (changes, watches) = (std::mem::take(&mut self.changes), &self.watches);
            self.changes = self.held.release(changes, |namespace| is_seen(watches, namespace));
        }
    }

    fn known(&self) -> impl Iterator<Item = &Key> {
        self.watches.values().flat_map(|watch| watch.mirror.known())
    }

    fn begin(&mut self, sight: Sight) {
        self.begun += 1;
        let (number, sender, servers) = (self.begun, self.sender.clone(), &self.servers);
        let task = match sight.kind {
            Kind::Service => {
                let watched = watched::<Service>(servers, &sight.scope);
                let object = |object| Object::Service(Box::new(object));
                tasks::spawn_owned("watch", tell(watched, object, (sight.clone(), number), sender))
            }
            Kind::EndpointSlice => {
                let watched = watched::<EndpointSlice>(servers, &sight.scope);
                let object = |object| Object::EndpointSlice(Box::new(object));
                tasks::spawn_owned("watch", tell(watched, object, (sight.clone(), number), sender))
            }
            Kind::ApiService | Kind::Endpoints => {
                let watched = servers.watched(Api::<APIService>::all);
                let object = |object| Object::ApiService(Box::new(object));
                tasks::spawn_owned("watch", tell(watched, object, (sight.clone(), number), sender))
            }
        };
        self.watches.insert(sight, Watch { number, mirror: Mirror::default(), _task: task });
    }

    /// Lets go of a watch that is not needed any more, and of its trouble.
    fn end(&mut self, sight: &Sight) -> Option<Watch> {
        self.recovered(sight);
        self.watches.remove(sight)
    }

    fn trouble(&mut self, sight: Sight, trouble: Trouble) {
        // All watches fail together when the server goes away: said once.
        if !self.troubles.values().any(|text| *text == trouble.text) {
            tracing::warn!(
                kind = sight.kind.as_str(),
                error = trouble.text,
                "core api server cannot be watched, what was seen last stays in force"
            );
        }
        self.troubles.insert(sight, trouble.text);
        if !self.is_synced {
            self.use_kept();
        }
    }

    fn recovered(&mut self, sight: &Sight) {
        if self.troubles.remove(sight).is_some() && self.troubles.is_empty() {
            tracing::info!("core api server is watched again");
        }
    }

    /// Routes by what an earlier run kept, until the cluster says what is.
    fn use_kept(&mut self) {
        let objects = std::mem::take(&mut self.keeping.objects);
        if objects.is_empty() {
            return;
        }
        tracing::warn!(objects = objects.len(), "cluster not known yet, what was kept is in force");
        self.in_force = objects.iter().map(Object::key).collect();
        self.store.apply(objects.into_iter().map(Change::Put).collect());
    }

    /// What was kept and is not there any more goes with the first that is seen.
    fn forget_kept(&mut self) {
        self.keeping.objects = Vec::new();
        let mut gone = std::mem::take(&mut self.in_force);
        for key in self.known() {
            gone.remove(key);
        }
        self.changes.extend(gone.into_iter().map(Change::Delete));
        self.keep_soon();
    }

    fn keep_soon(&mut self) {
        if self.keeping.kept.is_some() {
            self.keeping.due.get_or_insert_with(|| Instant::now() + SAVE_INTERVAL);
        }
    }

    fn save(&mut self) {
        let Some(kept) = self.keeping.kept.clone() else { return };
        if self.keeping.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            self.keeping.due = Some(Instant::now() + SAVE_INTERVAL);
            return;
        }
        self.keeping.due = None;
        // Before everything was seen once, only what was kept before is whole, be it in force or not.
        let mut objects = self.keeping.objects.clone();
        let keys: Vec<&Key> =
            if self.is_synced { self.known().collect() } else { self.in_force.iter().collect() };
        let stored: Vec<_> = keys.into_iter().filter_map(|key| self.store.get(key)).collect();
        let trust = self.keeping.trust.load();
        self.keeping.saving = Some(tokio::task::spawn_blocking(move || {
            objects.extend(stored.iter().map(|stored| stored.object.clone()));
            let state = State { objects, trust: trust.data.clone() };
            if let Err(error) = kept.save(state) {
                tracing::error!(%error, "cluster state cannot be kept");
            }
        }));
    }
}

/// True when all Services and EndpointSlices of the namespace are known.
fn is_seen(watches: &BTreeMap<Sight, Watch>, namespace: &str) -> bool {
    [Kind::Service, Kind::EndpointSlice].into_iter().all(|kind| {
        let scopes = [Scope::Cluster, Scope::Namespace(namespace.into())];
        scopes.into_iter().any(|scope| {
            watches.get(&Sight { kind, scope }).is_some_and(|watch| watch.mirror.is_synced())
        })
    })
}

fn watched<K>(servers: &Servers, scope: &Scope) -> Watched<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    servers.watched(|client| match scope {
        Scope::Cluster => Api::all(client),
        Scope::Namespace(namespace) => Api::namespaced(client, namespace),
    })
}

/// Tells the follower what a watch shows.
async fn tell<K>(
    watched: Watched<K>,
    object: fn(K) -> Object,
    (sight, number): (Sight, u64),
    sender: mpsc::Sender<Told>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = std::pin::pin!(feed(watched, ""));
    while let Some(event) = events.next().await {
        let step = event.map(|event| {
            event.map(|event| match event {
                Event::Init => Step::Begin,
                Event::InitApply(it) => Step::Listed(object(it)),
                Event::InitDone => Step::Complete,
                Event::Apply(it) => Step::Put(object(it)),
                Event::Delete(it) => Step::Gone(object(it).key()),
            })
        });
        let told = Told { sight: sight.clone(), number, step };
        if sender.send(told).await.is_err() {
            return;
        }
    }
}
