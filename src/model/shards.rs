//! A map by name of which a copy shares all that has not changed: a change copies one shard.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use foldhash::fast::FixedState;

/// Number of shards.
const SHARDS: usize = 128;

type Shard<V> = HashMap<Arc<str>, V, FixedState>;

/// The map. Cloning copies `SHARDS` pointers.
#[derive(Debug)]
pub struct Shards<V> {
    shards: Vec<Arc<Shard<V>>>,
}

impl<V> Default for Shards<V> {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Arc::default()).collect() }
    }
}

impl<V> Clone for Shards<V> {
    fn clone(&self) -> Self {
        Self { shards: self.shards.clone() }
    }
}

impl<V> Shards<V> {
    /// The value of that name.
    pub fn get(&self, name: &str) -> Option<&V> {
        self.shards.get(shard_of(name))?.get(name)
    }

    /// Every value, in no particular order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|shard| shard.values())
    }
}

impl<V> Shards<V> {
    /// The names whose values are other than in `before`, where shards that both share need not be
    /// looked at.
    pub fn changed_since(&self, before: &Self, same: impl Fn(&V, &V) -> bool) -> Vec<Arc<str>> {
        let mut changed = Vec::new();
        let shards = self.shards.iter().zip(&before.shards);
        for (now, before) in shards.filter(|(now, before)| !Arc::ptr_eq(now, before)) {
            let stays =
                |name: &str, value: &V| before.get(name).is_some_and(|old| same(value, old));
            let new = now.iter().filter(|(name, value)| !stays(name, value));
            let gone = before.keys().filter(|name| !now.contains_key(*name));
            changed.extend(new.map(|(name, _)| name).chain(gone).cloned());
        }
        changed
    }
}

impl<V: Clone> Shards<V> {
    /// Sets the value of a name, or takes it out.
    pub fn set(&mut self, name: &Arc<str>, value: Option<V>) {
        let Some(slot) = self.shards.get_mut(shard_of(name)) else { return };
        // Copies the shard only while another map shares it.
        let shard = Arc::make_mut(slot);
        match value {
            Some(value) => shard.insert(Arc::clone(name), value),
            None => shard.remove(name),
        };
    }
}

fn shard_of(name: &str) -> usize {
    let hash = FixedState::default().hash_one(name);
    usize::try_from(hash >> 32).unwrap_or_default() % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_copies_no_other_shard_and_the_copy_stays_as_it_was() {
        let mut map = Shards::default();
        for name in 0..1000 {
            map.set(&name.to_string().into(), Some(name));
        }
        let before = map.clone();
        map.set(&"7".into(), None);
        map.set(&"7".into(), Some(8));
        assert_eq!((before.get("7"), map.get("7"), map.get("1000")), (Some(&7), Some(&8), None));
        assert_eq!((before.values().count(), map.values().count()), (1000, 1000));
        let pairs = before.shards.iter().zip(&map.shards);
        assert_eq!(pairs.filter(|(old, new)| !Arc::ptr_eq(old, new)).count(), 1);
    }
}
