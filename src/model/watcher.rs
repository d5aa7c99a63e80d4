//! What one watcher has been told and what it is to be told next, without the waiting.
//!
//! Whoever carries the frames waits for changes, bookmarks' time and the end, and says so here.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::Value;

use super::history::{EventType, Unknown};
use super::list_options::{ListOptions, TIMEOUT_SECONDS_MAX, WatchStart};
use super::watch_events::{error, expired, frame};

/// How often a watcher that understands bookmarks is told how far it has come, in seconds.
pub const BOOKMARK_PERIOD_SECONDS: u64 = 60;
/// The least time after which a watch without a timeout ends, in seconds, unless
/// `--min-request-timeout` says another.
pub const TIMEOUT_MIN_SECONDS: u64 = 30 * 60;

/// How long a watch lasts that does not say so itself, in seconds: `minimum` stretched by `chance`,
/// from 0 to 1, to less than twice as long, so that watchers do not come back all at once; for ever
/// when the minimum is 0 (`handlers/get.go`).
pub fn timeout_seconds(minimum: u64, chance: f64) -> u64 {
    if minimum == 0 {
        return TIMEOUT_SECONDS_MAX;
    }
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "seconds, and chance is not negative"
    )]
    let stretched = (minimum as f64 * chance) as u64;
    minimum.saturating_add(stretched)
}

/// What a change looks like to a watcher.
pub type Seen = (EventType, Arc<Value>);

/// What is watched, as one watcher sees it: its selection, in its form.
pub trait Watched {
    /// The revision of the last change.
    fn revision(&self) -> u64;
    /// The selected objects, and the revision at which they were so.
    fn list(&self) -> (u64, Vec<Arc<Value>>);
    /// What happened to them after `revision`, and the revision that this reaches.
    fn since(&self, revision: u64) -> Result<(u64, Vec<Seen>), Unknown>;
    /// An object in the watcher's form; a Table's columns come with the first event only.
    fn show(&self, object: &Value, first: bool) -> Value;
    /// A bookmark's object.
    fn bookmark(&self, revision: u64, initial_events_end: bool) -> Value;
}

/// A watch that is to begin with a state that is yet to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooNew {
    /// The revision that was asked for.
    pub wanted: u64,
    /// The revision now.
    pub present: u64,
}

/// One watcher.
#[derive(Debug)]
pub struct Watcher<W> {
    watched: W,
    /// Everything up to here has been told.
    revision: u64,
    /// What waits to be sent: at most one catch-up, for the next comes only when this is empty.
    frames: VecDeque<Vec<u8>>,
    /// No event has been sent yet.
    first: bool,
    bookmarks: bool,
    ended: bool,
}

impl<W: Watched> Watcher<W> {
    /// Begins where the options say; an error when that is yet to come.
    pub fn begin(watched: W, options: &ListOptions) -> Result<Self, TooNew> {
        let mut begun = Self {
            revision: watched.revision(),
            watched,
            frames: VecDeque::new(),
            first: true,
            bookmarks: options.allow_watch_bookmarks,
            ended: false,
        };
        match options.watch_start() {
            WatchStart::Everything { not_older_than } => {
                let (revision, objects) = begun.watched.list();
                if not_older_than > revision {
                    return Err(TooNew { wanted: not_older_than, present: revision });
                }
                begun.revision = revision;
                for object in objects {
                    begun.push("ADDED", &object);
                }
                if options.initial_bookmark() {
                    begun.push_bookmark(true);
                }
            }
            WatchStart::Now => {}
            WatchStart::After(revision) => {
                begun.revision = revision;
                begun.catch_up();
            }
        }
        Ok(begun)
    }

    /// The next frame that waits to be sent.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.frames.pop_front()
    }

    /// True when nothing will come after the frames that wait.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// True when the watcher understands bookmarks.
    pub fn wants_bookmarks(&self) -> bool {
        self.bookmarks
    }

    /// Something may have changed.
    pub fn catch_up(&mut self) {
        match self.watched.since(self.revision) {
            Ok((revision, events)) => {
                for (kind, object) in events {
                    self.push(kind.word(), &object);
                }
                self.revision = revision;
            }
            Err(unknown) => {
                self.frames.push_back(error(&expired(self.revision, unknown)));
                self.ended = true;
            }
        }
    }

    /// It is time for a bookmark.
    pub fn mark(&mut self) {
        if self.bookmarks {
            self.push_bookmark(false);
        }
    }

    /// The watch's time is over; it ends cleanly, with a last bookmark.
    pub fn end(&mut self) {
        self.mark();
        self.ended = true;
    }

    fn push_bookmark(&mut self, initial_events_end: bool) {
        let object = self.watched.bookmark(self.revision, initial_events_end);
        self.push("BOOKMARK", &object);
    }

    fn push(&mut self, kind: &str, object: &Value) {
        let shown = self.watched.show(object, self.first);
        self.first = false;
        self.frames.push_back(frame(kind, &shown));
    }
}
