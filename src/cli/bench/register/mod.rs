//! Registering simulated servers with the measured aggregator, and taking all of it away again.
//!
//! Everything that is registered carries the label `portico.dev/bench`, by which what a killed run
//! left behind is found.

mod api;
mod manifests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{
    APIService, APIServiceSpec, ServiceReference,
};

use super::fleet::{Fleet, Server};
use crate::model::api_service;

/// The label of all that a benchmark registers.
pub const LABEL: &str = "portico.dev/bench";
const LABEL_VALUE: &str = "discovery";
/// The groups come after those of the cluster itself, before custom resources.
const GROUP_PRIORITY: i32 = 1100;
/// The port of a Service that has endpoints.
const SERVICE_PORT: i32 = 443;

/// Where servers are registered.
#[derive(Clone)]
pub enum Place {
    /// A directory of manifests that the aggregator follows.
    Manifests(PathBuf),
    /// The aggregator's own API.
    Api(kube::Client),
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Manifests(directory) => write!(f, "Manifests({})", directory.display()),
            Self::Api(_) => write!(f, "Api"),
        }
    }
}

impl Place {
    /// Makes sure that nothing of another run is in the way.
    pub async fn check(&self) -> anyhow::Result<()> {
        match self {
            Self::Manifests(directory) => manifests::check(directory),
            Self::Api(client) => api::check(client).await,
        }
    }

    /// Makes the namespace if there is none; in manifests it needs no object.
    pub async fn make_namespace(&self, namespace: &str) -> anyhow::Result<()> {
        match self {
            Self::Manifests(_) => Ok(()),
            Self::Api(client) => api::make_namespace(client, namespace).await,
        }
    }

    /// Registers these servers; on an error some may be registered.
    pub async fn add(&self, fleet: &Fleet, servers: &[Arc<Server>]) -> anyhow::Result<()> {
        match self {
            Self::Manifests(directory) => manifests::add(directory, fleet, servers),
            Self::Api(client) => api::add(client, fleet, servers).await,
        }
    }

    /// Takes these servers away again, which were registered in one call.
    pub async fn remove(&self, fleet: &Fleet, servers: &[Arc<Server>]) -> anyhow::Result<()> {
        match self {
            Self::Manifests(directory) => manifests::remove(directory, servers),
            Self::Api(client) => api::remove(client, fleet, servers).await,
        }
    }

    /// Why the target does not use one of the registered servers, if it tells.
    pub async fn unavailable(&self) -> anyhow::Result<Option<String>> {
        match self {
            Self::Manifests(_) => Ok(None),
            Self::Api(client) => api::unavailable(client).await,
        }
    }

    /// Takes away everything that any run has registered, and returns how many objects (or files)
    /// that were.
    pub async fn clean_up(&self) -> anyhow::Result<usize> {
        match self {
            Self::Manifests(directory) => manifests::clean_up(directory),
            Self::Api(client) => api::clean_up(client).await,
        }
    }
}

/// The server's APIServices, best version first, whose Service has this port.
fn api_services(fleet: &Fleet, server: &Server, port: i32) -> Vec<APIService> {
    let versions = fleet.size().version_names();
    // The best version has the highest priority.
    let priorities = (1..=i32::try_from(fleet.size().versions).unwrap_or(i32::MAX)).rev();
    versions
        .zip(priorities)
        .map(|(version, version_priority)| APIService {
            metadata: metadata(api_service::name(server.group(), &version)),
            spec: Some(APIServiceSpec {
                ca_bundle: Some(ByteString(fleet.ca_bundle().as_bytes().to_vec())),
                group: Some(server.group().to_owned()),
                group_priority_minimum: GROUP_PRIORITY,
                insecure_skip_tls_verify: None,
                service: Some(ServiceReference {
                    name: Some(server.service()),
                    namespace: Some(fleet.namespace().to_owned()),
                    port: Some(port),
                }),
                version: Some(version),
                version_priority,
            }),
            status: None,
        })
        .collect()
}

fn metadata(name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        labels: Some(BTreeMap::from([(LABEL.to_owned(), LABEL_VALUE.to_owned())])),
        ..ObjectMeta::default()
    }
}
