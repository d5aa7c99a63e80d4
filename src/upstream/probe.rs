//! What portico asks extension API servers itself, and as whom; and the question whether one endpoint
//! answers.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use tokio::time::{sleep, timeout};

use super::backend::Backend;
use super::endpoint::Endpoint;
use super::exchange::{Answer, Outgoing, Progress};
use super::pool::Pool;
use super::retry::{Failed, Retry, TRIES_MAX};
use super::slot::Class;
use crate::body::Body;
use crate::model::fault::{Fault, Hop};

const REMOTE_USER: HeaderName = HeaderName::from_static("x-remote-user");
const REMOTE_GROUP: HeaderName = HeaderName::from_static("x-remote-group");
/// Who asks, as upstream does: a lesser identity gets 500 from every server while the core API
/// server is down.
const USER: HeaderValue = HeaderValue::from_static("system:kube-aggregator");
const GROUP: HeaderValue = HeaderValue::from_static("system:masters");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("portico/", env!("CARGO_PKG_VERSION")));
/// Between two dials that are refused.
const DIAL_PAUSE: Duration = Duration::from_millis(20);
/// How long the rest of a probe's answer may take, and how many bytes of it are read.
const ANSWER_READ_MAX: Duration = Duration::from_secs(1);
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The product that asks.
pub fn own_agent() -> (HeaderName, HeaderValue) {
    (USER_AGENT, AGENT)
}

/// As whom portico asks extension API servers.
pub fn own_identity() -> [(HeaderName, HeaderValue); 2] {
    [(REMOTE_USER, USER), (REMOTE_GROUP, GROUP)]
}

impl Pool {
    /// Asks one endpoint for `path` and gives the status of its answer, whose head comes within
    /// `limit`. Where it is known to hang, that is the answer.
    pub async fn probe(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        endpoint: &Arc<Endpoint>,
        path: &PathAndQuery,
        limit: Duration,
    ) -> Result<StatusCode, Fault> {
        let headers = || own_identity().into_iter().chain([own_agent()]).collect::<HeaderMap>();
        let progress = Progress::default();
        let request =
            Outgoing { method: &Method::GET, path, headers: &headers, progress: &progress };
        let asking = self.ask_endpoint(backend, endpoint, &request);
        let answer = match timeout(limit, asking).await {
            Ok(answer) => answer.map_err(|fault| fault.at(Some(endpoint.address)))?,
            Err(_) => return Err(progress.deadline().at(Some(endpoint.address))),
        };
        let status = answer.head.status;
        // Only so that its connection can be kept: what becomes of it does not matter.
        timeout(ANSWER_READ_MAX, read_up_to(answer, ANSWER_BYTES_MAX)).await.ok();
        Ok(status)
    }

    async fn ask_endpoint(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        endpoint: &Arc<Endpoint>,
        request: &Outgoing<'_>,
    ) -> Result<Answer, Fault> {
        let mut tries = 0;
        loop {
            if endpoint.is_dead() {
                endpoint.want();
            }
            if let Some(fault) = endpoint.hopeless() {
                return Err(fault);
            }
            request.tries(endpoint.address);
            let mut body = Body::empty();
            let answer = self.attempt(backend, endpoint, Class::Short, request, &mut body).await;
            tries += 1;
            match answer {
                Ok(answer) => return Ok(answer),
                // A connection that was kept too long is not the endpoint's fault.
                Err(Failed { retry: Retry::Anywhere, .. }) if tries < TRIES_MAX => {}
                // Behind a virtual address another one may answer the next time.
                Err(Failed { fault: Fault { hop: Hop::ConnectRefused, .. }, .. })
                    if tries < TRIES_MAX =>
                {
                    sleep(DIAL_PAUSE).await;
                }
                Err(failed) => {
                    endpoint.metrics().failed(failed.fault.hop.word());
                    return Err(failed.fault);
                }
            }
        }
    }
}

/// Reads the rest of an answer, if it is short.
async fn read_up_to(mut answer: Answer, bytes_max: usize) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = answer.body.frame().await {
        bytes += frame.data_ref().map_or(0, bytes::Bytes::len);
        if bytes > bytes_max {
            return;
        }
    }
}
