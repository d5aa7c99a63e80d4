//! Puts the parts together: the only part that knows them all.
//!
//! [`start`] returns what it bound, so that tests ask for port 0.

mod files;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use http::Request;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, sleep, timeout};

use crate::admin::{Health, Inside, LogCheck, Pages};
use crate::aggregate::Documents;
use crate::aggregate::aggregator::{self, Aggregator, Surroundings};
use crate::auth::{self, Auth, OwnTokens, Reviews, StartedTokens, Tokens, Trust};
use crate::body::Body;
use crate::config::Config;
use crate::control::prober::{self, Prober};
use crate::control::watch::{Cluster, Seen, Servers};
use crate::control::{Control, availability, manifests};
use crate::frontend::{Context, Frontend, Peer};
use crate::model::routing_table::RoutingTable;
use crate::proxy::{AccessLog, AccessLogConfig, AccessLogFormat, Core, Inquiry, Proxy, Services};
use crate::runtime::descriptors;
use crate::runtime::files::Files;
use crate::runtime::lifecycle::{Drain, DrainTrigger, Phase, Readiness, drain};
use crate::runtime::lines::LineLog;
use crate::runtime::snapshot::{Publisher, View};
use crate::runtime::spans::{Flush, Spans};
use crate::runtime::tasks::{self, AbortOnDrop};
use crate::runtime::telemetry::Metrics;
use crate::store::Store;
use crate::store::rest::ApiServices;
use crate::tls::expiry::{self, Watched};
use crate::upstream::{
    self, ApiServer, KubeconfigError, Pool, Pools, Upstream, Upstreams, ca_bundles,
};
use files::{Followed, FromFiles};

/// How long requests under way may take to end when the program ends.
const DRAIN_GRACE: Duration = Duration::from_secs(10);
/// How long connections without requests may take to close by themselves.
const DRAIN_LINGER: Duration = Duration::from_secs(1);
/// How long it may take to give leadership up.
const RELEASE_LIMIT: Duration = Duration::from_secs(3);
/// How long portico keeps connections that it makes for itself: extension API servers are asked less
/// often than that.
const OWN_CONNECTION_IDLE: Duration = Duration::from_secs(5);
/// How often the ending looks at what is left.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// A running portico.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    trigger: DrainTrigger,
    frontend: JoinHandle<()>,
    flush: Flush,
    /// Gives leadership up when the program ends.
    lease: Option<JoinHandle<()>>,
    /// Holds the log until the threads are done, whose last lines are of what was cut.
    _access_log: Option<Arc<LineLog>>,
    _tasks: Vec<AbortOnDrop>,
}

/// What tests set differently from the flags.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    /// How backends are reached; the identity comes from the flags.
    pub upstream: upstream::Config,
    /// How discovery is kept up to date; where it is kept comes from the flags.
    pub discovery: aggregator::Config,
    /// When backends are asked whether they are available.
    pub probes: prober::Config,
}

/// Starts everything on the calling runtime, which is the control plane's, and on the data-plane
/// threads.
pub fn start(config: &Config, tuning: Tuning) -> anyhow::Result<Running> {
    let metrics = Arc::new(Metrics::new()?);
    let (trigger, drain) = drain(config.graces);
    let readiness = Readiness::default();
    let store = Store::new();
    let (publisher, table) = Publisher::new(first_table(config));
    let table_of_bundles = table.clone();

    let mut upstream_config = tuning.upstream;
    let (spans, flush) =
        Spans::start(config.tracing_config_file.as_deref()).context("--tracing-config-file")?;
    let mut read = FromFiles::read(config)?;
    upstream_config.identity.clone_from(&read.proxy_client);
    let given = (&upstream_config, &metrics);
    let (core, inquiry) = in_front_of(config, &mut read.files, given)?.unzip();
    let core_server = core.as_ref().map(Core::server);
    let asked = Asked::new(&config.auth, core_server, &mut read.files, given)?;
    let servers = core_server.map(servers).transpose()?;
    let cluster =
        servers.as_ref().map(|servers| cluster(config, servers, &store, &upstream_config));
    let (cluster, seen) = cluster.transpose()?.unzip();
    let cluster_trust = seen.as_ref().map(|seen| seen.trust.clone());
    let (followed, mut tasks) = read.follow(config, core_server.cloned(), cluster_trust)?;
    let Followed { tls, in_use, trust, tokens } = followed;
    let health = health(&readiness, &drain)?;
    let mut inside = inside(&in_use);
    let upstreams = Upstreams::new(upstream_config.clone(), Arc::clone(&metrics));
    let (aggregator, documents) = Aggregator::new(
        aggregator::Config { data_dir: config.data_dir.clone(), ..tuning.discovery },
        Surroundings::new(&table, &upstreams, &readiness, &metrics, core_server),
    )
    .context("cannot keep discovery in the data directory")?;
    let goes_direct = core.as_ref().map(|core| core.goes_direct(trust.clone()));
    let (reports, reported) = mpsc::channel(prober::REPORTS_MAX);
    let followed = (tuning.probes, table.clone());
    let prober = Prober::new(followed, upstreams.attention(), goes_direct, reports, &metrics);
    let (lease, conditions) = write_availability(config, servers.as_ref(), &store, (&seen, &drain));
    inside.cluster = seen.map(|seen| (seen.trust, seen.reported));
    let inquiry = inquiry.map(|inquiry| {
        let pool = Pool::new(upstream_config.clone());
        tasks::spawn_owned("inquiry", inquiry.run(pool, trust.clone()))
    });
    let services = Services {
        auth: auth(&config.auth, (trust, tokens), asked, &metrics)?,
        table,
        core,
        documents: Documents::new(documents, Handle::current()),
        objects: ApiServices::new(store.clone(), config.proxy.min_request_timeout),
        pages: Pages::new(health, inside.clone(), Arc::clone(&metrics), Handle::current()),
        spans,
    };
    let proxy = Proxy::new(config.proxy.clone(), services, drain.clone(), &metrics);

    let limits = config.frontend.limits.clone();
    let context = Context { limits, tls, drain, metrics: Arc::clone(&metrics) };
    descriptors::raise_limit(config.frontend.limits.connections_max);
    let access_log = access_log(config.proxy.access_log.as_ref(), &metrics)?;
    let kept_log = access_log.as_ref().map(|(log, _)| Arc::clone(log));
    let pools = (upstream_config.clone(), inside.pools);
    let frontend = bind(config, &context, proxy, pools, access_log)?;
    let address = frontend.address()?;
    inside.clients.get_or_init(|| frontend.connections_by_thread());

    tasks.extend(expiry_tasks(in_use, table_of_bundles, &metrics));
    let routing = config.routing;
    let control =
        Control { store: store.clone(), publisher, upstreams, metrics, routing, reports: reported };
    tasks.extend(control_tasks(config, control, store, &readiness, cluster));
    tasks.extend([conditions, inquiry].into_iter().flatten());
    tasks.extend(asking_tasks(upstream_config, prober, (aggregator, address)));
    let frontend = tasks::spawn("frontend", serve(frontend));
    Ok(Running { address, trigger, frontend, flush, lease, _access_log: kept_log, _tasks: tasks })
}

/// Who looks when certificates end.
fn expiry_tasks(
    in_use: View<Vec<Watched>>,
    table: View<RoutingTable<Upstream>>,
    metrics: &Arc<Metrics>,
) -> [AbortOnDrop; 2] {
    [
        tasks::spawn_owned("certificates", expiry::run(in_use, Arc::clone(metrics))),
        tasks::spawn_owned("ca-bundles", ca_bundles::run(table)),
    ]
}

/// Those who ask extension API servers for portico itself, over connections that they share.
fn asking_tasks(
    upstream: upstream::Config,
    prober: Prober,
    (aggregator, address): (Aggregator, SocketAddr),
) -> [AbortOnDrop; 2] {
    let pool = Pool::new(upstream::Config { idle_timeout: OWN_CONNECTION_IDLE, ..upstream });
    [
        tasks::spawn_owned("prober", prober.run(Arc::clone(&pool))),
        tasks::spawn_owned("aggregator", aggregator.run(pool, address)),
    ]
}

/// The listener, and what each data-plane thread does.
fn bind(
    config: &Config,
    context: &Context,
    proxy: Arc<Proxy>,
    (pool_config, pools): (upstream::Config, Pools),
    access_log: Option<(Arc<LineLog>, AccessLogFormat)>,
) -> anyhow::Result<Frontend> {
    let metrics = Arc::clone(&context.metrics);
    metrics.tasks.count("control-plane", &Handle::current());
    Frontend::bind(&config.frontend, context, &move || {
        // Once a thread, then once a connection, then once a request.
        metrics.tasks.count(thread::current().name().unwrap_or_default(), &Handle::current());
        let (proxy, pool) = (Arc::clone(&proxy), Pool::new(pool_config.clone()));
        pools.add(&pool);
        let log = access_log.as_ref().map(|(log, format)| AccessLog::for_thread(log, *format));
        move |peer: Peer| {
            let connection = proxy.connection(&pool, log.as_ref(), peer.address, peer.chain);
            let connection = Arc::new(connection);
            move |request: Request<Body>| Arc::clone(&connection).handle(request)
        }
    })
    .with_context(|| format!("cannot listen on {}", config.frontend.bind))
}

/// The table before anything is known.
fn first_table(config: &Config) -> RoutingTable<Upstream> {
    let table = RoutingTable::default();
    if config.core.is_some() { table.in_front() } else { table }
}

async fn serve(frontend: Frontend) {
    if let Err(error) = frontend.run().await {
        tracing::error!(%error, "frontend failed");
    }
}

/// Writes out what the log holds; blocks while somebody cannot get a line out.
fn flush_log() {
    // An error is no block: the log is gone, and lines are lost without holding anybody up.
    std::io::stderr().lock().flush().ok();
}

/// The kube-apiserver that portico is in front of, if it is, with what finds out how that is told who
/// calls.
fn in_front_of(
    config: &Config,
    files: &mut Files,
    (upstream, metrics): (&upstream::Config, &Arc<Metrics>),
) -> Result<Option<(Core, Inquiry)>, KubeconfigError> {
    let core = config.core.as_ref();
    core.map(|core| Core::new(core, upstream, files, metrics)).transpose()
}

/// The API servers of the cluster that portico is in front of.
fn servers(core: &Arc<ApiServer>) -> anyhow::Result<Servers> {
    Servers::new(core).with_context(|| core.access().place().to_owned())
}

/// What of that cluster is watched.
fn cluster(
    config: &Config,
    servers: &Servers,
    store: &Store,
    upstream: &upstream::Config,
) -> anyhow::Result<(Cluster, Seen)> {
    let (data_dir, identity) = (config.data_dir.as_deref(), upstream.identity.clone());
    Cluster::new(&config.cluster, servers.clone(), store.clone(), data_dir, identity)
        .context("cannot keep the cluster's state in the data directory")
}

/// Who leads and writes conditions, if anybody is to.
fn write_availability(
    config: &Config,
    servers: Option<&Servers>,
    store: &Store,
    (seen, drain): (&Option<Seen>, &Drain),
) -> (Option<JoinHandle<()>>, Option<AbortOnDrop>) {
    let (Some(namespace), Some(servers), Some(seen)) =
        (&config.cluster.lease_namespace, servers, seen)
    else {
        return (None, None);
    };
    let (lease, conditions) =
        availability::start(servers, namespace, store.clone(), seen, drain.clone());
    (Some(lease), Some(conditions))
}

/// The control loop, and those who bring it its objects.
fn control_tasks(
    config: &Config,
    control: Control,
    store: Store,
    readiness: &Readiness,
    cluster: Option<Cluster>,
) -> Vec<AbortOnDrop> {
    let mut tasks = Vec::new();
    let mut loading = Vec::new();
    if config.manifests.is_some() || cluster.is_none() {
        let (loaded, manifests_loading) = oneshot::channel();
        loading.push((manifests_loading, readiness.wait_for("manifests")));
        if let Some(directory) = config.manifests.clone() {
            let run = manifests::run(directory, store, loaded);
            tasks.push(tasks::spawn_owned("manifests", run));
        }
        // Without a directory there is nothing to load, which the sender's end says.
    }
    if let Some(cluster) = cluster {
        let (loaded, cluster_loading) = oneshot::channel();
        tasks.extend(cluster.start(loaded, readiness.wait_for("core-trust")));
        loading.push((cluster_loading, readiness.wait_for("core-watches")));
    }
    let (loading, guards): (Vec<_>, Vec<_>) = loading.into_iter().unzip();
    let loaded = async move {
        for one in loading {
            // Without a sender there is nothing to wait for.
            if one.await.is_err() {
                tracing::debug!("objects were never read");
            }
        }
    };
    tasks.push(tasks::spawn_owned("control", control.run(loaded, guards)));
    tasks
}

/// The access log with the form of its lines.
fn access_log(
    config: Option<&AccessLogConfig>,
    metrics: &Metrics,
) -> anyhow::Result<Option<(Arc<LineLog>, AccessLogFormat)>> {
    let Some(AccessLogConfig { file, format }) = config else { return Ok(None) };
    let log =
        LineLog::open(file.clone(), metrics.access_log_dropped.clone()).with_context(|| {
            format!(
                "cannot open access log {}",
                file.as_deref().unwrap_or(Path::new("-")).display()
            )
        })?;
    Ok(Some((Arc::new(log), *format)))
}

/// Who knows what requests alone do not tell about callers.
struct Asked {
    reviews: Reviews,
    signed: StartedTokens,
}

impl Asked {
    fn new(
        config: &auth::Config,
        core: Option<&Arc<ApiServer>>,
        files: &mut Files,
        (upstream, metrics): (&upstream::Config, &Arc<Metrics>),
    ) -> anyhow::Result<Self> {
        let reviews = Reviews::new(config, core, upstream, files, metrics)?;
        let signed = OwnTokens::start(config, core, upstream, files, &metrics.tokens)?;
        Ok(Self { reviews, signed })
    }
}

fn auth(
    config: &auth::Config,
    (trust, tokens): (View<Trust>, View<Tokens>),
    asked: Asked,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Auth> {
    Ok(Auth::new(config, (trust, tokens), (asked.signed, asked.reviews), metrics)?)
}

/// What the health pages look at.
fn health(readiness: &Readiness, drain: &Drain) -> anyhow::Result<Health> {
    let log = LogCheck::start(flush_log).context("cannot start a thread")?;
    Ok(Health { readiness: readiness.clone(), drain: drain.clone(), log })
}

/// What `/debug/portico` tells about.
fn inside(certificates: &View<Vec<Watched>>) -> Inside {
    Inside {
        started: (std::time::Instant::now(), Timestamp::now()),
        pools: Pools::default(),
        clients: Arc::default(),
        certificates: certificates.clone(),
        cluster: None,
    }
}

impl Running {
    /// Ends in two steps: nothing new is accepted and what is under way is answered, watches one after
    /// the other; then what is still open is cut.
    pub async fn stop(self) {
        let graces = self.trigger.graces;
        self.trigger.announce();
        sleep(graces.delay).await;
        self.trigger.advance(Phase::Draining);
        let begun = Instant::now();
        let mut look = interval(DRAIN_LOOK);
        loop {
            look.tick().await;
            let waited = begun.elapsed();
            let (short, connections) = (self.trigger.short_requests(), self.trigger.connections());
            let answered = (short == 0 && waited >= DRAIN_LINGER) || waited >= DRAIN_GRACE;
            let watches_ended = self.trigger.watches() == 0 || waited >= graces.watches;
            if connections == 0 || (answered && watches_ended) {
                if short > 0 {
                    tracing::warn!(requests = short, "requests cut at the end of the grace period");
                }
                break;
            }
        }
        let watches = self.trigger.long_requests();
        if watches > 0 {
            tracing::info!(requests = watches, "long-running requests cut");
        }
        self.trigger.advance(Phase::Ended);
        if self.frontend.await.is_err() {
            tracing::debug!("frontend was gone already");
        }
        if let Some(lease) = self.lease
            && timeout(RELEASE_LIMIT, lease).await.is_err()
        {
            tracing::debug!("leadership not given up in time");
        }
        self.flush.finish().await;
    }
}
