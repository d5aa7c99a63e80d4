//! Facts of an APIService with which all is well, for tables to spoil.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use serde_json::{Value, json};

use crate::cli::doctor::certificate::Certificate;
use crate::cli::doctor::facts::{
    Answer, AsProxy, Asked, EndpointFacts, Facts, Forgery, Handshake, Identity, Proxied, Reply,
    Sought, TlsFacts,
};
use crate::model::endpoints::EndpointRouting;
use crate::model::fault::ServicePort;

pub(super) const NOW: i64 = 1_800_000_000;
pub(super) const DAY: i64 = 86_400;

fn parsed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub(super) fn service_of(spec: &str) -> Service {
    let spec: Value = serde_json::from_str(spec).unwrap();
    parsed(json!({"metadata": {"name": "things", "namespace": "ns"}, "spec": spec}))
}

pub(super) fn slices_of(endpoints: &str) -> Vec<EndpointSlice> {
    let endpoints: Value = serde_json::from_str(endpoints).unwrap();
    if endpoints.is_null() {
        return Vec::new();
    }
    vec![parsed(json!({
        "addressType": "IPv4",
        "metadata": {"name": "things-1", "namespace": "ns"},
        "ports": [{"name": "https", "port": 6443}],
        "endpoints": endpoints,
    }))]
}

/// A certificate of `issuer` that is valid for a year.
pub(super) fn certificate(subject: &str, issuer: &str, names: &[&str]) -> Certificate {
    Certificate {
        subject: format!("CN={subject}"),
        issuer: format!("CN={issuer}"),
        common_name: subject.to_owned(),
        names: names.iter().map(|&name| name.to_owned()).collect(),
        not_before: NOW - DAY,
        not_after: NOW + 365 * DAY,
        sha256: "0123456789abcdef0123".to_owned(),
    }
}

pub(super) fn reply(status: u16, body: &Value) -> Reply {
    Reply {
        status,
        content_type: "application/json".to_owned(),
        body: body.to_string().into(),
        took: Duration::from_millis(3),
    }
}

pub(super) fn status(code: u16, message: &str) -> Reply {
    reply(code, &json!({"kind": "Status", "apiVersion": "v1", "message": message, "code": code}))
}

/// A 403 for this user.
#[expect(clippy::unnecessary_wraps, reason = "what is asked for may also fail")]
pub(super) fn forbidden(user: &str) -> Answer {
    let path = crate::cli::doctor::facts::PROBE_PATH;
    Ok(status(403, &format!("forbidden: User \"{user}\" cannot get path \"{path}\"")))
}

#[expect(clippy::unnecessary_wraps, reason = "what is asked for may also fail")]
pub(super) fn unauthorized() -> Answer {
    Ok(status(401, "Unauthorized"))
}

#[expect(clippy::unnecessary_wraps, reason = "what is asked for may also fail")]
pub(super) fn not_found() -> Answer {
    Ok(status(404, "the server could not find the requested resource"))
}

pub(super) fn legacy(resources: &[&str]) -> Reply {
    let resources: Vec<Value> = resources
        .iter()
        .map(|name| {
            json!({"name": name, "singularName": "", "namespaced": false, "kind": "Thing",
                   "verbs": ["get", "list"]})
        })
        .collect();
    reply(
        200,
        &json!({"kind": "APIResourceList", "apiVersion": "v1",
                "groupVersion": "things.example.com/v1", "resources": resources}),
    )
}

pub(super) fn as_proxy() -> AsProxy {
    AsProxy {
        marker: forbidden(crate::cli::doctor::facts::MARKER_USER),
        master: not_found(),
        legacy: Ok(legacy(&["things"])),
        aggregated: Ok(status(406, "only the following media types are accepted")),
        list: None,
    }
}

pub(super) fn endpoint() -> EndpointFacts {
    let chain = vec![certificate("server", "ca", &["things.ns.svc"])];
    EndpointFacts {
        address: SocketAddr::from(([10, 0, 0, 1], 6443)),
        tcp: Ok(Duration::from_millis(1)),
        tls: Some(TlsFacts {
            handshake: Ok(Handshake {
                version: "TLS 1.3",
                protocol: "HTTP/2",
                took: Duration::from_millis(2),
            }),
            chain,
            verdict: Some(Ok(())),
            wanted: Some(vec!["CN=front-proxy-ca".to_owned()]),
        }),
        asked: Some(Asked {
            as_proxy: Some(as_proxy()),
            forgery: Some(Forgery {
                path: crate::cli::doctor::facts::PROBE_PATH.to_owned(),
                is_list: false,
                anonymous: unauthorized(),
                forged: Some(unauthorized()),
            }),
        }),
    }
}

pub(super) fn facts() -> Facts {
    let object: APIService = parsed(json!({
        "metadata": {"name": "v1.things.example.com"},
        "spec": {"group": "things.example.com", "version": "v1", "groupPriorityMinimum": 1,
                 "versionPriority": 1, "caBundle": "",
                 "service": {"namespace": "ns", "name": "things", "port": 443}},
    }));
    Facts {
        name: "v1.things.example.com".to_owned(),
        source: "https://127.0.0.1:6443".to_owned(),
        object: Some(object),
        similar: Vec::new(),
        service_ref: Some(ServicePort { namespace: "ns".into(), name: "things".into(), port: 443 }),
        service: Sought::Found(service_of(r#"{"ports": [{"name": "https", "port": 443}]}"#)),
        slices: Sought::Found(slices_of(r#"[{"addresses": ["10.0.0.1"]}]"#)),
        routing: EndpointRouting::Endpoints,
        resolved: None,
        endpoints: vec![endpoint()],
        left_out: 0,
        identity: Some(Identity {
            file: "front-proxy.crt".to_owned(),
            chain: vec![certificate("front-proxy", "front-proxy-ca", &[])],
        }),
        trust: Sought::Missing,
        proxied: Some(Proxied {
            server: "https://127.0.0.1:6443".to_owned(),
            discovery: Ok(legacy(&["things"])),
            list: Some((
                "/apis/things.example.com/v1/things?limit=1".to_owned(),
                Ok(reply(200, &json!({"items": []}))),
            )),
        }),
        now: NOW,
    }
}

/// Puts a condition of type `Available` into the object.
pub(super) fn condition(facts: &mut Facts, status: &str, reason: &str, message: &str) {
    let status = json!({"conditions": [{"type": "Available", "status": status, "reason": reason,
                                        "message": message}]});
    facts.object.as_mut().unwrap().status = Some(parsed(status));
}

#[test]
fn a_chain_with_which_all_is_well_has_no_fault() {
    use crate::cli::doctor::finding::Outcome;
    for finding in super::decide(&facts()) {
        assert_eq!(finding.outcome, Outcome::Well, "{finding:?}");
    }
}
