//! Starts what fetches the issuers' keys, and follows the file of `--authentication-config`: a change
//! takes effect when it is valid and the keys of new issuers are there; else what was goes on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::fetchers::{Fetchers, Prepared};
use super::validation::{self, AnonymousRule, Rules};
use super::{Issuers, JwtConfig};
use crate::runtime::files::{Files, Unreadable, Watch};
use crate::runtime::snapshot::{Publisher, View};
use crate::runtime::tasks::{AbortOnDrop, spawn_owned};
use crate::runtime::telemetry::TokenMetrics;
use crate::tls::{TlsError, certificates};

/// The file is read at least this often (upstream's poll).
const POLL_INTERVAL: Duration = Duration::from_secs(60);
/// How long a changed file waits for the keys of new issuers (`authentication_config` upstream); it is
/// tried again at the next poll.
const NEW_KEYS_TIME_MAX: Duration = Duration::from_secs(60);
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
    /// The file of `--oidc-ca-file` cannot be read.
    #[error("--oidc-ca-file: {0}")]
    Unreadable(#[from] Unreadable),
    /// It holds no authorities.
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
    /// What fetches keys and follows files.
    pub tasks: Vec<AbortOnDrop>,
}

/// Reads the configuration, and starts fetching keys on the calling runtime. `disallowed` are issuers
/// that others verify, and the file of `--oidc-ca-file` is one of `files`.
pub(in crate::auth) fn start(
    config: &JwtConfig,
    disallowed: &[String],
    files: &mut Files,
    metrics: &TokenMetrics,
) -> Result<Started, JwtError> {
    let mut fetchers = Fetchers::new(config.retry_interval, metrics.clone());
    let first = |fetchers: &mut Fetchers, rules| fetchers.put(fetchers.prepare(rules, None));
    if let Some(path) = &config.file {
        let text = read(path).map_err(|error| JwtError::Read { path: path.clone(), error })?;
        let read = validation::read(&text, disallowed)
            .map_err(|faults| JwtError::Invalid { path: path.clone(), faults })?;
        let anonymous = read.anonymous.clone();
        let (publisher, issuers) = Publisher::new(first(&mut fetchers, read.rules));
        let file = File {
            path: path.clone(),
            disallowed: disallowed.to_vec(),
            text: Some(text),
            anonymous: read.anonymous,
        };
        let following = follow(file, fetchers, publisher, metrics.clone());
        let tasks = vec![spawn_owned("authentication-config", following)];
        return Ok(Started { issuers, anonymous, tasks });
    }
    let Some(flags) = &config.oidc else {
        let issuers = View::fixed(Issuers::default());
        return Ok(Started { issuers, anonymous: None, tasks: Vec::new() });
    };
    let authority = |path| files.add("authorities of the issuer", [path], authority);
    let authority = flags.ca_file.as_deref().map(authority).transpose()?;
    let (flags, disallowed) = (flags.clone(), disallowed.to_vec());
    let rules = move |authority: &str| {
        let authority = authority.to_owned();
        validation::of_flags(&flags, authority, &disallowed).map_err(JwtError::Flags)
    };
    let now = authority.as_ref().map(View::load);
    let now = rules(now.as_deref().map_or("", String::as_str))?;
    let (publisher, issuers) = Publisher::new(first(&mut fetchers, vec![now]));
    let tasks = match authority {
        Some(authority) => {
            let following = follow_authority(authority, rules, fetchers, publisher);
            vec![spawn_owned("oidc-authority", following)]
        }
        None => fetchers.into_tasks(),
    };
    Ok(Started { issuers, anonymous: None, tasks })
}

/// Authorities, as they are in a file.
fn authority([pem]: [&[u8]; 1]) -> Result<String, JwtError> {
    certificates("authorities of the issuer", pem)?;
    Ok(String::from_utf8_lossy(pem).into_owned())
}

/// Lets the keys be fetched from who shows a certificate of the authority of now, for ever. Keys that
/// were fetched before count until then.
async fn follow_authority(
    mut authority: View<String>,
    rules: impl Fn(&str) -> Result<Rules, JwtError>,
    mut fetchers: Fetchers,
    publisher: Publisher<Issuers>,
) {
    while authority.changed().await {
        match rules(&authority.load()) {
            Ok(rules) => publisher.publish(fetchers.replace(vec![rules])),
            Err(error) => tracing::error!(%error, "issuer is trusted as before"),
        }
    }
    // The fetchers go on for as long as this task does.
    std::future::pending::<()>().await;
}

fn read(path: &Path) -> std::io::Result<String> {
    let size = std::fs::metadata(path)?.len();
    if size > FILE_BYTES_MAX {
        let text = format!("{size} bytes, at most {FILE_BYTES_MAX} are allowed");
        return Err(std::io::Error::other(text));
    }
    std::fs::read_to_string(path)
}

/// The file as it was read last.
#[derive(Debug)]
struct File {
    path: PathBuf,
    disallowed: Vec<String>,
    /// None when it is to be read as though it were new.
    text: Option<String>,
    anonymous: Option<AnonymousRule>,
}

/// What a look at the file showed.
enum Look {
    /// It is as it was.
    Same,
    /// It is no use.
    Faulty,
    /// It has these rules now.
    Changed(Vec<Rules>),
}

/// Rules that are in force as soon as their keys are there.
struct Pending {
    prepared: Prepared,
    /// When that is given up.
    until: Instant,
}

/// What there is to do.
enum Next {
    Look,
    Put,
    GiveUp,
}

async fn follow(
    mut file: File,
    mut fetchers: Fetchers,
    publisher: Publisher<Issuers>,
    metrics: TokenMetrics,
) {
    let watch = Watch::new([file.path.as_path()]);
    let mut pending: Option<Pending> = None;
    // It may have changed since it was read.
    let mut what = Next::Look;
    loop {
        match (what, pending.take()) {
            (Next::Put, Some(Pending { prepared, .. })) => {
                publisher.publish(fetchers.put(prepared));
                metrics.reloaded(true);
                tracing::info!(path = %file.path.display(), "authentication configuration reloaded");
            }
            (Next::GiveUp, Some(Pending { prepared, .. })) => {
                metrics.reloaded(false);
                let (path, issuers) = (file.path.display(), prepared.missing().join(", "));
                tracing::error!(%path, issuers, "keys of new issuers are not there, kept the last configuration");
                file.text = None;
            }
            (Next::Look | Next::Put | Next::GiveUp, before) => {
                watch.settle().await;
                let reading = tokio::task::spawn_blocking(move || {
                    let look = file.look();
                    (file, look)
                });
                let Ok((read, look)) = reading.await else {
                    tracing::error!("authentication configuration is not followed any more");
                    return std::future::pending().await;
                };
                file = read;
                pending = match look {
                    Look::Same => before,
                    Look::Faulty => {
                        metrics.reloaded(false);
                        None
                    }
                    Look::Changed(rules) => {
                        let before = before.map(|before| before.prepared);
                        let prepared = fetchers.prepare(rules, before.as_ref());
                        Some(Pending { prepared, until: Instant::now() + NEW_KEYS_TIME_MAX })
                    }
                };
            }
        }
        what = next(&watch, pending.as_ref()).await;
    }
}

async fn next(watch: &Watch, pending: Option<&Pending>) -> Next {
    let look = async {
        watch.changed(POLL_INTERVAL).await;
        Next::Look
    };
    let Some(pending) = pending else { return look.await };
    tokio::select! {
        biased;
        () = pending.prepared.ready() => Next::Put,
        () = sleep_until(pending.until) => Next::GiveUp,
        next = look => next,
    }
}

impl File {
    fn look(&mut self) -> Look {
        let path = self.path.display();
        let text = match read(&self.path) {
            Ok(text) => text,
            Err(error) => {
                // Told once, and looked at again when it can be read.
                if self.text.take().is_some_and(|text| !text.is_empty()) {
                    tracing::error!(%path, %error, "authentication configuration cannot be read");
                    self.text = Some(String::new());
                    return Look::Faulty;
                }
                self.text = Some(String::new());
                return Look::Same;
            }
        };
        if self.text.as_ref() == Some(&text) {
            return Look::Same;
        }
        let read = validation::read(&text, &self.disallowed);
        // A fault is told once, and not at every poll.
        self.text = Some(text);
        let faults = match read {
            Ok(read) if read.anonymous == self.anonymous => return Look::Changed(read.rules),
            Ok(_) => "anonymous: changed from initial configuration file".to_owned(),
            Err(faults) => faults.join("; "),
        };
        tracing::error!(%path, faults, "authentication configuration is not valid, kept the last");
        Look::Faulty
    }
}
