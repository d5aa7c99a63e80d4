//! File descriptors: as many as the system lets us have, and what to do when there are none left.

use std::fs::File;
use std::io;

/// Descriptors needed beside those of clients: backends, files, the runtimes' own.
const BESIDE_CLIENTS: u64 = 1024;
/// The process has no descriptor left (`EMFILE`), on every Unix.
const NONE_LEFT_IN_PROCESS: i32 = 24;
/// The system has no descriptor left (`ENFILE`), on every Unix.
const NONE_LEFT_IN_SYSTEM: i32 = 23;

/// Raises the limit to the most that is allowed, and warns when `connections_max` clients would not
/// fit in it.
pub fn raise_limit(connections_max: usize) {
    let wanted = u64::try_from(connections_max).unwrap_or(u64::MAX).saturating_add(BESIDE_CLIENTS);
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) if limit < wanted => tracing::warn!(
            limit,
            wanted,
            "file descriptor limit is too low for the connections that are allowed"
        ),
        Ok(limit) => tracing::info!(limit, "file descriptor limit"),
        Err(error) => tracing::warn!(%error, "file descriptor limit cannot be raised"),
    }
}

/// True when an operation failed because there was no descriptor left.
pub fn are_used_up(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(NONE_LEFT_IN_PROCESS | NONE_LEFT_IN_SYSTEM))
}

/// A descriptor kept in reserve, to be given up for a moment when there is no other.
#[derive(Debug)]
pub struct Spare(Option<File>);

impl Spare {
    /// Takes one, unless there is none to be had.
    pub fn take() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Frees the descriptor while `using` runs; `None` when there was none to free.
    pub fn lend<T>(&mut self, using: impl FnOnce() -> T) -> Option<T> {
        if self.0.is_none() {
            *self = Self::take();
        }
        drop(self.0.take()?);
        let used = using();
        *self = Self::take();
        Some(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lack_of_descriptors_counts_as_one() {
        assert!(are_used_up(&io::Error::from_raw_os_error(24)));
        assert!(are_used_up(&io::Error::from_raw_os_error(23)));
        assert!(!are_used_up(&io::Error::from_raw_os_error(103)));
        assert!(!are_used_up(&io::Error::other("x")));
    }

    #[test]
    fn a_spare_descriptor_is_there_again_after_it_was_lent() {
        let mut spare = Spare::take();
        assert_eq!(spare.lend(|| 1), Some(1));
        assert!(spare.0.is_some());
        let mut empty = Spare(None);
        assert_eq!(empty.lend(|| 2), Some(2));
    }
}
