//! What is fuzzed: everything written here that reads bytes from the network or from files. Each
//! target takes any bytes, and fails by a panic: in the parser, or because something does not hold
//! that has to hold for every input. `cargo test --test fuzz` drives them on any machine, and `fuzz/`
//! with libFuzzer.

use std::hint::black_box;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use portico::auth::{IdentityHeaders, Tokens, Unverified, names_token, without_tokens};
use portico::control::manifest_file::{self, Format};
use portico::model::accept::{Offer, is_aggregated, negotiate, wants_pretty};
use portico::model::discovery::{convert, parse, protobuf};
use portico::model::duration::{self, Signed};
use portico::model::list_options::ListOptions;
use portico::model::query::{self, Query};
use portico::model::request_info::{RequestInfo, decode_path};
use portico::model::review::{access, front_proxy, token};
use portico::model::selector::{
    FieldSelector, LabelSelector, SelectorRequirement, field_requirements,
};
use portico::model::{impersonation, upgrade};
use portico::proxy::check_syntax;
use portico::runtime::spans::Parent;
use serde_json::json;

/// A target with the name under which it is run, and which its corpus has.
pub(crate) struct Target {
    /// The name.
    pub(crate) name: &'static str,
    /// What is done with an input.
    pub(crate) run: fn(&[u8]),
}

/// Every target.
pub(crate) const TARGETS: &[Target] = &[
    Target { name: "request_info", run: request_info },
    Target { name: "query", run: query },
    Target { name: "list_options", run: list_options },
    Target { name: "label_selector", run: label_selector },
    Target { name: "field_selector", run: field_selector },
    Target { name: "accept", run: accept },
    Target { name: "duration", run: duration },
    Target { name: "request_head", run: request_head },
    Target { name: "impersonation", run: impersonation },
    Target { name: "trace_parent", run: trace_parent },
    Target { name: "json_web_token", run: json_web_token },
    Target { name: "token_file", run: token_file },
    Target { name: "manifest", run: manifest },
    Target { name: "discovery_aggregated", run: discovery_aggregated },
    Target { name: "discovery_legacy", run: discovery_legacy },
    Target { name: "discovery_protobuf", run: discovery_protobuf },
    Target { name: "review", run: review },
];

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// Path and query, as an HTTP server gives them.
fn request_info(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let (raw, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    let Ok(path) = decode_path(raw) else { return };
    assert!(path.len() <= raw.len(), "decoding makes nothing longer");
    assert!(raw.contains('%') || path == raw);
    for method in [Method::GET, Method::POST, Method::DELETE, Method::PATCH, Method::HEAD] {
        let Ok(info) = RequestInfo::parse(&method, &path, query) else { continue };
        let parts = [info.group, info.version, info.namespace, info.resource, info.name];
        for part in parts.into_iter().chain([info.subresource]) {
            assert!(!part.contains('/') && path.contains(part), "{part:?} of {path:?}");
        }
        assert!(info.is_resource || info.resource.is_empty(), "{info:?}");
        let longest = Duration::from_secs(60);
        if let Ok(Some(timeout)) = info.timeout(query, longest) {
            assert!(timeout <= longest && !timeout.is_zero(), "{timeout:?} for {query:?}");
            assert!(!info.is_long_running());
        }
        black_box((info.metrics_verb(), info.is_version_discovery(), info.names_version()));
        // What is routed, once more in other words.
        if info.is_resource && info.prefix == "apis" {
            let again = format!("/apis/{}/{}/{}", info.group, info.version, info.resource);
            let again = RequestInfo::parse(&method, &again, None);
            assert!(again.is_err() || again.is_ok_and(|again| again.group == info.group));
        }
    }
}

/// A query string: what is found of one key alone is what is found among all.
fn query(data: &[u8]) {
    let Some(raw) = text(data) else { return };
    let all = Query::parse(Some(raw));
    for key in ["timeout", "watch", "limit", "a", "", "labelSelector", "b c", "%"] {
        assert_eq!(query::first(Some(raw), key).as_deref(), all.get(key), "{key:?} in {raw:?}");
        assert_eq!(all.all(key).next(), all.get(key));
        assert_eq!(all.flag(key).is_some(), all.get(key).is_some());
    }
    black_box(wants_pretty(&all, negotiated(None), None));
}

fn negotiated(accept: Option<&str>) -> portico::model::accept::Accepted {
    negotiate(accept, Offer::Objects).expect("*/* is always there")
}

/// The options of a list or a watch.
fn list_options(data: &[u8]) {
    let Some(raw) = text(data) else { return };
    let query = Query::parse(Some(raw));
    match ListOptions::parse(&query) {
        Ok(options) => {
            assert_eq!(options.watch, query.flag("watch").unwrap_or_default());
            black_box((options.watch_start(), options.initial_bookmark()));
            let object = json!({"metadata": {"name": "a", "labels": {"a": "b"}}});
            black_box(options.selectors.matches(&object));
        }
        Err(rejection) => {
            assert!(rejection.code().is_client_error(), "{rejection:?}");
            black_box(rejection.status());
        }
    }
}

/// A label selector; written out again it means the same.
fn label_selector(data: &[u8]) {
    let Some(raw) = text(data) else { return };
    let Ok(selector) = LabelSelector::parse(raw) else { return };
    let requirements = selector.requirements();
    let written = requirements.iter().map(written_label).collect::<Vec<_>>().join(",");
    let again = LabelSelector::parse(&written).expect(&written);
    assert_eq!(again.requirements(), requirements, "{raw:?} as {written:?}");
    for value in [None, Some(""), Some("b")] {
        assert_eq!(selector.matches(|_| value), again.matches(|_| value), "{raw:?}");
    }
}

fn written_label(requirement: &SelectorRequirement) -> String {
    let SelectorRequirement { key, operator, values } = requirement;
    // The empty value alone needs a comma, since an empty list is refused.
    let values = if values.concat().is_empty() { ",".to_owned() } else { values.join(",") };
    match *operator {
        "Exists" => key.clone(),
        "DoesNotExist" => format!("!{key}"),
        "In" => format!("{key} in ({values})"),
        "NotIn" => format!("{key} notin ({values})"),
        other => panic!("no operator: {other}"),
    }
}

/// A field selector; written out again it means the same.
fn field_selector(data: &[u8]) {
    let Some(raw) = text(data) else { return };
    if let Ok(selector) = FieldSelector::parse(raw) {
        black_box((selector.matches("a", "b"), selector.matches("", "")));
        assert!(field_requirements(raw).is_some(), "{raw:?} is understood and not");
    }
    let Some(requirements) = field_requirements(raw) else { return };
    let written = requirements.iter().map(|SelectorRequirement { key, operator, values }| {
        let value = values.concat().replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
        format!("{key}{}{value}", if *operator == "In" { "=" } else { "!=" })
    });
    let written = written.collect::<Vec<_>>().join(",");
    let mut again = field_requirements(&written).expect(&written);
    let mut requirements = requirements;
    let order = |a: &SelectorRequirement, b: &SelectorRequirement| {
        (&a.key, a.operator, &a.values).cmp(&(&b.key, b.operator, &b.values))
    };
    requirements.sort_by(order);
    again.sort_by(order);
    assert_eq!(again, requirements, "{raw:?} as {written:?}");
}

/// An Accept header: with what is always served at its end, it is never refused.
fn accept(data: &[u8]) {
    let Some(raw) = text(data) else { return };
    let offers =
        [Offer::Objects, Offer::Events, Offer::Discovery, Offer::LegacyDiscovery, Offer::Plain];
    for offer in offers {
        let accepted = negotiate(Some(raw), offer);
        if let Some(accepted) = accepted {
            assert!(accepted.content_type().starts_with("application/"));
            if offer == Offer::Objects {
                let value = json!({"kind": "A", "items": [{"b": [1, null, "c: d"]}]});
                assert!(accepted.encode(&value, accepted.pretty).is_ok(), "{accepted:?}");
            }
        }
        assert!(negotiate(Some(&format!("{raw},*/*")), offer).is_some(), "{raw:?}");
    }
    if let Ok(value) = HeaderValue::from_bytes(data) {
        black_box(is_aggregated(Some(&value)));
    }
}

/// A duration as Go writes it: a sign changes nothing but the sign.
fn duration(data: &[u8]) {
    let Some(raw) = text(data) else { return };
    let parsed = duration::parse(raw);
    if raw.starts_with(['-', '+']) {
        return;
    }
    match (parsed, duration::parse(&format!("-{raw}"))) {
        (Ok(Signed::Positive(one)), Ok(Signed::Negative(other) | Signed::Positive(other))) => {
            assert_eq!(one, other, "{raw:?}");
            if let Ok(nanos) = u32::try_from(one.as_nanos()) {
                let whole = duration::parse(&format!("{nanos}ns"));
                assert_eq!(whole, Ok(Signed::Positive(one)), "{raw:?}");
            }
        }
        (Err(_), Err(_)) => {}
        other => panic!("{raw:?}: {other:?}"),
    }
}

/// Header lines, `name: value`; what is no header is left out, as an HTTP server would.
fn headers(data: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in data.split(|&byte| byte == b'\n') {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            headers.append(name, value);
        }
    }
    headers
}

/// The head of a request: what is refused, whether it asks for another protocol, which headers carry
/// identity or tokens. The first line is the target.
fn request_head(data: &[u8]) {
    let (target, rest) = match data.iter().position(|&byte| byte == b'\n') {
        Some(end) => data.split_at(end),
        None => (data, &[][..]),
    };
    let headers = headers(rest);
    let Ok(mut request) = http::Request::builder().uri(target).body(()) else { return };
    *request.headers_mut() = headers.clone();
    let (parts, ()) = request.into_parts();
    if check_syntax(&parts).is_ok() {
        assert!(parts.uri.path().starts_with('/'));
        assert_eq!(headers.get_all("host").iter().count(), 1);
        assert!(headers.get_all("transfer-encoding").iter().count() <= 1);
    }
    if upgrade::is_websocket(&headers) {
        assert!(upgrade::is_asked(&headers) && upgrade::is_allowed(&headers), "{headers:?}");
    }
    // Who answers with what was asked for has been asked for it.
    if upgrade::is_granted(&headers, &headers) {
        assert!(headers.contains_key("upgrade"));
    }
    let identity = IdentityHeaders::new(&[]);
    for (name, value) in &headers {
        let (name, folded) = (name.as_str(), name.as_str().replace('_', "-"));
        assert_eq!(identity.contains(name), identity.contains(&folded), "{name}");
        match without_tokens(value) {
            Some(left) => assert!(!names_token(&left), "{value:?} leaves {left:?}"),
            None => assert!(names_token(value) || value.is_empty(), "{value:?} leaves nothing"),
        }
    }
}

/// Headers that ask to act as somebody else.
fn impersonation(data: &[u8]) {
    let headers = headers(data);
    let asks = |name: &HeaderName| name.as_str().starts_with("impersonate");
    match impersonation::wanted(&headers) {
        Ok(Some(user)) => {
            assert!(headers.keys().any(asks));
            assert!(!user.name.is_empty(), "{user:?}");
        }
        Ok(None) => {}
        Err(rejection) => {
            assert!(headers.keys().any(asks));
            black_box(rejection.status());
        }
    }
}

/// `traceparent`: what is taken is of the form that the standard has.
fn trace_parent(data: &[u8]) {
    if Parent::parse(data).is_some() {
        let text = text(data).expect("it is text");
        let head = text.get(..55).expect("as long as the first version's");
        let is_hexadecimal = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(head.split('-').all(is_hexadecimal) && !head.starts_with("ff"), "{text:?}");
        assert!(text.len() == 55 || !head.starts_with("00"), "{text:?}");
    }
}

/// A signed token: its parts are where they were, and who issued it is said alike in both ways.
fn json_web_token(data: &[u8]) {
    let Some(raw) = text(data) else { return };
    let issuer = portico::auth::issuer(raw);
    match Unverified::parse(raw) {
        Ok(token) => {
            assert_eq!(format!("{}.{}", token.signed, token.signature), raw);
            assert_eq!(token.signed.matches('.').count(), 1, "{raw:?}");
        }
        Err(error) => {
            black_box((error, issuer));
        }
    }
}

/// The file of static tokens.
fn token_file(data: &[u8]) {
    match Tokens::parse("tokens", data) {
        Ok(tokens) => {
            black_box(tokens.is_empty());
        }
        Err(error) => {
            black_box(error.to_string());
        }
    }
}

/// A manifest, in both forms. JSON is YAML, so what is read of it is the same.
fn manifest(data: &[u8]) {
    let Some(raw) = text(data) else { return };
    black_box(manifest_file::parse(Format::Yaml, raw).map_err(|error| error.to_string()).ok());
    if let Err(error) = manifest_file::parse(Format::Json, raw) {
        assert!(!error.to_string().is_empty());
    }
}

/// A backend's aggregated discovery: written and read again it is the same.
fn discovery_aggregated(data: &[u8]) {
    let Ok(found) = parse::aggregated(data) else { return };
    let items: Vec<_> = found
        .iter()
        .map(|found| {
            let versions = json!([{"version": found.version, "resources": found.resources}]);
            json!({"metadata": {"name": found.group}, "versions": versions})
        })
        .collect();
    let document = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "items": items,
    });
    let written = document.to_string();
    assert_eq!(parse::aggregated(written.as_bytes()).as_ref(), Ok(&found), "{written}");
    assert!(protobuf::encode(written.as_bytes()).is_ok(), "{written}");
    for version in &found {
        let legacy = convert::to_legacy(&version.resources, &version.group, &version.version);
        black_box(convert::to_aggregated(&legacy).ok());
    }
}

/// A backend's discovery from before aggregation.
fn discovery_legacy(data: &[u8]) {
    let Ok(resources) = parse::legacy(data, "apps", "v1") else { return };
    let document = json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "apps/v1",
        "resources": resources,
    });
    let written = document.to_string();
    assert_eq!(parse::legacy(written.as_bytes(), "apps", "v1").as_ref(), Ok(&resources));
    if let Ok(aggregated) = convert::to_aggregated(&resources) {
        black_box(convert::to_legacy(&aggregated, "apps", "v1"));
    }
}

/// A document that is encoded anew; it came from a backend.
fn discovery_protobuf(data: &[u8]) {
    match protobuf::encode(data) {
        Ok(encoded) => assert!(encoded.starts_with(b"k8s\0")),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What reviewers answer.
fn review(data: &[u8]) {
    black_box(access::answer(data).ok());
    let audiences = ["a".to_owned()];
    for audiences in [&audiences[..], &[]] {
        if let Ok(token::TokenAnswer::User(user)) = token::answer(data, audiences) {
            assert!(!user.name.is_empty());
        }
    }
    let marker = front_proxy::marker("unique");
    for code in [StatusCode::OK, StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED] {
        black_box(front_proxy::judge(code, data, &marker));
    }
}
