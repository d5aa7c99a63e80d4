//! Files that are read again when they change: certificates, keys and tokens are replaced while the
//! program runs.
//!
//! Their directories are watched, which sees files that are renamed over others and the links that
//! Kubernetes' volumes swap; what a watch misses (network file systems, links to other places) is
//! found by a look at each file every second. What cannot be used is reported once, and the last good
//! contents stay.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::snapshot::{Publisher, View};

/// A look at each file at least this often.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A change is acted on when it is that old: certificate and key do not come in the same instant.
const QUIET: Duration = Duration::from_millis(20);
/// What is wrong is reported when it is still wrong after this time.
const PATIENCE: Duration = Duration::from_millis(500);
/// How Kubernetes' volumes name the links that they swap when files change.
const VOLUME_LINK: &str = "..";

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {error}", path.display())]
pub struct Unreadable {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

/// Wakes who follows files.
#[derive(Debug)]
pub struct Watch {
    changed: Arc<Notify>,
    /// None where nothing can be watched.
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Watches the directories of these files.
    pub fn new<'a>(files: impl IntoIterator<Item = &'a Path>) -> Self {
        let files: BTreeSet<&Path> = files.into_iter().collect();
        let names = files.iter().filter_map(|file| file.file_name().map(OsString::from)).collect();
        let directories: BTreeSet<&Path> = files.iter().map(|file| directory(file)).collect();
        let changed = Arc::new(Notify::new());
        let watcher = watcher(names, &directories, &changed);
        if let Err(error) = &watcher {
            tracing::warn!(%error, "files cannot be watched and are looked at instead");
        }
        Self { changed, _watcher: watcher.ok() }
    }

    /// Waits until something has happened to a file, or for `longest`: then false.
    pub async fn changed(&self, longest: Duration) -> bool {
        timeout(longest, self.changed.notified()).await.is_ok()
    }

    /// Waits for what comes right behind a change.
    pub async fn settle(&self) {
        sleep(QUIET).await;
    }
}

fn directory(file: &Path) -> &Path {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

fn watcher(
    names: BTreeSet<OsString>,
    directories: &BTreeSet<&Path>,
    changed: &Arc<Notify>,
) -> notify::Result<RecommendedWatcher> {
    let changed = Arc::clone(changed);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.map_or(true, |event| is_change(&event, &names)) {
            changed.notify_one();
        }
    })?;
    for directory in directories {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

/// True when a file was only read, which makes events too: ours would never end.
pub fn is_read(event: &notify::Event) -> bool {
    let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
    matches!(event.kind, EventKind::Access(_)) && event.kind != written
}

fn is_change(event: &notify::Event, names: &BTreeSet<OsString>) -> bool {
    if is_read(event) {
        return false;
    }
    let concerns = |path: &PathBuf| {
        let Some(name) = path.file_name() else { return true };
        names.contains(name) || name.to_string_lossy().starts_with(VOLUME_LINK)
    };
    event.need_rescan() || event.paths.is_empty() || event.paths.iter().any(concerns)
}

/// What tells a changed file without reading it.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    changed: (i64, i64),
    length: u64,
    inode: (u64, u64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            modified: metadata.modified().ok(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            length: metadata.len(),
            inode: (metadata.dev(), metadata.ino()),
        })
    }
}

/// Puts what files hold in the place of what they held; the text says why it cannot.
type Put = Box<dyn Fn(&[Vec<u8>]) -> Result<(), String> + Send>;

/// Files that are only of use together.
struct Source {
    /// What they are, for the log.
    what: String,
    files: Vec<PathBuf>,
    stamps: Vec<Option<Stamp>>,
    /// What is in force.
    contents: Vec<Vec<u8>>,
    fault: Option<Fault>,
    put: Put,
}

/// Why the files cannot be used as they are.
struct Fault {
    reason: String,
    since: Instant,
    is_said: bool,
}

/// Every file that is followed.
pub struct Files {
    sources: Vec<Source>,
    /// Counts the changes.
    changes: Publisher<u64>,
    changed: View<u64>,
}

impl Default for Files {
    fn default() -> Self {
        let (publisher, view) = Publisher::new(0);
        Self { sources: Vec::new(), changes: publisher, changed: view }
    }
}

impl Files {
    /// What `parse` makes of these files, now and, while [`Files::follow`] runs, whenever one of them
    /// changes. They are read together, in this order; `what` names them in the log.
    pub fn add<T, E, const N: usize>(
        &mut self,
        what: &str,
        files: [&Path; N],
        parse: impl Fn([&[u8]; N]) -> Result<T, E> + Send + 'static,
    ) -> Result<View<T>, E>
    where
        T: Send + Sync + 'static,
        E: From<Unreadable> + Display,
    {
        let files: Vec<PathBuf> = files.map(Path::to_owned).into();
        let stamps = stamps(&files);
        let contents = read(&files)?;
        let parse = move |contents: &[Vec<u8>]| {
            parse(std::array::from_fn(|at| contents.get(at).map_or(&[][..], Vec::as_slice)))
        };
        let (publisher, view) = Publisher::new(parse(&contents)?);
        let put = move |contents: &[Vec<u8>]| {
            publisher.publish(parse(contents).map_err(|error| error.to_string())?);
            Ok(())
        };
        let (what, put) = (what.to_owned(), Box::new(put));
        self.sources.push(Source { what, files, stamps, contents, fault: None, put });
        Ok(view)
    }

    /// Changes whenever something of what was made of files is another.
    pub fn changes(&self) -> View<u64> {
        self.changed.clone()
    }

    /// Follows the files for ever.
    pub async fn follow(mut self) {
        if self.sources.is_empty() {
            return;
        }
        let files = self.sources.iter().flat_map(|source| &source.files);
        let watch = Watch::new(files.map(PathBuf::as_path));
        // They may have changed since they were read.
        let mut is_woken = true;
        loop {
            let looking = tokio::task::spawn_blocking(move || {
                self.look(is_woken);
                self
            });
            self = match looking.await {
                Ok(files) => files,
                Err(error) => {
                    tracing::error!(%error, "files are not followed any more");
                    return std::future::pending().await;
                }
            };
            is_woken = watch.changed(LOOK_INTERVAL).await;
            if is_woken {
                watch.settle().await;
            }
        }
    }

    fn look(&mut self, is_woken: bool) {
        let mut changes = 0;
        for source in &mut self.sources {
            changes += u64::from(source.look(is_woken));
        }
        if changes > 0 {
            self.changes.publish(*self.changes.current() + changes);
        }
    }
}

impl Source {
    /// True when something else is in force.
    fn look(&mut self, is_woken: bool) -> bool {
        let stamps = stamps(&self.files);
        let awaits = self.fault.as_ref().is_some_and(|fault| !fault.is_said);
        if !is_woken && !awaits && stamps == self.stamps {
            return false;
        }
        self.stamps = stamps;
        match self.read() {
            Ok(is_new) => {
                self.fault = None;
                if is_new {
                    tracing::info!(what = self.what, files = self.names(), "files read again");
                }
                is_new
            }
            Err(reason) => {
                self.say(reason);
                false
            }
        }
    }

    /// Puts what the files hold into force, unless it is already.
    fn read(&mut self) -> Result<bool, String> {
        let contents = read(&self.files).map_err(|error| error.to_string())?;
        if contents == self.contents {
            return Ok(false);
        }
        (self.put)(&contents)?;
        self.contents = contents;
        Ok(true)
    }

    fn say(&mut self, reason: String) {
        let before = self.fault.take().filter(|fault| fault.reason == reason);
        let mut fault =
            before.unwrap_or_else(|| Fault { reason, since: Instant::now(), is_said: false });
        if !fault.is_said && fault.since.elapsed() >= PATIENCE {
            fault.is_said = true;
            tracing::error!(
                what = self.what,
                files = self.names(),
                reason = fault.reason,
                "files cannot be used, what they held last stays in force"
            );
        }
        self.fault = Some(fault);
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.files.iter().map(|file| file.display().to_string()).collect();
        names.join(", ")
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|file| Stamp::of(file)).collect()
}

fn read(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, Unreadable> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|error| Unreadable { path: path.clone(), error })
    };
    files.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number<const N: usize>(contents: [&[u8]; N]) -> Result<u64, Unparsed> {
        let texts = contents.map(|bytes| str::from_utf8(bytes).unwrap_or_default());
        texts.concat().parse().map_err(|error: std::num::ParseIntError| Unparsed(error.to_string()))
    }

    #[derive(Debug)]
    struct Unparsed(String);

    impl Display for Unparsed {
        fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str(&self.0)
        }
    }

    impl From<Unreadable> for Unparsed {
        fn from(error: Unreadable) -> Self {
            Self(error.to_string())
        }
    }

    #[test]
    fn what_files_hold_together_is_followed_and_what_is_no_use_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        let write = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
        write(&one, "1");
        let mut files = Files::default();
        let missing = files.add("a number", [&*one, &*two], number).unwrap_err();
        assert!(missing.0.contains("two"), "{}", missing.0);
        write(&two, "2");
        let view = files.add("a number", [&*one, &*two], number).unwrap();
        assert_eq!(*view.load(), 12);
        for (path, text, expected, changes) in
            [(&one, "33", 332, 1), (&two, "x", 332, 1), (&two, "4", 334, 2), (&two, "4", 334, 2)]
        {
            write(path, text);
            files.look(false);
            assert_eq!((*view.load(), *files.changes().load()), (expected, changes), "{text}");
        }
        std::fs::remove_file(&one).unwrap();
        files.look(true);
        assert_eq!(*view.load(), 334);
    }

    #[test]
    fn a_fault_that_stays_is_said_once_and_one_that_goes_never() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("one");
        std::fs::write(&path, "1").unwrap();
        let mut files = Files::default();
        let _view = files.add("a number", [&*path], number).unwrap();
        std::fs::write(&path, "x").unwrap();
        let is_said = |files: &mut Files| {
            files.look(true);
            files.sources[0].fault.as_ref().map(|fault| fault.is_said)
        };
        assert_eq!(is_said(&mut files), Some(false));
        files.sources[0].fault.as_mut().unwrap().since -= PATIENCE;
        assert_eq!(is_said(&mut files), Some(true));
        std::fs::write(&path, "1").unwrap();
        assert_eq!(is_said(&mut files), None);
    }

    #[test]
    fn only_what_may_change_the_files_wakes() {
        let names: BTreeSet<OsString> = ["tls.crt".into()].into();
        let event = |kind, path: &str| notify::Event::new(kind).add_path(path.into());
        let made = EventKind::Create(notify::event::CreateKind::Any);
        let opened = EventKind::Access(AccessKind::Open(AccessMode::Any));
        for (event, expected) in [
            (event(made, "/pki/tls.crt"), true),
            (event(made, "/pki/..data"), true),
            (event(made, "/pki/other"), false),
            (event(opened, "/pki/tls.crt"), false),
            (event(EventKind::Access(AccessKind::Close(AccessMode::Write)), "/pki/tls.crt"), true),
            (notify::Event::new(EventKind::Other), true),
        ] {
            assert_eq!(is_change(&event, &names), expected, "{event:?}");
        }
    }
}
