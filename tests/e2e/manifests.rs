//! Which path belongs to whom, and how changed manifests take effect.

use std::net::SocketAddr;

use crate::backend::{Backend, HTTP2};
use crate::client::{Ask, BOTH, Protocol};
use crate::proxying::Pair;
use crate::rig::{Setup, api_service, eventually, path, service, slices};

fn registration(name: &str, endpoints: &[SocketAddr]) -> String {
    api_service(name) + &service(name) + &slices(name, endpoints)
}

#[tokio::test]
async fn group_discovery_comes_from_the_manifests() {
    let pair = Pair::start().await;
    for protocol in BOTH {
        let mut client = pair.rig.alice(protocol).await;
        // The table is there a moment before what is made of it.
        eventually("every group is listed", async || {
            let groups = client.get("/apis").await.json();
            let groups = groups["groups"].as_array().unwrap().clone();
            let lists = |name| groups.iter().any(|group| group["name"] == name);
            ["two.example.com", "one.example.com", "apiregistration.k8s.io"].into_iter().all(lists)
        })
        .await;
        let group = client.get("/apis/two.example.com").await.json();
        assert_eq!(group["kind"], "APIGroup");
        assert_eq!(group["preferredVersion"]["groupVersion"], "two.example.com/v1");
        for missing in
            ["/apis/three.example.com", "/apis/two.example.com/v2", "/nothing", "/apis//v1"]
        {
            assert_eq!(client.get(missing).await.status, 404, "{missing}");
        }
    }
    assert_eq!(pair.two.seen().len(), 0);
}

#[tokio::test]
async fn the_legacy_core_is_there_only_with_its_apiservice() {
    let backend = Backend::start("core", HTTP2);
    let rig = Setup::new().service("core", &[backend.address()]).start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    for target in ["/api", "/api/v1", "/api/v1/pods"] {
        assert_eq!(client.get(target).await.status, 404, "{target}");
    }
    let core = api_service("core")
        .replace("name: v1.core.example.com", "name: v1.")
        .replace("group: core.example.com", "group: \"\"");
    rig.write("legacy.yaml", &core);
    rig.await_status("/api", 200).await;
    assert_eq!(client.get("/api").await.json()["versions"][0], "v1");
    for target in ["/api/v1", "/api/v1/namespaces/default/pods?limit=1"] {
        assert_eq!(client.get(target).await.json()["target"], target);
    }
    assert_eq!(client.get("/apis//v1/pods").await.status, 404);
}

#[tokio::test]
async fn manifests_take_effect_as_they_come_and_go() {
    let (one, two) = (Backend::start("moves", HTTP2), Backend::start("moves", HTTP2));
    let rig = Setup::new().start().await;
    let things = path("moves", "things");
    rig.write("moves.yaml", &registration("moves", &[one.address()]));
    rig.await_status(&things, 200).await;
    assert_eq!(two.seen().len(), 0);
    rig.write("moves.yaml", &registration("moves", &[two.address()]));
    let mut client = rig.alice(Protocol::Http2).await;
    eventually("requests go to the other backend", async || {
        assert_eq!(client.get(&things).await.status, 200);
        !two.seen().is_empty()
    })
    .await;
    rig.write("moves.yaml", "apiVersion: [broken");
    rig.write("other.yaml", &registration("other", &[one.address()]));
    rig.await_status("/apis/other.example.com", 200).await;
    assert_eq!(client.get(&things).await.status, 200, "a broken file keeps what it held");
    rig.remove("moves.yaml");
    rig.await_status(&things, 404).await;
    assert_eq!(client.get("/apis/moves.example.com").await.status, 404);
}

#[tokio::test]
async fn a_service_that_goes_takes_its_endpoints_out_of_use() {
    let backend = Backend::start("parts", HTTP2);
    let setup = Setup::new()
        .manifest("api.yaml", &api_service("parts"))
        .manifest("service.yaml", &service("parts"))
        .manifest("slices.yaml", &slices("parts", &[backend.address()]));
    let rig = setup.start().await;
    let things = path("parts", "things");
    rig.await_status(&things, 200).await;
    let mut client = rig.alice(Protocol::Http2).await;
    for (file, text, cause) in [
        ("slices.yaml", slices("parts", &[backend.address()]), "EndpointsNotFound"),
        ("service.yaml", service("parts"), "ServiceNotFound"),
    ] {
        rig.remove(file);
        rig.await_status(&things, 503).await;
        assert_eq!(client.get(&things).await.cause(), cause);
        rig.write(file, &text);
        rig.await_status(&things, 200).await;
    }
}

#[tokio::test]
async fn five_thousand_apiservices_are_routed_and_one_changed_file_takes_effect() {
    let backend = Backend::start("many", HTTP2);
    let mut setup = Setup::new()
        .manifest("service.yaml", &(service("many") + &slices("many", &[backend.address()])));
    // Without a caBundle five thousand times: reading it is not what is shown here.
    let mut model = api_service("many");
    let (from, to) = (model.find("  caBundle").unwrap(), model.find("  service:").unwrap());
    model.replace_range(from..to, "  insecureSkipTLSVerify: true\n");
    let named = |at: usize| model.replace("many.example.com", &format!("g{at}.example.com"));
    for file in 0..50 {
        let text: String = (file * 100..(file + 1) * 100).map(named).collect();
        setup = setup.manifest(&format!("{file}.yaml"), &text);
    }
    let rig = setup.start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    eventually("all groups are listed", async || {
        client.get("/apis").await.json()["groups"].as_array().unwrap().len() == 5001
    })
    .await;
    for at in (0..5000).step_by(49) {
        let answer = client.get(&format!("/apis/g{at}.example.com/v1/things")).await;
        assert_eq!(answer.status, 200, "g{at}");
    }
    rig.write("49.yaml", &named(9_999));
    rig.await_status("/apis/g9999.example.com/v1/things", 200).await;
    assert_eq!(client.get("/apis/g4950.example.com/v1").await.status, 404);
    assert_eq!(client.get("/apis/g4899.example.com/v1").await.status, 200);
}

#[tokio::test]
async fn versions_that_begin_and_end_do_not_disturb_requests() {
    let backend = Backend::start("steady", HTTP2);
    let rig = Setup::new().service("steady", &[backend.address()]).start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    for round in 0..10 {
        rig.write("other.yaml", &registration(&format!("other{round}"), &[backend.address()]));
        let ask = Ask::get(path("steady", "things"));
        eventually("the other group", async || {
            assert_eq!(client.send(&ask).await.status, 200);
            client.get(&format!("/apis/other{round}.example.com")).await.status == 200
        })
        .await;
    }
    assert_eq!(backend.listener.accepted(), 1, "one connection has served all");
}
