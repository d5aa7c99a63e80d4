//! `--manifests DIR`: the objects in a directory's files are the objects in the store.
//!
//! The directory is watched, and what a watch may miss (network file systems, links to other
//! places) is found by a full scan from time to time. An event costs what its file costs, however
//! many others there are. Files are read on the runtime's threads for blocking work.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::directory::Directory;
use crate::runtime::files::is_read;
use crate::store::Store;

/// A full scan at least this often.
const SCAN_INTERVAL: Duration = Duration::from_secs(60);
/// A full scan this often while the directory cannot be watched.
const SCAN_INTERVAL_UNWATCHED: Duration = Duration::from_secs(1);
/// A change is acted on when nothing more has come for this long.
const QUIET: Duration = Duration::from_millis(20);
/// A change is acted on after this long in any case.
const DELAY_MAX: Duration = Duration::from_millis(200);
/// Events that wait to be acted on; with more, everything is scanned.
const EVENTS_MAX: usize = 4_096;
/// How Kubernetes' volumes name the link that they swap when files change.
const VOLUME_LINK: &str = "..data";

/// Loads the directory into the store, says so to `loaded`, and follows the directory for ever. A
/// directory that cannot be read is tried again.
pub async fn run(dir: PathBuf, store: Store, loaded: oneshot::Sender<()>) {
    let mut said = String::new();
    let manifests = loop {
        match Manifests::load(dir.clone(), store.clone()).await {
            Ok(manifests) => break manifests,
            Err(error) => {
                // Told once; it is looked for every second.
                let error = error.to_string();
                if said != error {
                    tracing::error!(dir = %dir.display(), error, "manifests cannot be read");
                    said = error;
                }
                tokio::time::sleep(SCAN_INTERVAL_UNWATCHED).await;
            }
        }
    };
    // Nobody may be waiting for it.
    loaded.send(()).ok();
    manifests.follow().await;
}

/// A directory that has been loaded.
#[derive(Debug)]
pub struct Manifests {
    directory: Directory,
    watch: Option<Watch>,
    store: Store,
}

impl Manifests {
    /// Loads the directory into the store, in one batch.
    pub async fn load(dir: PathBuf, store: Store) -> io::Result<Self> {
        let load = move || {
            // Watched before it is read, so that no change falls between.
            let watch = Watch::new(&dir).inspect_err(|error| not_watched(&dir, error)).ok();
            let mut directory = Directory::new(dir);
            store.apply(directory.scan()?);
            Ok(Self { directory, watch, store })
        };
        tokio::task::spawn_blocking(load).await.map_err(io::Error::other)?
    }

    /// Brings every change of the directory into the store; ends only with the runtime.
    pub async fn follow(mut self) {
        loop {
            let wanted = self.next().await;
            let reading = tokio::task::spawn_blocking(move || {
                self.act(&wanted);
                self
            });
            self = match reading.await {
                Ok(manifests) => manifests,
                Err(error) => {
                    tracing::error!(%error, "manifests are not followed any more");
                    return;
                }
            };
        }
    }

    /// Waits for changes, and then a little for more of them.
    async fn next(&mut self) -> Wanted {
        let mut wanted = Wanted::default();
        let Some(watch) = &mut self.watch else {
            tokio::time::sleep(SCAN_INTERVAL_UNWATCHED).await;
            wanted.everything = true;
            return wanted;
        };
        match timeout_at(Instant::now() + SCAN_INTERVAL, watch.events.recv()).await {
            Ok(Some(event)) => wanted.add(event),
            Ok(None) | Err(_) => wanted.everything = true,
        }
        let latest = Instant::now() + DELAY_MAX;
        while let Ok(Some(event)) =
            timeout_at(latest.min(Instant::now() + QUIET), watch.events.recv()).await
        {
            wanted.add(event);
        }
        wanted.everything |= watch.overflow.swap(false, Ordering::Relaxed);
        wanted
    }

    fn act(&mut self, wanted: &Wanted) {
        let changes = if wanted.everything {
            self.watch_again();
            self.directory.scan().unwrap_or_else(|error| {
                // Told once; what the directory held stays, and it is looked for every second.
                if self.watch.take().is_some() {
                    let dir = self.directory.path().display();
                    tracing::error!(%dir, %error, "manifests cannot be read");
                }
                Vec::new()
            })
        } else {
            self.directory.reload(&wanted.names)
        };
        self.store.apply(changes);
    }

    /// A directory that is put in the place of another needs a new watch.
    fn watch_again(&mut self) {
        let dir = self.directory.path();
        let same = |watch: &Watch| identity(dir).is_ok_and(|now| now == watch.identity);
        if self.watch.as_ref().is_some_and(same) {
            return;
        }
        match (Watch::new(dir), &self.watch) {
            (Ok(watch), _) => self.watch = Some(watch),
            // The scan that follows says why, when the directory is gone.
            (Err(error), Some(_)) => not_watched(dir, &error),
            (Err(_), None) => {}
        }
    }
}

fn not_watched(dir: &Path, error: &notify::Error) {
    let dir = dir.display();
    tracing::warn!(%dir, %error, "manifests cannot be watched and are scanned instead");
}

/// What is to be read.
#[derive(Debug, Default)]
struct Wanted {
    everything: bool,
    names: BTreeSet<OsString>,
}

impl Wanted {
    fn add(&mut self, event: Found) {
        match event {
            Found::Everything => self.everything = true,
            Found::File(name) => {
                self.names.insert(name);
            }
        }
    }
}

/// What an event tells.
#[derive(Debug)]
enum Found {
    Everything,
    File(OsString),
}

/// The watch on one directory.
#[derive(Debug)]
struct Watch {
    events: mpsc::Receiver<Found>,
    /// Set when an event found no room.
    overflow: Arc<AtomicBool>,
    identity: (u64, u64),
    _watcher: RecommendedWatcher,
}

impl Watch {
    fn new(dir: &Path) -> notify::Result<Self> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let overflow = Arc::new(AtomicBool::new(false));
        let (full, path) = (Arc::clone(&overflow), dir.to_owned());
        let mut watcher = notify::recommended_watcher(move |event| {
            for found in found(&path, event) {
                if sender.try_send(found).is_err() {
                    full.store(true, Ordering::Relaxed);
                    // The reader may have taken the last event just before the flag was set.
                    if sender.try_send(Found::Everything).is_err() {
                        tracing::debug!("more manifest events than can wait");
                    }
                }
            }
        })?;
        let identity = identity(dir)?;
        watcher.watch(dir, RecursiveMode::NonRecursive)?;
        Ok(Self { events, overflow, identity, _watcher: watcher })
    }
}

/// What an event means for the directory.
fn found(dir: &Path, event: notify::Result<notify::Event>) -> Vec<Found> {
    let Ok(event) = event else { return vec![Found::Everything] };
    if event.need_rescan() {
        return vec![Found::Everything];
    }
    if is_read(&event) {
        return Vec::new();
    }
    let of_path = |path: &PathBuf| match path.file_name() {
        Some(name) if path != dir && !name.to_string_lossy().starts_with(VOLUME_LINK) => {
            Found::File(name.to_owned())
        }
        _ => Found::Everything,
    };
    event.paths.iter().map(of_path).collect()
}

/// What tells one directory from another in its place.
#[cfg(unix)]
fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(dir)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Directories have no identity here.
#[cfg(not(unix))]
fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    std::fs::metadata(dir).map(|_| (0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tasks::{AbortOnDrop, spawn_owned};
    use crate::store::{Key, Kind};
    use tokio::sync::watch;

    struct Fixture {
        dir: tempfile::TempDir,
        store: Store,
        revisions: watch::Receiver<u64>,
        _task: AbortOnDrop,
    }

    async fn fixture(files: &[(&str, String)]) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let store = Store::new();
        let mut revisions = store.subscribe();
        revisions.mark_unchanged();
        let manifests = Manifests::load(dir.path().to_owned(), store.clone()).await.unwrap();
        let task = spawn_owned("manifests", manifests.follow());
        Fixture { dir, store, revisions, _task: task }
    }

    impl Fixture {
        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.dir.path().join(name), text).unwrap();
        }

        fn services(&self) -> Vec<String> {
            let (services, _) = self.store.list(Kind::Service);
            services.iter().map(|stored| stored.key.name.to_string()).collect()
        }

        async fn until(&mut self, names: &[&str]) {
            while self.services() != names {
                self.revisions.changed().await.unwrap();
            }
        }
    }

    fn service(name: &str) -> String {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n")
    }

    #[tokio::test]
    async fn files_that_come_change_and_go_take_effect() {
        let mut fixture = fixture(&[("a.yaml", service("one"))]).await;
        assert_eq!(fixture.services(), ["one"]);
        assert!(fixture.store.get(&Key::new(Kind::Service, "default", "one")).is_some());
        fixture.write("b.yml", &service("two"));
        fixture.until(&["one", "two"]).await;
        fixture.write("a.yaml", &service("three"));
        fixture.until(&["three", "two"]).await;
        std::fs::remove_file(fixture.dir.path().join("b.yml")).unwrap();
        fixture.until(&["three"]).await;
        let moved = fixture.dir.path().join("c.yaml");
        std::fs::rename(fixture.dir.path().join("a.yaml"), &moved).unwrap();
        fixture.write(
            "d.json",
            r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}}"#,
        );
        fixture.until(&["three", "x"]).await;
    }

    #[tokio::test]
    async fn a_file_that_breaks_keeps_what_it_held() {
        let mut fixture = fixture(&[("a.yaml", service("one"))]).await;
        fixture.write("a.yaml", "kind: [");
        fixture.write("b.yaml", &service("two"));
        fixture.until(&["one", "two"]).await;
        fixture.write("a.yaml", &service("three"));
        fixture.until(&["three", "two"]).await;
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn volumes_swap_all_their_files_at_once() {
        use std::os::unix::fs::symlink;
        let mut fixture = fixture(&[]).await;
        let dir = fixture.dir.path().to_owned();
        for (version, name) in [("..1", "one"), ("..2", "two")] {
            std::fs::create_dir(dir.join(version)).unwrap();
            std::fs::write(dir.join(version).join("a.yaml"), service(name)).unwrap();
        }
        symlink("..1", dir.join("..data")).unwrap();
        symlink("..data/a.yaml", dir.join("a.yaml")).unwrap();
        fixture.until(&["one"]).await;
        symlink("..2", dir.join("..data_tmp")).unwrap();
        std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
        fixture.until(&["two"]).await;
    }

    #[tokio::test]
    async fn a_directory_put_in_the_place_of_another_is_followed() {
        let parent = tempfile::tempdir().unwrap();
        let (dir, other) = (parent.path().join("dir"), parent.path().join("other"));
        for (path, name) in [(&dir, "one"), (&other, "two")] {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("a.yaml"), service(name)).unwrap();
        }
        let mut replaced = fixture(&[]).await;
        let store = replaced.store.clone();
        let manifests = Manifests::load(dir.clone(), store).await.unwrap();
        let _task = spawn_owned("manifests", manifests.follow());
        replaced.until(&["one"]).await;
        std::fs::remove_dir_all(&dir).unwrap();
        std::fs::rename(&other, &dir).unwrap();
        replaced.until(&["two"]).await;
        std::fs::write(dir.join("b.yaml"), service("z")).unwrap();
        replaced.until(&["two", "z"]).await;
    }

    #[tokio::test]
    async fn the_first_load_is_told_when_it_is_in_the_store() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), service("one")).unwrap();
        let store = Store::new();
        let (loaded, loading) = oneshot::channel();
        let _task = spawn_owned("manifests", run(dir.path().to_owned(), store.clone(), loaded));
        loading.await.unwrap();
        assert_eq!(store.list(Kind::Service).0.len(), 1);
    }
}
