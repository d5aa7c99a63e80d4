//! What a terminal shows on standard error while a benchmark runs; nothing where there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::interval;

use super::words::counted;

/// Between two drawings.
const DRAW: Duration = Duration::from_millis(200);

/// The bar of a whole run.
pub(super) struct Progress {
    bar: ProgressBar,
    /// Reads that have ended.
    pub(super) reads: Arc<AtomicU64>,
}

impl Progress {
    /// Of a run that takes about this long.
    pub(super) fn new(whole: Duration) -> Self {
        let bar = ProgressBar::with_draw_target(Some(millis(whole)), ProgressDrawTarget::stderr());
        // A template that cannot be parsed would leave the library's own, which will do.
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {percent:>3} %  {wide_msg}") {
            bar.set_style(style.progress_chars("━╸─"));
        }
        Self { bar, reads: Arc::new(AtomicU64::new(0)) }
    }

    /// Says what is being done, for what has no known length.
    pub(super) fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        self.bar.tick();
    }

    /// Awaits a step of about this length, while the bar moves on.
    pub(super) async fn step<T>(
        &self,
        what: &str,
        length: Duration,
        step: impl Future<Output = T>,
    ) -> T {
        let from = self.bar.position();
        let begun = Instant::now();
        let before = self.reads.load(Ordering::Relaxed);
        let mut draw = interval(DRAW);
        tokio::pin!(step);
        let outcome = loop {
            tokio::select! {
                outcome = &mut step => break outcome,
                _ = draw.tick() => {
                    let message = match self.reads.load(Ordering::Relaxed) - before {
                        0 => what.to_owned(),
                        reads => format!("{what}: {}", counted(reads, "read")),
                    };
                    self.bar.set_message(message);
                    self.bar.set_position(from + millis(begun.elapsed().min(length)));
                }
            }
        };
        self.bar.set_position(from + millis(length));
        outcome
    }

    /// Removes the bar, so that what is printed next stands alone.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
