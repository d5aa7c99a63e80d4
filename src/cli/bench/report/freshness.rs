//! The timeline of freshness: what each group-version looked like while the scenario ran.

use maud::{Markup, html};

use super::super::timeline::{State, Timeline, Track};
use super::super::words::{counted, micros};

/// The lanes' own width units.
const WIDTH: f64 = 1000.0;
/// Lanes at most; the rest is said to be left out.
const LANES_MAX: usize = 60;
/// States that begin within this share of the whole of each other look alike.
const ALIKE: f64 = 0.002;

/// One target's timeline.
pub(super) fn timeline(name: &str, timeline: &Timeline) -> Markup {
    let lanes = lanes(timeline);
    let left_out: usize = lanes.iter().skip(LANES_MAX).map(|lane| lane.tracks).sum();
    let end = timeline.end.max(f64::MIN_POSITIVE);
    html! {
        figure {
            figcaption {
                b { "Freshness over time" } @if name != "target" { span { (name) } } br;
                @for state in State::ALL {
                    span.legend { span class={ "key s-" (state.name()) } aria-hidden="true" {} (state.name()) }
                }
            }
            div.lane {
                @for lane in lanes.iter().take(LANES_MAX) {
                    div.name { (lane.name()) }
                    (drawn(lane, timeline, end))
                }
                div.blank {}
                div.axis {
                    @for quarter in [0.0, 0.25, 0.5, 0.75, 1.0] {
                        span style={ "left:" (quarter * 100.0) "%" } { @if quarter > 0.0 { (micros(end * 1e3 * quarter)) } @else { "0" } }
                    }
                }
            }
            @if left_out > 0 { p.sub { (counted(left_out as u64, "more group-version")) " not drawn." } }
            @if !timeline.marks.is_empty() {
                ol.marks { @for (at, what) in &timeline.marks { li { "at " (micros(at * 1e3)) ": " (what) } } }
            }
            (shares(&lanes, end))
        }
    }
}

/// Group-versions that look alike.
struct Lane<'a> {
    first: &'a Track,
    tracks: usize,
}

impl Lane<'_> {
    fn name(&self) -> String {
        match self.tracks {
            1 => self.first.group_version.clone(),
            more => format!("{} and {} alike", self.first.group_version, more - 1),
        }
    }

    /// Each state with its beginning and end, in ms.
    fn spans(&self, end: f64) -> Vec<(State, f64, f64)> {
        let states = &self.first.states;
        let ends = states.iter().skip(1).map(|(at, _)| *at).chain([end]);
        states.iter().zip(ends).map(|((from, state), to)| (*state, *from, to.max(*from))).collect()
    }
}

fn lanes(timeline: &Timeline) -> Vec<Lane<'_>> {
    let mut lanes: Vec<Lane<'_>> = Vec::new();
    for track in &timeline.tracks {
        match lanes.iter_mut().find(|lane| alike(lane.first, track, timeline.end)) {
            Some(lane) => lane.tracks += 1,
            None => lanes.push(Lane { first: track, tracks: 1 }),
        }
    }
    lanes
}

fn alike(one: &Track, other: &Track, end: f64) -> bool {
    one.states.len() == other.states.len()
        && one
            .states
            .iter()
            .zip(&other.states)
            .all(|(one, other)| one.1 == other.1 && (one.0 - other.0).abs() <= end * ALIKE)
}

fn drawn(lane: &Lane<'_>, timeline: &Timeline, end: f64) -> Markup {
    let spans = lane.spans(end);
    let place = |at: f64| (at / end).clamp(0.0, 1.0) * WIDTH;
    let said = |(state, from, to): &(State, f64, f64)| {
        format!("{} from {} to {}", state.name(), micros(from * 1e3), micros(to * 1e3))
    };
    let all: Vec<String> = spans.iter().map(said).collect();
    html! {
        svg viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label={ (lane.name()) ": " (all.join(", ")) } {
            title { (lane.name()) }
            @for span in &spans {
                rect class=(span.0.name()) x=(format!("{:.2}", place(span.1))) y="0" height="10"
                    width=(format!("{:.2}", (place(span.2) - place(span.1)).max(1.0))) { title { (said(span)) } }
            }
            @for (at, what) in &timeline.marks {
                line.mark x1=(format!("{:.2}", place(*at))) x2=(format!("{:.2}", place(*at))) y1="0" y2="10" vector-effect="non-scaling-stroke" { title { (what) } }
            }
        }
    }
}

/// How long each lane was in which state.
fn shares(lanes: &[Lane<'_>], end: f64) -> Markup {
    html! {
        details {
            summary.sub { "As a table" }
            div.scroll tabindex="0" role="region" aria-label="Freshness" {
                table {
                    thead { tr {
                        th scope="col" { "group-version" }
                        @for state in State::ALL { th.n scope="col" { (state.name()) } }
                    } }
                    tbody {
                        @for lane in lanes.iter().take(LANES_MAX) {
                            tr {
                                th scope="row" { (lane.name()) }
                                @for state in State::ALL {
                                    @let time: f64 = lane.spans(end).iter().filter(|span| span.0 == state).map(|span| span.2 - span.1).fold(0.0, |sum, time| sum + time);
                                    td.n { (micros(time * 1e3)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
