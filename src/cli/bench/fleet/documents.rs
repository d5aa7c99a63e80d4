//! What a simulated server says of itself, made once: as upstream's servers say it, with their
//! verbs, short names and status subresources.

use std::collections::HashMap;
use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use crate::model::discovery::aggregated::{
    Freshness, GroupVersionKind, Resource, Scope, Subresource,
};
use crate::model::discovery::legacy::ApiResource;

/// What can be done with objects, in upstream's order.
const VERBS: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// What can be done with their status.
const STATUS_VERBS: [&str; 3] = ["get", "patch", "update"];
/// What the name of the resource begins with that shows how often a server has changed.
const CHANGE: &str = "changes-";

/// How much a server serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Versions of its group.
    pub versions: u32,
    /// Resources of each version.
    pub resources: u32,
}

impl Size {
    /// The versions' names, best first.
    pub fn version_names(self) -> impl Iterator<Item = String> {
        (1..=self.versions).rev().map(|number| format!("v{number}"))
    }
}

/// A server's documents at one time.
#[derive(Debug)]
pub(super) struct Documents {
    /// The aggregated form of `/apis`.
    pub(super) aggregated: Bytes,
    /// The quoted entity tag of the aggregated form.
    pub(super) etag: String,
    /// How often the server had changed.
    pub(super) generation: u64,
    /// All other documents and lists by path; those of namespaced resources for all namespaces.
    pub(super) by_path: HashMap<String, Bytes>,
}

#[derive(Serialize)]
struct Versions<'a> {
    version: &'a str,
    resources: Vec<Resource>,
    freshness: Freshness,
}

impl Documents {
    /// Those of a group after so many changes: each change takes away the resource that the last
    /// one added to the best version, and adds another one.
    pub(super) fn make(group: &str, size: Size, generation: u64) -> serde_json::Result<Self> {
        let versions: Vec<String> = size.version_names().collect();
        let mut by_path = HashMap::new();
        let mut aggregated = Vec::with_capacity(versions.len());
        for (at, version) in versions.iter().enumerate() {
            let changes = (at == 0 && generation > 0).then_some(generation);
            let resources = resources(size.resources, changes);
            let group_version = format!("{group}/{version}");
            let list = json!({
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": group_version,
                "resources": legacy(group, version, &resources),
            });
            let path = format!("/apis/{group_version}");
            for resource in &resources {
                let list = json!({
                    "kind": format!("{}List", kind(resource)),
                    "apiVersion": group_version,
                    "metadata": {"resourceVersion": "1"},
                    "items": [],
                });
                by_path.insert(format!("{path}/{}", resource.resource), encode(&list)?);
            }
            by_path.insert(path, encode(&list)?);
            aggregated.push(Versions { version, resources, freshness: Freshness::Current });
        }
        let entry = group_entry(group, &versions);
        let mut own = entry.clone();
        if let Value::Object(own) = &mut own {
            own.insert("kind".to_owned(), "APIGroup".into());
            own.insert("apiVersion".to_owned(), "v1".into());
        }
        by_path.insert(format!("/apis/{group}"), encode(&own)?);
        let groups = json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [entry] });
        by_path.insert("/apis".to_owned(), encode(&groups)?);
        let aggregated = encode(&json!({
            "kind": "APIGroupDiscoveryList",
            "apiVersion": "apidiscovery.k8s.io/v2",
            "metadata": {},
            "items": [{ "metadata": { "name": group }, "versions": aggregated }],
        }))?;
        let etag = etag(&aggregated);
        Ok(Self { aggregated, etag, generation, by_path })
    }
}

/// How often a server had changed, if that is what the resource of this name shows.
pub(crate) fn change_of(resource: &str) -> Option<u64> {
    resource.strip_prefix(CHANGE)?.parse().ok()
}

fn resources(count: u32, change: Option<u64>) -> Vec<Resource> {
    let mut all: Vec<Resource> = (1..=count)
        .map(|number| {
            // Every fourth is cluster-scoped.
            let scope = if number % 4 == 0 { Scope::Cluster } else { Scope::Namespaced };
            let names =
                [format!("simulatedwidgets{number:02}"), format!("simulatedwidget{number:02}")];
            resource(names, format!("SimulatedWidget{number:02}"), format!("wd{number:02}"), scope)
        })
        .collect();
    if let Some(change) = change {
        let names = [format!("{CHANGE}{change}"), format!("change-{change}")];
        // In its place by name, as upstream's servers list them.
        let short = format!("ch{change}");
        all.insert(0, resource(names, format!("Change{change}"), short, Scope::Cluster));
    }
    all
}

fn resource(
    [plural, singular]: [String; 2],
    kind: String,
    short_name: String,
    scope: Scope,
) -> Resource {
    let response_kind = Some(GroupVersionKind { kind, ..GroupVersionKind::default() });
    Resource {
        resource: plural,
        response_kind: response_kind.clone(),
        scope,
        singular_resource: singular,
        verbs: Some(VERBS.map(str::to_owned).to_vec()),
        short_names: vec![short_name],
        categories: vec!["all".to_owned()],
        subresources: vec![Subresource {
            subresource: "status".to_owned(),
            response_kind,
            accepted_types: Vec::new(),
            verbs: Some(STATUS_VERBS.map(str::to_owned).to_vec()),
        }],
    }
}

fn kind(resource: &Resource) -> &str {
    resource.response_kind.as_ref().map_or("", |kind| kind.kind.as_str())
}

fn legacy(group: &str, version: &str, resources: &[Resource]) -> Vec<ApiResource> {
    let mut all = Vec::with_capacity(resources.len() * 2);
    for resource in resources {
        let entry = ApiResource {
            name: resource.resource.clone(),
            singular_name: resource.singular_resource.clone(),
            namespaced: resource.scope == Scope::Namespaced,
            kind: kind(resource).to_owned(),
            verbs: resource.verbs.clone(),
            short_names: resource.short_names.clone(),
            categories: resource.categories.clone(),
            storage_version_hash: storage_version_hash(group, version, kind(resource)),
            ..ApiResource::default()
        };
        let status = resource.subresources.iter().map(|below| ApiResource {
            name: format!("{}/{}", resource.resource, below.subresource),
            namespaced: entry.namespaced,
            kind: entry.kind.clone(),
            verbs: below.verbs.clone(),
            ..ApiResource::default()
        });
        let status: Vec<ApiResource> = status.collect();
        all.push(entry);
        all.extend(status);
    }
    all
}

fn group_entry(group: &str, versions: &[String]) -> Value {
    let entry = |version: &String| json!({ "groupVersion": format!("{group}/{version}"), "version": version });
    json!({
        "name": group,
        "versions": versions.iter().map(entry).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(entry),
    })
}

/// Compact, with the newline that Go's encoder writes after a document.
fn encode(document: &Value) -> serde_json::Result<Bytes> {
    let mut bytes = serde_json::to_vec(document)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

/// A quoted hash, as upstream makes entity tags.
fn etag(document: &[u8]) -> String {
    let mut quoted = String::from("\"");
    for byte in digest(&SHA512, document).as_ref() {
        // Writing to a String cannot fail.
        let _ = write!(quoted, "{byte:02X}");
    }
    quoted.push('"');
    quoted
}

/// Upstream's hash of what objects are kept as.
fn storage_version_hash(group: &str, version: &str, kind: &str) -> String {
    let hash = digest(&SHA256, format!("{group}/{version}/{kind}").as_bytes());
    BASE64_STANDARD.encode(hash.as_ref().first_chunk::<8>().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { versions: 3, resources: 20 };

    #[test]
    fn two_hundred_groups_weigh_what_was_measured_with_kube_apiserver() {
        let documents = Documents::make("g017.bench.portico.dev", SIZE, 0).unwrap();
        let total = documents.aggregated.len() * 200;
        assert!((5_000_000..5_600_000).contains(&total), "{total} bytes");
    }

    #[test]
    fn the_aggregated_document_and_the_legacy_lists_agree() {
        let documents = Documents::make("g.example.com", SIZE, 2).unwrap();
        let aggregated: Value = serde_json::from_slice(&documents.aggregated).unwrap();
        let versions = aggregated["items"][0]["versions"].as_array().unwrap();
        let names: Vec<_> =
            versions.iter().map(|entry| entry["version"].as_str().unwrap()).collect();
        assert_eq!(names, ["v3", "v2", "v1"]);
        for (version, count) in names.iter().zip([21, 20, 20]) {
            let path = format!("/apis/g.example.com/{version}");
            let list: Value = serde_json::from_slice(&documents.by_path[&path]).unwrap();
            let all = list["resources"].as_array().unwrap();
            assert_eq!(all.len(), 2 * count, "{version}");
            let hashed = all.iter().filter(|entry| entry["storageVersionHash"].is_string()).count();
            assert_eq!(hashed, count);
        }
        assert_eq!(versions[0]["resources"][0]["resource"], "changes-2");
    }

    #[test]
    fn a_change_shows_in_the_entity_tag_and_in_a_resource() {
        let [first, again, second] = [1, 1, 2]
            .map(|generation| Documents::make("g.example.com", SIZE, generation).unwrap().etag);
        assert_eq!(first, again);
        assert_ne!(first, second);
        assert_eq!(change_of("changes-17"), Some(17));
        assert_eq!(change_of("simulatedwidgets01"), None);
        assert_eq!(change_of("changes-"), None);
    }
}
