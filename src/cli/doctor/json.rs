//! Findings for programs; `docs/doctor.md` describes the fields, which only ever grow.

use serde::Serialize;

use super::finding::{Finding, Outcome, Report};

/// Counts up when a field changes its meaning or goes.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    result: &'static str,
    not_examined: usize,
    subjects: Vec<Subject<'a>>,
}

#[derive(Serialize)]
struct Subject<'a> {
    #[serde(rename = "subject")]
    name: &'a str,
    kind: &'static str,
    result: &'static str,
    fails_at: Option<&'static str>,
    cause: Option<&'a str>,
    hops: Vec<Hop<'a>>,
}

#[derive(Serialize)]
struct Hop<'a> {
    #[serde(rename = "hop")]
    word: &'static str,
    result: &'static str,
    summary: &'a str,
    details: &'a [String],
    cause: Option<&'a str>,
    why: Option<&'a str>,
    change: Option<&'a str>,
    endpoints: Vec<String>,
    milliseconds: Option<f64>,
}

/// The whole document.
pub(super) fn text(reports: &[Report], well: usize) -> serde_json::Result<String> {
    let worst = reports.iter().map(Report::outcome).max().unwrap_or(Outcome::Well);
    let document = Document {
        version: VERSION,
        result: worst.word(),
        not_examined: well,
        subjects: reports.iter().map(subject).collect(),
    };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn subject(report: &Report) -> Subject<'_> {
    let failure = report.first_failure();
    Subject {
        name: &report.subject,
        kind: report.kind.word(),
        result: report.outcome().word(),
        fails_at: failure.map(|finding| finding.step.word()),
        cause: failure.and_then(|finding| finding.cause.as_deref()),
        hops: report.findings.iter().map(hop).collect(),
    }
}

fn hop(finding: &Finding) -> Hop<'_> {
    Hop {
        word: finding.step.word(),
        result: finding.outcome.word(),
        summary: &finding.summary,
        details: &finding.details,
        cause: finding.cause.as_deref(),
        why: finding.why.as_deref(),
        change: finding.change.as_deref(),
        endpoints: finding.endpoints.iter().map(ToString::to_string).collect(),
        milliseconds: finding.took.map(|took| took.as_secs_f64() * 1e3),
    }
}
