//! A request to an extension API server or to kube-apiserver, and its answer back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Response, StatusCode, Version, response};
use tokio::time::timeout_at;

use super::headers::Told;
use super::outcome::Outcome;
use super::{Asked, Connection, headers};
use crate::auth::{Caller, Deferral, Permit, Trust};
use crate::body::Body;
use crate::model::fault::{Fault, Hop, ServicePort};
use crate::model::rejection::{BackendFault, Rejection};
use crate::model::request_info::RequestInfo;
use crate::model::routing_table::Remote;
use crate::upstream::{Answer, Backend, Class, Doubt, Outgoing, Progress, Unsent, Upstream};

/// Where a request goes, proven to be allowed to, and what is told there of its caller.
#[derive(Debug)]
pub(super) struct Destination<'a> {
    caller: &'a Caller,
    pub(super) told: Told<'a>,
    pub(super) upstream: &'a Upstream,
    pub(super) service: &'a ServicePort,
    /// The APIService; none for kube-apiserver.
    remote: Option<&'a Remote<Upstream>>,
}

impl<'a> Destination<'a> {
    /// An extension API server.
    pub(super) fn remote(
        permit: &'a Permit,
        remote: &'a Remote<Upstream>,
        trust: &Trust,
    ) -> Result<Self, Rejection> {
        let caller = permit.caller();
        Ok(Self {
            caller,
            told: Told::by_certificate(caller, trust)?,
            upstream: &remote.backend,
            service: &remote.service,
            remote: Some(remote),
        })
    }

    /// kube-apiserver, which decides by itself.
    pub(super) fn core(deferral: &'a Deferral, upstream: &'a Upstream, told: Told<'a>) -> Self {
        let service = &upstream.backend.spec().service;
        Self { caller: deferral.caller(), told, upstream, service, remote: None }
    }

    /// True for kube-apiserver, whose answers pass whatever they are: among them are those of nodes,
    /// pods and services that it stands before.
    pub(super) fn is_core(&self) -> bool {
        self.remote.is_none()
    }

    /// Why requests are answered without being sent.
    pub(super) fn fault(&self) -> Option<&Fault> {
        self.remote.and_then(|remote| remote.fault.as_ref())
    }

    /// A fault on the way as the client gets it.
    pub(super) fn reject(&self, info: &RequestInfo<'_>, fault: Fault) -> Rejection {
        Rejection::Backend(Box::new(BackendFault {
            api_service: self.remote.map_or_else(|| "".into(), |remote| Arc::clone(&remote.name)),
            service: self.service.clone(),
            fault,
            discovery: !self.is_core() && info.is_version_discovery(),
        }))
    }
}

impl Connection {
    /// Sends the request on and gives the answer as it comes; path and query go byte for byte.
    pub(super) async fn forward(
        &self,
        to: Destination<'_>,
        asked: Asked<'_>,
        mut body: Body,
        outcome: &mut Outcome,
    ) -> Result<Response<Body>, Rejection> {
        let Asked { info, parts, deadline, .. } = asked;
        let failed = |fault: Fault| to.reject(info, fault);
        if let Some(fault) = to.fault() {
            return Err(failed(fault.clone()));
        }
        let backend = &to.upstream.backend;
        if !to.is_core() && outcome.crowds_out(to.caller, || backend.short_in_flight()) {
            let text = "its requests hold as many of the places as they may";
            return Err(failed(Fault::new(Hop::Overloaded, text)));
        }
        let class = if to.caller.is_anonymous {
            Class::Anonymous
        } else if info.is_long_running() {
            Class::Long
        } else {
            Class::Short
        };
        let deadline = deadline.map(|deadline| match to.remote {
            Some(_) => self.deadline(info, outcome.begun(), deadline),
            None => deadline,
        });
        let unsent = self.take_in(&mut body, parts, backend, outcome).map_err(failed)?;
        let trust = self.proxy.auth.trust.load();
        let identity = &trust.identity_headers;
        let trace = outcome.begin_call(parts, to.service);
        let make = || {
            let mut headers =
                headers::for_backend(parts, &to.told, identity, &self.client, &outcome.audit_id);
            if let Some(trace) = &trace {
                trace.put(&mut headers);
            }
            headers
        };
        let root = PathAndQuery::from_static("/");
        let progress = Progress::default();
        let request = Outgoing {
            method: &parts.method,
            path: parts.uri.path_and_query().unwrap_or(&root),
            headers: &make,
            progress: &progress,
        };
        let call = self.pool.call(&to.upstream.backend, class, &request, body);
        let answer = match deadline {
            Some(deadline) => match timeout_at(deadline.into(), call).await {
                Ok(answer) => answer,
                Err(_) => Err(progress.deadline()),
            },
            None => call.await,
        };
        drop(unsent);
        outcome.tried(&progress);
        let answer = answer.map_err(|fault| failed(fault.at(progress.endpoint())))?;
        if !to.is_core() {
            if resource_is_unknown(info, &answer.head) {
                to.upstream.backend.doubt(Doubt::UnknownResource);
            }
            if answer.head.status.is_redirection() && answer.head.headers.contains_key(LOCATION) {
                return Err(failed(Fault::from(Hop::Redirect).at(progress.endpoint())));
            }
        }
        if answer.head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(failed(Fault::from(Hop::WrongUpgrade).at(progress.endpoint())));
        }
        Ok(respond(answer, deadline, progress.waited(), outcome))
    }

    /// Room for what the client sends, if it sends anything, and what is to be done with it.
    fn take_in(
        &self,
        body: &mut Body,
        parts: &Parts,
        backend: &Arc<Backend>,
        outcome: &mut Outcome,
    ) -> Result<Option<Unsent>, Fault> {
        if body.is_end_stream() {
            return Ok(None);
        }
        let length = parts.headers.get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let unsent = backend.hold(length)?;
        body.set_trailer_filter(Arc::clone(&self.proxy.trailers.0));
        if let Some(receiver) = outcome.receiver() {
            body.set_observer(receiver);
        }
        Ok(Some(unsent))
    }

    /// When the answer must be complete: sooner for discovery, which upstream bounds too.
    fn deadline(&self, info: &RequestInfo<'_>, begun: Instant, deadline: Instant) -> Instant {
        if info.is_version_discovery() {
            deadline.min(begun + self.proxy.config.discovery_timeout)
        } else {
            deadline
        }
    }
}

/// Whether an answer says that the server has no such resource, not only no such object: nothing was
/// named, or it is no Status that names it.
fn resource_is_unknown(info: &RequestInfo<'_>, head: &response::Parts) -> bool {
    let is_json = || {
        let media = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        media.is_some_and(|media| media.starts_with(b"application/json"))
    };
    head.status == StatusCode::NOT_FOUND && info.is_resource && (info.name.is_empty() || !is_json())
}

/// The backend's answer as the client gets it.
pub(super) fn respond(
    answer: Answer,
    deadline: Option<Instant>,
    waited: Duration,
    outcome: &mut Outcome,
) -> Response<Body> {
    let Answer { mut head, mut body, lease } = answer;
    lease.endpoint().metrics().answered(head.status.as_u16());
    outcome.answered_by(lease, waited);
    headers::for_client(&mut head.headers, &outcome.audit_id);
    if let Some(deadline) = deadline {
        body.set_deadline(deadline.into());
    }
    // The client's connection has its own version, whatever the backend's has.
    head.version = Version::default();
    Response::from_parts(head, body)
}
