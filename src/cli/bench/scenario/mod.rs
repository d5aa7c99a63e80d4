//! The scenario of `portico bench discovery`: a fleet of simulated servers is registered with the
//! target, has faults, changes, grows and shrinks, and is removed again; what of that the target's
//! aggregated document shows is watched from outside, as a client would see it.
//!
//! A [`Scenario`] is played in steps, so that reads can be measured between them; any step may be
//! given up at any time, but [`Scenario::end`] is always to be awaited, since it removes what was
//! registered.

mod flags;
mod observer;
mod outcome;
mod sight;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until, timeout, timeout_at};

use self::observer::Observer;
use self::sight::{Awaited, Seen};
use super::fleet::{Behaviour, Fault, Fleet, Server, Spec};
use super::register::Place;
use super::words::counted;
use crate::runtime::tasks::{self, AbortOnDrop};

pub(in crate::cli::bench) use self::flags::Flags;
pub use self::outcome::{Changes, Delay, Looks, Outcome, Span, Spread, Track, Visible};
pub use self::sight::State;

/// How long the target may take until its first answer to us.
const FIRST_LOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// How often removing is tried: what was on its way when a run was given up may arrive after it.
const REMOVALS_MAX: usize = 3;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The servers, as they are to behave.
    pub fleet: Spec,
    /// Faults begin this long after the first complete document; none: they are there from the start.
    pub fault_after: Option<Duration>,
    /// One server changes this often, once the first document is complete.
    pub change_every: Option<Duration>,
    /// How long the course lasts after it.
    pub course: Duration,
    /// How long the first complete document is awaited.
    pub complete_within: Duration,
}

/// A scenario at one target.
#[derive(Debug)]
pub struct Scenario {
    plan: Plan,
    fleet: Arc<Fleet>,
    place: Place,
    observer: Observer,
    started: Instant,
    marks: Arc<Marks>,
    /// When registering began, and when it was done.
    registered: Option<(Instant, Option<Instant>)>,
    /// When one more was registered, and when it was removed.
    added: Option<Instant>,
    removed: Option<Instant>,
    running: Vec<AbortOnDrop>,
}

/// What the scenario did, and when.
#[derive(Debug, Default)]
struct Marks(Mutex<Vec<(Instant, String)>>);

impl Marks {
    fn set(&self, text: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), text));
    }

    fn all(&self) -> Vec<(Instant, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Scenario {
    /// Starts the servers and begins to look at the target, which `config` names; nothing is
    /// registered yet.
    pub async fn start(plan: Plan, place: Place, config: kube::Config) -> anyhow::Result<Self> {
        place.check().await?;
        let mut spec = plan.fleet.clone();
        if plan.fault_after.is_some() {
            for behaviour in &mut spec.servers {
                behaviour.fault = Fault::None;
            }
        }
        let well = spec.servers.iter().map(|server| server.fault == Fault::None).collect();
        let mut registered = vec![true; spec.servers.len()];
        // The one that is registered later.
        let latency = spec.servers.first().context("a fleet needs a server")?.latency;
        spec.servers.push(Behaviour::well(latency));
        registered.push(false);
        let fleet = Arc::new(Fleet::start(&spec)?);
        let started = Instant::now();
        let seen = Seen::new(&fleet, Awaited { registered, well }, started);
        let mut observer = Observer::start(config, Arc::clone(&fleet), seen)?;
        let first = observer.until(|seen| seen.looks > 0);
        if timeout(FIRST_LOOK_TIMEOUT, first).await.is_err() {
            let why = observer.seen.borrow().last_failure.clone();
            bail!("the target's /apis cannot be read: {}", why.unwrap_or_default());
        }
        Ok(Self {
            plan,
            fleet,
            place,
            observer,
            started,
            marks: Arc::default(),
            registered: None,
            added: None,
            removed: None,
            running: Vec::new(),
        })
    }

    /// The simulated servers; the last one is registered only in the course.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Registers the fleet.
    pub async fn register(&mut self) -> anyhow::Result<()> {
        self.place.make_namespace(self.fleet.namespace()).await?;
        self.registered = Some((Instant::now(), None));
        self.marks.set("servers registered".to_owned());
        self.place.add(&self.fleet, self.at_start()).await?;
        if let Some((_, done)) = &mut self.registered {
            *done = Some(Instant::now());
        }
        Ok(())
    }

    /// Waits until the document has all servers that are well, and returns whether it has; then
    /// faults and changes begin.
    pub async fn complete(&mut self) -> anyhow::Result<bool> {
        let over = Instant::now() + self.plan.complete_within;
        let complete = self.sees(over, |seen| seen.complete_well.is_some()).await?;
        self.marks.set(if complete { "complete" } else { "not complete in time" }.to_owned());
        if let Some(after) = self.plan.fault_after {
            let (fleet, plan) = (Arc::clone(&self.fleet), self.plan.fleet.clone());
            let begin = faults(fleet, plan, after, Arc::clone(&self.marks));
            self.running.push(tasks::spawn_owned("bench-faults", begin));
        }
        if let Some(every) = self.plan.change_every {
            let well = self.at_start().iter().zip(&self.plan.fleet.servers);
            let well = well.filter(|(_, behaviour)| behaviour.fault == Fault::None);
            let well: Vec<Arc<Server>> = well.map(|(server, _)| Arc::clone(server)).collect();
            self.running.push(tasks::spawn_owned("bench-changes", changes(well, every)));
        }
        Ok(complete)
    }

    /// Why the document of a target at which nothing of the fleet was ever visible cannot be
    /// measured; none: something was.
    pub fn unseen(&self) -> Option<String> {
        let seen = self.observer.seen.borrow();
        if seen.has_any() {
            return None;
        }
        let within = format_args!("within {:?}", self.plan.complete_within);
        let servers = counted(self.at_start().len() as u64, "server");
        let remedy = match &self.place {
            Place::Manifests(directory) => {
                format!("does the target follow {}?", directory.display())
            }
            Place::Api(_) => "does the target serve what is registered with it?".to_owned(),
        };
        Some(format!("nothing of {servers} became visible {within}: {remedy}"))
    }

    /// Why the target does not use one of the servers, if it tells.
    pub async fn unavailable(&self) -> anyhow::Result<Option<String>> {
        self.place.unavailable().await
    }

    /// Registers one more server, removes it when it was seen, and watches until the time is over.
    pub async fn play(&mut self) -> anyhow::Result<()> {
        let over = Instant::now() + self.plan.course;
        let fleet = Arc::clone(&self.fleet);
        let later = fleet.servers().get(self.at_start().len()..).unwrap_or_default();
        self.added = Some(Instant::now());
        self.marks.set("one more server registered".to_owned());
        self.place.add(&fleet, later).await?;
        if self.sees(over, |seen| seen.added.is_some()).await? {
            self.removed = Some(Instant::now());
            self.marks.set("that server removed".to_owned());
            self.place.remove(&fleet, later).await?;
            self.sees(over, |seen| seen.removed.is_some()).await?;
        }
        sleep_until(over.into()).await;
        Ok(())
    }

    /// Waits until what is seen is so, or the time is over.
    async fn sees(&mut self, over: Instant, so: fn(&Seen) -> bool) -> anyhow::Result<bool> {
        match timeout_at(over.into(), self.observer.until(so)).await {
            Ok(ended) => ended.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// Removes what was registered and says what was found.
    pub async fn end(mut self) -> Outcome {
        self.running.clear();
        self.marks.set("removed".to_owned());
        let mut outcome = Outcome::new(&self);
        for _ in 0..REMOVALS_MAX {
            match self.place.clean_up().await {
                Ok(0) => return outcome,
                Ok(_) => {}
                Err(error) => {
                    outcome.not_removed = Some(format!("{error:#}"));
                    return outcome;
                }
            }
        }
        outcome
    }

    /// The servers that are registered at the start.
    fn at_start(&self) -> &[Arc<Server>] {
        self.fleet.servers().get(..self.plan.fleet.servers.len()).unwrap_or_default()
    }
}

async fn faults(fleet: Arc<Fleet>, plan: Spec, after: Duration, marks: Arc<Marks>) {
    sleep(after).await;
    let faulty = plan.servers.iter().zip(fleet.servers());
    let faulty = faulty.filter(|(behaviour, _)| behaviour.fault != Fault::None);
    let mut count = 0;
    for (behaviour, server) in faulty {
        server.behave(*behaviour);
        count += 1;
    }
    marks.set(format!("{count} servers get their faults"));
}

/// Changes one server after the other, for ever.
async fn changes(servers: Vec<Arc<Server>>, every: Duration) {
    let mut turns = interval(every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for server in servers.iter().cycle() {
        turns.tick().await;
        if let Err(error) = server.change() {
            tracing::error!(%error, "simulated server cannot change");
        }
    }
}
