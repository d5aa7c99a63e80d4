//! Portico's own pages: health, version, metrics, and the empty `OpenAPI` document.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use crate::body::{Body, response};
use crate::model::negotiated::Negotiated;
use crate::model::query::Query;
use crate::model::rejection::Rejection;
use crate::runtime::lifecycle::{Drain, Readiness};
use crate::runtime::telemetry::Metrics;

/// Kubernetes' minor version whose behaviour portico follows.
const MINOR: &str = "37";
const TEXT: &str = "text/plain; charset=utf-8";
/// What kubectl asks `/openapi/v2` in (`measured-1.37.md` §6).
const OPENAPI_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const METRICS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The pages, and what they tell about.
#[derive(Debug)]
pub struct Pages {
    /// What is awaited before portico is ready.
    pub readiness: Readiness,
    /// Whether the ending has begun.
    pub drain: Drain,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

impl Pages {
    /// `/livez` and `/healthz`: the process serves.
    pub fn live(&self, root: &str, query: &Query) -> Response<Body> {
        health(root, query, &[("ping", None)])
    }

    /// `/readyz`: the objects have been read, and the ending has not begun.
    pub fn ready(&self, query: &Query) -> Response<Body> {
        let mut checks = vec![("ping", None)];
        let awaited = self.readiness.awaited();
        checks.extend(awaited.iter().map(|name| (*name, Some("not finished"))));
        let shutdown = self.drain.is_draining().then_some("process is shutting down");
        checks.push(("shutdown", shutdown));
        health("readyz", query, &checks)
    }

    /// `/metrics` in Prometheus' text format.
    pub fn metrics(&self) -> Result<Response<Body>, Rejection> {
        let text = self.metrics.render().map_err(|error| Rejection::Internal(error.to_string()))?;
        Ok(response(StatusCode::OK, METRICS_TEXT, Bytes::from(text)))
    }

    /// `/openapi/v2`: an empty document, with which kubectl works without `--validate=false`.
    pub fn openapi_v2(&self) -> Response<Body> {
        let mut empty = response(StatusCode::OK, OPENAPI_PROTOBUF, Bytes::new());
        empty.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        empty
    }

    /// `/version`, in kube-apiserver's shape.
    pub fn version(&self, negotiated: Negotiated) -> Result<Response<Body>, Rejection> {
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

/// Upstream's health text: `ok`, or a line per check when asked for or when one fails.
fn health(root: &str, query: &Query, checks: &[(&str, Option<&str>)]) -> Response<Body> {
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut text = String::new();
    let mut failed = false;
    for (name, fault) in checks {
        let line = if excluded.contains(name) {
            format!("[+]{name} excluded: ok\n")
        } else if fault.is_some() {
            failed = true;
            format!("[-]{name} failed: reason withheld\n")
        } else {
            format!("[+]{name} ok\n")
        };
        text.push_str(&line);
    }
    for unknown in excluded.iter().filter(|&name| !checks.iter().any(|(check, _)| check == name)) {
        text.push_str("warn: some health checks cannot be excluded: no matches for \"");
        text.push_str(unknown);
        text.push_str("\"\n");
    }
    let code = if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    text.push_str(root);
    text.push_str(if failed { " check failed\n" } else { " check passed\n" });
    let verbose = failed || query.get("verbose").is_some();
    let text = if verbose { text } else { "ok".to_owned() };
    let mut page = response(code, TEXT, Bytes::from(text));
    let nosniff: HeaderName = X_CONTENT_TYPE_OPTIONS;
    page.headers_mut().insert(nosniff, HeaderValue::from_static("nosniff"));
    page
}
