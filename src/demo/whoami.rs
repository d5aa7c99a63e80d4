//! What a backend receives: the request, told back to whoever sent it.

use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::answer::{Body, with_body};
use super::refusal::Refusal;
use crate::model::accept::Accepted;
use crate::model::user::User;

/// Reads the whole request and answers with it, always in indented JSON.
pub(crate) async fn answer(
    parts: &Parts,
    user: &User,
    mut body: Incoming,
) -> Result<Response<Body>, Refusal> {
    let mut body_bytes = 0;
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Refusal::bad_request(format!("reading the body: {e}")))?;
        match frame.into_data() {
            Ok(data) => body_bytes += data.len(),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    let document = json!({
        "method": parts.method.as_str(),
        "path": parts.uri.path(),
        "query": parts.uri.query().unwrap_or_default(),
        "httpVersion": format!("{:?}", parts.version),
        "user": {
            "name": user.name,
            "uid": user.uid,
            "groups": user.groups,
            "extra": user.extra,
        },
        "headers": pairs(&parts.headers),
        "trailers": pairs(&trailers),
        "bodyBytes": body_bytes,
    });
    let bytes = Accepted::JSON.encode(&document, true)?;
    Ok(with_body(StatusCode::OK, "application/json", bytes))
}

/// Every header in the order in which names came first; repeated ones stand together.
fn pairs(headers: &HeaderMap) -> Value {
    headers
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect()
}
