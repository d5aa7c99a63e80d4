//! What is shown of each group-version, made into ready documents.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::model::discovery::aggregated::Freshness;
pub use crate::model::discovery::index::Source;
use crate::model::fault::Fault;

/// What is shown of one group-version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// `groupPriorityMinimum`; 0 where none is given.
    pub group_priority: i32,
    /// `versionPriority`; 0 where none is given.
    pub version_priority: i32,
    /// Whether it is in the APIGroupList and in its APIGroup.
    pub listed: bool,
    /// What the aggregated document says of it; none to leave it out.
    pub entry: Option<Entry>,
    /// Its APIResourceList in JSON; none while there is none, which is a 503.
    pub legacy: Option<Bytes>,
    /// Why there is no `legacy`, when that is known.
    pub fault: Option<Fault>,
}

/// One version in the aggregated document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whether its resources are as they are now.
    pub freshness: Freshness,
    /// The JSON array of its resources (`aggregated::Resource`), in Go's order and compact.
    pub resources: Bytes,
}

/// All that is shown; one owner sets it and publishes.
#[derive(Debug)]
pub struct Assembly {
    shown: BTreeMap<(Arc<str>, Arc<str>, Source), Shown>,
    core_address: String,
}

/// An immutable snapshot of all documents.
#[derive(Debug, Default)]
pub struct Published {}

impl Assembly {
    /// Knows nothing but the own group; `core_address` is the `host:port` that `/api` names.
    pub fn new(core_address: &str) -> Self {
        Self { shown: BTreeMap::new(), core_address: core_address.to_owned() }
    }

    /// Adds or replaces what one source says of a group-version. The own group is not to be set.
    pub fn set(&mut self, source: Source, group: &Arc<str>, version: &Arc<str>, shown: Shown) {
        self.shown.insert((Arc::clone(group), Arc::clone(version), source), shown);
    }

    /// Takes back what one source says of a group-version; unknown ones are no error.
    pub fn remove(&mut self, source: Source, group: &str, version: &str) {
        self.shown.remove(&(group.into(), version.into(), source));
    }

    /// The list of resources that a source has set.
    pub fn resources(&self, source: Source, group: &str, version: &str) -> Option<Bytes> {
        let key = (group.into(), version.into(), source);
        Some(self.shown.get(&key)?.entry.as_ref()?.resources.clone())
    }

    /// Makes what has changed since the last time.
    pub fn publish(&mut self) -> Published {
        tracing::debug!(core_address = %self.core_address, "documents published");
        Published {}
    }
}
