//! In front of kube-apiserver: the objects of the cluster are the objects in the store.
//!
//! One task follows all watches and is the only one that writes what they show. Services and
//! EndpointSlices are watched in the namespaces that APIServices name, whole and trimmed, so that
//! none is missed when an APIService names another one. What was seen last stays when the core API
//! server goes away; with a data directory it outlives a restart, too.

mod feed;
mod follower;
mod held;
mod kept;
mod mirror;
mod pace;
mod publish;
mod scope;
#[cfg(test)]
pub(in crate::control) mod scripted;
mod servers;
mod trim;
mod trust;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::model::availability::Reported;
use crate::runtime::lifecycle::ReadyGuard;
use crate::runtime::snapshot::{Publisher, View};
use crate::runtime::tasks::{self, AbortOnDrop};
use crate::store::Store;
use crate::tls::KeyPair;
use crate::tls::cluster_trust::ClusterTrust;

pub(in crate::control) use feed::explain;
pub use servers::Servers;

use follower::Follower;
use kept::Kept;
use publish::Publishing;
use trust::TrustWatch;

/// What was kept is used when the core API server does not answer within this time.
const CORE_WAIT: Duration = Duration::from_secs(3);

/// What is done in the cluster besides watching it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The authority that the cluster is told to believe (`--publish-front-proxy-ca`).
    pub published_authority: Option<PathBuf>,
    /// Where the Lease is of who writes conditions of APIServices (`--write-availability`); nobody
    /// does when not given.
    pub lease_namespace: Option<String>,
}

/// The watches, before they are started.
#[derive(Debug)]
pub struct Cluster {
    follower: Follower,
    trust: TrustWatch,
    publishing: Option<Publishing>,
}

/// What the watches see besides the store's objects.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Whom the cluster's servers believe.
    pub trust: View<ClusterTrust>,
    /// What kube-apiserver says of APIServices.
    pub reported: View<Reported>,
}

impl Cluster {
    /// Watches that put what they see into `store`, once started.
    /// What is seen last is kept in `data_dir`; `identity` is portico's own pair as front proxy.
    pub fn new(
        config: &Config,
        servers: Servers,
        store: Store,
        data_dir: Option<&Path>,
        identity: Option<View<KeyPair>>,
    ) -> io::Result<(Self, Seen)> {
        let kept =
            data_dir.map(|directory| Kept::open(directory, servers.cluster())).transpose()?;
        let state = kept.as_ref().and_then(Kept::load).unwrap_or_default();
        let (publisher, trust) = Publisher::new(ClusterTrust::default());
        let (reports, reported) = Publisher::new(Reported::new());
        let trust_watch = TrustWatch {
            servers: servers.clone(),
            identity,
            publisher,
            kept: Some(state.trust).filter(|data| !data.is_empty()),
        };
        let publishing = |file| Publishing::new(file, &servers, trust.clone());
        let publishing = config.published_authority.clone().map(publishing);
        let follower = Follower::new(servers, store, reports, (kept, state.objects, trust.clone()));
        Ok((Self { follower, trust: trust_watch, publishing }, Seen { trust, reported }))
    }

    /// Starts the watches. Says to `loaded` when all objects are in the store for the first time;
    /// releases `ready` when it is known whom the cluster believes.
    pub fn start(self, loaded: oneshot::Sender<()>, ready: ReadyGuard) -> Vec<AbortOnDrop> {
        let mut tasks = vec![
            tasks::spawn_owned("core-watches", self.follower.run(loaded)),
            tasks::spawn_owned("core-trust", self.trust.run(ready)),
        ];
        let publish = |it: Publishing| tasks::spawn_owned("publish-authority", it.run());
        tasks.extend(self.publishing.map(publish));
        tasks
    }
}
