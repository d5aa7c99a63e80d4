//! The report's file: the old one stays until the new one is whole.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// A report that is still to be written.
#[derive(Debug)]
pub(in crate::cli::bench) struct ReportFile {
    /// As the caller named it.
    path: PathBuf,
    file: File,
    /// The file beside it that takes its place at the end; none where the path is no regular file
    /// (`/dev/stdout`) and is written as it is.
    partial: Option<PathBuf>,
}

impl ReportFile {
    /// Makes sure that it can be written, before minutes are spent on what could not.
    pub(in crate::cli::bench) fn begin(path: &Path) -> anyhow::Result<Self> {
        let begun = Self::open(path);
        begun.with_context(|| format!("cannot write {}", path.display()))
    }

    fn open(path: &Path) -> std::io::Result<Self> {
        // A link stays one: what it leads to is replaced.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if target.exists() {
            let file = OpenOptions::new().write(true).open(&target)?;
            if !file.metadata()?.is_file() {
                return Ok(Self { path: path.to_owned(), file, partial: None });
            }
        }
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let partial = target.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&partial)?;
        Ok(Self { path: target, file, partial: Some(partial) })
    }

    /// Writes the whole report.
    pub(in crate::cli::bench) fn finish(mut self, page: &str) -> anyhow::Result<()> {
        let mut write = || {
            self.file.write_all(page.as_bytes())?;
            match &self.partial {
                Some(partial) => fs::rename(partial, &self.path),
                None => Ok(()),
            }
        };
        let written = write();
        if written.is_ok() {
            self.partial = None;
        }
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

impl Drop for ReportFile {
    fn drop(&mut self) {
        if let Some(partial) = &self.partial {
            // Nobody could do anything about a file that stays.
            fs::remove_file(partial).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_old_report_stays_until_the_new_one_is_whole_and_no_other_file_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.html");
        let files = || fs::read_dir(directory.path()).unwrap().count();
        drop(ReportFile::begin(&path).unwrap());
        assert_eq!(files(), 0);
        fs::write(&path, "old and longer").unwrap();
        drop(ReportFile::begin(&path).unwrap());
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), files()), ("old and longer", 1));
        ReportFile::begin(&path).unwrap().finish("new").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap().as_str(), files()), ("new", 1));
    }

    #[test]
    fn what_cannot_be_written_is_named_at_the_start() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path().join("none/report.html"), directory.path().to_owned()] {
            let error = ReportFile::begin(&path).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn a_device_is_written_as_it_is() {
        ReportFile::begin(Path::new("/dev/null")).unwrap().finish("page").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
