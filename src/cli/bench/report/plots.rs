//! Plots of reads: how latencies are distributed, and how many reads there were over time.

use std::fmt::Write as _;

use maud::{Markup, html};

use super::super::results::{Figures, QUANTILES};
use super::super::tally::{SLOT, Slot, Tally};
use super::super::words::{count, counted, micros, number, or_none, time};
use super::scale::Scale;

/// The drawing's size, in its own units: about the pixels of a phone.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 200.0;
/// Room beside the plot itself.
const LEFT: f64 = 42.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 22.0;
const PLOT_WIDTH: f64 = WIDTH - LEFT - RIGHT;
const PLOT_HEIGHT: f64 = HEIGHT - TOP - BOTTOM;
/// Points of a line at most: more cannot be seen.
const POINTS_MAX: usize = 150;
/// Reads that a point over time should stand for, so that chance does not make its height.
const READS_A_POINT: u64 = 5;

/// What is drawn of one target.
pub(super) struct Line<'a> {
    /// The first target or the second.
    pub(super) at: usize,
    /// Its name in the legend.
    pub(super) name: &'static str,
    /// Round by round.
    pub(super) rounds: &'a [Tally],
    /// All rounds together.
    pub(super) total: Tally,
}

/// The distribution of latencies, over a logarithmic axis.
pub(super) fn latency(kind: &str, lines: &[Line<'_>]) -> Markup {
    let shares: Vec<_> = lines.iter().map(|line| line.total.latencies.shares()).collect();
    let all = || shares.iter().flatten().map(|(latency, _)| latency.as_secs_f64() * 1e6);
    let (min, max) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    let x = Scale::logarithmic(min, max, PLOT_WIDTH);
    let y = Scale::to_just(1.0, PLOT_HEIGHT);
    let said = lines.iter().map(|line| {
        let figures = Figures::of(&line.total);
        let [p50, _, p99, _, max] = figures.quantiles.map(|latency| or_none(latency, time));
        format!("{}: p50 {p50}, p99 {p99}, max {max}. ", line.name)
    });
    let said: String = said.collect();
    html! {
        figure {
            figcaption { b { (kind) } span { "share answered within" } (legend(lines)) }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label={ "Latencies of " (kind) " reads. " (said) } {
                title { "Latencies of " (kind) " reads" }
                @for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
                    (row(y.place(share), &format!("{} %", share * 100.0)))
                }
                @for value in x.named() { (tick(x.place(value), &plain_micros(value))) }
                @for (line, shares) in lines.iter().zip(&shares) {
                    path class={ "l" (line.at) } d=(steps(shares.iter().map(|(latency, share)| {
                        (x.place(latency.as_secs_f64() * 1e6), y.place(*share))
                    }))) {
                        title { (line.name) ": " (quantiles(&line.total)) }
                    }
                }
            }
        }
    }
}

fn quantiles(total: &Tally) -> String {
    let figures = Figures::of(total).quantiles;
    let named = QUANTILES.iter().zip(figures);
    let said = named.map(|((name, ..), latency)| format!("{name} {}", or_none(latency, time)));
    said.collect::<Vec<_>>().join(" ")
}

/// On an axis, where `2.00` would be noise.
fn plain_micros(value: f64) -> String {
    micros(value).replace(".00 ", " ").replace(".0 ", " ")
}

/// A line that rises in steps: how a distribution is drawn. Thinned to what can be seen.
fn steps(points: impl Iterator<Item = (f64, f64)>) -> String {
    let points: Vec<(f64, f64)> = points.collect();
    let every = points.len().div_ceil(POINTS_MAX).max(1);
    let last = points.len().saturating_sub(1);
    let mut path = String::new();
    for (at, (x, y)) in points.iter().enumerate() {
        if at % every != 0 && at != last {
            continue;
        }
        let (x, y) = (LEFT + x, TOP + PLOT_HEIGHT - y);
        // Here and below, writing to a string cannot fail.
        if path.is_empty() {
            write!(path, "M{x:.1} {:.1}", TOP + PLOT_HEIGHT).ok();
        }
        write!(path, "H{x:.1}V{y:.1}").ok();
    }
    if !path.is_empty() {
        write!(path, "H{:.1}", LEFT + PLOT_WIDTH).ok();
    }
    path
}

/// Reads a second over time, round after round.
pub(super) fn over_time(kind: &str, lines: &[Line<'_>]) -> Markup {
    let courses: Vec<Course> = lines.iter().map(Course::of).collect();
    let highest = courses.iter().flat_map(|course| &course.points).map(|point| point.1);
    let y = Scale::linear(highest.fold(0.0, f64::max), PLOT_HEIGHT);
    let x = Scale::to_just(courses.iter().map(|course| course.end).fold(0.0, f64::max), PLOT_WIDTH);
    let is_empty = courses.iter().all(|course| course.points.len() < 2);
    let said: Vec<String> = lines
        .iter()
        .map(|line| {
            let rate = or_none(Figures::of(&line.total).per_second, count);
            format!(
                "{}: {rate} reads/s, {}.",
                line.name,
                counted(line.total.error_count(), "failure")
            )
        })
        .collect();
    html! {
        figure {
            figcaption { b { (kind) } span { "reads a second" } (legend(lines)) }
            @if is_empty {
                p.sub { "Too short for a plot. " (said.join(" ")) }
            } @else {
                svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label={ (kind) " reads over time. " (said.join(" ")) } {
                    title { (kind) " reads over time" }
                    @for value in y.named() { (row(y.place(value), &plain(value))) }
                    @for value in x.named() { (tick(x.place(value), &format!("{} s", plain(value)))) }
                    @for end in courses.iter().max_by_key(|course| course.rounds.len()).map(|course| course.rounds.as_slice()).unwrap_or_default() {
                        line.round x1=(LEFT + x.place(*end)) x2=(LEFT + x.place(*end)) y1=(TOP) y2=(TOP + PLOT_HEIGHT) {}
                    }
                    @for (line, course) in lines.iter().zip(&courses) {
                        path class={ "l" (line.at) } d=(polyline(course.points.iter().map(|point| {
                            (x.place(point.0), y.place(point.1))
                        }))) { title { (line.name) } }
                        @for (at, errors) in &course.errors {
                            circle.fail cx=(format!("{:.1}", LEFT + x.place(*at))) cy=(TOP + PLOT_HEIGHT) r="3" {
                                title { (line.name) ": " (counted(*errors, "failure")) }
                            }
                        }
                    }
                }
                @if courses.iter().any(|course| !course.errors.is_empty()) {
                    span.sub { "Red dots on the axis are failed reads." }
                }
            }
        }
    }
}

/// One target's reads over time.
struct Course {
    /// Seconds, and reads a second.
    points: Vec<(f64, f64)>,
    /// Seconds, and failed reads.
    errors: Vec<(f64, u64)>,
    /// Where rounds end, in seconds, but for the last.
    rounds: Vec<f64>,
    end: f64,
}

impl Course {
    #[expect(clippy::cast_precision_loss, reason = "counts of reads and slots")]
    fn of(line: &Line<'_>) -> Self {
        let slot = SLOT.as_secs_f64();
        // Slots that were not measured to their end would show a fall that there was not.
        let whole = |round: &'_ Tally| (round.time.as_millis() / SLOT.as_millis()) as usize;
        let slots: usize = line.rounds.iter().map(whole).sum();
        let reads = line.total.ended().max(1);
        let for_reads = (READS_A_POINT * slots as u64).div_ceil(reads);
        let wide = usize::try_from(for_reads).unwrap_or(1).max(slots.div_ceil(POINTS_MAX)).max(1);
        let mut course =
            Self { points: Vec::new(), errors: Vec::new(), rounds: Vec::new(), end: 0.0 };
        for round in line.rounds {
            let slots = round.slots.get(..whole(round).min(round.slots.len())).unwrap_or_default();
            for (at, slots) in slots.chunks_exact(wide).enumerate() {
                let middle = course.end + (at as f64 + 0.5) * wide as f64 * slot;
                let sum = |of: fn(&Slot) -> u64| slots.iter().map(of).sum::<u64>();
                let rate = sum(|slot| slot.reads) as f64 / (wide as f64 * slot);
                course.points.push((middle, rate));
                let errors = sum(|slot| slot.errors);
                if errors > 0 {
                    course.errors.push((middle, errors));
                }
            }
            course.end += whole(round) as f64 * slot;
            course.rounds.push(course.end);
        }
        course.rounds.pop();
        course
    }
}

fn polyline(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (x, y) in points {
        let letter = if path.is_empty() { 'M' } else { 'L' };
        write!(path, "{letter}{:.1} {:.1}", LEFT + x, TOP + PLOT_HEIGHT - y).ok();
    }
    path
}

/// A number on an axis.
fn plain(value: f64) -> String {
    let text = count(value);
    let (digits, unit) = match text.strip_suffix(['k', 'M']) {
        Some(digits) => (digits, text.get(digits.len()..).unwrap_or_default()),
        None => (text.as_str(), ""),
    };
    let digits = if digits.contains('.') {
        digits.trim_end_matches('0').trim_end_matches('.')
    } else {
        digits
    };
    format!("{digits}{unit}")
}

fn row(height: f64, text: &str) -> Markup {
    let y = TOP + PLOT_HEIGHT - height;
    html! {
        line.grid x1=(LEFT) x2=(LEFT + PLOT_WIDTH) y1=(number(y)) y2=(number(y)) {}
        text x=(LEFT - 6.0) y=(number(y + 4.0)) text-anchor="end" { (text) }
    }
}

fn tick(at: f64, text: &str) -> Markup {
    let (x, bottom) = (LEFT + at, TOP + PLOT_HEIGHT);
    // The last one would stand out of the drawing.
    let anchor = if at > PLOT_WIDTH - 12.0 { "end" } else { "middle" };
    html! {
        line.grid x1=(number(x)) x2=(number(x)) y1=(bottom) y2=(bottom + 4.0) {}
        text x=(number(x)) y=(bottom + 16.0) text-anchor=(anchor) { (text) }
    }
}

fn legend(lines: &[Line<'_>]) -> Markup {
    html! {
        @if lines.len() > 1 {
            br;
            @for line in lines {
                span.legend { span class={ "key k" (line.at) } aria-hidden="true" {} (line.name) }
            }
        }
    }
}
