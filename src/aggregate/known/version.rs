//! What is known of one version that an APIService registers.

use std::sync::Arc;

use bytes::Bytes;

use super::server::Server;
use crate::aggregate::fetch::{GroupVersion, Learnt, legacy_of_resources};
use crate::aggregate::kept::Record;
use crate::model::discovery::policy::{self, Policy, Showing, WhileDown};
use crate::model::fault::Fault;
use crate::upstream::Backend;

/// How often what does not change is written to disk, for its age, in milliseconds.
const KEEP_INTERVAL_MS: u64 = 600_000;

/// One version that an APIService registers.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) name: Arc<str>,
    pub(super) priority_of_group: i32,
    pub(super) priority: i32,
    pub(super) policy: Policy,
    /// The list of resources while it is not shown; else the assembly has it.
    pub(super) parked: Option<Bytes>,
    pub(super) legacy: Option<Legacy>,
    /// True when the server is to be asked for its own document.
    pub(super) wants_own: bool,
    /// When its list was known to be right, in Unix milliseconds; none when it never was.
    pub(super) fetched: Option<u64>,
    /// When what is to be kept of it changed, and of which state that is kept already.
    pub(super) learnt_at: Option<u64>,
    pub(super) kept_at: Option<u64>,
    pub(super) failing: bool,
    pub(super) fault: Option<Fault>,
    /// What the routing table says; when that changes, the server is worth asking.
    pub(super) table_fault: Option<Fault>,
    pub(super) held: Option<u64>,
    pub(super) showing: Option<Showing>,
    /// To be shown anew.
    pub(super) changed: bool,
}

/// A version's own document.
#[derive(Debug)]
pub(super) struct Legacy {
    pub(super) json: Bytes,
    /// True when it is what the server itself says, and not made of the aggregated one.
    pub(super) is_own: bool,
}

impl Version {
    /// A version that is new here, with what was kept of it if it is from the same server.
    pub(super) fn new(wanted: &GroupVersion, kept: Option<Record>, server: &Server) -> Self {
        let spec = server.backend.spec();
        let kept = kept.filter(|record| record.is_of(spec));
        let (parked, legacy, fetched) = match kept {
            Some(record) => (Some(record.resources), record.legacy, Some(record.fetched)),
            None => (None, None, None),
        };
        let own = legacy.map(|document| Bytes::from([&document[..], b"\n"].concat()));
        let is_own = own.is_some();
        let converted = || parked.as_ref().and_then(|list| legacy_of_resources(wanted, list));
        let legacy = own.or_else(converted).map(|json| Legacy { json, is_own });
        Self {
            name: Arc::clone(&server.name),
            priority_of_group: 0,
            priority: 0,
            policy: Policy::default(),
            parked,
            legacy,
            wants_own: false,
            fetched,
            learnt_at: None,
            kept_at: None,
            failing: true,
            fault: None,
            table_fault: None,
            held: None,
            showing: None,
            changed: false,
        }
    }

    pub(super) fn known(&self) -> policy::Known {
        policy::Known { fetched: self.fetched, failing: self.failing }
    }

    pub(super) fn confirm(&mut self, unix_ms: u64) {
        self.fetched = Some(unix_ms);
        self.fault = None;
        self.changed |= std::mem::take(&mut self.failing);
        let interval = match self.policy.while_down {
            // After a restart it is held by the age that was kept.
            WhileDown::Hold(at_most) => {
                u64::try_from(at_most.as_millis() / 10).unwrap_or(u64::MAX).min(KEEP_INTERVAL_MS)
            }
            WhileDown::Stale | WhileDown::Omit => KEEP_INTERVAL_MS,
        };
        let kept_long_ago = self.learnt_at.is_none_or(|at| unix_ms - at.min(unix_ms) > interval);
        if kept_long_ago {
            (self.learnt_at, self.changed) = (Some(unix_ms), true);
        }
    }

    pub(super) fn fail(&mut self, fault: &Fault) {
        let new = self.fault.as_ref().is_none_or(|before| before.hop != fault.hop);
        self.changed |= !std::mem::replace(&mut self.failing, true) || new;
        self.fault = Some(fault.clone());
    }

    /// Takes in what its server says; a fault when that cannot be listed in the aggregated document.
    pub(super) fn learn(
        &mut self,
        learnt: Learnt,
        from_legacy: bool,
        shown: impl FnOnce() -> Option<Bytes>,
        unix_ms: u64,
    ) -> Option<Fault> {
        let Learnt { resources, legacy } = learnt;
        let resources = match resources {
            Ok(resources) => resources,
            Err(fault) => {
                self.learn_own(legacy, unix_ms);
                self.fail(&fault);
                return Some(fault);
            }
        };
        let before = self.parked.clone().or_else(shown);
        let same = self.fetched.is_some() && before.as_ref() == Some(&resources);
        self.confirm(unix_ms);
        if !same {
            self.parked = Some(resources);
            (self.learnt_at, self.changed) = (Some(unix_ms), true);
        }
        if from_legacy {
            self.learn_own(legacy, unix_ms);
        } else if !same {
            self.legacy = Some(Legacy { json: legacy, is_own: false });
        }
        self.wants_own = !self.legacy.as_ref().is_some_and(|legacy| legacy.is_own);
        None
    }

    /// Takes in what the server itself says; one that is as before stays, so that it is not held twice.
    pub(super) fn learn_own(&mut self, json: Bytes, unix_ms: u64) {
        match &mut self.legacy {
            Some(legacy) if legacy.json == json => legacy.is_own = true,
            _ => {
                self.legacy = Some(Legacy { json, is_own: true });
                (self.learnt_at, self.changed) = (Some(unix_ms), true);
            }
        }
    }

    pub(super) fn record(&self, backend: &Backend, resources: Option<&Bytes>) -> Option<Record> {
        let (fetched, resources) = (self.fetched?, resources?.clone());
        let own = self.legacy.as_ref().filter(|legacy| legacy.is_own).map(|legacy| &legacy.json);
        // Kept without the newline that it is served with.
        let own = own.map(|document| document.slice_ref(document.trim_ascii_end()));
        Some(Record::new(backend.spec(), fetched, resources, own))
    }
}
