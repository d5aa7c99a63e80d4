//! Asks the API server whom it takes us for, and what we may.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::api::Api;
use super::decide::front::{FrontFacts, Refusal};
use super::facts::{Identity, Reply, Sought, TrustFacts};
use crate::auth::Caller;
use crate::model::review::front_proxy::{Disbelief, PATH, QUESTION, Verdict, judge, marker};
use crate::tls;

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
    let own = own(api).await;
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
        facts.as_proxy = Some(as_proxy(by_pair).await);
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

/// Who we are by our own credentials.
async fn own(api: &Api) -> Result<String, Refusal> {
    let answer = api.send(Method::POST, PATH, &[], QUESTION.to_vec()).await;
    let reply =
        answer.map_err(|fault| Refusal { status: None, message: fault.detail.to_string() })?;
    if !reply.is_success() {
        return Err(Refusal { status: Some(reply.status), message: reply.message() });
    }
    let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let name = answer.pointer("/status/userInfo/username").and_then(Value::as_str);
    Ok(name.unwrap_or_default().to_owned())
}

/// Asks as `portico run` does, and judges the answer so, too.
async fn as_proxy(by_pair: &Api) -> Result<Verdict, String> {
    let marker = marker(&format!("{:032x}", fastrand::u128(..)));
    let headers = Caller::new(marker.clone())?.headers;
    match by_pair.send(Method::POST, PATH, &headers, QUESTION.to_vec()).await {
        Ok(reply) => {
            let code = StatusCode::from_u16(reply.status).map_err(|error| error.to_string())?;
            Ok(judge(code, &reply.body, &marker))
        }
        Err(fault) => match Disbelief::of(fault.hop) {
            Some(disbelief) => Ok(Verdict::Refused(disbelief)),
            None => Err(fault.detail.to_string()),
        },
    }
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
    let answer = api.send(Method::POST, ACCESS, &[], review.to_string().into()).await;
    let reply = answer.map_err(|fault| fault.detail.to_string())?;
    if !reply.is_success() {
        return Err(format!("{ACCESS} is answered with {}: {}", reply.status, reply.message()));
    }
    let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    Ok(answer.pointer("/status/allowed").and_then(Value::as_bool).unwrap_or_default())
}
