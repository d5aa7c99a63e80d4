//! THE LOOP of discovery: asks extension API servers, and publishes what they serve.
//!
//! `known::Known` decides who is asked when and what is shown; here are the tasks and the clock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until};

use super::assembly::{Assembly, Published};
use super::fetch::{Answer, FetchedCore, Fetcher, GroupVersion, Learnt};
use super::keeper::Keeper;
use super::known::{BackendKey, Known, Now, Question};
use crate::model::discovery::schedule::Schedule;
use crate::model::fault::Fault;
use crate::model::routing_table::RoutingTable;
use crate::runtime::lifecycle::{Readiness, ReadyGuard};
use crate::runtime::snapshot::{Publisher, View};
use crate::runtime::tasks::{self, AbortOnDrop};
use crate::runtime::telemetry::Metrics;
use crate::upstream::{ApiServer, Attention, Backend, Pool, Upstream, Upstreams};

/// Servers that are asked at a time.
const ASKED_MAX: usize = 192;
/// Servers that failed the last time and are asked at a time: however many hang, the others' turn
/// comes.
const FAILING_ASKED_MAX: usize = 64;
/// Questions of one moment that begin in a millisecond: begun all at once, their handshakes would end
/// all at once too, and no server would work on its answer meanwhile.
const BEGUN_PER_MS: u64 = 2;
/// Answers that wait for the loop.
const EVENTS_MAX: usize = 256;
/// How many times as long as it takes to make the documents, they are left as they are: many changes
/// at once are one, and making them takes a part of a core at most.
const REST: u32 = 4;
/// The longest that they are left as they are for that.
const REST_MAX: Duration = Duration::from_millis(25);
/// How long versions' own documents wait at most for servers whose versions are not known yet: these
/// come first.
const OWN_DOCUMENTS_WAIT: Duration = Duration::from_millis(150);

/// How discovery is kept up to date.
#[derive(Clone, Debug)]
pub struct Config {
    /// When servers are asked.
    pub schedule: Schedule,
    /// How long one server may take for all that it is asked (`fetchFreshDiscoveryForService`).
    pub timeout: Duration,
    /// How long readiness waits at start for servers to answer, over all of them.
    pub start_timeout: Duration,
    /// Where answers outlive a restart.
    pub data_dir: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            schedule: Schedule::default(),
            timeout: Duration::from_secs(5),
            start_timeout: Duration::from_secs(5),
            data_dir: None,
        }
    }
}

/// What the loop works with.
#[derive(Debug)]
pub struct Aggregator {
    config: Config,
    table: View<RoutingTable<Upstream>>,
    publisher: Publisher<Published>,
    known: Known,
    attention: Arc<Attention>,
    keeper: Option<Keeper>,
    readiness: Readiness,
    /// Held until the servers that are there at the start have answered.
    ready: Option<ReadyGuard>,
    metrics: Arc<Metrics>,
    core: Option<FetchedCore>,
}

/// What the program gives to the loop.
#[derive(Debug)]
pub struct Surroundings {
    /// What is registered.
    pub table: View<RoutingTable<Upstream>>,
    /// Tells which backends are in doubt.
    pub attention: Arc<Attention>,
    /// What waits for the first answers.
    pub readiness: Readiness,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// kube-apiserver, whose own groups are among the others in front of it.
    pub core: Option<Arc<ApiServer>>,
}

impl Surroundings {
    /// Takes its share of each.
    pub fn new(
        table: &View<RoutingTable<Upstream>>,
        upstreams: &Upstreams,
        readiness: &Readiness,
        metrics: &Arc<Metrics>,
        core: Option<&Arc<ApiServer>>,
    ) -> Self {
        Self {
            table: table.clone(),
            attention: upstreams.attention(),
            readiness: readiness.clone(),
            metrics: Arc::clone(metrics),
            core: core.cloned(),
        }
    }
}

/// What happened to a question.
#[derive(Debug)]
enum Event {
    Answered(Question, Result<Answer, Fault>),
    /// With the number of the time that they were asked for.
    OwnDocuments(Arc<Backend>, u64, Vec<(GroupVersion, Result<Learnt, Fault>)>),
}

/// Asks in tasks of their own.
struct Asking {
    fetcher: Arc<Fetcher>,
    well: Arc<Semaphore>,
    failing: Arc<Semaphore>,
    events: mpsc::Sender<Event>,
    metrics: Arc<Metrics>,
    /// By server, with the question's number: a new question ends the one before.
    questions: HashMap<BackendKey, (u64, AbortOnDrop), FixedState>,
    /// Versions' own documents that are to be asked for, since when.
    later: Vec<(Instant, Arc<Backend>, Vec<GroupVersion>)>,
    own_documents: HashMap<BackendKey, (u64, AbortOnDrop), FixedState>,
    /// How often own documents were asked for: the number of the last time.
    own_number: u64,
}

impl Aggregator {
    /// A loop that knows what was kept, and the documents that it will publish.
    pub fn new(
        config: Config,
        surroundings: Surroundings,
    ) -> std::io::Result<(Self, View<Published>)> {
        let Surroundings { table, attention, readiness, metrics, core } = surroundings;
        let (keeper, kept) = match config.data_dir.as_deref().map(Keeper::open).transpose()? {
            Some((keeper, kept)) => (Some(keeper), Some(kept)),
            None => (None, None),
        };
        let assembly = if core.is_some() { Assembly::in_front() } else { Assembly::new() };
        let mut known = Known::new(config.schedule, assembly, Arc::clone(&metrics), kept);
        let core = core.map(FetchedCore::new);
        if let Some(core) = &core {
            known.ask_core(Arc::clone(core.backend()));
        }
        let (publisher, documents) = Publisher::new(known.publish());
        let ready = Some(readiness.wait_for("apiservice-discovery-controller"));
        let aggregator = Self {
            config,
            table,
            publisher,
            known,
            attention,
            keeper,
            readiness,
            ready,
            metrics,
            core,
        };
        Ok((aggregator, documents))
    }

    /// Keeps the documents up to date for ever, over `pool`, which must be of the calling thread;
    /// `address` is what `/api` names as the server's.
    pub async fn run(mut self, pool: Arc<Pool>, address: SocketAddr) {
        self.known.serve_at(&address.to_string());
        let (events, mut happened) = mpsc::channel(EVENTS_MAX);
        let mut asking = Asking {
            fetcher: Arc::new(Fetcher::new(pool, self.config.timeout, self.core.take())),
            well: Arc::new(Semaphore::new(ASKED_MAX)),
            failing: Arc::new(Semaphore::new(FAILING_ASKED_MAX)),
            events,
            metrics: Arc::clone(&self.metrics),
            questions: HashMap::default(),
            later: Vec::new(),
            own_documents: HashMap::default(),
            own_number: 0,
        };
        self.known.reconcile(&self.table.load(), now());
        let mut start_ends: Option<Instant> = None;
        let mut rested = Instant::now();
        loop {
            let time = now();
            self.known.release_held(time);
            for (question, after) in self.known.questions(time).into_iter().zip(starts()) {
                asking.ask(question, after);
            }
            if self.known.has_changed() && time.instant >= rested {
                let begun = Instant::now();
                self.publish();
                rested = Instant::now() + (begun.elapsed() * REST).min(REST_MAX);
            }
            self.start_up(&mut start_ends, time.instant);
            let own_documents = asking.own_documents_at();
            if own_documents.is_some_and(|at| at <= time.instant) {
                asking.ask_for_own_documents();
            }
            if let Some(keeper) = &self.keeper {
                keeper.keep(self.known.take_to_keep());
            }
            let publish_at = self.known.has_changed().then_some(rested);
            let others = [publish_at, start_ends, asking.own_documents_at()];
            let next = self.known.next(time).into_iter().chain(others.into_iter().flatten()).min();
            let next = next.unwrap_or_else(|| time.instant + self.config.schedule.refresh);
            tokio::select! {
                changed = self.table.changed() => {
                    if !changed {
                        return;
                    }
                    self.known.reconcile(&self.table.load(), now());
                    asking.forget(&self.known);
                }
                () = self.attention.wanted() => self.known.doubted(now()),
                Some(event) = happened.recv() => {
                    self.take_in(event, &mut asking);
                    while let Ok(event) = happened.try_recv() {
                        self.take_in(event, &mut asking);
                    }
                }
                () = sleep_until(next) => {}
            }
        }
    }

    /// Readiness waits for the servers that are registered at the start, but not for ever.
    fn start_up(&mut self, ends: &mut Option<Instant>, now: Instant) {
        if self.ready.is_none() || !self.known.is_complete() {
            return;
        }
        let end = *ends.get_or_insert_with(|| {
            self.known.await_all(&self.readiness);
            now + self.config.start_timeout
        });
        // Who is told that portico is ready finds in the documents what was waited for.
        if (self.known.awaits() || self.known.has_changed()) && now < end {
            return;
        }
        let silent = self.known.give_up_awaiting();
        if silent > 0 {
            tracing::warn!(backends = silent, "ready though backends have not answered yet");
        }
        (self.ready, *ends) = (None, None);
    }

    fn publish(&mut self) {
        self.metrics.discovery.published.inc();
        self.publisher.publish(self.known.publish());
    }

    fn take_in(&mut self, event: Event, asking: &mut Asking) {
        match event {
            Event::Answered(question, answer) => {
                // One that came too late must not end the question that took its place.
                forget(&mut asking.questions, question.key, question.number);
                let own = self.known.answered(&question, answer, now());
                if !own.is_empty() {
                    asking.later.push((Instant::now(), question.backend, own));
                }
            }
            Event::OwnDocuments(backend, number, documents) => {
                let key = BackendKey::of(&backend);
                if forget(&mut asking.own_documents, key, number) {
                    self.known.own_documents(key, documents, now());
                }
            }
        }
    }
}

/// Forgets a task if it is the one of that number.
fn forget(
    tasks: &mut HashMap<BackendKey, (u64, AbortOnDrop), FixedState>,
    key: BackendKey,
    number: u64,
) -> bool {
    let is_it = tasks.get(&key).is_some_and(|(known, _)| *known == number);
    if is_it {
        tasks.remove(&key);
    }
    is_it
}

impl Asking {
    fn ask(&mut self, question: Question, after: Duration) {
        let (key, number) = (question.key, question.number);
        let lane = if question.failed_before { &self.failing } else { &self.well };
        let (fetcher, lane, events) =
            (Arc::clone(&self.fetcher), Arc::clone(lane), self.events.clone());
        let metrics = Arc::clone(&self.metrics);
        let task = tasks::spawn_owned("discovery", async move {
            if !after.is_zero() {
                sleep(after).await;
            }
            let Ok(_turn) = lane.acquire().await else { return };
            let begun = Instant::now();
            let Question { backend, versions, etag, .. } = &question;
            let answer = fetcher.versions(backend, versions, etag.as_ref()).await;
            metrics.discovery.fetched(result_word(&answer), begun.elapsed());
            // Nobody listens when the program ends.
            events.send(Event::Answered(question, answer)).await.ok();
        });
        self.questions.insert(key, (number, task));
    }

    /// When to ask for what aggregated documents do not say: when nothing else is asked, or after a
    /// while; none when there is nothing to ask for.
    fn own_documents_at(&self) -> Option<Instant> {
        let (since, ..) = self.later.first()?;
        Some(if self.questions.is_empty() { *since } else { *since + OWN_DOCUMENTS_WAIT })
    }

    fn ask_for_own_documents(&mut self) {
        for (_, backend, versions) in std::mem::take(&mut self.later) {
            let key = BackendKey::of(&backend);
            self.own_number += 1;
            let number = self.own_number;
            let (fetcher, lane, events) =
                (Arc::clone(&self.fetcher), Arc::clone(&self.well), self.events.clone());
            let task = tasks::spawn_owned("discovery", async move {
                let Ok(_turn) = lane.acquire().await else { return };
                let documents = fetcher.own_documents(&backend, &versions).await;
                let documents = versions.into_iter().zip(documents).collect();
                events.send(Event::OwnDocuments(backend, number, documents)).await.ok();
            });
            self.own_documents.insert(key, (number, task));
        }
    }

    /// Ends the questions to servers that are known no more.
    fn forget(&mut self, known: &Known) {
        self.questions.retain(|key, _| known.asks(*key));
        self.later.retain(|(_, backend, _)| known.asks(BackendKey::of(backend)));
        self.own_documents.retain(|key, _| known.asks(*key));
    }
}

/// The result for metrics; a version that could not be had makes it a failure.
/// How long after each other questions of one moment begin.
fn starts() -> impl Iterator<Item = Duration> {
    (0_u64..).map(|before| Duration::from_millis(before / BEGUN_PER_MS))
}

fn result_word(answer: &Result<Answer, Fault>) -> &'static str {
    match answer {
        Ok(Answer::NotModified) => "not_modified",
        Ok(Answer::Versions { versions, from_legacy, .. }) => {
            let failed = versions.iter().find_map(|learnt| learnt.as_ref().err());
            let good = if *from_legacy { "legacy" } else { "aggregated" };
            failed.map_or(good, |fault| fault.hop.word())
        }
        Err(fault) => fault.hop.word(),
    }
}

fn now() -> Now {
    let unix_ms = Timestamp::now().as_millisecond();
    Now { instant: Instant::now(), unix_ms: u64::try_from(unix_ms).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::BackendSpec;

    /// An answer that was on its way when its question was given up comes after the next question.
    #[tokio::test]
    async fn what_is_late_does_not_end_what_took_its_place() {
        let spec = BackendSpec {
            service: crate::model::fault::ServicePort {
                namespace: "n".into(),
                name: "s".into(),
                port: 443,
            },
            ca_bundle: Arc::default(),
            insecure_skip_tls_verify: true,
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        let config = crate::upstream::Config::default();
        let tls = Arc::default();
        let backend = Arc::new(Backend::new(spec, config, tls, &Arc::default(), &metrics));
        let key = BackendKey::of(&backend);
        let mut asked = HashMap::default();
        asked.insert(key, (2, tasks::spawn_owned("question", std::future::pending())));
        assert!(!forget(&mut asked, key, 1));
        assert_eq!(asked.len(), 1);
        assert!(forget(&mut asked, key, 2));
        assert!(asked.is_empty());
    }
}
