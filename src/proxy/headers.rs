//! Which headers pass, in both directions.
//!
//! The header map for the backend is built by copying what is allowed, in one pass; the untouched
//! original is the copy for another try. Most names are decided by their first byte.

use std::net::IpAddr;

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::auth::{Caller, IdentityHeaders, Trust, without_tokens};
use crate::model::rejection::Rejection;

/// The request's audit id, both ways.
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const HTTPS: HeaderValue = HeaderValue::from_static("https");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache, private");

/// Headers added at most, beside the caller's.
const ADDED: usize = 7;

/// What a backend is told of the caller.
#[derive(Debug)]
pub(super) struct Told<'a> {
    /// The lines that say who it is.
    pub(super) lines: &'a [(HeaderName, HeaderValue)],
    /// By which portico may say so; none where its certificate does that.
    pub(super) authorization: Option<HeaderValue>,
    /// True where the client's `Impersonate-*` are for the backend to judge.
    pub(super) passes_impersonation: bool,
}

impl<'a> Told<'a> {
    /// As extension API servers are told, and a core that believes portico; an error while it is not
    /// known which of the client's headers they would take for portico's word.
    pub(super) fn by_certificate(caller: &'a Caller, trust: &Trust) -> Result<Self, Rejection> {
        if trust.may_leak_identity {
            return Err(Rejection::NotReady);
        }
        Ok(Self { lines: &caller.headers, authorization: None, passes_impersonation: false })
    }
}

/// The headers that go to a backend.
pub(super) fn for_backend(
    request: &Parts,
    told: &Told<'_>,
    identity: &IdentityHeaders,
    client: &ClientAddress,
    audit_id: &HeaderValue,
) -> HeaderMap {
    let from = &request.headers;
    let mut to = HeaderMap::with_capacity(from.keys_len() + told.lines.len() + ADDED);
    let listed = Listed::new(from);
    let mut forwarded_for = None;
    for (name, value) in from {
        match name.as_str().as_bytes() {
            b"x-forwarded-for" => append(&mut forwarded_for, value),
            // The client's credentials, not the backend's business.
            b"sec-websocket-protocol" => {
                if let Some(left) = without_tokens(value) {
                    to.append(name, left);
                }
            }
            b"te" if asks_for_trailers(value) => {
                to.insert(TE, TRAILERS);
            }
            // Also when the client lists it for this hop: without it the request would go on as who
            // sent it.
            bytes if told.passes_impersonation && is_impersonation(bytes) => {
                to.append(name, value.clone());
            }
            bytes if is_dropped(bytes) || listed.contains(name) => {}
            _ if identity.contains(name.as_str()) => {}
            b"trailer" if names_identity(value, identity) => {}
            _ => {
                to.append(name, value.clone());
            }
        }
    }
    for (name, value) in told.lines {
        to.append(name, value.clone());
    }
    if let Some(authorization) = &told.authorization {
        to.insert(AUTHORIZATION, authorization.clone());
    }
    to.insert(
        X_FORWARDED_FOR,
        forwarded_for.map_or_else(|| client.value.clone(), |list| client.last(list)),
    );
    if let Some(host) = client_host(request) {
        to.insert(X_FORWARDED_HOST, host);
    }
    to.insert(X_FORWARDED_PROTO, HTTPS);
    to.insert(X_FORWARDED_URI, forwarded_uri(request.uri.path()));
    to.insert(AUDIT_ID, audit_id.clone());
    to
}

/// True for the headers by which kube-apiserver is asked to act as somebody else, and for no
/// other spelling.
fn is_impersonation(name: &[u8]) -> bool {
    matches!(name, b"impersonate-user" | b"impersonate-group" | b"impersonate-uid")
        || name.starts_with(b"impersonate-extra-")
}

/// True for names that never pass as they are: hop-by-hop ones, and those that are set anew.
fn is_dropped(name: &[u8]) -> bool {
    match name.first() {
        Some(b'a') => name == b"audit-id",
        Some(b'e') => name == b"expect",
        Some(b'h') => matches!(name, b"host" | b"http2-settings"),
        Some(b'x') => name.len() <= X_FORWARDED_MAX && is_forwarded(name),
        _ => is_hop_by_hop(name),
    }
}

/// The longest of the names below.
const X_FORWARDED_MAX: usize = 17;

/// True for the X-Forwarded-* headers that are set anew, also where `_` stands for `-`: a lax backend
/// would take the client's for ours.
fn is_forwarded(name: &[u8]) -> bool {
    let names: [&[u8]; 4] =
        [b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-uri"];
    let same = |(&byte, &known): (&u8, &u8)| byte == known || (byte == b'_' && known == b'-');
    names.iter().any(|known| known.len() == name.len() && name.iter().zip(*known).all(same))
}

/// What is left of trailers on their way to a backend.
pub(super) fn trailers_for_backend(trailers: &HeaderMap, identity: &IdentityHeaders) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, value) in trailers {
        if !is_dropped(name.as_str().as_bytes()) && !identity.contains(name.as_str()) {
            kept.append(name, value.clone());
        }
    }
    kept
}

/// Takes out of a backend's response what is for its connection only, and sets what every response
/// of ours has: one Audit-Id and a Cache-Control.
pub(super) fn for_client(headers: &mut HeaderMap, audit_id: &HeaderValue) {
    if headers.keys().any(|name| is_hop_by_hop(name.as_str().as_bytes())) {
        remove_hop_by_hop(headers);
    }
    for_own(headers, audit_id);
}

fn is_hop_by_hop(name: &[u8]) -> bool {
    match name.first() {
        Some(b'c') => name == b"connection",
        Some(b'k') => name == b"keep-alive",
        Some(b'p') => matches!(name, b"proxy-connection" | b"proxy-authenticate"),
        Some(b't') => matches!(name, b"te" | b"transfer-encoding"),
        Some(b'u') => name == b"upgrade",
        _ => false,
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let listed = Listed::new(headers);
    // Beside a transfer coding a length is not the body's (RFC 9112 §6.3).
    let coded = headers.contains_key(TRANSFER_ENCODING);
    let gone: Vec<HeaderName> = headers
        .keys()
        .filter(|&name| {
            is_hop_by_hop(name.as_str().as_bytes())
                || listed.contains(name)
                || (coded && name == CONTENT_LENGTH)
        })
        .cloned()
        .collect();
    for name in gone {
        headers.remove(name);
    }
}

/// The headers that every answer of our own has.
pub(super) fn for_own(headers: &mut HeaderMap, audit_id: &HeaderValue) {
    headers.insert(AUDIT_ID, audit_id.clone());
    headers.entry(CACHE_CONTROL).or_insert(NO_CACHE);
}

/// The names that a message's `Connection` headers list.
struct Listed<'a>(Option<&'a HeaderMap>);

impl<'a> Listed<'a> {
    fn new(headers: &'a HeaderMap) -> Self {
        Self(headers.contains_key(CONNECTION).then_some(headers))
    }

    fn names(&self) -> impl Iterator<Item = &'a str> {
        self.0
            .into_iter()
            .flat_map(|headers| headers.get_all(CONNECTION))
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
    }

    fn contains(&self, name: &HeaderName) -> bool {
        self.0.is_some() && self.names().any(|listed| listed.eq_ignore_ascii_case(name.as_str()))
    }
}

fn asks_for_trailers(value: &HeaderValue) -> bool {
    value.to_str().is_ok_and(|text| {
        text.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
    })
}

/// True when a `Trailer` header announces identity.
fn names_identity(value: &HeaderValue, identity: &IdentityHeaders) -> bool {
    let Ok(text) = value.to_str() else { return true };
    text.split(',').any(|name| identity.contains(&name.trim().to_ascii_lowercase()))
}

/// The host that the client asked for.
pub(super) fn client_host(request: &Parts) -> Option<HeaderValue> {
    match request.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => request.headers.get(HOST).cloned(),
    }
}

/// The client's path for `X-Forwarded-Uri`: cleaned of `//`, `.` and `..` as Go's `path.Clean` does,
/// its trailing slash kept.
fn forwarded_uri(path: &str) -> HeaderValue {
    let cleaned =
        if path.contains("//") || path.contains("/.") { clean(path) } else { path.to_owned() };
    let mut value =
        HeaderValue::try_from(cleaned).unwrap_or_else(|_| HeaderValue::from_static("/"));
    // Differs from request to request: not worth a place in the header table.
    value.set_sensitive(true);
    value
}

fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut cleaned = format!("/{}", parts.join("/"));
    if path.ends_with('/') && cleaned.len() > 1 {
        cleaned.push('/');
    }
    cleaned
}

/// A client's address as a header value, made once a connection.
#[derive(Debug)]
pub(super) struct ClientAddress {
    value: HeaderValue,
}

impl ClientAddress {
    /// The address of the connection's other end.
    pub(super) fn new(address: IpAddr) -> Self {
        let text = address.to_canonical().to_string();
        Self {
            value: HeaderValue::try_from(text)
                .unwrap_or_else(|_| HeaderValue::from_static("unknown")),
        }
    }

    /// The address as text.
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.value.as_bytes()
    }

    fn last(&self, mut list: Vec<u8>) -> HeaderValue {
        list.extend_from_slice(b", ");
        list.extend_from_slice(self.value.as_bytes());
        HeaderValue::from_bytes(&list).unwrap_or_else(|_| self.value.clone())
    }
}

fn append(list: &mut Option<Vec<u8>>, value: &HeaderValue) {
    match list {
        Some(list) => {
            list.extend_from_slice(b", ");
            list.extend_from_slice(value.as_bytes());
        }
        None => *list = Some(value.as_bytes().to_vec()),
    }
}

/// The client's audit id as it is, else a new one from the thread's generator.
pub(super) fn audit_id(parts: &Parts) -> HeaderValue {
    let mut id = match parts.headers.get(AUDIT_ID) {
        Some(id) if !id.is_empty() => id.clone(),
        _ => {
            let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
            let mut text = uuid::Uuid::encode_buffer();
            let text = id.hyphenated().encode_lower(&mut text);
            HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
        }
    };
    // Unique per request: kept out of the table of headers that both ends remember.
    id.set_sensitive(true);
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::FrontProxies;
    use crate::model::user::User;
    use http::Request;

    fn sent(lines: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut builder = Request::builder().uri("https://portico:6443/apis/g//v1/./x/");
        for (name, value) in lines {
            builder = builder.header(*name, *value);
        }
        let (parts, ()) = builder.body(()).unwrap().into_parts();
        let caller = Caller::new(User { name: "alice".to_owned(), ..User::default() }).unwrap();
        let identity = IdentityHeaders::new(&[&FrontProxies::of_flags()]);
        let client = ClientAddress::new("10.1.2.3".parse().unwrap());
        let id = HeaderValue::from_static("id");
        let lines = &caller.headers;
        let told = Told { lines, authorization: None, passes_impersonation: false };
        let map = for_backend(&parts, &told, &identity, &client, &id);
        map.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    const ALWAYS: [&str; 6] = [
        "x-remote-user: alice",
        "x-forwarded-for: 10.1.2.3",
        "x-forwarded-host: portico:6443",
        "x-forwarded-proto: https",
        "x-forwarded-uri: /apis/g/v1/x/",
        "audit-id: id",
    ];

    #[test]
    fn identity_and_hop_by_hop_headers_do_not_pass() {
        let got = sent(&[
            ("x-remote-user", "evil"),
            ("x_remote_user", "evil"),
            ("x-remote-extra-scopes", "evil"),
            ("authorization", "Bearer evil"),
            ("impersonate-user", "evil"),
            ("connection", "close, x-listed"),
            ("x-listed", "evil"),
            ("keep-alive", "1"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("trailer", "X_Remote_User"),
            ("upgrade", "h2c"),
            ("x-forwarded-host", "evil"),
            ("x_forwarded_for", "evil"),
            ("x-forwarded_proto", "evil"),
            ("audit-id", "other"),
            ("expect", "100-continue"),
        ]);
        assert_eq!(got, ALWAYS);
    }

    #[test]
    fn everything_else_passes_in_order_with_its_duplicates() {
        let got = sent(&[
            ("accept", "a"),
            ("accept", "b"),
            ("cookie", "c"),
            ("traceparent", "t"),
            ("te", "trailers"),
            ("trailer", "grpc-status"),
            ("x-real-ip", "1"),
        ]);
        let passed = got.get(..7).unwrap();
        assert_eq!(
            passed,
            [
                "accept: a",
                "accept: b",
                "cookie: c",
                "traceparent: t",
                "te: trailers",
                "trailer: grpc-status",
                "x-real-ip: 1",
            ]
        );
    }

    #[test]
    fn the_clients_address_is_appended_to_what_it_sent() {
        let got = sent(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")]);
        assert!(got.contains(&"x-forwarded-for: 1.1.1.1, 2.2.2.2, 10.1.2.3".to_owned()), "{got:?}");
    }

    #[test]
    fn a_response_has_one_audit_id_and_nothing_of_the_backends_connection() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("audit-id", "backend"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("content-type", "application/json"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        for_client(&mut headers, &HeaderValue::from_static("ours"));
        let mut left: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "audit-id: ours",
                "cache-control: no-cache, private",
                "content-type: application/json"
            ]
        );
    }

    #[test]
    fn an_audit_id_is_the_clients_or_a_new_uuid() {
        let parts = |id: Option<&str>| {
            let builder = Request::builder().uri("/");
            let builder = match id {
                Some(id) => builder.header("audit-id", id),
                None => builder,
            };
            builder.body(()).unwrap().into_parts().0
        };
        assert_eq!(audit_id(&parts(Some("mine"))), "mine");
        let (one, two) = (audit_id(&parts(None)), audit_id(&parts(None)));
        assert_ne!(one, two);
        assert!(uuid::Uuid::parse_str(one.to_str().unwrap()).is_ok());
    }
}
