//! What is counted by route, which is an APIService or a part of portico's own.
//!
//! A series comes with the first request that needs it and goes with the route.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use arc_swap::ArcSwap;
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::endpoint::EndpointMetrics;
use super::phases::{PHASES, Phases};
use super::{Metrics, counter, forget, gauge, histogram};

/// Upstream's buckets of request durations, in seconds (`endpoints/metrics/metrics.go`).
const DURATION_BUCKETS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];
/// Buckets of the phases of requests, in seconds: finer, since they are read per hop.
const PHASE_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// Series that one route keeps: verbs by codes, far above what real traffic has.
const ROUTE_SERIES_MAX: usize = 256;

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
const LONG_RUNNING_LABELS: &[&str] =
    &["verb", "group", "version", "resource", "subresource", "scope", "component"];
const TERMINATION_LABELS: &[&str] =
    &["verb", "group", "version", "resource", "subresource", "scope", "component", "code", "cause"];
const ABORT_LABELS: &[&str] =
    &["verb", "group", "version", "resource", "subresource", "scope", "cause"];
const PHASE_LABELS: &[&str] = &["apiservice", "endpoint", "phase"];

/// What is counted by route.
#[derive(Debug)]
pub(super) struct RouteVecs {
    requests: IntCounterVec,
    durations: HistogramVec,
    long_running: IntGaugeVec,
    terminations: IntCounterVec,
    aborts: IntCounterVec,
    in_flight: IntGaugeVec,
    tunnels: IntGaugeVec,
    tunnel_bytes: IntCounterVec,
    pub(super) retries: IntCounterVec,
    pub(super) phases: HistogramVec,
}

impl RouteVecs {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
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
            long_running: gauge(
                "apiserver_longrunning_requests",
                "Watches and other long-running requests that are being served.",
                LONG_RUNNING_LABELS,
            )?,
            terminations: counter(
                "apiserver_request_terminations_total",
                "Number of requests which were ended here and not by whom they were meant for, by \
                 cause.",
                TERMINATION_LABELS,
            )?,
            aborts: counter(
                "apiserver_request_aborts_total",
                "Number of requests whose response was cut after its head had been sent, by cause.",
                ABORT_LABELS,
            )?,
            in_flight: gauge(
                "portico_apiservice_requests_in_flight",
                "Requests that are being served, by APIService.",
                &["apiservice"],
            )?,
            tunnels: gauge(
                "portico_tunnels",
                "Connections that were upgraded to WebSocket or SPDY and are open, by APIService.",
                &["apiservice"],
            )?,
            tunnel_bytes: counter(
                "portico_tunnel_bytes_total",
                "Bytes carried by upgraded connections, by APIService and direction.",
                &["apiservice", "direction"],
            )?,
            retries: counter(
                "portico_retries_total",
                "Requests tried again after an endpoint had provably not acted on them, or was lost \
                 before it answered a read, by APIService, that endpoint and what had failed.",
                &["apiservice", "endpoint", "cause"],
            )?,
            phases: histogram(
                "portico_request_phase_seconds",
                "Where the time of forwarded requests went, in seconds: queue, connect and tls of \
                 those that waited for a connection; first_byte and body of all that were answered, \
                 body not of long-running ones.",
                PHASE_LABELS,
                PHASE_BUCKETS,
            )?,
        })
    }

    pub(super) fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        vec![
            Box::new(self.requests.clone()),
            Box::new(self.durations.clone()),
            Box::new(self.long_running.clone()),
            Box::new(self.terminations.clone()),
            Box::new(self.aborts.clone()),
            Box::new(self.in_flight.clone()),
            Box::new(self.tunnels.clone()),
            Box::new(self.tunnel_bytes.clone()),
            Box::new(self.retries.clone()),
            Box::new(self.phases.clone()),
        ]
    }
}

/// The series of one route.
#[derive(Debug)]
pub struct RouteMetrics {
    metrics: Arc<Metrics>,
    api_service: Option<Arc<str>>,
    group: String,
    version: String,
    resource: &'static str,
    component: &'static str,
    series: ArcSwap<Vec<Series>>,
    hops: ArcSwap<Vec<Hops>>,
    in_flight: OnceLock<IntGauge>,
    tunnels: OnceLock<TunnelMetrics>,
    rare: Mutex<Rare>,
}

/// The series of one APIService's tunnels.
#[derive(Clone, Debug)]
pub struct TunnelMetrics {
    /// Tunnels that are open.
    pub open: IntGauge,
    /// Bytes from clients.
    pub to_backend: IntCounter,
    /// Bytes from backends.
    pub to_client: IntCounter,
}

/// Values of `direction`.
const DIRECTIONS: [&str; 2] = ["to_backend", "to_client"];

/// Series that are looked up anew each time, remembered so that they go with the route.
#[derive(Debug, Default)]
struct Rare {
    long_running: BTreeSet<&'static str>,
    terminations: BTreeSet<(&'static str, u16, &'static str)>,
    aborts: BTreeSet<(&'static str, &'static str)>,
    /// The endpoints after which requests were tried again.
    retried: Vec<Weak<EndpointMetrics>>,
}

#[derive(Clone, Debug)]
struct Series {
    verb: &'static str,
    code: u16,
    total: IntCounter,
    /// None for long-running requests.
    duration: Option<Histogram>,
}

/// One endpoint's phases as this route sees them.
#[derive(Clone, Debug)]
struct Hops {
    endpoint: Weak<EndpointMetrics>,
    first_byte: Histogram,
    body: Histogram,
}

impl RouteMetrics {
    /// The series of an APIService's proxied requests.
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

    /// The series of requests to a server that no APIService names, by what it is for.
    pub fn of_server(metrics: &Arc<Metrics>, name: &str) -> Self {
        let mut route = Self::new(metrics, "", "", "", "aggregator");
        route.api_service = Some(name.into());
        route
    }

    /// The series of what portico serves itself.
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
            hops: ArcSwap::default(),
            in_flight: OnceLock::new(),
            tunnels: OnceLock::new(),
            rare: Mutex::default(),
        }
    }

    /// The APIService's name, empty for what portico serves itself.
    pub fn api_service(&self) -> &str {
        self.api_service.as_deref().unwrap_or_default()
    }

    /// The gauge of requests that are being served; none for what portico serves itself.
    pub fn in_flight(&self) -> Option<&IntGauge> {
        let name = self.api_service.as_deref()?;
        let vec = &self.metrics.routes.in_flight;
        Some(self.in_flight.get_or_init(|| vec.with_label_values(&[name])))
    }

    /// Requests that are being served; asking makes no series.
    pub fn requests_in_flight(&self) -> i64 {
        self.in_flight.get().map_or(0, IntGauge::get)
    }

    /// The series of tunnels, made on first use; none for what portico serves itself.
    pub fn tunnels(&self) -> Option<&TunnelMetrics> {
        let name = self.api_service.as_deref()?;
        let routes = &self.metrics.routes;
        let bytes = |direction| routes.tunnel_bytes.with_label_values(&[name, direction]);
        Some(self.tunnels.get_or_init(|| {
            let [to_backend, to_client] = DIRECTIONS.map(bytes);
            let open = routes.tunnels.with_label_values(&[name]);
            TunnelMetrics { open, to_backend, to_client }
        }))
    }

    /// The gauge of long-running requests of this verb.
    pub fn long_running(&self, verb: &'static str) -> IntGauge {
        self.rare().long_running.insert(verb);
        self.metrics.routes.long_running.with_label_values(&self.labels(verb))
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
        let found = known.iter().find(|series| series.is(verb, code, seconds.is_some()));
        match found {
            Some(series) => series.record(seconds),
            None if known.len() < ROUTE_SERIES_MAX => {
                self.add_series(verb, code, seconds.is_some()).record(seconds);
            }
            None => {}
        }
    }

    /// Requests that were answered well (2xx) until now; not long-running ones, which are counted when
    /// they end.
    pub fn answered_well(&self) -> u64 {
        let well =
            |series: &&Series| (200..300).contains(&series.code) && series.duration.is_some();
        self.series.load().iter().filter(well).map(|series| series.total.get()).sum()
    }

    /// Records where a forwarded request's time went; the body of a long-running one does not count.
    pub fn record_phases(&self, endpoint: &Arc<EndpointMetrics>, phases: &Phases, long: bool) {
        let Some(name) = self.api_service.as_ref() else { return };
        let known = self.hops.load();
        let found = known.iter().find(|hops| hops.endpoint.as_ptr() == Arc::as_ptr(endpoint));
        let added;
        let hops = if let Some(hops) = found {
            hops
        } else {
            added = self.add_hops(name, endpoint);
            &added
        };
        hops.first_byte.observe(phases.first_byte);
        if !long {
            hops.body.observe(phases.body);
        }
        if phases.has_waited() {
            let waits = [phases.queue, phases.connect, phases.tls];
            for (phase, seconds) in PHASES.iter().zip(waits) {
                self.phase(name, endpoint, phase).observe(seconds);
            }
        }
    }

    /// Counts a request that was ended here.
    pub fn terminated(&self, verb: &'static str, code: u16, cause: &'static str) {
        self.rare().terminations.insert((verb, code, cause));
        let code = code.to_string();
        let labels = self.termination_labels(verb, &code, cause);
        self.metrics.routes.terminations.with_label_values(&labels).inc();
    }

    /// Counts a response that was cut after its head had been sent.
    pub fn aborted(&self, verb: &'static str, cause: &'static str) {
        self.rare().aborts.insert((verb, cause));
        self.metrics.routes.aborts.with_label_values(&self.abort_labels(verb, cause)).inc();
    }

    /// Counts a request that is tried again after this endpoint.
    pub fn retried(&self, endpoint: &Arc<EndpointMetrics>, cause: &'static str) {
        let Some(name) = self.api_service.as_ref() else { return };
        endpoint.retried_by(name, cause);
        let mut rare = self.rare();
        if !rare.retried.iter().any(|known| known.as_ptr() == Arc::as_ptr(endpoint)) {
            rare.retried.retain(|known| known.strong_count() > 0);
            rare.retried.push(Arc::downgrade(endpoint));
        }
        drop(rare);
        let labels = [name, endpoint.address(), cause];
        self.metrics.routes.retries.with_label_values(&labels).inc();
    }

    fn rare(&self) -> std::sync::MutexGuard<'_, Rare> {
        self.rare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn labels<'a>(&'a self, verb: &'a str) -> [&'a str; 7] {
        [verb, &self.group, &self.version, self.resource, "", "", self.component]
    }

    fn termination_labels<'a>(
        &'a self,
        verb: &'a str,
        code: &'a str,
        cause: &'a str,
    ) -> [&'a str; 9] {
        let [verb, group, version, resource, subresource, scope, component] = self.labels(verb);
        [verb, group, version, resource, subresource, scope, component, code, cause]
    }

    fn abort_labels<'a>(&'a self, verb: &'a str, cause: &'a str) -> [&'a str; 7] {
        [verb, &self.group, &self.version, self.resource, "", "", cause]
    }

    fn request_labels<'a>(&'a self, verb: &'a str, code: &'a str) -> [&'a str; 9] {
        [verb, "", &self.group, &self.version, self.resource, "", "", self.component, code]
    }

    fn duration_labels<'a>(&'a self, verb: &'a str) -> [&'a str; 8] {
        [verb, "", &self.group, &self.version, self.resource, "", "", self.component]
    }

    fn add_series(&self, verb: &'static str, code: u16, timed: bool) -> Series {
        let routes = &self.metrics.routes;
        let text = code.to_string();
        let series = Series {
            verb,
            code,
            total: routes.requests.with_label_values(&self.request_labels(verb, &text)),
            duration: timed
                .then(|| routes.durations.with_label_values(&self.duration_labels(verb))),
        };
        self.series.rcu(|known| {
            let mut known = Vec::clone(known);
            if !known.iter().any(|other| other.is(verb, code, timed)) {
                known.push(series.clone());
            }
            known
        });
        series
    }

    fn add_hops(&self, name: &Arc<str>, endpoint: &Arc<EndpointMetrics>) -> Hops {
        endpoint.seen_by(name);
        let hops = Hops {
            endpoint: Arc::downgrade(endpoint),
            first_byte: self.phase(name, endpoint, "first_byte"),
            body: self.phase(name, endpoint, "body"),
        };
        self.hops.rcu(|known| {
            let mut known = Vec::clone(known);
            known.retain(|other| {
                other.endpoint.strong_count() > 0
                    && other.endpoint.as_ptr() != Arc::as_ptr(endpoint)
            });
            known.push(hops.clone());
            known
        });
        hops
    }

    fn phase(&self, name: &str, endpoint: &EndpointMetrics, phase: &str) -> Histogram {
        self.metrics.routes.phases.with_label_values(&[name, endpoint.address(), phase])
    }
}

impl Drop for RouteMetrics {
    fn drop(&mut self) {
        let Some(name) = self.api_service.as_deref() else { return };
        self.ca_bundle_expires(None);
        let routes = &self.metrics.routes;
        for Series { verb, code, .. } in &**self.series.load() {
            let code = code.to_string();
            forget(routes.requests.remove_label_values(&self.request_labels(verb, &code)));
            forget(routes.durations.remove_label_values(&self.duration_labels(verb)));
        }
        for endpoint in self.hops.load().iter().filter_map(|hops| hops.endpoint.upgrade()) {
            for phase in PHASES {
                let labels = [name, endpoint.address(), phase];
                forget(routes.phases.remove_label_values(&labels));
            }
        }
        let rare = std::mem::take(&mut *self.rare());
        for verb in &rare.long_running {
            forget(routes.long_running.remove_label_values(&self.labels(verb)));
        }
        for (verb, code, cause) in &rare.terminations {
            let code = code.to_string();
            let labels = self.termination_labels(verb, &code, cause);
            forget(routes.terminations.remove_label_values(&labels));
        }
        for (verb, cause) in &rare.aborts {
            forget(routes.aborts.remove_label_values(&self.abort_labels(verb, cause)));
        }
        for endpoint in rare.retried.iter().filter_map(Weak::upgrade) {
            for cause in endpoint.retries_of(name) {
                forget(routes.retries.remove_label_values(&[name, endpoint.address(), cause]));
            }
        }
        if self.in_flight.get().is_some() {
            forget(routes.in_flight.remove_label_values(&[name]));
        }
        if self.tunnels.get().is_some() {
            forget(routes.tunnels.remove_label_values(&[name]));
            for direction in DIRECTIONS {
                forget(routes.tunnel_bytes.remove_label_values(&[name, direction]));
            }
        }
    }
}

impl Series {
    fn is(&self, verb: &str, code: u16, timed: bool) -> bool {
        self.code == code && self.verb == verb && self.duration.is_some() == timed
    }

    fn record(&self, seconds: Option<f64>) {
        self.total.inc();
        if let (Some(seconds), Some(duration)) = (seconds, &self.duration) {
            duration.observe(seconds);
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
        let shows = |text: &str| metrics.render().unwrap().contains(text);
        assert!(!shows("group=\"g\""));
        route.record("GET", 200, Some(0.1));
        route.record("GET", 200, Some(0.1));
        route.record("WATCH", 200, None);
        route.terminated("GET", 503, "ConnectRefused");
        route.aborted("LIST", "BackendReset");
        let endpoint = EndpointMetrics::of(&metrics, "n/s", "127.0.0.1:1");
        route.retried(&endpoint, "ConnectRefused");
        route.long_running("WATCH").inc();
        route.tunnels().unwrap().open.inc();
        assert!(shows("verb=\"GET\",version=\"v1\"} 2"));
        assert!(shows("cause=\"ConnectRefused\",endpoint=\"127.0.0.1:1\""));
        drop(route);
        assert!(!shows("group=\"g\"") && !shows("v1.g"));
    }

    #[test]
    fn phases_go_with_the_route_or_with_the_endpoint_whichever_goes_first() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let route = RouteMetrics::of_api_service(&metrics, &"v1.g".into(), "g", "v1");
        let endpoint = |address| EndpointMetrics::of(&metrics, "n/s", address);
        let (one, two) = (endpoint("127.0.0.1:1"), endpoint("127.0.0.1:2"));
        let waited = Phases { queue: 0.1, first_byte: 0.2, ..Phases::default() };
        route.record_phases(&one, &waited, false);
        route.record_phases(&two, &Phases { queue: 0.0, ..waited }, true);
        let lines = |text: &str| {
            let rendered = metrics.render().unwrap();
            rendered.lines().filter(|line| line.contains("_count") && line.contains(text)).count()
        };
        assert_eq!((lines("127.0.0.1:1"), lines("127.0.0.1:2")), (5, 2));
        drop(one);
        assert_eq!((lines("127.0.0.1:1"), lines("127.0.0.1:2")), (0, 2));
        drop(route);
        assert_eq!(lines("phase="), 0);
    }
}
