//! The cluster's API servers as portico asks them about the cluster, each with a client of its own.

use std::fmt;
use std::sync::Arc;

use kube::Client;
use kube::api::Api;
use tokio::sync::Notify;

use super::pace::Pace;
use crate::upstream::{ApiServer, kube_clients};

/// The servers of one cluster, at least one.
#[derive(Clone)]
pub struct Servers {
    clients: Vec<Client>,
    url: String,
    /// Tells all watches that one got through again.
    back: Arc<Notify>,
}

/// What one watch asks, and when.
pub(super) struct Watched<K> {
    /// The same of each server.
    pub(super) apis: Vec<Api<K>>,
    pub(super) pace: Arc<Pace>,
}

impl fmt::Debug for Servers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Servers({} and {} more)", self.url, self.clients.len().saturating_sub(1))
    }
}

impl Servers {
    /// Those of the cluster that `server` is of, as its kubeconfig has them now.
    pub fn new(server: &Arc<ApiServer>) -> Result<Self, kube::Error> {
        let (clients, url) = (kube_clients(server)?, server.access().url().to_string());
        Ok(Self { clients, url, back: Arc::default() })
    }

    /// The URL of the first, which tells one cluster from another.
    pub(in crate::control) fn url(&self) -> &str {
        &self.url
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
