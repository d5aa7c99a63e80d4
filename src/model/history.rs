//! Versioned objects and what happened to them lately: what lists and watches are answered from.
//!
//! One revision counts for all objects; every change takes the next one and becomes an event. Only
//! the latest events are kept, so a watch that starts too far back is told that its past is gone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// It is there now.
    Added,
    /// It is different now.
    Modified,
    /// It is gone.
    Deleted,
}

impl EventType {
    /// The word in watch streams.
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change.
#[derive(Debug)]
pub struct Event<K, T> {
    /// The revision that the change made.
    pub revision: u64,
    /// What happened.
    pub kind: EventType,
    /// Whose change it is.
    pub key: K,
    /// The object after the change; of a deleted one its last state with the deletion's revision.
    pub object: Arc<T>,
    /// The object before the change.
    pub previous: Option<Arc<T>>,
}

impl<K: Clone, T> Clone for Event<K, T> {
    fn clone(&self) -> Self {
        Self {
            revision: self.revision,
            kind: self.kind,
            key: self.key.clone(),
            object: Arc::clone(&self.object),
            previous: self.previous.clone(),
        }
    }
}

/// Why the events after a revision cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// They have been forgotten; the oldest revision that can still be asked for is given.
    Expired(u64),
    /// The revision is yet to come; the present one is given.
    TooNew(u64),
}

/// The objects of one kind, or of several under one revision, with their latest changes.
#[derive(Clone, Debug)]
pub struct History<K, T> {
    revision: u64,
    objects: BTreeMap<K, Arc<T>>,
    events: VecDeque<Event<K, T>>,
    events_max: usize,
    /// The revision after which every event is known.
    known_since: u64,
}

impl<K: Ord + Clone, T> History<K, T> {
    /// Empty, at revision 1, keeping at most `events_max` events.
    pub fn new(events_max: usize) -> Self {
        Self {
            revision: 1,
            objects: BTreeMap::new(),
            events: VecDeque::new(),
            events_max,
            known_since: 1,
        }
    }

    /// Goes on from what was kept elsewhere: these objects as they were at `revision`, with no
    /// event before it.
    pub fn restored(
        revision: u64,
        objects: impl IntoIterator<Item = (K, T)>,
        events_max: usize,
    ) -> Self {
        let objects = objects.into_iter().map(|(key, object)| (key, Arc::new(object))).collect();
        Self { revision, objects, events: VecDeque::new(), events_max, known_since: revision }
    }

    /// Skips to `revision` without an event, for changes whose revisions somebody else counts: the
    /// next change takes the one after it. Never goes back.
    pub fn advance_to(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// The revision of the last change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// One object.
    pub fn get(&self, key: &K) -> Option<&Arc<T>> {
        self.objects.get(key)
    }

    /// The objects from `first` on, in order of key.
    pub fn list_from(&self, first: &K) -> impl Iterator<Item = (&K, &Arc<T>)> {
        self.objects.range(first..)
    }

    /// Every object in order of key.
    pub fn list(&self) -> impl Iterator<Item = (&K, &Arc<T>)> {
        self.objects.iter()
    }

    /// Adds or replaces an object; `make` gets the revision to write into it.
    pub fn put(&mut self, key: K, make: impl FnOnce(u64) -> T) -> Arc<T> {
        let object = Arc::new(make(self.revision + 1));
        let previous = self.objects.insert(key.clone(), Arc::clone(&object));
        let kind = if previous.is_some() { EventType::Modified } else { EventType::Added };
        self.append(kind, key, Arc::clone(&object), previous);
        object
    }

    /// Removes an object; `make` gets its last state and the revision to write into it. Returns
    /// what `make` made, `None` when there is no such object.
    pub fn delete(&mut self, key: &K, make: impl FnOnce(&T, u64) -> T) -> Option<Arc<T>> {
        let previous = self.objects.remove(key)?;
        let object = Arc::new(make(&previous, self.revision + 1));
        self.append(EventType::Deleted, key.clone(), Arc::clone(&object), Some(previous));
        Some(object)
    }

    /// The events after `revision`, oldest first.
    pub fn since(&self, revision: u64) -> Result<impl Iterator<Item = &Event<K, T>>, Unknown> {
        if revision > self.revision {
            return Err(Unknown::TooNew(self.revision));
        }
        if revision < self.known_since {
            return Err(Unknown::Expired(self.known_since));
        }
        let start = self.events.partition_point(|event| event.revision <= revision);
        Ok(self.events.iter().skip(start))
    }

    fn append(&mut self, kind: EventType, key: K, object: Arc<T>, previous: Option<Arc<T>>) {
        self.revision += 1;
        self.events.push_back(Event { revision: self.revision, kind, key, object, previous });
        while self.events.len() > self.events_max
            && let Some(forgotten) = self.events.pop_front()
        {
            self.known_since = forgotten.revision;
        }
    }
}

/// An event as a watcher with a selector sees it: objects that begin or cease to match come and go.
pub fn seen_by<K, T>(
    event: &Event<K, T>,
    matches: impl Fn(&T) -> bool,
) -> Option<(EventType, Arc<T>)> {
    let before = event.previous.as_deref().is_some_and(&matches);
    let after = event.kind != EventType::Deleted && matches(&event.object);
    let kind = match (before, after) {
        (false, false) => return None,
        (false, true) => EventType::Added,
        (true, true) => EventType::Modified,
        (true, false) => EventType::Deleted,
    };
    Some((kind, Arc::clone(&event.object)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Numbers = History<&'static str, (u8, u64)>;

    fn words(history: &Numbers, revision: u64) -> Result<Vec<String>, Unknown> {
        let events = history.since(revision)?;
        Ok(events.map(|e| format!("{} {}@{}", e.kind.word(), e.key, e.revision)).collect())
    }

    #[test]
    fn every_change_takes_a_revision_and_is_told() {
        let mut history = Numbers::new(10);
        history.put("a", |revision| (1, revision));
        history.put("a", |revision| (2, revision));
        assert!(history.delete(&"b", |old, revision| (old.0, revision)).is_none());
        let gone = history.delete(&"a", |old, revision| (old.0, revision)).unwrap();
        assert_eq!(*gone, (2, 4));
        assert_eq!(words(&history, 1).unwrap(), ["ADDED a@2", "MODIFIED a@3", "DELETED a@4"]);
        assert_eq!(words(&history, 3).unwrap(), ["DELETED a@4"]);
        assert_eq!(words(&history, 5), Err(Unknown::TooNew(4)));
    }

    #[test]
    fn old_events_are_forgotten_and_that_is_told_too() {
        let mut history = Numbers::new(2);
        for value in 0..4 {
            history.put("a", |revision| (value, revision));
        }
        assert_eq!(words(&history, 2), Err(Unknown::Expired(3)));
        assert_eq!(words(&history, 3).unwrap(), ["MODIFIED a@4", "MODIFIED a@5"]);
        assert_eq!(words(&history, 5).unwrap(), [""; 0]);
    }

    #[test]
    fn a_restored_history_knows_nothing_before_its_revision() {
        let mut history = Numbers::restored(7, [("a", (1, 5))], 10);
        assert_eq!(words(&history, 6), Err(Unknown::Expired(7)));
        history.advance_to(20);
        history.advance_to(9);
        history.put("a", |revision| (2, revision));
        assert_eq!(words(&history, 7).unwrap(), ["MODIFIED a@21"]);
        assert_eq!(words(&history, 20).unwrap(), ["MODIFIED a@21"]);
    }

    #[test]
    fn objects_come_and_go_as_they_begin_and_cease_to_match() {
        let mut history = Numbers::new(10);
        for value in [1, 2, 4, 5] {
            history.put("a", |revision| (value, revision));
        }
        history.delete(&"a", |old, revision| (old.0, revision));
        let seen: Vec<_> = history
            .since(1)
            .unwrap()
            .filter_map(|event| seen_by(event, |object| object.0.is_multiple_of(2)))
            .map(|(kind, object)| (kind, *object))
            .collect();
        assert_eq!(
            seen,
            [
                (EventType::Added, (2, 3)),
                (EventType::Modified, (4, 4)),
                (EventType::Deleted, (5, 5))
            ]
        );
    }

    fn apply(history: &mut History<u8, (u8, u64)>, key: u8, value: Option<u8>) {
        match value {
            Some(value) => drop(history.put(key, |revision| (value, revision))),
            None => drop(history.delete(&key, |old, revision| (old.0, revision))),
        }
    }

    fn snapshot(history: &History<u8, (u8, u64)>) -> BTreeMap<u8, (u8, u64)> {
        history.list().map(|(&key, object)| (key, **object)).collect()
    }

    proptest! {
        #[test]
        fn a_list_with_the_events_after_it_is_the_list_now(
            before in prop::collection::vec((0u8..6, prop::option::of(0u8..4)), 0..40),
            after in prop::collection::vec((0u8..6, prop::option::of(0u8..4)), 0..40),
            even_only in any::<bool>(),
        ) {
            let matches = |object: &(u8, u64)| !even_only || object.0.is_multiple_of(2);
            let mut history = History::new(64);
            for &(key, value) in &before {
                apply(&mut history, key, value);
            }
            let (mut replayed, revision) = (snapshot(&history), history.revision());
            replayed.retain(|_, object| matches(object));
            for &(key, value) in &after {
                apply(&mut history, key, value);
            }
            for event in history.since(revision).unwrap() {
                match seen_by(event, matches) {
                    Some((EventType::Deleted, _)) => {
                        prop_assert!(replayed.remove(&event.key).is_some());
                    }
                    Some((EventType::Added, object)) => {
                        prop_assert!(replayed.insert(event.key, *object).is_none());
                    }
                    Some((EventType::Modified, object)) => {
                        prop_assert!(replayed.insert(event.key, *object).is_some());
                    }
                    None => {}
                }
            }
            let mut now = snapshot(&history);
            now.retain(|_, object| matches(object));
            prop_assert_eq!(replayed, now);
        }
    }
}
