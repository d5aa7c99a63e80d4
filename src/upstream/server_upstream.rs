//! An API server over connections of one kind: what its kubeconfig says now is how they are made.
//!
//! A kubeconfig with another certificate or another authority makes a backend of its own, so that no
//! request goes over a connection that was made before; what is open there ends by itself.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::backend::Backend;
use super::kubeconfig::{Access, KubeconfigError};
use super::{BackendSpec, Config, Upstream};
use crate::model::fault::ServicePort;
use crate::runtime::snapshot::View;
use crate::runtime::telemetry::{Metrics, RouteMetrics};
use crate::tls::KeyPair;

/// A server, and how it is called.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) access: View<Access>,
    pub(super) service: ServicePort,
    pub(super) config: Config,
    pub(super) metrics: Arc<Metrics>,
    pub(super) route: Arc<RouteMetrics>,
}

/// By which certificate portico is known on its connections.
#[derive(Clone, Debug)]
pub(super) enum Shows {
    /// The kubeconfig's.
    Own,
    /// Another one, or none.
    Pair(Option<View<KeyPair>>),
}

/// A server over connections of one kind.
#[derive(Debug)]
pub struct ServerUpstream {
    server: Arc<Server>,
    shows: Shows,
    made: ArcSwap<Made>,
    /// Held while it is made anew.
    making: Mutex<()>,
}

#[derive(Debug)]
struct Made {
    access: Arc<Access>,
    upstream: Arc<Upstream>,
}

impl ServerUpstream {
    pub(super) fn new(server: &Arc<Server>, shows: Shows) -> Result<Self, KubeconfigError> {
        let access = server.access.load();
        let upstream = make(server, &access, &shows)?;
        Ok(Self {
            server: Arc::clone(server),
            shows,
            made: ArcSwap::from_pointee(Made { access, upstream: Arc::new(upstream) }),
            making: Mutex::default(),
        })
    }

    /// The server for a request that begins now.
    pub fn now(&self) -> Arc<Upstream> {
        let (access, made) = (self.server.access.load(), self.made.load());
        if Arc::ptr_eq(&made.access, &access) {
            return Arc::clone(&made.upstream);
        }
        drop(made);
        self.anew()
    }

    #[cold]
    fn anew(&self) -> Arc<Upstream> {
        let _turn = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        // What is in force by now: another thread's turn may have been for a newer one.
        let (access, made) = (self.server.access.load(), self.made.load_full());
        if Arc::ptr_eq(&made.access, &access) {
            return Arc::clone(&made.upstream);
        }
        let own = matches!(self.shows, Shows::Own);
        let upstream = if access.connects_like(&made.access, own) {
            Arc::clone(&made.upstream)
        } else {
            match make(&self.server, &access, &self.shows) {
                Ok(upstream) => Arc::new(upstream),
                Err(error) => {
                    tracing::error!(%error, "server is reached as it was before");
                    Arc::clone(&made.upstream)
                }
            }
        };
        self.made.store(Arc::new(Made { access, upstream: Arc::clone(&upstream) }));
        upstream
    }
}

fn make(server: &Server, access: &Access, shows: &Shows) -> Result<Upstream, KubeconfigError> {
    let identity = match shows {
        Shows::Own => access.identity(),
        Shows::Pair(pair) => pair.clone(),
    };
    let spec = BackendSpec {
        service: server.service.clone(),
        ca_bundle: access.ca_bundle(),
        insecure_skip_tls_verify: access.insecure_skip_tls_verify(),
    };
    let called = (access.authority(), access.server_name());
    let config = Config { identity, ..server.config.clone() };
    let backend = Backend::of_server(called, access.hosts(), spec, config, &server.metrics);
    backend.tls_config().map_err(|fault| access.error(&fault.detail))?;
    let metrics = Arc::clone(&server.route);
    Ok(Upstream { backend: Arc::new(backend), metrics, ca_bundle: None })
}
