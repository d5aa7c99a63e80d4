//! What is counted by endpoint, over all APIServices that are served by it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::phases::PHASES;
use super::{Metrics, counter, forget, gauge};

/// Names of answer classes in `result`, by the code's first digit less one.
const RESULTS: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// What is counted by endpoint.
#[derive(Debug)]
pub(super) struct EndpointVecs {
    requests: IntCounterVec,
    in_flight: IntGaugeVec,
    connections: IntGaugeVec,
    dead: IntGaugeVec,
    /// Who holds the series of which service and address: two backends may share an endpoint.
    held: Mutex<HashMap<(String, String), Weak<EndpointMetrics>>>,
}

impl EndpointVecs {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let labels = &["service", "endpoint"];
        Ok(Self {
            requests: counter(
                "portico_endpoint_requests_total",
                "Requests sent to an endpoint, by class of the answer's code, or the cause of the \
                 failure.",
                &["service", "endpoint", "result"],
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
            dead: gauge(
                "portico_endpoint_dead",
                "1 while an endpoint neither answers nor makes new connections, 0 otherwise.",
                labels,
            )?,
            held: Mutex::default(),
        })
    }

    pub(super) fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        vec![
            Box::new(self.requests.clone()),
            Box::new(self.in_flight.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.dead.clone()),
        ]
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
    /// 1 while it is dead.
    pub dead: IntGauge,
    results: [OnceLock<IntCounter>; 5],
    /// Causes that have a series, to be removed with the endpoint.
    causes: Mutex<BTreeSet<&'static str>>,
    /// APIServices that have series with this endpoint, to be removed with it.
    api_services: Mutex<BTreeSet<Arc<str>>>,
    /// APIServices whose requests were tried again after it, and why.
    retries: Mutex<BTreeSet<(Arc<str>, &'static str)>>,
}

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
            dead: metrics.endpoints.dead.with_label_values(&labels),
            results: Default::default(),
            causes: Mutex::default(),
            api_services: Mutex::default(),
            retries: Mutex::default(),
            metrics: Arc::clone(metrics),
            service: service.to_owned(),
            address: address.to_owned(),
        }
    }

    /// The endpoint's address as it stands in labels.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Counts an answer.
    pub fn answered(&self, code: u16) {
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

    /// Remembers that an APIService has series with this endpoint.
    pub(super) fn seen_by(&self, api_service: &Arc<str>) {
        let mut known = self.api_services.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(Arc::clone(api_service));
    }

    /// Remembers that an APIService's request was tried again after this endpoint.
    pub(super) fn retried_by(&self, api_service: &Arc<str>, cause: &'static str) {
        let mut known = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert((Arc::clone(api_service), cause));
    }

    /// Takes out why requests of an APIService were tried again.
    pub(super) fn retries_of(&self, api_service: &str) -> Vec<&'static str> {
        let mut known = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
        let causes = known.iter().filter(|(name, _)| &**name == api_service);
        let causes = causes.map(|(_, cause)| *cause).collect();
        known.retain(|(name, _)| &**name != api_service);
        causes
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
        forget(metrics.endpoints.in_flight.remove_label_values(&labels));
        forget(metrics.endpoints.connections.remove_label_values(&labels));
        forget(metrics.endpoints.dead.remove_label_values(&labels));
        let causes =
            std::mem::take(&mut *self.causes.lock().unwrap_or_else(PoisonError::into_inner));
        let answers = self.results.iter().zip(RESULTS).filter(|(slot, _)| slot.get().is_some());
        for result in answers.map(|(_, result)| result).chain(causes) {
            let labels = [self.service.as_str(), self.address.as_str(), result];
            forget(metrics.endpoints.requests.remove_label_values(&labels));
        }
        let names =
            std::mem::take(&mut *self.api_services.lock().unwrap_or_else(PoisonError::into_inner));
        let retries =
            std::mem::take(&mut *self.retries.lock().unwrap_or_else(PoisonError::into_inner));
        for (name, cause) in &retries {
            forget(metrics.routes.retries.remove_label_values(&[name, &*self.address, cause]));
        }
        for (name, phase) in names.iter().flat_map(|name| PHASES.map(|phase| (name, phase))) {
            forget(metrics.routes.phases.remove_label_values(&[name, &*self.address, phase]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoints_series_go_with_it() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let endpoint = EndpointMetrics::of(&metrics, "n/s", "127.0.0.1:1");
        let other = EndpointMetrics::of(&metrics, "n/s", "127.0.0.1:1");
        endpoint.answered(200);
        endpoint.failed("ConnectRefused");
        assert!(metrics.render().unwrap().contains("result=\"2xx\""));
        drop(endpoint);
        assert!(metrics.render().unwrap().contains("127.0.0.1:1"));
        drop(other);
        assert!(!metrics.render().unwrap().contains("127.0.0.1:1"));
    }
}
