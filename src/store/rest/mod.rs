//! `apiregistration.k8s.io/v1` apiservices, read-only: get, list and watch, as objects, Tables or
//! metadata, in JSON and YAML.

mod watch;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use jiff::Timestamp;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use serde_json::{Value, json};

use super::{Key, Kind, Store, Stored};
use crate::body::{Body, response};
use crate::model::accept::{Form, Offer};
use crate::model::api_service::{COLUMNS, available_cell, service_cell};
use crate::model::list_options::ListOptions;
use crate::model::negotiated::Negotiated;
use crate::model::query::Query;
use crate::model::rejection::Rejection;
use crate::model::request_info::RequestInfo;
use crate::model::routing_table::OWN_GROUP;
use crate::model::selector::Selectors;
use crate::model::table::{Column, IncludeObject, Row, age, partial_list, partial_object, table};

const API_VERSION: &str = "apiregistration.k8s.io/v1";
const KIND: &str = "APIService";
const RESOURCE: &str = "apiservices";

/// The stored APIServices as an API.
#[derive(Clone, Debug)]
pub struct ApiServices {
    store: Store,
    watch_timeout: Duration,
}

impl ApiServices {
    /// Serves what `store` holds; a watch that does not say how long it is to last lasts
    /// `watch_timeout` at least, and less than twice as long.
    pub fn new(store: Store, watch_timeout: Duration) -> Self {
        Self { store, watch_timeout }
    }

    /// Answers one request; the caller's permit has been given before.
    pub fn serve(
        &self,
        info: &RequestInfo<'_>,
        headers: &HeaderMap,
        query: &Query,
    ) -> Result<Response<Body>, Rejection> {
        if info.resource != RESOURCE
            || !info.namespace.is_empty()
            || !matches!(info.subresource, "" | "status")
        {
            return Err(Rejection::PathNotFound);
        }
        match info.verb {
            "get" => self.get(info.name, headers, query),
            "list" => self.list(headers, query),
            "watch" if info.name.is_empty() => self.watch(headers, query),
            _ => Err(Rejection::MethodNotAllowed),
        }
    }

    fn get(
        &self,
        name: &str,
        headers: &HeaderMap,
        query: &Query,
    ) -> Result<Response<Body>, Rejection> {
        let negotiated = Negotiated::new(headers, query, Offer::Objects)?;
        let shape = Shape::new(negotiated.accepted.form, query)?;
        let stored = self.store.get(&Key::api_service(name));
        let object = stored.as_deref().and_then(object);
        let object =
            object.ok_or_else(|| Rejection::object_not_found(OWN_GROUP, RESOURCE, name))?;
        answer(negotiated, &shape.one(&object, true))
    }

    fn list(&self, headers: &HeaderMap, query: &Query) -> Result<Response<Body>, Rejection> {
        let negotiated = Negotiated::new(headers, query, Offer::Objects)?;
        let shape = Shape::new(negotiated.accepted.form, query)?;
        let options = ListOptions::parse(query)?;
        let (objects, revision) = self.selected(&options.selectors);
        answer(negotiated, &shape.list(revision, &objects))
    }

    fn watch(&self, headers: &HeaderMap, query: &Query) -> Result<Response<Body>, Rejection> {
        let negotiated = Negotiated::new(headers, query, Offer::Events)?;
        let shape = Shape::new(negotiated.accepted.form, query)?;
        let options = ListOptions::parse(query)?;
        let chunks = watch::start(self, shape, &options)?;
        Ok(response(StatusCode::OK, "application/json", Body::chunks(chunks)))
    }

    fn selected(&self, selectors: &Selectors) -> (Vec<Value>, u64) {
        let (stored, revision) = self.store.list(Kind::ApiService);
        let mut objects: Vec<Value> = stored.iter().filter_map(|stored| object(stored)).collect();
        objects.retain(|object| selectors.matches(object));
        (objects, revision)
    }
}

/// An APIService as JSON; `spec` and `status` are always there, as upstream writes them.
fn object(stored: &Stored) -> Option<Value> {
    let mut value = serde_json::to_value(stored.object.as_api_service()?).ok()?;
    if let Value::Object(map) = &mut value {
        map.entry("status").or_insert_with(|| json!({}));
    }
    Some(value)
}

fn answer(negotiated: Negotiated, document: &Value) -> Result<Response<Body>, Rejection> {
    let bytes = Bytes::from(negotiated.encode(document)?);
    Ok(response(StatusCode::OK, negotiated.accepted.content_type(), bytes))
}

/// How objects are shown: whole, as Table rows or metadata only.
#[derive(Clone, Copy, Debug)]
struct Shape {
    form: Form,
    include: IncludeObject,
}

impl Shape {
    fn new(form: Form, query: &Query) -> Result<Self, Rejection> {
        Ok(Self { form, include: IncludeObject::parse(query)? })
    }

    /// One object; a Table's columns are left out of all watch events but the first.
    fn one(self, object: &Value, with_columns: bool) -> Value {
        match self.form {
            Form::Table => {
                let version = object.pointer("/metadata/resourceVersion");
                let metadata = json!({ "resourceVersion": version });
                let columns = columns();
                table(with_columns.then_some(&columns[..]), &metadata, [row(object)], self.include)
            }
            Form::Partial => partial_object(object),
            Form::Object | Form::Discovery => object.clone(),
        }
    }

    fn list(self, revision: u64, objects: &[Value]) -> Value {
        let metadata = json!({ "resourceVersion": revision.to_string() });
        match self.form {
            Form::Table => {
                table(Some(&columns()), &metadata, objects.iter().map(row), self.include)
            }
            Form::Partial => partial_list(&metadata, objects),
            Form::Object | Form::Discovery => json!({
                "kind": format!("{KIND}List"),
                "apiVersion": API_VERSION,
                "metadata": metadata,
                "items": objects,
            }),
        }
    }
}

fn columns() -> [Column; 4] {
    COLUMNS.map(|(name, format, description)| Column {
        name,
        kind: "string",
        format,
        description,
        priority: 0,
    })
}

fn row(object: &Value) -> Row<'_> {
    let typed: APIService = serde_json::from_value(object.clone()).unwrap_or_default();
    let created = typed.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let cells = vec![
        typed.metadata.name.clone().unwrap_or_default().into(),
        service_cell(&typed).into(),
        available_cell(&typed).into(),
        age(created, Timestamp::now()).into(),
    ];
    Row { cells, object }
}
