//! Metrics under upstream's names where it has them.
//!
//! Handles are resolved once and held: a route keeps its series by verb and code, an endpoint its
//! own from first use on. Both take their series out of the registry when they go.

mod certificates;
mod discovery;
mod endpoint;
mod phases;
mod process;
mod reviews;
mod route;
mod tasks;
mod tokens;

use prometheus::core::Collector;
use prometheus::proto::MetricType;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

pub use certificates::CertificateMetrics;
pub use discovery::DiscoveryMetrics;
pub use endpoint::EndpointMetrics;
pub use phases::Phases;
pub use reviews::{CacheMetrics, RequestMetrics, ReviewMetrics};
pub use route::{RouteMetrics, TunnelMetrics};
pub use tasks::TaskMetrics;
pub use tokens::TokenMetrics;

use endpoint::EndpointVecs;
use process::Process;
use route::RouteVecs;

/// The program's metrics; one value, shared by every part.
#[derive(Debug)]
pub struct Metrics {
    /// Where all of them are registered.
    pub registry: Registry,
    /// `aggregator_unavailable_apiservice{name}`: 0 available, 1 not.
    pub unavailable: GaugeVec,
    /// `aggregator_unavailable_apiservice_total{name,reason}`.
    pub unavailable_total: IntCounterVec,
    /// `portico_probes_total{result}`: questions whether an APIService is available.
    pub probes: IntCounterVec,
    /// `apiserver_current_inflight_requests{request_kind}`.
    pub inflight: IntGaugeVec,
    /// `portico_connections`: client connections that are open.
    pub connections: IntGauge,
    /// `apiserver_tls_handshake_errors_total`.
    pub handshake_errors: IntCounter,
    /// `portico_rejected_connections_total{reason}`.
    pub rejected_connections: IntCounterVec,
    /// `portico_authentication_attempts_total{result}`; upstream's lacks the ending that counters have.
    pub authentication: IntCounterVec,
    /// When certificates end.
    pub certificates: CertificateMetrics,
    /// How well the discovery of backends is known.
    pub discovery: DiscoveryMetrics,
    /// What reviewers were asked, and what was known already.
    pub reviews: ReviewMetrics,
    /// Whether what tokens are verified by is up to date.
    pub tokens: TokenMetrics,
    /// How many tasks are alive.
    pub tasks: TaskMetrics,
    /// `portico_access_log_lines_dropped_total`.
    pub access_log_dropped: IntCounter,
    build_info: IntGaugeVec,
    routes: RouteVecs,
    endpoints: EndpointVecs,
}

impl Metrics {
    /// Registers every metric in a registry of its own.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let made = Self {
            unavailable: GaugeVec::new(
                Opts::new(
                    "aggregator_unavailable_apiservice",
                    "Gauge of APIServices which are marked as unavailable broken down by \
                     APIService name.",
                ),
                &["name"],
            )?,
            unavailable_total: counter(
                "aggregator_unavailable_apiservice_total",
                "Counter of APIServices which are marked as unavailable broken down by APIService \
                 name and reason.",
                &["name", "reason"],
            )?,
            probes: counter(
                "portico_probes_total",
                "Endpoints asked whether an APIService is available, by result: passed or the cause \
                 of the failure.",
                &["result"],
            )?,
            inflight: gauge(
                "apiserver_current_inflight_requests",
                "Requests that are being served and have a deadline, by kind.",
                &["request_kind"],
            )?,
            connections: IntGauge::new("portico_connections", "Client connections that are open.")?,
            handshake_errors: IntCounter::new(
                "apiserver_tls_handshake_errors_total",
                "Number of requests dropped with 'TLS handshake error from' error.",
            )?,
            rejected_connections: counter(
                "portico_rejected_connections_total",
                "Client connections closed for want of room, or for a flood of frames, by reason.",
                &["reason"],
            )?,
            authentication: counter(
                "portico_authentication_attempts_total",
                "Counter of authenticated attempts, by result.",
                &["result"],
            )?,
            certificates: CertificateMetrics::new()?,
            discovery: DiscoveryMetrics::new()?,
            reviews: ReviewMetrics::new()?,
            tokens: TokenMetrics::new()?,
            tasks: TaskMetrics::new()?,
            access_log_dropped: IntCounter::new(
                "portico_access_log_lines_dropped_total",
                "Lines of the access log that were lost because the file took no more.",
            )?,
            build_info: gauge(
                "portico_build_info",
                "A metric with a constant '1' value labeled by portico's version.",
                &["version"],
            )?,
            routes: RouteVecs::new()?,
            endpoints: EndpointVecs::new()?,
            registry,
        };
        made.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let collectors = made.collectors()?;
        collectors.into_iter().try_for_each(|collector| made.registry.register(collector))?;
        Ok(made)
    }

    fn collectors(&self) -> Result<Vec<Box<dyn Collector>>, prometheus::Error> {
        let mut collectors: Vec<Box<dyn Collector>> = vec![
            Box::new(self.unavailable.clone()),
            Box::new(self.unavailable_total.clone()),
            Box::new(self.probes.clone()),
            Box::new(self.inflight.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.handshake_errors.clone()),
            Box::new(self.rejected_connections.clone()),
            Box::new(self.authentication.clone()),
            Box::new(self.access_log_dropped.clone()),
            Box::new(self.build_info.clone()),
            Box::new(Process::new()?),
            Box::new(self.tasks.clone()),
        ];
        collectors.extend(self.certificates.collectors());
        collectors.extend(self.discovery.collectors());
        collectors.extend(self.reviews.collectors());
        collectors.extend(self.tokens.collectors());
        collectors.extend(self.routes.collectors());
        collectors.extend(self.endpoints.collectors());
        Ok(collectors)
    }

    /// Every metric there is, also where it has no series yet.
    pub fn families(&self) -> Result<Vec<Family>, prometheus::Error> {
        let described = self.collectors()?.into_iter().flat_map(|collector| {
            let collected = collector.collect();
            let families = collector.desc().into_iter().zip(&collected);
            let families = families.map(|(desc, family)| Family {
                name: desc.fq_name.clone(),
                help: desc.help.clone(),
                kind: kind(family.get_field_type()),
                labels: desc.variable_labels.clone(),
            });
            families.collect::<Vec<_>>()
        });
        Ok(described.collect())
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// One metric as documents tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// Its name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// What it says.
    pub help: String,
    /// Its labels, in order of name as they were given.
    pub labels: Vec<String>,
}

fn kind(kind: MetricType) -> &'static str {
    match kind {
        MetricType::COUNTER => "counter",
        MetricType::GAUGE => "gauge",
        MetricType::SUMMARY => "summary",
        MetricType::UNTYPED => "untyped",
        MetricType::HISTOGRAM => "histogram",
    }
}

fn counter(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn gauge(name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

fn histogram(
    name: &str,
    help: &str,
    labels: &[&str],
    buckets: &[f64],
) -> Result<HistogramVec, prometheus::Error> {
    HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)
}

/// A series may be gone already: two codes share one duration.
fn forget(_removed: Result<(), prometheus::Error>) {}
