//! Where the objects are from: an API server, or a directory of manifests.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use rustls::pki_types::UnixTime;
use serde::Deserialize;

use super::api::Api;
use super::certificate::Certificate;
use super::facts::{Sought, TrustFacts};
use crate::control::manifests::Manifests;
use crate::model::endpoints::{SERVICE_NAME_LABEL, service_name_of, slices_of};
use crate::model::fault::ServicePort;
use crate::store::{Key, Kind, Object, Store};
use crate::tls::cluster_trust::{self, ClusterTrust};
use crate::tls::{KeyPair, certificates};

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// The objects.
pub(super) enum Source<'a> {
    /// Of an API server.
    Api(&'a Api),
    /// Of a directory, named so.
    Manifests(Store, String),
}

/// A list, which is all that these lists have in common.
#[derive(Deserialize)]
struct List<T> {
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

/// Reads a directory once, as `portico run --manifests` does.
pub(super) async fn manifests(directory: &Path) -> anyhow::Result<Source<'static>> {
    let store = Store::new();
    let loaded = Manifests::load(directory.to_owned(), store.clone()).await;
    loaded.with_context(|| format!("--manifests {}", directory.display()))?;
    Ok(Source::Manifests(store, directory.display().to_string()))
}

impl Source<'_> {
    /// As people know it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Api(api) => &api.url,
            Self::Manifests(_, directory) => directory,
        }
    }

    /// All `APIServices`.
    pub(super) async fn api_services(&self) -> anyhow::Result<Vec<APIService>> {
        match self {
            Self::Api(api) => Ok(api.require::<List<APIService>>(API_SERVICES).await?.items),
            Self::Manifests(store, _) => {
                let (stored, _) = store.list(Kind::ApiService);
                let objects = stored.iter().filter_map(|one| one.object.as_api_service());
                Ok(objects.cloned().collect())
            }
        }
    }

    /// The Service that an APIService names.
    pub(super) async fn service(&self, wanted: &ServicePort) -> Sought<Service> {
        let ServicePort { namespace, name, .. } = wanted;
        match self {
            Self::Manifests(store, _) => {
                match store.get(&Key::new(Kind::Service, namespace, name)).as_deref() {
                    Some(stored) => match &stored.object {
                        Object::Service(service) => Sought::Found((**service).clone()),
                        _ => Sought::Missing,
                    },
                    None => Sought::Missing,
                }
            }
            Self::Api(api) => {
                let path = format!("/api/v1/namespaces/{namespace}/services/{name}");
                let found = api.read(&path).await;
                // Portico's own API has no Services; one that is gone is told by its Status.
                if matches!(found, Sought::Missing)
                    && matches!(
                        api.read::<List<Service>>("/api/v1/services?limit=1").await,
                        Sought::Missing
                    )
                {
                    return Sought::Unknown(NO_SERVICES.to_owned());
                }
                found
            }
        }
    }

    /// The `EndpointSlices` of a Service; made of its Endpoints where there are none.
    pub(super) async fn slices(&self, wanted: &ServicePort) -> Sought<Vec<EndpointSlice>> {
        let ServicePort { namespace, name, .. } = wanted;
        match self {
            Self::Manifests(store, _) => Sought::Found(stored_slices(store, wanted)),
            Self::Api(api) => {
                let path = format!(
                    "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices\
                     ?labelSelector={SERVICE_NAME_LABEL}%3D{name}"
                );
                match api.read::<List<EndpointSlice>>(&path).await {
                    Sought::Found(list) => Sought::Found(list.items),
                    Sought::Missing => Sought::Unknown(NO_SERVICES.to_owned()),
                    Sought::Unknown(why) => Sought::Unknown(why),
                }
            }
        }
    }
}

const NO_SERVICES: &str =
    "this API server has no Services; name portico's directory with --manifests";

fn stored_slices(store: &Store, wanted: &ServicePort) -> Vec<EndpointSlice> {
    let (stored, _) = store.list(Kind::EndpointSlice);
    let of_service = stored.iter().filter_map(|one| match &one.object {
        Object::EndpointSlice(slice) => Some(&**slice),
        _ => None,
    });
    let slices: Vec<EndpointSlice> = of_service
        .filter(|slice| {
            slice.metadata.namespace.as_deref() == Some(&*wanted.namespace)
                && service_name_of(slice) == Some(&*wanted.name)
        })
        .cloned()
        .collect();
    if !slices.is_empty() {
        return slices;
    }
    let endpoints = store.get(&Key::new(Kind::Endpoints, &wanted.namespace, &wanted.name));
    match endpoints.as_deref().map(|stored| &stored.object) {
        Some(Object::Endpoints(endpoints)) => slices_of(endpoints),
        _ => Vec::new(),
    }
}

/// Whom extension servers of the cluster believe, as the cluster tells them.
pub(super) async fn cluster_trust(api: Option<&Api>, pair: Option<&KeyPair>) -> Sought<TrustFacts> {
    let Some(api) = api else { return Sought::Unknown("no API server is named".to_owned()) };
    let (namespace, name) = (cluster_trust::NAMESPACE, cluster_trust::NAME);
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/{name}");
    match api.read::<ConfigMap>(&path).await {
        Sought::Found(map) => Sought::Found(trust_of(&map, pair, UnixTime::now())),
        Sought::Missing => Sought::Missing,
        Sought::Unknown(why) => Sought::Unknown(why),
    }
}

fn trust_of(map: &ConfigMap, pair: Option<&KeyPair>, now: UnixTime) -> TrustFacts {
    let nothing = BTreeMap::new();
    let data = map.data.as_ref().unwrap_or(&nothing);
    let (trust, faults) = ClusterTrust::default().read(data, &[], now);
    let published = trust.request_header.as_ref();
    let vouched = pair.map(|pair| {
        let authorities = published.ok_or_else(|| "there is none".to_owned())?;
        authorities.authority.verify(&pair.chain, now).map_err(|error| error.to_string())
    });
    // They were read before, so that nothing is lost here.
    let listed = published.and_then(|it| certificates(cluster_trust::NAME, it.pem.as_bytes()).ok());
    TrustFacts {
        authorities: listed.map(|all| Certificate::read_all(&all)).unwrap_or_default(),
        vouched,
        front_proxies: trust.front_proxies,
        faults: faults.iter().map(ToString::to_string).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::pki::{Authority, Purpose};

    fn read(data: &serde_json::Value, pair: Option<&KeyPair>) -> TrustFacts {
        let map = serde_json::from_value(serde_json::json!({ "data": data })).unwrap();
        trust_of(&map, pair, UnixTime::now())
    }

    #[test]
    fn the_configmap_is_read_as_extension_servers_read_it() {
        let authority = Authority::new("ca").unwrap();
        let pair = authority.sign("proxy", Purpose::Client(&[])).unwrap().key_pair().unwrap();
        let mut data = serde_json::json!({
            "requestheader-client-ca-file": authority.certificate(),
            "requestheader-allowed-names": "[\"front-proxy\"]",
            "requestheader-username-headers": "[\"X-Remote-User\"]",
            "requestheader-uid-headers": "",
        });
        let trust = read(&data, Some(&pair));
        assert_eq!((trust.authorities.len(), trust.vouched), (1, Some(Ok(()))));
        assert_eq!(trust.front_proxies.allowed_names, ["front-proxy"]);
        assert!(trust.front_proxies.uid_headers.is_empty() && trust.faults.is_empty());
        let other = Authority::new("other").unwrap().certificate();
        data["requestheader-client-ca-file"] = other.into();
        assert!(read(&data, Some(&pair)).vouched.unwrap().unwrap_err().contains("UnknownIssuer"));
        assert_eq!(read(&data, None).vouched, None);
        assert_eq!(read(&serde_json::Value::Null, None), TrustFacts::default());
    }

    #[test]
    fn what_is_broken_in_the_configmap_is_named_and_never_taken_for_empty() {
        let pem = Authority::new("ca").unwrap().certificate();
        let names = "requestheader-allowed-names";
        let usernames = "[\"X-Remote-User\"]";
        for (data, key) in [
            (
                serde_json::json!({
                    "requestheader-client-ca-file": pem,
                    "requestheader-username-headers": usernames,
                    names: "front-proxy",
                }),
                names,
            ),
            (
                serde_json::json!({
                    "requestheader-client-ca-file": "MIIB",
                    "requestheader-username-headers": usernames,
                }),
                "requestheader-client-ca-file",
            ),
        ] {
            let trust = read(&data, None);
            assert!(trust.faults.len() == 1 && trust.faults[0].contains(key), "{trust:?}");
            assert_eq!(trust.authorities.is_empty(), key != names);
            assert_eq!(trust.front_proxies.username_headers.is_empty(), key == names);
        }
    }
}
