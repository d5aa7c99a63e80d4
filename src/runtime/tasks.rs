//! Named tasks with an owner: one that panics is an event in the log, not a silence.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio::task::{AbortHandle, JoinHandle};

/// Starts `future` on the runtime of the calling thread; a panic in it is logged with `name` and
/// ends this task only.
#[expect(clippy::disallowed_methods, reason = "this is the wrapper that names tasks")]
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    // Chained and not an async block: that would hold the future twice, as captured and as awaited.
    tokio::spawn(AssertUnwindSafe(future).catch_unwind().map(move |ended| {
        let Err(panic) = ended else { return };
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        tracing::error!(task = name, panic = text, "task panicked");
    }))
}

/// Ends its task when dropped: the owner's way to say that a task must not outlive it.
#[derive(Debug)]
pub struct AbortOnDrop(AbortHandle);

impl AbortOnDrop {
    /// Takes over `task`, which now lives no longer than the returned value.
    pub fn new(task: &JoinHandle<()>) -> Self {
        Self(task.abort_handle())
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts a task that ends with the returned owner.
pub fn spawn_owned<F>(name: &'static str, future: F) -> AbortOnDrop
where
    F: Future<Output = ()> + Send + 'static,
{
    AbortOnDrop::new(&spawn(name, future))
}
