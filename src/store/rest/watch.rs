//! Watches on APIServices: a stream that sleeps until the store changes, driven by whoever reads it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{API_VERSION, ApiServices, KIND, Shape, object};
use crate::body::Chunks;
use crate::model::history::{Unknown, seen_by};
use crate::model::list_options::{ListOptions, WatchStart};
use crate::model::rejection::Rejection;
use crate::model::watch_events::{bookmark, error, expired, frame};
use crate::store::{Event, Kind, Stored};

/// How often a watcher that understands bookmarks is told how far it has come.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// The least time after which a watch without a timeout ends (`--min-request-timeout` upstream); at
/// most doubled, so that watchers do not come back all at once.
const TIMEOUT_MIN_SECONDS: u64 = 30 * 60;

/// Starts a watch.
pub(super) fn start(
    objects: &ApiServices,
    shape: Shape,
    options: ListOptions,
) -> Result<Chunks, Rejection> {
    let now = Instant::now();
    let seconds = options
        .timeout_seconds
        .unwrap_or_else(|| fastrand::u64(TIMEOUT_MIN_SECONDS..2 * TIMEOUT_MIN_SECONDS));
    let mut watch = Watch {
        changes: objects.store.subscribe(),
        objects: objects.clone(),
        shape,
        revision: 0,
        frames: VecDeque::new(),
        first: true,
        next_bookmark: now + BOOKMARK_PERIOD,
        deadline: now + Duration::from_secs(seconds),
        ended: false,
        options,
    };
    watch.begin()?;
    Ok(Box::pin(stream::unfold(watch, Watch::next)))
}

/// One watcher.
struct Watch {
    objects: ApiServices,
    changes: watch::Receiver<u64>,
    shape: Shape,
    options: ListOptions,
    /// Everything up to here has been told.
    revision: u64,
    /// What waits to be sent: at most one catch-up, for the next comes only when this is empty.
    frames: VecDeque<Bytes>,
    /// No event has been sent, so the next one carries a Table's columns.
    first: bool,
    next_bookmark: Instant,
    deadline: Instant,
    ended: bool,
}

impl Watch {
    fn begin(&mut self) -> Result<(), Rejection> {
        match self.options.watch_start() {
            WatchStart::Everything { not_older_than } => {
                let (objects, revision) = self.objects.selected(&self.options.selectors);
                if not_older_than > revision {
                    return Err(expired(not_older_than, Unknown::TooNew(revision)));
                }
                self.revision = revision;
                for object in &objects {
                    self.push("ADDED", object);
                }
                if self.options.initial_bookmark() {
                    self.push_bookmark(true);
                }
            }
            WatchStart::Now => self.revision = self.objects.store.revision(),
            WatchStart::After(revision) => {
                self.revision = revision;
                self.catch_up();
            }
        }
        Ok(())
    }

    /// The stream's next chunk, together with the state after it.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        let bookmarks = self.options.allow_watch_bookmarks;
        loop {
            if let Some(bytes) = self.frames.pop_front() {
                return Some((bytes, self));
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                changed = self.changes.changed() => match changed {
                    Ok(()) => self.catch_up(),
                    Err(_) => self.ended = true,
                },
                () = sleep_until(self.deadline) => {
                    if bookmarks {
                        self.push_bookmark(false);
                    }
                    self.ended = true;
                }
                () = sleep_until(self.next_bookmark), if bookmarks => {
                    self.next_bookmark += BOOKMARK_PERIOD;
                    self.push_bookmark(false);
                }
            }
        }
    }

    fn catch_up(&mut self) {
        match self.objects.store.since(self.revision, Kind::ApiService) {
            Ok((events, revision)) => {
                for event in events {
                    self.tell(&event);
                }
                self.revision = revision;
            }
            Err(unknown) => {
                self.frames.push_back(error(&expired(self.revision, unknown)).into());
                self.ended = true;
            }
        }
    }

    /// An object that a change takes out of the selection is told as deleted.
    fn tell(&mut self, event: &Event) {
        let selectors = &self.options.selectors;
        let selected = |stored: &Stored| object(stored).is_some_and(|it| selectors.matches(&it));
        let Some((kind, stored)) = seen_by(event, selected) else { return };
        if let Some(object) = object(&stored) {
            self.push(kind.word(), &object);
        }
    }

    fn push_bookmark(&mut self, initial_events_end: bool) {
        let object = bookmark(API_VERSION, KIND, self.revision, initial_events_end);
        self.push("BOOKMARK", &object);
    }

    fn push(&mut self, kind: &str, object: &Value) {
        let shown = self.shape.one(object, self.first);
        self.first = false;
        self.frames.push_back(frame(kind, &shown).into());
    }
}
