//! A request for another protocol: whether it may pass, and the tunnel that it becomes.
//!
//! The protocols are SPDY and WebSocket, for resources behind another API server and nothing
//! else: an upgrade on a discovery or health path would hand its caller a connection that no rule
//! about such paths covers.

use std::time::{Duration, Instant};

use http::header::{CONNECTION, CONTENT_LENGTH, LOCATION, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Response, Version, response};
use hyper::upgrade::Upgraded;
use tokio::time::timeout_at;

use super::forward::{Destination, respond};
use super::headers::Told;
use super::outcome::Outcome;
use super::{Asked, Connection, headers};
use crate::auth::names_token;
use crate::body::{Body, Tunnel};
use crate::model::fault::{Fault, Hop};
use crate::model::rejection::Rejection;
use crate::model::routing_table::Route;
use crate::model::upgrade;
use crate::upstream::{Answer, Outgoing, Progress, Reply};

const UPGRADE_LISTED: HeaderValue = HeaderValue::from_static("Upgrade");
const CLOSE: HeaderValue = HeaderValue::from_static("close");
const CLOSE_AND_UPGRADE: HeaderValue = HeaderValue::from_static("close, Upgrade");

/// True for a request that asks for another protocol. HTTP/1.0 has no such thing, and HTTP/2 does
/// not allow its headers.
pub(super) fn is_asked(parts: &Parts) -> bool {
    parts.version == Version::HTTP_11 && upgrade::is_asked(&parts.headers)
}

/// Refuses upgrades of what is not a resource behind another API server, to other protocols, and
/// with a body. Paths that nobody serves keep their own answer.
pub(super) fn check<B>(asked: Asked<'_>, route: &Route<B>, body: &Body) -> Result<(), Rejection> {
    let refused = |text: &str| Err(Rejection::BadRequest(text.to_owned()));
    match route {
        Route::Remote(_) | Route::Core if asked.info.is_resource => {}
        Route::Remote(_) | Route::Core | Route::Documents(_) | Route::Objects | Route::Own(_) => {
            return refused("this path does not take upgrades to another protocol");
        }
        Route::Local | Route::NotFound | Route::NotReady => return Ok(()),
    }
    if !upgrade::is_allowed(&asked.parts.headers) {
        return refused("only upgrades to websocket and SPDY are allowed");
    }
    if !body.is_end_stream() {
        return refused("a request for an upgrade may not have a body");
    }
    Ok(())
}

/// After an answer other than the switch the connection serves no further request: what comes on it
/// may have been meant for the other protocol.
pub(super) fn close(answer: &mut Response<Body>) {
    let names = answer.headers().contains_key(UPGRADE);
    answer.headers_mut().insert(CONNECTION, if names { CLOSE_AND_UPGRADE } else { CLOSE });
}

impl Connection {
    /// Asks the backend to switch, on a connection of its own, and gives its answer: a tunnel, or
    /// the refusal as it comes.
    pub(super) async fn switch(
        &self,
        to: Destination<'_>,
        asked: Asked<'_>,
        outcome: &mut Outcome,
    ) -> Result<Response<Body>, Rejection> {
        let Asked { info, parts, deadline, .. } = asked;
        let failed = |fault: Fault| to.reject(info, fault);
        if let Some(fault) = to.fault() {
            return Err(failed(fault.clone()));
        }
        let trace = outcome.begin_call(parts, to.service);
        let make = || {
            let mut headers = self.headers(&to.told, parts, &outcome.audit_id);
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
        let call = to.upstream.backend.switch(&request);
        let reply = match deadline {
            Some(deadline) => match timeout_at(deadline.into(), call).await {
                Ok(reply) => reply,
                Err(_) => Err(progress.deadline()),
            },
            None => call.await,
        };
        outcome.tried(&progress);
        let here = |fault: Fault| failed(fault.at(progress.endpoint()));
        match reply.map_err(here)? {
            Reply::Switched { head, stream, lease } => {
                lease.endpoint().metrics().answered(head.status.as_u16());
                if !is_granted(&parts.headers, &head.headers) {
                    return Err(here(Hop::WrongUpgrade.into()));
                }
                outcome.answered_by(lease, progress.waited());
                Ok(tunnel(head, stream, outcome))
            }
            Reply::Answered(answer) => match (answer.head.status, &answer.head.headers) {
                _ if to.is_core() => Ok(self.refusal(answer, progress.waited(), outcome)),
                (status, headers) if status.is_redirection() && headers.contains_key(LOCATION) => {
                    Err(here(Hop::Redirect.into()))
                }
                (status, _) if status.as_u16() < 400 => {
                    Err(here(Hop::InvalidUpgrade(status.as_u16()).into()))
                }
                _ => Ok(self.refusal(answer, progress.waited(), outcome)),
            },
        }
    }

    /// The headers of any request, with those of the upgrade.
    fn headers(&self, told: &Told<'_>, parts: &Parts, audit_id: &HeaderValue) -> HeaderMap {
        let trust = self.proxy.auth.trust.load();
        let identity = &trust.identity_headers;
        let mut to = headers::for_backend(parts, told, identity, &self.client, audit_id);
        to.insert(CONNECTION, UPGRADE_LISTED);
        for protocols in parts.headers.get_all(UPGRADE) {
            to.append(UPGRADE, protocols.clone());
        }
        to
    }

    /// An error as the backend gave it, with the protocols that it names instead.
    fn refusal(&self, answer: Answer, waited: Duration, outcome: &mut Outcome) -> Response<Body> {
        let named: Vec<_> = answer.head.headers.get_all(UPGRADE).iter().cloned().collect();
        let deadline = Instant::now() + self.proxy.config.request_timeout;
        let mut response = respond(answer, Some(deadline), waited, outcome);
        for protocols in named {
            response.headers_mut().append(UPGRADE, protocols);
        }
        close(&mut response);
        response
    }
}

/// True when the 101 is the one that was asked for; a backend cannot choose a token, which it never
/// saw, as the subprotocol.
fn is_granted(request: &HeaderMap, response: &HeaderMap) -> bool {
    upgrade::is_granted(request, response)
        && !response.get_all(SEC_WEBSOCKET_PROTOCOL).iter().any(names_token)
}

/// The 101 with which the client's connection becomes a tunnel.
fn tunnel(mut head: response::Parts, stream: Upgraded, outcome: &mut Outcome) -> Response<Body> {
    outcome.tunnels();
    let protocol = head.headers.get(UPGRADE).cloned();
    headers::for_client(&mut head.headers, &outcome.audit_id);
    head.headers.remove(CONTENT_LENGTH);
    head.headers.insert(CONNECTION, UPGRADE_LISTED);
    if let Some(protocol) = protocol {
        head.headers.insert(UPGRADE, protocol);
    }
    head.version = Version::default();
    Response::from_parts(head, Body::tunnel(Tunnel::new(stream)))
}
