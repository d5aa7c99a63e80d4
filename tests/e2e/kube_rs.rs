//! kube-rs reads the merged discovery: both its ways find the same groups, versions and kinds.

use std::convert::Infallible;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::Scope;
use kube::{Client, Config, Discovery};
use portico::aggregate::aggregator;
use serde_json::{Value, json};

use crate::backend::{HTTP2, Listener};
use crate::pki::{NAMESPACE, PKI, backend_tls};
use crate::rig::{Rig, Setup, eventually, service, slices, within};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A server that knows its aggregated documents, and no other path.
fn discovered(name: &str) -> Listener {
    Listener::tls(backend_tls(name, HTTP2), |stream, _| async {
        let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request)) });
        let http = auto::Builder::new(TokioExecutor::new());
        if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
            tracing::debug!(error, "backend connection ended");
        }
    })
}

fn answer(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let version = |version: &str, kinds: &[(&str, &str)]| {
        let resources = kinds.iter().map(|(resource, kind)| {
            json!({
                "resource": resource,
                "responseKind": {"group": "", "version": "", "kind": kind},
                "scope": "Namespaced",
                "singularResource": kind.to_lowercase(),
                "verbs": ["get", "list"],
            })
        });
        json!({"version": version, "resources": resources.collect::<Value>(), "freshness": "Current"})
    };
    let items = match request.uri().path() {
        "/api" => json!([{"metadata": {}, "versions": [version("v1", &[("pods", "Pod")])]}]),
        "/apis" => json!([
            {"metadata": {"name": "zoo.example.com"}, "versions": [
                version("v1", &[("lions", "Lion"), ("zebras", "Zebra")]),
                version("v1beta1", &[("lions", "Lion")]),
            ]},
            {"metadata": {"name": "ant.example.com"}, "versions": [version("v1alpha1", &[("ants", "Ant")])]},
        ]),
        _ => return Response::builder().status(404).body(Full::default()).unwrap(),
    };
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
    let response = Response::builder().header("content-type", AGGREGATED);
    response.body(Full::from(list.to_string())).unwrap()
}

fn api_service(group: &str, version: &str, name: &str) -> String {
    let bundle = BASE64_STANDARD.encode(PKI.authority.certificate());
    format!(
        "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\n\
         metadata: {{name: {version}.{group}}}\n\
         spec:\n  group: \"{group}\"\n  version: {version}\n  groupPriorityMinimum: 1000\n  \
         versionPriority: 10\n  caBundle: {bundle}\n  \
         service: {{namespace: {NAMESPACE}, name: {name}}}\n---\n"
    )
}

/// kube-rs' client as alice.
async fn client(rig: &Rig) -> Client {
    let data = |text: &str| BASE64_STANDARD.encode(text);
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "rig", "cluster": {
            "server": format!("https://localhost:{}", rig.address.port()),
            "certificate-authority-data": data(&PKI.authority.certificate()),
        }}],
        "users": [{"name": "alice", "user": {
            "client-certificate-data": data(&PKI.alice.certificate),
            "client-key-data": data(&PKI.alice.key),
        }}],
        "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": "alice"}}],
        "current-context": "rig",
    });
    let kubeconfig = Kubeconfig::from_yaml(&kubeconfig.to_string()).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    Client::try_from(config).unwrap()
}

/// `group: preferred version; all versions; kinds of the preferred one`, by name.
fn seen(discovery: &Discovery) -> Vec<String> {
    let group = |group: &kube::discovery::ApiGroup| {
        let preferred = group.preferred_version_or_latest();
        let mut kinds: Vec<String> = group
            .versioned_resources(preferred)
            .iter()
            .map(|(resource, found)| {
                assert!(
                    found.scope == Scope::Namespaced || group.name() == "apiregistration.k8s.io"
                );
                format!("{}={}", resource.plural, resource.kind)
            })
            .collect();
        kinds.sort();
        let versions: Vec<&str> = group.versions().collect();
        format!("{}: {preferred}; {}; {}", group.name(), versions.join(" "), kinds.join(" "))
    };
    discovery.groups_alphabetical().into_iter().map(group).collect()
}

#[tokio::test]
async fn kube_rs_finds_the_same_by_the_aggregated_and_by_the_legacy_documents() {
    let backends = [discovered("core"), discovered("animals")];
    let mut setup = Setup::new().edit(|_, tuning| tuning.discovery = aggregator::Config::default());
    let apis: [(&str, &[(&str, &str)]); 2] = [
        ("core", &[("", "v1")]),
        (
            "animals",
            &[
                ("zoo.example.com", "v1"),
                ("zoo.example.com", "v1beta1"),
                ("ant.example.com", "v1alpha1"),
            ],
        ),
    ];
    for ((name, versions), backend) in apis.iter().zip(&backends) {
        let mut text = service(name) + &slices(name, &[backend.address]);
        text.extend(versions.iter().map(|(group, version)| api_service(group, version, name)));
        setup = setup.manifest(&format!("{name}.yaml"), &text);
    }
    let rig = setup.start().await;
    let client = client(&rig).await;
    let expected = [
        "apiregistration.k8s.io: v1; v1; apiservices=APIService",
        "ant.example.com: v1alpha1; v1alpha1; ants=Ant",
        "zoo.example.com: v1; v1 v1beta1; lions=Lion zebras=Zebra",
    ];
    let complete = |seen: &[String]| expected.iter().all(|line| seen.iter().any(|s| s == line));
    eventually("aggregated discovery is complete", async || {
        let found = Discovery::new(client.clone()).run_aggregated().await;
        found.is_ok_and(|found| complete(&seen(&found)))
    })
    .await;
    let aggregated =
        within("aggregated", Discovery::new(client.clone()).run_aggregated()).await.unwrap();
    let legacy = within("legacy", Discovery::new(client).run()).await.unwrap();
    assert_eq!(seen(&aggregated), seen(&legacy));
}
