//! Asks the API server whom it takes us for, and what we may.

use http::{HeaderName, Method};
use serde_json::{Value, json};

use super::api::Api;
use super::decide::front::{FrontFacts, MARKER_EXTRA, MARKER_UID, Refusal, Seen};
use super::facts::{Identity, MARKER_GROUP, MARKER_USER, Reply, Sought, TrustFacts};
use crate::tls;

const REVIEW: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const ACCESS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// What impersonation takes: group, resource, subresource.
const RIGHTS: [(&str, &str, &str); 5] = [
    ("", "users", ""),
    ("", "groups", ""),
    ("", "serviceaccounts", ""),
    ("authentication.k8s.io", "uids", ""),
    ("authentication.k8s.io", "userextras", "portico-doctor"),
];

/// `by_pair`: the same server with the proxy-client pair for credentials.
pub(super) async fn facts(
    api: &Api,
    by_pair: Option<&Api>,
    identity: Option<Identity>,
    trust: Sought<TrustFacts>,
) -> FrontFacts {
    let own = who(api, &[]).await;
    let mut facts = FrontFacts {
        version: String::new(),
        own,
        as_proxy: None,
        rights: Vec::new(),
        identity,
        trust,
        now: tls::expiry::now(),
    };
    if facts.own.is_err() {
        return facts;
    }
    facts.version = version(api).await;
    if let Some(by_pair) = by_pair {
        let claim = [
            (HeaderName::from_static("x-remote-user"), MARKER_USER),
            (HeaderName::from_static("x-remote-uid"), MARKER_UID),
            (HeaderName::from_static("x-remote-group"), MARKER_GROUP),
            (HeaderName::from_static("x-remote-extra-portico-doctor"), MARKER_EXTRA),
        ];
        facts.as_proxy = Some(who(by_pair, &claim).await);
    }
    for (group, resource, subresource) in RIGHTS {
        facts.rights.push((resource, may_impersonate(api, group, resource, subresource).await));
    }
    facts
}

async fn version(api: &Api) -> String {
    let reply = api.get("/version").await.ok().filter(Reply::is_success);
    let body = reply.and_then(|reply| serde_json::from_slice::<Value>(&reply.body).ok());
    let version = body.as_ref().and_then(|body| body.get("gitVersion")?.as_str());
    version.unwrap_or_default().to_owned()
}

async fn who(api: &Api, headers: &[(HeaderName, &str)]) -> Result<Seen, Refusal> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = api.send(Method::POST, REVIEW, headers, review.to_string().into()).await;
    let reply = answer.map_err(|message| Refusal { status: None, message })?;
    if !reply.is_success() {
        return Err(Refusal { status: Some(reply.status), message: reply.message() });
    }
    let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let field = |name: &str| answer.pointer(&format!("/status/userInfo/{name}"));
    let text = |name: &str| field(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let extra = field("extra").and_then(Value::as_object);
    Ok(Seen {
        name: text("username"),
        uid: text("uid"),
        extra: extra.into_iter().flat_map(|extra| extra.values().flat_map(texts)).collect(),
    })
}

async fn may_impersonate(
    api: &Api,
    group: &str,
    resource: &str,
    subresource: &str,
) -> Result<bool, String> {
    let attributes = json!({"group": group, "resource": resource, "subresource": subresource,
                            "verb": "impersonate"});
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                        "spec": {"resourceAttributes": attributes}});
    let reply = api.send(Method::POST, ACCESS, &[], review.to_string().into()).await?;
    if !reply.is_success() {
        return Err(format!("{ACCESS} is answered with {}: {}", reply.status, reply.message()));
    }
    let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    Ok(answer.pointer("/status/allowed").and_then(Value::as_bool).unwrap_or_default())
}
