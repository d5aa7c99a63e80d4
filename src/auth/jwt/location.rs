//! Where an issuer's keys are: its discovery document names the place (OIDC Discovery 1.0 §4).

use std::time::Duration;

use reqwest::{Client, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::keys::{KeySet, KeysError};
use crate::model::error_text::with_causes;
use crate::tls::TlsError;
use crate::tls::backend::{Trust, client_config};

/// How long one request to an issuer may take (upstream's).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long connecting to an issuer may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
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
    /// reqwest's errors keep what matters to themselves.
    #[error("{}", with_causes(.0))]
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

#[derive(Deserialize)]
struct Provider {
    #[serde(default)]
    issuer: String,
    #[serde(default)]
    jwks_uri: String,
}

impl Location {
    /// Fetches the keys.
    pub(super) async fn fetch(&self) -> Result<KeySet, FetchError> {
        let Self { issuer, discovery_url, certificate_authority } = self;
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
