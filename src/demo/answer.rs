//! Answers: documents in the negotiated encoding, refusals, plain words, streams.

use std::convert::Infallible;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WARNING};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;

use super::refusal::Refusal;
use crate::model::accept::Accepted;
use crate::model::negotiated::Negotiated;

/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An answer with this document.
pub(crate) fn document(
    negotiated: Negotiated,
    code: StatusCode,
    document: &Value,
) -> Result<Response<Body>, Refusal> {
    let bytes = negotiated.encode(document)?;
    Ok(with_body(code, negotiated.accepted.content_type(), bytes))
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
