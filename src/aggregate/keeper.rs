//! Has what is to outlive a restart written to disk, off the loop and one batch at a time.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::kept::{Kept, Record};
use crate::runtime::tasks::{self, AbortOnDrop};

/// What is to be written, by the APIService's name; none for what is to be removed. There is one
/// entry an APIService, however far the disk is behind.
type Changes = BTreeMap<Arc<str>, Option<Record>>;

/// The writer.
#[derive(Debug)]
pub(super) struct Keeper {
    waiting: Arc<Waiting>,
    _task: AbortOnDrop,
}

#[derive(Debug, Default)]
struct Waiting {
    changes: Mutex<Changes>,
    some: Notify,
}

impl Waiting {
    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// Opens the data directory and begins to write; what was kept there.
    pub(super) fn open(data_directory: &Path) -> io::Result<(Self, Vec<(String, Record)>)> {
        let kept = Kept::open(data_directory)?;
        let records = kept.load();
        let waiting = Arc::new(Waiting::default());
        let task =
            tasks::spawn_owned("kept-discovery", write(Arc::new(kept), Arc::clone(&waiting)));
        Ok((Self { waiting, _task: task }, records))
    }

    /// Has changes written soon.
    pub(super) fn keep(&self, changes: Changes) {
        if !changes.is_empty() {
            self.waiting.changes().extend(changes);
            self.waiting.some.notify_one();
        }
    }
}

async fn write(kept: Arc<Kept>, waiting: Arc<Waiting>) {
    loop {
        waiting.some.notified().await;
        let changes = std::mem::take(&mut *waiting.changes());
        let kept = Arc::clone(&kept);
        let written = tokio::task::spawn_blocking(move || {
            for (name, record) in changes {
                let done = match record {
                    Some(record) => kept.put(&name, &record),
                    None => kept.remove(&name),
                };
                if let Err(error) = done {
                    tracing::warn!(apiservice = %name, %error, "discovery not kept");
                }
            }
        });
        if let Err(error) = written.await {
            tracing::error!(%error, "writing kept discovery panicked");
        }
    }
}
