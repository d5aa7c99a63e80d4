//! `--report`: one HTML page that needs no other file, with plots drawn here, for light and dark
//! and for small screens.

mod file;
mod freshness;
mod plots;
mod scale;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::results::{Figures, QUANTILES, Reads, Results};
use super::scenario::Outcome;
use super::table::{described, heading, measured};
use super::timeline::Finding;
use super::words::{bytes, count, counted, cpu, number, or_none, time};
pub(super) use file::ReportFile;
use plots::Line;

const STYLE: &str = include_str!("style.css");

/// The page.
pub(super) fn page(results: &Results) -> String {
    let about = &results.about;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Discovery benchmark of " (results.targets.first().map_or("nothing", |target| &target.url)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    header {
                        h1 { "Discovery benchmark" }
                        p.sub { "portico bench discovery " (env!("CARGO_PKG_VERSION")) ", " (about.started) }
                        @if results.interrupted {
                            p.warn { "Ended early: the figures are those of what was measured until then." }
                        }
                        (targets(results))
                    }
                    (reads_section(results))
                    (ratios(results))
                    (scenario(results))
                    (what_was_run(results))
                }
            }
        }
    };
    page.into_string()
}

/// The name of a target in legends.
fn target_name(results: &Results, at: usize) -> &'static str {
    match (results.targets.len(), at) {
        (0 | 1, _) => "target",
        (_, 0) => "first",
        _ => "second",
    }
}

fn targets(results: &Results) -> Markup {
    html! {
        ul.targets {
            @for (at, target) in results.targets.iter().enumerate() {
                li {
                    span class={ "key k" (at) } aria-hidden="true" {}
                    @if results.targets.len() > 1 { b { (target_name(results, at)) ": " } }
                    (heading(target))
                    @if let Some(contents) = &target.contents { br; span.sub { (described(contents)) } }
                    @for note in &target.notes { br; span.sub { "Note: " (note) "." } }
                }
            }
        }
    }
}

fn reads_section(results: &Results) -> Markup {
    let kinds = results.targets.first().map(|target| target.reads.as_slice()).unwrap_or_default();
    if kinds.is_empty() {
        return html! {};
    }
    html! {
        section {
            h2 { "Reads" }
            (figures(results))
            (failures(results))
            div.plots {
                @for (at, reads) in kinds.iter().enumerate() {
                    @let lines = lines(results, at);
                    @if !lines.is_empty() {
                        (plots::latency(reads.kind.name(), &lines))
                    }
                }
            }
            h3 { "Over time" }
            div.plots {
                @for (at, reads) in kinds.iter().enumerate() {
                    @let lines = lines(results, at);
                    @if !lines.is_empty() {
                        (plots::over_time(reads.kind.name(), &lines))
                    }
                }
            }
        }
    }
}

/// One kind of read at all targets that have figures of it.
fn lines(results: &Results, kind: usize) -> Vec<Line<'_>> {
    let of_target = |at: usize| {
        let reads: &Reads = results.targets.get(at)?.reads.get(kind)?;
        let total = reads.total().filter(|total| total.latencies.count() > 0)?;
        Some(Line { at, name: target_name(results, at), rounds: &reads.rounds, total })
    };
    (0..results.targets.len()).filter_map(of_target).collect()
}

fn figures(results: &Results) -> Markup {
    let with_process = results.targets.iter().any(|target| target.pid.is_some());
    let many = results.targets.len() > 1;
    html! {
        p.sub { "Latencies are those of right answers; " (super::words::NONE) " stands where there were too few." }
        div.scroll tabindex="0" role="region" aria-label="Figures" {
            table {
                thead { tr {
                    th scope="col" { "read" }
                    @if many { th scope="col" { "target" } }
                    th.n scope="col" { "count" }
                    th.n scope="col" { "failed" }
                    @for (name, ..) in QUANTILES { th.n scope="col" { (name) } }
                    th.n scope="col" { "reads/s" }
                    th.n scope="col" { "bytes" }
                    @if with_process {
                        th.n scope="col" { "CPU/read" }
                        th.n scope="col" { "RSS" }
                        th.n scope="col" { "PSS" }
                    }
                } }
                tbody {
                    @for (name, rows) in by_kind(results) {
                        @for (at, figures) in rows {
                            tr {
                                th scope="row" { (name) }
                                @if many { td { span class={ "key k" (at) } aria-hidden="true" {} (target_name(results, at)) } }
                                (row(&figures, with_process))
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The figures of each kind of read, with the number of their target: what is compared stands
/// together.
fn by_kind(results: &Results) -> Vec<(&'static str, Vec<(usize, Figures)>)> {
    let mut kinds: Vec<(&'static str, Vec<(usize, Figures)>)> = Vec::new();
    for (at, target) in results.targets.iter().enumerate() {
        for (reads, figures) in measured(target) {
            let name = reads.kind.name();
            match kinds.iter_mut().find(|(known, _)| *known == name) {
                Some((_, rows)) => rows.push((at, figures)),
                None => kinds.push((name, vec![(at, figures)])),
            }
        }
    }
    kinds
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory")]
fn row(figures: &Figures, with_process: bool) -> Markup {
    let memory = |value: Option<u64>| or_none(value, |value| bytes(value as f64));
    html! {
        td.n { (figures.count) }
        td.n { (figures.error_count()) }
        @for latency in figures.quantiles { td.n { (or_none(latency, time)) } }
        td.n { (or_none(figures.per_second, count)) }
        td.n { (or_none(figures.bytes, bytes)) }
        @if with_process {
            td.n { (or_none(figures.cpu, cpu)) }
            td.n { (memory(figures.memory.map(|memory| memory.rss))) }
            td.n { (memory(figures.memory.and_then(|memory| memory.pss))) }
        }
    }
}

/// What failed, was not sent, or not measured.
fn failures(results: &Results) -> Markup {
    let mut lines: Vec<String> = Vec::new();
    for (at, target) in results.targets.iter().enumerate() {
        let name = if results.targets.len() > 1 {
            format!("{} target, ", target_name(results, at))
        } else {
            String::new()
        };
        for (reads, figures) in measured(target) {
            let kind = reads.kind.name();
            for (cause, count) in &figures.errors {
                lines.push(format!("{name}{kind}: {count} failed: {cause}"));
            }
            if figures.unsent > 0 {
                let unsent = counted(figures.unsent, "read");
                lines.push(format!(
                    "{name}{kind}: {unsent} due and not sent, the target fell behind"
                ));
            }
        }
        for reads in &target.reads {
            if let Some(reason) = &reads.skipped {
                lines.push(format!("{name}{}: not measured: {reason}", reads.kind.name()));
            }
        }
    }
    html! {
        @if !lines.is_empty() {
            ul.warn { @for line in lines { li { (line) } } }
        }
    }
}

fn ratios(results: &Results) -> Markup {
    let ratios = results.ratios();
    html! {
        @if !ratios.is_empty() {
            section {
                h2 { "First target to second" }
                p.sub { "Ratios round by round: the median, the smallest and the largest." }
                div.scroll.narrow tabindex="0" role="region" aria-label="Ratios" {
                    table {
                        thead { tr {
                            th scope="col" { "read" } th scope="col" { "figure" }
                            th.n scope="col" { "ratio" } th.n scope="col" { "min" }
                            th.n scope="col" { "max" } th.n scope="col" { "rounds" }
                        } }
                        tbody {
                            @for ratio in ratios {
                                tr {
                                    th scope="row" { (ratio.kind.name()) } td { (ratio.title) }
                                    td.n { b { (number(ratio.spread.median)) } }
                                    td.n { (number(ratio.spread.min)) }
                                    td.n { (number(ratio.spread.max)) }
                                    td.n { (ratio.spread.count) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn scenario(results: &Results) -> Markup {
    html! {
        @if results.targets.iter().any(|target| target.scenario.is_some()) {
            section {
                h2 { "Scenario" }
                (findings(results))
                @for (at, target) in results.targets.iter().enumerate() {
                    @if let Some(scenario) = &target.scenario {
                        (freshness::timeline(target_name(results, at), &scenario.timeline()))
                    }
                }
            }
        }
    }
}

fn findings(results: &Results) -> Markup {
    let all: Vec<Vec<Finding>> = results
        .targets
        .iter()
        .map(|target| target.scenario.as_ref().map(Outcome::findings).unwrap_or_default())
        .collect();
    let longest = all.iter().max_by_key(|findings| findings.len());
    let value = |findings: &[Finding], name: &str| {
        let found = findings.iter().find(|finding| finding.name == name);
        or_none(found.and_then(|finding| finding.value), |value| {
            let unit = found.map(|finding| finding.unit).unwrap_or_default();
            if unit.is_empty() {
                format!("{value:.0}")
            } else {
                format!("{} {unit}", number(value))
            }
        })
    };
    html! {
        div.scroll.narrow tabindex="0" role="region" aria-label="Findings" {
            table {
                thead { tr {
                    th scope="col" { "found" }
                    @for at in 0..all.len() { th.n scope="col" { (target_name(results, at)) } }
                } }
                tbody {
                    @for finding in longest.into_iter().flatten() {
                        tr {
                            th scope="row" { (finding.title) }
                            @for findings in &all { td.n { (value(findings, finding.name)) } }
                        }
                    }
                }
            }
        }
    }
}

fn what_was_run(results: &Results) -> Markup {
    let about = &results.about;
    let pace = if let Some(rate) = about.rate {
        format!(
            "{} reads a second over {}; latency counts from when a read was due",
            number(rate),
            counted(about.clients.into(), "connection")
        )
    } else {
        let clients = counted(about.clients.into(), "client");
        format!(
            "{clients}, each with one connection, which read again as soon as they have their answer"
        )
    };
    html! {
        section {
            h2 { "What was run" }
            dl {
                dt { "Command" } dd { code { (about.command.join(" ")) } }
                dt { "Load" } dd { (pace) "." }
                dt { "Time" } dd {
                    (format!("{:?} after {:?} of warm-up", about.duration, about.warm_up))
                    " for each kind of read, target and round; " (counted(about.rounds.into(), "round")) "."
                }
                dt { "Machine of the load" } dd { (counted(about.cores as u64, "core")) ", " (about.system) }
                @for (at, target) in results.targets.iter().enumerate() {
                    dt { @if results.targets.len() > 1 { (target_name(results, at)) " target" } @else { "Target" } }
                    dd {
                        (heading(target))
                        @if let Some(pid) = target.pid { ", process " (pid) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::results::sample;
    use super::*;

    /// Tags that are open at the end, or the first one that closes another.
    fn open_tags(page: &str) -> Vec<&str> {
        const VOID: [&str; 3] = ["meta", "br", "!DOCTYPE"];
        let mut open = Vec::new();
        for tag in page.split('<').skip(1) {
            let name = tag.split(['>', ' ']).next().unwrap();
            match name.strip_prefix('/') {
                Some(closed) if open.last() == Some(&closed) => drop(open.pop()),
                Some(closed) => return vec![closed],
                None if VOID.contains(&name) => {}
                None => open.push(name),
            }
        }
        open
    }

    #[track_caller]
    fn check(results: &Results) -> String {
        let page = page(results);
        assert_eq!(open_tags(&page), Vec::<&str>::new());
        for reference in ["src=", "href=", "url(", "@import", "<script", "<link", "NaN", "inf"] {
            assert!(!page.contains(reference), "{reference}");
        }
        page
    }

    #[test]
    fn a_page_is_well_formed_and_refers_to_nothing_outside() {
        let one = check(&sample(&[&[20]]));
        assert!(one.contains("Too short for a plot") && !one.contains("First target to second"));
        let millis: Vec<u64> = (1..3000).collect();
        let two = check(&sample(&[&millis, &millis]));
        assert_eq!(two.matches("<svg").count(), 2);
        assert!(two.contains("First target to second") && two.contains("prefers-color-scheme"));
        check(&sample(&[&[]]));
        check(&sample(&[]));
    }

    #[test]
    fn what_others_have_written_is_text_and_no_markup() {
        let mut results = sample(&[&[20]]);
        results.targets[0].notes.push("<script>alert(1)</script>".to_owned());
        results.targets[0].version = Some("\"><svg>".to_owned());
        let page = check(&results);
        assert!(page.contains("&lt;script&gt;"));
    }
}
