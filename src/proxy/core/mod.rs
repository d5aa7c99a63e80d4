//! kube-apiserver behind portico: as whom requests go there, and over which connections.
//!
//! kube-apiserver authorizes them itself, so what goes there tells who calls: by front-proxy headers
//! over connections that show the proxy-client pair, or by impersonation with portico's own
//! credentials. Who brought no credentials shows none there either, and gets what kube-apiserver
//! gives to such callers.

mod inquiry;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Response, StatusCode, Uri};
use tokio::sync::Notify;
use tokio::time::timeout;

pub use self::inquiry::Inquiry;
use super::forward::Destination;
use super::headers::Told;
use super::outcome::Outcome;
use super::{Asked, Connection, upgrade};
use crate::auth::{Auth, Caller, Deferral, Trust};
use crate::body::Body;
use crate::model::fault::{Fault, Hop};
use crate::model::rejection::{BackendFault, Rejection};
use crate::model::routing_table::Route;
use crate::runtime::files::Files;
use crate::runtime::snapshot::{Publisher, View};
use crate::runtime::telemetry::{Metrics, RouteMetrics};
use crate::upstream::{self, Access, ApiServer, KubeconfigError, ServerUpstream, Source, Upstream};

/// What it is called in messages, metrics and logs.
const NAME: &str = "kube-apiserver";
/// How long a request waits for it to be known how the core is to be told who calls.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Where kube-apiserver is, and how requests go there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreConfig {
    /// Who says where it is, and who portico is there.
    pub source: Source,
    /// Further servers of the same cluster (`--core-server`).
    pub servers: Vec<Uri>,
    /// How callers are told (`--upstream-identity`).
    pub identity: UpstreamIdentity,
    /// How requests reach extension API servers (`--remote-route`).
    pub remote_route: RemoteRoute,
}

/// How kube-apiserver is told who calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamIdentity {
    /// By front-proxy headers when it believes them, else by impersonation.
    #[default]
    Auto,
    /// By front-proxy headers.
    FrontProxy,
    /// By impersonation.
    Impersonate,
}

/// How requests reach extension API servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RemoteRoute {
    /// Directly when the proxy-client pair is one that the cluster believes, else through the core.
    #[default]
    Auto,
    /// Directly.
    Direct,
    /// Through kube-apiserver, which aggregates them too.
    Core,
}

/// How kube-apiserver is told who calls, as far as that is known.
#[derive(Clone, Debug, PartialEq)]
enum Standing {
    /// It was not found out yet; with the fault that it met last.
    Unknown(Option<Fault>),
    /// By front-proxy headers.
    FrontProxy,
    /// By impersonation.
    Impersonate,
}

/// kube-apiserver.
#[derive(Debug)]
pub struct Core {
    server: Arc<ApiServer>,
    /// Connections that show the proxy-client pair.
    front_proxy: Option<Arc<ServerUpstream>>,
    /// Connections that show no certificate.
    nobody: ServerUpstream,
    standing: View<Standing>,
    /// True while requests to extension API servers go there too.
    takes_remotes: Arc<AtomicBool>,
    /// Woken when it no longer seems to believe what it is told.
    doubt: Arc<Notify>,
}

/// Over which connections a request goes, and what it tells there.
#[derive(Debug)]
enum Way {
    FrontProxy(Arc<Upstream>),
    Impersonate(Arc<Upstream>),
    Nobody(Arc<Upstream>),
}

impl Core {
    /// The core with what finds out how it is to be told; `upstream` holds the proxy-client pair, and
    /// the kubeconfig is one of `files`. Must be called on the runtime that is to keep portico's token
    /// fresh.
    pub fn new(
        config: &CoreConfig,
        upstream: &upstream::Config,
        files: &mut Files,
        metrics: &Arc<Metrics>,
    ) -> Result<(Self, Inquiry), KubeconfigError> {
        let access = Access::follow(&config.source, &config.servers, files)?;
        let first = access.load();
        if !first.prefix().is_empty() {
            return Err(first.error("a path in the server's URL is not supported"));
        }
        let server = Arc::new(ApiServer::new(access, NAME, upstream, metrics)?);
        let pair = upstream.identity.clone();
        let front_proxy = pair.map(|pair| server.upstream_as(Some(pair))).transpose()?;
        let (standing, view) = Publisher::new(Standing::Unknown(None));
        let core = Self {
            nobody: server.upstream_as(None)?,
            front_proxy: front_proxy.map(Arc::new),
            standing: view,
            takes_remotes: Arc::default(),
            doubt: Arc::default(),
            server,
        };
        let ways = (config.identity, config.remote_route);
        let inquiry = Inquiry::new(&core, ways, upstream, standing);
        Ok((core, inquiry))
    }

    /// The server, for what portico asks it itself.
    pub fn server(&self) -> &Arc<ApiServer> {
        &self.server
    }

    /// True when a request with this route goes to kube-apiserver.
    pub(super) fn takes(&self, route: &Route<Upstream>) -> bool {
        match route {
            Route::Core => true,
            Route::Remote(_) | Route::Documents(_) => self.takes_remotes.load(Ordering::Relaxed),
            Route::Objects | Route::Local | Route::Own(_) | Route::NotFound | Route::NotReady => {
                false
            }
        }
    }

    /// Tells whether requests for extension API servers go to these directly; none while that is not
    /// known.
    pub fn goes_direct(&self, trust: View<Trust>) -> Box<dyn Fn() -> Option<bool> + Send> {
        let (standing, takes_remotes) = (self.standing.clone(), Arc::clone(&self.takes_remotes));
        Box::new(move || {
            is_settled(&standing.load(), &trust.load())
                .then(|| !takes_remotes.load(Ordering::Relaxed))
        })
    }

    fn metrics(&self) -> &Arc<RouteMetrics> {
        self.server.metrics()
    }

    fn is_settled(&self, trust: &Trust) -> bool {
        is_settled(&self.standing.load(), trust)
    }

    /// Waits for the first answers, which come right after the start where the core is there: who is
    /// told to come later comes after seconds.
    async fn settled(&self, trust: &View<Trust>) {
        let (mut standing, mut trust) = (self.standing.clone(), trust.clone());
        let settling = async {
            while !self.is_settled(&trust.load()) {
                let changed = tokio::select! {
                    changed = standing.changed() => changed,
                    changed = trust.changed() => changed,
                };
                if !changed {
                    return;
                }
            }
        };
        // What is not known then is said to the caller.
        timeout(SETTLE_TIMEOUT, settling).await.ok();
    }

    fn way(&self, is_anonymous: bool) -> Result<Way, Rejection> {
        if is_anonymous {
            return Ok(Way::Nobody(self.nobody.now()));
        }
        match (&*self.standing.load(), &self.front_proxy) {
            (Standing::FrontProxy, Some(upstream)) => Ok(Way::FrontProxy(upstream.now())),
            (Standing::FrontProxy | Standing::Impersonate, _) => {
                Ok(Way::Impersonate(self.server.upstream()))
            }
            (Standing::Unknown(None), _) => Err(Rejection::NotReady),
            (Standing::Unknown(Some(fault)), _) => {
                Err(Rejection::Backend(Box::new(BackendFault {
                    api_service: "".into(),
                    service: self.server.service().clone(),
                    fault: fault.clone(),
                    discovery: false,
                })))
            }
        }
    }

    fn destination<'a>(
        &'a self,
        deferral: &'a Deferral,
        way: &'a Way,
        trust: &Trust,
    ) -> Result<Destination<'a>, Rejection> {
        let caller = deferral.caller();
        Ok(match way {
            Way::FrontProxy(upstream) => {
                let told = Told::by_certificate(caller, trust)?;
                let told = Told { passes_impersonation: true, ..told };
                Destination::core(deferral, upstream, told)
            }
            Way::Nobody(upstream) => {
                let told = Told { lines: &[], authorization: None, passes_impersonation: true };
                Destination::core(deferral, upstream, told)
            }
            Way::Impersonate(upstream) => {
                let told = Told {
                    lines: caller.impersonation(),
                    authorization: self.server.authorization(),
                    passes_impersonation: false,
                };
                Destination::core(deferral, upstream, told)
            }
        })
    }
}

impl Connection {
    /// Sends a request on to kube-apiserver, which authorizes it, and whom its caller acts as too
    /// where portico does not act as its callers itself.
    pub(super) async fn ask_core(
        &self,
        core: &Core,
        mut caller: Arc<Caller>,
        asked: Asked<'_>,
        body: Body,
        outcome: &mut Outcome,
    ) -> Result<Response<Body>, Rejection> {
        let Asked { info, parts, .. } = asked;
        let Auth { authorizer, trust, .. } = &self.proxy.auth;
        outcome.set_route(core.metrics());
        if !caller.is_anonymous && !core.is_settled(&trust.load()) {
            core.settled(trust).await;
        }
        let way = core.way(caller.is_anonymous)?;
        if matches!(way, Way::Impersonate(_))
            && let Some(other) = authorizer.impersonate(&caller, info, parts, self.asker(asked))?
        {
            caller = other.await?;
            outcome.set_caller(&caller);
        }
        outcome.enter(info, &caller)?;
        let deferral = authorizer.defer(caller);
        let to = core.destination(&deferral, &way, &trust.load())?;
        let answer = if asked.upgrade {
            upgrade::check(asked, &Route::<Upstream>::Core, &body)?;
            self.switch(to, asked, outcome).await
        } else {
            self.forward(to, asked, body, outcome).await
        };
        if matches!(way, Way::FrontProxy(_)) && is_disbelief(&answer) {
            core.doubt.notify_one();
        }
        answer
    }
}

/// True when nothing is awaited that tells how callers are told.
fn is_settled(standing: &Standing, trust: &Trust) -> bool {
    match standing {
        Standing::Unknown(fault) => fault.is_some(),
        Standing::FrontProxy => !trust.may_leak_identity,
        Standing::Impersonate => true,
    }
}

/// True for an answer that kube-apiserver may give to a front proxy that it does not believe.
fn is_disbelief(answer: &Result<Response<Body>, Rejection>) -> bool {
    match answer {
        Ok(answer) => answer.status() == StatusCode::UNAUTHORIZED,
        Err(Rejection::Backend(failed)) => failed.fault.hop == Hop::ClientCertificateRefused,
        Err(_) => false,
    }
}
