//! Watches: the answer's body is a stream that sleeps until the objects change.
//!
//! No task stands behind it: whoever reads the body drives it, and it ends with the connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::answer::{Body, streamed};
use super::objects::{Objects, Selection};
use super::refusal::Refusal;
use super::view::View;
use crate::model::list_options::{ListOptions, WatchStart};
use crate::model::watch_events::{bookmark, error, expired, frame};

/// How often a watcher that understands bookmarks is told how far it has come.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// The least time after which a watch without a timeout ends; it is at most doubled, so that
/// watchers do not come back all at once.
const TIMEOUT_MIN_SECONDS: u64 = 30 * 60;

/// Starts a watch; its answer's headers go out at once.
pub(crate) fn start(
    objects: &Arc<Objects>,
    selection: Selection,
    view: View,
    options: &ListOptions,
) -> Result<Response<Body>, Refusal> {
    let now = Instant::now();
    let seconds = options
        .timeout_seconds
        .unwrap_or_else(|| fastrand::u64(TIMEOUT_MIN_SECONDS..2 * TIMEOUT_MIN_SECONDS));
    let mut watch = Watch {
        changes: objects.changes(),
        objects: Arc::clone(objects),
        selection,
        view,
        revision: 0,
        frames: VecDeque::new(),
        first: true,
        bookmarks: options.allow_watch_bookmarks,
        next_bookmark: now + BOOKMARK_PERIOD,
        deadline: now + Duration::from_secs(seconds),
        ended: false,
    };
    watch.begin(options)?;
    let body = StreamBody::new(stream::unfold(watch, Watch::next));
    Ok(streamed(StatusCode::OK, "application/json", body.boxed_unsync()))
}

/// One watcher.
#[derive(Debug)]
struct Watch {
    objects: Arc<Objects>,
    changes: watch::Receiver<()>,
    selection: Selection,
    view: View,
    /// Everything up to here has been told.
    revision: u64,
    /// What waits to be sent: at most one catch-up, for the next comes only when this is empty.
    frames: VecDeque<Bytes>,
    /// No event has been sent, so the next one carries a Table's columns.
    first: bool,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    ended: bool,
}

impl Watch {
    fn begin(&mut self, options: &ListOptions) -> Result<(), Refusal> {
        match options.watch_start() {
            WatchStart::Everything { not_older_than } => {
                let (revision, objects) = self.objects.list(&self.selection);
                if not_older_than > revision {
                    return Err(Refusal::TooNew(not_older_than, revision));
                }
                self.revision = revision;
                for object in objects {
                    self.push("ADDED", &object);
                }
                if options.initial_bookmark() {
                    self.push_bookmark(true);
                }
            }
            WatchStart::Now => self.revision = self.objects.revision(),
            WatchStart::After(revision) => {
                self.revision = revision;
                self.catch_up();
            }
        }
        Ok(())
    }

    /// The body's next frame, together with the state after it.
    async fn next(mut self) -> Option<(Result<Frame<Bytes>, Infallible>, Self)> {
        loop {
            if let Some(bytes) = self.frames.pop_front() {
                return Some((Ok(Frame::data(bytes)), self));
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
                    if self.bookmarks {
                        self.push_bookmark(false);
                    }
                    self.ended = true;
                }
                () = sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark += BOOKMARK_PERIOD;
                    self.push_bookmark(false);
                }
            }
        }
    }

    fn catch_up(&mut self) {
        match self.objects.since(self.revision, &self.selection) {
            Ok((revision, events)) => {
                for (kind, object) in events {
                    self.push(kind.word(), &object);
                }
                self.revision = revision;
            }
            Err(unknown) => {
                self.frames.push_back(error(&expired(self.revision, unknown)).into());
                self.ended = true;
            }
        }
    }

    fn push_bookmark(&mut self, initial_events_end: bool) {
        let View { resource, version, .. } = self.view;
        let api_version = resource.api_version(version);
        let object = bookmark(&api_version, resource.kind, self.revision, initial_events_end);
        self.push("BOOKMARK", &object);
    }

    fn push(&mut self, kind: &str, object: &serde_json::Value) {
        let shown = self.view.one(object, self.first);
        self.first = false;
        self.frames.push_back(frame(kind, &shown).into());
    }
}
