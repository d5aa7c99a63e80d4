//! The objects of one toy: a short lock around a [`History`], and a bell for its watchers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use super::catalogue::Resource;
use super::refusal::Refusal;
use crate::model::history::{EventType, History, Unknown, seen_by};
use crate::model::selector::Selectors;

/// How many changes watchers can lag behind before they must list again.
const EVENTS_MAX: usize = 10_000;

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) plural: &'static str,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Which objects: those of a resource, in one namespace or in all, that are selected.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) plural: &'static str,
    /// Empty for all.
    pub(crate) namespace: String,
    pub(crate) selectors: Selectors,
}

impl Selection {
    fn covers(&self, key: &Key) -> bool {
        key.plural == self.plural && (self.namespace.is_empty() || self.namespace == key.namespace)
    }
}

/// One change as a watcher sees it.
pub(crate) type Seen = (EventType, Arc<Value>);

/// What a change makes of an object.
#[derive(Debug)]
pub(crate) enum Change {
    /// Nothing: it is as it was.
    Keep,
    /// This.
    Replace(Value),
}

/// The objects of one toy.
#[derive(Debug)]
pub(crate) struct Objects {
    history: Mutex<History<Key, Value>>,
    changed: watch::Sender<()>,
}

impl Objects {
    /// No objects yet.
    pub(crate) fn new() -> Self {
        Self { history: Mutex::new(History::new(EVENTS_MAX)), changed: watch::Sender::new(()) }
    }

    /// Rings with every change.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The revision of the last change.
    pub(crate) fn revision(&self) -> u64 {
        self.lock().revision()
    }

    /// One object.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.lock().get(key).map(Arc::clone)
    }

    /// The selected objects, and the revision at which they were so.
    pub(crate) fn list(&self, selection: &Selection) -> (u64, Vec<Arc<Value>>) {
        let history = self.lock();
        let objects = history
            .list()
            .filter(|(key, object)| selection.covers(key) && selection.selectors.matches(object))
            .map(|(_, object)| Arc::clone(object));
        (history.revision(), objects.collect())
    }

    /// What happened to the selected objects after `revision`, and the revision that this reaches.
    pub(crate) fn since(
        &self,
        revision: u64,
        selection: &Selection,
    ) -> Result<(u64, Vec<Seen>), Unknown> {
        let history = self.lock();
        let events = history.since(revision)?.filter(|event| selection.covers(&event.key));
        let seen = events
            .filter_map(|event| seen_by(event, |object| selection.selectors.matches(object)))
            .collect();
        Ok((history.revision(), seen))
    }

    /// Adds an object whose name must be free.
    pub(crate) fn create(
        &self,
        resource: &'static Resource,
        key: Key,
        object: Value,
    ) -> Result<Arc<Value>, Refusal> {
        let mut history = self.lock();
        if history.get(&key).is_some() {
            return Err(Refusal::AlreadyExists(resource, key.name));
        }
        let made = history.put(key, |revision| stamped(object, revision));
        self.ring(history);
        Ok(made)
    }

    /// Changes an object; `change` sees it as it is, and nobody comes in between.
    pub(crate) fn update(
        &self,
        resource: &Resource,
        key: &Key,
        change: impl FnOnce(&Value) -> Result<Change, Refusal>,
    ) -> Result<Arc<Value>, Refusal> {
        let mut history = self.lock();
        let old = history.get(key).map(Arc::clone);
        let old = old.ok_or_else(|| Refusal::not_found(resource, &key.name))?;
        match change(&old)? {
            Change::Keep => Ok(old),
            Change::Replace(new) => {
                let made = history.put(key.clone(), |revision| stamped(new, revision));
                self.ring(history);
                Ok(made)
            }
        }
    }

    /// Removes an object if `allowed` agrees, and returns its last state.
    pub(crate) fn delete(
        &self,
        resource: &Resource,
        key: &Key,
        allowed: impl FnOnce(&Value) -> Result<(), Refusal>,
    ) -> Result<Arc<Value>, Refusal> {
        let missing = || Refusal::not_found(resource, &key.name);
        let mut history = self.lock();
        allowed(history.get(key).ok_or_else(missing)?)?;
        let gone = history.delete(key, |old, revision| stamped(old.clone(), revision));
        self.ring(history);
        gone.ok_or_else(missing)
    }

    /// Wakes the watchers once the lock is free.
    fn ring(&self, history: MutexGuard<'_, History<Key, Value>>) {
        drop(history);
        self.changed.send_replace(());
    }

    fn lock(&self) -> MutexGuard<'_, History<Key, Value>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stamped(mut object: Value, revision: u64) -> Value {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
    }
    object
}
