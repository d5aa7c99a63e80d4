//! `--publish-front-proxy-ca FILE`: the cluster is told to believe portico's front-proxy authority.
//!
//! As upstream's controller does it (`clusterauthenticationtrust`): what others wrote stays, ours is
//! put behind it, and put there again when somebody takes it out. The ConfigMap is never created: a
//! kube-apiserver does that, and one without the other keys would mislead servers that start then.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Error;
use kube::api::{Api, PostParams};
use tokio::time::{Instant, timeout};

use super::explain;
use crate::tls::cluster_trust::{NAME, REQUEST_HEADER_CA, with_authorities};
use crate::tls::read_certificates;

/// Between two looks, so that two who disagree do not keep the server busy.
const PAUSE: Duration = Duration::from_secs(1);
/// After what failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// How long a look may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How often somebody else may be faster before it is tried again later.
const CONFLICTS_MAX: usize = 5;

/// Who sees to it that the authority is published.
#[derive(Debug)]
pub(super) struct Publishing {
    file: PathBuf,
    /// The ConfigMap at each server.
    apis: Vec<Api<ConfigMap>>,
    /// When it was looked last.
    looked: Option<Instant>,
    /// When to look again although nothing happens.
    again: Option<Instant>,
    /// What failed last.
    failed: Option<String>,
}

impl Publishing {
    pub(super) fn new(file: PathBuf, apis: Vec<Api<ConfigMap>>) -> Self {
        Self { file, apis, looked: None, again: None, failed: None }
    }

    /// When to look again although nothing happens.
    pub(super) fn again(&self) -> Option<Instant> {
        self.again
    }

    /// Looks whether the authority is published, and publishes it if not.
    pub(super) async fn look(&mut self) {
        let earliest = self.looked.map(|looked| looked + PAUSE);
        if let Some(earliest) = earliest.filter(|earliest| *earliest > Instant::now()) {
            self.again = Some(earliest);
            return;
        }
        let done = match timeout(LIMIT, self.ensure()).await {
            Ok(done) => done,
            Err(_) => Err("no answer in time".to_owned()),
        };
        let now = Instant::now();
        self.looked = Some(now);
        self.again = None;
        match done {
            Ok(is_new) => {
                if is_new {
                    tracing::info!(file = %self.file.display(), "front-proxy authority published");
                }
                self.failed = None;
            }
            Err(error) => {
                self.again = Some(now + RETRY_INTERVAL);
                if self.failed.as_ref() != Some(&error) {
                    let file = self.file.display();
                    tracing::error!(%file, error, "front-proxy authority cannot be published");
                    self.failed = Some(error);
                }
            }
        }
    }

    /// True when it was not published before.
    async fn ensure(&self) -> Result<bool, String> {
        // Read each time: it may be replaced.
        let ours = read_certificates(&self.file).map_err(|error| error.to_string())?;
        let mut conflicts = 0;
        let mut at = 0;
        loop {
            let Some(api) = self.apis.get(at) else { return Err("no server answers".to_owned()) };
            let error = match publish(api, &ours).await? {
                Ok(is_new) => return Ok(is_new),
                Err(error) => error,
            };
            match &error {
                Error::Api(status) if status.code == 409 && conflicts < CONFLICTS_MAX => {
                    conflicts += 1;
                }
                // Another server may answer.
                other if !matches!(other, Error::Api(_)) && at + 1 < self.apis.len() => at += 1,
                _ => return Err(explain(&error)),
            }
        }
    }
}

/// The inner error is the server's, the outer one of what cannot be done at any.
async fn publish(
    api: &Api<ConfigMap>,
    ours: &[rustls_pki_types::CertificateDer<'static>],
) -> Result<Result<bool, Error>, String> {
    let mut object = match api.get(NAME).await {
        Ok(object) => object,
        Err(error) => return Ok(Err(error)),
    };
    let data = object.data.get_or_insert_default();
    let published = data.get(REQUEST_HEADER_CA).map(String::as_str);
    let merged = with_authorities(published, ours).map_err(|error| error.to_string())?;
    let Some(merged) = merged else { return Ok(Ok(false)) };
    data.insert(REQUEST_HEADER_CA.to_owned(), merged);
    // With the resourceVersion that was read, so that nobody's change is lost.
    Ok(api.replace(NAME, &PostParams::default(), &object).await.map(|_| true))
}
