//! Findings for people: a line a hop, what is wrong beneath it, within 80 columns.

use std::fmt::Write as _;

use super::finding::{Finding, Outcome, Report};

/// Columns of a terminal that nobody has widened.
const WIDTH: usize = 80;
/// Where what was found begins: after the sign and the longest hop.
const TEXT_AT: usize = 23;
/// Where explanations begin.
const EXPLAINED_AT: usize = 6;

/// The whole text; `colours` for a terminal.
pub(super) fn text(reports: &[Report], well: usize, colours: bool) -> String {
    let mut out = String::new();
    for report in reports {
        heading(&mut out, report, colours);
        let mut rest = report.findings.as_slice();
        while let Some(first) = rest.first() {
            let like = rest.iter().take_while(|one| is_one_skip(first, one)).count().max(1);
            let (same, after) = rest.split_at(like);
            finding(&mut out, same, colours);
            rest = after;
        }
        out.push('\n');
    }
    summary(&mut out, reports, well);
    out
}

/// Hops in a row that were not tried for one reason share their line.
fn is_one_skip(first: &Finding, other: &Finding) -> bool {
    first.outcome == Outcome::Skipped
        && other.outcome == Outcome::Skipped
        && first.summary == other.summary
        && first.endpoints == other.endpoints
}

fn heading(out: &mut String, report: &Report, colours: bool) {
    let subject = printable(&report.subject);
    let subject = if colours { format!("\u{1b}[1m{subject}\u{1b}[0m") } else { subject };
    // Writing to a string cannot fail, here and below.
    writeln!(out, "{subject}").ok();
}

fn sign(outcome: Outcome, colours: bool) -> String {
    let (sign, colour) = match outcome {
        Outcome::Well => ("✓", 32),
        Outcome::Skipped => ("–", 90),
        Outcome::Warning => ("!", 33),
        Outcome::Failed => ("✗", 31),
    };
    if colours { format!("\u{1b}[{colour}m{sign}\u{1b}[0m") } else { sign.to_owned() }
}

fn finding(out: &mut String, same: &[Finding], colours: bool) {
    let Some(first) = same.first() else { return };
    let names: Vec<&str> = same.iter().map(|one| one.step.word()).collect();
    let mut found = printable(&first.summary);
    if !first.endpoints.is_empty() && first.outcome != Outcome::Skipped {
        let endpoints: Vec<String> = first.endpoints.iter().map(ToString::to_string).collect();
        found = format!("{}: {found}", endpoints.join(", "));
    }
    if let Some(took) = first.took {
        write!(found, " ({:.1} ms)", took.as_secs_f64() * 1e3).ok();
    }
    let names = names.join(", ");
    write!(out, "  {} ", sign(first.outcome, colours)).ok();
    // After the sign there are four columns taken.
    if names.len() + 5 > TEXT_AT {
        let text = format!("{names}: {found}");
        push(out, &text, 4, 4);
    } else {
        write!(out, "{names:<width$}", width = TEXT_AT - 4).ok();
        push(out, &found, TEXT_AT, TEXT_AT);
    }
    for detail in &first.details {
        explain(out, &printable(detail));
    }
    let Some(cause) = &first.cause else { return };
    let why = first.why.as_deref().map(printable).unwrap_or_default();
    let colon = if why.is_empty() { "" } else { ": " };
    explain(out, &format!("why: {}{colon}{why}", printable(cause)));
    if let Some(change) = &first.change {
        explain(out, &format!("change: {}", change.replace('`', "")));
    }
}

fn explain(out: &mut String, text: &str) {
    out.extend(std::iter::repeat_n(' ', EXPLAINED_AT));
    push(out, text, EXPLAINED_AT, EXPLAINED_AT + 2);
}

/// Words from column `at`, further lines from column `indent`.
fn push(out: &mut String, text: &str, at: usize, indent: usize) {
    let mut column = at;
    let mut first = true;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if !first && column + 1 + length > WIDTH {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if !first {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
        first = false;
    }
    out.push('\n');
}

/// What others wrote goes to a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { '\u{fffd}' } else { it }).collect()
}

fn summary(out: &mut String, reports: &[Report], well: usize) {
    let failing: Vec<String> = reports
        .iter()
        .filter_map(|report| {
            let finding = report.first_failure()?;
            let cause = finding.cause.as_deref().unwrap_or_default();
            Some(format!("{} fails at {} ({cause})", report.subject, finding.step.word()))
        })
        .collect();
    for line in &failing {
        push(out, &printable(line), 0, 2);
    }
    if failing.is_empty() {
        let warnings = reports.iter().any(|report| report.outcome() == Outcome::Warning);
        push(
            out,
            if warnings { "Nothing fails; see the warnings (!)." } else { "All is well." },
            0,
            2,
        );
    }
    if well > 0 {
        let text = format!("{well} more are available and were not examined; --all does.");
        push(out, &text, 0, 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::{Kind, Step};

    fn report() -> Report {
        let why = "word ".repeat(40);
        let findings = vec![
            Finding::well(Step::Object, "group things.example.com"),
            Finding::failed(Step::Tls, "UnknownAuthority", "\u{1b}[2Jsigned by nobody")
                .detail("offered: a \u{7}certificate")
                .why(why.trim())
                .change("Use `caBundle`.")
                .at("127.0.0.1:443".parse().unwrap())
                .took(std::time::Duration::from_micros(1500)),
            Finding::skipped(Step::Identity, "not tried"),
            Finding::skipped(Step::Discovery, "not tried"),
        ];
        let subject = "v1.things.example.com".to_owned();
        Report { subject, kind: Kind::ApiService, findings }
    }

    #[test]
    fn a_hop_has_its_line_and_a_fault_its_reason_within_the_width() {
        let text = text(&[report()], 3, false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{text}");
        for words in [
            "  ✓ object             group things.example.com\n",
            "  ✗ tls                127.0.0.1:443: ",
            "(1.5 ms)",
            "      why: UnknownAuthority: word",
            "      change: Use caBundle.\n",
            "  – identity, discovery: not tried\n",
            "v1.things.example.com fails at tls (UnknownAuthority)\n",
            "3 more are available",
        ] {
            assert!(text.contains(words), "{words:?} in\n{text}");
        }
        let coloured = super::text(&[report()], 0, true);
        assert!(coloured.contains("\u{1b}[31m✗\u{1b}[0m"), "{coloured}");
    }
}
