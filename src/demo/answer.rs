//! Answers: documents in the negotiated encoding, refusals, plain words, streams.

use std::convert::Infallible;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, USER_AGENT, WARNING};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;

use super::refusal::Refusal;
use crate::model::accept::{Accepted, Offer, negotiate, not_acceptable, wants_pretty};
use crate::model::query::Query;

/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What was agreed with the client about the answer's shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Negotiated {
    pub(crate) accepted: Accepted,
    pretty: bool,
}

impl Negotiated {
    /// Reads the first Accept line, as upstream does; 406 when nothing fits.
    pub(crate) fn new(headers: &HeaderMap, query: &Query, offer: Offer) -> Result<Self, Refusal> {
        let accepted = negotiate(text(headers, ACCEPT), offer).ok_or_else(not_acceptable)?;
        Ok(Self { accepted, pretty: wants_pretty(query, accepted, text(headers, USER_AGENT)) })
    }

    /// An answer with this document.
    pub(crate) fn answer(
        self,
        code: StatusCode,
        document: &Value,
    ) -> Result<Response<Body>, Refusal> {
        let bytes = self.accepted.encode(document, self.pretty)?;
        Ok(with_body(code, self.accepted.content_type(), bytes))
    }
}

/// The refusal's answer, always in JSON.
pub(crate) fn refused(refusal: &Refusal, pretty: bool) -> Response<Body> {
    let status = refusal.status();
    let bytes =
        Accepted::JSON.encode(&status, pretty).unwrap_or_else(|_| status.to_string().into());
    let mut response = with_body(refusal.code(), "application/json", bytes);
    if let Some(seconds) = refusal.retry_after_seconds() {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// An answer of any kind.
pub(crate) fn with_body(
    code: StatusCode,
    content_type: &'static str,
    bytes: impl Into<Bytes>,
) -> Response<Body> {
    streamed(code, content_type, Full::new(bytes.into()).boxed_unsync())
}

/// An answer whose body comes in the course of time.
pub(crate) fn streamed(code: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// Adds a `Warning` header a text, which kubectl prints.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        if let Ok(value) = HeaderValue::from_str(&format!("299 - {warning:?}")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// A header's first value, if it is text.
pub(crate) fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
