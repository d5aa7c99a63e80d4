//! Receivers that do not read what they asked for: how long they may, and how much they may keep here.
//!
//! What a client does not take waits in its backend's stream, up to that one's window. That stops
//! nobody else (a connection's window has room for all its streams), but it is memory, and a watch has
//! no deadline that would give it back.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// What clients may leave unread of their answers.
#[derive(Debug)]
pub struct Stalls {
    /// How long one may take for a piece of an answer, which is a frame or what a write takes.
    pub piece_timeout: Duration,
    /// Bytes that wait here for all those who make others wait; above it such answers are cut, first
    /// come, first served.
    pub bytes_max: usize,
    bytes: AtomicUsize,
}

/// How often an answer that stalls is looked at, and how long it may before it counts.
const LOOK: Duration = Duration::from_millis(250);

impl Stalls {
    /// Limits of their own.
    pub fn new(piece_timeout: Duration, bytes_max: usize) -> Self {
        Self { piece_timeout, bytes_max, bytes: AtomicUsize::new(0) }
    }
}

impl Default for Stalls {
    fn default() -> Self {
        // Long enough for somebody who reads a log page by page.
        Self::new(Duration::from_secs(600), 128 * 1024 * 1024)
    }
}

/// One receiver's wait for room.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    stalls: Option<&'a Stalls>,
    /// Since when the piece at hand waits.
    since: Option<Instant>,
    look: Option<Pin<Box<Sleep>>>,
    /// What of all those bytes is this one's.
    held: usize,
}

impl<'a> Waiting<'a> {
    /// For as long as it takes, where there are no limits.
    pub(super) fn new(stalls: Option<&'a Stalls>) -> Self {
        Self { stalls, since: None, look: None, held: 0 }
    }

    /// The piece at hand is taken.
    pub(super) fn taken(&mut self) {
        self.since = None;
        self.hold(0);
    }

    /// Ready when the receiver has made others wait for too long, or while too many do; `unread` says
    /// how many bytes wait for it.
    pub(super) fn poll(
        &mut self,
        mut unread: impl FnMut() -> usize,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(stalls) = self.stalls else { return Poll::Pending };
        let since = *self.since.get_or_insert_with(Instant::now);
        let pause = LOOK.min(stalls.piece_timeout);
        loop {
            let look = self.look.get_or_insert_with(|| Box::pin(sleep(pause)));
            if look.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            look.as_mut().reset(now + pause);
            if self.is_over(now - since, &mut unread) {
                return Poll::Ready(());
            }
        }
    }

    /// Whether one that has waited for so long has waited enough.
    fn is_over(&mut self, waited: Duration, unread: impl FnOnce() -> usize) -> bool {
        let Some(stalls) = self.stalls else { return false };
        // The clock may have been set for an earlier piece.
        waited >= LOOK.min(stalls.piece_timeout)
            && (self.hold(unread()) > stalls.bytes_max || waited >= stalls.piece_timeout)
    }

    /// Has so many bytes count as this one's; how many there are in all.
    fn hold(&mut self, bytes: usize) -> usize {
        let Some(stalls) = self.stalls else { return 0 };
        let before = std::mem::replace(&mut self.held, bytes);
        if bytes >= before {
            stalls.bytes.fetch_add(bytes - before, Ordering::Relaxed) + (bytes - before)
        } else {
            stalls.bytes.fetch_sub(before - bytes, Ordering::Relaxed) - (before - bytes)
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.hold(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_piece_has_its_time() {
        let stalls = Stalls::new(MINUTE, 100);
        let mut waiting = Waiting::new(Some(&stalls));
        assert!(!waiting.is_over(Duration::ZERO, || 10));
        assert!(!waiting.is_over(LOOK, || 10));
        assert!(waiting.is_over(MINUTE, || 10));
        let mut without = Waiting::new(None);
        assert!(!without.is_over(Duration::MAX, || usize::MAX));
    }

    #[test]
    fn answers_that_stall_hold_no_more_than_the_bound_between_them() {
        let stalls = Stalls::new(MINUTE, 100);
        let (mut one, mut other) = (Waiting::new(Some(&stalls)), Waiting::new(Some(&stalls)));
        assert!(!one.is_over(LOOK, || 60));
        assert!(!other.is_over(Duration::ZERO, || 60), "it does not count yet");
        assert!(other.is_over(LOOK, || 60), "the second one is too much");
        drop(other);
        let mut third = Waiting::new(Some(&stalls));
        assert!(!third.is_over(LOOK, || 40), "there is room again");
        one.taken();
        assert_eq!(stalls.bytes.load(Ordering::Relaxed), 40);
        drop(third);
        assert_eq!(stalls.bytes.load(Ordering::Relaxed), 0);
    }
}
