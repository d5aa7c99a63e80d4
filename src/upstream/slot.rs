//! A thread's connections to one endpoint, of one class of requests.

use tokio::sync::watch;

use super::connection::{Http1, Http2, State};
use super::describe::{CONNECTIONS_SHOWN_MAX, SlotState};
use crate::model::fault::Fault;

/// HTTP/2 connections to one endpoint per thread and class; past it callers are told to come later.
pub(super) const CONNECTIONS_MAX: usize = 256;
/// Connections in a row that end without having served a request until callers are told so.
pub(super) const USELESS_MAX: u32 = 3;

/// What kinds of requests do not share connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Requests with a deadline.
    Short,
    /// Watches and the like.
    Long,
    /// Anonymous callers, one at a time: Kubernetes' servers end each such answer's connection.
    Anonymous,
}

/// Which connections: an endpoint's id and the class.
pub(super) type SlotKey = (u64, Class);

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) http2: Vec<Http2>,
    pub(super) http1: Vec<Http1>,
    /// True once the endpoint chose HTTP/1.1: then each request dials for itself.
    pub(super) speaks_http1: bool,
    pub(super) dialing: Option<Dialing>,
    /// Connections in a row that ended without having served a request.
    pub(super) useless: u32,
}

/// The outcome of a dial that several requests may wait for.
pub(super) type Dialing = watch::Receiver<Option<Result<(), Fault>>>;

/// How many connections in a row were useless, this one being the last that ended.
pub(super) fn useless(before: u32, ended: &State) -> u32 {
    if ended.has_served() { 0 } else { before + 1 }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Enough,
    /// The next connection should be opened now, before the limit is reached.
    Little,
}

impl Slot {
    pub(super) fn describe(&self, (endpoint, class): SlotKey) -> SlotState {
        let http2 = self.http2.iter().map(Http2::describe);
        let connections = http2.chain(self.http1.iter().map(Http1::describe));
        SlotState {
            endpoint,
            class,
            dialing: self.dialing.is_some(),
            connections: connections.take(CONNECTIONS_SHOWN_MAX).collect(),
            left_out: (self.http2.len() + self.http1.len()).saturating_sub(CONNECTIONS_SHOWN_MAX),
        }
    }

    /// Lets go of connections that have ended; what was noted of one that never served a request.
    pub(super) fn take_closed(&mut self) -> Option<Fault> {
        let (count, mut noted) = (&mut self.useless, None);
        self.http2.retain(|Http2 { state, .. }| {
            if state.is_closed() {
                *count = useless(*count, state);
                let is_useless = *count > 0;
                noted = state.noted().or(noted.take()).filter(|_| is_useless);
            }
            !state.is_closed()
        });
        noted
    }

    /// The least loaded connection that has room, and whether that is running out.
    pub(super) fn roomiest(&self, class: Class) -> Option<(usize, Room)> {
        let (at, connection) = self
            .http2
            .iter()
            .enumerate()
            .filter(|(_, connection)| !connection.state.is_doubted())
            .min_by_key(|(_, connection)| connection.state.in_flight())?;
        let in_flight = connection.state.in_flight();
        if class == Class::Anonymous {
            return (in_flight == 0).then_some((at, Room::Enough));
        }
        let limit = connection.limit();
        let little = in_flight + 1 >= limit - limit / 4 && self.http2.len() < CONNECTIONS_MAX;
        (in_flight < limit).then_some((at, if little { Room::Little } else { Room::Enough }))
    }
}
