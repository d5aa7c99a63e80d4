//! Looks whether extension API servers are available: by what callers are answered, and by asking
//! each endpoint where that tells nothing.
//!
//! `plan::Plan` decides who is asked when, `round` asks, and `model::probing` judges; here are the
//! tasks and the clock. What is found goes to the control loop.

mod plan;
mod round;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until};

use self::plan::Plan;
use self::round::Asking;
use crate::model::discovery::schedule::Schedule;
use crate::model::probing::Probed;
use crate::model::routing_table::RoutingTable;
use crate::runtime::snapshot::View;
use crate::runtime::tasks;
use crate::runtime::telemetry::Metrics;
use crate::upstream::{Attention, Backend, Pool, Upstream};

/// Backends that are asked at a time.
const ASKED_MAX: usize = 64;
/// Backends that failed the last time and are asked at a time: however many hang, the others' turn
/// comes.
const FAILING_ASKED_MAX: usize = 32;
/// Rounds whose end waits for the loop.
const ENDED_MAX: usize = 256;
/// Reports that wait for the control loop.
pub const REPORTS_MAX: usize = 256;
/// How often it is looked which way requests go, in front of kube-apiserver.
const WAY_INTERVAL: Duration = Duration::from_millis(500);

/// When backends are asked, and how long they may take.
#[derive(Clone, Debug)]
pub struct Config {
    /// When.
    pub schedule: Schedule,
    /// How long a new APIService waits at least for its first question, and at most twice as long: it
    /// is asked for its discovery first, and the connection is there then.
    pub first_after: Duration,
    /// How long one endpoint may take to answer (`status/remote`).
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let schedule = Schedule {
            refresh: Duration::from_secs(30),
            backoff_max: Duration::from_secs(10),
            ..Schedule::default()
        };
        Self { schedule, first_after: Duration::from_millis(250), timeout: Duration::from_secs(5) }
    }
}

/// What a backend said of one APIService.
#[derive(Debug)]
pub struct Report {
    /// The APIService.
    pub name: Arc<str>,
    /// Who was asked.
    pub backend: Arc<Backend>,
    /// What is known now.
    pub probed: Probed,
}

/// Tells whether requests go to extension API servers directly, none while that is not known; where they
/// do not, what these answer portico itself says nothing about callers.
pub type GoesDirect = Box<dyn Fn() -> Option<bool> + Send>;

/// The loop.
pub struct Prober {
    config: Config,
    table: View<RoutingTable<Upstream>>,
    attention: Arc<Attention>,
    /// None where there is no other way.
    goes_direct: Option<GoesDirect>,
    reports: mpsc::Sender<Vec<Report>>,
    metrics: Arc<Metrics>,
}

impl Prober {
    /// A loop that follows the table; `attention` tells which backends have changed.
    pub fn new(
        (config, table): (Config, View<RoutingTable<Upstream>>),
        attention: Arc<Attention>,
        goes_direct: Option<GoesDirect>,
        reports: mpsc::Sender<Vec<Report>>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let metrics = Arc::clone(metrics);
        Self { config, table, attention, goes_direct, reports, metrics }
    }

    /// Asks for ever, over `pool`, which must be of the calling thread.
    pub async fn run(mut self, pool: Arc<Pool>) {
        let (ended, mut rounds) = mpsc::channel(ENDED_MAX);
        let asking = Arc::new(Asking::new(pool, self.config.timeout, Arc::clone(&self.metrics)));
        let well = Arc::new(Semaphore::new(ASKED_MAX));
        let failing = Arc::new(Semaphore::new(FAILING_ASKED_MAX));
        let mut plan = Plan::new(self.config.schedule, self.config.first_after);
        plan.reconcile(&self.table.load(), Instant::now());
        let mut direct = self.is_direct();
        loop {
            let now = Instant::now();
            if std::mem::replace(&mut direct, self.is_direct()) != direct {
                plan.ask_all(now);
            }
            let mut unasked = Vec::new();
            // Nobody is asked, and nothing is said, until it is known which way requests go.
            for planned in if direct.is_some() { plan.due(now) } else { Vec::new() } {
                if direct == Some(false) {
                    unasked.extend(plan.pass_over(&planned, now));
                    continue;
                }
                let lane = Arc::clone(if planned.failed_before { &failing } else { &well });
                let (asking, ended) = (Arc::clone(&asking), ended.clone());
                let key = planned.key;
                let task = tasks::spawn_owned("probe", async move {
                    let Ok(_turn) = lane.acquire().await else { return };
                    let found = asking.ask(&planned).await;
                    // Nobody listens when the program ends.
                    ended.send((planned, found)).await.ok();
                });
                plan.begun(key, task);
            }
            if !unasked.is_empty() && self.reports.send(unasked).await.is_err() {
                return;
            }
            let next = plan.next().unwrap_or_else(|| now + self.config.schedule.refresh);
            tokio::select! {
                changed = self.table.changed() => {
                    if !changed {
                        return;
                    }
                    plan.reconcile(&self.table.load(), Instant::now());
                }
                () = self.attention.probes_wanted() => plan.wanted(Instant::now()),
                Some((planned, found)) = rounds.recv() => {
                    let reports = plan.ended(&planned, found, Instant::now());
                    // Which way requests go may have changed meanwhile.
                    if self.is_direct() == Some(true) && self.reports.send(reports).await.is_err() {
                        return;
                    }
                }
                () = sleep_until(next), if direct.is_some() => {}
                () = sleep(WAY_INTERVAL), if self.goes_direct.is_some() => {}
            }
        }
    }

    fn is_direct(&self) -> Option<bool> {
        self.goes_direct.as_ref().map_or(Some(true), |goes_direct| goes_direct())
    }
}
