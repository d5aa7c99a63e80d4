//! Backends: a service with its TLS identity, where its requests go, and what all data-plane threads
//! share about it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::uri::Authority;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::describe::BackendState;
use super::endpoint::{Endpoint, Endpoints, Located};
use super::shared_tls::SharedTls;
use super::standing;
use super::{BackendSpec, Config};
use crate::model::endpoints::{Host, Targets};
use crate::model::fault::{Fault, Hop};
use crate::model::retry_budget::RetryBudget;
use crate::runtime::tasks;
use crate::runtime::telemetry::Metrics;

/// Requests that may wait for a connection to one backend at a time, over all threads.
const WAITING_MAX: usize = 2_000;

/// How long the DNS may take to answer.
const DNS_TIMEOUT: Duration = Duration::from_secs(5);

/// A service with its TLS identity.
#[derive(Debug)]
pub struct Backend {
    spec: BackendSpec,
    pub(super) config: Config,
    pub(super) authority: Authority,
    server_name: Option<ServerName<'static>>,
    tls: Arc<SharedTls>,
    destination: ArcSwap<Destination>,
    resolved: Mutex<Option<(Instant, Endpoints)>>,
    resolving: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
    /// Bytes of requests that it has not answered.
    pub(super) unsent: AtomicUsize,
    retries: Mutex<RetryBudget>,
    doubt: AtomicU8,
    wants_probe: AtomicBool,
    attention: Arc<Attention>,
    metrics: Arc<Metrics>,
}

/// Wakes whoever keeps what backends serve when one may serve something else than is known, and
/// whoever looks whether they are available when that may have changed.
#[derive(Debug, Default)]
pub struct Attention {
    doubts: Notify,
    probes: Notify,
}

impl Attention {
    /// Waits until a backend is in doubt; those that are say so ([`Backend::doubted`]).
    pub async fn wanted(&self) {
        self.doubts.notified().await;
    }

    /// Waits until a backend is to be probed; those that are say so ([`Backend::takes_probe`]).
    pub async fn probes_wanted(&self) {
        self.probes.notified().await;
    }
}

/// Why what is known of a backend's resources may be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// A request was answered as if its resource were unknown.
    UnknownResource = 1,
    /// It has other endpoints than before.
    Moved = 2,
}

#[derive(Debug)]
struct Destination {
    targets: Targets,
    endpoints: Endpoints,
}

impl Backend {
    /// A backend that has no endpoint yet.
    pub fn new(
        spec: BackendSpec,
        config: Config,
        tls: Arc<SharedTls>,
        attention: &Arc<Attention>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let name = spec.service.server_name();
        let authority = format!("{name}:{}", spec.service.port)
            .parse()
            .unwrap_or_else(|_| Authority::from_static("invalid"));
        let name = (authority, ServerName::try_from(name).ok());
        Self::named(name, spec, config, tls, attention, metrics)
    }

    /// A server that is no Service: `name` is what it is called in requests, and whose certificate
    /// it must show; without that each host must show its own.
    pub(super) fn of_server(
        name: (Authority, Option<ServerName<'static>>),
        hosts: Vec<Host>,
        spec: BackendSpec,
        config: Config,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let made = Self::named(name, spec, config, Arc::default(), &Arc::default(), metrics);
        made.set_targets(&Targets::Hosts(hosts));
        made
    }

    fn named(
        (authority, server_name): (Authority, Option<ServerName<'static>>),
        spec: BackendSpec,
        config: Config,
        tls: Arc<SharedTls>,
        attention: &Arc<Attention>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            authority,
            server_name,
            spec,
            config,
            tls,
            destination: ArcSwap::from_pointee(Destination {
                targets: Targets::Addresses(Vec::new()),
                endpoints: Arc::new([]),
            }),
            resolved: Mutex::new(None),
            resolving: tokio::sync::Mutex::new(()),
            waiting: AtomicUsize::new(0),
            unsent: AtomicUsize::new(0),
            retries: Mutex::new(RetryBudget::new(standing::since_epoch())),
            doubt: AtomicU8::new(0),
            wants_probe: AtomicBool::new(false),
            attention: Arc::clone(attention),
            metrics: Arc::clone(metrics),
        }
    }

    /// What it serves may be other than what is known of it.
    pub fn doubt(&self, why: Doubt) {
        if self.doubt.fetch_max(why as u8, Ordering::Relaxed) < why as u8 {
            self.attention.doubts.notify_one();
        }
    }

    /// The gravest doubt that there is.
    pub fn doubted(&self) -> Option<Doubt> {
        let found = self.doubt.load(Ordering::Relaxed);
        [Doubt::UnknownResource, Doubt::Moved].into_iter().find(|doubt| *doubt as u8 == found)
    }

    /// Whether it is available may have changed: an endpoint came or went, died or came back.
    pub(super) fn want_probe(&self) {
        if !self.wants_probe.swap(true, Ordering::Relaxed) {
            self.attention.probes.notify_one();
        }
    }

    /// True when it is to be probed, once.
    pub fn takes_probe(&self) -> bool {
        self.wants_probe.load(Ordering::Relaxed) && self.wants_probe.swap(false, Ordering::Relaxed)
    }

    /// What it serves is asked for now.
    pub fn forget_doubt(&self) {
        self.doubt.store(0, Ordering::Relaxed);
    }

    /// The service and whom to believe that it is it.
    pub fn spec(&self) -> &BackendSpec {
        &self.spec
    }

    /// Sets where requests go from now on; endpoints that stay keep their state.
    pub(super) fn set_targets(&self, targets: &Targets) {
        let current = self.destination.load_full();
        if current.targets == *targets {
            return;
        }
        let endpoints = match targets {
            Targets::Addresses(addresses) => {
                let addresses = addresses.iter().map(|address| (*address, None));
                self.keep(&current.endpoints, addresses)
            }
            Targets::Name { .. } | Targets::Hosts(_) => Arc::new([]),
        };
        self.destination.store(Arc::new(Destination { targets: targets.clone(), endpoints }));
        *self.lock_resolved() = None;
        self.doubt(Doubt::Moved);
        self.want_probe();
    }

    /// Its endpoints as far as they are known, without asking the DNS.
    fn known_endpoints(&self) -> Option<Endpoints> {
        let destination = self.destination.load();
        match &destination.targets {
            Targets::Addresses(_) => Some(Arc::clone(&destination.endpoints)),
            Targets::Name { .. } | Targets::Hosts(_) => {
                self.last_resolved().map(|(_, endpoints)| endpoints)
            }
        }
    }

    /// True while requests may go to that endpoint.
    pub(super) fn has(&self, endpoint: &Endpoint) -> bool {
        let known = self.known_endpoints();
        known.is_some_and(|known| known.iter().any(|other| other.id == endpoint.id))
    }

    /// What it is like now.
    pub fn describe(&self) -> BackendState {
        let endpoints = self.known_endpoints();
        let endpoints = endpoints.iter().flat_map(|endpoints| endpoints.iter());
        BackendState {
            service: self.spec.service.clone(),
            trust: match (self.spec.insecure_skip_tls_verify, self.spec.ca_bundle.is_empty()) {
                (true, _) => "anybody",
                (false, true) => "system",
                (false, false) => "caBundle",
            },
            targets: self.destination.load().targets.clone(),
            waiting: self.waiting.load(Ordering::Relaxed),
            endpoints: endpoints.map(|endpoint| endpoint.describe()).collect(),
        }
    }

    fn keep(
        &self,
        current: &[Arc<Endpoint>],
        located: impl IntoIterator<Item = Located>,
    ) -> Endpoints {
        let located = located.into_iter();
        let kept = located.map(|place| {
            let same = |known: &&Arc<Endpoint>| (known.address, &known.name) == (place.0, &place.1);
            match current.iter().find(same) {
                Some(known) => Arc::clone(known),
                None => Arc::new(Endpoint::new(&self.spec.service, place, &self.metrics)),
            }
        });
        kept.collect()
    }

    /// The endpoints now. An external name's answer that is too old is used all the same while the
    /// DNS is asked again; only where there is none yet does the request wait.
    pub async fn endpoints(self: &Arc<Self>) -> Result<Endpoints, Fault> {
        let destination = self.destination.load_full();
        let found = match &destination.targets {
            Targets::Addresses(_) => Arc::clone(&destination.endpoints),
            Targets::Name { .. } | Targets::Hosts(_) => match self.last_resolved() {
                Some((when, endpoints)) => {
                    if when.elapsed() >= self.config.dns_ttl {
                        self.refresh(&destination);
                    }
                    endpoints
                }
                None => Box::pin(self.resolve(&destination)).await?,
            },
        };
        if found.is_empty() { Err(Hop::NoEndpoints.into()) } else { Ok(found) }
    }

    fn last_resolved(&self) -> Option<(Instant, Endpoints)> {
        self.lock_resolved().clone()
    }

    /// Asks the DNS in the background, unless it is being asked.
    fn refresh(self: &Arc<Self>, destination: &Arc<Destination>) {
        if self.resolving.try_lock().is_err() {
            return;
        }
        let (backend, destination) = (Arc::clone(self), Arc::clone(destination));
        drop(tasks::spawn("dns", async move {
            if let Err(fault) = backend.resolve(&destination).await {
                tracing::warn!(
                    service = %backend.spec.service, detail = %fault.detail,
                    "external name not resolved, last answer kept"
                );
            }
        }));
    }

    /// Asks the DNS, one at a time, and keeps the answer if it is still the one that is wanted.
    async fn resolve(&self, destination: &Arc<Destination>) -> Result<Endpoints, Fault> {
        let names = destination.targets.names();
        if names.is_empty() {
            return Err(Hop::NoEndpoints.into());
        }
        let asked = Instant::now();
        let _turn = self.resolving.lock().await;
        // Somebody else may have asked in the meantime.
        if let Some((when, endpoints)) = self.last_resolved()
            && when >= asked
        {
            return Ok(endpoints);
        }
        let own_names = matches!(destination.targets, Targets::Hosts(_));
        let own_names = own_names && self.server_name.is_none();
        let (mut located, mut fault) = (Vec::new(), None);
        for (host, port) in names {
            let name = || ServerName::try_from(host.to_owned()).ok().filter(|_| own_names);
            match look_up(host, port).await {
                Ok(found) => located.extend(found.into_iter().map(|address| (address, name()))),
                Err(error) => fault = Some(error),
            }
        }
        // One name that is not known does not hide the others.
        if let (true, Some(fault)) = (located.is_empty(), fault) {
            return Err(fault);
        }
        let known = self.last_resolved().map(|(_, endpoints)| endpoints);
        let endpoints = self.keep(known.as_deref().unwrap_or_default(), located);
        let same = |known: &Endpoints| {
            known.len() == endpoints.len()
                && known.iter().zip(&*endpoints).all(|(one, other)| one.id == other.id)
        };
        if !known.as_ref().is_some_and(same) {
            self.want_probe();
        }
        if Arc::ptr_eq(&self.destination.load(), destination) {
            *self.lock_resolved() = Some((Instant::now(), Arc::clone(&endpoints)));
        }
        Ok(endpoints)
    }

    fn lock_resolved(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Endpoints)>> {
        self.resolved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The TLS configuration, made when it is first needed.
    pub(super) fn tls(
        &self,
        endpoint: &Endpoint,
    ) -> Result<(Arc<ClientConfig>, ServerName<'static>), Fault> {
        let config = self.tls_config()?;
        let name = endpoint.name.as_ref().or(self.server_name.as_ref()).cloned();
        let name = name.ok_or_else(|| {
            Fault::new(Hop::NameMismatch, "namespace and name make no valid host name")
        })?;
        Ok((config, name))
    }

    /// The TLS configuration, or why none can be made.
    pub(super) fn tls_config(&self) -> Result<Arc<ClientConfig>, Fault> {
        self.tls.config(&self.spec, self.config.identity.as_ref())
    }

    /// Requests with a deadline that are open on its endpoints, over all threads.
    pub fn short_in_flight(&self) -> usize {
        let short = |endpoint: &Arc<Endpoint>| {
            let long = endpoint.long.load(Ordering::Relaxed);
            endpoint.in_flight().saturating_sub(long)
        };
        self.known_endpoints().map_or(0, |known| known.iter().map(short).sum())
    }

    /// Takes one more try from the budget that its requests have in common.
    pub(super) fn may_retry(&self) -> bool {
        let known = self.known_endpoints();
        let endpoints = known.iter().flat_map(|known| known.iter());
        let requests = endpoints.map(|endpoint| endpoint.taken.load(Ordering::Relaxed)).sum();
        let mut budget = self.retries.lock().unwrap_or_else(PoisonError::into_inner);
        budget.take(standing::since_epoch(), requests)
    }

    /// Counts a request that has to wait for a connection; refused past the limit.
    pub(super) fn wait(self: &Arc<Self>) -> Result<Waiting, Fault> {
        let waiting = Waiting(Arc::clone(self));
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            return Err(Fault::new(Hop::Overloaded, format!("{WAITING_MAX} requests are waiting")));
        }
        Ok(waiting)
    }
}

/// What the DNS says of one host.
async fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, Fault> {
    let unresolved =
        |text: String| Fault::new(Hop::NameNotResolved, format!("lookup {host}: {text}"));
    match timeout(DNS_TIMEOUT, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(error)) => Err(unresolved(error.to_string())),
        Err(_) => Err(unresolved("timed out".to_owned())),
    }
}

/// A request that waits for a connection.
#[derive(Debug)]
pub(super) struct Waiting(Arc<Backend>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fault::ServicePort;

    fn backend() -> Backend {
        let spec = BackendSpec {
            service: ServicePort { namespace: "n".into(), name: "s".into(), port: 443 },
            ca_bundle: Arc::default(),
            insecure_skip_tls_verify: true,
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        Backend::new(spec, Config::default(), Arc::default(), &Arc::default(), &metrics)
    }

    #[tokio::test]
    async fn endpoints_that_stay_keep_their_state_when_others_come_and_go() {
        let backend = Arc::new(backend());
        let addresses =
            |list: &[&str]| Targets::Addresses(list.iter().map(|a| a.parse().unwrap()).collect());
        backend.set_targets(&addresses(&["127.0.0.1:1", "127.0.0.1:2"]));
        let before = backend.endpoints().await.unwrap();
        backend.doubt(Doubt::UnknownResource);
        assert_eq!(backend.doubted(), Some(Doubt::Moved));
        backend.forget_doubt();
        backend.set_targets(&addresses(&["127.0.0.1:1", "127.0.0.1:2"]));
        assert_eq!(backend.doubted(), None);
        backend.set_targets(&addresses(&["127.0.0.1:2", "127.0.0.1:3"]));
        let after = backend.endpoints().await.unwrap();
        assert!(Arc::ptr_eq(&before[1], &after[0]));
        backend.set_targets(&addresses(&[]));
        assert_eq!(backend.endpoints().await.unwrap_err().hop, Hop::NoEndpoints);
    }

    #[tokio::test]
    async fn an_external_name_is_resolved_once_while_its_answer_is_fresh() {
        let backend = Arc::new(backend());
        backend.set_targets(&Targets::Name { host: "localhost".to_owned(), port: 7 });
        let first = backend.endpoints().await.unwrap();
        assert!(Arc::ptr_eq(&first, &backend.endpoints().await.unwrap()));
        assert!(first.iter().all(|endpoint| endpoint.address.port() == 7));
    }

    #[test]
    fn requests_past_the_limit_of_waiting_ones_are_refused_at_once() {
        let backend = Arc::new(backend());
        let waiting: Vec<_> = (0..WAITING_MAX).map(|_| backend.wait().unwrap()).collect();
        assert_eq!(backend.wait().unwrap_err().hop, Hop::Overloaded);
        drop(waiting);
        assert!(backend.wait().is_ok());
    }
}
