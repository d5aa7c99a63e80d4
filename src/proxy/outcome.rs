//! One record per request, written when it is dropped, so that a cancelled request counts too.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use prometheus::IntGauge;

use super::Connection;
use super::access_log::{Entry, Line};
use super::admission::Kind;
use super::spans::{self, Ended, Sampled, TraceContext};
use crate::auth::Caller;
use crate::body::{BodyError, Direction, Observe};
use crate::model::fault::ServicePort;
use crate::model::rejection::Rejection;
use crate::model::request_info::RequestInfo;
use crate::model::user::GROUP_MASTERS;
use crate::runtime::lifecycle::OpenGuard;
use crate::runtime::spans::Span;
use crate::runtime::telemetry::{Phases, RouteMetrics, TunnelMetrics};
use crate::upstream::{DialTimes, Lease, Progress, Retried};

/// The code under which upstream's metrics count a client that went away before its answer.
const CODE_CLIENT_GONE: u16 = 499;
/// The cause of an end that nobody but the client brought about.
const CAUSE_CLIENT_GONE: &str = "ClientGone";

/// What became of a request, from its headers to the end of its response.
#[derive(Debug)]
pub(super) struct Outcome {
    begun: Instant,
    verb: &'static str,
    connection: Arc<Connection>,
    route: Arc<RouteMetrics>,
    place: Place,
    pub(super) audit_id: HeaderValue,
    code: Option<StatusCode>,
    cause: Option<&'static str>,
    /// The response came to its end.
    complete: bool,
    caller: Option<Arc<Caller>>,
    /// The endpoint that was tried last.
    endpoint: Option<SocketAddr>,
    answered: Option<Answered>,
    /// The stream to the backend; ends with the response.
    lease: Option<Lease>,
    sent: u64,
    tunnel: Option<Box<Tunnelled>>,
    /// Only where there is an access log.
    entry: Option<Box<Entry>>,
    /// Only of a request that is sampled.
    span: Option<Box<Span>>,
    open: OpenGuard,
}

/// Where a request is counted while it is open.
#[derive(Debug)]
enum Place {
    /// It has a deadline; not let in yet, or it is for a page that needs no room.
    Outside,
    /// It has a deadline and was let in.
    Inside(Kind),
    /// It is long-running; the gauge is its route's.
    LongRunning(Option<IntGauge>),
}

/// A backend's answer has begun.
#[derive(Debug)]
struct Answered {
    at: Instant,
    phases: Phases,
}

/// What a tunnel has carried so far, in bytes.
#[derive(Debug)]
struct Tunnelled {
    to_backend: u64,
    to_client: u64,
    metrics: TunnelMetrics,
}

impl Outcome {
    /// Begins to record.
    pub(super) fn new(
        connection: &Arc<Connection>,
        (verb, long_running): (&'static str, bool),
        parts: &Parts,
        audit_id: HeaderValue,
    ) -> Self {
        let proxy = &connection.proxy;
        Self {
            begun: Instant::now(),
            verb,
            route: Arc::clone(&proxy.counters.pages),
            place: if long_running { Place::LongRunning(None) } else { Place::Outside },
            audit_id,
            code: None,
            cause: None,
            // Of the answer to a HEAD no body is carried.
            complete: parts.method == Method::HEAD,
            caller: None,
            endpoint: None,
            answered: None,
            lease: None,
            sent: 0,
            tunnel: None,
            entry: connection.access_log.as_ref().map(|_| Box::new(Entry::new(parts))),
            span: None,
            open: proxy.drain.request(long_running),
            connection: Arc::clone(connection),
        }
    }

    /// As whom the request goes on, for the log.
    pub(super) fn set_caller(&mut self, caller: &Arc<Caller>) {
        self.caller = Some(Arc::clone(caller));
    }

    /// The caller has authenticated, so that it may be asked whether it wants to be traced.
    pub(super) fn sample(&mut self, info: &RequestInfo<'_>, parts: &Parts) {
        let spans = &self.connection.proxy.spans;
        let Some(caller) = self.caller.as_deref().filter(|_| spans.are_sent()) else { return };
        self.span = spans::sample(
            spans,
            &Sampled {
                info,
                parts,
                caller,
                client: self.connection.client.as_bytes(),
                audit_id: &self.audit_id,
                begun: self.begun,
            },
        );
    }

    /// The request goes on to this service; gives the trace context for it when it is sampled.
    pub(super) fn begin_call(
        &mut self,
        parts: &Parts,
        service: &ServicePort,
    ) -> Option<TraceContext> {
        spans::begin_call(self.span.as_deref_mut()?, parts, service)
    }

    /// True for a caller without credentials, and not for who acts as such a one.
    pub(super) fn is_anonymous(&self) -> bool {
        self.caller.as_ref().is_some_and(|caller| caller.requestor().is_anonymous)
    }

    /// The request is let in, or told to come later; long-running ones always are.
    pub(super) fn enter(
        &mut self,
        info: &RequestInfo<'_>,
        caller: &Caller,
    ) -> Result<(), Rejection> {
        if matches!(self.place, Place::Outside) {
            let kind = if info.is_read_only() { Kind::ReadOnly } else { Kind::Mutating };
            let privileged = caller.requestor().user.in_group(GROUP_MASTERS);
            self.connection.proxy.admission.enter(kind, privileged)?;
            self.place = Place::Inside(kind);
        }
        Ok(())
    }

    /// True where its backend, which has `open` requests open, would leave too little room for others.
    pub(super) fn crowds_out(&self, caller: &Caller, open: impl FnOnce() -> usize) -> bool {
        let Place::Inside(kind) = self.place else { return false };
        self.connection.proxy.admission.crowds_out(kind, open)
            && !caller.requestor().user.in_group(GROUP_MASTERS)
    }

    /// The request turned out to be for this route.
    pub(super) fn set_route(&mut self, route: &Arc<RouteMetrics>) {
        if let Some(gauge) = route.in_flight() {
            gauge.inc();
        }
        self.route = Arc::clone(route);
        if let Place::LongRunning(gauge) = &mut self.place {
            let of_route = route.long_running(self.verb);
            of_route.inc();
            *gauge = Some(of_route);
        }
    }

    /// What counts the bytes of the request's body, where somebody wants to know.
    pub(super) fn receiver(&self) -> Option<Box<dyn Observe>> {
        self.entry.as_ref().map(|entry| entry.receiver())
    }

    /// A backend's answer begins; `waited` is how long a connection was waited for.
    pub(super) fn answered_by(&mut self, lease: Lease, waited: Duration) {
        let at = Instant::now();
        let before = at - self.begun;
        let DialTimes { connect, tls } = match waited {
            Duration::ZERO => DialTimes::default(),
            // It may have waited for a part of the dial only, which somebody else had begun.
            _ => lease.dial_times(),
        };
        let (connect, tls) = (connect.min(waited), tls.min(waited.saturating_sub(connect)));
        let phases = Phases {
            queue: waited.saturating_sub(connect + tls).as_secs_f64(),
            connect: connect.as_secs_f64(),
            tls: tls.as_secs_f64(),
            first_byte: before.saturating_sub(waited).as_secs_f64(),
            body: 0.0,
        };
        self.answered = Some(Answered { at, phases });
        self.endpoint = Some(lease.endpoint().address);
        self.lease = Some(lease);
    }

    /// The request was sent out, or tried to be.
    pub(super) fn tried(&mut self, progress: &Progress) {
        self.endpoint = progress.endpoint();
        for Retried { endpoint, cause } in progress.retries() {
            self.route.retried(&endpoint, cause);
        }
    }

    /// The connection becomes a tunnel, which is counted until the record is dropped.
    pub(super) fn tunnels(&mut self) {
        let Some(metrics) = self.route.tunnels() else { return };
        metrics.open.inc();
        // Whichever end closes it, that is its end.
        self.complete = true;
        if let Place::Inside(kind) = self.place {
            // Long-running from here on, whatever its path.
            self.connection.proxy.admission.leave(kind);
            let gauge = self.route.long_running(self.verb);
            gauge.inc();
            self.place = Place::LongRunning(Some(gauge));
            self.open = self.connection.proxy.drain.request(true);
        }
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
        self.route.terminated(self.verb, rejection.code().as_u16(), rejection.cause());
    }

    /// When the request began.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// Says in the log which hop failed and why; faults of clients are worth a debug line only.
    pub(super) fn log(&self, rejection: &Rejection, parts: &Parts) {
        let code = rejection.code().as_u16();
        let (cause, detail) = (rejection.cause(), rejection.detail());
        let caller = self.caller.as_deref();
        let user = caller.map(|caller| caller.requestor().user.name.as_str()).unwrap_or_default();
        let impersonated_user = caller.and_then(Caller::impersonated_name);
        let audit_id = self.audit_id.to_str().unwrap_or_default();
        let (method, path) = (&parts.method, parts.uri.path());
        if let Rejection::Backend(backend) = rejection {
            tracing::warn!(
                apiservice = &*backend.api_service,
                service = %backend.service,
                cause,
                detail,
                user,
                impersonated_user,
                %method,
                path,
                code,
                audit_id,
                "request failed on the way to its backend"
            );
        } else if code >= 500 {
            tracing::warn!(
                cause,
                detail,
                user,
                impersonated_user,
                %method,
                path,
                code,
                audit_id,
                "request failed"
            );
        } else {
            tracing::debug!(
                cause,
                detail,
                user,
                impersonated_user,
                %method,
                path,
                code,
                audit_id,
                "request rejected"
            );
        }
    }
}

impl Observe for Outcome {
    fn passed(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

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
        self.complete = true;
        let Some(error) = error else {
            if let Some(lease) = &mut self.lease {
                lease.complete();
            }
            return;
        };
        let cause = match error {
            BodyError::Deadline => "Deadline",
            BodyError::Stalled => "ClientStalled",
            BodyError::Reset(_) | BodyError::Aborted(_) => "BackendReset",
        };
        self.cause = Some(cause);
        self.route.aborted(self.verb, cause);
        if matches!(error, BodyError::Stalled) {
            // It is the client's doing, who could fill the log with it.
            return;
        }
        tracing::warn!(
            apiservice = self.route.api_service(),
            cause,
            endpoint = ?self.endpoint,
            audit_id = self.audit_id.to_str().unwrap_or_default(),
            %error,
            "response aborted"
        );
    }
}

impl Outcome {
    fn send_span(&self, mut span: Span, code: u16, now: Instant) {
        // A watch that its client ends has not failed.
        let gone = if self.code.is_some() { "" } else { CAUSE_CLIENT_GONE };
        spans::end(
            &mut span,
            &Ended {
                code,
                cause: self.cause.unwrap_or(gone),
                endpoint: self.endpoint,
                phases: self.answered.as_ref().map(|answered| &answered.phases),
            },
        );
        self.connection.proxy.spans.send(span, now);
    }

    fn write_line(&self, entry: &Entry, code: u16, latency: Duration) {
        let Some(log) = &self.connection.access_log else { return };
        let caller = self.caller.as_deref();
        let cause = self.cause.unwrap_or(if self.complete { "" } else { CAUSE_CLIENT_GONE });
        let tried;
        let endpoint = match (&self.lease, self.endpoint) {
            (Some(lease), _) => lease.endpoint().metrics().address(),
            (None, Some(address)) => {
                tried = address.to_string();
                &tried
            }
            (None, None) => "",
        };
        log.write(&Line {
            entry,
            verb: self.verb,
            user: caller.map(|caller| caller.requestor().user.name.as_str()).unwrap_or_default(),
            impersonated_user: caller.and_then(Caller::impersonated_name).unwrap_or_default(),
            client: self.connection.client.as_bytes(),
            api_service: self.route.api_service(),
            endpoint,
            code,
            cause,
            latency,
            phases: self.answered.as_ref().map(|answered| &answered.phases),
            received: entry.received() + self.tunnel.as_ref().map_or(0, |tunnel| tunnel.to_backend),
            sent: self.sent + self.tunnel.as_ref().map_or(0, |tunnel| tunnel.to_client),
            audit_id: self.audit_id.as_bytes(),
        });
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        let now = Instant::now();
        let latency = now - self.begun;
        let long_running = match &self.place {
            Place::Outside => false,
            Place::Inside(kind) => {
                self.connection.proxy.admission.leave(*kind);
                false
            }
            Place::LongRunning(gauge) => {
                gauge.iter().for_each(IntGauge::dec);
                true
            }
        };
        if let Some(tunnel) = &self.tunnel {
            tunnel.metrics.open.dec();
        }
        if let Some(gauge) = self.route.in_flight() {
            gauge.dec();
        }
        let code = self.code.map_or(CODE_CLIENT_GONE, |code| code.as_u16());
        self.route.record(self.verb, code, (!long_running).then_some(latency.as_secs_f64()));
        if let (Some(answered), Some(lease)) = (&mut self.answered, &self.lease) {
            answered.phases.body = (now - answered.at).as_secs_f64();
            self.route.record_phases(lease.endpoint().metrics(), &answered.phases, long_running);
        }
        tracing::debug!(
            verb = self.verb,
            apiservice = self.route.api_service(),
            user = self.caller.as_deref().map(|caller| caller.requestor().user.name.as_str()),
            endpoint = ?self.endpoint,
            code,
            cause = self.cause,
            ?latency,
            audit_id = self.audit_id.to_str().unwrap_or_default(),
            "request is over"
        );
        if let Some(entry) = &self.entry {
            self.write_line(entry, code, latency);
        }
        if let Some(span) = self.span.take() {
            self.send_span(*span, code, now);
        }
    }
}
