//! `/livez`, `/readyz`, `/healthz` and one path a check: what is checked, and how it is answered.
//!
//! Nothing here waits: the answer is made of flags and ages that others keep. As upstream, the pages
//! answer every method.

use std::time::Instant;

use bytes::Bytes;
use http::header::X_CONTENT_TYPE_OPTIONS;
use http::{HeaderValue, Response, StatusCode};

use super::LogCheck;
use crate::body::{Body, response};
use crate::model::health::{Check, Probe, Report, failures};
use crate::model::query::Query;
use crate::model::rejection::Rejection;
use crate::runtime::lifecycle::{Drain, Readiness};

const TEXT: &str = "text/plain; charset=utf-8";

/// What the health pages look at.
#[derive(Debug)]
pub struct Health {
    /// What is awaited before portico is ready.
    pub readiness: Readiness,
    /// Whether the ending has begun.
    pub drain: Drain,
    /// Whether log lines still get out.
    pub log: LogCheck,
}

impl Health {
    /// The page at `path`; 404 for a check that there is not.
    pub(super) fn serve(
        &self,
        probe: Probe,
        path: &str,
        query: &Query,
    ) -> Result<Response<Body>, Rejection> {
        let checks = self.checks(probe);
        let Some((_, Some(name))) = Probe::of_path(path) else {
            let report = probe.report(&checks, query);
            if !report.passed {
                let (page, faults) = (probe.name(), failures(&checks));
                tracing::info!(page, faults, "health check failed");
            }
            return Ok(answer(report, true));
        };
        let check = checks.iter().find(|check| check.name == name);
        let report = check.ok_or(Rejection::PathNotFound)?.report();
        let failed = !report.passed;
        Ok(answer(report, failed))
    }

    /// The paths of the pages and of their checks.
    pub(super) fn paths(&self) -> impl Iterator<Item = String> {
        Probe::ALL.into_iter().flat_map(|probe| {
            let root = format!("/{}", probe.name());
            let checks = self.checks(probe);
            let paths: Vec<_> =
                checks.iter().map(|check| format!("{root}/{}", check.name)).collect();
            std::iter::once(root).chain(paths)
        })
    }

    /// In upstream's order. What is awaited at start holds back readiness only: a process that is
    /// killed while it reads its objects would never have read them.
    fn checks(&self, probe: Probe) -> Vec<Check> {
        let mut checks = vec![
            Check { name: "ping".into(), fault: None },
            Check { name: "log".into(), fault: self.log.fault(Instant::now()) },
        ];
        if probe == Probe::Readyz {
            let awaited = self.readiness.named().into_iter().map(|(name, done)| Check {
                name: format!("poststarthook/{name}").into(),
                fault: (!done).then_some("not finished"),
            });
            checks.extend(awaited);
            let fault = self.drain.is_draining().then_some("process is shutting down");
            checks.push(Check { name: "shutdown".into(), fault });
        }
        checks
    }
}

fn answer(report: Report, nosniff: bool) -> Response<Body> {
    let code = if report.passed { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    let mut page = response(code, TEXT, Bytes::from(report.text));
    if nosniff {
        page.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    page
}
