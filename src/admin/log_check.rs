//! The check `log`: whether log lines still get out (`healthz.LogHealthz` upstream).
//!
//! A log that nobody reads blocks whoever writes to it. So a thread of its own writes out what the
//! log holds, again and again; the check fails once that has not come back for too long.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the log is flushed; upstream's.
const FLUSH_INTERVAL: Duration = Duration::from_secs(60);
/// How old the last flush may be; upstream's.
const FLUSH_AGE_MAX: Duration = Duration::from_secs(120);
/// What the check says; upstream's.
const BLOCKED: &str = "logging blocked";

/// Watches the log for as long as it is held.
#[derive(Debug)]
pub struct LogCheck {
    flushed: Arc<Mutex<Instant>>,
    /// Its end tells the thread to end.
    _held: SyncSender<()>,
}

impl LogCheck {
    /// Starts the thread; `flush` writes out what the log holds, and blocks while the log does.
    pub fn start(flush: impl FnMut() + Send + 'static) -> std::io::Result<Self> {
        Self::start_with(FLUSH_INTERVAL, flush)
    }

    fn start_with(
        interval: Duration,
        mut flush: impl FnMut() + Send + 'static,
    ) -> std::io::Result<Self> {
        let flushed = Arc::new(Mutex::new(Instant::now()));
        let (held, ended) = sync_channel(0);
        let noted = Arc::clone(&flushed);
        drop(std::thread::Builder::new().name("log-check".to_owned()).spawn(move || {
            while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                flush();
                *noted.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            }
        })?);
        Ok(Self { flushed, _held: held })
    }

    /// Why the check fails at `now`.
    pub(super) fn fault(&self, now: Instant) -> Option<&'static str> {
        let flushed = *self.flushed.lock().unwrap_or_else(PoisonError::into_inner);
        (now.saturating_duration_since(flushed) >= FLUSH_AGE_MAX).then_some(BLOCKED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_does_not_take_lines_any_more_is_reported_until_it_does() {
        let (entered, has_entered) = sync_channel(0);
        let (release, released) = sync_channel(0);
        let check = LogCheck::start_with(Duration::from_millis(1), move || {
            // Ends with the test, when nobody waits any more.
            if entered.send(()).is_ok() {
                released.recv().ok();
            }
        })
        .unwrap();
        has_entered.recv().unwrap();
        let stuck = *check.flushed.lock().unwrap();
        let late = stuck + FLUSH_AGE_MAX;
        assert_eq!(check.fault(stuck + FLUSH_AGE_MAX / 2), None);
        assert_eq!(check.fault(late), Some(BLOCKED));
        release.send(()).unwrap();
        // Only after it has noted the first flush does it begin the second.
        has_entered.recv().unwrap();
        assert_eq!(check.fault(late), None);
        drop(release);
    }
}
