//! An issuer's keys: its discovery document names where they are, and they are fetched in the
//! background, on the control plane.
//!
//! Until the first time has succeeded it is tried every 10 s, as upstream does. From then on they are
//! fetched anew when a token names a key that is not known, at most every 10 s, and now and then, so
//! that a key that was withdrawn does not count for ever. Keys stay when fetching fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use reqwest::{Client, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::keys::{KeySet, KeysError};
use crate::tls::TlsError;
use crate::tls::backend::{Trust, client_config};

/// Between two tries (upstream's poll), and between two fetches that unknown keys ask for.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// Keys are fetched anew at least this often.
const REFRESH_INTERVAL: Duration = Duration::from_secs(600);
/// How long one request to an issuer may take (upstream's).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long connecting to an issuer may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a token waits for keys that are fetched because of it.
const AWAIT_MAX: Duration = Duration::from_secs(5);
/// Bytes of an issuer's document.
const DOCUMENT_BYTES_MAX: usize = 1 << 20;

const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// Where an issuer's keys are found, and whom to trust there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Location {
    /// The issuer, as tokens name it.
    pub(super) issuer: String,
    /// Where its discovery document is, when not where the issuer's name says.
    pub(super) discovery_url: Option<String>,
    /// PEM certificates of authorities; the system's when empty.
    pub(super) certificate_authority: String,
}

/// Why keys could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{}", chain(.0))]
    Http(#[from] reqwest::Error),
    #[error("{url}: {status}")]
    Status { url: Url, status: http::StatusCode },
    #[error("{url}: more than {DOCUMENT_BYTES_MAX} bytes")]
    TooLarge { url: Url },
    #[error("{url}: not JSON as expected: {error}")]
    Malformed { url: Url, error: serde_json::Error },
    #[error(
        "issuer did not match the issuer returned by provider, expected {expected:?} got {got:?}"
    )]
    OtherIssuer { expected: String, got: String },
    #[error("jwks_uri {uri:?} is not an https URL")]
    KeysUrl { uri: String },
    #[error("not a URL: {0}")]
    Url(String),
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// reqwest's errors keep what matters to themselves.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[derive(Deserialize)]
struct Provider {
    #[serde(default)]
    issuer: String,
    #[serde(default)]
    jwks_uri: String,
}

/// An issuer's keys as far as they are known.
#[derive(Debug)]
pub(super) struct IssuerKeys {
    location: Location,
    retry_interval: Duration,
    set: ArcSwapOption<KeySet>,
    /// Asks for the keys to be fetched anew.
    wanted: Notify,
    /// Tries that have ended, however.
    tries: watch::Sender<u64>,
    /// When the last try began, in Unix milliseconds.
    last_try_ms: AtomicU64,
}

/// Keys that are being fetched because of a token.
#[derive(Debug)]
pub struct Awaited {
    keys: Arc<IssuerKeys>,
    tries: watch::Receiver<u64>,
}

impl Awaited {
    /// Waits until they are there, or not for longer than makes sense; the token is then to be looked
    /// at again.
    pub async fn fetched(mut self) {
        let ended = timeout(AWAIT_MAX, self.tries.changed()).await;
        if !matches!(ended, Ok(Ok(()))) {
            let issuer = &self.keys.location.issuer;
            tracing::debug!(%issuer, "keys that a token waits for did not come in time");
        }
    }
}

impl IssuerKeys {
    pub(super) fn new(location: Location, retry_interval: Duration) -> Arc<Self> {
        Arc::new(Self {
            location,
            retry_interval,
            set: ArcSwapOption::empty(),
            wanted: Notify::new(),
            tries: watch::Sender::new(0),
            last_try_ms: AtomicU64::new(0),
        })
    }

    /// Replaces the keys.
    pub(super) fn put(&self, set: KeySet) {
        self.set.store(Some(Arc::new(set)));
    }

    /// The keys, once they have been fetched.
    pub(super) fn current(&self) -> Option<Arc<KeySet>> {
        self.set.load_full()
    }

    /// Has the keys fetched anew, however many ask; `None` when that was just done. `now` is in Unix
    /// seconds.
    pub(super) fn anew(keys: &Arc<Self>, now: Duration) -> Option<Awaited> {
        if !keys.pause(now).is_zero() {
            return None;
        }
        let awaited = Awaited { keys: Arc::clone(keys), tries: keys.tries.subscribe() };
        keys.wanted.notify_one();
        Some(awaited)
    }

    /// How long it is until the next try may begin. A clock that was set back counts as no time.
    fn pause(&self, now: Duration) -> Duration {
        let last = Duration::from_millis(self.last_try_ms.load(Ordering::Relaxed));
        let passed = now.checked_sub(last).unwrap_or(self.retry_interval);
        self.retry_interval.saturating_sub(passed)
    }

    /// Notes that a try begins, at this time since the Unix epoch.
    pub(super) fn begin(&self, now: Duration) {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.last_try_ms.store(now, Ordering::Relaxed);
    }

    /// Fetches the keys and keeps them up to date, for ever.
    pub(super) async fn run(self: Arc<Self>) {
        let issuer = &self.location.issuer;
        let mut failed = false;
        loop {
            self.begin(unix_time());
            match self.fetch().await {
                Ok(set) => {
                    if failed || self.set.load().is_none() {
                        tracing::info!(%issuer, "keys of token issuer fetched");
                    }
                    failed = false;
                    self.put(set);
                }
                Err(error) => {
                    failed = true;
                    tracing::error!(%issuer, %error, "keys of token issuer cannot be fetched");
                }
            }
            self.tries.send_modify(|tries| *tries += 1);
            if failed {
                sleep(self.retry_interval).await;
                continue;
            }
            tokio::select! {
                () = sleep(REFRESH_INTERVAL) => {}
                () = self.wanted.notified() => sleep(self.pause(unix_time())).await,
            }
        }
    }

    async fn fetch(&self) -> Result<KeySet, FetchError> {
        let Location { issuer, discovery_url, certificate_authority } = &self.location;
        let client = client(certificate_authority)?;
        let discovery = match discovery_url {
            Some(url) => url.clone(),
            None => format!("{}{WELL_KNOWN}", issuer.trim_end_matches('/')),
        };
        let provider: Provider = document(&client, url(&discovery)?).await?;
        if provider.issuer != *issuer {
            let (expected, got) = (issuer.clone(), provider.issuer);
            return Err(FetchError::OtherIssuer { expected, got });
        }
        let keys = Url::parse(&provider.jwks_uri).ok().filter(|url| url.scheme() == "https");
        let keys = keys.ok_or(FetchError::KeysUrl { uri: provider.jwks_uri })?;
        Ok(KeySet::from_jwks(&bytes(&client, keys).await?)?)
    }
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn url(text: &str) -> Result<Url, FetchError> {
    Url::parse(text).map_err(|error| FetchError::Url(format!("{text:?}: {error}")))
}

/// A client of its own each time: it is needed seldom, and no connection is worth keeping.
fn client(certificate_authority: &str) -> Result<Client, FetchError> {
    let trust = match certificate_authority {
        "" => Trust::System,
        pem => Trust::CaBundle(pem.as_bytes()),
    };
    let tls = client_config(trust, None)?;
    let client = Client::builder()
        .tls_backend_preconfigured((*tls).clone())
        .https_only(true)
        .timeout(REQUEST_TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("portico/", env!("CARGO_PKG_VERSION")))
        .build()?;
    Ok(client)
}

async fn document<T: DeserializeOwned>(client: &Client, url: Url) -> Result<T, FetchError> {
    let bytes = bytes(client, url.clone()).await?;
    serde_json::from_slice(&bytes).map_err(|error| FetchError::Malformed { url, error })
}

async fn bytes(client: &Client, url: Url) -> Result<Vec<u8>, FetchError> {
    let mut response = client.get(url.clone()).send().await?;
    if response.status() != http::StatusCode::OK {
        return Err(FetchError::Status { url, status: response.status() });
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() + chunk.len() > DOCUMENT_BYTES_MAX {
            return Err(FetchError::TooLarge { url });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
