//! Watches: the answer's body is a stream that sleeps until the objects change.
//!
//! No task stands behind it: whoever reads the body drives it, and it ends with the connection.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::answer::{Body, streamed};
use super::objects::{Objects, Seen, Selection};
use super::refusal::Refusal;
use super::view::View;
use crate::model::history::Unknown;
use crate::model::list_options::ListOptions;
use crate::model::watch_events::bookmark;
use crate::model::watcher::{
    BOOKMARK_PERIOD_SECONDS, TIMEOUT_MIN_SECONDS, TooNew, Watched, Watcher, timeout_seconds,
};

const BOOKMARK_PERIOD: Duration = Duration::from_secs(BOOKMARK_PERIOD_SECONDS);

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
        .unwrap_or_else(|| timeout_seconds(TIMEOUT_MIN_SECONDS, fastrand::f64()));
    let changes = objects.changes();
    let selected = Selected { objects: Arc::clone(objects), selection, view };
    let too_new = |fault: TooNew| Refusal::TooNew(fault.wanted, fault.present);
    let watch = Watch {
        watcher: Watcher::begin(selected, options).map_err(too_new)?,
        changes,
        next_bookmark: now + BOOKMARK_PERIOD,
        deadline: now + Duration::from_secs(seconds),
    };
    let body = StreamBody::new(stream::unfold(watch, Watch::next));
    Ok(streamed(StatusCode::OK, "application/json", body.boxed_unsync()))
}

/// The selected objects as they are shown.
#[derive(Debug)]
struct Selected {
    objects: Arc<Objects>,
    selection: Selection,
    view: View,
}

impl Watched for Selected {
    fn revision(&self) -> u64 {
        self.objects.revision()
    }

    fn list(&self) -> (u64, Vec<Arc<Value>>) {
        self.objects.list(&self.selection)
    }

    fn since(&self, revision: u64) -> Result<(u64, Vec<Seen>), Unknown> {
        self.objects.since(revision, &self.selection)
    }

    fn show(&self, object: &Value, first: bool) -> Value {
        self.view.one(object, first)
    }

    fn bookmark(&self, revision: u64, initial_events_end: bool) -> Value {
        let View { resource, version, .. } = self.view;
        bookmark(&resource.api_version(version), resource.kind, revision, initial_events_end)
    }
}

/// One watcher and what it waits for.
#[derive(Debug)]
struct Watch {
    watcher: Watcher<Selected>,
    changes: watch::Receiver<()>,
    next_bookmark: Instant,
    deadline: Instant,
}

impl Watch {
    /// The body's next frame, together with the state after it.
    async fn next(mut self) -> Option<(Result<Frame<bytes::Bytes>, Infallible>, Self)> {
        loop {
            if let Some(bytes) = self.watcher.pop() {
                return Some((Ok(Frame::data(bytes.into())), self));
            }
            if self.watcher.has_ended() {
                return None;
            }
            tokio::select! {
                changed = self.changes.changed() => match changed {
                    Ok(()) => self.watcher.catch_up(),
                    Err(_) => return None,
                },
                () = sleep_until(self.deadline) => self.watcher.end(),
                () = sleep_until(self.next_bookmark), if self.watcher.wants_bookmarks() => {
                    self.next_bookmark += BOOKMARK_PERIOD;
                    self.watcher.mark();
                }
            }
        }
    }
}
