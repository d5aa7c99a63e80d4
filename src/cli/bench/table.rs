//! The table at a run's end: plain text, at most 80 columns wide.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};

use super::answers::Contents;
use super::results::{Figures, QUANTILES, Reads, Results, TargetResults};
use super::words::{bytes, count, counted, cpu, number, or_none, time};

/// Columns of a terminal that is not told otherwise.
const WIDTH: u16 = 80;

/// All that was found, as text.
pub(super) fn text(results: &Results) -> String {
    let mut text = String::new();
    let many = results.targets.len() > 1;
    for (at, target) in results.targets.iter().enumerate() {
        let name = match (many, at) {
            (false, _) => "",
            (true, 0) => "first target: ",
            (true, _) => "second target: ",
        };
        // Here and below, writing to a string cannot fail.
        writeln!(text, "{name}{}", heading(target)).ok();
        if let Some(contents) = &target.contents {
            writeln!(text, "{}", described(contents)).ok();
        }
        sections(target, &mut text);
        text.push('\n');
    }
    let ratios = ratios(results);
    if !ratios.is_empty() {
        let rounds = results.targets.iter().flat_map(|target| &target.reads);
        let rounds = rounds.map(|reads| reads.rounds.len()).max().unwrap_or(0) as u64;
        let of = counted(rounds, "round");
        writeln!(text, "first / second target, median [min–max] of {of}\n{ratios}").ok();
    }
    if results.interrupted {
        text.push_str("ended early: the figures are those of what was measured until then\n");
    }
    text
}

/// A target's URL, version and protocol.
pub(super) fn heading(target: &TargetResults) -> String {
    let version = target.version.as_deref().map(|version| format!(", {version}"));
    format!("{}{}, {}", target.url, version.unwrap_or_default(), target.protocol)
}

/// What a document holds, in a sentence.
pub(super) fn described(contents: &Contents) -> String {
    let mut text = counted(contents.groups as u64, "group");
    write!(text, ", {}", counted(contents.group_versions.len() as u64, "version")).ok();
    if contents.resources > 0 {
        write!(text, ", {}", counted(contents.resources as u64, "resource")).ok();
    }
    if contents.stale > 0 {
        write!(text, ", {} stale", contents.stale).ok();
    }
    #[expect(clippy::cast_precision_loss, reason = "bytes of a document")]
    write!(text, "; {} of JSON", bytes(contents.bytes as f64)).ok();
    text
}

fn sections(target: &TargetResults, text: &mut String) {
    let measured: Vec<(&Reads, Figures)> = measured(target);
    if !measured.is_empty() {
        writeln!(text, "{}\n{}", latencies(&measured), costs(&measured)).ok();
    }
    for (reads, figures) in &measured {
        for (cause, count) in &figures.errors {
            writeln!(text, "{}: {count} failed: {cause}", reads.kind.name()).ok();
        }
        if figures.unsent > 0 {
            let unsent = counted(figures.unsent, "read");
            writeln!(
                text,
                "{}: {unsent} due and not sent: the target fell behind",
                reads.kind.name()
            )
            .ok();
        }
    }
    for reads in &target.reads {
        if let Some(reason) = &reads.skipped {
            writeln!(text, "{}: not measured: {reason}", reads.kind.name()).ok();
        }
    }
    if let Some(scenario) = &target.scenario {
        let mut table = plain(&["scenario", "found"]);
        for finding in scenario.findings() {
            let value = or_none(finding.value, |value| match finding.unit {
                "" => format!("{value:.0}"),
                unit => format!("{} {unit}", number(value)),
            });
            table.add_row([finding.title.to_owned(), value]);
        }
        writeln!(text, "{}", finished(&table)).ok();
    }
    for note in &target.notes {
        writeln!(text, "note: {note}").ok();
    }
}

/// The kinds that have figures.
pub(super) fn measured(target: &TargetResults) -> Vec<(&Reads, Figures)> {
    let of = |reads: &'_ Reads| reads.total().map(|total| Figures::of(&total));
    target.reads.iter().filter_map(|reads| Some((reads, of(reads)?))).collect()
}

fn latencies(measured: &[(&Reads, Figures)]) -> String {
    let names = QUANTILES.map(|(name, ..)| name);
    let mut table = plain(&[&["read", "count", "failed"], &names[..]].concat());
    for (reads, figures) in measured {
        let mut row = vec![
            reads.kind.name().to_owned(),
            figures.count.to_string(),
            figures.error_count().to_string(),
        ];
        row.extend(figures.quantiles.map(|latency| or_none(latency, time)));
        table.add_row(row);
    }
    finished(&table)
}

fn costs(measured: &[(&Reads, Figures)]) -> String {
    let with_process =
        measured.iter().any(|(_, figures)| figures.cpu.is_some() || figures.memory.is_some());
    let head = ["read", "reads/s", "bytes/read", "CPU/read", "RSS", "PSS"];
    let shown = if with_process { head.len() } else { 3 };
    let mut table = plain(head.get(..shown).unwrap_or(&head));
    for (reads, figures) in measured {
        #[expect(clippy::cast_precision_loss, reason = "bytes of memory")]
        let memory = |value: Option<u64>| or_none(value, |value| bytes(value as f64));
        let mut row = vec![
            reads.kind.name().to_owned(),
            or_none(figures.per_second, count),
            or_none(figures.bytes, bytes),
        ];
        if with_process {
            row.push(or_none(figures.cpu, cpu));
            row.push(memory(figures.memory.map(|memory| memory.rss)));
            row.push(memory(figures.memory.and_then(|memory| memory.pss)));
        }
        table.add_row(row);
    }
    finished(&table)
}

fn ratios(results: &Results) -> String {
    let ratios = results.ratios();
    if ratios.is_empty() {
        return String::new();
    }
    let mut table = plain(&["read", "figure", "ratio", "min", "max", "rounds"]);
    let mut last = None;
    for ratio in ratios {
        let name = if last == Some(ratio.kind) { "" } else { ratio.kind.name() };
        last = Some(ratio.kind);
        let spread = ratio.spread;
        table.add_row([
            name.to_owned(),
            ratio.title.to_owned(),
            number(spread.median),
            number(spread.min),
            number(spread.max),
            spread.count.to_string(),
        ]);
    }
    finished(&table)
}

/// Without lines but one below the head; numbers to the right.
fn plain(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_width(WIDTH).set_header(head);
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if at > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn finished(table: &Table) -> String {
    let lines = table.to_string();
    let mut text = String::new();
    for line in lines.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::client::Fault;
    use super::super::results::sample;
    use super::*;

    #[test]
    fn one_target_with_one_read_is_told_as_it_is() {
        let results = sample(&[&[20]]);
        let expected = "\
https://127.0.0.1:1, v1.37.0, HTTP/2
1 group, 1 version, 2 resources, 1 stale; 120 B of JSON
read    count  failed      p50  p90  p99  p99.9      max
legacy      1       0  20.0 ms    –    –      –  20.0 ms

read    reads/s  bytes/read
legacy     50.0       100 B

walk: not measured: answered 403 Forbidden

";
        assert_eq!(text(&results), expected);
    }

    #[test]
    fn two_targets_have_ratios_and_failures_have_causes_within_80_columns() {
        let mut results = sample(&[&[20; 1000], &[10; 1000]]);
        for round in &mut results.targets[0].reads[0].rounds {
            let time = std::time::Duration::from_secs(100);
            round.record(time, time, Err(Fault("answered 503 Service Unavailable".to_owned())));
            round.cpu = Some(time);
            round.unsent = 1;
        }
        results.interrupted = true;
        let text = text(&results);
        assert!(text.contains("first target: ") && text.contains("second target: "), "{text}");
        assert!(text.contains("legacy: 1 failed: answered 503 Service Unavailable"), "{text}");
        assert!(text.contains("legacy: 1 read due and not sent"), "{text}");
        assert!(text.contains("[min–max] of 1 round\n") && text.contains("ended early"), "{text}");
        let ratio = text.lines().find(|line| line.contains("legacy      p50"));
        assert!(ratio.is_some_and(|line| line.contains("2.00")), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}
