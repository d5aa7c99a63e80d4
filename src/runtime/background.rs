//! Makes long pages and documents off the data-plane threads, few at a time: however many ask at once,
//! the control plane is not held up, and a data-plane thread only sends what was made.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Pages that are made at a time.
const AT_A_TIME_MAX: usize = 2;
/// Requests that wait for their page to be begun; one more is told to come later.
const WAITING_MAX: usize = 32;

/// Why a page was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotMade {
    /// As many requests wait as may.
    #[error("too many requests wait for a page to be made")]
    Busy,
    /// Making it failed, which is a defect of the program, or the program ends.
    #[error("{0}")]
    Failed(String),
}

/// Where long pages are made.
#[derive(Debug)]
pub struct Background {
    runtime: Handle,
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// One request in the count of those that wait.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Background {
    /// On threads of `runtime`, which must be none of the data plane's.
    pub fn new(runtime: Handle) -> Self {
        let turns = Arc::new(Semaphore::new(AT_A_TIME_MAX));
        Self { runtime, turns, waiting: AtomicUsize::new(0) }
    }

    /// The runtime on whose threads pages are made.
    pub fn runtime(&self) -> Handle {
        self.runtime.clone()
    }

    /// Runs `make` when its turn comes; it keeps its turn to its end, also when nobody waits for it
    /// any more.
    pub async fn run<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotMade> {
        let internal = |error: &dyn std::fmt::Display| NotMade::Failed(error.to_string());
        let waiting = Waiting(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            return Err(NotMade::Busy);
        }
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.map_err(|error| internal(&error))?;
        drop(waiting);
        let making = self.runtime.spawn_blocking(move || {
            let page = make();
            drop(turn);
            page
        });
        making.await.map_err(|error| internal(&error))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[tokio::test]
    async fn only_so_many_pages_are_made_at_a_time_and_only_so_many_requests_wait() {
        let background = Arc::new(Background::new(Handle::current()));
        let (release, released) = sync_channel::<()>(0);
        let released = Arc::new(std::sync::Mutex::new(released));
        let making = (0..AT_A_TIME_MAX + WAITING_MAX).map(|_| {
            let (background, released) = (Arc::clone(&background), Arc::clone(&released));
            async move {
                let blocked = move || released.lock().unwrap().recv().is_err();
                background.run(blocked).await
            }
        });
        let mut making: Vec<_> = making.map(Box::pin).collect();
        for page in &mut making {
            assert!(futures_util::poll!(page).is_pending());
        }
        assert_eq!(background.turns.available_permits(), 0);
        assert_eq!(background.waiting.load(Ordering::Relaxed), WAITING_MAX);
        assert_eq!(background.run(|| ()).await, Err(NotMade::Busy));
        drop(release);
        for page in making {
            assert_eq!(page.await, Ok(true));
        }
        assert_eq!(background.run(|| 7).await, Ok(7));
        assert_eq!(background.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_page_that_cannot_be_made_is_an_error_and_gives_its_turn_back() {
        let background = Background::new(Handle::current());
        let broken: Result<(), _> = background.run(|| panic!("broken")).await;
        assert!(matches!(broken, Err(NotMade::Failed(_))));
        assert_eq!(background.turns.available_permits(), AT_A_TIME_MAX);
    }
}
