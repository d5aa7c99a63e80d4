//! Follows the ConfigMap in which kube-apiserver publishes whom the cluster's servers believe.

use std::collections::BTreeMap;
use std::path::PathBuf;
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
use super::publish::Publishing;
use super::servers::Servers;
use crate::runtime::lifecycle::ReadyGuard;
use crate::runtime::snapshot::{Publisher, View, replaced};
use crate::tls::KeyPair;
use crate::tls::cluster_trust::{Belief, ClusterTrust, NAME, NAMESPACE};

/// How often is looked whether portico's certificate still counts and whether the authority to be
/// published is: upstream's controller looks as often.
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
    pub(super) published_authority: Option<PathBuf>,
}

impl TrustWatch {
    /// Follows for ever; `ready` is released when something is known.
    pub(super) async fn run(mut self, ready: ReadyGuard) {
        let object = |client| Api::<ConfigMap>::namespaced(client, NAMESPACE);
        let publishing = |file| Publishing::new(file, self.servers.each(object));
        let mut publishing = self.published_authority.take().map(publishing);
        let watched = self.servers.watched(object);
        let mut events = pin!(feed(watched, &format!("metadata.name={NAME}")));
        let patience = Instant::now() + CORE_WAIT;
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut identity = self.identity.clone();
        let mut said = Said::default();
        let mut ready = Some(ready);
        let mut is_listed = false;
        loop {
            let again = publishing.as_ref().and_then(Publishing::again).unwrap_or(patience);
            let is_due = publishing.as_ref().is_some_and(|it| it.again().is_some());
            tokio::select! {
                Some(event) = events.next() => match event {
                    Ok(Some(Event::Init)) => is_listed = false,
                    Ok(Some(Event::InitApply(object) | Event::Apply(object))) => {
                        is_listed = true;
                        said.recovered();
                        self.read(&object.data.unwrap_or_default());
                        look.reset_immediately();
                    }
                    Ok(Some(Event::InitDone)) => {
                        said.recovered();
                        if !is_listed {
                            said.is_missing();
                            self.publish(|trust, chain| trust.missing(chain, UnixTime::now()));
                        }
                    }
                    Ok(Some(Event::Delete(_))) => said.is_missing(),
                    Ok(None) => said.recovered(),
                    Err(trouble) => {
                        if trouble.is_forbidden {
                            self.publish(|trust, chain| trust.missing(chain, UnixTime::now()));
                        } else {
                            self.use_kept();
                        }
                        said.trouble(trouble);
                    }
                },
                () = replaced(&mut identity) => self.look(),
                () = sleep_until(patience), if self.kept.is_some() => self.use_kept(),
                _ = look.tick() => {
                    self.look();
                    if let Some(publishing) = &mut publishing {
                        publishing.look().await;
                    }
                }
                () = sleep_until(again), if is_due => if let Some(publishing) = &mut publishing {
                    publishing.look().await;
                },
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

    fn recovered(&mut self) {
        self.is_missing = false;
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
