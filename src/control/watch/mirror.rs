//! What one watch has shown: each step of it becomes the changes that bring the store to the same.
//!
//! Plain data. A list that comes again changes only what differs, and what it no longer names goes.

use std::collections::HashSet;

use foldhash::fast::FixedState;

use crate::store::{Change, Key, Object};

type Keys = HashSet<Key, FixedState>;

/// One step of a watch.
#[derive(Debug)]
pub(super) enum Step {
    /// A list begins: of what is not in it, nothing is there.
    Begin,
    /// An object of the list.
    Listed(Object),
    /// The list is complete.
    Complete,
    /// An object came or changed.
    Put(Object),
    /// An object went.
    Gone(Key),
}

/// What one watch has shown.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    /// The objects that are there because of this watch.
    known: Keys,
    /// Those of a list that is not complete.
    listed: Option<Keys>,
    /// True from the first complete list on.
    is_synced: bool,
}

impl Mirror {
    /// True from the first complete list on.
    pub(super) fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// The objects that are there because of this watch.
    pub(super) fn known(&self) -> impl Iterator<Item = &Key> {
        self.known.iter()
    }

    /// Takes objects over from another watch that sees less; its next complete list decides.
    pub(super) fn take_over(&mut self, other: &Self) {
        self.known.extend(other.known.iter().cloned());
    }

    /// What the step changes.
    pub(super) fn step(&mut self, step: Step, changes: &mut Vec<Change>) {
        match step {
            Step::Begin => self.listed = Some(Keys::default()),
            Step::Listed(object) => {
                let key = object.key();
                self.known.insert(key.clone());
                self.listed.get_or_insert_default().insert(key);
                changes.push(Change::Put(object));
            }
            Step::Complete => {
                let listed = self.listed.take().unwrap_or_default();
                let gone = self.known.iter().filter(|key| !listed.contains(*key));
                changes.extend(gone.cloned().map(Change::Delete));
                self.known = listed;
                self.is_synced = true;
            }
            Step::Put(object) => {
                self.known.insert(object.key());
                changes.push(Change::Put(object));
            }
            Step::Gone(key) => {
                self.known.remove(&key);
                changes.push(Change::Delete(key));
            }
        }
    }

    /// What goes when the watch goes.
    pub(super) fn end(self) -> impl Iterator<Item = Change> {
        self.known.into_iter().map(Change::Delete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Kind, Store};

    fn service(name: &str) -> Object {
        let object = serde_json::json!({"metadata": {"namespace": "n", "name": name}});
        Object::Service(serde_json::from_value(object).unwrap())
    }

    fn key(name: &str) -> Key {
        Key::new(Kind::Service, "n", name)
    }

    fn step(mirror: &mut Mirror, store: &Store, steps: Vec<Step>) -> Vec<String> {
        let before = store.revision();
        let mut changes = Vec::new();
        for step in steps {
            mirror.step(step, &mut changes);
        }
        store.apply(changes);
        let (events, _) = store.since(before, None).unwrap();
        events.iter().map(|event| format!("{:?} {}", event.kind, event.object.key.name)).collect()
    }

    #[test]
    fn a_list_that_comes_again_changes_only_what_differs() {
        let (mut mirror, store) = (Mirror::default(), Store::new());
        let listed = |name| Step::Listed(service(name));
        let first = vec![Step::Begin, listed("a"), listed("b"), Step::Complete];
        assert!(!mirror.is_synced());
        assert_eq!(step(&mut mirror, &store, first), ["Added a", "Added b"]);
        assert!(mirror.is_synced());
        assert_eq!(step(&mut mirror, &store, vec![Step::Put(service("c"))]), ["Added c"]);
        let same = vec![Step::Begin, listed("c"), listed("a"), listed("b"), Step::Complete];
        assert!(step(&mut mirror, &store, same).is_empty());
        let less = vec![Step::Begin, listed("a"), listed("d"), Step::Complete];
        let mut events = step(&mut mirror, &store, less);
        events.sort();
        assert_eq!(events, ["Added d", "Deleted b", "Deleted c"]);
        assert_eq!(step(&mut mirror, &store, vec![Step::Gone(key("a"))]), ["Deleted a"]);
    }

    #[test]
    fn a_list_that_was_cut_takes_nothing_away() {
        let (mut mirror, store) = (Mirror::default(), Store::new());
        step(&mut mirror, &store, vec![Step::Put(service("a")), Step::Put(service("b"))]);
        let cut = vec![Step::Begin, Step::Listed(service("a"))];
        assert!(step(&mut mirror, &store, cut).is_empty());
        let again = vec![Step::Begin, Step::Listed(service("b")), Step::Complete];
        assert_eq!(step(&mut mirror, &store, again), ["Deleted a"]);
    }

    #[test]
    fn what_is_taken_over_goes_with_the_list_that_does_not_name_it() {
        let (mut less, store) = (Mirror::default(), Store::new());
        step(&mut less, &store, vec![Step::Put(service("kept")), Step::Put(service("gone"))]);
        let mut more = Mirror::default();
        more.take_over(&less);
        let list = vec![Step::Begin, Step::Listed(service("kept")), Step::Complete];
        assert_eq!(step(&mut more, &store, list), ["Deleted gone"]);
        store.apply(more.end().collect());
        assert!(store.list(None).0.is_empty());
    }
}
