//! Which source's account of a group-version is shown, and where: an ordered index in which a change
//! costs its own group and the logarithm of the others.
//!
//! Rules are upstream's (`endpoints/discovery/aggregated`, `calculateAPIGroupsLocked`, and
//! `kube-aggregator/pkg/apiserver/handler_apis.go`). What comes out depends only on what is in it, never
//! on the order in which it came.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::model::order::{AggregatedPlace, ListedPlace, compare_in_group};

/// `groupPriorityMinimum` of a group-version that has none.
pub const GROUP_PRIORITY_DEFAULT: i32 = 1000;
/// `versionPriority` of a group-version that has none.
pub const VERSION_PRIORITY_DEFAULT: i32 = 15;

/// Who says that a group-version is there; of several the first one is believed (upstream's 0, 100 and
/// 200 of `endpoints/discovery/aggregated`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// An extension API server.
    Remote,
    /// What is served here.
    Builtin,
    /// A custom resource definition.
    Crd,
}

/// What a group-version's place depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Standing {
    group_priority: i32,
    version_priority: i32,
    /// Whether it is in the APIGroupList.
    pub listed: bool,
    /// Whether it is in the aggregated document.
    pub aggregated: bool,
}

impl Standing {
    /// With the defaults for a priority of 0, which is none.
    pub fn new(group_priority: i32, version_priority: i32, listed: bool, aggregated: bool) -> Self {
        let or = |priority, default| if priority == 0 { default } else { priority };
        Self {
            group_priority: or(group_priority, GROUP_PRIORITY_DEFAULT),
            version_priority: or(version_priority, VERSION_PRIORITY_DEFAULT),
            listed,
            aggregated,
        }
    }
}

/// One source's account of a group-version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account<V> {
    source: Source,
    /// What its place depends on.
    pub standing: Standing,
    /// What is to be shown.
    pub value: V,
}

/// A version of a group.
#[derive(Clone, Debug)]
pub struct Version<V> {
    /// Its name.
    pub name: Arc<str>,
    /// The account that is believed.
    pub winner: Account<V>,
    /// The others, the next to be believed first.
    hidden: Vec<Account<V>>,
}

/// A group.
#[derive(Clone, Debug)]
pub struct Group<V> {
    /// Its versions, the preferred one first; some may be neither listed nor aggregated.
    pub versions: Vec<Version<V>>,
    places: Places,
}

impl<V> Default for Group<V> {
    fn default() -> Self {
        Self { versions: Vec::new(), places: Places::default() }
    }
}

/// Where a group is in the two lists; nowhere when nothing of it is in there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// In the aggregated document.
    pub aggregated: Option<AggregatedPlace>,
    /// In the APIGroupList.
    pub listed: Option<ListedPlace>,
}

/// What can be seen of a change: where its group was and where it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where it was.
    pub before: Places,
    /// Where it is.
    pub after: Places,
}

/// All group-versions of all sources. The core, whose group is empty, has no place in the lists.
#[derive(Debug)]
pub struct Index<V> {
    groups: HashMap<Arc<str>, Group<V>, FixedState>,
    aggregated: BTreeSet<AggregatedPlace>,
    listed: BTreeSet<ListedPlace>,
}

impl<V> Default for Index<V> {
    fn default() -> Self {
        Self { groups: HashMap::default(), aggregated: BTreeSet::new(), listed: BTreeSet::new() }
    }
}

impl<V: PartialEq> Index<V> {
    /// Adds or replaces a source's account; `None` when nothing of it can be seen.
    pub fn set(
        &mut self,
        source: Source,
        (group, version): (&Arc<str>, &Arc<str>),
        standing: Standing,
        value: V,
    ) -> Option<Change> {
        let account = Account { source, standing, value };
        self.change(group, |group| group.set(version, account))
    }

    /// Takes a source's account out; `None` when nothing of it could be seen.
    pub fn remove(&mut self, source: Source, group: &str, version: &str) -> Option<Change> {
        let (name, _) = self.groups.get_key_value(group)?;
        let name = Arc::clone(name);
        self.change(&name, |group| group.remove(source, version))
    }

    fn change(
        &mut self,
        name: &Arc<str>,
        edit: impl FnOnce(&mut Group<V>) -> bool,
    ) -> Option<Change> {
        let group = self.groups.entry(Arc::clone(name)).or_default();
        if !edit(group) {
            return None;
        }
        group.versions.sort_by(|left, right| compare_in_group(left.rank(), right.rank()));
        let after = if name.is_empty() { Places::default() } else { group.find_places(name) };
        let before = std::mem::replace(&mut group.places, after.clone());
        if group.versions.is_empty() {
            self.groups.remove(name);
        }
        replace(&mut self.aggregated, before.aggregated.as_ref(), after.aggregated.as_ref());
        replace(&mut self.listed, before.listed.as_ref(), after.listed.as_ref());
        Some(Change { before, after })
    }
}

fn replace<P: Ord + Clone>(places: &mut BTreeSet<P>, before: Option<&P>, after: Option<&P>) {
    if before != after {
        if let Some(before) = before {
            places.remove(before);
        }
        places.extend(after.cloned());
    }
}

impl<V> Index<V> {
    /// The group of that name.
    pub fn group(&self, name: &str) -> Option<&Group<V>> {
        self.groups.get(name)
    }

    /// What one source says of a group-version.
    pub fn account(&self, source: Source, group: &str, version: &str) -> Option<&Account<V>> {
        let known = self.group(group)?.versions.iter().find(|known| &*known.name == version)?;
        let mut accounts = std::iter::once(&known.winner).chain(&known.hidden);
        accounts.find(|account| account.source == source)
    }

    /// The same to put values in that show the same; places stay as they are.
    pub fn group_mut(&mut self, name: &str) -> Option<&mut Group<V>> {
        self.groups.get_mut(name)
    }

    /// The groups of the aggregated document in its order.
    pub fn aggregated(&self) -> &BTreeSet<AggregatedPlace> {
        &self.aggregated
    }

    /// The groups of the APIGroupList in its order.
    pub fn listed(&self) -> &BTreeSet<ListedPlace> {
        &self.listed
    }
}

impl<V: PartialEq> Group<V> {
    /// True when what is believed has changed.
    fn set(&mut self, version: &Arc<str>, account: Account<V>) -> bool {
        let Some(known) = self.versions.iter_mut().find(|known| known.name == *version) else {
            let name = Arc::clone(version);
            self.versions.push(Version { name, winner: account, hidden: Vec::new() });
            return true;
        };
        if known.winner.source == account.source {
            let changed = known.winner != account;
            known.winner = account;
            return changed;
        }
        known.hidden.retain(|hidden| hidden.source != account.source);
        let wins = account.source < known.winner.source;
        let hidden = if wins { std::mem::replace(&mut known.winner, account) } else { account };
        known.hidden.push(hidden);
        known.hidden.sort_by_key(|hidden| hidden.source);
        wins
    }

    /// True when what is believed has changed.
    fn remove(&mut self, source: Source, version: &str) -> bool {
        let Some(at) = self.versions.iter().position(|known| &*known.name == version) else {
            return false;
        };
        let Some(known) = self.versions.get_mut(at) else { return false };
        if known.winner.source != source {
            known.hidden.retain(|hidden| hidden.source != source);
            return false;
        }
        if known.hidden.is_empty() {
            self.versions.remove(at);
        } else {
            known.winner = known.hidden.remove(0);
        }
        true
    }
}

impl<V> Group<V> {
    fn find_places(&self, name: &Arc<str>) -> Places {
        let standings = || self.versions.iter().map(|version| (version, version.winner.standing));
        let aggregated = standings()
            .filter(|(_, standing)| standing.aggregated)
            .map(|(_, standing)| AggregatedPlace::new(standing.group_priority, name))
            .min();
        let listed = standings()
            .filter(|(_, standing)| standing.listed)
            .map(|(version, standing)| {
                ListedPlace::new(standing.group_priority, name, &version.name)
            })
            .min();
        Places { aggregated, listed }
    }
}

impl<V> Version<V> {
    fn rank(&self) -> (i32, &str) {
        (self.winner.standing.version_priority, &self.name)
    }
}

#[cfg(test)]
mod tests;
