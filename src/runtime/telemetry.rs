//! Metrics under upstream's names where it has them.
//!
//! Handles are resolved once and held: a route keeps its series by verb and code, an endpoint its
//! own from first use on. Both take their series out of the registry when they go.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use arc_swap::ArcSwap;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

use super::certificate_metrics::CertificateMetrics;

/// Upstream's buckets of request durations, in seconds (`endpoints/metrics/metrics.go`).
const DURATION_BUCKETS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];
/// Buckets of one endpoint's answers, in seconds: finer, since they are read per hop.
const ENDPOINT_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Series that one route keeps: verbs by codes, far above what real traffic has.
const ROUTE_SERIES_MAX: usize = 256;

/// The program's metrics; one value, shared by every part.
#[derive(Debug)]
pub struct Metrics {
    /// Where all of them are registered.
    pub registry: Registry,
    /// `aggregator_unavailable_apiservice{name}`: 0 available, 1 not.
    pub unavailable: GaugeVec,
    /// `aggregator_unavailable_apiservice_total{name,reason}`.
    pub unavailable_total: IntCounterVec,
    /// `apiserver_current_inflight_requests{request_kind}`.
    pub inflight: IntGaugeVec,
    /// `apiserver_longrunning_requests`.
    pub long_running: IntGauge,
    /// `portico_connections`: client connections that are open.
    pub connections: IntGauge,
    /// `apiserver_tls_handshake_errors_total`.
    pub handshake_errors: IntCounter,
    /// `portico_rejected_connections_total{reason}`.
    pub rejected_connections: IntCounterVec,
    /// `authentication_attempts{result}`.
    pub authentication: IntCounterVec,
    /// When certificates end.
    pub certificates: CertificateMetrics,
    routes: RouteVecs,
    endpoints: EndpointVecs,
}

/// What is counted by route.
#[derive(Debug)]
struct RouteVecs {
    requests: IntCounterVec,
    durations: HistogramVec,
    terminations: IntCounterVec,
    in_flight: IntGaugeVec,
}

/// What is counted by endpoint.
#[derive(Debug)]
struct EndpointVecs {
    requests: IntCounterVec,
    first_byte: HistogramVec,
    in_flight: IntGaugeVec,
    connections: IntGaugeVec,
    /// Who holds the series of which service and address: two backends may share an endpoint.
    held: Mutex<HashMap<(String, String), Weak<EndpointMetrics>>>,
}

const REQUEST_LABELS: &[&str] = &[
    "verb",
    "dry_run",
    "group",
    "version",
    "resource",
    "subresource",
    "scope",
    "component",
    "code",
];
const DURATION_LABELS: &[&str] =
    &["verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component"];

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
            inflight: gauge(
                "apiserver_current_inflight_requests",
                "Requests that are being served and have a deadline, by kind.",
                &["request_kind"],
            )?,
            long_running: IntGauge::new(
                "apiserver_longrunning_requests",
                "Watches and other long-running requests that are being served.",
            )?,
            connections: IntGauge::new("portico_connections", "Client connections that are open.")?,
            handshake_errors: IntCounter::new(
                "apiserver_tls_handshake_errors_total",
                "Number of requests dropped with 'TLS handshake error from' error.",
            )?,
            rejected_connections: counter(
                "portico_rejected_connections_total",
                "Client connections closed unserved, by reason.",
                &["reason"],
            )?,
            authentication: counter(
                "authentication_attempts",
                "Counter of authenticated attempts, by result.",
                &["result"],
            )?,
            certificates: CertificateMetrics::new()?,
            routes: RouteVecs::new()?,
            endpoints: EndpointVecs::new()?,
            registry,
        };
        made.register()?;
        Ok(made)
    }

    fn register(&self) -> Result<(), prometheus::Error> {
        let collectors: Vec<Box<dyn prometheus::core::Collector>> = vec![
            Box::new(self.unavailable.clone()),
            Box::new(self.unavailable_total.clone()),
            Box::new(self.inflight.clone()),
            Box::new(self.long_running.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.handshake_errors.clone()),
            Box::new(self.rejected_connections.clone()),
            Box::new(self.authentication.clone()),
            Box::new(self.routes.requests.clone()),
            Box::new(self.routes.durations.clone()),
            Box::new(self.routes.terminations.clone()),
            Box::new(self.routes.in_flight.clone()),
            Box::new(self.endpoints.requests.clone()),
            Box::new(self.endpoints.first_byte.clone()),
            Box::new(self.endpoints.in_flight.clone()),
            Box::new(self.endpoints.connections.clone()),
        ];
        let mut collectors = collectors.into_iter().chain(self.certificates.collectors());
        collectors.try_for_each(|collector| self.registry.register(collector))
    }

    /// Counts a request that was ended here.
    pub fn terminated(&self, api_service: &str, code: u16, cause: &str) {
        let code = code.to_string();
        self.routes
            .terminations
            .with_label_values(&[api_service, "aggregator", &code, cause])
            .inc();
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

impl RouteVecs {
    fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            requests: counter(
                "apiserver_request_total",
                "Counter of requests broken out for each verb, group, version and HTTP response \
                 code; resource and scope are empty for proxied requests.",
                REQUEST_LABELS,
            )?,
            durations: histogram(
                "apiserver_request_duration_seconds",
                "Time from a request's headers to the end of its response, in seconds; not for \
                 long-running requests.",
                DURATION_LABELS,
                DURATION_BUCKETS,
            )?,
            terminations: counter(
                "apiserver_request_terminations_total",
                "Number of requests which were ended here and not by whom they were meant for, by \
                 cause.",
                &["apiservice", "component", "code", "cause"],
            )?,
            in_flight: gauge(
                "portico_apiservice_requests_in_flight",
                "Requests that are being served, by APIService.",
                &["apiservice"],
            )?,
        })
    }
}

impl EndpointVecs {
    fn new() -> Result<Self, prometheus::Error> {
        let labels = &["service", "endpoint"];
        Ok(Self {
            requests: counter(
                "portico_endpoint_requests_total",
                "Requests sent to an endpoint, by class of the answer's code, or the cause of the \
                 failure.",
                &["service", "endpoint", "result"],
            )?,
            first_byte: histogram(
                "portico_endpoint_first_byte_seconds",
                "Time from a request's headers to the head of an endpoint's answer, in seconds.",
                labels,
                ENDPOINT_BUCKETS,
            )?,
            in_flight: gauge(
                "portico_endpoint_requests_in_flight",
                "Requests open on an endpoint.",
                labels,
            )?,
            connections: gauge(
                "portico_endpoint_connections",
                "Connections open to an endpoint.",
                labels,
            )?,
            held: Mutex::default(),
        })
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

/// The counters of one route, by verb and code.
#[derive(Debug)]
pub struct RouteMetrics {
    metrics: Arc<Metrics>,
    api_service: Option<Arc<str>>,
    group: String,
    version: String,
    resource: &'static str,
    component: &'static str,
    series: ArcSwap<Vec<Series>>,
    in_flight: OnceLock<IntGauge>,
}

#[derive(Clone, Debug)]
struct Series {
    verb: &'static str,
    code: u16,
    total: IntCounter,
    duration: Histogram,
}

impl RouteMetrics {
    /// The counters of an APIService's proxied requests.
    pub fn of_api_service(
        metrics: &Arc<Metrics>,
        name: &Arc<str>,
        group: &str,
        version: &str,
    ) -> Self {
        let mut route = Self::new(metrics, group, version, "", "aggregator");
        route.api_service = Some(Arc::clone(name));
        route
    }

    /// The counters of what portico serves itself.
    pub fn of_own(
        metrics: &Arc<Metrics>,
        group: &str,
        version: &str,
        resource: &'static str,
    ) -> Self {
        Self::new(metrics, group, version, resource, "apiserver")
    }

    fn new(
        metrics: &Arc<Metrics>,
        group: &str,
        version: &str,
        resource: &'static str,
        component: &'static str,
    ) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            api_service: None,
            group: group.to_owned(),
            version: version.to_owned(),
            resource,
            component,
            series: ArcSwap::default(),
            in_flight: OnceLock::new(),
        }
    }

    /// The APIService's name, empty for what portico serves itself.
    pub fn api_service(&self) -> &str {
        self.api_service.as_deref().unwrap_or_default()
    }

    /// The gauge of requests that are being served; none for what portico serves itself.
    pub fn in_flight(&self) -> Option<&IntGauge> {
        let name = self.api_service.as_deref()?;
        Some(
            self.in_flight.get_or_init(|| self.metrics.routes.in_flight.with_label_values(&[name])),
        )
    }

    /// Says when the caBundle expires, in Unix seconds; none takes the series away.
    pub fn ca_bundle_expires(&self, end: Option<i64>) {
        let Some(name) = self.api_service.as_deref() else { return };
        let series = &self.metrics.certificates.ca_bundles;
        match end {
            Some(end) => series.with_label_values(&[name]).set(end),
            None => forget(series.remove_label_values(&[name])),
        }
    }

    /// Counts one request; the duration is left out for long-running ones.
    pub fn record(&self, verb: &'static str, code: u16, seconds: Option<f64>) {
        let known = self.series.load();
        let found = known.iter().find(|series| series.code == code && series.verb == verb);
        match found {
            Some(series) => series.record(seconds),
            None if known.len() < ROUTE_SERIES_MAX => self.add_series(verb, code).record(seconds),
            None => {}
        }
    }

    fn add_series(&self, verb: &'static str, code: u16) -> Series {
        let text = code.to_string();
        let labels =
            [verb, "", &self.group, &self.version, self.resource, "", "", self.component, &text];
        let series = Series {
            verb,
            code,
            total: self.metrics.routes.requests.with_label_values(&labels),
            duration: self
                .metrics
                .routes
                .durations
                .with_label_values(labels.split_last().map_or(&[][..], |(_, rest)| rest)),
        };
        self.series.rcu(|known| {
            let mut known = Vec::clone(known);
            if !known.iter().any(|other| other.code == code && other.verb == verb) {
                known.push(series.clone());
            }
            known
        });
        series
    }
}

impl Drop for RouteMetrics {
    fn drop(&mut self) {
        let Some(name) = self.api_service.as_deref() else { return };
        self.ca_bundle_expires(None);
        for series in self.series.load().iter() {
            let code = series.code.to_string();
            let labels =
                [series.verb, "", &self.group, &self.version, "", "", "", self.component, &code];
            forget(self.metrics.routes.requests.remove_label_values(&labels));
            forget(self.metrics.routes.durations.remove_label_values(&labels[..8]));
        }
        if self.in_flight.get().is_some() {
            forget(self.metrics.routes.in_flight.remove_label_values(&[name]));
        }
    }
}

/// A series may be gone already: two codes share one duration.
fn forget(_removed: Result<(), prometheus::Error>) {}

impl Series {
    fn record(&self, seconds: Option<f64>) {
        self.total.inc();
        if let Some(seconds) = seconds {
            self.duration.observe(seconds);
        }
    }
}

/// The series of one endpoint.
#[derive(Debug)]
pub struct EndpointMetrics {
    metrics: Arc<Metrics>,
    service: String,
    address: String,
    /// Requests open on it.
    pub in_flight: IntGauge,
    /// Connections open to it.
    pub connections: IntGauge,
    first_byte: Histogram,
    results: [OnceLock<IntCounter>; 5],
    /// Causes that have a series, to be removed with the endpoint.
    causes: Mutex<BTreeSet<&'static str>>,
}

/// Names of answer classes in `result`, by the code's first digit less one.
const RESULTS: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl EndpointMetrics {
    /// The series of `address` as an endpoint of `service` (`namespace/name`), shared by all who ask.
    pub fn of(metrics: &Arc<Metrics>, service: &str, address: &str) -> Arc<Self> {
        let mut held = metrics.endpoints.held.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (service.to_owned(), address.to_owned());
        if let Some(known) = held.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        let made = Arc::new(Self::new(metrics, service, address));
        held.insert(key, Arc::downgrade(&made));
        made
    }

    fn new(metrics: &Arc<Metrics>, service: &str, address: &str) -> Self {
        let labels = [service, address];
        Self {
            in_flight: metrics.endpoints.in_flight.with_label_values(&labels),
            connections: metrics.endpoints.connections.with_label_values(&labels),
            first_byte: metrics.endpoints.first_byte.with_label_values(&labels),
            results: Default::default(),
            causes: Mutex::default(),
            metrics: Arc::clone(metrics),
            service: service.to_owned(),
            address: address.to_owned(),
        }
    }

    /// Counts an answer and the time to its head.
    pub fn answered(&self, code: u16, seconds: f64) {
        self.first_byte.observe(seconds);
        let at = usize::from(code / 100).saturating_sub(1);
        if let (Some(slot), Some(name)) = (self.results.get(at), RESULTS.get(at)) {
            slot.get_or_init(|| self.result(name)).inc();
        }
    }

    /// Counts a failure by its cause's word.
    pub fn failed(&self, cause: &'static str) {
        self.causes.lock().unwrap_or_else(PoisonError::into_inner).insert(cause);
        self.result(cause).inc();
    }

    fn result(&self, result: &str) -> IntCounter {
        self.metrics.endpoints.requests.with_label_values(&[&self.service, &self.address, result])
    }
}

impl Drop for EndpointMetrics {
    fn drop(&mut self) {
        let metrics = Arc::clone(&self.metrics);
        let mut held = metrics.endpoints.held.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (self.service.clone(), self.address.clone());
        // Somebody may have asked for the same series since the last holder let go.
        if held.get(&key).is_some_and(|holder| holder.strong_count() > 0) {
            return;
        }
        held.remove(&key);
        let labels = [self.service.as_str(), self.address.as_str()];
        forget(self.metrics.endpoints.in_flight.remove_label_values(&labels));
        forget(self.metrics.endpoints.connections.remove_label_values(&labels));
        forget(self.metrics.endpoints.first_byte.remove_label_values(&labels));
        let causes =
            std::mem::take(&mut *self.causes.lock().unwrap_or_else(PoisonError::into_inner));
        let answers = self.results.iter().zip(RESULTS).filter(|(slot, _)| slot.get().is_some());
        for result in answers.map(|(_, result)| result).chain(causes) {
            let labels = [self.service.as_str(), self.address.as_str(), result];
            forget(self.metrics.endpoints.requests.remove_label_values(&labels));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_routes_series_come_with_its_first_request_and_go_with_it() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let route = RouteMetrics::of_api_service(&metrics, &"v1.g".into(), "g", "v1");
        assert!(!metrics.render().unwrap().contains("group=\"g\""));
        route.record("GET", 200, Some(0.1));
        route.record("GET", 200, Some(0.1));
        route.record("WATCH", 200, None);
        let text = metrics.render().unwrap();
        assert!(text.contains("verb=\"GET\",version=\"v1\"} 2"), "{text}");
        drop(route);
        assert!(!metrics.render().unwrap().contains("group=\"g\""));
    }

    #[test]
    fn an_endpoints_series_go_with_it() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let endpoint = EndpointMetrics::of(&metrics, "n/s", "127.0.0.1:1");
        let other = EndpointMetrics::of(&metrics, "n/s", "127.0.0.1:1");
        endpoint.answered(200, 0.001);
        endpoint.failed("ConnectRefused");
        assert!(metrics.render().unwrap().contains("result=\"2xx\""));
        drop(endpoint);
        assert!(metrics.render().unwrap().contains("127.0.0.1:1"));
        drop(other);
        assert!(!metrics.render().unwrap().contains("127.0.0.1:1"));
    }
}
