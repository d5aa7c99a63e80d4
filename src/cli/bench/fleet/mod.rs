//! A fleet of simulated extension API servers: real servers with mutual TLS on loopback ports, whose
//! faults and changes can be commanded while they run.
//!
//! They share one thread with a runtime of its own, so that hundreds are cheap and whoever measures
//! is not delayed by them. Their documents are made once, and anew only for a change.

mod behaviour;
mod documents;
mod serve;
mod traffic;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustls_pki_types::CertificateDer;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub use self::behaviour::{Behaviour, Fault, Latency};
pub(crate) use self::behaviour::{FLAP_PERIOD_MIN, span};
use self::documents::Documents;
pub use self::documents::Size;
pub(crate) use self::documents::change_of;
use self::serve::Port;
pub use self::traffic::{Change, Counts};
use crate::runtime::tasks::{self, AbortOnDrop};
use crate::tls::pki::{Authority, Purpose};
use crate::tls::server::{Certificates, Settings, mutual_config, server_config};

/// The domain of the simulated groups, which is nobody else's.
pub const DOMAIN: &str = "bench.portico.dev";

/// The fleet that is wanted.
#[derive(Clone, Debug)]
pub struct Spec {
    /// How each server behaves at the start, and how many there are.
    pub servers: Vec<Behaviour>,
    /// How much each serves.
    pub size: Size,
    /// The namespace of their services, which is in the names on their certificates.
    pub namespace: String,
    /// Who signed the certificates of the front proxies that are believed; without it a certificate
    /// is asked for and not judged.
    pub proxy_client_ca: Option<Vec<CertificateDer<'static>>>,
}

/// Running servers; they stop when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    servers: Vec<Arc<Server>>,
    size: Size,
    namespace: String,
    ca_bundle: String,
    stopped: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Fleet {
    /// Starts servers that listen when this returns (but for those whose fault it is not to).
    pub fn start(spec: &Spec) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let authority = Authority::new("portico-bench-ca")?;
        let mut servers = Vec::with_capacity(spec.servers.len());
        for (index, behaviour) in spec.servers.iter().enumerate() {
            let server = Arc::new(Server::new(index, *behaviour, spec.size, runtime.handle())?);
            let acceptor = acceptor(&authority, spec, &server)?;
            let listener = if *server.behaviour.borrow() == behaviour.with(Fault::Refuse) {
                None
            } else {
                Some(server.port.listen().context("a simulated server cannot listen")?)
            };
            let _guard = runtime.enter();
            tasks::spawn("bench-server", serve::run(Arc::clone(&server), listener, acceptor));
            server.behave(*behaviour);
            servers.push(server);
        }
        let stopped = CancellationToken::new();
        let until = stopped.clone().cancelled_owned();
        let thread = std::thread::Builder::new()
            .name("bench-fleet".to_owned())
            .spawn(move || runtime.block_on(until))
            .context("the simulated servers' thread cannot start")?;
        Ok(Self {
            servers,
            size: spec.size,
            namespace: spec.namespace.clone(),
            ca_bundle: authority.certificate(),
            stopped,
            thread: Some(thread),
        })
    }

    /// All servers.
    pub fn servers(&self) -> &[Arc<Server>] {
        &self.servers
    }

    /// The server of this number, from 0.
    pub fn server(&self, index: usize) -> Option<&Arc<Server>> {
        self.servers.get(index)
    }

    /// How much each serves.
    pub fn size(&self) -> Size {
        self.size
    }

    /// The namespace of the servers' services.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The certificate, in PEM, of who signed those of the servers.
    pub fn ca_bundle(&self) -> &str {
        &self.ca_bundle
    }

    /// What was asked of all servers together.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for server in &self.servers {
            sum.add(&server.requests());
        }
        sum
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stopped.cancel();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the simulated servers' thread panicked");
        }
    }
}

/// The TLS side: with an authority for front proxies their certificate is demanded, without one it
/// is asked for.
fn acceptor(authority: &Authority, spec: &Spec, server: &Server) -> anyhow::Result<TlsAcceptor> {
    let name = format!("{}.{}.svc", server.service(), spec.namespace);
    let pair = authority.sign(&name, Purpose::Server(&[&name]))?.key_pair()?;
    let config = if let Some(callers) = &spec.proxy_client_ca {
        mutual_config(&pair, callers.clone())?
    } else {
        let shown = Certificates { default: (Arc::new(pair), name), sni: Vec::new() };
        server_config(&Settings::default(), &shown)?
    };
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// One simulated extension API server, with a group of its own.
#[derive(Debug)]
pub struct Server {
    index: usize,
    group: String,
    size: Size,
    port: Port,
    /// As it is now: never flapping, but well and refusing in turns.
    behaviour: watch::Sender<Behaviour>,
    documents: watch::Sender<Arc<Documents>>,
    state: Mutex<State>,
    runtime: Handle,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    /// One a generation of the documents.
    changes: Vec<Change>,
    /// How often it was told how to behave.
    commands: u64,
    flapping: Option<AbortOnDrop>,
}

impl Server {
    fn new(
        index: usize,
        behaviour: Behaviour,
        size: Size,
        runtime: &Handle,
    ) -> anyhow::Result<Self> {
        let group = format!("g{index:03}.{DOMAIN}");
        let documents = Documents::make(&group, size, 0)?;
        let first = match behaviour.fault {
            Fault::Flap { .. } => Fault::None,
            fault => fault,
        };
        Ok(Self {
            index,
            size,
            port: Port::reserve().context("no free port for a simulated server")?,
            behaviour: watch::Sender::new(behaviour.with(first)),
            documents: watch::Sender::new(Arc::new(documents)),
            state: Mutex::new(State { changes: vec![Change::now()], ..State::default() }),
            runtime: runtime.clone(),
            group,
        })
    }

    /// Its number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its API group.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The name of its Service.
    pub fn service(&self) -> String {
        format!("portico-bench-{:03}", self.index)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address
    }

    /// From now on it behaves so; what hangs is answered as it would be now.
    pub fn behave(self: &Arc<Self>, behaviour: Behaviour) {
        let mut state = self.state();
        state.commands += 1;
        state.flapping = if let Fault::Flap { period, down } = behaviour.fault {
            let flapping = flap(Arc::clone(self), state.commands, behaviour, period, down);
            let _guard = self.runtime.enter();
            Some(tasks::spawn_owned("bench-flap", flapping))
        } else {
            self.behaviour.send_replace(behaviour);
            None
        };
    }

    /// The same, unless it was told otherwise since that command.
    fn turn(&self, command: u64, behaviour: Behaviour) {
        let state = self.state();
        if state.commands == command {
            self.behaviour.send_replace(behaviour);
        }
    }

    /// Whether it is in no state to answer as it should.
    pub fn is_down(&self) -> bool {
        self.behaviour.borrow().fault != Fault::None
    }

    /// From now on it serves another resource in its best version, with new entity tags; returns
    /// the number of the change, from 1.
    pub fn change(&self) -> anyhow::Result<u64> {
        let mut state = self.state();
        let generation = self.documents().generation + 1;
        let documents = Documents::make(&self.group, self.size, generation)?;
        state.changes.push(Change::now());
        self.documents.send_replace(Arc::new(documents));
        Ok(generation)
    }

    /// The way of a change; 0 is the state of the start.
    pub fn change_of(&self, generation: u64) -> Option<Change> {
        let at = usize::try_from(generation).ok()?;
        self.state().changes.get(at).copied()
    }

    /// What was asked of it.
    pub fn requests(&self) -> Counts {
        self.state().counts.clone()
    }

    fn documents(&self) -> Arc<Documents> {
        Arc::clone(&self.documents.borrow())
    }

    /// The aggregated document of this generation leaves now.
    fn sent(&self, generation: u64, asked: Instant) {
        let mut state = self.state();
        let change = usize::try_from(generation).ok().and_then(|at| state.changes.get_mut(at));
        if let Some(change) = change {
            change.asked.get_or_insert(asked);
            change.sent.get_or_insert_with(Instant::now);
        }
    }

    fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.state().counts);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Well and refusing in turns, beginning somewhere in a period, so that servers do not go down
/// together.
async fn flap(
    server: Arc<Server>,
    command: u64,
    behaviour: Behaviour,
    period: Duration,
    down: f64,
) {
    let period = period.max(FLAP_PERIOD_MIN);
    let down = period.mul_f64(down.clamp(0.0, 1.0));
    let up = period.saturating_sub(down);
    server.turn(command, behaviour.with(Fault::None));
    sleep(period.mul_f64(fastrand::f64())).await;
    loop {
        server.turn(command, behaviour.with(Fault::Refuse));
        sleep(down).await;
        server.turn(command, behaviour.with(Fault::None));
        sleep(up).await;
    }
}
