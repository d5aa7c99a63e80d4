//! Endpoints: one address of a service, and what all data-plane threads share about it.
//!
//! Endpoints survive changes of the routing table, so that what one thread learns about one is every
//! thread's knowledge; they hold atomics only.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustls_pki_types::ServerName;

use super::describe::EndpointState;
use super::standing::Standing;
use crate::model::fault::ServicePort;
use crate::runtime::telemetry::{EndpointMetrics, Metrics};

/// One address of a backend.
#[derive(Debug)]
pub struct Endpoint {
    /// Unique over the life of the process: the pools' key.
    pub id: u64,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whose certificate it must show, when that is not the same for all of its backend's.
    pub(super) name: Option<ServerName<'static>>,
    service: ServicePort,
    in_flight: AtomicUsize,
    /// Those of them that have no deadline.
    pub(super) long: AtomicUsize,
    /// Requests that it was ever given.
    pub(super) taken: AtomicU64,
    pub(super) standing: Standing,
    metrics: Arc<Metrics>,
    series: OnceLock<Arc<EndpointMetrics>>,
}

/// An address and whose certificate it must show, when that is not its backend's own name.
pub(super) type Located = (SocketAddr, Option<ServerName<'static>>);

impl Endpoint {
    pub(super) fn new(service: &ServicePort, place: Located, metrics: &Arc<Metrics>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let (address, name) = place;
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            address,
            name,
            service: service.clone(),
            in_flight: AtomicUsize::new(0),
            long: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            standing: Standing::default(),
            metrics: Arc::clone(metrics),
            series: OnceLock::new(),
        }
    }

    /// Requests that are open on it, over all threads.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whose endpoint it is.
    pub(super) fn service(&self) -> &ServicePort {
        &self.service
    }

    pub(super) fn describe(&self) -> EndpointState {
        EndpointState {
            id: self.id,
            address: self.address,
            standing: self.standing_word(),
            death: self.death().map(|fault| fault.hop.word()),
            in_flight: self.in_flight(),
            connections: self.series.get().map_or(0, |series| series.connections.get()),
        }
    }

    /// Its series, made on first use and removed with the endpoint.
    pub fn metrics(&self) -> &Arc<EndpointMetrics> {
        self.series.get_or_init(|| {
            let ServicePort { namespace, name, .. } = &self.service;
            let service = if self.service.is_service() {
                format!("{namespace}/{name}")
            } else {
                name.to_string()
            };
            EndpointMetrics::of(&self.metrics, &service, &self.address.to_string())
        })
    }
}

/// A request's place at an endpoint, from the choice of it on: who waits for a connection is load too.
#[derive(Debug)]
pub(super) struct Place {
    endpoint: Arc<Endpoint>,
    is_long: bool,
}

impl Place {
    pub(super) fn take(endpoint: &Arc<Endpoint>, is_long: bool) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        endpoint.taken.fetch_add(1, Ordering::Relaxed);
        if is_long {
            endpoint.long.fetch_add(1, Ordering::Relaxed);
        }
        endpoint.metrics().in_flight.inc();
        Self { endpoint: Arc::clone(endpoint), is_long }
    }

    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.is_long {
            self.endpoint.long.fetch_sub(1, Ordering::Relaxed);
        }
        self.endpoint.metrics().in_flight.dec();
    }
}

/// The endpoints of a backend as a request finds them.
pub type Endpoints = Arc<[Arc<Endpoint>]>;

/// Endpoints of one service, for tests of the modules beside.
#[cfg(test)]
pub(super) fn for_tests(count: u16) -> Vec<Arc<Endpoint>> {
    let metrics = Arc::new(Metrics::new().unwrap());
    let service = ServicePort { namespace: "n".into(), name: "s".into(), port: 443 };
    let at = |port| (SocketAddr::from(([127, 0, 0, 1], port)), None);
    (1..=count).map(|port| Arc::new(Endpoint::new(&service, at(port), &metrics))).collect()
}
