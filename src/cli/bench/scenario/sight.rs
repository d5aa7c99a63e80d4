//! What was seen of the fleet in the target's aggregated document, and when.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cli::bench::fleet::{DOMAIN, Fleet, change_of};
use crate::model::discovery::aggregated::Freshness;

/// When something was seen, and by how much later than it became visible at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    pub(super) at: Instant,
    pub(super) late_at_most: Duration,
}

/// How a group-version stands in the aggregated document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not listed, or listed as current without its resources.
    Missing,
    /// Listed with `freshness: Current` while its server is well.
    Current,
    /// Listed with `freshness: Stale`.
    Stale,
    /// Listed with `freshness: Current` while its server is not well.
    Held,
}

/// One group-version of the fleet.
#[derive(Clone, Debug)]
pub(super) struct Track {
    /// The number of its server.
    pub(super) server: usize,
    pub(super) group_version: String,
    /// Since when in which state.
    pub(super) states: Vec<(Instant, State)>,
    /// As the last document had it.
    listed: Option<Freshness>,
}

impl Track {
    fn state(&self) -> State {
        self.states.last().map_or(State::Missing, |(_, state)| *state)
    }

    fn is_current(&self) -> bool {
        matches!(self.state(), State::Current | State::Held)
    }
}

/// The least that has to be in the document before it is complete.
#[derive(Clone, Debug)]
pub(super) struct Awaited {
    /// By server: whether it was registered at the start.
    pub(super) registered: Vec<bool>,
    /// By server: whether it is well from the start.
    pub(super) well: Vec<bool>,
}

/// All that was seen.
#[derive(Debug)]
pub(super) struct Seen {
    awaited: Awaited,
    /// In the order of servers, the best version first.
    pub(super) tracks: Vec<Track>,
    /// Every group-version of the start is current.
    pub(super) complete: Option<Sight>,
    /// Those of servers without a fault are.
    pub(super) complete_well: Option<Sight>,
    /// Every one is listed, be it as stale.
    pub(super) named: Option<Sight>,
    /// The server that is registered later was current for the first time.
    pub(super) added: Option<Sight>,
    /// It was gone after that.
    pub(super) removed: Option<Sight>,
    /// By server, the newest change that was seen, each time it was another one.
    pub(super) changes: HashMap<usize, Vec<(u64, Sight)>>,
    /// The last look.
    pub(super) last: Option<Sight>,
    /// Looks that were answered.
    pub(super) looks: u64,
    /// Different documents.
    pub(super) documents: u64,
    /// Looks that failed.
    pub(super) failures: u64,
    /// Why the last of them did.
    pub(super) last_failure: Option<String>,
    /// How late findings were at most, of every look.
    pub(super) late: Vec<Duration>,
}

impl Seen {
    /// Nothing yet.
    pub(super) fn new(fleet: &Fleet, awaited: Awaited, start: Instant) -> Self {
        let track = |server: usize, group: &str, version: &str| Track {
            server,
            group_version: format!("{group}/{version}"),
            states: vec![(start, State::Missing)],
            listed: None,
        };
        let mut tracks = Vec::new();
        for server in fleet.servers() {
            for version in fleet.size().version_names() {
                tracks.push(track(server.index(), server.group(), &version));
            }
        }
        Self {
            awaited,
            tracks,
            complete: None,
            complete_well: None,
            named: None,
            added: None,
            removed: None,
            changes: HashMap::new(),
            last: None,
            looks: 0,
            documents: 0,
            failures: 0,
            last_failure: None,
            late: Vec::new(),
        }
    }

    /// Whether any group-version was listed at any time, be it as stale.
    pub(super) fn has_any(&self) -> bool {
        self.tracks
            .iter()
            .any(|track| track.states.iter().any(|(_, state)| *state != State::Missing))
    }

    /// A look failed.
    pub(super) fn failed(&mut self, why: String) {
        self.failures += 1;
        self.last_failure = Some(why);
    }

    /// A look was answered, with another document than before or with none.
    pub(super) fn look(
        &mut self,
        sight: Sight,
        document: Option<serde_json::Result<Document<'_>>>,
        fleet: &Fleet,
    ) {
        match document {
            Some(Ok(document)) => {
                self.documents += 1;
                self.read(sight, &document, fleet);
            }
            Some(Err(error)) => self.failed(format!("the document cannot be read: {error}")),
            None => {}
        }
        for track in &mut self.tracks {
            let down = fleet.server(track.server).is_some_and(|server| server.is_down());
            let state = match track.listed {
                None => State::Missing,
                Some(Freshness::Stale) => State::Stale,
                Some(Freshness::Current) if down => State::Held,
                Some(Freshness::Current) => State::Current,
            };
            if track.state() != state {
                track.states.push((sight.at, state));
            }
        }
        let first = |was: &mut Option<Sight>, is: bool| {
            if is {
                was.get_or_insert(sight);
            }
        };
        let of = |flags: &[bool], track: &Track| flags.get(track.server) == Some(&true);
        let Awaited { registered, well } = &self.awaited;
        let mut at_start = self.tracks.iter().filter(|track| of(registered, track));
        first(&mut self.named, at_start.clone().all(|track| track.state() != State::Missing));
        let mut well = at_start.clone().filter(|track| of(well, track));
        first(&mut self.complete_well, well.all(Track::is_current));
        first(&mut self.complete, at_start.all(Track::is_current));
        let mut later = self.tracks.iter().filter(|track| !of(registered, track));
        first(&mut self.added, later.clone().all(Track::is_current));
        let gone = later.all(|track| track.listed.is_none());
        first(&mut self.removed, self.added.is_some() && gone);
        self.looks += 1;
        self.late.push(sight.late_at_most);
        self.last = Some(sight);
    }

    fn read(&mut self, sight: Sight, document: &Document<'_>, fleet: &Fleet) {
        let versions = usize::try_from(fleet.size().versions).unwrap_or(usize::MAX);
        let resources = usize::try_from(fleet.size().resources).unwrap_or(usize::MAX);
        for track in &mut self.tracks {
            track.listed = None;
        }
        for group in document.items.iter().filter(|group| group.metadata.name.ends_with(DOMAIN)) {
            let server = fleet.servers().iter().position(|it| it.group() == group.metadata.name);
            let Some(server) = server else { continue };
            let first = server * versions;
            let tracks = self.tracks.get_mut(first..first + versions).unwrap_or_default();
            for version in &group.versions {
                let ends = |track: &&mut Track| {
                    track.group_version.rsplit('/').next() == Some(version.name.as_ref())
                };
                if let Some(track) = tracks.iter_mut().find(ends) {
                    let empty = version.freshness == Freshness::Current
                        && version.resources.len() < resources;
                    track.listed = (!empty).then_some(version.freshness);
                }
                let change = version.resources.iter().find_map(|it| change_of(&it.resource));
                if let Some(change) = change {
                    let seen = self.changes.entry(server).or_default();
                    if seen.last().is_none_or(|(last, _)| *last != change) {
                        seen.push((change, sight));
                    }
                }
            }
        }
    }
}

/// What is read of an aggregated document.
#[derive(Debug, Deserialize)]
pub(super) struct Document<'a> {
    #[serde(borrow)]
    items: Vec<Group<'a>>,
}

#[derive(Debug, Deserialize)]
struct Group<'a> {
    #[serde(borrow)]
    metadata: Name<'a>,
    #[serde(default)]
    versions: Vec<Version<'a>>,
}

#[derive(Debug, Deserialize)]
struct Name<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

#[derive(Debug, Deserialize)]
struct Version<'a> {
    #[serde(borrow, rename = "version")]
    name: Cow<'a, str>,
    freshness: Freshness,
    #[serde(default)]
    resources: Vec<Plural<'a>>,
}

#[derive(Debug, Deserialize)]
struct Plural<'a> {
    #[serde(borrow)]
    resource: Cow<'a, str>,
}

impl<'a> Document<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::bench::fleet::{Behaviour, Fault, Latency, Size, Spec};

    const WELL: Behaviour = Behaviour::well(Latency::NONE);

    /// Two servers of the start, of which the second may be awaited less, and one that comes later.
    fn watched(second_is_well: bool) -> (Fleet, Seen) {
        let fleet = Fleet::start(&Spec {
            servers: vec![WELL; 3],
            size: Size { versions: 1, resources: 2 },
            namespace: "default".to_owned(),
            proxy_client_ca: None,
        })
        .unwrap();
        let awaited =
            Awaited { registered: vec![true, true, false], well: vec![true, second_is_well, true] };
        let seen = Seen::new(&fleet, awaited, Instant::now());
        (fleet, seen)
    }

    fn group(server: usize, freshness: &str, resources: &[&str]) -> Value {
        let resources: Vec<Value> =
            resources.iter().map(|name| json!({ "resource": name, "verbs": [] })).collect();
        json!({
            "metadata": { "name": format!("g{server:03}.{DOMAIN}") },
            "versions": [{ "version": "v1", "freshness": freshness, "resources": resources }],
        })
    }

    fn look(fleet: &Fleet, seen: &mut Seen, groups: &[Value]) {
        let text = json!({ "items": groups }).to_string();
        let sight = Sight { at: Instant::now(), late_at_most: Duration::ZERO };
        seen.look(sight, Some(Document::parse(text.as_bytes())), fleet);
    }

    fn states(seen: &Seen, server: usize) -> Vec<State> {
        seen.tracks[server].states.iter().map(|(_, state)| *state).collect()
    }

    #[test]
    fn complete_is_what_has_all_resources_of_all_versions() {
        let (fleet, mut seen) = watched(true);
        let other = json!({ "metadata": { "name": "apps" }, "versions": [] });
        look(&fleet, &mut seen, &[other, group(0, "Current", &["a", "b"])]);
        assert!(seen.named.is_none());
        look(&fleet, &mut seen, &[group(0, "Current", &["a", "b"]), group(1, "Stale", &[])]);
        assert!(seen.named.is_some() && seen.complete_well.is_none());
        // Current without its resources is as good as not there.
        look(&fleet, &mut seen, &[group(0, "Current", &["a", "b"]), group(1, "Current", &["a"])]);
        assert!(seen.complete.is_none());
        look(&fleet, &mut seen, &[0, 1].map(|it| group(it, "Current", &["a", "b"])));
        assert!(seen.complete.is_some() && seen.complete_well.is_some());
        assert_eq!(
            states(&seen, 1),
            [State::Missing, State::Stale, State::Missing, State::Current]
        );
    }

    #[test]
    fn a_server_with_a_fault_is_not_awaited_by_those_who_are_well() {
        let (fleet, mut seen) = watched(false);
        look(&fleet, &mut seen, &[group(0, "Current", &["a", "b"])]);
        assert!(seen.complete_well.is_some() && seen.complete.is_none());
    }

    #[test]
    fn current_while_its_server_is_down_is_held_also_when_the_document_stays() {
        let (fleet, mut seen) = watched(true);
        look(&fleet, &mut seen, &[group(0, "Current", &["a", "b"])]);
        fleet.servers()[0].behave(WELL.with(Fault::Hang));
        seen.look(Sight { at: Instant::now(), late_at_most: Duration::ZERO }, None, &fleet);
        fleet.servers()[0].behave(WELL);
        seen.look(Sight { at: Instant::now(), late_at_most: Duration::ZERO }, None, &fleet);
        let expected = [State::Missing, State::Current, State::Held, State::Current];
        assert_eq!(states(&seen, 0), expected);
        assert_eq!((seen.looks, seen.documents), (3, 1));
    }

    #[test]
    fn changes_and_the_server_that_comes_later_are_seen_once() {
        let (fleet, mut seen) = watched(true);
        let start = group(0, "Current", &["a", "b"]);
        let second = group(0, "Current", &["changes-2", "a", "b"]);
        let later = group(2, "Current", &["a", "b"]);
        look(&fleet, &mut seen, std::slice::from_ref(&start));
        assert!(seen.removed.is_none());
        look(&fleet, &mut seen, &[second.clone(), later]);
        assert!(seen.added.is_some() && seen.removed.is_none());
        look(&fleet, &mut seen, &[second]);
        assert!(seen.removed.is_some());
        let numbers: Vec<u64> = seen.changes[&0].iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [2]);
    }

    #[test]
    fn a_document_that_cannot_be_read_is_a_failure_and_changes_nothing() {
        let (fleet, mut seen) = watched(true);
        look(&fleet, &mut seen, &[group(0, "Current", &["a", "b"])]);
        let sight = Sight { at: Instant::now(), late_at_most: Duration::ZERO };
        seen.look(sight, Some(Document::parse(b"{\"items\":[")), &fleet);
        assert_eq!((seen.failures, states(&seen, 0).last()), (1, Some(&State::Current)));
    }
}
