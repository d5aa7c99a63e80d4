//! Whether APIServices are available: who is asked, what is written, and what callers are told.

use std::time::Duration;

use portico::app::Tuning;
use portico::config::Config;
use serde_json::Value;

use crate::backend::Backend;
use crate::backend::HTTP2;
use crate::client::{Client, Protocol};
use crate::core_backend::{Core, Manner as CoreManner, token};
use crate::discovery_backend::{DiscoveryBackend, Manner, registered};
use crate::pki::PKI;
use crate::relay::Relay;
use crate::rig::{Rig, Setup, api_service, eventually, path, probing, service, slices};

/// Asked all the time.
fn probing_often(config: &mut Config, tuning: &mut Tuning) {
    probing(config, tuning);
    tuning.probes.schedule.refresh = Duration::from_millis(50);
}

/// Status, reason and message of the condition; empty while there is none.
async fn condition(rig: &Rig, name: &str) -> [String; 3] {
    let mut client = rig.alice(Protocol::Http1).await;
    let target = format!("/apis/apiregistration.k8s.io/v1/apiservices/{name}");
    let object = client.get(&target).await.json();
    let condition = &object["status"]["conditions"][0];
    ["status", "reason", "message"]
        .map(|field| condition[field].as_str().unwrap_or_default().to_owned())
}

pub(crate) async fn await_condition(rig: &Rig, name: &str, status: &str, reason: &str) -> String {
    let mut message = String::new();
    eventually(&format!("{name} is {status}, {reason}"), async || {
        let found = condition(rig, name).await;
        message.clone_from(&found[2]);
        [found[0].as_str(), found[1].as_str()] == [status, reason]
    })
    .await;
    message
}

/// Waits until things are answered so.
async fn await_answer(client: &mut Client, name: &str, status: u16, cause: &str) {
    eventually(&format!("{name} is answered with {status} {cause}"), async || {
        let answer = client.get(&path(name, "things")).await;
        let found = if status == 200 { String::new() } else { answer.cause() };
        (answer.status, found.as_str()) == (status, cause)
    })
    .await;
}

#[tokio::test]
async fn a_backend_is_asked_once_for_each_new_version_as_upstream_asks() {
    let two = DiscoveryBackend::start("two");
    two.serve("two.example.com", "v2", &["things"]);
    let manifest = registered("two", "v1", "") + &registered("two", "v2", "");
    let setup = Setup::new().service("two", &[two.address()]).manifest("two.yaml", &manifest);
    let setup = setup.manifest("places.yaml", &(service("two") + &slices("two", &[two.address()])));
    let rig = setup.edit(probing).start().await;
    for version in ["v1", "v2"] {
        let name = format!("{version}.two.example.com");
        let message = await_condition(&rig, &name, "True", "Passed").await;
        assert_eq!(message, "all checks passed");
        let seen = two.seen(&format!("/apis/two.example.com/{version}"));
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].values("x-remote-user"), ["system:kube-aggregator"]);
        assert_eq!(seen[0].values("x-remote-group"), ["system:masters"]);
    }
    let labels = ["name=\"v1.two.example.com\""];
    assert_eq!(rig.metric("aggregator_unavailable_apiservice", &labels).await, Some(0.0));
    assert_eq!(rig.metric("portico_probes_total", &["result=\"passed\""]).await, Some(2.0));
}

#[tokio::test]
async fn a_backend_that_refuses_is_not_available_and_its_callers_are_told_why() {
    let two = DiscoveryBackend::start("two");
    two.behave(Manner::Status(403));
    let setup = Setup::new().service("two", &[two.address()]).edit(probing);
    let rig = setup.start().await;
    let name = "v1.two.example.com";
    let mut client = rig.alice(Protocol::Http2).await;
    let cases = [
        (403, "ProbeForbidden"),
        (401, "ProbeUnauthorized"),
        (503, "ProbeRefused"),
        // Nothing but 2xx is well.
        (304, "ProbeRefused"),
    ];
    for (status, cause) in cases {
        two.behave(Manner::Status(status));
        await_answer(&mut client, "two", 503, cause).await;
        let url = "https://two.e2e.svc:443/apis/two.example.com/v1";
        let expected =
            format!("failing or missing response from {url}: bad status from {url}: {status}");
        eventually("the condition says so", async || condition(&rig, name).await[2] == expected)
            .await;
        await_condition(&rig, name, "False", "FailedDiscoveryCheck").await;
    }
    let answer = client.get(&path("two", "things")).await;
    assert_eq!(answer.header("retry-after"), "");
    assert_eq!(answer.json()["reason"], "ServiceUnavailable");
    let labels = ["name=\"v1.two.example.com\""];
    assert_eq!(rig.metric("aggregator_unavailable_apiservice", &labels).await, Some(1.0));
    two.behave(Manner::Aggregated);
    await_answer(&mut client, "two", 200, "").await;
    await_condition(&rig, name, "True", "Passed").await;
    // Never available until then: nothing was lost.
    assert_eq!(rig.metric("aggregator_unavailable_apiservice_total", &labels).await, None);
}

#[tokio::test]
async fn one_endpoint_that_answers_well_is_enough() {
    let (bad, well) = (DiscoveryBackend::start("two"), DiscoveryBackend::start("two"));
    bad.behave(Manner::Status(404));
    let setup = Setup::new().service("two", &[bad.address(), well.address()]);
    let rig = setup.edit(probing).start().await;
    await_condition(&rig, "v1.two.example.com", "True", "Passed").await;
    eventually("both were asked", async || {
        !bad.seen("/apis/two.example.com/v1").is_empty()
            && !well.seen("/apis/two.example.com/v1").is_empty()
    })
    .await;
    await_condition(&rig, "v1.two.example.com", "True", "Passed").await;
}

#[tokio::test]
async fn the_only_endpoint_that_freezes_is_unavailable_at_once_and_available_when_it_is_back() {
    let two = DiscoveryBackend::start("two");
    let relay = Relay::new(two.address());
    let setup = Setup::new().service("two", &[relay.address()]).edit(probing);
    let rig = setup.start().await;
    let name = "v1.two.example.com";
    await_condition(&rig, name, "True", "Passed").await;
    let mut client = rig.alice(Protocol::Http2).await;
    assert_eq!(client.get(&path("two", "things")).await.status, 200);
    relay.freeze();
    // Found out by a caller's request; no probe was due.
    let answer = client.get(&path("two", "things")).await;
    assert!(matches!(answer.status, 503 | 504), "{}", answer.status);
    let message = await_condition(&rig, name, "False", "FailedDiscoveryCheck").await;
    assert!(message.contains("https://two.e2e.svc:443/apis/two.example.com/v1"), "{message}");
    assert!(!message.contains("127.0.0.1"), "{message}");
    let labels = ["name=\"v1.two.example.com\"", "reason=\"FailedDiscoveryCheck\""];
    assert_eq!(rig.metric("aggregator_unavailable_apiservice_total", &labels).await, Some(1.0));
    relay.thaw();
    await_answer(&mut client, "two", 200, "").await;
    await_condition(&rig, name, "True", "Passed").await;
}

#[tokio::test]
async fn an_endpoint_that_is_started_later_is_found_by_the_dials_to_it() {
    let two = DiscoveryBackend::start("two");
    let address = two.address();
    drop(two);
    let rig = Setup::new().service("two", &[address]).edit(probing).start().await;
    let message =
        await_condition(&rig, "v1.two.example.com", "False", "FailedDiscoveryCheck").await;
    assert!(message.ends_with("connecting to e2e/two:443: connection refused"), "{message}");
    let mut client = rig.alice(Protocol::Http2).await;
    let answer = client.get(&path("two", "things")).await;
    assert_eq!((answer.status, answer.cause().as_str()), (503, "ConnectRefused"));
    let other = DiscoveryBackend::start("two");
    rig.write(
        "two.yaml",
        &(api_service("two") + &service("two") + &slices("two", &[other.address()])),
    );
    await_answer(&mut client, "two", 200, "").await;
    await_condition(&rig, "v1.two.example.com", "True", "Passed").await;
}

#[tokio::test]
async fn a_backend_whose_callers_are_answered_well_is_believed() {
    let two = DiscoveryBackend::start("two");
    let setup = Setup::new().service("two", &[two.address()]).edit(probing_often);
    let rig = setup.start().await;
    let name = "v1.two.example.com";
    await_condition(&rig, name, "True", "Passed").await;
    // Its discovery fails, which is found out while nobody calls it.
    two.behave(Manner::Status(500));
    await_condition(&rig, name, "False", "FailedDiscoveryCheck").await;
    two.behave(Manner::Aggregated);
    await_condition(&rig, name, "True", "Passed").await;
}

#[tokio::test]
async fn what_reaches_extension_servers_through_the_core_is_not_judged_by_their_answers_to_portico()
{
    let (core, two) = (Core::start(CoreManner::Refuses), Backend::start("two", HTTP2));
    core.cluster.apply(&(api_service("two") + &service("two") + &slices("two", &[two.address()])));
    let theirs = PKI.front_proxies.certificate();
    core.cluster.trust(&[("requestheader-client-ca-file", &theirs)]);
    let rig = core.portico(core.setup(&token()).edit(probing)).await;
    let mut client = rig.alice(Protocol::Http2).await;
    eventually("the core answers", async || client.get(&path("two", "things")).await.status == 200)
        .await;
    let labels = ["name=\"v1.two.example.com\""];
    rig.await_metric("aggregator_unavailable_apiservice", &labels, 0.0).await;
    rig.await_some("aggregator_unavailable_apiservice", &labels).await;
    assert!(two.seen().is_empty(), "{:?}", two.seen());
    let mut inside = rig.connect(Protocol::Http1, Some(&PKI.master)).await;
    let page: Value = inside.get("/debug/portico").await.json();
    assert_eq!(page["apiServices"]["items"][0]["available"], true);
}
