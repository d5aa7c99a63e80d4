//! The standalone store: typed objects under one global revision, with a bounded history for
//! watches.
//!
//! One short lock, never held over an await. Writers say what shall be; what they write becomes an
//! event only when it changes something. The status of `APIServices` belongs to the store's owner
//! and is written with [`Store::set_statuses`] alone.

pub mod rest;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceStatus};
use tokio::sync::watch;

use crate::model::availability::{Condition, set_condition};
use crate::model::history::{self, Unknown};

/// What happened to an object.
pub type Event = history::Event<Key, Stored>;
type History = history::History<Key, Stored>;

/// How many events watches can go back.
const HISTORY_EVENTS_MAX: usize = 1_024;

/// The kinds of objects that are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `apiregistration.k8s.io/v1` APIService.
    ApiService,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Endpoints.
    Endpoints,
}

impl Kind {
    /// The kind's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ApiService => "APIService",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
        }
    }

    /// True for objects that live in a namespace.
    pub fn is_namespaced(self) -> bool {
        self != Self::ApiService
    }
}

/// What an object is found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The kind.
    pub kind: Kind,
    /// The namespace, empty for objects of the cluster.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl Key {
    /// The key of that object.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }

    /// The key of an APIService.
    pub fn api_service(name: &str) -> Self {
        Self::new(Kind::ApiService, "", name)
    }
}

/// An object of one of the kinds that are stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// An APIService.
    ApiService(Box<APIService>),
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
    /// A legacy Endpoints object.
    Endpoints(Box<Endpoints>),
}

impl Object {
    /// The object's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::ApiService(_) => Kind::ApiService,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Endpoints(_) => Kind::Endpoints,
        }
    }

    /// The object's metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::ApiService(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Endpoints(object) => &object.metadata,
        }
    }

    /// The object's metadata, to be changed.
    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::ApiService(object) => &mut object.metadata,
            Self::Service(object) => &mut object.metadata,
            Self::EndpointSlice(object) => &mut object.metadata,
            Self::Endpoints(object) => &mut object.metadata,
        }
    }

    /// What the object is found by.
    pub fn key(&self) -> Key {
        let metadata = self.metadata();
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        Key::new(self.kind(), namespace, metadata.name.as_deref().unwrap_or_default())
    }

    /// The APIService, when it is one.
    pub fn as_api_service(&self) -> Option<&APIService> {
        match self {
            Self::ApiService(object) => Some(object),
            Self::Service(_) | Self::EndpointSlice(_) | Self::Endpoints(_) => None,
        }
    }
}

/// An object as it is stored.
#[derive(Debug, PartialEq)]
pub struct Stored {
    /// What it is found by.
    pub key: Key,
    /// The revision of its last change, the same as in its metadata.
    pub revision: u64,
    /// The object with resourceVersion, uid and creationTimestamp.
    pub object: Object,
}

/// What shall be.
#[derive(Clone, Debug)]
pub enum Change {
    /// This object as it is here, but for what the store owns.
    Put(Object),
    /// No object of that key.
    Delete(Key),
}

impl Change {
    /// What the object is found by.
    pub fn key(&self) -> Key {
        match self {
            Self::Put(object) => object.key(),
            Self::Delete(key) => key.clone(),
        }
    }
}

/// The store; clones are handles of the same one.
#[derive(Clone, Debug)]
pub struct Store {
    history: Arc<Mutex<History>>,
    revision: Arc<watch::Sender<u64>>,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store. Its revisions begin with the time of day in milliseconds, so that those a
    /// client has kept from before a restart are told to be expired and never taken for new ones.
    pub fn new() -> Self {
        let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default().max(1);
        Self {
            history: Arc::new(Mutex::new(History::restored(now, [], HISTORY_EVENTS_MAX))),
            revision: Arc::new(watch::Sender::new(now)),
        }
    }

    /// Makes all changes at once, as far as others can see; the revision afterwards.
    pub fn apply(&self, changes: Vec<Change>) -> u64 {
        self.change(|history| {
            for change in changes {
                match change {
                    Change::Put(object) => put(history, object),
                    Change::Delete(key) => delete(history, &key),
                }
            }
        })
    }

    /// Writes the conditions `Available` of many APIServices at once; false when none of them changed anything.
    pub fn set_statuses(&self, conditions: &[(Arc<str>, Condition)]) -> bool {
        let mut changed = false;
        self.change(|history| {
            for (name, condition) in conditions {
                changed |= write_condition(history, name, condition);
            }
        });
        changed
    }

    /// The object of that key.
    pub fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.lock().get(key).cloned()
    }

    /// The objects of one kind (of all kinds: `None`) in order of their keys, and the revision.
    pub fn list(&self, kind: impl Into<Option<Kind>>) -> (Vec<Arc<Stored>>, u64) {
        let history = self.lock();
        let objects = match kind.into() {
            None => history.list().map(|(_, stored)| Arc::clone(stored)).collect(),
            Some(kind) => history
                .list_from(&Key::new(kind, "", ""))
                .take_while(|(key, _)| key.kind == kind)
                .map(|(_, stored)| Arc::clone(stored))
                .collect(),
        };
        (objects, history.revision())
    }

    /// What happened to one kind (to all kinds: `None`) after `revision`, and the revision now.
    pub fn since(
        &self,
        revision: u64,
        kind: impl Into<Option<Kind>>,
    ) -> Result<(Vec<Event>, u64), Unknown> {
        let history = self.lock();
        let kind = kind.into();
        let events = history.since(revision)?;
        let wanted = events.filter(|event| kind.is_none_or(|kind| event.key.kind == kind));
        Ok((wanted.cloned().collect(), history.revision()))
    }

    /// The revision now.
    pub fn revision(&self) -> u64 {
        self.lock().revision()
    }

    /// The revision as it changes; changes made at once are seen at once.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn change(&self, edit: impl FnOnce(&mut History)) -> u64 {
        let mut history = self.lock();
        edit(&mut history);
        let revision = history.revision();
        // Under the lock, so that subscribers never see an older revision after a newer one.
        self.revision.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
        revision
    }

    fn lock(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stores `object` with what is the store's to say, unless it is stored like that already.
fn put(history: &mut History, mut object: Object) {
    let key = object.key();
    let existing = history.get(&key).cloned();
    let existing = existing.as_ref().map(|stored| &stored.object);
    let metadata = object.metadata_mut();
    if let Some(old) = existing.map(Object::metadata) {
        metadata.uid.clone_from(&old.uid);
        metadata.creation_timestamp.clone_from(&old.creation_timestamp);
        metadata.resource_version.clone_from(&old.resource_version);
    } else {
        metadata.uid = Some(uuid::Uuid::new_v4().to_string());
        metadata.creation_timestamp = Some(Time(now()));
    }
    if let Object::ApiService(new) = &mut object {
        new.status = match existing.and_then(Object::as_api_service) {
            Some(old) => old.status.clone(),
            None => Some(first_status(new)),
        };
    }
    if existing != Some(&object) {
        write(history, key, object);
    }
}

fn write(history: &mut History, key: Key, object: Object) {
    history.put(key.clone(), |revision| stored(key, object, revision));
}

fn delete(history: &mut History, key: &Key) {
    history.delete(key, |last, revision| stored(key.clone(), last.object.clone(), revision));
}

fn stored(key: Key, mut object: Object, revision: u64) -> Stored {
    object.metadata_mut().resource_version = Some(revision.to_string());
    Stored { key, revision, object }
}

/// A local APIService is available from the first moment; others have no condition yet.
fn first_status(new: &APIService) -> APIServiceStatus {
    let is_local = new.spec.as_ref().is_none_or(|spec| spec.service.is_none());
    let mut status = APIServiceStatus::default();
    if is_local {
        set_condition(status.conditions.get_or_insert_default(), &Condition::local(), now());
    }
    status
}

/// False when the condition is written like that already, or nowhere to be written.
fn write_condition(history: &mut History, name: &str, condition: &Condition) -> bool {
    let key = Key::api_service(name);
    let Some(stored) = history.get(&key) else { return false };
    let Some(mut object) = stored.object.as_api_service().cloned() else { return false };
    let status = object.status.get_or_insert_default();
    let changed = set_condition(status.conditions.get_or_insert_default(), condition, now());
    if changed {
        write(history, key, Object::ApiService(Box::new(object)));
    }
    changed
}

/// The time in whole seconds, which is all that objects hold.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::availability::Condition;
    use serde_json::json;

    fn api_service(name: &str, priority: i32) -> Object {
        let spec = json!({"groupPriorityMinimum": priority, "versionPriority": 1,
                          "service": {"namespace": "n", "name": "s", "port": 443}});
        let object = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                            "metadata": {"name": name}, "spec": spec});
        Object::ApiService(serde_json::from_value(object).unwrap())
    }

    fn service(name: &str) -> Object {
        let object = json!({"apiVersion": "v1", "kind": "Service",
                            "metadata": {"namespace": "n", "name": name}});
        Object::Service(serde_json::from_value(object).unwrap())
    }

    fn events(store: &Store, revision: u64) -> Vec<String> {
        let (events, _) = store.since(revision, None).unwrap();
        let text = |event: &Event| format!("{:?} {}", event.kind, event.object.key.name);
        events.iter().map(text).collect()
    }

    #[test]
    fn only_what_changes_something_is_an_event() {
        let store = Store::new();
        let start = store.revision();
        let one = store.apply(vec![Change::Put(api_service("a", 1)), Change::Put(service("s"))]);
        assert_eq!(events(&store, start), ["Added a", "Added s"]);
        store.apply(vec![Change::Put(api_service("a", 1)), Change::Put(service("s"))]);
        store.apply(vec![Change::Delete(Key::api_service("unknown"))]);
        assert_eq!(store.revision(), one);
        store.apply(vec![Change::Put(api_service("a", 2))]);
        store.apply(vec![Change::Delete(Key::api_service("a"))]);
        assert_eq!(events(&store, one), ["Modified a", "Deleted a"]);
        let (services, _) = store.since(start, Kind::Service).unwrap();
        assert_eq!(services.len(), 1);
    }

    #[test]
    fn uid_and_creation_are_kept_over_changes_and_the_version_is_the_revision() {
        let store = Store::new();
        let metadata = |store: &Store| {
            let stored = store.get(&Key::api_service("a")).unwrap();
            let metadata = stored.object.metadata().clone();
            assert_eq!(metadata.resource_version, Some(stored.revision.to_string()));
            metadata
        };
        store.apply(vec![Change::Put(api_service("a", 1))]);
        let first = metadata(&store);
        store.apply(vec![Change::Put(api_service("a", 2))]);
        let second = metadata(&store);
        assert_eq!(
            (&first.uid, &first.creation_timestamp),
            (&second.uid, &second.creation_timestamp)
        );
        assert_ne!(first.resource_version, second.resource_version);
        store.apply(vec![Change::Delete(Key::api_service("a"))]);
        store.apply(vec![Change::Put(api_service("a", 2))]);
        assert_ne!(metadata(&store).uid, first.uid);
    }

    #[test]
    fn a_deletion_holds_the_last_state_with_its_own_version() {
        let store = Store::new();
        store.apply(vec![Change::Put(api_service("a", 7))]);
        let before = store.revision();
        let revision = store.apply(vec![Change::Delete(Key::api_service("a"))]);
        let (events, now) = store.since(before, Kind::ApiService).unwrap();
        let last = events[0].object.object.as_api_service().unwrap();
        assert_eq!(last.spec.as_ref().unwrap().group_priority_minimum, 7);
        assert_eq!(last.metadata.resource_version, Some(revision.to_string()));
        assert_eq!(now, revision);
    }

    fn passed(store: &Store, name: &str) -> bool {
        store.set_statuses(&[(name.into(), Condition::passed())])
    }

    #[test]
    fn status_is_written_by_its_owner_only() {
        let store = Store::new();
        store.apply(vec![Change::Put(api_service("a", 1))]);
        assert!(passed(&store, "a"));
        assert!(!passed(&store, "a"));
        assert!(!passed(&store, "unknown"));
        store.apply(vec![Change::Put(api_service("a", 2))]);
        let stored = store.get(&Key::api_service("a")).unwrap();
        let status = stored.object.as_api_service().unwrap().status.clone().unwrap();
        assert_eq!(status.conditions.unwrap()[0].reason.as_deref(), Some("Passed"));
    }

    #[tokio::test]
    async fn changes_made_at_once_are_seen_at_once() {
        let store = Store::new();
        let mut revisions = store.subscribe();
        let revision = store.apply(vec![Change::Put(service("a")), Change::Put(service("b"))]);
        revisions.changed().await.unwrap();
        assert_eq!(*revisions.borrow_and_update(), revision);
        assert_eq!(store.list(Kind::Service).0.len(), 2);
        assert!(store.list(Kind::ApiService).0.is_empty());
    }
}
