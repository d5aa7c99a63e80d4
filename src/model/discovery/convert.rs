//! From the documents from before aggregation to the entries of an aggregated one, and back.
//!
//! Upstream: `apiserver/pkg/endpoints/installer.go:ConvertGroupVersionIntoToDiscovery`.

use std::collections::HashMap;

use super::aggregated::{GroupVersionKind, Resource, Scope, Subresource};
use super::legacy::ApiResource;

/// A resource and what is under it disagree on whether there is a namespace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "Error: Parent {parent} (scope: {parent_scope:?}) and subresource {subresource} (scope: {scope:?}) scope do not match"
)]
pub struct ScopeMismatch {
    /// The resource's name.
    pub parent: String,
    /// The resource's scope.
    pub parent_scope: Scope,
    /// The subresource's name.
    pub subresource: String,
    /// The subresource's scope.
    pub scope: Scope,
}

/// The entries of an aggregated document for a legacy list, in its order.
///
/// Subresources go under their resource; one whose resource is not listed gets an empty one, after
/// the others.
pub fn to_aggregated(list: &[ApiResource]) -> Result<Vec<Resource>, ScopeMismatch> {
    let mut resources: Vec<Resource> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for entry in list.iter().filter(|entry| !entry.name.contains('/')) {
        // Of two with one name, the later takes the subresources, as upstream.
        places.insert(&entry.name, resources.len());
        resources.push(resource(entry));
    }
    for entry in list {
        let Some((parent, name)) = entry.name.split_once('/') else { continue };
        let scope = scope(entry);
        let place = *places.entry(parent).or_insert(resources.len());
        if place == resources.len() {
            resources.push(Resource {
                resource: parent.to_owned(),
                response_kind: Some(GroupVersionKind::default()),
                scope,
                ..Resource::default()
            });
        }
        // Always there: a place is either that of an entry or of the one just added.
        let Some(parent) = resources.get_mut(place) else { continue };
        if parent.scope != scope {
            return Err(ScopeMismatch {
                parent: parent.resource.clone(),
                parent_scope: parent.scope,
                subresource: name.to_owned(),
                scope,
            });
        }
        parent.subresources.push(subresource(name, entry));
    }
    Ok(resources)
}

/// The legacy list that says the same, for a version of which no legacy document is known.
///
/// It lacks `storageVersionHash`, which aggregated documents do not have. A resource of which
/// nothing is known but that something is under it is left out, as client-go does.
pub fn to_legacy(resources: &[Resource], group: &str, version: &str) -> Vec<ApiResource> {
    let mut list = Vec::new();
    for resource in resources {
        let namespaced = resource.scope == Scope::Namespaced;
        if !is_placeholder(resource) {
            let kind = kind_within(resource.response_kind.as_ref(), group, version);
            list.push(ApiResource {
                name: resource.resource.clone(),
                singular_name: resource.singular_resource.clone(),
                namespaced,
                group: kind.group,
                version: kind.version,
                kind: kind.kind,
                verbs: resource.verbs.clone(),
                short_names: resource.short_names.clone(),
                categories: resource.categories.clone(),
                storage_version_hash: String::new(),
            });
        }
        for subresource in &resource.subresources {
            let kind = kind_within(subresource.response_kind.as_ref(), group, version);
            list.push(ApiResource {
                name: format!("{}/{}", resource.resource, subresource.subresource),
                namespaced,
                group: kind.group,
                version: kind.version,
                kind: kind.kind,
                verbs: subresource.verbs.clone(),
                ..ApiResource::default()
            });
        }
    }
    list
}

fn scope(entry: &ApiResource) -> Scope {
    if entry.namespaced { Scope::Namespaced } else { Scope::Cluster }
}

fn resource(entry: &ApiResource) -> Resource {
    Resource {
        resource: entry.name.clone(),
        response_kind: Some(kind_of(entry)),
        scope: scope(entry),
        singular_resource: entry.singular_name.clone(),
        verbs: entry.verbs.clone(),
        short_names: entry.short_names.clone(),
        categories: entry.categories.clone(),
        subresources: Vec::new(),
    }
}

fn subresource(name: &str, entry: &ApiResource) -> Subresource {
    let kind = if entry.kind.is_empty() { GroupVersionKind::default() } else { kind_of(entry) };
    Subresource {
        subresource: name.to_owned(),
        // Never missing: client-go 0.26.0 to 0.26.3 panics then.
        response_kind: Some(kind),
        accepted_types: Vec::new(),
        verbs: entry.verbs.clone(),
    }
}

fn kind_of(entry: &ApiResource) -> GroupVersionKind {
    GroupVersionKind {
        group: entry.group.clone(),
        version: entry.version.clone(),
        kind: entry.kind.clone(),
    }
}

/// The kind, with group and version only where they are not those of the list.
fn kind_within(kind: Option<&GroupVersionKind>, group: &str, version: &str) -> GroupVersionKind {
    let kind = kind.cloned().unwrap_or_default();
    if kind.group == group && kind.version == version {
        return GroupVersionKind { kind: kind.kind, ..GroupVersionKind::default() };
    }
    kind
}

fn is_placeholder(resource: &Resource) -> bool {
    let is_kindless = resource.response_kind.as_ref().is_none_or(|kind| kind.kind.is_empty());
    is_kindless && resource.verbs.is_none() && !resource.subresources.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const NAMESPACED: &str = "Namespaced";

    #[track_caller]
    fn check(legacy: Value, aggregated: &Value) {
        let list: Vec<ApiResource> = serde_json::from_value(legacy).unwrap();
        let expected: Vec<Resource> = serde_json::from_value(aggregated.clone()).unwrap();
        let converted = to_aggregated(&list).unwrap();
        assert_eq!(converted, expected);
        assert_eq!(serde_json::to_value(&converted).unwrap(), *aggregated);
    }

    fn kind(group: &str, version: &str, kind: &str) -> Value {
        json!({ "group": group, "version": version, "kind": kind })
    }

    fn entry(name: &str, namespaced: bool, kind: &Value) -> Value {
        let mut entry = json!({
            "name": name, "namespaced": namespaced, "shortNames": ["x"], "verbs": ["get", "list"],
        });
        let map = entry.as_object_mut().unwrap();
        map.extend(kind.as_object().unwrap().clone());
        entry
    }

    fn converted(name: &str, scope: &str, kind: &Value, subresources: &[(&str, &Value)]) -> Value {
        let mut resource = json!({
            "resource": name, "responseKind": kind, "scope": scope, "singularResource": "",
            "verbs": ["get", "list"], "shortNames": ["x"],
        });
        let subresources: Vec<Value> = subresources
            .iter()
            .map(|(name, kind)| {
                json!({ "subresource": name, "responseKind": kind, "verbs": ["get", "list"] })
            })
            .collect();
        if !subresources.is_empty() {
            resource["subresources"] = subresources.into();
        }
        resource
    }

    /// Upstream's `TestConvertAPIResourceToDiscovery`, row by row.
    #[test]
    fn legacy_lists_are_converted_as_upstream_does() {
        let cron_job = kind("batch", "v1", "CronJob");
        let deployment = kind("apps", "v1", "Deployment");
        let none = kind("", "", "");
        // Kinds of the list's own version, and of another.
        let pod = kind("", "", "Pod");
        check(
            json!([entry("pods", true, &pod)]),
            &json!([converted("pods", NAMESPACED, &pod, &[])]),
        );
        check(
            json!([entry("cronjobs", true, &cron_job)]),
            &json!([converted("cronjobs", NAMESPACED, &cron_job, &[])]),
        );
        // Subresources.
        check(
            json!([entry("cronjobs", true, &cron_job), entry("cronjobs/status", true, &cron_job)]),
            &json!([converted("cronjobs", NAMESPACED, &cron_job, &[("status", &cron_job)])]),
        );
        check(
            json!([
                entry("cronjobs", true, &cron_job),
                entry("cronjobs/status", true, &cron_job),
                entry("deployments", true, &deployment),
                entry("deployments/status", true, &deployment),
            ]),
            &json!([
                converted("cronjobs", NAMESPACED, &cron_job, &[("status", &cron_job)]),
                converted("deployments", NAMESPACED, &deployment, &[("status", &deployment)]),
            ]),
        );
        // Without a parent, then without a kind either.
        for (of_entry, of_result) in [(&cron_job, &cron_job), (&kind("batch", "v1", ""), &none)] {
            check(
                json!([entry("cronjobs/status", true, of_entry)]),
                &json!([{
                    "resource": "cronjobs", "responseKind": none, "scope": NAMESPACED,
                    "singularResource": "", "verbs": null,
                    "subresources": [{
                        "subresource": "status", "responseKind": of_result,
                        "verbs": ["get", "list"],
                    }],
                }]),
            );
        }
        // Scopes.
        let of_node = kind("", "", "Node");
        check(
            json!([entry("nodes", false, &of_node)]),
            &json!([converted("nodes", "Cluster", &of_node, &[])]),
        );
        check(
            json!([entry("nodes", true, &of_node)]),
            &json!([converted("nodes", NAMESPACED, &of_node, &[])]),
        );
        // The singular name.
        let mut named = entry("nodes", false, &of_node);
        named["singularName"] = "node".into();
        let mut expected = converted("nodes", "Cluster", &of_node, &[]);
        expected["singularResource"] = "node".into();
        check(json!([named]), &json!([expected]));
    }

    #[test]
    fn a_subresource_of_another_scope_is_refused_with_upstreams_text() {
        let cron_job = kind("batch", "v1", "CronJob");
        let list =
            json!([entry("cronjobs", true, &cron_job), entry("cronjobs/status", false, &cron_job)]);
        let list: Vec<ApiResource> = serde_json::from_value(list).unwrap();
        assert_eq!(
            to_aggregated(&list).unwrap_err().to_string(),
            "Error: Parent cronjobs (scope: Namespaced) and subresource status (scope: Cluster) \
             scope do not match"
        );
    }

    #[test]
    fn parents_that_are_not_listed_come_last_and_once() {
        let thing = kind("", "", "Thing");
        let none = kind("", "", "");
        let list = json!([
            entry("b/x/y", false, &thing),
            entry("a", false, &thing),
            entry("b/z", false, &thing)
        ]);
        let list: Vec<ApiResource> = serde_json::from_value(list).unwrap();
        let resources = to_aggregated(&list).unwrap();
        let names: Vec<&str> = resources.iter().map(|resource| &*resource.resource).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(serde_json::to_value(&resources[1].response_kind).unwrap(), none);
        let names: Vec<&str> =
            resources[1].subresources.iter().map(|sub| &*sub.subresource).collect();
        assert_eq!(names, ["x/y", "z"]);
    }

    #[test]
    fn legacy_entries_name_group_and_version_only_where_they_are_others() {
        let list = |group: &str, version: &str| {
            let resource = Resource {
                resource: "things".to_owned(),
                response_kind: Some(GroupVersionKind {
                    group: group.to_owned(),
                    version: version.to_owned(),
                    kind: "Thing".to_owned(),
                }),
                ..Resource::default()
            };
            let list = to_legacy(&[resource], "example.com", "v1");
            serde_json::to_string(&list).unwrap()
        };
        assert_eq!(
            list("example.com", "v1"),
            r#"[{"name":"things","singularName":"","namespaced":false,"kind":"Thing","verbs":null}]"#
        );
        assert_eq!(
            list("autoscaling", "v1"),
            r#"[{"name":"things","singularName":"","namespaced":false,"group":"autoscaling","version":"v1","kind":"Thing","verbs":null}]"#
        );
    }

    fn words() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("[a-z]{1,3}", 0..3)
    }

    prop_compose! {
        fn an_entry()(
            parent in "[a-d]",
            sub in prop::option::of("[x-z](/[x-z])?"),
            kind in prop::sample::select(vec!["", "Thing", "Other"]),
            of in prop::sample::select(vec![("", ""), ("autoscaling", "v1"), ("g", "v1")]),
            verbs in prop::option::of(words()),
            (short_names, categories, singular_name) in (words(), words(), "[a-z]{0,3}"),
        ) -> ApiResource {
            let is_resource = sub.is_none();
            ApiResource {
                name: sub.map_or_else(|| parent.clone(), |sub| format!("{parent}/{sub}")),
                // The same for a resource and what is under it.
                namespaced: &*parent < "c",
                kind: if is_resource && kind.is_empty() { "Thing".to_owned() } else { kind.to_owned() },
                group: of.0.to_owned(),
                version: of.1.to_owned(),
                verbs,
                singular_name: if is_resource { singular_name } else { String::new() },
                short_names: if is_resource { short_names } else { Vec::new() },
                categories: if is_resource { categories } else { Vec::new() },
                storage_version_hash: String::new(),
            }
        }
    }

    proptest! {
        #[test]
        fn what_came_from_a_legacy_list_survives_the_way_back(
            list in prop::collection::vec(an_entry(), 0..12),
        ) {
            let aggregated = to_aggregated(&list).unwrap();
            let again = to_aggregated(&to_legacy(&aggregated, "example.com", "v1")).unwrap();
            prop_assert_eq!(aggregated, again);
        }
    }
}
