//! Who serves a version that an APIService registers.

use std::sync::Arc;

use crate::model::api_service;
use crate::model::discovery::policy::Policy;
use crate::model::fault::Fault;
use crate::model::routing_table::{Entry, OWN_GROUP, Route};
use crate::upstream::{Backend, Upstream};

/// The server of one version.
pub(super) struct Server {
    pub(super) backend: Arc<Backend>,
    /// The APIService's name.
    pub(super) name: Arc<str>,
    pub(super) policy: Policy,
    /// What the routing table says.
    pub(super) fault: Option<Fault>,
}

impl Server {
    /// The extension API server, or else `core`; none where nobody can be asked.
    pub(super) fn of(entry: &Entry<Upstream>, core: Option<&Arc<Backend>>) -> Option<Self> {
        if let Route::Remote(remote) = &*entry.route {
            return Some(Self {
                backend: Arc::clone(&remote.backend.backend),
                name: Arc::clone(&remote.name),
                policy: remote.discovery,
                fault: remote.fault.clone(),
            });
        }
        let core = core?;
        // `/api` is the core's own document, and the own group is in every other.
        if entry.group.is_empty() || *entry.group == *OWN_GROUP {
            return None;
        }
        let name = api_service::name(&entry.group, &entry.version).into();
        let policy = Policy::of_core();
        Some(Self { backend: Arc::clone(core), name, policy, fault: None })
    }
}
