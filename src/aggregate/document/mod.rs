//! One discovery document with all its forms, and how it is served.
//!
//! Compact JSON and its gzip are there when the document is; other forms are made when they are asked for
//! the first time, once, and elsewhere when they are long.

use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest::{Context, SHA512};
use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, IF_NONE_MATCH, VARY,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::rope::Block;
use super::written;
use crate::body::{self, Body};
use crate::model::accept::{Accepted, Media};
use crate::model::discovery::protobuf;
use crate::model::negotiated::Negotiated;
use crate::model::rejection::Rejection;
use crate::runtime::background::{Background, NotMade};

/// Bytes that an answer must exceed to be compressed (upstream's `defaultGzipThresholdBytes`).
const GZIP_BYTES_MIN: usize = 128 * 1024;
/// Bytes of JSON up to which another form is made where it is asked for.
const IN_PLACE_BYTES_MAX: usize = 64 * 1024;

/// A document, immutable but for forms that are made once.
#[derive(Debug)]
pub struct Document {
    /// Compact JSON.
    parts: Arc<[Bytes]>,
    /// Bytes of it.
    bytes: usize,
    /// The same as one gzip member, when it is long enough.
    gzip: Option<Bytes>,
    /// Only of aggregated documents.
    etag: Option<HeaderValue>,
    others: OnceLock<Box<Others>>,
}

/// Forms other than the first, by how they are written.
#[derive(Debug, Default)]
struct Others {
    plain: [OnceCell<Bytes>; 4],
    gzip: [OnceCell<Bytes>; 4],
}

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Pretty,
    Yaml,
    Protobuf,
}

/// Ready bytes.
#[derive(Debug)]
enum Content {
    Parts(Arc<[Bytes]>),
    One(Bytes),
}

impl Document {
    /// A document of blocks; aggregated ones have an entity tag.
    pub(super) fn of_blocks(blocks: &[Arc<Block>], aggregated: bool) -> Self {
        let parts: Arc<[Bytes]> = blocks.iter().map(|block| block.json.clone()).collect();
        let bytes = parts.iter().map(Bytes::len).sum();
        Self {
            parts,
            bytes,
            gzip: if bytes > GZIP_BYTES_MIN { gzip_member(blocks) } else { None },
            etag: aggregated.then(|| etag(blocks)).flatten(),
            others: OnceLock::new(),
        }
    }

    /// A document from before aggregation in one piece.
    pub(super) fn of_json(json: Bytes) -> Self {
        let bytes = json.len();
        Self { parts: Arc::new([json]), bytes, gzip: None, etag: None, others: OnceLock::new() }
    }

    /// Whether it is this text.
    pub(super) fn is(&self, json: &[u8]) -> bool {
        matches!(&*self.parts, [part] if part == json)
    }

    /// Whether it consists of the same pieces.
    pub(super) fn shares(&self, other: &Self) -> bool {
        let same = |(one, two): (&Bytes, &Bytes)| one.as_ptr() == two.as_ptr();
        self.parts.len() == other.parts.len() && self.parts.iter().zip(&*other.parts).all(same)
    }

    /// Compact JSON in one piece.
    pub fn json(&self) -> Vec<u8> {
        self.parts.concat()
    }

    /// Compact JSON in the pieces that are sent.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// Bytes of compact JSON.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The entity tag with its quotes; legacy documents have none.
    pub fn etag(&self) -> Option<&str> {
        self.etag.as_ref().and_then(|etag| etag.to_str().ok())
    }

    /// The answer to a GET or a HEAD; whoever carries it leaves the body of a HEAD's out.
    pub async fn respond(
        &self,
        headers: &HeaderMap,
        negotiated: Negotiated,
        background: &Background,
    ) -> Result<Response<Body>, Rejection> {
        if let Some(etag) = &self.etag
            && is_known(headers, etag)
        {
            return Ok(not_modified(etag));
        }
        let form = Form::of(negotiated);
        let content = match form {
            Form::Json => Content::Parts(Arc::clone(&self.parts)),
            // In a box, so that what is common does not grow by what is rare.
            _ => Content::One(Box::pin(self.plain(form, background)).await?),
        };
        if content.bytes(self.bytes) <= GZIP_BYTES_MIN || !accepts_gzip(headers) {
            let bytes = content.bytes(self.bytes);
            return Ok(self.answer(content, bytes, negotiated.accepted));
        }
        let zipped = match (&self.gzip, form) {
            (Some(zipped), Form::Json) => zipped.clone(),
            _ => Box::pin(self.zipped(form, content, background)).await?,
        };
        let bytes = zipped.len();
        let mut answer = self.answer(Content::One(zipped), bytes, negotiated.accepted);
        let headers = answer.headers_mut();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
        Ok(answer)
    }

    fn answer(&self, content: Content, bytes: usize, accepted: Accepted) -> Response<Body> {
        let body = match content {
            Content::Parts(parts) => Body::parts(parts),
            Content::One(bytes) => Body::from(bytes),
        };
        let mut answer = body::response(StatusCode::OK, accepted.content_type(), body);
        let headers = answer.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
        if let Some(etag) = &self.etag {
            for_caches(headers, etag);
        }
        answer
    }

    /// Another form than compact JSON.
    async fn plain(&self, form: Form, background: &Background) -> Result<Bytes, Rejection> {
        let others = self.others.get_or_init(Box::default);
        let Some(cell) = others.plain.get(form.index()) else {
            return Err(Rejection::Internal("a form without a place".to_owned()));
        };
        let make = || {
            let parts = Arc::clone(&self.parts);
            self.make(background, move || form.write(parts.concat()))
        };
        cell.get_or_try_init(make).await.cloned()
    }

    /// A form compressed, of which nothing is compressed yet.
    async fn zipped(
        &self,
        form: Form,
        content: Content,
        background: &Background,
    ) -> Result<Bytes, Rejection> {
        let others = self.others.get_or_init(Box::default);
        let Some(cell) = others.gzip.get(form.index()) else {
            return Err(Rejection::Internal("a form without a place".to_owned()));
        };
        let make = || {
            self.make(background, move || {
                let blocks = match content {
                    Content::Parts(parts) => parts.iter().map(|part| Block::new(part)).collect(),
                    Content::One(bytes) => vec![Block::new(&bytes)],
                };
                let blocks: Vec<Arc<Block>> = blocks.into_iter().map(Arc::new).collect();
                let failed = || Rejection::Internal("a document was not compressed".to_owned());
                gzip_member(&blocks).ok_or_else(failed)
            })
        };
        cell.get_or_try_init(make).await.cloned()
    }

    /// Here when it is short, else elsewhere.
    async fn make(
        &self,
        background: &Background,
        make: impl FnOnce() -> Result<Bytes, Rejection> + Send + 'static,
    ) -> Result<Bytes, Rejection> {
        if self.bytes <= IN_PLACE_BYTES_MAX {
            return make();
        }
        match background.run(make).await {
            Ok(outcome) => outcome,
            Err(NotMade::Busy) => Err(Rejection::TooManyRequests),
            Err(NotMade::Failed(text)) => Err(Rejection::Internal(text)),
        }
    }
}

impl Content {
    /// Bytes of it, which `parts` are of the parts.
    fn bytes(&self, parts: usize) -> usize {
        match self {
            Self::Parts(_) => parts,
            Self::One(bytes) => bytes.len(),
        }
    }
}

impl Form {
    fn of(negotiated: Negotiated) -> Self {
        match (negotiated.accepted.media, negotiated.pretty) {
            (Media::Json, false) => Self::Json,
            (Media::Json, true) => Self::Pretty,
            (Media::Yaml, _) => Self::Yaml,
            (Media::Protobuf, _) => Self::Protobuf,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Json => 0,
            Self::Pretty => 1,
            Self::Yaml => 2,
            Self::Protobuf => 3,
        }
    }

    /// From compact JSON.
    fn write(self, json: Vec<u8>) -> Result<Bytes, Rejection> {
        let internal = |error: &dyn std::fmt::Display| {
            Rejection::Internal(format!("writing a document: {error}"))
        };
        let made = match self {
            Self::Json => json,
            Self::Pretty => written::indented(&json),
            Self::Yaml => {
                let value: Value =
                    serde_json::from_slice(&json).map_err(|error| internal(&error))?;
                Accepted { media: Media::Yaml, ..Accepted::JSON }.encode(&value, false)?
            }
            Self::Protobuf => protobuf::encode(&json).map_err(|error| internal(&error))?,
        };
        Ok(made.into())
    }
}

fn not_modified(etag: &HeaderValue) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::NOT_MODIFIED;
    for_caches(answer.headers_mut(), etag);
    answer
}

/// An aggregated document's headers (`endpoints/discovery/aggregated/etag.go`).
fn for_caches(headers: &mut HeaderMap, etag: &HeaderValue) {
    headers.insert(ETAG, etag.clone());
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
}

/// Whether the client has what the tag names: the tag itself, weak, in a list, or anything at all (RFC 9110
/// §13.1.2; upstream knows the tag itself only).
fn is_known(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let is = |tag: &str| {
        let tag = tag.trim();
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == etag.as_bytes()
    };
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .any(|value| value == etag || value.to_str().is_ok_and(|tags| tags.split(',').any(is)))
}

/// Whether a line names gzip, and not with a quality of 0.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let is_gzip = |coding: &str| {
        let (name, quality) = coding.split_once(';').unwrap_or((coding, ""));
        let quality = quality.trim().strip_prefix("q=").map(|text| text.trim().parse::<f32>());
        name.trim().eq_ignore_ascii_case("gzip")
            && quality.is_none_or(|quality| quality.is_ok_and(|quality| quality > 0.0))
    };
    let lines = headers.get_all(ACCEPT_ENCODING);
    lines.iter().filter_map(|line| line.to_str().ok()).any(|line| line.split(',').any(is_gzip))
}

/// SHA-512 in upper-case hex over the blocks' digests, whose bounds follow from the content.
fn etag(blocks: &[Arc<Block>]) -> Option<HeaderValue> {
    let mut hash = Context::new(&SHA512);
    for block in blocks {
        hash.update(&block.digest);
    }
    let mut text = Vec::with_capacity(2 + 128);
    text.push(b'"');
    for byte in hash.finish().as_ref() {
        text.extend([byte >> 4, byte & 15].map(|digit| match digit {
            0..10 => b'0' + digit,
            _ => b'A' + digit - 10,
        }));
    }
    text.push(b'"');
    HeaderValue::from_bytes(&text).ok()
}

/// All blocks as one gzip member (RFC 1952): not every client reads on after the first.
fn gzip_member(blocks: &[Arc<Block>]) -> Option<Bytes> {
    // Deflate, no flags, no time, no hint, no system.
    const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    /// An empty block of fixed codes that is the last.
    const END: [u8; 2] = [0x03, 0x00];
    let sizes = blocks.iter().filter_map(|block| block.deflated.as_ref()).map(Bytes::len);
    let mut out = Vec::with_capacity(HEADER.len() + sizes.sum::<usize>() + END.len() + 8);
    out.extend(HEADER);
    let mut crc = crc32fast::Hasher::new();
    let mut size = 0_u64;
    for block in blocks {
        out.extend_from_slice(block.deflated.as_ref()?);
        crc.combine(&block.crc);
        size = size.wrapping_add(block.json.len() as u64);
    }
    out.extend(END);
    out.extend(crc.finalize().to_le_bytes());
    // The length modulo 2^32.
    out.extend(size.to_le_bytes().into_iter().take(4));
    Some(out.into())
}

#[cfg(test)]
mod tests;
