//! What the span of a sampled request tells, by OpenTelemetry's names for HTTP where it has them
//! (`apiserver/pkg/endpoints/filters/traces.go`).

use std::net::SocketAddr;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Version};

use super::headers::client_host;
use crate::auth::Caller;
use crate::model::fault::ServicePort;
use crate::model::request_info::RequestInfo;
use crate::model::user::GROUP_MASTERS;
use crate::runtime::spans::{Attributes, Parent, Span, Spans, Value};
use crate::runtime::telemetry::Phases;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Beside [`GROUP_MASTERS`], whose wish to be sampled counts.
const GROUP_MONITORING: &str = "system:monitoring";
/// The code of requests that nobody answered, which is no code of HTTP.
const CODE_CLIENT_GONE: u16 = 499;

/// What is known of a request when it is sampled.
#[derive(Clone, Copy)]
pub(super) struct Sampled<'a> {
    pub(super) info: &'a RequestInfo<'a>,
    pub(super) parts: &'a Parts,
    /// Who authenticated.
    pub(super) caller: &'a Caller,
    pub(super) client: &'a [u8],
    pub(super) audit_id: &'a HeaderValue,
    pub(super) begun: Instant,
}

/// What became of it.
#[derive(Clone, Copy)]
pub(super) struct Ended<'a> {
    pub(super) code: u16,
    /// Why it failed; empty when nothing did, and when the client left during its answer.
    pub(super) cause: &'a str,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) phases: Option<&'a Phases>,
}

/// The span of a request, when it is sampled.
pub(super) fn sample(spans: &Spans, request: &Sampled<'_>) -> Option<Box<Span>> {
    let headers = &request.parts.headers;
    let parent = headers.get(TRACEPARENT).and_then(|value| Parent::parse(value.as_bytes()));
    let user = &request.caller.user;
    let trusted = user.in_group(GROUP_MASTERS) || user.in_group(GROUP_MONITORING);
    let mut span = spans.sample(request.begun, parent, trusted)?;
    if span.follows_parent() {
        let lines: Vec<&str> =
            headers.get_all(TRACESTATE).iter().filter_map(|value| value.to_str().ok()).collect();
        span.state = lines.join(",");
    }
    span.name = name(request.info, request.parts);
    span.attributes = attributes(request);
    Some(span)
}

/// Method and path with its variable parts replaced, so that there are few of them.
fn name(info: &RequestInfo<'_>, parts: &Parts) -> String {
    let mut name = parts.method.to_string();
    if !info.is_resource {
        return name;
    }
    name.push_str(" /");
    name.push_str(info.prefix);
    let mut push = |part: &str| {
        if !part.is_empty() {
            name.push('/');
            name.push_str(part);
        }
    };
    push(info.group);
    push(info.version);
    if !info.namespace.is_empty() {
        push("namespaces/{:namespace}");
    }
    push(info.resource);
    if !info.name.is_empty() {
        push("{:name}");
    }
    push(info.subresource);
    name
}

fn attributes(request: &Sampled<'_>) -> Attributes {
    let parts = request.parts;
    let text = |bytes: &[u8]| Value::Text(String::from_utf8_lossy(bytes).into_owned());
    let version = match parts.version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_11 => "1.1",
        _ => "2",
    };
    let mut attributes = vec![
        ("http.request.method", text(parts.method.as_str().as_bytes())),
        ("url.scheme", text(b"https")),
        ("url.path", text(parts.uri.path().as_bytes())),
        ("network.protocol.version", text(version.as_bytes())),
        ("client.address", text(request.client)),
        ("audit-id", text(request.audit_id.as_bytes())),
    ];
    if let Some(query) = parts.uri.query() {
        attributes.push(("url.query", text(query.as_bytes())));
    }
    if let Some(host) = client_host(parts) {
        attributes.push(("server.address", text(host.as_bytes())));
    }
    if let Some(agent) = parts.headers.get(http::header::USER_AGENT) {
        attributes.push(("user_agent.original", text(agent.as_bytes())));
    }
    attributes
}

/// What takes the place of the client's trace context towards the backend.
pub(super) struct TraceContext {
    traceparent: HeaderValue,
    /// The client's `tracestate` is of the same trace.
    keeps_state: bool,
}

impl TraceContext {
    pub(super) fn put(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT, self.traceparent.clone());
        if !self.keeps_state {
            headers.remove(TRACESTATE);
        }
    }
}

/// The request goes on to a backend.
pub(super) fn begin_call(
    span: &mut Span,
    parts: &Parts,
    service: &ServicePort,
) -> Option<TraceContext> {
    let method = parts.method.to_string();
    let host = service.server_name();
    let attributes = vec![
        ("http.request.method", Value::Text(method.clone())),
        ("server.address", Value::Text(host)),
        ("server.port", Value::Number(service.port.into())),
    ];
    let mut traceparent =
        HeaderValue::try_from(span.begin_call(format!("HTTP {method}"), attributes)).ok()?;
    // Differs from request to request: not worth a place in the header table.
    traceparent.set_sensitive(true);
    Some(TraceContext { traceparent, keeps_state: span.follows_parent() })
}

/// The request is over.
pub(super) fn end(span: &mut Span, ended: &Ended<'_>) {
    // An answer that began well and has a cause was cut.
    let cut = ended.code < 400 && !ended.cause.is_empty();
    span.failed = cut || ended.code >= 500;
    let mut told = Attributes::new();
    if ended.code != CODE_CLIENT_GONE {
        told.push(("http.response.status_code", Value::Number(ended.code.into())));
    }
    if !ended.cause.is_empty() {
        told.push(("error.type", Value::Text(ended.cause.to_owned())));
    } else if ended.code >= 500 {
        told.push(("error.type", Value::Text(ended.code.to_string())));
    }
    if let Some(call) = &mut span.call {
        call.failed = cut || ended.code >= 400;
        call.attributes.extend(told.iter().cloned());
        if let Some(endpoint) = ended.endpoint {
            let (address, port) = (endpoint.ip().to_canonical().to_string(), endpoint.port());
            call.attributes.push(("network.peer.address", Value::Text(address)));
            call.attributes.push(("network.peer.port", Value::Number(port.into())));
        }
        if let Some(phases) = ended.phases {
            call.attributes.extend([
                ("portico.queue_seconds", Value::Seconds(phases.queue)),
                ("portico.connect_seconds", Value::Seconds(phases.connect)),
                ("portico.tls_seconds", Value::Seconds(phases.tls)),
                ("portico.first_byte_seconds", Value::Seconds(phases.first_byte)),
                ("portico.body_seconds", Value::Seconds(phases.body)),
            ]);
        }
    }
    span.attributes.extend(told);
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[track_caller]
    fn check(method: &str, uri: &str, expected: &str) {
        let (parts, ()) = Request::builder().method(method).uri(uri).body(()).unwrap().into_parts();
        let info = RequestInfo::parse(&parts.method, parts.uri.path(), parts.uri.query()).unwrap();
        assert_eq!(name(&info, &parts), expected);
    }

    #[test]
    fn names_tell_the_route_and_not_the_object() {
        check("GET", "/apis", "GET");
        check("GET", "/apis/g/v1", "GET");
        check("GET", "/apis/g/v1/things?watch=1", "GET /apis/g/v1/things");
        check(
            "PUT",
            "/apis/g/v1/namespaces/n/things/a/status",
            "PUT /apis/g/v1/namespaces/{:namespace}/things/{:name}/status",
        );
        check("GET", "/api/v1/nodes/n", "GET /api/v1/nodes/{:name}");
    }
}
