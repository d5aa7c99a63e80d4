//! The example in `config/` is read as the program reads it.

use std::path::Path;

use portico::control::manifests::Manifests;
use portico::model::endpoints::{EndpointRouting, Targets, resolve};
use portico::model::fault::ServicePort;
use portico::store::{Key, Kind, Object, Store};

#[tokio::test]
async fn the_example_registers_an_api_service_with_an_endpoint() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/manifests");
    let store = Store::new();
    let _manifests = Manifests::load(directory, store.clone()).await.unwrap();
    assert!(store.get(&Key::api_service("v1beta1.metrics.k8s.io")).is_some());

    let service = store.get(&Key::new(Kind::Service, "kube-system", "metrics-server")).unwrap();
    let (slices, _) = store.list(Kind::EndpointSlice);
    let (Object::Service(service), [slice]) = (&service.object, &slices[..]) else {
        panic!("one Service and one EndpointSlice");
    };
    let Object::EndpointSlice(slice) = &slice.object else { panic!("an EndpointSlice") };
    let named =
        ServicePort { namespace: "kube-system".into(), name: "metrics-server".into(), port: 443 };
    let targets = resolve(&named, Some(service), &[slice], EndpointRouting::Endpoints).unwrap();
    assert_eq!(targets, Targets::Addresses(vec!["127.0.0.1:10250".parse().unwrap()]));
}
