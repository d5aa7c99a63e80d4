//! One exchange on a connection: a request out, the head of its answer back.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Uri, response, uri};
use smallvec::SmallVec;

use super::backend::Backend;
use super::connection::Lease;
use super::endpoint::Endpoint;
use super::retry::{Failed, Retry, TRIES_MAX, is_repeatable};
use super::watchdog::{Redial, watch_over_http1};
use crate::body::{Body, pump};
use crate::model::fault::{Fault, Hop};
use crate::runtime::tasks;
use crate::runtime::telemetry::EndpointMetrics;

/// A request as it goes out; headers are made anew for each try.
pub struct Outgoing<'a> {
    /// The method.
    pub method: &'a Method,
    /// Path and query, byte for byte as the client sent them.
    pub path: &'a PathAndQuery,
    /// Makes the headers, without Host.
    pub headers: &'a (dyn Fn() -> HeaderMap + Sync),
    /// How far it has come, so that a deadline can name the hop.
    pub progress: &'a Progress,
}

/// How far a request has come on its way out, and what it met.
#[derive(Debug, Default)]
pub struct Progress(Mutex<Way>);

#[derive(Debug, Default)]
struct Way {
    endpoint: Option<SocketAddr>,
    step: Step,
    /// Since when a connection is waited for.
    waiting: Option<Instant>,
    waited: Duration,
    retries: SmallVec<[Retried; TRIES_MAX]>,
}

/// A try that failed and was followed by another.
#[derive(Clone, Debug)]
pub struct Retried {
    /// The endpoint that failed.
    pub endpoint: Arc<EndpointMetrics>,
    /// The fault's word.
    pub cause: &'static str,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Step {
    /// A connection to the endpoint.
    Connection,
    /// The endpoint's answer.
    #[default]
    Answer,
}

impl Way {
    fn waits_no_more(&mut self) {
        let waited = self.waiting.take().map(|since| since.elapsed());
        self.waited += waited.unwrap_or_default();
    }
}

impl Progress {
    /// The fault of a request whose deadline passed here.
    pub fn deadline(&self) -> Fault {
        let hop = match self.lock().step {
            Step::Connection => Hop::ConnectTimeout,
            Step::Answer => Hop::Deadline,
        };
        hop.into()
    }

    /// The endpoint that was tried last.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.lock().endpoint
    }

    /// How long connections were waited for, over all tries.
    pub fn waited(&self) -> Duration {
        self.lock().waited
    }

    /// The tries before the last one.
    pub fn retries(&self) -> SmallVec<[Retried; TRIES_MAX]> {
        self.lock().retries.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Way> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outgoing<'_> {
    pub(super) fn tries(&self, endpoint: SocketAddr) {
        let mut way = self.progress.lock();
        (way.endpoint, way.step) = (Some(endpoint), Step::Answer);
    }

    pub(super) fn waits_for(&self, step: Step) {
        let mut way = self.progress.lock();
        way.step = step;
        way.waits_no_more();
        if step == Step::Connection {
            way.waiting = Some(Instant::now());
        }
    }

    pub(super) fn tries_again(&self, endpoint: &Endpoint, cause: &'static str) {
        let mut way = self.progress.lock();
        way.waits_no_more();
        way.retries.push(Retried { endpoint: Arc::clone(endpoint.metrics()), cause });
    }
}

/// A backend's answer.
#[derive(Debug)]
pub struct Answer {
    /// Status and headers.
    pub head: response::Parts,
    /// The body as it comes.
    pub body: Body,
    /// To be kept until the body is over.
    pub lease: Lease,
}

pub(super) fn http2_head(backend: &Backend, request: &Outgoing<'_>) -> http::Request<()> {
    let mut parts = uri::Parts::default();
    parts.scheme = Some(uri::Scheme::HTTPS);
    parts.authority = Some(backend.authority.clone());
    parts.path_and_query = Some(request.path.clone());
    let mut head = http::Request::new(());
    *head.method_mut() = request.method.clone();
    // Scheme, authority and path together always make a URI.
    *head.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    *head.headers_mut() = (request.headers)();
    head
}

pub(super) async fn exchange_http2(
    response: ResponseFuture,
    stream: SendStream<Bytes>,
    mut lease: Lease,
    request: &Outgoing<'_>,
    body: &mut Body,
) -> Result<Answer, Failed> {
    let mut untouched = true;
    if !body.is_end_stream() {
        untouched = false;
        lease.upload = Some(upload(std::mem::replace(body, Body::empty()), stream));
    }
    match response.await {
        Ok(response) => {
            lease.served();
            let (head, stream) = response.into_parts();
            Ok(Answer { head, body: Body::http2(stream), lease })
        }
        Err(error) => {
            let noted = lease.noted();
            let by_tls = noted.as_ref().is_some_and(|fault| fault.hop != Hop::Unresponsive);
            let repeatable = is_repeatable(request.method, !untouched);
            let failed = Failed::http2(&error, noted, repeatable);
            if failed.retry == Retry::Never && !by_tls {
                lease.served();
            }
            Err(failed)
        }
    }
}

/// Carries the request's body while the answer may come already.
fn upload(body: Body, mut stream: SendStream<Bytes>) -> tasks::AbortOnDrop {
    tasks::spawn_owned("upload", async move {
        if let Err(error) = pump(body, &mut stream).await {
            tracing::debug!(%error, "request body not carried to its end");
        }
    })
}

pub(super) fn http1_head(backend: &Backend, request: &Outgoing<'_>) -> http::Request<()> {
    let mut head = http::Request::new(());
    *head.method_mut() = request.method.clone();
    *head.uri_mut() = Uri::from(request.path.clone());
    *head.headers_mut() = (request.headers)();
    if let Ok(host) = HeaderValue::from_str(backend.authority.as_str()) {
        head.headers_mut().insert(HOST, host);
    }
    head
}

pub(super) async fn exchange_http1(
    backend: &Backend,
    mut lease: Lease,
    request: &Outgoing<'_>,
    body: &mut Body,
    redial: &Redial,
) -> Result<Answer, Failed> {
    let mut head = http1_head(backend, request);
    let untouched = body.is_end_stream();
    if !untouched && !head.headers().contains_key(CONTENT_LENGTH) {
        // Without it hyper drops the body of a GET.
        head.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let outgoing = head.map(|()| std::mem::replace(body, Body::empty()));
    let Some(connection) = lease.http1_mut() else {
        return Err(Failed::finally(Fault::new(Hop::ProtocolError, "no HTTP/1.1 connection")));
    };
    let repeatable = is_repeatable(request.method, !untouched);
    let answer = tokio::select! {
        biased;
        answer = connection.sender.try_send_request(outgoing) => answer,
        fault = watch_over_http1(redial) => {
            let retry = if repeatable { Retry::Anywhere } else { Retry::Never };
            return Err(Failed { fault, retry });
        }
    };
    match answer {
        Ok(response) => {
            let (head, incoming) = response.into_parts();
            let body = Body::http1(incoming);
            if body.is_end_stream() {
                lease.complete();
            }
            Ok(Answer { head, body, lease })
        }
        Err(mut error) => {
            let noted = connection.noted.get().cloned();
            let unsent = error.take_message();
            let error = error.into_error();
            // The head of an answer that cannot be read is no loss of the connection.
            let is_lost = noted.is_none() && !error.is_parse();
            let again = unsent.is_some() || (repeatable && is_lost);
            let retry = if again { Retry::Anywhere } else { Retry::Never };
            if let Some(unsent) = unsent {
                *body = unsent.into_body();
            }
            let text = error.to_string();
            let fault = noted.unwrap_or_else(|| Fault::new(Hop::BackendReset, text));
            Err(Failed { fault, retry })
        }
    }
}
