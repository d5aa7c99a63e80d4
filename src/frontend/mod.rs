//! Where clients come in: one listener, and data-plane threads that own the connections they get.
//!
//! All threads accept from it; each socket goes to the thread that holds the fewest connections. A
//! thread is a runtime of its own: nothing on the way of a request crosses threads. Limits are named
//! here.

mod connection;
mod frames;
mod gathered;
mod http1;
mod http2;
mod listener;
mod short_slices;

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::{Request, Response};
use prometheus::IntCounter;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use crate::body::{Body, Stalls};
use crate::runtime::lifecycle::{Drain, OpenGuard, Phase};
use crate::runtime::snapshot::View;
use crate::runtime::tasks;
use crate::runtime::telemetry::Metrics;
use listener::{Accepted as Incoming, Listener, listen};

/// Where to listen, and with how many threads.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address and port; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Data-plane threads.
    pub threads: usize,
    /// What clients may take.
    pub limits: Limits,
}

/// Limits for clients; what upstream bounds is bounded as there (`secure_serving.go`).
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections open at a time; one more is closed at once.
    pub connections_max: usize,
    /// TLS handshakes under way at a time on one data-plane thread; further connections wait. One
    /// that waits for its client counts no longer than `handshake_turn`.
    pub handshakes_max: usize,
    /// How long a handshake that waits for its client keeps others from their turn.
    pub handshake_turn: Duration,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long the first request, and on HTTP/1.1 each request's headers, may take to come.
    pub first_request_timeout: Duration,
    /// How long an HTTP/2 connection without requests stays open.
    pub idle_timeout: Duration,
    /// How often an HTTP/2 connection with open requests is pinged.
    pub ping_interval: Duration,
    /// How long the answer to a ping may take.
    pub ping_timeout: Duration,
    /// Requests open at a time on one HTTP/2 connection.
    pub streams_max: u32,
    /// Bytes of a request's headers.
    pub header_bytes_max: u32,
    /// Frames at a time that bring nothing, from one HTTP/2 client: more end its connection.
    pub idle_frames_max: u32,
    /// What clients may leave unread.
    pub stalls: Arc<Stalls>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            handshakes_max: 256,
            handshake_turn: Duration::from_millis(500),
            handshake_timeout: Duration::from_secs(10),
            first_request_timeout: Duration::from_secs(32),
            idle_timeout: Duration::from_secs(90),
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(15),
            streams_max: 100,
            header_bytes_max: 1024 * 1024,
            idle_frames_max: 10_000,
            stalls: Arc::default(),
        }
    }
}

/// Between two lines in the log about the same trouble.
const SAY_INTERVAL: Duration = Duration::from_secs(1);
/// Connections that a thread accepts before it looks after those that it has.
const ACCEPTS_IN_A_ROW: usize = 8;
/// Sockets that wait for one data-plane thread to take them.
const HANDOVER_QUEUE: usize = 256;

/// The other end of a client connection.
#[derive(Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The certificate chain it showed, leaf first; unverified. Empty when it showed none.
    pub chain: Vec<CertificateDer<'static>>,
}

/// What every thread needs to serve connections.
#[derive(Clone, Debug)]
pub struct Context {
    /// The limits.
    pub limits: Limits,
    /// The TLS configuration for the next handshake.
    pub tls: View<ServerConfig>,
    /// How far the ending has come.
    pub drain: Drain,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// The listener and the threads that accept from it.
#[derive(Debug)]
pub struct Frontend {
    listener: StdListener,
    shares: Arc<Shares>,
    threads: Vec<JoinHandle<()>>,
    drain: Drain,
}

struct Accepted {
    stream: StdStream,
    address: SocketAddr,
    _open: OpenGuard,
    _held: Held,
}

/// One connection in its thread's count.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Frontend {
    /// Binds and starts the threads. On each thread `start` is called once, within its runtime; what
    /// it returns is called once a connection, and what that returns once a request.
    pub fn bind<S, F, H, R>(config: &Config, context: &Context, start: &S) -> io::Result<Self>
    where
        S: Fn() -> F + Clone + Send + 'static,
        F: Fn(Peer) -> H + Send + Sync + 'static,
        H: Fn(Request<Body>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = listen(config.bind)?;
        let (shares, queues) = Shares::new(config.threads.max(1), context);
        let threads = queues
            .into_iter()
            .enumerate()
            .map(|(index, queue)| {
                let (listener, shares) = (listener.try_clone()?, Arc::clone(&shares));
                let (context, start) = (context.clone(), start.clone());
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let name = shares.threads.get(index).map(|thread| thread.name.clone());
                std::thread::Builder::new().name(name.unwrap_or_default()).spawn(move || {
                    let thread = DataPlane { index, listener, queue, shares, context };
                    runtime.block_on(async move { thread.run(start()).await });
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { listener, shares, threads, drain: context.drain.clone() })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The connections that each data-plane thread holds, by the thread's name; counted on as they
    /// come and go.
    pub fn connections_by_thread(&self) -> Vec<(String, Arc<AtomicUsize>)> {
        let threads = self.shares.threads.iter();
        threads.map(|thread| (thread.name.clone(), Arc::clone(&thread.connections))).collect()
    }

    /// Keeps the listener until the ending begins, then waits for the threads to be done.
    pub async fn run(self) -> io::Result<()> {
        let Self { listener, threads, mut drain, .. } = self;
        drain.reached(Phase::Draining).await;
        drop(listener);
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().filter_map(|handle| handle.join().err()).count()
        });
        match joined.await {
            Ok(0) => Ok(()),
            Ok(_) | Err(_) => Err(io::Error::other("a data-plane thread panicked")),
        }
    }
}

/// Which thread serves which connections; shared by all of them.
#[derive(Debug)]
struct Shares {
    threads: Vec<Share>,
    connections_max: usize,
    drain: Drain,
    metrics: Arc<Metrics>,
    /// Connections closed for want of a file descriptor.
    refused: IntCounter,
    /// When the log last told of a connection that was rejected.
    said: Mutex<Option<Instant>>,
}

/// One thread's part of the connections.
#[derive(Debug)]
struct Share {
    name: String,
    connections: Arc<AtomicUsize>,
    sockets: mpsc::Sender<Accepted>,
}

impl Shares {
    /// The shares of so many threads, with the queue that each takes sockets from.
    fn new(threads: usize, context: &Context) -> (Arc<Self>, Vec<mpsc::Receiver<Accepted>>) {
        let share = |index| {
            let (sockets, queue) = mpsc::channel(HANDOVER_QUEUE);
            let name = format!("data-plane-{index}");
            (Share { name, connections: Arc::default(), sockets }, queue)
        };
        let (threads, queues) = (0..threads).map(share).unzip();
        let shares = Self {
            threads,
            connections_max: context.limits.connections_max,
            drain: context.drain.clone(),
            refused: context.metrics.rejected_connections.with_label_values(&["descriptors"]),
            metrics: Arc::clone(&context.metrics),
            said: Mutex::default(),
        };
        (Arc::new(shares), queues)
    }

    /// Gives a socket to the thread that holds the fewest connections: back to the one that
    /// accepted it, `own`, unless another has fewer.
    fn assign(&self, own: usize, stream: StdStream, address: SocketAddr) -> Option<Accepted> {
        if self.drain.connections() >= self.connections_max {
            self.reject(address, "limit");
            return None;
        }
        let held = |thread: &Share| thread.connections.load(Ordering::Relaxed);
        let fewest = |(index, thread): &(usize, &Share)| (held(thread), *index != own);
        let (index, thread) = self.threads.iter().enumerate().min_by_key(fewest)?;
        thread.connections.fetch_add(1, Ordering::Relaxed);
        let held = Held(Arc::clone(&thread.connections));
        let accepted = Accepted { stream, address, _open: self.drain.connection(), _held: held };
        if index == own {
            return Some(accepted);
        }
        if thread.sockets.try_send(accepted).is_err() {
            self.reject(address, "queue");
        }
        None
    }

    fn reject(&self, client: SocketAddr, reason: &str) {
        self.metrics.rejected_connections.with_label_values(&[reason]).inc();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|when| when.elapsed() >= SAY_INTERVAL) {
            *said = Some(Instant::now());
            tracing::warn!(%client, reason, "connections rejected, this one among them");
        }
    }
}

/// What one data-plane thread runs on.
struct DataPlane {
    index: usize,
    listener: StdListener,
    queue: mpsc::Receiver<Accepted>,
    shares: Arc<Shares>,
    context: Context,
}

impl DataPlane {
    /// Accepts and serves until the ending begins, then waits for what is open: to be over, or to be
    /// cut. Threads accept for themselves, since waking another one for each connection costs as much
    /// as a good part of a resumed handshake.
    async fn run<F, H, R>(self, factory: F)
    where
        F: Fn(Peer) -> H + Send + Sync + 'static,
        H: Fn(Request<Body>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let Self { index, listener, mut queue, shares, context } = self;
        let mut listener = match Listener::new(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "cannot listen on a data-plane thread"),
        };
        let factory = Arc::new(factory);
        let turns = context.limits.handshakes_max.clamp(1, Semaphore::MAX_PERMITS);
        let handshakes = Arc::new(Semaphore::new(turns));
        let context = Arc::new(context);
        let open = TaskTracker::new();
        let mut drain = context.drain.clone();
        let mut in_a_row = 0;
        loop {
            let accepted = tokio::select! {
                () = drain.reached(Phase::Draining) => break,
                handed = queue.recv() => handed,
                accepted = listener.accept() => match accepted {
                    Incoming::Connection(stream, address) => shares.assign(index, stream, address),
                    Incoming::Refused => {
                        shares.refused.inc();
                        None
                    }
                },
            };
            in_a_row += 1;
            if in_a_row % ACCEPTS_IN_A_ROW == 0 {
                tokio::task::yield_now().await;
            }
            let Some(accepted) = accepted else { continue };
            let (context, handshakes) = (Arc::clone(&context), Arc::clone(&handshakes));
            let serving = connection::serve(accepted, context, handshakes, Arc::clone(&factory));
            drop(tasks::spawn("connection", open.track_future(serving)));
        }
        // What was handed over and not taken yet is closed.
        drop((listener, queue));
        open.close();
        tokio::select! {
            () = open.wait() => {}
            () = drain.reached(Phase::Ended) => {}
        }
    }
}
