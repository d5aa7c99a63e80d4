//! Files in which the program keeps something for its next start.
//!
//! They are written whole or not at all, and only their owner can read them; what is read is bounded.
//! Everything here blocks.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The largest file, in bytes.
pub const FILE_BYTES_MAX: usize = 64 << 20;

/// How files are called until they are complete, with a dot before their names.
const PARTIAL_ENDING: &str = ".partial";

/// Makes the directory if need be, and removes what a crash left in it half written; one program at a
/// time uses it.
pub fn open_directory(directory: &Path) -> io::Result<()> {
    let open = || {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(is_partial) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    open().map_err(|error| at(directory, &error))
}

/// What the file holds, if it is one and not too large.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Looked at first, since opening a pipe would wait for who writes to it.
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(invalid("not a regular file"));
    }
    let mut bytes = Vec::new();
    let limit = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX);
    File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    check_length(&bytes)?;
    Ok(bytes)
}

/// Puts this in the place of what the file held.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static BEGUN: AtomicU64 = AtomicU64::new(0);
    let number = BEGUN.fetch_add(1, Ordering::Relaxed);
    let partial = path.with_file_name(format!(".{}-{number}{PARTIAL_ENDING}", std::process::id()));
    let replace = || {
        check_length(bytes)?;
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        // Not followed by a sync of the directory: after a crash either file will do.
        fs::rename(&partial, path)
    };
    replace().map_err(|error| {
        // It may never have been made; what counts is why the rest failed.
        fs::remove_file(&partial).ok();
        at(path, &error)
    })
}

/// An error about what a file holds.
pub fn invalid(problem: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

/// An error with the file's path before it.
pub fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// True for names that [`replace`] gives: a process, and a number.
fn is_partial(name: &str) -> bool {
    let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(PARTIAL_ENDING));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts = inner.and_then(|inner| inner.split_once('-'));
    parts.is_some_and(|(process, number)| is_number(process) && is_number(number))
}

fn check_length(bytes: &[u8]) -> io::Result<()> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(invalid(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_given_here_are_removed() {
        for (name, expected) in [
            (".4711-0.partial", true),
            (".-0.partial", false),
            (".4711.partial", false),
            (".movie.partial", false),
            ("4711-0.partial", false),
            (".partial", false),
        ] {
            assert_eq!(is_partial(name), expected, "{name}");
        }
    }
}
