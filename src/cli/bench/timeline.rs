//! What a scenario saw of each group-version, over time.

/// A scenario's whole course at one target.
#[derive(Clone, Debug, Default)]
pub(super) struct Timeline {
    /// In the order in which they are to be shown.
    pub(super) tracks: Vec<Track>,
    /// What the scenario did, in ms since its start: `one backend hangs`.
    pub(super) marks: Vec<(f64, String)>,
    /// When the scenario was over, in ms since its start.
    pub(super) end: f64,
}

/// One group-version.
#[derive(Clone, Debug)]
pub(super) struct Track {
    /// `<group>/<version>`.
    pub(super) group_version: String,
    /// Since when it was seen in which state, in ms since the scenario's start, ascending.
    pub(super) states: Vec<(f64, State)>,
}

/// How a group-version stands in the aggregated document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not listed.
    Missing,
    /// Listed with `freshness: Current` while its backend answers.
    Current,
    /// Listed with `freshness: Stale`.
    Stale,
    /// Listed with `freshness: Current` though its backend does not answer.
    Held,
}

impl State {
    /// In the order of legends.
    pub(super) const ALL: [Self; 4] = [Self::Missing, Self::Current, Self::Stale, Self::Held];

    /// The word for it, in lower case.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Current => "current",
            Self::Stale => "stale",
            Self::Held => "held",
        }
    }
}

/// One of a scenario's findings at one target, for the table, the JSON and the report.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    /// A stable name in snake case with its unit at the end: `first_complete_ms`.
    pub(super) name: &'static str,
    /// The same in words: `first complete document`.
    pub(super) title: &'static str,
    /// The unit, as shown: `ms`.
    pub(super) unit: &'static str,
    /// None: it did not happen, or could not be measured.
    pub(super) value: Option<f64>,
}
