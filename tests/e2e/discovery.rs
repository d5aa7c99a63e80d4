//! What extension API servers serve is asked of them and shown, and a read never waits for them.

use std::time::Duration;

use http::Method;
use portico::aggregate::aggregator;
use serde_json::Value;

use crate::backend::{Backend, HTTP2};
use crate::client::{Ask, BOTH, Client, Protocol};
use crate::discovery_backend::{
    AGGREGATED, DiscoveryBackend, Manner, await_shown, discovering, listed, manifest, often, once,
    registered, shown, shown_of,
};
use crate::rig::{api_service_with, eventually, path, service, slices};

const SNAPSHOT: &str = "";
const PROXY: &str = "portico.dev/legacy-discovery: proxy";

#[tokio::test]
async fn a_new_apiservice_is_shown_with_its_resources_and_gone_when_it_is_removed() {
    let backend = DiscoveryBackend::start("new");
    let rig = discovering(once()).start().await;
    assert_eq!(shown_of(&rig, "new").await, "");
    rig.write("new.yaml", &manifest("new", SNAPSHOT, &[backend.address()]));
    await_shown(&rig, "new", "Current things").await;
    let mut client = rig.alice(Protocol::Http2).await;
    assert!(listed(&rig).await.contains(&"new.example.com/v1".to_owned()));
    let group = client.get("/apis/new.example.com").await.json();
    assert_eq!(group["preferredVersion"]["groupVersion"], "new.example.com/v1");
    let has_hash = async || {
        let list = client.get("/apis/new.example.com/v1").await.json();
        assert_eq!(list["resources"][0]["name"], "things");
        list["resources"][0]["storageVersionHash"] == "aGFzaA=="
    };
    eventually("what only the version's own document says", has_hash).await;
    rig.await_metric("portico_discovery_versions", &["shown=\"current\""], 1.0).await;
    rig.remove("new.yaml");
    rig.await_status("/apis/new.example.com/v1", 404).await;
    eventually("it is gone", async || shown_of(&rig, "new").await.is_empty()).await;
    assert!(!listed(&rig).await.contains(&"new.example.com/v1".to_owned()));
    assert_eq!(client.get("/apis/new.example.com").await.status, 404);
    rig.await_metric("portico_discovery_versions", &["shown=\"current\""], 0.0).await;
}

#[tokio::test]
async fn a_server_is_asked_as_the_aggregator_with_its_own_tag_and_without_one_by_version() {
    let backend = DiscoveryBackend::start("asked");
    let setup = discovering(often());
    let text = manifest("asked", SNAPSHOT, &[backend.address()]);
    let rig = setup.manifest("asked.yaml", &text).start().await;
    await_shown(&rig, "asked", "Current things").await;
    backend.asked_more_than(2, "/apis").await;
    backend.asked_more_than(0, "/apis/asked.example.com/v1").await;
    let (roots, own) = (backend.seen("/apis"), backend.seen("/apis/asked.example.com/v1"));
    for seen in roots.iter().chain(&own) {
        assert_eq!(seen.method, Method::GET);
        assert_eq!(seen.values("x-remote-user"), ["system:kube-aggregator"]);
        assert_eq!(seen.values("x-remote-group"), ["system:masters"]);
        assert!(seen.values("user-agent")[0].starts_with("portico/"), "{seen:?}");
        assert!(seen.values("accept-encoding").is_empty(), "{seen:?}");
    }
    assert_eq!(roots[0].values("accept"), [AGGREGATED]);
    assert_eq!(own[0].values("accept"), ["application/json"]);
    assert!(roots[0].values("if-none-match").is_empty());
    assert!(roots[1].values("if-none-match")[0].starts_with("W/\"tag, "), "{:?}", roots[1]);
    rig.await_some("portico_discovery_fetches_total", &["result=\"not_modified\""]).await;
    assert_eq!(shown_of(&rig, "asked").await, "Current things");
    backend.serve("asked.example.com", "v1", &["things", "others"]);
    await_shown(&rig, "asked", "Current things,others").await;
}

#[tokio::test]
async fn a_service_is_asked_once_however_many_versions_it_has_and_once_more_by_other_trust() {
    let backend = DiscoveryBackend::start("many");
    let mut text = service("many") + &slices("many", &[backend.address()]);
    for version in ["v1", "v2", "v1beta1"] {
        backend.serve("many.example.com", version, &["things"]);
        text += &registered("many", version, SNAPSHOT);
    }
    let rig = discovering(once()).manifest("many.yaml", &text).start().await;
    let current = |version: &str| (format!("many.example.com/{version}"), "Current things".into());
    let expected = [current("v2"), current("v1"), current("v1beta1")];
    eventually("all are shown in order", async || shown(&rig).await[1..] == expected).await;
    assert_eq!(backend.seen("/apis").len(), 1);
    for version in ["v1", "v2", "v1beta1"] {
        let own = format!("/apis/many.example.com/{version}");
        backend.asked_more_than(0, &own).await;
        assert_eq!(backend.seen(&own).len(), 1);
    }
    backend.serve("other.example.com", "v1", &["things"]);
    let other = api_service_with("other", "").replace("caBundle: ", "insecureSkipTLSVerify: true");
    rig.write("other.yaml", &other.replace("name: other}", "name: many}"));
    await_shown(&rig, "other", "Current things").await;
    assert_eq!(backend.seen("/apis").len(), 2);
}

#[tokio::test]
async fn servers_without_an_aggregated_document_are_asked_version_by_version() {
    for manner in [
        Manner::Legacy(404),
        Manner::Legacy(406),
        Manner::Legacy(200),
        Manner::Beta,
        Manner::ElsewhereAggregated,
    ] {
        let backend = DiscoveryBackend::start("old");
        backend.behave(manner);
        let text = manifest("old", SNAPSHOT, &[backend.address()]);
        let rig = discovering(once()).manifest("old.yaml", &text).start().await;
        await_shown(&rig, "old", "Current things").await;
        let list = rig.alice(Protocol::Http2).await.get("/apis/old.example.com/v1").await.json();
        assert_eq!(list["groupVersion"], "old.example.com/v1", "{manner:?}");
        assert_eq!(list["resources"][0]["namespaced"], true, "{manner:?}");
        assert_eq!(backend.seen("/apis").len(), 1, "{manner:?}");
        if manner != Manner::ElsewhereAggregated {
            assert_eq!(backend.seen("/apis/old.example.com/v1").len(), 1, "{manner:?}");
            let legacy = ["result=\"legacy\""];
            rig.await_metric("portico_discovery_fetches_total", &legacy, 1.0).await;
        }
    }
}

#[tokio::test]
async fn a_server_that_says_it_is_not_ready_is_not_asked_version_by_version() {
    let backend = DiscoveryBackend::start("starting");
    backend.behave(Manner::Status(503));
    let text = manifest("starting", SNAPSHOT, &[backend.address()]);
    let rig = discovering(often()).manifest("starting.yaml", &text).start().await;
    backend.asked_more_than(1, "/apis").await;
    assert!(backend.seen("/apis/starting.example.com/v1").is_empty());
    let answer = rig.alice(Protocol::Http2).await.get("/apis/starting.example.com/v1").await;
    assert_eq!((answer.status, answer.cause().as_str()), (503, "DiscoveryRefused"));
    backend.behave(Manner::Aggregated);
    await_shown(&rig, "starting", "Current things").await;
}

async fn aggregated(client: &mut Client) -> Value {
    client.send(&Ask::get("/apis").header("accept", AGGREGATED)).await.json()
}

#[tokio::test]
async fn reads_are_answered_while_the_question_to_a_server_is_still_open() {
    let (well, hung) = (DiscoveryBackend::start("well"), DiscoveryBackend::start("hung"));
    hung.behave(Manner::Hang);
    let config = aggregator::Config { timeout: Duration::from_secs(3600), ..once() };
    let rig = discovering(config)
        .manifest("well.yaml", &manifest("well", SNAPSHOT, &[well.address()]))
        .manifest("hung.yaml", &manifest("hung", SNAPSHOT, &[hung.address()]))
        .start()
        .await;
    eventually("it is being asked", async || hung.hanging() == 1).await;
    await_shown(&rig, "well", "Current things").await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        assert_eq!(aggregated(&mut client).await["kind"], "APIGroupDiscoveryList");
        for target in ["/apis", "/apis/", "/apis/hung.example.com", "/apis/well.example.com/v1"] {
            assert_eq!(client.get(target).await.status, 200, "{target}");
        }
        let own = client.get("/apis/hung.example.com/v1").await;
        assert_eq!((own.status, own.cause().as_str()), (503, "DiscoveryNotFetched"));
        assert!(!own.headers.contains_key("retry-after"));
    }
    assert_eq!(shown_of(&rig, "hung").await, "Stale ");
    assert_eq!((hung.hanging(), hung.seen("/apis").len()), (1, 1));
}

#[tokio::test]
async fn an_apiservice_may_have_its_version_asked_of_the_server_and_only_reads_are_answered_here() {
    let backend = DiscoveryBackend::start("told");
    let target = "/apis/told.example.com/v1";
    let rig = discovering(once())
        .manifest("told.yaml", &manifest("told", PROXY, &[backend.address()]))
        .start()
        .await;
    await_shown(&rig, "told", "Current things").await;
    let mut client = rig.alice(Protocol::Http2).await;
    let by_alice = || {
        let seen = backend.seen(target);
        seen.iter().filter(|seen| seen.values("x-remote-user") == ["alice"]).count()
    };
    assert_eq!(client.get(target).await.status, 200);
    assert_eq!((by_alice(), backend.seen(target).len()), (1, 1), "nobody else needs it");
    rig.write("told.yaml", &manifest("told", SNAPSHOT, &[backend.address()]));
    eventually("it is answered here", async || {
        let before = by_alice();
        assert_eq!(client.get(target).await.status, 200);
        by_alice() == before
    })
    .await;
    let before = by_alice();
    for method in ["POST", "PUT", "DELETE"] {
        client.send(&Ask::new(method, target)).await;
    }
    assert_eq!(by_alice(), before + 3);
    assert_eq!(client.send(&Ask::new("HEAD", target)).await.status, 200);
    assert_eq!(by_alice(), before + 3);
}

#[tokio::test]
async fn changed_endpoints_have_a_service_asked_at_once() {
    let (one, two) = (DiscoveryBackend::start("moves"), DiscoveryBackend::start("moves"));
    two.serve("moves.example.com", "v1", &["newer"]);
    one.behave(Manner::Hang);
    let config = aggregator::Config { timeout: Duration::from_secs(3600), ..once() };
    let rig = discovering(config)
        .manifest("moves.yaml", &manifest("moves", SNAPSHOT, &[one.address()]))
        .start()
        .await;
    eventually("the first is being asked", async || one.hanging() == 1).await;
    rig.write("moves.yaml", &manifest("moves", SNAPSHOT, &[two.address()]));
    await_shown(&rig, "moves", "Current newer").await;
    eventually("the first question is given up", async || one.hanging() == 0).await;
    rig.write("moves.yaml", &manifest("moves", SNAPSHOT, &[]));
    await_shown(&rig, "moves", "Stale newer").await;
    one.behave(Manner::Aggregated);
    rig.write("moves.yaml", &manifest("moves", SNAPSHOT, &[one.address()]));
    await_shown(&rig, "moves", "Current things").await;
}

#[tokio::test]
async fn an_unknown_resource_has_its_server_asked_and_an_unknown_object_does_not() {
    let (one, two) = (DiscoveryBackend::start("one"), DiscoveryBackend::start("two"));
    let rig = discovering(once())
        .manifest("one.yaml", &manifest("one", SNAPSHOT, &[one.address()]))
        .manifest("two.yaml", &manifest("two", SNAPSHOT, &[two.address()]))
        .start()
        .await;
    await_shown(&rig, "one", "Current things").await;
    await_shown(&rig, "two", "Current things").await;
    one.serve("one.example.com", "v1", &["newer"]);
    let mut client = rig.alice(Protocol::Http2).await;
    assert_eq!(client.get(&path("two", "namespaces/a/things/unknown")).await.status, 404);
    for _ in 0..100 {
        assert_eq!(client.get(&path("one", "unknown")).await.status, 404);
    }
    await_shown(&rig, "one", "Current newer").await;
    assert_eq!((one.seen("/apis").len(), two.seen("/apis").len()), (2, 1));
}

#[tokio::test]
async fn a_server_of_objects_that_knows_no_discovery_harms_nobody() {
    let (dumb, well) = (Backend::start("dumb", HTTP2), DiscoveryBackend::start("well"));
    let rig = discovering(often())
        .manifest("dumb.yaml", &manifest("dumb", SNAPSHOT, &[dumb.address()]))
        .manifest("well.yaml", &manifest("well", SNAPSHOT, &[well.address()]))
        .start()
        .await;
    await_shown(&rig, "well", "Current things").await;
    rig.await_some("portico_discovery_fetches_total", &["result=\"InvalidDiscovery\""]).await;
    assert_eq!(shown_of(&rig, "dumb").await, "Stale ");
    let answer = rig.alice(Protocol::Http2).await.get(&path("dumb", "things")).await;
    assert_eq!(answer.status, 200, "its resources are there all the same");
}
