//! Portico's own pages: health, index, version, metrics, what is inside, and the empty `OpenAPI`
//! document.
//!
//! Health is answered at once, by the thread that is asked; what takes long is made elsewhere.

mod certificates;
mod debug;
mod health;
mod log_check;

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use self::debug::Selection;
pub use self::debug::{ConnectionsByThread, Inside};
pub use self::health::Health;
pub use self::log_check::LogCheck;
use crate::body::{Body, response};
use crate::model::health::Probe;
use crate::model::negotiated::Negotiated;
use crate::model::query::Query;
use crate::model::rejection::Rejection;
use crate::model::routing_table::RoutingTable;
use crate::runtime::background::{Background, NotMade};
use crate::runtime::telemetry::Metrics;
use crate::upstream::Upstream;

/// Kubernetes' minor version whose behaviour portico follows.
const MINOR: &str = "37";
const JSON: &str = "application/json";
/// What kubectl asks `/openapi/v2` in (`measured-1.37.md` §6).
const OPENAPI_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const METRICS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The pages.
#[derive(Debug)]
pub struct Pages {
    health: Health,
    inside: Inside,
    metrics: Arc<Metrics>,
    background: Background,
}

impl Pages {
    /// Long pages are made by `runtime`, which must be none of the data plane's.
    pub fn new(health: Health, inside: Inside, metrics: Arc<Metrics>, runtime: Handle) -> Self {
        Self { health, inside, metrics, background: Background::new(runtime) }
    }

    /// `/livez`, `/readyz`, `/healthz` and the paths of their checks.
    pub fn health(
        &self,
        probe: Probe,
        path: &str,
        query: &Query,
    ) -> Result<Response<Body>, Rejection> {
        self.health.serve(probe, path, query)
    }

    /// `/metrics` in Prometheus' text format, for every method (as upstream with
    /// `--profiling=false`).
    pub async fn metrics(&self) -> Result<Response<Body>, Rejection> {
        let metrics = Arc::clone(&self.metrics);
        let text = self.background.run(move || metrics.render()).await.map_err(not_made)?;
        let text = text.map_err(|error| Rejection::Internal(error.to_string()))?;
        Ok(response(StatusCode::OK, METRICS_TEXT, Bytes::from(text)))
    }

    /// `/` and `/index.html`: the paths of the APIs, which `apis` lists, and of these pages, sorted;
    /// in JSON for every method and whatever the client accepts, as upstream.
    pub async fn index(
        &self,
        apis: impl FnOnce() -> Vec<String> + Send + 'static,
    ) -> Result<Response<Body>, Rejection> {
        let mut own: Vec<String> = self.health.paths().collect();
        own.extend(["/debug/portico", "/metrics", "/openapi/v2", "/version"].map(str::to_owned));
        let made = self.background.run(move || {
            let mut paths = apis();
            paths.append(&mut own);
            paths.sort();
            indented(&json!({ "paths": paths }))
        });
        Ok(response(StatusCode::OK, JSON, made.await.map_err(not_made)??))
    }

    /// `/debug/portico`; whether the caller may see it is for the pipeline to say.
    pub async fn debug(
        &self,
        method: &Method,
        table: &Arc<RoutingTable<Upstream>>,
        query: &Query,
    ) -> Result<Response<Body>, Rejection> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return Err(Rejection::MethodNotAllowed);
        }
        let selection = Selection::parse(query)?;
        selection.check(table)?;
        let (inside, table) = (self.inside.clone(), Arc::clone(table));
        let life = (self.health.readiness.clone(), self.health.drain.clone());
        let runtime = self.background.runtime();
        let made = self.background.run(move || {
            let life = (&life.0, &life.1);
            indented(&debug::page(&inside, life, &table, &selection, &runtime))
        });
        Ok(response(StatusCode::OK, JSON, made.await.map_err(not_made)??))
    }

    /// `/openapi/v2`: an empty document, with which kubectl works without `--validate=false`.
    pub fn openapi_v2(&self) -> Response<Body> {
        let mut empty = response(StatusCode::OK, OPENAPI_PROTOBUF, Bytes::new());
        empty.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        empty
    }

    /// `/version`, in kube-apiserver's shape; as there, only GET is answered.
    pub fn version(
        &self,
        method: &Method,
        negotiated: Negotiated,
    ) -> Result<Response<Body>, Rejection> {
        if method != Method::GET {
            return Err(Rejection::MethodNotAllowed);
        }
        let version = env!("CARGO_PKG_VERSION");
        let document = json!({
            "major": "1",
            "minor": MINOR,
            "emulationMajor": "1",
            "emulationMinor": MINOR,
            "minCompatibilityMajor": "1",
            "minCompatibilityMinor": MINOR,
            "gitVersion": format!("v1.{MINOR}.0+portico-{version}"),
            "gitCommit": "",
            "gitTreeState": "",
            "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "",
            "compiler": "rustc",
            "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        });
        let indented = Negotiated { pretty: true, ..negotiated };
        let bytes = Bytes::from(indented.encode(&document)?);
        Ok(response(StatusCode::OK, negotiated.accepted.content_type(), bytes))
    }
}

fn not_made(error: NotMade) -> Rejection {
    match error {
        NotMade::Busy => Rejection::TooManyRequests,
        NotMade::Failed(text) => Rejection::Internal(text),
    }
}

/// JSON as upstream's `WriteRawJSON` indents it.
fn indented(document: &Value) -> Result<Bytes, Rejection> {
    let bytes = serde_json::to_vec_pretty(document);
    Ok(bytes.map_err(|error| Rejection::Internal(error.to_string()))?.into())
}
