//! Who serves a version that an APIService registers.

use std::sync::Arc;
use std::time::Duration;

use crate::model::api_service;
use crate::model::discovery::policy::{Policy, WhileDown};
use crate::model::fault::Fault;
use crate::model::routing_table::{Entry, OWN_GROUP, Route};
use crate::upstream::{Backend, Upstream};

/// Longer than any outage.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// While kube-apiserver is away, what it served stays known: nobody is to forget kinds that come back
/// as they were.
const OF_CORE: Policy = Policy { while_down: WhileDown::Hold(YEAR), legacy_from_backend: true };

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
        Some(Self { backend: Arc::clone(core), name, policy: OF_CORE, fault: None })
    }
}
