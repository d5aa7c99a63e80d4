//! What is kept of a cluster's objects: what routing reads, and nothing else.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{
    APIService, APIServiceCondition,
};

use crate::model::availability::AVAILABLE;
use crate::model::endpoints::SERVICE_NAME_LABEL;

/// Annotations that portico reads begin so.
const OWN_ANNOTATIONS: &str = "portico.dev/";

/// What kube-apiserver last wrote about the availability.
pub(super) fn reported(object: &APIService) -> Option<APIServiceCondition> {
    let conditions = object.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == AVAILABLE).cloned()
}

/// An APIService without labels, foreign annotations and its status.
pub(super) fn api_service(object: APIService) -> APIService {
    let annotations =
        kept(object.metadata.annotations.as_ref(), |key| key.starts_with(OWN_ANNOTATIONS));
    let metadata = ObjectMeta { annotations, ..named(object.metadata) };
    APIService { metadata, spec: object.spec, status: None }
}

/// A Service's type, addresses and ports.
pub(super) fn service(object: Service) -> Service {
    let spec = object.spec.map(|spec| ServiceSpec {
        cluster_ip: spec.cluster_ip,
        cluster_ips: spec.cluster_ips,
        external_name: spec.external_name,
        ip_families: spec.ip_families,
        ports: spec.ports,
        type_: spec.type_,
        ..ServiceSpec::default()
    });
    Service { metadata: named(object.metadata), spec, status: None }
}

/// An EndpointSlice's addresses, their conditions, its ports and whose it is.
pub(super) fn endpoint_slice(object: EndpointSlice) -> EndpointSlice {
    let labels = kept(object.metadata.labels.as_ref(), |key| key == SERVICE_NAME_LABEL);
    let endpoint = |endpoint: Endpoint| Endpoint {
        addresses: endpoint.addresses,
        conditions: endpoint.conditions,
        ..Endpoint::default()
    };
    EndpointSlice {
        address_type: object.address_type,
        endpoints: object.endpoints.into_iter().map(endpoint).collect(),
        metadata: ObjectMeta { labels, ..named(object.metadata) },
        ports: object.ports,
    }
}

fn named(metadata: ObjectMeta) -> ObjectMeta {
    ObjectMeta { name: metadata.name, namespace: metadata.namespace, ..ObjectMeta::default() }
}

fn kept(
    map: Option<&BTreeMap<String, String>>,
    is_kept: impl Fn(&str) -> bool,
) -> Option<BTreeMap<String, String>> {
    let kept = map.into_iter().flatten().filter(|(key, _)| is_kept(key));
    let kept: BTreeMap<_, _> = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
    (!kept.is_empty()).then_some(kept)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_routing_reads_is_kept_and_the_rest_is_not() {
        let metadata = json!({
            "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "managedFields": [],
            "labels": {"kubernetes.io/service-name": "s", "x": "y"},
            "annotations": {"portico.dev/hold-for": "1m", "x": "y"},
        });
        let spec = json!({"type": "ClusterIP", "clusterIP": "10.0.0.1", "ports": [{"port": 443}],
                          "selector": {"app": "a"}, "sessionAffinity": "None"});
        let status = json!({"conditions": [
            {"type": "Other", "status": "True"},
            {"type": "Available", "status": "False", "reason": "MissingEndpoints"},
        ]});
        let parse = |spec| json!({"metadata": metadata, "spec": spec, "status": status});
        let of_api_service: APIService =
            serde_json::from_value(parse(json!({"group": "g", "groupPriorityMinimum": 1,
                "versionPriority": 1})))
            .unwrap();
        assert_eq!(reported(&of_api_service).unwrap().reason.unwrap(), "MissingEndpoints");
        let kept = serde_json::to_value(api_service(of_api_service)).unwrap();
        let names = json!({"name": "a", "namespace": "n"});
        let mut expected = names.clone();
        expected["annotations"] = json!({"portico.dev/hold-for": "1m"});
        assert_eq!((&kept["metadata"], kept.get("status")), (&expected, None));
        let of_service = json!({"metadata": metadata, "spec": spec});
        let kept =
            serde_json::to_value(service(serde_json::from_value(of_service).unwrap())).unwrap();
        let spec = json!({"type": "ClusterIP", "clusterIP": "10.0.0.1", "ports": [{"port": 443}]});
        assert_eq!((&kept["metadata"], &kept["spec"]), (&names, &spec));
        let of_slice = json!({
            "metadata": metadata, "addressType": "IPv4", "ports": [{"port": 1}],
            "endpoints": [{"addresses": ["10.0.0.2"], "conditions": {"ready": true},
                           "nodeName": "x", "targetRef": {"kind": "Pod"}}],
        });
        let kept = serde_json::to_value(endpoint_slice(serde_json::from_value(of_slice).unwrap()))
            .unwrap();
        let mut expected = names;
        expected["labels"] = json!({"kubernetes.io/service-name": "s"});
        assert_eq!(kept["metadata"], expected);
        let endpoint = json!({"addresses": ["10.0.0.2"], "conditions": {"ready": true}});
        assert_eq!(kept["endpoints"], json!([endpoint]));
    }
}
