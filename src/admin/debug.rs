//! `/debug/portico`: the routing table, backends with their connections, clients and certificates.
//!
//! Facts only: never a key, a token or the private detail of a fault. However many APIServices
//! there are, the page is bounded: `?limit=` of them in order of name, or those that `?apiservice=`
//! names, and how many were left out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::certificates::describe_all;
use crate::model::api_service;
use crate::model::availability::Reported;
use crate::model::endpoints::Targets;
use crate::model::query::Query;
use crate::model::rejection::Rejection;
use crate::model::routing_table::{Entry, OWN_GROUP, Remote, Route, RoutingTable};
use crate::runtime::lifecycle::{Drain, Readiness};
use crate::runtime::snapshot::View;
use crate::tls::cluster_trust::{Belief, ClusterTrust};
use crate::tls::expiry::Watched;
use crate::upstream::{
    Backend, BackendState, ConnectionState, EndpointState, Pools, SlotState, ThreadState, Upstream,
};

type Table = RoutingTable<Upstream>;
type ApiService = Arc<Entry<Upstream>>;

/// APIServices that are shown unless `?limit=` says how many.
const LIMIT_DEFAULT: usize = 500;
/// APIServices that are shown at most, whatever `?limit=` says.
const LIMIT_MAX: usize = 5_000;
/// Endpoints of one backend that are shown.
const ENDPOINTS_SHOWN_MAX: usize = 100;

/// Connections by data-plane thread; set once the threads are there.
pub type ConnectionsByThread = Arc<OnceLock<Vec<(String, Arc<AtomicUsize>)>>>;

/// Where the page's facts are.
#[derive(Clone, Debug)]
pub struct Inside {
    /// When the program started.
    pub started: (Instant, Timestamp),
    /// The pools of all data-plane threads.
    pub pools: Pools,
    /// The client connections that each data-plane thread holds.
    pub clients: ConnectionsByThread,
    /// The certificates.
    pub certificates: View<Vec<Watched>>,
    /// What is seen of the cluster that portico is in front of.
    pub cluster: Option<(View<ClusterTrust>, View<Reported>)>,
}

/// Which APIServices are asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// Empty for all.
    names: Vec<String>,
    limit: usize,
}

impl Selection {
    pub(super) fn parse(query: &Query) -> Result<Self, Rejection> {
        let limit = match query.get("limit") {
            None => LIMIT_DEFAULT,
            Some(text) => match text.parse::<usize>() {
                Ok(limit) if (1..=LIMIT_MAX).contains(&limit) => limit,
                _ => {
                    let text = format!("limit must be a number from 1 to {LIMIT_MAX}");
                    return Err(Rejection::BadRequest(text));
                }
            },
        };
        Ok(Self { names: query.all("apiservice").map(str::to_owned).collect(), limit })
    }

    /// Refuses names that no APIService has.
    pub(super) fn check(&self, table: &Table) -> Result<(), Rejection> {
        let unknown = self.names.iter().find(|name| {
            let found = name.split_once('.').and_then(|(version, group)| {
                let entries = &table.group(group)?.entries;
                entries.iter().find(|entry| &*entry.version == version)
            });
            found.is_none()
        });
        match unknown {
            Some(name) => Err(Rejection::object_not_found(OWN_GROUP, "apiservices", name)),
            None => Ok(()),
        }
    }

    /// The APIServices in order of name, and how many were left out.
    fn apply(&self, table: &Table) -> (Vec<(String, ApiService)>, usize) {
        let named = |entry: &ApiService| {
            (api_service::name(&entry.group, &entry.version), Arc::clone(entry))
        };
        let mut found: Vec<(String, ApiService)> = if self.names.is_empty() {
            table.groups().flat_map(|group| &group.entries).map(named).collect()
        } else {
            let entry = |name: &String| {
                let (version, group) = name.split_once('.')?;
                let entries = &table.group(group)?.entries;
                entries.iter().find(|entry| &*entry.version == version).map(named)
            };
            self.names.iter().filter_map(entry).collect()
        };
        found.sort_by(|one, other| one.0.cmp(&other.0));
        found.dedup_by(|one, other| one.0 == other.0);
        let left_out = found.len().saturating_sub(self.limit);
        found.truncate(self.limit);
        (found, left_out)
    }
}

/// The page. Waits for the data-plane threads' answers, so not to be called on one of them.
pub(super) fn page(
    inside: &Inside,
    (readiness, drain): (&Readiness, &Drain),
    table: &Table,
    selection: &Selection,
    runtime: &Handle,
) -> Value {
    let (shown, left_out) = selection.apply(table);
    let backends = Backends::of(&shown);
    let threads = runtime.block_on(inside.pools.describe(&backends.endpoints()));
    let silent: Vec<&str> = threads
        .iter()
        .filter(|thread| thread.slots.is_none())
        .map(|thread| thread.thread.as_str())
        .collect();
    let cluster = inside.cluster.as_ref().map(|(trust, reported)| (trust.load(), reported.load()));
    let reported = cluster.as_ref().map(|(_, reported)| &**reported);
    let items: Vec<Value> =
        shown.iter().map(|(name, entry)| api_service(name, entry, &backends, reported)).collect();
    let certificates: Vec<Value> = inside.certificates.load().iter().map(describe_all).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "startTime": inside.started.1.to_string(),
        "uptimeSeconds": inside.started.0.elapsed().as_secs(),
        "awaited": readiness.awaited(),
        "shuttingDown": drain.is_draining(),
        "apiServices": { "items": items, "leftOut": left_out },
        "backends": backends.describe(&threads),
        "threadsWithoutAnswer": silent,
        "clients": clients(inside, drain),
        "certificates": certificates,
        "cluster": cluster.map(|(trust, _)| describe_trust(&trust)),
    })
}

/// The backends of the APIServices that are shown, each once, in order of their first APIService.
struct Backends {
    states: Vec<BackendState>,
    /// Where each backend is in `states`, by its address in memory.
    places: HashMap<*const Backend, usize>,
}

impl Backends {
    fn of(shown: &[(String, ApiService)]) -> Self {
        let mut backends = Self { states: Vec::new(), places: HashMap::new() };
        for (_, entry) in shown {
            let Route::Remote(remote) = &*entry.route else { continue };
            let backend = &remote.backend.backend;
            backends.places.entry(Arc::as_ptr(backend)).or_insert_with(|| {
                backends.states.push(backend.describe());
                backends.states.len() - 1
            });
        }
        backends
    }

    fn place(&self, remote: &Remote<Upstream>) -> Option<usize> {
        self.places.get(&Arc::as_ptr(&remote.backend.backend)).copied()
    }

    fn endpoints(&self) -> Vec<u64> {
        let shown =
            self.states.iter().flat_map(|state| state.endpoints.iter().take(ENDPOINTS_SHOWN_MAX));
        shown.map(|endpoint| endpoint.id).collect()
    }

    fn describe(&self, threads: &[ThreadState]) -> Vec<Value> {
        let mut slots: HashMap<u64, Vec<Value>> = HashMap::new();
        for thread in threads {
            for state in thread.slots.iter().flatten() {
                slots.entry(state.endpoint).or_default().push(slot(&thread.thread, state));
            }
        }
        let states = self.states.iter().enumerate();
        states.map(|(at, state)| backend(at, state, &slots)).collect()
    }
}

/// Whom the cluster's servers believe.
fn describe_trust(trust: &ClusterTrust) -> Value {
    let (believes, reason) = match &trust.believes_portico {
        Belief::Unknown => (None, None),
        Belief::Believed => (Some(true), None),
        Belief::Refused(reason) => (Some(false), Some(reason)),
    };
    json!({
        "known": trust.known,
        "clientAuthority": trust.client.is_some(),
        "frontProxyAuthority": trust.request_header.is_some(),
        "frontProxyNames": trust.front_proxies.allowed_names,
        "believesPortico": believes,
        "reason": reason,
    })
}

fn api_service(
    name: &str,
    entry: &Entry<Upstream>,
    backends: &Backends,
    reported: Option<&Reported>,
) -> Value {
    let mut value = json!({
        "name": name,
        "group": entry.group,
        "version": entry.version,
        "groupPriorityMinimum": entry.group_priority,
        "versionPriority": entry.version_priority,
        "route": "Local",
    });
    if let (Route::Remote(remote), Value::Object(map)) = (&*entry.route, &mut value) {
        let fault = remote.fault.as_ref().map(|fault| fault.hop.word());
        map.insert("route".to_owned(), "Remote".into());
        map.insert("service".to_owned(), remote.service.to_string().into());
        map.insert("backend".to_owned(), backends.place(remote).into());
        map.insert("available".to_owned(), fault.is_none().into());
        map.insert("fault".to_owned(), fault.into());
        let requests = remote.backend.metrics.requests_in_flight();
        map.insert("requestsInFlight".to_owned(), requests.into());
    }
    if let (Some(reported), Value::Object(map)) = (reported, &mut value) {
        // What kube-apiserver says, beside portico's own verdict.
        let said = reported.get(name).map(|condition| {
            json!({
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
            })
        });
        map.insert("reported".to_owned(), said.into());
    }
    value
}

fn backend(at: usize, state: &BackendState, slots: &HashMap<u64, Vec<Value>>) -> Value {
    let shown = state.endpoints.iter().take(ENDPOINTS_SHOWN_MAX);
    let endpoints: Vec<Value> = shown
        .map(|endpoint| {
            describe_endpoint(endpoint, slots.get(&endpoint.id).map_or(&[], Vec::as_slice))
        })
        .collect();
    let external_name = match &state.targets {
        Targets::Name { host, port } => Some(format!("{host}:{port}")),
        Targets::Addresses(_) | Targets::Hosts(_) => None,
    };
    json!({
        "backend": at,
        "service": state.service.to_string(),
        "externalName": external_name,
        "trust": state.trust,
        "requestsWaiting": state.waiting,
        "endpoints": endpoints,
        "endpointsLeftOut": state.endpoints.len().saturating_sub(ENDPOINTS_SHOWN_MAX),
    })
}

fn describe_endpoint(endpoint: &EndpointState, pools: &[Value]) -> Value {
    json!({
        "address": endpoint.address.to_string(),
        "requestsInFlight": endpoint.in_flight,
        "connections": endpoint.connections,
        "standing": endpoint.standing,
        "death": endpoint.death,
        "pools": pools,
    })
}

fn slot(thread: &str, state: &SlotState) -> Value {
    let connections: Vec<Value> = state.connections.iter().map(connection).collect();
    json!({
        "thread": thread,
        "class": state.class.word(),
        "dialing": state.dialing,
        "connections": connections,
        "connectionsLeftOut": state.left_out,
    })
}

fn connection(state: &ConnectionState) -> Value {
    json!({
        "protocol": state.protocol,
        "streams": state.streams,
        "streamsMax": state.streams_max,
        "idleSeconds": state.idle.map(|idle| idle.as_secs()),
    })
}

fn clients(inside: &Inside, drain: &Drain) -> Value {
    let threads = inside.clients.get().into_iter().flatten().map(
        |(thread, held)| json!({ "thread": thread, "connections": held.load(Ordering::Relaxed) }),
    );
    json!({ "connections": drain.connections(), "threads": threads.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(query: &str, expected: Option<(&[&str], usize)>) {
        let got = Selection::parse(&Query::parse(Some(query)));
        let expected = expected.map(|(names, limit)| Selection {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            limit,
        });
        assert_eq!(got.ok(), expected, "{query}");
    }

    #[test]
    fn a_selection_has_names_and_a_bounded_limit() {
        check("", Some((&[], LIMIT_DEFAULT)));
        check("apiservice=v1.g&apiservice=v1.", Some((&["v1.g", "v1."], LIMIT_DEFAULT)));
        check("limit=1", Some((&[], 1)));
        check("limit=5000", Some((&[], LIMIT_MAX)));
        for bad in ["0", "5001", "-1", "x", ""] {
            check(&format!("limit={bad}"), None);
        }
    }

    #[test]
    fn apiservices_are_shown_in_order_of_name_up_to_the_limit() {
        let local = |group: &str, version: &str| Entry {
            group: group.into(),
            version: version.into(),
            group_priority: 1,
            version_priority: 1,
            route: Arc::new(Route::Local),
        };
        let table = [("b", "v1"), ("a", "v1"), ("", "v1"), ("a", "v2")]
            .into_iter()
            .fold(Table::default(), |table, (group, version)| table.with(local(group, version)));
        let shown = |names: &[&str], limit| {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            let (shown, left_out) = Selection { names, limit }.apply(&table);
            (shown.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), left_out)
        };
        let all = ["v1.", "v1.a", "v1.b", "v2.a"].map(str::to_owned);
        assert_eq!(shown(&[], 9), (all.to_vec(), 0));
        assert_eq!(shown(&[], 3), (all[..3].to_vec(), 1));
        let some = (vec!["v1.".to_owned(), "v2.a".to_owned()], 0);
        assert_eq!(shown(&["v2.a", "v1.", "v3.a", "v2.a", "v2"], 9), some);
    }
}
