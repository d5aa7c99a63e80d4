//! How discovery begins: readiness, what was kept, many servers at once, and the legacy core.

use std::path::Path;
use std::time::Duration;

use portico::aggregate::aggregator;
use tempfile::TempDir;

use crate::client::{Ask, BOTH, Protocol};
use crate::discovery_backend::{
    AGGREGATED, DiscoveryBackend, Manner, await_shown, discovering, listed, manifest, often, once,
    shown, shown_of,
};
use crate::rig::{Rig, Setup, api_service, eventually, service, slices};

const HOUR: Duration = Duration::from_secs(3600);
const DEFAULT: &str = "";
const HOLD: &str = "portico.dev/stale-discovery: hold";

/// Questions that are open until the server answers.
fn patient() -> aggregator::Config {
    aggregator::Config { timeout: HOUR, start_timeout: HOUR, ..once() }
}

async fn readyz(rig: &Rig) -> (u16, String) {
    let answer = rig.alice(Protocol::Http2).await.get("/readyz?verbose").await;
    (answer.status, answer.text())
}

#[tokio::test]
async fn readiness_names_the_servers_that_have_not_answered_and_no_others() {
    let (well, hung) = (DiscoveryBackend::start("well"), DiscoveryBackend::start("hung"));
    hung.behave(Manner::Hang);
    let moved = DiscoveryBackend::start("hung");
    let rig = discovering(patient())
        .manifest("well.yaml", &manifest("well", DEFAULT, &[well.address()]))
        .manifest("hung.yaml", &manifest("hung", DEFAULT, &[hung.address()]))
        .start()
        .await;
    await_shown(&rig, "well", "Current things").await;
    let awaited = "[-]poststarthook/discovery/e2e/hung:443 failed: reason withheld\n";
    eventually("it is named", async || readyz(&rig).await.1.contains(awaited)).await;
    let (status, text) = readyz(&rig).await;
    assert_eq!(status, 500);
    assert!(text.contains("[-]poststarthook/apiservice-discovery-controller"), "{text}");
    assert!(!text.contains("e2e/well"), "{text}");
    assert_eq!(rig.alice(Protocol::Http2).await.get("/livez").await.status, 200);
    rig.write("hung.yaml", &manifest("hung", DEFAULT, &[moved.address()]));
    rig.await_status("/readyz", 200).await;
    assert_eq!(shown_of(&rig, "hung").await, "Current things");
    let (_, text) = readyz(&rig).await;
    assert!(text.contains("[+]poststarthook/apiservice-discovery-controller ok"), "{text}");
    assert!(!text.contains("e2e/hung"), "{text}");
}

#[tokio::test]
async fn readiness_does_not_wait_for_a_server_that_hangs_longer_than_it_may() {
    let hung = DiscoveryBackend::start("hung");
    hung.behave(Manner::Hang);
    let config = aggregator::Config { start_timeout: Duration::from_millis(10), ..patient() };
    let text = manifest("hung", DEFAULT, &[hung.address()]);
    let rig = discovering(config).manifest("hung.yaml", &text).start().await;
    eventually("it is being asked", async || hung.hanging() == 1).await;
    rig.await_status("/readyz", 200).await;
    assert_eq!((hung.hanging(), hung.seen("/apis").len()), (1, 1));
    assert_eq!(shown_of(&rig, "hung").await, "Stale ");
}

/// A portico that keeps what it knows in this directory.
fn keeping(data: &TempDir, config: aggregator::Config) -> Setup {
    discovering(config).flag(&format!("--data-dir={}", data.path().display()))
}

async fn await_kept(path: &Path, words: &str) {
    let what = format!("{} has {words}", path.display());
    eventually(&what, async || {
        std::fs::read_to_string(path).is_ok_and(|text| text.contains(words))
    })
    .await;
}

#[tokio::test]
async fn what_was_known_is_there_after_a_restart_while_servers_do_not_answer() {
    let data = tempfile::tempdir().unwrap();
    let (one, two) = (DiscoveryBackend::start("one"), DiscoveryBackend::start("two"));
    let manifests = |setup: Setup, one: &DiscoveryBackend, two: &DiscoveryBackend| {
        setup
            .manifest("one.yaml", &manifest("one", DEFAULT, &[one.address()]))
            .manifest("two.yaml", &manifest("two", HOLD, &[two.address()]))
    };
    let rig = manifests(keeping(&data, often()), &one, &two).start().await;
    let file = |name: &str| data.path().join(format!("discovery/v1.{name}.example.com.json"));
    for name in ["one", "two"] {
        await_kept(&file(name), "aGFzaA==").await;
    }
    let mut client = rig.alice(Protocol::Http2).await;
    let mut before = client.get("/apis/one.example.com/v1").await;
    // It may be on disk a little earlier than it is served.
    eventually("it is served as it is kept", async || {
        before = client.get("/apis/one.example.com/v1").await;
        before.text().contains("aGFzaA==")
    })
    .await;
    rig.stop().await;

    let (hung_one, hung_two) = (DiscoveryBackend::start("one"), DiscoveryBackend::start("two"));
    hung_one.behave(Manner::Hang);
    hung_two.behave(Manner::Hang);
    let setup = keeping(&data, patient());
    let rig = manifests(setup, &hung_one, &hung_two).start().await;
    await_shown(&rig, "one", "Stale things").await;
    await_shown(&rig, "two", "Current things").await;
    let mut client = rig.alice(Protocol::Http2).await;
    let after = client.get("/apis/one.example.com/v1").await;
    assert_eq!((after.status, &after.body), (200, &before.body));
    assert!(hung_one.hanging() <= 1 && hung_two.hanging() <= 1);
    rig.remove("one.yaml");
    eventually("what is removed is not kept", async || !file("one").exists()).await;
    assert!(file("two").exists());
}

#[tokio::test]
async fn a_kept_file_that_cannot_be_read_is_passed_over_and_replaced() {
    let data = tempfile::tempdir().unwrap();
    let backend = DiscoveryBackend::start("one");
    backend.behave(Manner::Status(503));
    std::fs::create_dir(data.path().join("discovery")).unwrap();
    let file = data.path().join("discovery/v1.one.example.com.json");
    std::fs::write(&file, "{\"format\":1,\"name\":").unwrap();
    std::fs::write(data.path().join("discovery/v1.two.example.com.json.partial"), "x").unwrap();
    let text = manifest("one", DEFAULT, &[backend.address()]);
    let rig = keeping(&data, often()).manifest("one.yaml", &text).start().await;
    await_shown(&rig, "one", "Stale ").await;
    backend.behave(Manner::Aggregated);
    await_shown(&rig, "one", "Current things").await;
    await_kept(&file, "\"things\"").await;
}

#[tokio::test]
async fn two_hundred_versions_of_twenty_servers_come_all_and_in_order() {
    let mut setup = discovering(once());
    let (mut groups, mut backends) = (Vec::new(), Vec::new());
    for at in 0..20 {
        let name = format!("s{at}");
        let backend = DiscoveryBackend::start_empty(&name);
        let mut text = service(&name) + &slices(&name, &[backend.address()]);
        for number in 0..5 {
            let group = format!("g{at}-{number}");
            // Pairs of groups share a priority.
            let priority = 1000 + (at * 5 + number) * 37 % 100 / 2;
            for version in ["v1", "v2beta1"] {
                backend.serve(&format!("{group}.example.com"), version, &["things"]);
                text += &api_service(&group)
                    .replace("name: v1.", &format!("name: {version}."))
                    .replace("version: v1\n", &format!("version: {version}\n"))
                    .replace(&format!("name: {group}}}"), &format!("name: {name}}}"))
                    .replace("Minimum: 1000", &format!("Minimum: {priority}"));
            }
            groups.push((-priority, format!("{group}.example.com")));
        }
        setup = setup.manifest(&format!("{name}.yaml"), &text);
        backends.push(backend);
    }
    groups.sort();
    let names: Vec<String> = groups
        .iter()
        .flat_map(|(_, group)| ["v1", "v2beta1"].map(|version| format!("{group}/{version}")))
        .collect();
    let expected: Vec<(String, String)> =
        names.iter().map(|name| (name.clone(), "Current things".to_owned())).collect();
    let rig = setup.start().await;
    eventually("all are shown in order", async || shown(&rig).await[1..] == expected).await;
    assert_eq!(listed(&rig).await[1..], names);
    rig.await_metric("portico_discovery_versions", &["shown=\"current\""], 200.0).await;
    assert!(backends.iter().all(|backend| backend.seen("/apis").len() == 1));
}

#[tokio::test]
async fn the_core_is_served_in_all_its_forms_with_its_apiservice() {
    let backend = DiscoveryBackend::start_empty("core");
    backend.serve("", "v1", &["pods"]);
    let parts = service("core") + &slices("core", &[backend.address()]);
    let rig = discovering(once()).manifest("service.yaml", &parts).start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    let ask = Ask::get("/api").header("accept", AGGREGATED);
    assert_eq!(client.get("/api").await.status, 404);
    assert_eq!(client.send(&ask).await.status, 404);
    let core = api_service("core")
        .replace("name: v1.core.example.com", "name: v1.")
        .replace("group: core.example.com", "group: \"\"")
        .replace("{portico.dev/legacy-discovery: proxy}", "{}");
    rig.write("core.yaml", &core);
    rig.await_status("/api/v1", 200).await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        let group = &client.send(&ask).await.json()["items"][0];
        assert_eq!(group["metadata"], serde_json::json!({}));
        assert_eq!(group["versions"][0]["freshness"], "Current");
        assert_eq!(group["versions"][0]["resources"][0]["resource"], "pods");
        let versions = client.get("/api").await.json();
        assert_eq!(
            versions,
            serde_json::json!({ "kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0",
                    "serverAddress": rig.address.to_string() }] })
        );
        let list = client.get("/api/v1").await.json();
        assert_eq!(
            (&list["groupVersion"], &list["resources"][0]["name"]),
            (&"v1".into(), &"pods".into())
        );
    }
    assert_eq!(shown(&rig).await.len(), 1, "the core is in no list of groups");
    assert_eq!(listed(&rig).await.len(), 1);
    assert!(backend.seen("/apis").is_empty());
    rig.remove("core.yaml");
    rig.await_status("/api", 404).await;
}
