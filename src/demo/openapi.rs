//! OpenAPI 3.0: enough for `kubectl explain`, and for `kubectl apply` to see that the server itself
//! validates fields and which patches it takes.

use http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::answer::{self, Body};
use super::catalogue::{Group, Resource};
use super::discovery::{etag, not_modified, set};
use super::refusal::Refusal;
use crate::model::accept::Offer;
use crate::model::negotiated::{Negotiated, text};
use crate::model::query::Query;
use crate::model::rejection::Rejection;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// `/openapi/v3` and what is below it; `key` is the path after that.
pub(crate) fn serve(
    group: &'static Group,
    key: &str,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let negotiated = Negotiated::new(headers, query, Offer::Plain)?;
    if key.is_empty() {
        return answer::document(negotiated, StatusCode::OK, &index(group));
    }
    let found = group.version_names().find(|version| key == path_key(group, version));
    let version = found.ok_or(Rejection::PathNotFound)?;
    let document = document(group, version);
    let etag = etag(&document);
    let mut response = if text(headers, IF_NONE_MATCH) == Some(etag.as_str()) {
        not_modified()
    } else {
        answer::document(negotiated, StatusCode::OK, &document)?
    };
    set(&mut response, ETAG, &etag);
    set(&mut response, VARY, "Accept");
    // Upstream redirects an outdated hash; aggregators refuse redirects, so it gets the document.
    if query.text("hash") == etag.trim_matches('"') {
        set(&mut response, CACHE_CONTROL, "public, immutable");
    }
    Ok(response)
}

fn index(group: &Group) -> Value {
    let entries = group.version_names().map(|version| {
        let key = path_key(group, version);
        let etag = etag(&document(group, version));
        let url = format!("/openapi/v3/{key}?hash={}", etag.trim_matches('"'));
        (key, json!({ "serverRelativeURL": url }))
    });
    json!({ "paths": entries.collect::<Map<_, _>>() })
}

fn path_key(group: &Group, version: &str) -> String {
    format!("apis/{}/{version}", group.name)
}

fn document(group: &Group, version: &str) -> Value {
    let mut schemas = Map::new();
    schemas.insert(OBJECT_META.to_owned(), object_meta());
    schemas.insert(LIST_META.to_owned(), list_meta());
    let mut paths = Map::new();
    for resource in group.resources {
        let name = schema_name(resource, version);
        schemas.insert(name.clone(), object_schema(resource, version));
        schemas.insert(format!("{name}List"), list_schema(resource, version));
        let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let base = format!("/apis/{}/{version}{scope}/{}", group.name, resource.plural);
        paths.insert(base.clone(), collection_path(resource, version));
        paths.insert(format!("{base}/{{name}}"), object_path(resource, version));
    }
    json!({
        "openapi": "3.0.0",
        "info": { "title": group.name, "version": version },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

/// `com.example.bakery.v1.Cake`, the group's parts turned round as in upstream's names.
fn schema_name(resource: &Resource, version: &str) -> String {
    let parts: Vec<&str> = resource.group.rsplit('.').collect();
    format!("{}.{version}.{}", parts.join("."), resource.kind)
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn group_version_kind(resource: &Resource, version: &str, kind: &str) -> Value {
    json!({ "group": resource.group, "version": version, "kind": kind })
}

fn type_properties() -> Map<String, Value> {
    let text = |description: &str| json!({ "type": "string", "description": description });
    Map::from_iter([
        ("apiVersion".to_owned(), text("The version of the object's representation.")),
        ("kind".to_owned(), text("The type of the object.")),
    ])
}

fn object_schema(resource: &Resource, version: &str) -> Value {
    let mut properties = type_properties();
    properties.insert("metadata".to_owned(), json!({ "allOf": [reference(OBJECT_META)] }));
    if let Value::Object(parts) = (resource.schema)() {
        properties.extend(parts);
    }
    json!({
        "type": "object",
        "description": format!("{} is a sample resource.", resource.kind),
        "properties": properties,
        "x-kubernetes-group-version-kind": [group_version_kind(resource, version, resource.kind)],
    })
}

fn list_schema(resource: &Resource, version: &str) -> Value {
    let mut properties = type_properties();
    let item = reference(&schema_name(resource, version));
    properties.insert("metadata".to_owned(), json!({ "allOf": [reference(LIST_META)] }));
    properties.insert("items".to_owned(), json!({ "type": "array", "items": item }));
    let list_kind = resource.list_kind();
    json!({
        "type": "object",
        "description": format!("{list_kind} is a list of {}.", resource.plural),
        "required": ["items"],
        "properties": properties,
        "x-kubernetes-group-version-kind": [group_version_kind(resource, version, &list_kind)],
    })
}

fn collection_path(resource: &Resource, version: &str) -> Value {
    let list = format!("{}List", schema_name(resource, version));
    let object = schema_name(resource, version);
    let json_type = ["application/json", "application/yaml"];
    let mut path = json!({
        "get": operation(resource, version, "list", &list, &[], &["labelSelector", "limit"]),
        "post": operation(
            resource, version, "post", &object, &json_type, &["dryRun", "fieldValidation"],
        ),
        "delete": operation(
            resource, version, "deletecollection", &list, &[], &["dryRun", "labelSelector"],
        ),
    });
    add_path_parameters(&mut path, resource, false);
    path
}

fn object_path(resource: &Resource, version: &str) -> Value {
    let object = schema_name(resource, version);
    let json_type = ["application/json", "application/yaml"];
    let patches = ["application/json-patch+json", "application/merge-patch+json"];
    let written = ["dryRun", "fieldManager", "fieldValidation"];
    let mut path = json!({
        "get": operation(resource, version, "get", &object, &[], &[]),
        "put": operation(resource, version, "put", &object, &json_type, &written),
        "patch": operation(resource, version, "patch", &object, &patches, &written),
        "delete": operation(resource, version, "delete", &object, &[], &["dryRun"]),
    });
    add_path_parameters(&mut path, resource, true);
    path
}

fn operation(
    resource: &Resource,
    version: &str,
    action: &str,
    answer: &str,
    body_types: &[&str],
    parameters: &[&str],
) -> Value {
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|name| {
            let kind = if *name == "limit" { "integer" } else { "string" };
            json!({ "name": name, "in": "query", "schema": { "type": kind } })
        })
        .collect();
    let mut operation = json!({
        "operationId": format!("{action}{}{version}", resource.kind),
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "OK",
                "content": { "application/json": { "schema": reference(answer) } },
            },
        },
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": group_version_kind(resource, version, resource.kind),
    });
    if let Value::Object(map) = &mut operation
        && !body_types.is_empty()
    {
        let schema = json!({ "type": "object" });
        let content = body_types
            .iter()
            .map(|media_type| ((*media_type).to_owned(), json!({ "schema": schema })));
        let content: Map<String, Value> = content.collect();
        map.insert("requestBody".to_owned(), json!({ "content": content, "required": true }));
    }
    operation
}

fn add_path_parameters(path: &mut Value, resource: &Resource, named: bool) {
    let parameter = |name: &str| {
        let text = json!({ "type": "string" });
        json!({ "name": name, "in": "path", "required": true, "schema": text })
    };
    let parameters: Vec<Value> = [("name", named), ("namespace", resource.namespaced)]
        .into_iter()
        .filter(|(_, present)| *present)
        .map(|(name, _)| parameter(name))
        .collect();
    if let Value::Object(map) = path {
        map.insert("parameters".to_owned(), parameters.into());
    }
}

fn object_meta() -> Value {
    let text = json!({ "type": "string" });
    let moment = json!({ "type": "string", "format": "date-time" });
    let labels = json!({ "type": "object", "additionalProperties": text });
    json!({
        "type": "object",
        "description": "ObjectMeta is metadata that all persisted resources must have.",
        "properties": {
            "name": text, "generateName": text, "namespace": text, "uid": text,
            "resourceVersion": text, "selfLink": text,
            "generation": { "type": "integer", "format": "int64" },
            "creationTimestamp": moment, "deletionTimestamp": moment,
            "deletionGracePeriodSeconds": { "type": "integer", "format": "int64" },
            "labels": labels, "annotations": labels,
            "finalizers": { "type": "array", "items": text },
            "ownerReferences": { "type": "array", "items": { "type": "object" } },
            "managedFields": { "type": "array", "items": { "type": "object" } },
        },
    })
}

fn list_meta() -> Value {
    json!({
        "type": "object",
        "description": "ListMeta describes metadata that lists must have.",
        "properties": {
            "continue": { "type": "string" },
            "remainingItemCount": { "type": "integer", "format": "int64" },
            "resourceVersion": { "type": "string" },
            "selfLink": { "type": "string" },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::catalogue::BAKERY;

    #[test]
    fn patches_show_that_fields_are_validated() {
        let document = document(&BAKERY, "v1");
        let key = "/apis/bakery.example.com/v1/namespaces/{namespace}/cakes/{name}";
        let patch = &document["paths"][key]["patch"];
        let parameters = patch["parameters"].as_array().unwrap();
        assert!(parameters.iter().any(|parameter| parameter["name"] == "fieldValidation"));
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Cake");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = document(&BAKERY, "v1");
        let text = document.to_string();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for part in text.split("\"#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name}");
        }
    }
}
