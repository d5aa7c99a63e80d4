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
        // One that is not there keeps no other from being watched.
        if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
            let directory = directory.display();
            tracing::warn!(%directory, %error, "files are looked at, their directory cannot be watched");
        }
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

/// What files hold, each read once, in the order in which they were asked for.
#[derive(Debug, Default)]
pub struct Reading(Vec<Found>);

/// A file as it was read; what cannot be read is waited for all the same.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    /// From before it was read: what changes meanwhile is read again.
    stamp: Option<Stamp>,
    contents: Option<Vec<u8>>,
}

impl Reading {
    /// What the file holds.
    pub fn read(&mut self, path: &Path) -> Result<Vec<u8>, Unreadable> {
        let known = self.0.iter().find(|found| found.path == path);
        if let Some(contents) = known.and_then(|found| found.contents.clone()) {
            return Ok(contents);
        }
        let stamp = Stamp::of(path);
        let read = std::fs::read(path);
        let contents = read.as_ref().ok().cloned();
        self.0.push(Found { path: path.to_owned(), stamp, contents });
        read.map_err(|error| Unreadable { path: path.to_owned(), error })
    }

    fn is_touched(&self) -> bool {
        self.0.iter().any(|found| Stamp::of(&found.path) != found.stamp)
    }

    /// What these files hold now.
    fn again(&self) -> Self {
        let mut again = Self::default();
        for found in &self.0 {
            // One that cannot be read now is among what was found, too.
            again.read(&found.path).ok();
        }
        again
    }

    /// True when the same files hold the same.
    fn equals(&self, other: &Self) -> bool {
        let what = |found: &Found| (found.path.clone(), found.contents.clone());
        self.0.iter().map(what).eq(other.0.iter().map(what))
    }
}

/// Puts what files hold in the place of what they held; the text says why it cannot.
type Put = Box<dyn Fn(&mut Reading) -> Result<(), String> + Send>;

/// Files that are only of use together.
struct Source {
    /// What they are, for the log.
    what: String,
    /// What is in force.
    in_force: Reading,
    /// What was found last, and is not in force because of the fault.
    tried: Option<Reading>,
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
        let files = files.map(Path::to_owned);
        self.add_read(what, move |reading| {
            let contents: Vec<Vec<u8>> =
                files.iter().map(|file| reading.read(file)).collect::<Result<_, _>>()?;
            parse(std::array::from_fn(|at| contents.get(at).map_or(&[][..], Vec::as_slice)))
        })
    }

    /// The same of those files that `parse` reads, which one of them may name.
    pub fn add_read<T, E>(
        &mut self,
        what: &str,
        parse: impl Fn(&mut Reading) -> Result<T, E> + Send + 'static,
    ) -> Result<View<T>, E>
    where
        T: Send + Sync + 'static,
        E: Display,
    {
        let mut in_force = Reading::default();
        let (publisher, view) = Publisher::new(parse(&mut in_force)?);
        let put = move |reading: &mut Reading| {
            publisher.publish(parse(reading).map_err(|error| error.to_string())?);
            Ok(())
        };
        let (what, put) = (what.to_owned(), Box::new(put));
        self.sources.push(Source { what, in_force, tried: None, fault: None, put });
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
        let mut files = self.files();
        let mut watch = Watch::new(files.iter().map(PathBuf::as_path));
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
            let named = self.files();
            is_woken = named != files;
            if is_woken {
                (watch, files) = (Watch::new(named.iter().map(PathBuf::as_path)), named);
                continue;
            }
            is_woken = watch.changed(LOOK_INTERVAL).await;
            if is_woken {
                watch.settle().await;
            }
        }
    }

    fn files(&self) -> BTreeSet<PathBuf> {
        let found = self.sources.iter().flat_map(|source| &source.last().0);
        found.map(|found| found.path.clone()).collect()
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
    /// What was found last.
    fn last(&self) -> &Reading {
        self.tried.as_ref().unwrap_or(&self.in_force)
    }

    /// True when something else is in force.
    fn look(&mut self, is_woken: bool) -> bool {
        let awaits = self.fault.as_ref().is_some_and(|fault| !fault.is_said);
        if !is_woken && !awaits && !self.last().is_touched() {
            return false;
        }
        let again = self.in_force.again();
        if again.equals(&self.in_force) {
            (self.in_force, self.tried, self.fault) = (again, None, None);
            return false;
        }
        let mut reading = Reading::default();
        match (self.put)(&mut reading) {
            Ok(()) => {
                (self.in_force, self.tried, self.fault) = (reading, None, None);
                tracing::info!(what = self.what, files = self.names(), "files read again");
                true
            }
            Err(reason) => {
                self.tried = Some(reading);
                self.say(reason);
                false
            }
        }
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
        let found = self.last().0.iter();
        found.map(|found| found.path.display().to_string()).collect::<Vec<_>>().join(", ")
    }
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
    fn files_that_a_file_names_are_followed_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
        write("names", "one");
        write("one", "1");
        let mut files = Files::default();
        let base = directory.path().to_owned();
        let view = files.add_read("a number", move |reading| {
            let name = String::from_utf8(reading.read(&base.join("names"))?).unwrap_or_default();
            number([&reading.read(&base.join(name))?])
        });
        let view = view.unwrap();
        for (name, text, expected, followed) in [
            ("one", "2", 2, "one"),
            ("names", "two", 2, "two"),
            ("two", "x", 2, "two"),
            ("two", "3", 3, "two"),
            ("one", "4", 3, "two"),
        ] {
            write(name, text);
            files.look(false);
            assert_eq!(*view.load(), expected, "{name} {text}");
            assert_eq!(files.files(), [path("names"), path(followed)].into(), "{name} {text}");
        }
        write("names", "gone");
        files.look(false);
        write("names", "two");
        files.look(false);
        assert!(files.sources[0].fault.is_none());
        assert_eq!((*view.load(), *files.changes().load()), (3, 2));
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
