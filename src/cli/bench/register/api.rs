//! Registration by the Kubernetes API of the aggregator, as anybody registers an extension server.
//!
//! The servers are on loopback, which kube-apiserver refuses in `EndpointSlices`: hence Services of
//! type `ExternalName` for `localhost`, with the server's own port in Service and APIService. With
//! `--enable-aggregator-routing` kube-apiserver refuses those, too; the run tells what it says then.

use std::fmt::Debug;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Service, ServicePort, ServiceSpec};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{LABEL, LABEL_VALUE, api_services, metadata};
use crate::cli::bench::fleet::{Fleet, Server};
use crate::model::api_service::available;

/// Requests under way at a time.
const IN_FLIGHT_MAX: usize = 16;

pub(super) async fn check(client: &Client) -> anyhow::Result<()> {
    let left = labelled::<APIService>(&Api::all(client.clone())).await?;
    if let Some(left) = left.first() {
        bail!(
            "APIService {} is there: another benchmark runs, or one was killed and --clean-up \
             removes what it left",
            left.name_any()
        );
    }
    // Before anything is made: whether there is an API for them at all.
    labelled::<Service>(&Api::all(client.clone())).await.map(drop)
}

pub(super) async fn make_namespace(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let found = namespaces.get_opt(namespace).await.map_err(said);
    let found = found.with_context(|| format!("cannot look for the namespace {namespace}"))?;
    if found.is_none() {
        let metadata = metadata(namespace.to_owned());
        create_all(&namespaces, vec![Namespace { metadata, ..Namespace::default() }]).await?;
    }
    Ok(())
}

pub(super) async fn add(
    client: &Client,
    fleet: &Fleet,
    servers: &[Arc<Server>],
) -> anyhow::Result<()> {
    // Services first, so that no APIService is ever without its own.
    let services: Api<Service> = Api::namespaced(client.clone(), fleet.namespace());
    create_all(&services, servers.iter().map(|server| service(fleet, server)).collect()).await?;
    create_all(&Api::all(client.clone()), registrations(fleet, servers)).await
}

pub(super) async fn remove(
    client: &Client,
    fleet: &Fleet,
    servers: &[Arc<Server>],
) -> anyhow::Result<()> {
    delete_all(client, registrations(fleet, servers)).await?;
    delete_all(client, servers.iter().map(|server| service(fleet, server)).collect()).await
}

pub(super) async fn clean_up(client: &Client) -> anyhow::Result<usize> {
    let api_services = labelled::<APIService>(&Api::all(client.clone())).await?;
    let services = labelled::<Service>(&Api::all(client.clone())).await?;
    let namespaces = labelled::<Namespace>(&Api::all(client.clone())).await?;
    let removed = api_services.len() + services.len() + namespaces.len();
    delete_all(client, api_services).await?;
    delete_all(client, services).await?;
    delete_all(client, namespaces).await?;
    Ok(removed)
}

/// Why the target does not use one of them, as its condition has it.
pub(super) async fn unavailable(client: &Client) -> anyhow::Result<Option<String>> {
    let api_services = labelled::<APIService>(&Api::all(client.clone())).await?;
    let why = api_services.iter().find_map(|object| {
        let down = available(object).filter(|condition| condition.status != "True")?;
        let [reason, message] =
            [&down.reason, &down.message].map(|text| text.as_deref().unwrap_or("no word"));
        Some(format!("{} is not available: {reason}: {message}", object.name_any()))
    });
    Ok(why)
}

/// The server's APIServices; its Service has the same port.
fn registrations(fleet: &Fleet, servers: &[Arc<Server>]) -> Vec<APIService> {
    let of = |server: &Arc<Server>| api_services(fleet, server, i32::from(server.address().port()));
    servers.iter().flat_map(of).collect()
}

fn service(fleet: &Fleet, server: &Server) -> Service {
    let mut metadata = metadata(server.service());
    metadata.namespace = Some(fleet.namespace().to_owned());
    let port = ServicePort {
        name: Some("https".to_owned()),
        port: i32::from(server.address().port()),
        ..ServicePort::default()
    };
    let spec = ServiceSpec {
        type_: Some("ExternalName".to_owned()),
        external_name: Some("localhost".to_owned()),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    Service { metadata, spec: Some(spec), ..Service::default() }
}

/// What the objects of the API have in common.
trait Object:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync
{
}

impl<K> Object for K where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync
{
}

/// All that carry the label, but for those that are going already.
async fn labelled<K: Object>(api: &Api<K>) -> anyhow::Result<Vec<K>> {
    let chosen = ListParams::default().labels(&format!("{LABEL}={LABEL_VALUE}"));
    let list = api.list(&chosen).await;
    let list = match list {
        Err(kube::Error::Api(status)) if status.is_not_found() => bail!(
            "the target has no API for {}s: register by a file that it follows, with --manifests \
             DIR",
            K::kind(&())
        ),
        list => list.map_err(said).with_context(|| format!("cannot list {}", K::plural(&())))?,
    };
    let mut found = list.items;
    found.retain(|object| object.meta().deletion_timestamp.is_none());
    Ok(found)
}

async fn create_all<K: Object>(api: &Api<K>, objects: Vec<K>) -> anyhow::Result<()> {
    let created = objects.into_iter().map(|object| async move {
        let name = object.name_any();
        let what = || format!("cannot create {} {name}", K::kind(&()));
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => bail!(
                "{} {name} is there already, and not this benchmark's; --clean-up removes what a \
                 killed one left",
                K::kind(&())
            ),
            Err(error) => Err(said(error)).with_context(what),
        }
    });
    at_a_time(created).await
}

/// Those that are gone already are no failure.
async fn delete_all<K: Object>(client: &Client, objects: Vec<K>) -> anyhow::Result<()> {
    let kind = K::kind(&());
    let resource = kube::api::ApiResource::erase::<K>(&());
    let deleted = objects.into_iter().map(|object| {
        let client = client.clone();
        let resource = &resource;
        let kind = &kind;
        async move {
            let api: Api<kube::api::DynamicObject> = match object.namespace() {
                Some(namespace) => Api::namespaced_with(client, &namespace, resource),
                None => Api::all_with(client, resource),
            };
            let name = object.name_any();
            match api.delete(&name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                Err(error) => {
                    Err(said(error)).with_context(|| format!("cannot delete {kind} {name}"))
                }
                Ok(_) => Ok(()),
            }
        }
    });
    at_a_time(deleted).await
}

/// The error in one line: the library prints a status with all of its fields, and twice.
fn said(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => {
            anyhow!("answered {} {}: {}", status.code, status.reason, status.message)
        }
        error => error.into(),
    }
}

/// All of them, a bounded number under way; the first failure ends it.
async fn at_a_time<F>(requests: impl Iterator<Item = F>) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    stream::iter(requests).buffer_unordered(IN_FLIGHT_MAX).try_collect::<()>().await
}
