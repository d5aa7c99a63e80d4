//! What was agreed with a client about the shape of an answer.

use http::header::{ACCEPT, USER_AGENT};
use http::{HeaderMap, HeaderName};
use serde_json::Value;

use super::accept::{Accepted, Media, Offer, negotiate, not_acceptable, wants_pretty};
use super::query::Query;
use super::rejection::Rejection;

/// Encoding, form and indentation of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Negotiated {
    /// The encoding and form.
    pub accepted: Accepted,
    /// Whether JSON is indented.
    pub pretty: bool,
}

impl Negotiated {
    /// Compact JSON, as for errors.
    pub const JSON: Self = Self { accepted: Accepted::JSON, pretty: false };

    /// Reads the first Accept line, as upstream does; 406 when nothing fits.
    pub fn new(headers: &HeaderMap, query: &Query, offer: Offer) -> Result<Self, Rejection> {
        let accepted =
            negotiate(text(headers, ACCEPT), offer).ok_or_else(|| not_acceptable(offer))?;
        Ok(Self { accepted, pretty: wants_pretty(query, accepted, text(headers, USER_AGENT)) })
    }

    /// True when the answer is compact JSON.
    pub fn is_plain_json(self) -> bool {
        self.accepted.media == Media::Json && !self.pretty
    }

    /// Writes a document.
    pub fn encode(self, document: &Value) -> Result<Vec<u8>, Rejection> {
        self.accepted.encode(document, self.pretty)
    }
}

/// A header's first value, if it is text.
pub fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
