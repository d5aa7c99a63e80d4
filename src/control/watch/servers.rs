//! The cluster's API servers as portico asks them about the cluster, each with a client of its own.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kube::Client;
use kube::api::Api;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::pace::Pace;
use crate::runtime::snapshot::{Publisher, View};
use crate::runtime::tasks::{AbortOnDrop, spawn_owned};
use crate::upstream::{Access, ApiServer, kube_clients};

/// The servers of one cluster, at least one.
#[derive(Clone)]
pub struct Servers {
    clients: Vec<Client>,
    cluster: View<ClusterId>,
    /// Follows the authorities.
    _following: Option<Arc<AbortOnDrop>>,
    /// Tells all watches that one got through again.
    back: Arc<Notify>,
}

/// What tells one cluster from another without asking it. In a pod the URL alone does not: many
/// clusters have the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) struct ClusterId {
    /// The URL of the first server.
    pub(in crate::control) server: String,
    /// SHA-256 of the authorities that vouch for it, in base64; none where the system's do.
    pub(in crate::control) authorities: Option<String>,
}

impl ClusterId {
    /// The cluster that a kubeconfig names.
    fn of(access: &Access) -> Self {
        Self::new(access.url().to_string(), &access.authorities())
    }

    /// The cluster at this URL whose servers these authorities vouch for; empty for the system's.
    pub(in crate::control) fn new(server: String, authorities: &[u8]) -> Self {
        let digest = || BASE64_STANDARD.encode(digest(&SHA256, authorities));
        Self { server, authorities: (!authorities.is_empty()).then(digest) }
    }
}

/// What one watch asks, and when.
pub(super) struct Watched<K> {
    /// The same of each server.
    pub(super) apis: Vec<Api<K>>,
    pub(super) pace: Arc<Pace>,
}

impl fmt::Debug for Servers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "Servers({} and {} more)",
            self.cluster.load().server,
            self.clients.len().saturating_sub(1)
        )
    }
}

impl Servers {
    /// Those of the cluster that `server` is of, whose authorities are followed from now on.
    pub fn new(server: &Arc<ApiServer>) -> Result<Self, kube::Error> {
        let clients = kube_clients(server)?;
        let (publisher, cluster) = Publisher::new(ClusterId::of(&server.access()));
        let following = spawn_owned("cluster-id", follow(server.follow_access(), publisher));
        Ok(Self { _following: Some(Arc::new(following)), ..Self::of(clients, cluster) })
    }

    /// The servers behind these clients.
    pub(super) fn of(clients: Vec<Client>, cluster: View<ClusterId>) -> Self {
        Self { clients, cluster, _following: None, back: Arc::default() }
    }

    /// Which cluster it is.
    pub(in crate::control) fn cluster(&self) -> View<ClusterId> {
        self.cluster.clone()
    }

    /// The same of each server.
    pub(in crate::control) fn each<T>(&self, make: impl Fn(Client) -> T) -> Vec<T> {
        self.clients.iter().cloned().map(make).collect()
    }

    /// The same of each server, for one watch.
    pub(super) fn watched<K>(&self, make: impl Fn(Client) -> Api<K>) -> Watched<K> {
        let pace = Pace::new(Arc::clone(&self.back));
        Watched { apis: self.each(|client| make(pace.applied(client))), pace }
    }
}

/// One whose authorities are replaced stays the same cluster.
async fn follow(mut access: View<Access>, publisher: Publisher<ClusterId>) {
    while access.changed().await {
        let next = ClusterId::of(&access.load());
        if next != *publisher.current() {
            publisher.publish(next);
        }
    }
}

/// Whether another server of the same cluster may answer otherwise than one did with this code, or
/// without any.
pub(super) fn another_may_help(code: Option<u16>) -> bool {
    code.is_none_or(|code| code >= 500 || code == 429)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::files::Files;
    use crate::tls::pki::Authority;
    use crate::upstream::Source;

    #[test]
    fn another_server_may_help_when_one_is_not_well() {
        for (code, expected) in [
            (None, true),
            (Some(429), true),
            (Some(500), true),
            (Some(503), true),
            (Some(401), false),
            (Some(403), false),
            (Some(404), false),
            (Some(409), false),
        ] {
            assert_eq!(another_may_help(code), expected, "{code:?}");
        }
    }

    #[test]
    fn clusters_at_one_url_are_told_apart_by_their_authorities() {
        let of = |authority: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            let data = BASE64_STANDARD.encode(authority);
            let text = format!(
                "clusters: [{{name: c, cluster: {{server: 'https://10.96.0.1:443', \
                 certificate-authority-data: {data}}}}}]\n\
                 contexts: [{{name: x, context: {{cluster: c}}}}]\ncurrent-context: x\n"
            );
            std::fs::write(file.path(), text).unwrap();
            let source = Source::Kubeconfig(file.path().to_owned());
            let access = Access::follow(&source, &[], &mut Files::default()).unwrap();
            ClusterId::of(&access.load())
        };
        let authority = |name: &str| Authority::new(name).unwrap().certificate();
        let (a, b) = (authority("a"), authority("b"));
        let (one, other) = (of(&a), of(&b));
        assert_eq!(one.server, other.server);
        assert_ne!(one, other);
        assert_eq!(one, of(&a));
        assert_eq!(ClusterId::new(one.server, &[]).authorities, None);
    }
}
