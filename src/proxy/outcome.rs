//! One record per request, written when it is dropped, so that a cancelled request counts too.

use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderValue, StatusCode};

use crate::auth::Caller;
use crate::body::{BodyError, Direction, Observe};
use crate::model::rejection::Rejection;
use crate::runtime::lifecycle::OpenGuard;
use crate::runtime::telemetry::{Metrics, RouteMetrics, TunnelMetrics};
use crate::upstream::Lease;

/// The code under which upstream's metrics count a client that went away before its answer.
const CODE_CLIENT_GONE: u16 = 499;

/// What became of a request, from its headers to the end of its response.
#[derive(Debug)]
pub(super) struct Outcome {
    begun: Instant,
    verb: &'static str,
    long_running: bool,
    route: Arc<RouteMetrics>,
    metrics: Arc<Metrics>,
    inflight: prometheus::IntGauge,
    pub(super) audit_id: HeaderValue,
    code: Option<StatusCode>,
    cause: Option<&'static str>,
    caller: Option<Arc<Caller>>,
    /// The stream to the backend; ends with the response.
    pub(super) lease: Option<Lease>,
    tunnel: Option<Box<Tunnelled>>,
    _open: OpenGuard,
}

/// What a tunnel has carried so far, in bytes.
#[derive(Debug)]
struct Tunnelled {
    to_backend: u64,
    to_client: u64,
    metrics: TunnelMetrics,
}

impl Outcome {
    /// Begins to record; `kind` is the gauge of its kind of requests.
    pub(super) fn new(
        metrics: &Arc<Metrics>,
        route: &Arc<RouteMetrics>,
        verb: &'static str,
        audit_id: HeaderValue,
        (open, long_running): (OpenGuard, bool),
        kind: &prometheus::IntGauge,
    ) -> Self {
        kind.inc();
        Self {
            begun: Instant::now(),
            verb,
            long_running,
            route: Arc::clone(route),
            metrics: Arc::clone(metrics),
            inflight: kind.clone(),
            audit_id,
            code: None,
            cause: None,
            caller: None,
            lease: None,
            tunnel: None,
            _open: open,
        }
    }

    /// Who is calling, for the log.
    pub(super) fn set_caller(&mut self, caller: &Arc<Caller>) {
        self.caller = Some(Arc::clone(caller));
    }

    /// True for a caller without credentials.
    pub(super) fn is_anonymous(&self) -> bool {
        self.caller.as_ref().is_some_and(|caller| caller.is_anonymous)
    }

    /// The request turned out to be for this route.
    pub(super) fn set_route(&mut self, route: &Arc<RouteMetrics>) {
        if let Some(gauge) = route.in_flight() {
            gauge.inc();
        }
        self.route = Arc::clone(route);
    }

    /// The connection becomes a tunnel, which is counted until the record is dropped.
    pub(super) fn tunnels(&mut self) {
        let Some(metrics) = self.route.tunnels() else { return };
        metrics.open.inc();
        self.tunnel =
            Some(Box::new(Tunnelled { to_backend: 0, to_client: 0, metrics: metrics.clone() }));
    }

    /// The response's code is known.
    pub(super) fn answered(&mut self, code: StatusCode) {
        self.code = Some(code);
    }

    /// The request ended here.
    pub(super) fn rejected(&mut self, rejection: &Rejection) {
        self.code = Some(rejection.code());
        self.cause = Some(rejection.cause());
        self.metrics.terminated(
            self.route.api_service(),
            rejection.code().as_u16(),
            rejection.cause(),
        );
    }

    /// When the request began.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// Says in the log which hop failed and why; faults of clients are worth a debug line only.
    pub(super) fn log(&self, rejection: &Rejection, parts: &Parts) {
        let code = rejection.code().as_u16();
        let (cause, detail) = (rejection.cause(), rejection.detail());
        let user = self.caller.as_ref().map(|caller| caller.user.name.as_str()).unwrap_or_default();
        let audit_id = self.audit_id.to_str().unwrap_or_default();
        let (method, path) = (&parts.method, parts.uri.path());
        if let Rejection::Backend(backend) = rejection {
            tracing::warn!(
                apiservice = &*backend.api_service,
                service = %backend.service,
                cause,
                detail,
                user,
                %method,
                path,
                code,
                audit_id,
                "request failed on the way to its backend"
            );
        } else if code >= 500 {
            tracing::warn!(cause, detail, user, %method, path, code, audit_id, "request failed");
        } else {
            tracing::debug!(cause, detail, user, %method, path, code, audit_id, "request rejected");
        }
    }
}

impl Observe for Outcome {
    fn carried(&mut self, direction: Direction, bytes: usize) {
        let Some(tunnel) = &mut self.tunnel else { return };
        let bytes = bytes as u64;
        match direction {
            Direction::ToBackend => {
                tunnel.to_backend += bytes;
                tunnel.metrics.to_backend.inc_by(bytes);
            }
            Direction::ToClient => {
                tunnel.to_client += bytes;
                tunnel.metrics.to_client.inc_by(bytes);
            }
        }
    }

    fn ended(&mut self, error: Option<&BodyError>) {
        match error {
            None => {
                if let Some(lease) = &mut self.lease {
                    lease.complete();
                }
            }
            Some(error) => {
                let cause = match error {
                    BodyError::Deadline => "Deadline",
                    BodyError::Reset(_) | BodyError::Aborted(_) => "BackendReset",
                };
                self.cause = Some(cause);
                let endpoint = self.lease.as_ref().map(|lease| lease.endpoint().address);
                tracing::warn!(
                    apiservice = self.route.api_service(),
                    cause,
                    ?endpoint,
                    audit_id = self.audit_id.to_str().unwrap_or_default(),
                    %error,
                    "response aborted"
                );
                self.metrics.terminated(self.route.api_service(), self.code_number(), cause);
            }
        }
    }
}

impl Outcome {
    fn code_number(&self) -> u16 {
        self.code.map_or(CODE_CLIENT_GONE, |code| code.as_u16())
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.inflight.dec();
        if let Some(tunnel) = &self.tunnel {
            tunnel.metrics.open.dec();
            tracing::debug!(
                apiservice = self.route.api_service(),
                audit_id = self.audit_id.to_str().unwrap_or_default(),
                bytes_to_backend = tunnel.to_backend,
                bytes_to_client = tunnel.to_client,
                "tunnel closed"
            );
        }
        if let Some(gauge) = self.route.in_flight() {
            gauge.dec();
        }
        let seconds = (!self.long_running).then(|| self.begun.elapsed().as_secs_f64());
        self.route.record(self.verb, self.code_number(), seconds);
    }
}
