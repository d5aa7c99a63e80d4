//! Follows the ConfigMap in which kube-apiserver publishes whom the cluster's servers believe.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use kube::runtime::watcher::Event;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::CORE_WAIT;
use super::feed::{Trouble, feed};
use super::servers::Servers;
use crate::runtime::lifecycle::ReadyGuard;
use crate::runtime::snapshot::{Publisher, View, replaced};
use crate::tls::KeyPair;
use crate::tls::cluster_trust::{Belief, ClusterTrust, NAME, NAMESPACE};

/// How often is looked whether portico's certificate still counts.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// The watch, before it is started.
#[derive(Debug)]
pub(super) struct TrustWatch {
    pub(super) servers: Servers,
    /// Portico's own pair as front proxy.
    pub(super) identity: Option<View<KeyPair>>,
    pub(super) publisher: Publisher<ClusterTrust>,
    /// The data that an earlier run saw last, until it is used or not needed.
    pub(super) kept: Option<BTreeMap<String, String>>,
}

impl TrustWatch {
    /// Follows for ever; `ready` is released when something is known.
    pub(super) async fn run(mut self, ready: ReadyGuard) {
        let watched = self.servers.watched(|client| Api::namespaced(client, NAMESPACE));
        let mut events = pin!(feed::<ConfigMap>(watched, &format!("metadata.name={NAME}")));
        let patience = Instant::now() + CORE_WAIT;
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut identity = self.identity.clone();
        let mut said = Said::default();
        let mut ready = Some(ready);
        let mut is_listed = false;
        loop {
            tokio::select! {
                Some(event) = events.next() => match event {
                    Ok(Some(Event::Init)) => is_listed = false,
                    Ok(Some(Event::InitApply(object) | Event::Apply(object))) => {
                        is_listed = true;
                        said.is_there();
                        self.read(&object.data.unwrap_or_default());
                    }
                    Ok(Some(Event::InitDone)) => {
                        said.recovered();
                        if !is_listed {
                            said.is_missing();
                            self.says_nothing();
                        }
                    }
                    Ok(Some(Event::Delete(_))) => said.is_missing(),
                    Ok(None) => said.recovered(),
                    Err(trouble) => {
                        if trouble.is_forbidden {
                            self.says_nothing();
                        } else {
                            self.use_kept();
                        }
                        said.trouble(trouble);
                    }
                },
                () = replaced(&mut identity) => self.look(),
                () = sleep_until(patience), if self.kept.is_some() => self.use_kept(),
                _ = look.tick() => self.look(),
            }
            if self.publisher.current().known {
                drop(ready.take());
            }
        }
    }

    fn read(&mut self, data: &BTreeMap<String, String>) {
        self.kept = None;
        self.publish(|trust, chain| {
            let (next, faults) = trust.read(data, chain, UnixTime::now());
            for fault in faults {
                tracing::error!(error = %fault, "cluster's word on whom it believes cannot be read");
            }
            next
        });
    }

    /// Believes whom an earlier run was told to believe, until the cluster is heard.
    fn use_kept(&mut self) {
        if let Some(data) = self.kept.take() {
            self.read(&data);
        }
    }

    /// The cluster does not say whom it believes: what was seen last stays, by an earlier run too.
    fn says_nothing(&mut self) {
        self.use_kept();
        self.publish(|trust, chain| trust.missing(chain, UnixTime::now()));
    }

    /// A certificate comes to its end without a word from the cluster.
    fn look(&self) {
        let current = self.publisher.current();
        let belief = |chain: &[CertificateDer<'_>]| current.belief(chain, UnixTime::now());
        if current.known && belief(&self.chain()) != current.believes_portico {
            self.publish(|trust, chain| trust.missing(chain, UnixTime::now()));
        }
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.identity.as_ref().map(|pair| pair.load().chain.clone()).unwrap_or_default()
    }

    fn publish(&self, next: impl FnOnce(&ClusterTrust, &[CertificateDer<'_>]) -> ClusterTrust) {
        let current = self.publisher.current();
        let chain = self.chain();
        let next = next(&current, &chain);
        if next.believes_portico != current.believes_portico && !chain.is_empty() {
            match &next.believes_portico {
                Belief::Refused(reason) => tracing::warn!(
                    reason,
                    "extension api servers do not believe portico's certificate about callers"
                ),
                Belief::Believed => tracing::info!(
                    "extension api servers believe portico's certificate about callers"
                ),
                Belief::Unknown => {}
            }
        }
        self.publisher.publish(next);
    }
}

/// What was said last about the watch itself, so that it is not said again.
#[derive(Debug, Default)]
struct Said {
    trouble: Option<String>,
    is_missing: bool,
}

impl Said {
    fn trouble(&mut self, trouble: Trouble) {
        if self.trouble.as_ref() != Some(&trouble.text) {
            tracing::warn!(
                error = trouble.text,
                "it cannot be followed whom the cluster believes, what was seen last stays in force"
            );
            self.trouble = Some(trouble.text);
        }
    }

    fn is_there(&mut self) {
        self.is_missing = false;
        self.recovered();
    }

    fn recovered(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("it is followed again whom the cluster believes");
        }
    }

    fn is_missing(&mut self) {
        if !std::mem::replace(&mut self.is_missing, true) {
            tracing::warn!(
                namespace = NAMESPACE,
                name = NAME,
                "the cluster has no ConfigMap that says whom it believes, what was seen last stays"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;
    use crate::control::watch::{Cluster, Config, scripted};
    use crate::runtime::lifecycle::Readiness;
    use crate::runtime::tasks;
    use crate::store::Store;
    use crate::tls::pki::Authority;

    const CLIENT_CA: &str = "client-ca-file";
    /// Less than a server may take, and more than a machine under load.
    const SOON: Duration = Duration::from_secs(8);

    fn lists(items: &Value) -> Servers {
        scripted::servers(vec![scripted::lists("ConfigMap", items)])
    }

    fn refuses(code: u16) -> Servers {
        let client = scripted::client(move |_, _| Some((code, Value::Null)));
        scripted::servers(vec![client])
    }

    /// What is known first, with what an earlier run kept.
    async fn first(servers: Servers, kept: Option<String>) -> ClusterTrust {
        let (publisher, mut trust) = Publisher::new(ClusterTrust::default());
        let kept = kept.map(|pem| [(CLIENT_CA.to_owned(), pem)].into());
        let watch = TrustWatch { servers, identity: None, publisher, kept };
        let readiness = Readiness::default();
        let _task = tasks::spawn_owned("trust", watch.run(readiness.wait_for("trust")));
        timeout(SOON, trust.changed()).await.expect("the cluster is heard");
        let known = ClusterTrust::clone(&trust.load());
        assert!(known.known);
        known
    }

    #[tokio::test]
    async fn what_was_kept_counts_where_the_cluster_says_nothing() {
        let pem = Authority::new("kept").unwrap().certificate();
        for servers in [lists(&json!([])), refuses(401), refuses(403), refuses(500)] {
            let known = first(servers, Some(pem.clone())).await;
            assert_eq!(*known.client.unwrap().pem, *pem);
        }
        assert!(first(lists(&json!([])), None).await.client.is_none());
        assert!(first(refuses(403), None).await.client.is_none());
    }

    #[tokio::test]
    async fn a_server_at_which_nothing_can_be_published_is_listened_to() {
        let pem = Authority::new("now").unwrap().certificate();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &pem).unwrap();
        let object = json!({"metadata": {"name": NAME, "resourceVersion": "1"},
                            "data": {CLIENT_CA: pem}});
        let published_authority = Some(file.path().to_owned());
        let config = Config { published_authority, ..Config::default() };
        let servers = lists(&json!([object]));
        let (cluster, mut seen) = Cluster::new(&config, servers, Store::new(), None, None).unwrap();
        let (loaded, _loading) = oneshot::channel();
        let _tasks = cluster.start(loaded, Readiness::default().wait_for("trust"));
        timeout(SOON, seen.trust.changed()).await.expect("the cluster is heard");
        assert_eq!(*seen.trust.load().client.as_ref().unwrap().pem, *pem);
    }

    #[test]
    fn a_configmap_that_is_missing_is_said_once_until_it_is_there() {
        let mut said = Said::default();
        said.is_missing();
        said.recovered();
        assert!(said.is_missing);
        said.is_there();
        assert!(!said.is_missing);
    }
}
