//! `--output json`: one object, whose field names stay as they are.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::reads::Kind;
use super::results::{Cpu, Figures, Ratio, Results, TargetResults};
use super::scenario::Outcome;
use super::table::measured;

/// The name of this form; another number when a field changes its meaning or goes.
const FORMAT: &str = "portico-bench-discovery/1";

#[derive(Serialize)]
struct Document<'a> {
    format: &'static str,
    portico_version: &'static str,
    command: &'a [String],
    started: &'a str,
    interrupted: bool,
    machine: Machine<'a>,
    options: Options,
    targets: Vec<Target<'a>>,
    ratios: Vec<RatioOf>,
}

#[derive(Serialize)]
struct Machine<'a> {
    cores: usize,
    system: &'a str,
}

#[derive(Serialize)]
struct Options {
    clients: u32,
    rate: Option<f64>,
    duration_ms: f64,
    warm_up_ms: f64,
    rounds: u32,
}

#[derive(Serialize)]
struct Target<'a> {
    url: &'a str,
    protocol: &'a str,
    version: Option<&'a str>,
    pid: Option<u32>,
    document: Option<Contents>,
    reads: Vec<ReadsOf>,
    not_measured: BTreeMap<&'static str, &'a str>,
    scenario: Option<&'a Outcome>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct Contents {
    groups: usize,
    versions: usize,
    resources: usize,
    stale_versions: usize,
    json_bytes: usize,
}

#[derive(Serialize)]
struct ReadsOf {
    kind: &'static str,
    rounds: usize,
    count: u64,
    failed: u64,
    failed_by_cause: BTreeMap<String, u64>,
    unsent: u64,
    seconds: f64,
    reads_per_second: Option<f64>,
    bytes_per_read: Option<f64>,
    latency_us: Quantiles,
    sent_late_us_p99: Option<f64>,
    cpu_us_per_read: Option<f64>,
    rss_bytes_max: Option<u64>,
    pss_bytes_max: Option<u64>,
}

#[derive(Serialize)]
struct Quantiles {
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
    p999: Option<f64>,
    max: Option<f64>,
}

#[derive(Serialize)]
struct RatioOf {
    kind: &'static str,
    figure: &'static str,
    median: f64,
    min: f64,
    max: f64,
    rounds: usize,
}

/// The object as text, indented, with an end of line.
pub(super) fn text(results: &Results) -> anyhow::Result<String> {
    let about = &results.about;
    let document = Document {
        format: FORMAT,
        portico_version: env!("CARGO_PKG_VERSION"),
        command: &about.command,
        started: &about.started,
        interrupted: results.interrupted,
        machine: Machine { cores: about.cores, system: &about.system },
        options: Options {
            clients: about.clients,
            rate: about.rate,
            duration_ms: about.duration.as_secs_f64() * 1e3,
            warm_up_ms: about.warm_up.as_secs_f64() * 1e3,
            rounds: about.rounds,
        },
        targets: results.targets.iter().map(target).collect(),
        ratios: results.ratios().iter().map(ratio).collect(),
    };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn target(target: &TargetResults) -> Target<'_> {
    let skipped = |reads: &'_ super::results::Reads| reads.skipped.is_some();
    let not_measured = target
        .reads
        .iter()
        .filter(|reads| skipped(reads))
        .map(|reads| (reads.kind.name(), reads.skipped.as_deref().unwrap_or_default()));
    Target {
        url: &target.url,
        protocol: target.protocol,
        version: target.version.as_deref(),
        pid: target.pid,
        document: target.contents.as_ref().map(|contents| Contents {
            groups: contents.groups,
            versions: contents.group_versions.len(),
            resources: contents.resources,
            stale_versions: contents.stale,
            json_bytes: contents.bytes,
        }),
        reads: measured(target)
            .into_iter()
            .map(|(reads, figures)| {
                let seconds = reads.rounds.iter().map(|round| round.time.as_secs_f64()).sum();
                reads_of(reads.kind, reads.rounds.len(), seconds, figures)
            })
            .collect(),
        not_measured: not_measured.collect(),
        scenario: target.scenario.as_ref(),
        notes: &target.notes,
    }
}

fn reads_of(kind: Kind, rounds: usize, seconds: f64, figures: Figures) -> ReadsOf {
    let micros = |latency: Duration| latency.as_secs_f64() * 1e6;
    let [p50, p90, p99, p999, max] = figures.quantiles.map(|latency| latency.map(micros));
    ReadsOf {
        kind: kind.name(),
        rounds,
        count: figures.count,
        failed: figures.error_count(),
        unsent: figures.unsent,
        seconds,
        reads_per_second: figures.per_second,
        bytes_per_read: figures.bytes,
        latency_us: Quantiles { p50, p90, p99, p999, max },
        sent_late_us_p99: figures.late.map(micros),
        cpu_us_per_read: match figures.cpu {
            Some(Cpu::Micros(micros)) => Some(micros),
            _ => None,
        },
        rss_bytes_max: figures.memory.map(|memory| memory.rss),
        pss_bytes_max: figures.memory.and_then(|memory| memory.pss),
        failed_by_cause: figures.errors,
    }
}

fn ratio(ratio: &Ratio) -> RatioOf {
    let &Ratio { kind, figure, spread, .. } = ratio;
    RatioOf {
        kind: kind.name(),
        figure,
        median: spread.median,
        min: spread.min,
        max: spread.max,
        rounds: spread.count,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::results::sample;
    use super::*;

    #[test]
    fn the_fields_have_the_names_that_readers_rely_on() {
        let text = text(&sample(&[&[20], &[10]])).unwrap();
        let found: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(found["format"], "portico-bench-discovery/1");
        assert_eq!(found["interrupted"], false);
        assert_eq!(found["options"]["clients"], 4);
        let target = &found["targets"][0];
        assert_eq!(target["url"], "https://127.0.0.1:1");
        assert_eq!(target["not_measured"], json!({"walk": "answered 403 Forbidden"}));
        let document = json!({"groups": 1, "versions": 1, "resources": 2, "stale_versions": 1,
            "json_bytes": 120});
        assert_eq!(target["document"], document);
        assert_eq!(target["scenario"], Value::Null);
        let reads = &target["reads"][0];
        assert_eq!((&reads["kind"], &reads["count"]), (&json!("legacy"), &json!(1)));
        let p50 = reads["latency_us"]["p50"].as_f64().unwrap();
        assert!((p50 - 20_000.0).abs() < 20.0, "{p50}");
        assert_eq!(reads["latency_us"]["p99"], Value::Null);
        assert_eq!(reads["bytes_per_read"], 100.0);
        for field in [
            "failed",
            "failed_by_cause",
            "unsent",
            "seconds",
            "reads_per_second",
            "sent_late_us_p99",
            "cpu_us_per_read",
            "rss_bytes_max",
            "pss_bytes_max",
        ] {
            assert!(reads.get(field).is_some(), "{field}");
        }
        let ratio = &found["ratios"][0];
        assert_eq!((&ratio["kind"], &ratio["figure"]), (&json!("legacy"), &json!("p50")));
        assert!((ratio["median"].as_f64().unwrap() - 2.0).abs() < 0.01);
    }
}
