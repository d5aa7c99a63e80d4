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
use rustls_pki_types::CertificateDer;
use tokio::time::{sleep, timeout};

use super::explain;
use super::servers::{Servers, another_may_help};
use crate::runtime::snapshot::View;
use crate::tls::cluster_trust::{
    ClusterTrust, NAME, NAMESPACE, REQUEST_HEADER_CA, with_authorities,
};
use crate::tls::read_certificates;

/// How often is looked whether it is published although nothing happens: upstream's controller looks
/// as often.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// Between two looks, so that two who disagree do not keep the server busy.
const PAUSE: Duration = Duration::from_secs(1);
/// After what failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// How long one server may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How often somebody else may be faster before it is tried again later.
const CONFLICTS_MAX: usize = 5;

/// Who sees to it that the authority is published.
#[derive(Debug)]
pub(super) struct Publishing {
    file: PathBuf,
    /// The ConfigMap at each server.
    apis: Vec<Api<ConfigMap>>,
    /// Changes with the ConfigMap.
    trust: View<ClusterTrust>,
    /// What failed last.
    failed: Option<String>,
}

impl Publishing {
    pub(super) fn new(file: PathBuf, servers: &Servers, trust: View<ClusterTrust>) -> Self {
        let apis = servers.each(|client| Api::namespaced(client, NAMESPACE));
        Self { file, apis, trust, failed: None }
    }

    /// Looks for ever: when the ConfigMap is seen to change, and from time to time.
    pub(super) async fn run(mut self) {
        loop {
            self.look().await;
            sleep(PAUSE).await;
            let wait = if self.failed.is_some() { RETRY_INTERVAL } else { LOOK_INTERVAL };
            tokio::select! {
                () = sleep(wait) => {}
                true = self.trust.changed() => {}
            }
        }
    }

    /// Looks whether the authority is published, and publishes it if not.
    async fn look(&mut self) {
        match self.ensure().await {
            Ok(is_new) => {
                if is_new {
                    tracing::info!(file = %self.file.display(), "front-proxy authority published");
                }
                self.failed = None;
            }
            Err(error) => {
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
        let mut problem = "there is no server".to_owned();
        for api in &self.apis {
            match timeout(LIMIT, publish(api, &ours)).await {
                Ok(Ok(is_new)) => return Ok(is_new),
                Ok(Err(Failed { text, is_everywhere: true })) => return Err(text),
                Ok(Err(failed)) => problem = failed.text,
                Err(_) => "no answer in time".clone_into(&mut problem),
            }
        }
        Err(problem)
    }
}

/// Why it is not published.
struct Failed {
    text: String,
    /// True when it is the same at each server.
    is_everywhere: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        let code = if let Error::Api(status) = &error { Some(status.code) } else { None };
        Self { text: explain(&error), is_everywhere: !another_may_help(code) }
    }
}

/// Publishes at one server; true when it was not published before.
async fn publish(api: &Api<ConfigMap>, ours: &[CertificateDer<'static>]) -> Result<bool, Failed> {
    let mut conflicts = 0;
    loop {
        let mut object = api.get(NAME).await?;
        let data = object.data.get_or_insert_default();
        let published = data.get(REQUEST_HEADER_CA).map(String::as_str);
        let merged = match with_authorities(published, ours) {
            Ok(Some(merged)) => merged,
            Ok(None) => return Ok(false),
            Err(error) => return Err(Failed { text: error.to_string(), is_everywhere: true }),
        };
        data.insert(REQUEST_HEADER_CA.to_owned(), merged);
        // With the resourceVersion that was read, so that nobody's change is lost.
        match api.replace(NAME, &PostParams::default(), &object).await {
            Err(Error::Api(status)) if status.code == 409 && conflicts < CONFLICTS_MAX => {
                conflicts += 1;
            }
            written => return Ok(written.map(|_| true)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::control::watch::scripted;
    use crate::tls::pki::Authority;

    /// What becomes of it when the first server answers with this code, and how often the second one
    /// was asked.
    async fn outcome(first: u16) -> (Result<bool, String>, usize) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), Authority::new("ours").unwrap().certificate()).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let servers = scripted::servers(vec![
            scripted::client(move |_, _| Some((first, json!(null)))),
            scripted::client(move |method, _| {
                counted.fetch_add(1, Ordering::Relaxed);
                assert!(method == Method::GET || method == Method::PUT);
                Some((200, json!({"metadata": {"name": NAME, "resourceVersion": "1"}})))
            }),
        ]);
        let trust = View::fixed(ClusterTrust::default());
        let publishing = Publishing::new(file.path().to_owned(), &servers, trust);
        (publishing.ensure().await, asked.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn another_server_is_asked_where_that_may_help() {
        assert_eq!(outcome(503).await, (Ok(true), 2));
        let (refused, asked) = outcome(403).await;
        assert!(refused.unwrap_err().starts_with("403") && asked == 0);
    }
}
