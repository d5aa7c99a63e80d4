//! Starts what fetches the issuers' keys, and follows the file of `--authentication-config`: a change
//! takes effect when it is valid; else what was goes on.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::fetched_keys::FetchedKeys;
use super::location::Location;
use super::validation::{self, AnonymousRule, Rules};
use super::{Issuer, Issuers, JwtConfig};
use crate::runtime::snapshot::{Publisher, View};
use crate::runtime::tasks::{AbortOnDrop, spawn_owned};
use crate::tls::{TlsError, read_certificates};

/// The file is read at least this often (upstream's poll).
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// A change is acted on when nothing more has come for this long.
const QUIET: Duration = Duration::from_millis(20);
/// Bytes of the file.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Why issuers cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not valid.
    #[error("{}:\n{}", path.display(), faults.join("\n"))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Each with the field that it is about.
        faults: Vec<String>,
    },
    /// The `--oidc-*` flags are not valid.
    #[error("{}", .0.join("\n"))]
    Flags(Vec<String>),
    /// The authorities of the `--oidc-ca-file`.
    #[error("--oidc-ca-file: {0}")]
    Authority(#[from] TlsError),
}

/// Issuers that are being looked after.
#[derive(Debug)]
pub(in crate::auth) struct Started {
    /// The issuers.
    pub issuers: View<Issuers>,
    /// What the file says of anonymous callers: none when it says nothing, an empty list for
    /// nowhere, and no list for everywhere.
    pub anonymous: Option<AnonymousRule>,
    /// Ends what fetches keys and follows the file.
    pub task: AbortOnDrop,
}

/// Reads the configuration, and starts fetching keys on the calling runtime. `disallowed` are issuers
/// that others verify.
pub(in crate::auth) fn start(
    config: &JwtConfig,
    disallowed: &[String],
) -> Result<Started, JwtError> {
    let mut fetchers =
        Fetchers { generation: 0, retry_interval: config.retry_interval, running: HashMap::new() };
    if let Some(path) = &config.file {
        let text = read(path).map_err(|error| JwtError::Read { path: path.clone(), error })?;
        let read = validation::read(&text, disallowed)
            .map_err(|faults| JwtError::Invalid { path: path.clone(), faults })?;
        let anonymous = read.anonymous.clone();
        let (publisher, issuers) = Publisher::new(fetchers.issuers(read.rules));
        let file = File {
            path: path.clone(),
            disallowed: disallowed.to_vec(),
            text,
            anonymous: read.anonymous,
        };
        let task = spawn_owned("authentication-config", follow(file, fetchers, publisher));
        return Ok(Started { issuers, anonymous, task });
    }
    let rules = match &config.oidc {
        Some(flags) => {
            let authority = match &flags.ca_file {
                Some(path) => read_authority(path)?,
                None => String::new(),
            };
            vec![validation::of_flags(flags, authority, disallowed).map_err(JwtError::Flags)?]
        }
        None => Vec::new(),
    };
    let issuers = View::fixed(fetchers.issuers(rules));
    let task = spawn_owned("oidc", async move {
        let _fetchers = fetchers;
        std::future::pending::<()>().await;
    });
    Ok(Started { issuers, anonymous: None, task })
}

fn read_authority(path: &Path) -> Result<String, TlsError> {
    read_certificates(path)?;
    std::fs::read_to_string(path)
        .map_err(|error| TlsError::Read { path: path.display().to_string(), error })
}

fn read(path: &Path) -> std::io::Result<String> {
    let size = std::fs::metadata(path)?.len();
    if size > FILE_BYTES_MAX {
        let text = format!("{size} bytes, at most {FILE_BYTES_MAX} are allowed");
        return Err(std::io::Error::other(text));
    }
    std::fs::read_to_string(path)
}

/// What fetches keys: one task for each place where keys are.
#[derive(Debug)]
struct Fetchers {
    generation: u64,
    retry_interval: Duration,
    running: HashMap<Location, (Arc<FetchedKeys>, AbortOnDrop)>,
}

impl Fetchers {
    /// The issuers with these rules; keys that are known already stay, others are fetched, and those
    /// that nobody needs are given up.
    fn issuers(&mut self, rules: Vec<Rules>) -> Issuers {
        let mut before = std::mem::take(&mut self.running);
        let mut all = Vec::with_capacity(rules.len());
        for rules in rules {
            let fetcher = before.remove(&rules.location).unwrap_or_else(|| {
                let location = rules.location.clone();
                let keys = FetchedKeys::new(&location.issuer, self.retry_interval);
                let fetching = Arc::clone(&keys).run(async move || location.fetch().await);
                let task = spawn_owned("issuer-keys", fetching);
                (keys, task)
            });
            let keys = Arc::clone(&fetcher.0);
            self.running.insert(rules.location.clone(), fetcher);
            all.push(Issuer { rules, keys });
        }
        self.generation += 1;
        Issuers { generation: self.generation, all }
    }
}

/// The file as it was read last.
#[derive(Debug)]
struct File {
    path: PathBuf,
    disallowed: Vec<String>,
    text: String,
    anonymous: Option<AnonymousRule>,
}

async fn follow(mut file: File, mut fetchers: Fetchers, publisher: Publisher<Issuers>) {
    let changed = Arc::new(Notify::new());
    let watcher = watch(&file.path, &changed);
    if let Err(error) = &watcher {
        let path = file.path.display();
        tracing::warn!(%path, %error, "authentication configuration cannot be watched and is polled");
    }
    loop {
        if timeout(POLL_INTERVAL, changed.notified()).await.is_ok() {
            sleep(QUIET).await;
        }
        let reading = tokio::task::spawn_blocking(move || {
            let rules = file.look();
            (file, rules)
        });
        let Ok((read, rules)) = reading.await else {
            tracing::error!("authentication configuration is not followed any more");
            return std::future::pending().await;
        };
        file = read;
        if let Some(rules) = rules {
            tracing::info!(path = %file.path.display(), "authentication configuration reloaded");
            publisher.publish(fetchers.issuers(rules));
        }
    }
}

impl File {
    /// The rules when the file has changed and is valid.
    fn look(&mut self) -> Option<Vec<Rules>> {
        let path = self.path.display();
        let text = read(&self.path)
            .inspect_err(|error| {
                tracing::error!(%path, %error, "authentication configuration cannot be read");
            })
            .ok()?;
        if text == self.text {
            return None;
        }
        let read = validation::read(&text, &self.disallowed);
        // A fault is told once, and not at every poll.
        self.text = text;
        let read = read
            .inspect_err(|faults| {
                let faults = faults.join("; ");
                tracing::error!(%path, faults, "authentication configuration is not valid, kept the last");
            })
            .ok()?;
        if read.anonymous != self.anonymous {
            let error = "anonymous: changed from initial configuration file";
            tracing::error!(%path, faults = error, "authentication configuration is not valid, kept the last");
            return None;
        }
        Some(read.rules)
    }
}

/// Volumes of Kubernetes swap a link beside the file, so its directory is watched.
fn watch(path: &Path, changed: &Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let changed = Arc::clone(changed);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let reading = |event: &notify::Event| {
            matches!(event.kind, EventKind::Access(access)
                if access != notify::event::AccessKind::Close(notify::event::AccessMode::Write))
        };
        if !event.is_ok_and(|event| reading(&event)) {
            changed.notify_one();
        }
    })?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    watcher.watch(directory.unwrap_or(Path::new(".")), RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
