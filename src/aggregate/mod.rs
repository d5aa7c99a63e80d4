//! The discovery documents of all APIs together, made from the routing table.
//!
//! The legacy forms: `/apis`, `/apis/<group>` and the resources of the own group. A group's position
//! and its versions' order are upstream's (`helpers.go:SortedByGroupAndVersion`); unavailable
//! APIServices are listed like the others.

pub mod aggregator;
mod assembly;
mod fetch;
mod keeper;
mod kept;
mod known;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::model::negotiated::Negotiated;
use crate::model::order::{Rank, sort};
use crate::model::rejection::Rejection;
use crate::model::routing_table::{Document, Entry, Group, OWN_GROUP, OWN_VERSION, RoutingTable};
use crate::upstream::Upstream;

type Table = RoutingTable<Upstream>;

/// The documents; what is asked most is kept for as long as the table is the same.
#[derive(Debug, Default)]
pub struct Documents {
    groups: Mutex<Option<(Weak<Table>, Bytes)>>,
}

impl Documents {
    /// A document as it was agreed with the client.
    pub fn serve(
        &self,
        table: &Arc<Table>,
        document: &Document,
        negotiated: Negotiated,
    ) -> Result<Bytes, Rejection> {
        match document {
            Document::Groups if negotiated.is_plain_json() => self.groups(table),
            Document::Groups => Ok(negotiated.encode(&group_list(table))?.into()),
            Document::OwnResources => Ok(negotiated.encode(&own_resources())?.into()),
            Document::Group(name) => {
                let group = match &**name {
                    OWN_GROUP => own_group(),
                    name => table
                        .group(name)
                        .map(|group| api_group(group))
                        .ok_or(Rejection::PathNotFound)?,
                };
                Ok(negotiated.encode(&with_kind("APIGroup", group))?.into())
            }
        }
    }

    fn groups(&self, table: &Arc<Table>) -> Result<Bytes, Rejection> {
        let kept = || self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made_of, bytes)) = &*kept()
            && std::ptr::eq(made_of.as_ptr(), Arc::as_ptr(table))
        {
            return Ok(bytes.clone());
        }
        // Made outside the lock, so that readers on other threads do not wait for it.
        let bytes = Bytes::from(Negotiated::JSON.encode(&group_list(table))?);
        *kept() = Some((Arc::downgrade(table), bytes.clone()));
        Ok(bytes)
    }
}

/// The paths of all APIs for `GET /`, in no particular order; what belongs to no APIService too.
pub fn paths(table: &Table) -> Vec<String> {
    let mut paths: Vec<String> =
        ["/apis", "/apis/", "/apis/apiregistration.k8s.io", "/apis/apiregistration.k8s.io/v1"]
            .map(str::to_owned)
            .to_vec();
    for group in table.groups() {
        if group.name.is_empty() {
            paths.push("/api".to_owned());
            continue;
        }
        paths.push(format!("/apis/{}", group.name));
        let versions = group.entries.iter();
        paths.extend(versions.map(|entry| format!("/apis/{}/{}", group.name, entry.version)));
    }
    paths
}

/// The own group comes first, then the others by upstream's order.
fn group_list(table: &Table) -> Value {
    let entries: Vec<&Arc<Entry<Upstream>>> = table
        .groups()
        .filter(|group| !group.name.is_empty())
        .flat_map(|group| &group.entries)
        .collect();
    let sorted = sort(entries, |entry| rank(entry));
    let groups = sorted.iter().filter_map(|versions| {
        let name = &versions.first()?.group;
        Some(group_value(name, versions))
    });
    let groups: Vec<Value> = std::iter::once(own_group()).chain(groups).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

fn rank<B>(entry: &Entry<B>) -> Rank<'_> {
    Rank {
        group: &entry.group,
        version: &entry.version,
        group_priority: entry.group_priority,
        version_priority: entry.version_priority,
    }
}

fn api_group(group: &Group<Upstream>) -> Value {
    let versions = sort(group.entries.iter().collect(), |entry| rank(entry)).concat();
    group_value(&group.name, &versions)
}

fn group_value(name: &str, versions: &[&Arc<Entry<Upstream>>]) -> Value {
    let versions: Vec<Value> =
        versions.iter().map(|entry| version_value(name, &entry.version)).collect();
    json!({ "name": name, "versions": versions, "preferredVersion": versions.first() })
}

fn version_value(group: &str, version: &str) -> Value {
    json!({ "groupVersion": format!("{group}/{version}"), "version": version })
}

fn own_group() -> Value {
    let version = version_value(OWN_GROUP, OWN_VERSION);
    json!({ "name": OWN_GROUP, "versions": [version], "preferredVersion": version })
}

fn with_kind(kind: &str, mut document: Value) -> Value {
    if let Value::Object(map) = &mut document {
        map.insert("kind".to_owned(), kind.into());
        map.insert("apiVersion".to_owned(), "v1".into());
    }
    document
}

fn own_resources() -> Value {
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": format!("{OWN_GROUP}/{OWN_VERSION}"),
        "resources": [
            {
                "name": "apiservices",
                "singularName": "apiservice",
                "namespaced": false,
                "kind": "APIService",
                "verbs": ["get", "list", "watch"],
                "categories": ["api-extensions"],
            },
            {
                "name": "apiservices/status",
                "singularName": "",
                "namespaced": false,
                "kind": "APIService",
                "verbs": ["get"],
            },
        ],
    })
}
