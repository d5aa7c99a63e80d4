//! One measurement: clients on threads of their own read from one target, in one kind of reads.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::future::join_all;
use tokio::sync::{oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::answers::Answers;
use super::client::{Caller, Connection, Fault};
use super::pace::Pace;
use super::process::{Memory, Process};
use super::reads::Kind;
use super::tally::Tally;

/// Between the attempts of a client that cannot connect.
const RECONNECT: Duration = Duration::from_millis(100);
/// Between two looks at the memory of the server's process.
const MEMORY_LOOK: Duration = Duration::from_millis(250);

/// What to measure, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// The kind of reads.
    pub(super) kind: Kind,
    /// Connections, each with one read at a time.
    pub(super) clients: u32,
    /// Reads a second of all clients; none: each reads again at once.
    pub(super) rate: Option<f64>,
    /// How long is measured.
    pub(super) duration: Duration,
    /// How long is read before.
    pub(super) warm_up: Duration,
    /// After this long a read has failed.
    pub(super) read_timeout: Duration,
}

/// What is measured.
#[derive(Clone)]
pub(super) struct Subject {
    /// Where, and as whom.
    pub(super) caller: Arc<Caller>,
    /// What is known of its answers.
    pub(super) answers: Arc<Answers>,
    /// Its process, if it is here.
    pub(super) process: Option<Process>,
}

/// When the clients begin, when it counts, and who hands out the reads.
#[derive(Clone)]
struct Start {
    pace: Pace,
    counted: Instant,
}

/// The clients' way to their reads, for one thread.
#[derive(Clone)]
struct Crew {
    plan: Plan,
    subject: Subject,
    start: watch::Receiver<Option<Start>>,
    stop: CancellationToken,
    /// Reads that ended, for who watches.
    done: Arc<AtomicU64>,
}

/// Measures; what was counted until then when it is stopped.
pub(super) async fn measure(
    plan: Plan,
    subject: &Subject,
    stop: &CancellationToken,
    done: &Arc<AtomicU64>,
) -> anyhow::Result<Tally> {
    let (starter, start) = watch::channel(None);
    let crew = Crew {
        plan,
        subject: subject.clone(),
        start,
        stop: stop.child_token(),
        done: Arc::clone(done),
    };
    // However this ends, the threads end too.
    let _end = crew.stop.clone().drop_guard();
    let mut connected = Vec::new();
    let mut tallies = Vec::new();
    let threads = threads(plan.clients);
    for thread in 0..threads {
        let clients = plan.clients / threads + u32::from(thread < plan.clients % threads);
        let (ready, when_ready) = oneshot::channel();
        let (tally, when_over) = oneshot::channel();
        let crew = crew.clone();
        std::thread::Builder::new()
            .name("bench-load".to_owned())
            .spawn(move || drop(tally.send(crew.run(clients, ready))))
            .context("no thread for the load")?;
        connected.push(when_ready);
        tallies.push(when_over);
    }
    drop(join_all(connected).await);
    let begun = Instant::now();
    let counted = begun + plan.warm_up;
    let end = counted + plan.duration;
    let pace = Pace::new(plan.rate, begun, counted, end);
    let pace = pace.context("no thread for the rate")?;
    starter.send(Some(Start { pace: pace.clone(), counted })).ok();

    let usage = usage(subject.process.as_ref(), counted, tallies, &crew.stop, &pace).await?;
    let mut tally = usage.tally;
    tally.cpu = usage.cpu;
    tally.memory = usage.memory;
    tally.unsent = pace.unsent(counted, Instant::now().min(end));
    Ok(tally)
}

/// Half of the machine, so that a server beside it has the other half.
fn threads(clients: u32) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cores / 2).unwrap_or(1).clamp(1, clients.max(1))
}

struct Usage {
    tally: Tally,
    cpu: Option<Duration>,
    memory: Option<Memory>,
}

/// Waits for the threads, and looks at the server's process while they read.
async fn usage(
    process: Option<&Process>,
    counted: Instant,
    tallies: Vec<oneshot::Receiver<anyhow::Result<Tally>>>,
    stop: &CancellationToken,
    pace: &Pace,
) -> anyhow::Result<Usage> {
    let over = join_all(tallies);
    tokio::pin!(over);
    let warm = sleep_until(counted.into());
    tokio::pin!(warm);
    let mut looks = interval(MEMORY_LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut memory = None;
    let mut before = None;
    let mut is_warm = false;
    let ended = loop {
        tokio::select! {
            ended = &mut over => break ended,
            () = stop.cancelled() => {
                pace.stop();
                break over.await;
            }
            () = &mut warm, if !is_warm => {
                is_warm = true;
                before = process.and_then(|process| process.cpu().ok());
            }
            _ = looks.tick(), if is_warm => {
                memory = memory.into_iter().chain(process.and_then(Process::memory)).reduce(Memory::max);
            }
        }
    };
    let after = process.and_then(|process| process.cpu().ok());
    memory = memory.into_iter().chain(process.and_then(Process::memory)).reduce(Memory::max);
    let mut sum = Tally::new();
    for tally in ended {
        sum.beside(&tally.context("a thread of the load has failed")??);
    }
    let cpu = before.zip(after).map(|(before, after)| after.saturating_sub(before));
    Ok(Usage { tally: sum, cpu, memory })
}

impl Crew {
    /// A thread's whole life.
    fn run(self, clients: u32, ready: oneshot::Sender<()>) -> anyhow::Result<Tally> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = self.stop.clone();
        let tally = RefCell::new(Tally::new());
        runtime.block_on(async {
            let open = |_| Connection::open(Arc::clone(&self.subject.caller));
            let connections = tokio::select! {
                connections = join_all((0..clients).map(open)) => connections,
                () = stop.cancelled() => return,
            };
            ready.send(()).ok();
            let mut start = self.start.clone();
            let Ok(start) = start.wait_for(Option::is_some).await.map(|start| start.clone()) else {
                return;
            };
            let Some(start) = start else { return };
            let clients = connections.into_iter().map(|connection| {
                // One that could not connect tries again, and counts why.
                self.client(connection.ok(), &start, &tally)
            });
            tokio::select! {
                _ = join_all(clients) => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(tally.into_inner())
    }

    /// A client's whole life: one read after the other.
    async fn client(&self, open: Option<Connection>, start: &Start, tally: &RefCell<Tally>) {
        let Self { plan, subject, .. } = self;
        let mut connection = open;
        while let Some(turn) = start.pace.next().await {
            let reading = async {
                let open = match connection.take() {
                    Some(open) => open,
                    None => Connection::open(Arc::clone(&subject.caller)).await?,
                };
                let read = plan.kind.read(&open, &subject.answers).await;
                Ok((open, read))
            };
            let outcome = timeout(plan.read_timeout, reading).await;
            let now = Instant::now();
            let (read, could_connect) = match outcome {
                Ok(Ok((open, read))) => {
                    if read.is_ok() || read.as_ref().is_err_and(Fault::leaves_connection) {
                        connection = Some(open);
                    }
                    (read, true)
                }
                Ok(Err(fault)) => (Err(fault), false),
                Err(_) => (Err(Fault(format!("no answer in {:?}", plan.read_timeout))), true),
            };
            self.done.fetch_add(1, Ordering::Relaxed);
            if turn.since >= start.counted {
                let mut tally = tally.borrow_mut();
                let at = now.saturating_duration_since(start.counted);
                tally.record(at, now.saturating_duration_since(turn.since), read);
                if plan.rate.is_some() {
                    tally.late.record(turn.late);
                }
            }
            if !could_connect {
                sleep(RECONNECT).await;
            }
        }
    }
}
