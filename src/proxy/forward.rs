//! A request to an extension API server, and its answer back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_TYPE, LOCATION};
use http::uri::PathAndQuery;
use http::{HeaderValue, Response, StatusCode, Version, response};
use tokio::time::timeout_at;

use super::outcome::Outcome;
use super::{Asked, Connection, headers};
use crate::auth::Permit;
use crate::body::Body;
use crate::model::fault::{Fault, Hop};
use crate::model::rejection::{BackendFault, Rejection};
use crate::model::request_info::RequestInfo;
use crate::model::routing_table::Remote;
use crate::upstream::{Answer, Class, Doubt, Outgoing, Progress, Upstream};

impl Connection {
    /// Sends the request on and gives the answer as it comes; path and query go byte for byte.
    pub(super) async fn forward(
        &self,
        permit: &Permit,
        remote: &Remote<Upstream>,
        asked: Asked<'_>,
        mut body: Body,
        outcome: &mut Outcome,
    ) -> Result<Response<Body>, Rejection> {
        let Asked { info, parts, deadline, .. } = asked;
        let failed = |fault: Fault| reject(remote, info, fault);
        if let Some(fault) = &remote.fault {
            return Err(failed(fault.clone()));
        }
        let caller = permit.caller();
        let class = if caller.is_anonymous {
            Class::Anonymous
        } else if info.is_long_running() {
            Class::Long
        } else {
            Class::Short
        };
        let deadline = deadline.map(|deadline| self.deadline(info, outcome.begun(), deadline));
        if !body.is_end_stream() {
            body.set_trailer_filter(Arc::clone(&self.proxy.trailers.0));
            if let Some(receiver) = outcome.receiver() {
                body.set_observer(receiver);
            }
        }
        let identity = &self.proxy.auth.identity_headers;
        let trace = outcome.begin_call(parts, &remote.service);
        let make = || {
            let mut headers =
                headers::for_backend(parts, caller, identity, &self.client, &outcome.audit_id);
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
        let call = self.pool.call(&remote.backend.backend, class, &request, body);
        let answer = match deadline {
            Some(deadline) => match timeout_at(deadline.into(), call).await {
                Ok(answer) => answer,
                Err(_) => Err(progress.deadline()),
            },
            None => call.await,
        };
        outcome.tried(&progress);
        let answer = answer.map_err(|fault| failed(fault.at(progress.endpoint())))?;
        if resource_is_unknown(info, &answer.head) {
            remote.backend.backend.doubt(Doubt::UnknownResource);
        }
        if answer.head.status.is_redirection() && answer.head.headers.contains_key(LOCATION) {
            return Err(failed(Fault::from(Hop::Redirect).at(progress.endpoint())));
        }
        if answer.head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(failed(Fault::from(Hop::WrongUpgrade).at(progress.endpoint())));
        }
        Ok(respond(answer, deadline, progress.waited(), outcome))
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

/// A fault on the way to the backend as the client gets it.
pub(super) fn reject(remote: &Remote<Upstream>, info: &RequestInfo<'_>, fault: Fault) -> Rejection {
    Rejection::Backend(Box::new(BackendFault {
        api_service: Arc::clone(&remote.name),
        service: remote.service.clone(),
        fault,
        discovery: info.is_version_discovery(),
    }))
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
