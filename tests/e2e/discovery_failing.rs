//! A server that fails harms its own group only, which is shown as its APIService says.

use crate::backend::Listener;
use crate::client::{Client, Protocol};
use crate::discovery_backend::{
    DiscoveryBackend, Manner, await_shown, discovering, listed, manifest, often, shown_of,
};
use crate::rig::{Rig, eventually};

const DEFAULT: &str = "";
const HOLD: &str = "portico.dev/stale-discovery: hold";
const OMIT: &str = "portico.dev/stale-discovery: omit";

/// Every way to fail, with the word for it.
const FAILURES: [(Manner, &str); 12] = [
    (Manner::Status(503), "DiscoveryRefused"),
    (Manner::Status(500), "DiscoveryRefused"),
    (Manner::Status(404), "DiscoveryRefused"),
    (Manner::Redirect, "DiscoveryRefused"),
    (Manner::Html, "InvalidDiscovery"),
    (Manner::CutShort, "BackendReset"),
    (Manner::TooLong, "InvalidDiscovery"),
    (Manner::TooDeep, "InvalidDiscovery"),
    (Manner::Flood, "InvalidDiscovery"),
    (Manner::Gzip, "InvalidDiscovery"),
    (Manner::OtherGroup, "InvalidDiscovery"),
    (Manner::Hang, "Deadline"),
];

/// A version's own document: its status, and its first resource or the cause.
async fn own(client: &mut Client, name: &str) -> (u16, String) {
    let answer = client.get(&format!("/apis/{name}.example.com/v1")).await;
    assert!(!answer.headers.contains_key("retry-after"));
    let what = match answer.status {
        200 => answer.json()["resources"][0]["name"].as_str().unwrap().to_owned(),
        _ => answer.cause(),
    };
    (answer.status, what)
}

fn is_listed(groups: &[String], name: &str) -> bool {
    groups.contains(&format!("{name}.example.com/v1"))
}

#[tokio::test]
async fn a_server_that_fails_after_it_answered_is_stale_with_what_it_had_until_it_recovers() {
    let (well, bad) = (DiscoveryBackend::start("well"), DiscoveryBackend::start("bad"));
    let rig = discovering(often())
        .manifest("well.yaml", &manifest("well", DEFAULT, &[well.address()]))
        .manifest("bad.yaml", &manifest("bad", DEFAULT, &[bad.address()]))
        .start()
        .await;
    let mut client = rig.alice(Protocol::Http2).await;
    await_shown(&rig, "well", "Current things").await;
    for (manner, word) in FAILURES {
        await_shown(&rig, "bad", "Current things").await;
        let result = format!("result=\"{word}\"");
        let counted = ["portico_discovery_fetches_total", &result];
        let before = rig.metric(counted[0], &counted[1..]).await.unwrap_or_default();
        bad.behave(manner);
        await_shown(&rig, "bad", "Stale things").await;
        assert_eq!(shown_of(&rig, "well").await, "Current things", "{manner:?}");
        assert_eq!(own(&mut client, "bad").await, (200, "things".to_owned()), "{manner:?}");
        assert_eq!(client.get("/apis/bad.example.com").await.status, 200, "{manner:?}");
        assert!(is_listed(&listed(&rig).await, "bad"), "{manner:?}");
        rig.await_metric("portico_discovery_versions", &["shown=\"stale\""], 1.0).await;
        let after = rig.metric(counted[0], &counted[1..]).await.unwrap_or_default();
        assert!(after > before, "{manner:?} is counted as {word}");
        bad.behave(Manner::Aggregated);
    }
    await_shown(&rig, "bad", "Current things").await;
    rig.await_metric("portico_discovery_versions", &["shown=\"stale\""], 0.0).await;
}

#[tokio::test]
async fn a_server_that_never_answered_is_stale_without_resources_and_its_document_names_why() {
    let well = DiscoveryBackend::start("well");
    let mut setup =
        discovering(often()).manifest("well.yaml", &manifest("well", DEFAULT, &[well.address()]));
    let mut failing = Vec::new();
    for (at, (manner, word)) in FAILURES.into_iter().enumerate() {
        let name = format!("bad{at}");
        let backend = DiscoveryBackend::start(&name);
        backend.behave(manner);
        let text = manifest(&name, DEFAULT, &[backend.address()]);
        setup = setup.manifest(&format!("{name}.yaml"), &text);
        failing.push((name, manner, word, backend));
    }
    let dead = Listener::tcp(|_, _| async {}).address;
    setup = setup
        .manifest("dead.yaml", &manifest("dead", DEFAULT, &[dead]))
        .manifest("none.yaml", &manifest("none", DEFAULT, &[]));
    let rig = setup.start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    let dead = [("dead".to_owned(), "ConnectRefused"), ("none".to_owned(), "EndpointsNotFound")];
    let named = failing.iter().map(|(name, _, word, _)| (name.clone(), *word)).chain(dead);
    for (name, word) in named {
        let expected = (503, word.to_owned());
        eventually(&format!("{name} fails for {word}"), async || {
            own(&mut client, &name).await == expected
        })
        .await;
        assert_eq!(shown_of(&rig, &name).await, "Stale ", "{name}");
        assert!(is_listed(&listed(&rig).await, &name), "{name}");
        assert_eq!(client.get(&format!("/apis/{name}.example.com")).await.status, 200, "{name}");
    }
    await_shown(&rig, "well", "Current things").await;
    for (name, manner, _, backend) in &failing {
        backend.behave(Manner::Aggregated);
        await_shown(&rig, name, "Current things").await;
        let own = own(&mut client, name).await;
        assert_eq!(own, (200, "things".to_owned()), "{name} after {manner:?}");
    }
}

#[tokio::test]
async fn a_version_that_its_server_does_not_have_harms_no_other_version_of_it() {
    let backend = DiscoveryBackend::start("half");
    let more = crate::discovery_backend::registered("half", "v2", DEFAULT);
    let text = manifest("half", DEFAULT, &[backend.address()]) + "---\n" + &more;
    let rig = discovering(often()).manifest("half.yaml", &text).start().await;
    await_shown(&rig, "half", "Current things").await;
    let second = async || {
        let shown = crate::discovery_backend::shown(&rig).await;
        let second = shown.into_iter().find(|(name, _)| name == "half.example.com/v2");
        second.map(|(_, how)| how).unwrap_or_default()
    };
    assert_eq!(second().await, "Stale ");
    let mut client = rig.alice(Protocol::Http2).await;
    let answer = client.get("/apis/half.example.com/v2").await;
    assert_eq!((answer.status, answer.cause().as_str()), (503, "DiscoveryRefused"));
    backend.serve("half.example.com", "v2", &["more"]);
    eventually("it is there", async || second().await == "Current more").await;
}

#[tokio::test]
async fn a_version_without_resources_is_in_no_aggregated_document() {
    let backend = DiscoveryBackend::start("empty");
    backend.serve("empty.example.com", "v1", &[]);
    let text = manifest("empty", DEFAULT, &[backend.address()]);
    let rig = discovering(often()).manifest("empty.yaml", &text).start().await;
    rig.await_metric("portico_discovery_versions", &["shown=\"current\""], 1.0).await;
    await_shown(&rig, "empty", "").await;
    let mut client = rig.alice(Protocol::Http2).await;
    let list = client.get("/apis/empty.example.com/v1").await.json();
    assert_eq!(list["resources"], serde_json::json!([]));
    assert!(is_listed(&listed(&rig).await, "empty"));
    backend.serve("empty.example.com", "v1", &["things"]);
    await_shown(&rig, "empty", "Current things").await;
    backend.serve("empty.example.com", "v1", &[]);
    await_shown(&rig, "empty", "").await;
}

/// Checks all documents of one version.
async fn check(rig: &Rig, name: &str, shown: &str, document: (u16, &str)) {
    await_shown(rig, name, shown).await;
    let mut client = rig.alice(Protocol::Http2).await;
    let expected = (document.0, document.1.to_owned());
    eventually(&format!("{name}: {expected:?}"), async || own(&mut client, name).await == expected)
        .await;
    let is_there = !shown.is_empty();
    assert_eq!(is_listed(&listed(rig).await, name), is_there, "{name}");
    let group = client.get(&format!("/apis/{name}.example.com")).await;
    let versions = group.json()["versions"].as_array().map_or(0, Vec::len);
    assert_eq!(versions, usize::from(is_there), "{name}: {}", group.text());
}

fn behave(backends: &[DiscoveryBackend], manner: Manner) {
    for backend in backends {
        backend.behave(manner);
    }
}

#[tokio::test]
async fn what_is_shown_while_a_server_is_down_is_the_apiservices_choice_and_may_change() {
    let policies = [("stale", DEFAULT), ("hold", HOLD), ("omit", OMIT)];
    let backends = policies.map(|(name, _)| DiscoveryBackend::start(name));
    let text = |name: &str, annotations: &str| {
        let backend = policies.iter().zip(&backends).find(|((other, _), _)| *other == name);
        manifest(name, annotations, &[backend.unwrap().1.address()])
    };
    let mut setup = discovering(often());
    for (name, annotations) in policies {
        setup = setup.manifest(&format!("{name}.yaml"), &text(name, annotations));
    }
    behave(&backends, Manner::Status(503));
    let rig = setup.start().await;
    check(&rig, "stale", "Stale ", (503, "DiscoveryRefused")).await;
    check(&rig, "hold", "Stale ", (503, "DiscoveryRefused")).await;
    check(&rig, "omit", "", (503, "DiscoveryRefused")).await;
    behave(&backends, Manner::Aggregated);
    for (name, _) in policies {
        check(&rig, name, "Current things", (200, "things")).await;
    }
    behave(&backends, Manner::Status(503));
    check(&rig, "stale", "Stale things", (200, "things")).await;
    check(&rig, "omit", "", (503, "DiscoveryRefused")).await;
    rig.await_metric("portico_discovery_versions", &["shown=\"held\""], 1.0).await;
    rig.await_metric("portico_discovery_versions", &["shown=\"omitted\""], 1.0).await;
    check(&rig, "hold", "Current things", (200, "things")).await;

    rig.write("stale.yaml", &text("stale", OMIT));
    check(&rig, "stale", "", (503, "DiscoveryRefused")).await;
    rig.write("omit.yaml", &text("omit", HOLD));
    check(&rig, "omit", "Current things", (200, "things")).await;
    let brief = format!("{HOLD}, portico.dev/hold-for: 10ms");
    rig.write("hold.yaml", &text("hold", &brief));
    check(&rig, "hold", "Stale things", (200, "things")).await;
    behave(&backends, Manner::Aggregated);
    for (name, _) in policies {
        check(&rig, name, "Current things", (200, "things")).await;
    }
}

#[tokio::test]
async fn what_is_held_becomes_stale_by_itself_when_its_time_is_over() {
    let backend = DiscoveryBackend::start("brief");
    let brief = format!("{HOLD}, portico.dev/hold-for: 1s");
    let text = manifest("brief", &brief, &[backend.address()]);
    let rig = discovering(often()).manifest("brief.yaml", &text).start().await;
    await_shown(&rig, "brief", "Current things").await;
    backend.behave(Manner::Status(503));
    await_shown(&rig, "brief", "Stale things").await;
    backend.behave(Manner::Aggregated);
    await_shown(&rig, "brief", "Current things").await;
}
