//! Watches on APIServices: a stream that sleeps until the store changes, driven by whoever reads it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{API_VERSION, ApiServices, KIND, Shape, object};
use crate::body::Chunks;
use crate::model::history::{Unknown, seen_by};
use crate::model::list_options::ListOptions;
use crate::model::rejection::Rejection;
use crate::model::selector::Selectors;
use crate::model::watch_events::{bookmark, expired};
use crate::model::watcher::{
    BOOKMARK_PERIOD_SECONDS, Seen, TooNew, Watched, Watcher, timeout_seconds,
};
use crate::store::{Kind, Stored};

const BOOKMARK_PERIOD: Duration = Duration::from_secs(BOOKMARK_PERIOD_SECONDS);

/// Starts a watch.
pub(super) fn start(
    objects: &ApiServices,
    shape: Shape,
    options: &ListOptions,
) -> Result<Chunks, Rejection> {
    let now = Instant::now();
    let seconds = options
        .timeout_seconds
        .unwrap_or_else(|| timeout_seconds(objects.watch_timeout.as_secs(), fastrand::f64()));
    let changes = objects.store.subscribe();
    let selectors = options.selectors.clone();
    let selected = Selected { objects: objects.clone(), selectors, shape };
    let too_new = |fault: TooNew| expired(fault.wanted, Unknown::TooNew(fault.present));
    let watch = Watch {
        watcher: Watcher::begin(selected, options).map_err(too_new)?,
        changes,
        next_bookmark: now + BOOKMARK_PERIOD,
        deadline: now + Duration::from_secs(seconds),
    };
    Ok(Box::pin(stream::unfold(watch, Watch::next)))
}

/// The selected APIServices as they are shown.
struct Selected {
    objects: ApiServices,
    selectors: Selectors,
    shape: Shape,
}

impl Watched for Selected {
    fn revision(&self) -> u64 {
        self.objects.store.revision()
    }

    fn list(&self) -> (u64, Vec<Arc<Value>>) {
        let (objects, revision) = self.objects.selected(&self.selectors);
        (revision, objects.into_iter().map(Arc::new).collect())
    }

    fn since(&self, revision: u64) -> Result<(u64, Vec<Seen>), Unknown> {
        let (events, revision) = self.objects.store.since(revision, Kind::ApiService)?;
        let selected =
            |stored: &Stored| object(stored).is_some_and(|it| self.selectors.matches(&it));
        let seen = events.iter().filter_map(|event| {
            let (kind, stored) = seen_by(event, selected)?;
            Some((kind, Arc::new(object(&stored)?)))
        });
        Ok((revision, seen.collect()))
    }

    fn show(&self, object: &Value, first: bool) -> Value {
        self.shape.one(object, first)
    }

    fn bookmark(&self, revision: u64, initial_events_end: bool) -> Value {
        bookmark(API_VERSION, KIND, revision, initial_events_end)
    }
}

/// One watcher and what it waits for.
struct Watch {
    watcher: Watcher<Selected>,
    changes: watch::Receiver<u64>,
    next_bookmark: Instant,
    deadline: Instant,
}

impl Watch {
    /// The stream's next chunk, together with the state after it.
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(bytes) = self.watcher.pop() {
                return Some((bytes.into(), self));
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
