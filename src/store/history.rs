//! Objects and what happened to them last, under one revision.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::{Event, EventKind, Key, Kind, Object, Stored};

/// Why the events since a revision cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinceError {
    /// Some of them are forgotten.
    #[error("the history begins after the revision")]
    Expired,
    /// The revision has not been reached.
    #[error("the revision has not been reached yet")]
    TooNew,
}

/// The objects and their last changes.
#[derive(Debug)]
pub(super) struct History {
    objects: BTreeMap<Key, Arc<Stored>>,
    events: VecDeque<Event>,
    events_max: usize,
    revision: u64,
    /// Every event after this revision is still held.
    floor: u64,
}

impl History {
    /// No objects, at that revision.
    pub(super) fn new(revision: u64, events_max: usize) -> Self {
        Self {
            objects: BTreeMap::new(),
            events: VecDeque::new(),
            events_max,
            revision,
            floor: revision,
        }
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Stored>> {
        self.objects.get(key)
    }

    /// The objects of one kind, or all, in order of their keys.
    pub(super) fn list(&self, kind: Option<Kind>) -> Vec<Arc<Stored>> {
        let Some(kind) = kind else { return self.objects.values().cloned().collect() };
        let from_first = self.objects.range(Key::new(kind, "", "")..);
        from_first
            .take_while(|(key, _)| key.kind == kind)
            .map(|(_, stored)| stored)
            .cloned()
            .collect()
    }

    /// Stores the object at the next revision.
    pub(super) fn put(&mut self, key: Key, object: Object) {
        let stored = self.next(key.clone(), object);
        let kind = match self.objects.insert(key, Arc::clone(&stored)) {
            None => EventKind::Added,
            Some(_) => EventKind::Modified,
        };
        self.record(kind, stored);
    }

    /// Takes an object out at the next revision; nothing happens when there is none.
    pub(super) fn delete(&mut self, key: &Key) {
        let Some((key, last)) = self.objects.remove_entry(key) else { return };
        let last = self.next(key, last.object.clone());
        self.record(EventKind::Deleted, last);
    }

    fn next(&mut self, key: Key, mut object: Object) -> Arc<Stored> {
        self.revision += 1;
        object.metadata_mut().resource_version = Some(self.revision.to_string());
        Arc::new(Stored { key, revision: self.revision, object })
    }

    fn record(&mut self, kind: EventKind, object: Arc<Stored>) {
        self.events.push_back(Event { kind, object });
        if self.events.len() > self.events_max
            && let Some(forgotten) = self.events.pop_front()
        {
            self.floor = forgotten.object.revision;
        }
    }

    /// The events of one kind, or all, after `revision`.
    pub(super) fn since(
        &self,
        revision: u64,
        kind: Option<Kind>,
    ) -> Result<Vec<Event>, SinceError> {
        if revision > self.revision {
            return Err(SinceError::TooNew);
        }
        if revision < self.floor {
            return Err(SinceError::Expired);
        }
        let first = self.events.partition_point(|event| event.object.revision <= revision);
        let wanted = |event: &&Event| kind.is_none_or(|kind| event.object.key.kind == kind);
        Ok(self.events.iter().skip(first).filter(wanted).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Service;

    #[test]
    fn events_are_told_as_far_back_as_they_are_held() {
        let mut history = History::new(100, 2);
        for name in ["a", "b", "c"] {
            let object = Object::Service(Box::<Service>::default());
            history.put(Key::new(Kind::Service, "n", name), object);
        }
        assert_eq!(history.since(101, None).unwrap().len(), 2);
        assert_eq!(history.since(103, None).unwrap().len(), 0);
        assert_eq!(history.since(100, None).unwrap_err(), SinceError::Expired);
        assert_eq!(history.since(104, None).unwrap_err(), SinceError::TooNew);
    }
}
