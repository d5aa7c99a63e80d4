//! What a scenario found, in numbers: for the table, the JSON and the report.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::Scenario;
use super::sight::{Seen, Sight, State};
use crate::cli::bench::fleet::{Counts, Fault, Size};
use crate::cli::bench::timeline;

/// All that was found. Times are in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Servers that were registered at the start.
    pub servers: usize,
    /// Those of them that have a fault, at some time.
    pub faulty: usize,
    /// What each serves.
    pub size: Size,
    /// How long registering took until its last answer.
    pub registration_ms: Option<f64>,
    /// From the begin of registering until every group-version was current, with its resources.
    pub complete: Option<Delay>,
    /// The same for servers that are well from the start.
    pub complete_well: Option<Delay>,
    /// The same until every group-version was named, be it as stale.
    pub named: Option<Delay>,
    /// From the last answer to registering until the servers that are well were current; 0 when
    /// they were so before.
    pub complete_well_after_registration_ms: Option<f64>,
    /// How soon something new was visible.
    pub visible: Visible,
    /// How the target was looked at.
    pub looks: Looks,
    /// What the target asked of all servers.
    pub requests: Counts,
    /// How each group-version stood, over time.
    pub tracks: Vec<Track>,
    /// What the scenario did, and when since its start.
    pub marks: Vec<(f64, String)>,
    /// When it was over, since its start.
    pub end_ms: f64,
    /// Why something of it may still be registered.
    pub not_removed: Option<String>,
}

/// How long something took until it was seen.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Delay {
    /// Until it was seen.
    pub ms: f64,
    /// By how much it may have been visible earlier: the time since the look before.
    pub late_at_most_ms: f64,
}

impl Delay {
    pub(super) fn of(sight: Sight, since: Instant) -> Self {
        Self {
            ms: ms(sight.at.saturating_duration_since(since)),
            late_at_most_ms: ms(sight.late_at_most),
        }
    }
}

/// How soon something new was visible.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Visible {
    /// From the begin of registering one more server until all of its versions were current.
    pub added: Option<Delay>,
    /// The part of it after the server's answer had left it: the target's own.
    pub added_after_answer: Option<Delay>,
    /// From the begin of removing it until it was gone.
    pub removed: Option<Delay>,
    /// Changes at servers that were registered.
    pub changes: Changes,
}

/// How soon changes at servers were visible.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Changes {
    /// Changes that were made.
    pub made: u64,
    /// Those that the target fetched before the end, not as part of a later one.
    pub fetched: u64,
    /// Those that were visible before the end, be it with a later one.
    pub seen: u64,
    /// From the change until it was visible.
    pub from_change: Option<Spread>,
    /// From when the target asked until it was visible.
    pub from_request: Option<Spread>,
    /// From when the server's answer had left it until it was visible: the target's own share.
    pub from_answer: Option<Spread>,
}

/// How a time varied, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The shortest.
    pub min_ms: f64,
    /// Half were shorter.
    pub p50_ms: f64,
    /// 99 of 100 were shorter.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Spread {
    /// None of none.
    pub(super) fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        // The least of which so many percent are no longer.
        let at = |percent: usize| {
            let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(place.min(last)).copied().map(ms)
        };
        Some(Self { min_ms: at(0)?, p50_ms: at(50)?, p99_ms: at(99)?, max_ms: at(100)? })
    }
}

/// How the target was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Looks {
    /// Reads that were answered.
    pub answered: u64,
    /// Different documents among the answers.
    pub documents: u64,
    /// Reads that failed.
    pub failed: u64,
    /// Why the last of them did.
    pub last_failure: Option<String>,
    /// How late anything seen can have been.
    pub late_at_most: Option<Spread>,
}

/// One group-version over time.
#[derive(Clone, Debug, Serialize)]
pub struct Track {
    /// `<group>/<version>`.
    pub group_version: String,
    /// Its states, from the start to the end.
    pub spans: Vec<Span>,
}

/// A time in one state.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Span {
    /// When it began, since the scenario's start.
    pub from_ms: f64,
    /// The state.
    pub state: State,
}

impl Outcome {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let seen = scenario.observer.seen.borrow();
        let since_start = |at: Instant| ms(at.saturating_duration_since(scenario.started));
        let begun = scenario.registered.map(|(begun, _)| begun);
        let done = scenario.registered.and_then(|(_, done)| done);
        let since = |sight: Option<Sight>, begun: Option<Instant>| Some(Delay::of(sight?, begun?));
        let visible = Visible {
            added: since(seen.added, scenario.added),
            added_after_answer: since(seen.added, answered(scenario)),
            removed: since(seen.removed, scenario.removed),
            changes: changes(scenario, &seen),
        };
        let planned = &scenario.plan.fleet.servers;
        Self {
            servers: planned.len(),
            faulty: planned.iter().filter(|server| server.fault != Fault::None).count(),
            size: scenario.plan.fleet.size,
            registration_ms: begun.zip(done).map(|(begun, done)| ms(done - begun)),
            complete: since(seen.complete, begun),
            complete_well: since(seen.complete_well, begun),
            named: since(seen.named, begun),
            complete_well_after_registration_ms: done
                .zip(seen.complete_well)
                .map(|(done, sight)| ms(sight.at.saturating_duration_since(done))),
            visible,
            looks: Looks {
                answered: seen.looks,
                documents: seen.documents,
                failed: seen.failures,
                last_failure: seen.last_failure.clone(),
                late_at_most: Spread::of(seen.late.clone()),
            },
            requests: scenario.fleet.counts(),
            tracks: tracks(&seen, since_start),
            marks: scenario
                .marks
                .all()
                .into_iter()
                .map(|(at, text)| (since_start(at), text))
                .collect(),
            end_ms: ms(scenario.started.elapsed()),
            not_removed: None,
        }
    }

    /// For the report's plot.
    pub(in crate::cli::bench) fn timeline(&self) -> timeline::Timeline {
        let state = |state| match state {
            State::Missing => timeline::State::Missing,
            State::Current => timeline::State::Current,
            State::Stale => timeline::State::Stale,
            State::Held => timeline::State::Held,
        };
        let track = |track: &Track| timeline::Track {
            group_version: track.group_version.clone(),
            states: track.spans.iter().map(|span| (span.from_ms, state(span.state))).collect(),
        };
        timeline::Timeline {
            tracks: self.tracks.iter().map(track).collect(),
            marks: self.marks.clone(),
            end: self.end_ms,
        }
    }

    /// For the table and the report.
    pub(in crate::cli::bench) fn findings(&self) -> Vec<timeline::Finding> {
        let finding = |name, title, unit, value| timeline::Finding { name, title, unit, value };
        let delay = |delay: Option<Delay>| delay.map(|delay| delay.ms);
        let Visible { added, added_after_answer, removed, changes } = &self.visible;
        let p50 = |spread: Option<Spread>| spread.map(|spread| spread.p50_ms);
        let max = |spread: Option<Spread>| spread.map(|spread| spread.max_ms);
        let mut findings = vec![
            finding("registration_ms", "registering the servers", "ms", self.registration_ms),
            finding("first_complete_ms", "first complete document", "ms", delay(self.complete)),
            finding(
                "first_complete_well_ms",
                "the same without faulty servers",
                "ms",
                delay(self.complete_well),
            ),
            finding("first_named_ms", "every version named", "ms", delay(self.named)),
            finding("added_ms", "one more server visible", "ms", delay(*added)),
            finding(
                "added_after_answer_ms",
                "the same from its answer on",
                "ms",
                delay(*added_after_answer),
            ),
            finding("removed_ms", "a removed server gone", "ms", delay(*removed)),
        ];
        if changes.made > 0 {
            let count = |count: u64| Some(f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
            findings.extend([
                finding("changes_made", "changes at servers", "", count(changes.made)),
                finding("changes_seen", "of them visible by the end", "", count(changes.seen)),
                finding("change_p50_ms", "change visible, p50", "ms", p50(changes.from_change)),
                finding("change_max_ms", "change visible, longest", "ms", max(changes.from_change)),
                finding(
                    "change_after_answer_p50_ms",
                    "the same from the answer on, p50",
                    "ms",
                    p50(changes.from_answer),
                ),
                finding(
                    "change_after_answer_max_ms",
                    "the same from the answer on, longest",
                    "ms",
                    max(changes.from_answer),
                ),
            ]);
        }
        let late = self.looks.late_at_most;
        findings.push(finding("look_late_p50_ms", "these can be late by, p50", "ms", p50(late)));
        findings.push(finding("look_late_max_ms", "these can be late by, most", "ms", max(late)));
        findings
    }
}

fn tracks(seen: &Seen, since_start: impl Fn(Instant) -> f64) -> Vec<Track> {
    let span = |(at, state): &(Instant, State)| Span { from_ms: since_start(*at), state: *state };
    let track = |track: &super::sight::Track| Track {
        group_version: track.group_version.clone(),
        spans: track.states.iter().map(span).collect(),
    };
    seen.tracks.iter().map(track).collect()
}

fn changes(scenario: &Scenario, seen: &Seen) -> Changes {
    let mut changes = Changes::default();
    let (mut from_change, mut from_request, mut from_answer) = (Vec::new(), Vec::new(), Vec::new());
    for server in scenario.at_start() {
        let sights = seen.changes.get(&server.index()).map(Vec::as_slice).unwrap_or_default();
        for number in 1.. {
            let Some(change) = server.change_of(number) else { break };
            changes.made += 1;
            changes.fetched += u64::from(change.sent.is_some());
            let Some((shown, sight)) = sights.iter().find(|(shown, _)| *shown >= number) else {
                continue;
            };
            changes.seen += 1;
            from_change.push(sight.at.saturating_duration_since(change.made));
            // What was replaced before it was seen says nothing about its own fetch.
            if let (true, Some((asked, sent))) = (*shown == number, change.asked.zip(change.sent)) {
                from_request.push(sight.at.saturating_duration_since(asked));
                from_answer.push(sight.at.saturating_duration_since(sent));
            }
        }
    }
    changes.from_change = Spread::of(from_change);
    changes.from_request = Spread::of(from_request);
    changes.from_answer = Spread::of(from_answer);
    changes
}

/// When the first aggregated document left the server that was registered later.
fn answered(scenario: &Scenario) -> Option<Instant> {
    scenario.fleet.server(scenario.at_start().len())?.change_of(0)?.sent
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_names_times_that_were_measured() {
        let times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        let expected = Spread { min_ms: 1.0, p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 };
        assert_eq!(Spread::of(times), Some(expected));
        let one = Spread::of(vec![Duration::from_millis(7)]).unwrap();
        assert_eq!((one.min_ms, one.p50_ms, one.max_ms), (7.0, 7.0, 7.0));
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
