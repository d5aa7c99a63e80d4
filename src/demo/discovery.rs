//! What a toy says of itself: its group, versions and resources, in the plain and aggregated forms.

use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::answer::{self, Body, with_body};
use super::catalogue::{Group, Resource, VERBS};
use super::refusal::Refusal;
use crate::model::accept::{Form, Offer};
use crate::model::negotiated::{Negotiated, text};
use crate::model::query::Query;

/// `/apis`: the aggregated document where it is asked for, else the list of groups.
pub(crate) fn groups(
    group: &'static Group,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let negotiated = Negotiated::new(headers, query, Offer::Discovery)?;
    if negotiated.accepted.form != Form::Discovery {
        let list = json!({
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [group_entry(group)],
        });
        return answer::document(negotiated, StatusCode::OK, &list);
    }
    let document = aggregated(group);
    let etag = etag(&document);
    let mut response = if text(headers, IF_NONE_MATCH) == Some(etag.as_str()) {
        not_modified()
    } else {
        answer::document(negotiated, StatusCode::OK, &document)?
    };
    for (name, value) in [(ETAG, etag.as_str()), (VARY, "Accept"), (CACHE_CONTROL, "public")] {
        set(&mut response, name, value);
    }
    Ok(response)
}

/// `/apis/<group>`.
pub(crate) fn group(
    group: &'static Group,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let mut document = group_entry(group);
    if let Value::Object(map) = &mut document {
        map.insert("kind".to_owned(), "APIGroup".into());
        map.insert("apiVersion".to_owned(), "v1".into());
    }
    let negotiated = Negotiated::new(headers, query, Offer::Plain)?;
    answer::document(negotiated, StatusCode::OK, &document)
}

/// `/apis/<group>/<version>`.
pub(crate) fn resources(
    group: &'static Group,
    version: &str,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let resources: Vec<Value> =
        group.resources.iter().map(|resource| plain(group, resource)).collect();
    let document = json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": format!("{}/{version}", group.name),
        "resources": resources,
    });
    let negotiated = Negotiated::new(headers, query, Offer::Plain)?;
    answer::document(negotiated, StatusCode::OK, &document)
}

/// `/version`.
pub(crate) fn version(headers: &HeaderMap, query: &Query) -> Result<Response<Body>, Refusal> {
    let document = json!({
        "major": "0",
        "minor": "1",
        "gitVersion": concat!("v", env!("CARGO_PKG_VERSION")),
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    });
    let negotiated = Negotiated::new(headers, query, Offer::Plain)?;
    answer::document(negotiated, StatusCode::OK, &document)
}

/// A document's quoted entity tag, as upstream makes it: equal content has equal tags.
pub(crate) fn etag(document: &Value) -> String {
    let hash = digest(&SHA512, document.to_string().as_bytes());
    let mut quoted = String::from("\"");
    for byte in hash.as_ref() {
        // Writing to a String cannot fail.
        let _ = write!(quoted, "{byte:02X}");
    }
    quoted.push('"');
    quoted
}

/// 304.
pub(crate) fn not_modified() -> Response<Body> {
    let mut response = with_body(StatusCode::NOT_MODIFIED, "", "");
    response.headers_mut().remove(http::header::CONTENT_TYPE);
    response
}

/// Sets a header to a text that is known to be one.
pub(crate) fn set(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn group_entry(group: &Group) -> Value {
    let entry = |version: &str| {
        let group_version = format!("{}/{version}", group.name);
        json!({ "groupVersion": group_version, "version": version })
    };
    let versions: Vec<Value> = group.version_names().map(entry).collect();
    json!({
        "name": group.name,
        "versions": versions,
        "preferredVersion": entry(group.storage_version()),
    })
}

fn plain(group: &Group, resource: &Resource) -> Value {
    let mut entry = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": VERBS,
        "storageVersionHash": storage_version_hash(group, resource),
    });
    add_names(&mut entry, resource);
    entry
}

fn aggregated(group: &Group) -> Value {
    let resources: Vec<Value> = group.resources.iter().map(aggregated_resource).collect();
    let versions: Vec<Value> = group
        .version_names()
        .map(
            |version| json!({ "version": version, "resources": resources, "freshness": "Current" }),
        )
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": [{ "metadata": { "name": group.name }, "versions": versions }],
    })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": { "group": "", "version": "", "kind": resource.kind },
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": VERBS,
    });
    add_names(&mut entry, resource);
    entry
}

fn add_names(entry: &mut Value, resource: &Resource) {
    let names = [("shortNames", resource.short_names), ("categories", resource.categories)];
    if let Value::Object(map) = entry {
        for (key, names) in names.into_iter().filter(|(_, names)| !names.is_empty()) {
            map.insert(key.to_owned(), json!(names));
        }
    }
}

/// Upstream's hash of what objects are kept as: tells clients when that changes.
fn storage_version_hash(group: &Group, resource: &Resource) -> String {
    let name = format!("{}/{}/{}", group.name, group.storage_version(), resource.kind);
    let hash = digest(&SHA256, name.as_bytes());
    STANDARD.encode(hash.as_ref().first_chunk::<8>().copied().unwrap_or_default())
}
