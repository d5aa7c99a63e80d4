//! Which backend is asked when, and what is known of its APIServices. The effect without tasks: the
//! time comes in, rounds to be asked come out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use http::uri::PathAndQuery;
use tokio::time::Instant;

use super::Report;
use super::round::Found;
use crate::model::api_service;
use crate::model::discovery::schedule::Schedule;
use crate::model::probing::{Probed, Wanted};
use crate::model::routing_table::{Entry, Route, RoutingTable};
use crate::runtime::tasks::AbortOnDrop;
use crate::runtime::telemetry::RouteMetrics;
use crate::upstream::{Backend, Upstream};

type Table = RoutingTable<Upstream>;

/// The least time between the begins of two rounds, whatever happens.
const ROUND_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// A backend's address in memory, which is its own while it is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key(usize);

/// A round to be asked.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) key: Key,
    pub(super) backend: Arc<Backend>,
    /// What it is asked for, and what is known of it.
    pub(super) versions: Vec<(Arc<str>, PathAndQuery, Wanted)>,
    /// When each endpoint was heard of at the end of the last round, by its id.
    pub(super) heard: HashMap<u64, u64, FixedState>,
    /// How many rounds there were of it.
    pub(super) turn: usize,
    /// Tells a round that was given up from the one that is waited for.
    number: u64,
    /// True when one of its APIServices failed the last time, and nothing has happened since.
    pub(super) failed_before: bool,
}

/// All backends, and when each is asked next.
#[derive(Debug)]
pub(super) struct Plan {
    schedule: Schedule,
    first_after: Duration,
    table: Arc<Table>,
    servers: HashMap<Key, Server, FixedState>,
    due: BTreeSet<(Instant, Key)>,
    /// The backend of each APIService.
    places: HashMap<Arc<str>, Key, FixedState>,
    rounds: u64,
}

#[derive(Debug)]
struct Server {
    backend: Arc<Backend>,
    versions: BTreeMap<Arc<str>, Version>,
    heard: HashMap<u64, u64, FixedState>,
    due: Option<Instant>,
    /// When the last round was due, and its number.
    begun: Option<(Instant, u64)>,
    /// The round that is being asked.
    running: Option<AbortOnDrop>,
    /// True when something has happened to it.
    wanted: bool,
    /// To be asked again right after it.
    again: bool,
    failures: u32,
    turn: usize,
}

#[derive(Debug)]
struct Version {
    path: PathAndQuery,
    metrics: Arc<RouteMetrics>,
    /// Callers' requests that were answered well before the last round.
    answered_well: u64,
    probed: Probed,
}

impl Plan {
    pub(super) fn new(schedule: Schedule, first_after: Duration) -> Self {
        Self {
            schedule,
            first_after,
            table: Arc::default(),
            servers: HashMap::default(),
            due: BTreeSet::new(),
            places: HashMap::default(),
            rounds: 0,
        }
    }

    /// Takes in what is registered now.
    pub(super) fn reconcile(&mut self, table: &Arc<Table>, now: Instant) {
        let before = std::mem::replace(&mut self.table, Arc::clone(table));
        for group in table.groups_changed_since(&before) {
            let entries = |table: &Table| {
                table.group(&group).map(|group| group.entries.clone()).unwrap_or_default()
            };
            let (old, new) = (entries(&before), entries(table));
            for entry in &old {
                if let Some(name) = name_of(entry)
                    && !new.iter().any(|other| name_of(other) == Some(name))
                {
                    self.remove(name);
                }
            }
            for entry in &new {
                if !old.iter().any(|other| Arc::ptr_eq(other, entry)) {
                    self.put(entry, now);
                }
            }
        }
    }

    fn put(&mut self, entry: &Entry<Upstream>, now: Instant) {
        let Route::Remote(remote) = &*entry.route else { return };
        let upstream = &remote.backend;
        let key = Key(Arc::as_ptr(&upstream.backend).addr());
        if self.places.get(&remote.name) == Some(&key) {
            return;
        }
        self.remove(&remote.name);
        // Validation lets no name in that makes no path.
        let Ok(path) = api_service::path(&entry.group, &entry.version).parse() else { return };
        let version = Version {
            path,
            answered_well: upstream.metrics.answered_well(),
            metrics: Arc::clone(&upstream.metrics),
            probed: Probed::Awaited,
        };
        let server = self.servers.entry(key).or_insert_with(|| Server {
            backend: Arc::clone(&upstream.backend),
            versions: BTreeMap::new(),
            heard: HashMap::default(),
            due: None,
            begun: None,
            running: None,
            wanted: false,
            again: false,
            failures: 0,
            turn: 0,
        });
        server.versions.insert(Arc::clone(&remote.name), version);
        self.places.insert(Arc::clone(&remote.name), key);
        let pause = self.first_after.mul_f64(1.0 + fastrand::f64());
        self.ask_at(key, now + pause.max(self.schedule.settle));
    }

    fn remove(&mut self, name: &Arc<str>) {
        let Some(key) = self.places.remove(name) else { return };
        let Some(server) = self.servers.get_mut(&key) else { return };
        server.versions.remove(name);
        if server.versions.is_empty()
            && let Some(server) = self.servers.remove(&key)
            && let Some(due) = server.due
        {
            self.due.remove(&(due, key));
        }
    }

    /// Has every backend asked.
    pub(super) fn ask_all(&mut self, now: Instant) {
        let keys: Vec<Key> = self.servers.keys().copied().collect();
        for key in keys {
            self.ask_soon(key, now);
        }
    }

    /// Has those backends asked that want it.
    pub(super) fn wanted(&mut self, now: Instant) {
        // Those that were never asked are to be so soon.
        let wants = |server: &Server| server.backend.takes_probe() && server.turn > 0;
        let wanting = self.servers.iter().filter(|(_, server)| wants(server));
        let wanting: Vec<Key> = wanting.map(|(key, _)| *key).collect();
        for key in wanting {
            self.ask_soon(key, now);
        }
    }

    /// Has a backend asked when what changes has settled; what it is being asked may be out of date.
    fn ask_soon(&mut self, key: Key, now: Instant) {
        let Some(server) = self.servers.get_mut(&key) else { return };
        server.wanted = true;
        let at = server.rested(now) + self.schedule.settle;
        self.ask_at(key, at);
    }

    fn ask_at(&mut self, key: Key, at: Instant) {
        let Some(server) = self.servers.get_mut(&key) else { return };
        server.failures = 0;
        if server.running.is_some() {
            server.again = true;
        } else {
            let before = server.due;
            self.schedule(key, before.map_or(at, |before| before.min(at)));
        }
    }

    fn schedule(&mut self, key: Key, at: Instant) {
        let Some(server) = self.servers.get_mut(&key) else { return };
        if let Some(before) = server.due.replace(at) {
            self.due.remove(&(before, key));
        }
        self.due.insert((at, key));
    }

    /// The rounds whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Planned> {
        let mut rounds = Vec::new();
        while let Some(&(at, key)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            let Some(server) = self.servers.get_mut(&key) else { continue };
            self.rounds += 1;
            (server.due, server.begun) = (None, Some((now, self.rounds)));
            server.turn = server.turn.wrapping_add(1);
            let was_wanted = std::mem::take(&mut server.wanted);
            // What changed until now is in this round.
            server.backend.takes_probe();
            let failed_before =
                server.versions.values().any(|it| matches!(it.probed, Probed::Failed(_)));
            let versions = server.versions.iter_mut();
            let versions =
                versions.map(|(name, it)| (Arc::clone(name), it.path.clone(), it.wanted()));
            rounds.push(Planned {
                key,
                backend: Arc::clone(&server.backend),
                versions: versions.collect(),
                heard: server.heard.clone(),
                turn: server.turn,
                number: self.rounds,
                failed_before: failed_before && !was_wanted,
            });
        }
        rounds
    }

    /// A round is being asked.
    pub(super) fn begun(&mut self, key: Key, task: AbortOnDrop) {
        if let Some(server) = self.servers.get_mut(&key) {
            server.running = Some(task);
        }
    }

    /// A round is not asked, for requests do not go there.
    pub(super) fn pass_over(&mut self, planned: &Planned, now: Instant) -> Vec<Report> {
        let unasked = planned.versions.iter().map(|_| Some(Probed::Unasked)).collect();
        self.ended(planned, Found { probed: unasked, heard: HashMap::default() }, now)
    }

    /// Takes in what a round has found; what is known now of those that it was about.
    pub(super) fn ended(&mut self, planned: &Planned, found: Found, now: Instant) -> Vec<Report> {
        let key = planned.key;
        let Some(server) = self.servers.get_mut(&key) else { return Vec::new() };
        if server.begun.is_none_or(|(_, number)| number != planned.number) {
            return Vec::new();
        }
        server.running = None;
        server.heard = found.heard;
        let mut reports = Vec::new();
        for ((name, ..), probed) in planned.versions.iter().zip(found.probed) {
            let Some(version) = server.versions.get_mut(name) else { continue };
            if let Some(probed) = probed {
                version.probed = probed;
            }
            let (backend, probed) = (Arc::clone(&server.backend), version.probed.clone());
            reports.push(Report { name: Arc::clone(name), backend, probed });
        }
        let failed = server.versions.values().any(|it| matches!(it.probed, Probed::Failed(_)));
        server.failures = if failed { server.failures.saturating_add(1) } else { 0 };
        let again = std::mem::take(&mut server.again);
        let mut pause = self.schedule.pause(server.failures, fastrand::f64());
        if server.turn == 1 && !failed {
            // Those that came together are not asked together ever after.
            pause = pause.mul_f64(fastrand::f64());
        }
        let soon = server.rested(now) + self.schedule.settle;
        self.schedule(key, if again { soon } else { now + pause });
        reports
    }

    /// When the next round is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }
}

impl Server {
    /// Now, but not right after the last round began.
    fn rested(&self, now: Instant) -> Instant {
        self.begun.map_or(now, |(begun, _)| now.max(begun + ROUND_INTERVAL_MIN))
    }
}

impl Version {
    /// What is known when a round begins.
    fn wanted(&mut self) -> Wanted {
        let well = self.metrics.answered_well();
        let before = std::mem::replace(&mut self.answered_well, well);
        // The callers of one that failed are not sent there: what still ends was begun before.
        let failed = matches!(self.probed, Probed::Failed(_));
        Wanted { is_open: self.probed != Probed::Passed, is_evident: well > before && !failed }
    }
}

/// The APIService that a backend serves.
fn name_of(entry: &Entry<Upstream>) -> Option<&Arc<str>> {
    match &*entry.route {
        Route::Remote(remote) => Some(&remote.name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::discovery::policy::Policy;
    use crate::model::fault::{Hop, ServicePort};
    use crate::model::probing::Failure;
    use crate::model::routing_table::Remote;
    use crate::runtime::tasks::spawn_owned;
    use crate::runtime::telemetry::Metrics;
    use crate::upstream::{self, BackendSpec, Upstreams};

    const SCHEDULE: Schedule = Schedule {
        settle: Duration::ZERO,
        refresh: Duration::from_secs(30),
        backoff: Duration::from_millis(500),
        backoff_max: Duration::from_secs(10),
    };

    struct World {
        plan: Plan,
        upstreams: Upstreams,
        begun: Instant,
    }

    impl World {
        fn new() -> Self {
            let metrics = Arc::new(Metrics::new().unwrap());
            let upstreams = Upstreams::new(upstream::Config::default(), metrics);
            let plan = Plan::new(SCHEDULE, Duration::ZERO);
            Self { plan, upstreams, begun: Instant::now() }
        }

        /// These versions of one service; their counters.
        fn register(&mut self, versions: &[&str]) -> Vec<Arc<RouteMetrics>> {
            let service = ServicePort { namespace: "n".into(), name: "s".into(), port: 443 };
            let spec = BackendSpec {
                service: service.clone(),
                ca_bundle: Arc::default(),
                insecure_skip_tls_verify: true,
            };
            let (mut table, mut counters) = (Table::default(), Vec::new());
            for version in versions {
                let name: Arc<str> = format!("{version}.g").into();
                let upstream = self.upstreams.upstream(&name, "g", version, spec.clone());
                counters.push(Arc::clone(&upstream.metrics));
                let remote = Remote {
                    name,
                    service: service.clone(),
                    backend: upstream,
                    fault: None,
                    discovery: Policy::default(),
                };
                table = table.with(Entry {
                    group: "g".into(),
                    version: (*version).into(),
                    group_priority: 1,
                    version_priority: 1,
                    route: Arc::new(Route::Remote(remote)),
                });
            }
            self.plan.reconcile(&Arc::new(table), self.begun);
            counters
        }

        fn at(&self, ms: u64) -> Instant {
            self.begun + Duration::from_millis(ms)
        }

        /// The one round that is due.
        fn round(&mut self, ms: u64) -> Planned {
            let now = self.at(ms);
            let mut due = self.plan.due(now);
            assert_eq!(due.len(), 1);
            due.pop().unwrap()
        }

        fn ends(&mut self, planned: &Planned, probed: &Probed, ms: u64) -> Vec<Report> {
            let probed = planned.versions.iter().map(|_| Some(probed.clone())).collect();
            let now = self.at(ms);
            self.plan.ended(planned, Found { probed, heard: HashMap::default() }, now)
        }
    }

    fn wanted(planned: &Planned) -> Vec<(bool, bool)> {
        planned.versions.iter().map(|(_, _, it)| (it.is_open, it.is_evident)).collect()
    }

    #[test]
    fn versions_of_one_backend_are_one_round_and_what_callers_get_counts() {
        let mut world = World::new();
        let counters = world.register(&["v1", "v2"]);
        let first = world.round(0);
        assert_eq!(wanted(&first), [(true, false), (true, false)]);
        assert_eq!(first.versions[1].1, "/apis/g/v2");
        let reports = world.ends(&first, &Probed::Passed, 1);
        assert_eq!(
            reports.iter().map(|report| &*report.name).collect::<Vec<_>>(),
            ["v1.g", "v2.g"]
        );
        counters[0].record("GET", 200, Some(0.1));
        counters[1].record("GET", 503, Some(0.1));
        let second = world.round(40_000);
        assert_eq!(wanted(&second), [(false, true), (false, false)]);
        // What counted once does not count again.
        world.ends(&second, &Probed::Passed, 40_001);
        assert_eq!(wanted(&world.round(80_000)), [(false, false), (false, false)]);
    }

    #[test]
    fn one_that_fails_is_asked_again_soon_and_less_and_less_often() {
        let mut world = World::new();
        world.register(&["v1"]);
        let failed = Probed::Failed(Failure::Fault(Hop::ConnectRefused.into()));
        let (mut ms, mut pauses) = (0, Vec::new());
        for _ in 0..7 {
            let planned = world.round(ms);
            world.ends(&planned, &failed, ms);
            let next = world.plan.next().unwrap();
            pauses.push((next - world.at(ms)).as_millis());
            ms += 60_000;
        }
        for (pause, expected) in pauses.iter().zip([500, 1000, 2000, 4000, 8000, 10_000, 10_000]) {
            assert!(pause.abs_diff(expected) <= expected / 10, "{pauses:?}");
        }
    }

    #[tokio::test]
    async fn what_changes_while_it_is_asked_is_asked_after_it() {
        let mut world = World::new();
        world.register(&["v1"]);
        let first = world.round(0);
        world.plan.begun(first.key, spawn_owned("probe", std::future::pending()));
        let now = world.at(10);
        world.plan.ask_all(now);
        assert!(world.plan.due(now).is_empty());
        world.ends(&first, &Probed::Passed, 20);
        assert_eq!(world.plan.next(), Some(world.at(100)));
        // What a round that was given up has found comes too late.
        let second = world.round(100);
        assert!(world.ends(&first, &Probed::Passed, 110).is_empty());
        assert_eq!(world.ends(&second, &Probed::Passed, 120).len(), 1);
        // One that is registered no more is asked no more.
        world.register(&[]);
        assert_eq!(world.plan.next(), None);
    }
}
