//! The way out to extension API servers: which endpoint, over which connection, and what went wrong.
//!
//! A [`Backend`] is shared by every APIService of one service and TLS identity and by all data-plane
//! threads; each thread has a [`Pool`] of connections of its own, in `slot`s. `balance` only chooses;
//! `dial` connects; `connection` is one HTTP/2 or HTTP/1.1 connection and `exchange` one request on it;
//! `switch` is the request that wants a connection for itself; `retry` knows what is evidence,
//! `shared_tls` with which TLS configuration a handshake is made. `watchdog` asks silent connections
//! whether they live, and dials the dead anew; `standing` is what is held against an endpoint; `probe`
//! asks one whether it answers; `unsent` bounds what waits for a backend. An `api_server` is a backend,
//! too, as its `kubeconfig` has it now: `server_upstream`, and `kube_client` for what is followed there.

pub mod api_server;
mod backend;
mod balance;
pub mod ca_bundles;
mod connection;
mod describe;
mod dial;
mod endpoint;
mod exchange;
mod kube_client;
pub mod kubeconfig;
mod pool;
mod probe;
mod retry;
mod server_upstream;
mod shared_tls;
mod slot;
mod standing;
mod switch;
mod unsent;
mod watchdog;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

pub use api_server::ApiServer;
pub use backend::{Attention, Backend, Doubt};
pub use ca_bundles::CaBundle;
pub use connection::Lease;
pub use describe::{BackendState, ConnectionState, EndpointState, Pools, SlotState, ThreadState};
pub use dial::{DialTimes, Noted, Watched, connect_hop, hop_of_tls, tls_hop};
pub use endpoint::{Endpoint, Endpoints};
pub use exchange::{Answer, Outgoing, Progress, Retried};
pub use kube_client::kube_clients;
pub use kubeconfig::{Access, KubeconfigError, Source};
pub use pool::Pool;
pub use probe::{own_agent, own_identity};
pub use server_upstream::ServerUpstream;
pub use shared_tls::SharedTls;
pub use slot::Class;
pub use switch::Reply;
pub use unsent::Unsent;

use crate::model::endpoints::Targets;
use crate::model::fault::ServicePort;
use crate::runtime::snapshot::View;
use crate::runtime::telemetry::{Metrics, RouteMetrics};
use crate::tls::KeyPair;

/// How backends are reached; the defaults are upstream's (`apimachinery/pkg/util/net/http.go`).
#[derive(Clone, Debug)]
pub struct Config {
    /// The proxy-client pair, shown to backends that ask for a certificate. When it is replaced,
    /// connections that showed the old one carry no more new requests.
    pub identity: Option<View<KeyPair>>,
    /// How long a TCP connection may take to be made.
    pub connect_timeout: Duration,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a connection is kept while nothing uses it.
    pub idle_timeout: Duration,
    /// How long a connection with watches may be silent until it is pinged.
    pub ping_interval: Duration,
    /// How long the answer to that ping may take where new connections can be made.
    pub ping_timeout: Duration,
    /// How long an endpoint may answer neither a request, a ping nor a TLS handshake until it counts
    /// as dead. A fourth of it is the silence on a connection with short requests that is looked into.
    pub verdict_after: Duration,
    /// How often a dead endpoint is dialled anew.
    pub revival_interval: Duration,
    /// How long it takes until an endpoint that came back has its whole share of requests again.
    pub slow_start: Duration,
    /// How long a resolved external name is used.
    pub dns_ttl: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            identity: None,
            connect_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(90),
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(15),
            verdict_after: Duration::from_secs(1),
            revival_interval: Duration::from_secs(1),
            slow_start: Duration::from_secs(5),
            dns_ttl: Duration::from_secs(30),
        }
    }
}

/// What makes two APIServices share one backend: the service and its TLS identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendSpec {
    /// The service.
    pub service: ServicePort,
    /// PEM certificates, the only roots when not empty.
    pub ca_bundle: Arc<[u8]>,
    /// `spec.insecureSkipTLSVerify`.
    pub insecure_skip_tls_verify: bool,
}

/// The backend of one APIService, with the metrics of its route.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Shared by all versions of one service and TLS identity.
    pub backend: Arc<Backend>,
    /// The counters of this APIService.
    pub metrics: Arc<RouteMetrics>,
    /// What is known of its caBundle; none when it has none.
    pub ca_bundle: Option<Arc<CaBundle>>,
}

/// Every backend there is; owned by the control loop, so that there is one writer.
#[derive(Debug)]
pub struct Upstreams {
    config: Config,
    metrics: Arc<Metrics>,
    attention: Arc<Attention>,
    backends: HashMap<BackendSpec, Weak<Backend>>,
    routes: HashMap<Arc<str>, Weak<RouteMetrics>>,
    ca_bundles: HashMap<Arc<[u8]>, Weak<CaBundle>>,
    /// By the caBundle, and whether anybody is trusted.
    tls: HashMap<(Arc<[u8]>, bool), Weak<SharedTls>>,
    sweep_at: usize,
}

/// Registry size from which on entries of backends that are gone are looked for.
const SWEEP_MIN: usize = 64;

impl Upstreams {
    /// A registry without backends.
    pub fn new(config: Config, metrics: Arc<Metrics>) -> Self {
        Self {
            config,
            metrics,
            attention: Arc::default(),
            backends: HashMap::new(),
            routes: HashMap::new(),
            ca_bundles: HashMap::new(),
            tls: HashMap::new(),
            sweep_at: SWEEP_MIN,
        }
    }

    /// Where to wait for backends that may serve something else than is known.
    pub fn attention(&self) -> Arc<Attention> {
        Arc::clone(&self.attention)
    }

    /// The backend of an APIService; versions of one service and TLS identity share it.
    pub fn upstream(
        &mut self,
        api_service: &Arc<str>,
        group: &str,
        version: &str,
        spec: BackendSpec,
    ) -> Upstream {
        self.sweep();
        let known = self.routes.get(api_service).and_then(Weak::upgrade);
        let metrics = known.unwrap_or_else(|| {
            let made = RouteMetrics::of_api_service(&self.metrics, api_service, group, version);
            let made = Arc::new(made);
            self.routes.insert(Arc::clone(api_service), Arc::downgrade(&made));
            made
        });
        let ca_bundle = self.ca_bundle(&spec.ca_bundle);
        let known = self.backends.get(&spec).and_then(Weak::upgrade);
        let backend = known.unwrap_or_else(|| {
            let (config, tls) = (self.config.clone(), self.tls(&spec));
            let made = Backend::new(spec.clone(), config, tls, &self.attention, &self.metrics);
            let made = Arc::new(made);
            self.backends.insert(spec, Arc::downgrade(&made));
            made
        });
        Upstream { backend, metrics, ca_bundle }
    }

    /// Each distinct caBundle is parsed once, however many APIServices have it.
    fn ca_bundle(&mut self, pem: &Arc<[u8]>) -> Option<Arc<CaBundle>> {
        if pem.is_empty() {
            return None;
        }
        let known = self.ca_bundles.get(pem).and_then(Weak::upgrade);
        Some(known.unwrap_or_else(|| {
            let made = Arc::new(CaBundle::new(pem));
            self.ca_bundles.insert(Arc::clone(pem), Arc::downgrade(&made));
            made
        }))
    }

    /// Backends that are trusted for the same reason share what that takes.
    fn tls(&mut self, spec: &BackendSpec) -> Arc<SharedTls> {
        let key = (Arc::clone(&spec.ca_bundle), spec.insecure_skip_tls_verify);
        let known = self.tls.get(&key).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let made = Arc::new(SharedTls::default());
            self.tls.insert(key, Arc::downgrade(&made));
            made
        })
    }

    fn sweep(&mut self) {
        if self.backends.len().max(self.routes.len()) < self.sweep_at {
            return;
        }
        self.backends.retain(|_, backend| backend.strong_count() > 0);
        self.routes.retain(|_, route| route.strong_count() > 0);
        self.ca_bundles.retain(|_, bundle| bundle.strong_count() > 0);
        self.tls.retain(|_, tls| tls.strong_count() > 0);
        self.sweep_at = SWEEP_MIN.max(2 * self.backends.len().max(self.routes.len()));
    }
}

impl Upstream {
    /// Publishes where the service's requests are to be sent; nothing happens when it is the same.
    pub fn set_targets(&self, targets: &Targets) {
        self.backend.set_targets(targets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_one_service_and_identity_share_a_backend_and_other_identities_do_not() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let mut upstreams = Upstreams::new(Config::default(), metrics);
        let spec = |ca: &[u8]| BackendSpec {
            service: ServicePort { namespace: "n".into(), name: "s".into(), port: 443 },
            ca_bundle: ca.into(),
            insecure_skip_tls_verify: false,
        };
        let one = upstreams.upstream(&"v1.g".into(), "g", "v1", spec(b"a"));
        let two = upstreams.upstream(&"v2.g".into(), "g", "v2", spec(b"a"));
        let other = upstreams.upstream(&"v3.g".into(), "g", "v3", spec(b"b"));
        assert!(Arc::ptr_eq(&one.backend, &two.backend));
        assert!(!Arc::ptr_eq(&one.backend, &other.backend));
        let bundle = |upstream: &Upstream| upstream.ca_bundle.clone().unwrap();
        assert!(Arc::ptr_eq(&bundle(&one), &bundle(&two)));
        assert!(!Arc::ptr_eq(&bundle(&one), &bundle(&other)));
    }
}
