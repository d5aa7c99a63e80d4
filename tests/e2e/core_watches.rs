//! In front of kube-apiserver: what its cluster holds is routed by, whatever becomes of its watches,
//! and whom the cluster believes is believed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::backend::{Backend, HTTP2};
use crate::client::{Ask, Client, Protocol};
use crate::core_backend::{Core, Manner, await_direct, token};
use crate::pki::{NAMESPACE, PKI};
use crate::rig::{
    Rig, Setup, api_service, api_service_with, eventually, path, probing, service, slices,
};

const CLIENT_CA: &str = "client-ca-file";
const FRONT_PROXY_CA: &str = "requestheader-client-ca-file";

/// An APIService with its Service and the endpoints of these backends.
fn objects(name: &str, backends: &[&Backend]) -> String {
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address()).collect();
    api_service(name) + &service(name) + &slices(name, &addresses)
}

/// A cluster with one API, in front of it a portico that routes to it.
async fn routed(setup: impl FnOnce(Setup) -> Setup) -> (Core, Backend, Rig) {
    let (core, two) = (Core::start(Manner::Believes), Backend::start("two", HTTP2));
    core.cluster.apply(&objects("two", &[&two]));
    let rig = core.portico(setup(core.setup(&token()))).await;
    await_direct(&rig, &path("two", "things"), &two).await;
    (core, two, rig)
}

/// Waits until requests for the API reach the core, which is where all goes that nobody serves.
async fn await_core(rig: &Rig, name: &str) {
    let mut client = rig.alice(Protocol::Http2).await;
    let target = path(name, "things");
    eventually("the API's requests go to the core", async || {
        let answer = client.get(&target).await;
        answer.status == 200 && told_by_core(&answer.json())
    })
    .await;
}

fn told_by_core(told: &Value) -> bool {
    let headers = told["headers"].as_array().unwrap();
    headers.iter().any(|pair| pair[0] == "x-shown-certificate")
}

async fn ready(rig: &Rig) -> String {
    let mut client = rig.alice(Protocol::Http1).await;
    client.get("/readyz?verbose").await.text()
}

/// A request may be routed a moment before it is said that requests are.
async fn await_ready(rig: &Rig) {
    eventually("ready", async || {
        let told = ready(rig).await;
        let is_done = |name: &str| told.contains(&format!("[+]poststarthook/{name} ok"));
        is_done("core-watches") && is_done("core-trust")
    })
    .await;
}

async fn inside(rig: &Rig) -> Value {
    let mut client = rig.connect(Protocol::Http1, Some(&PKI.master)).await;
    client.get("/debug/portico").await.json()
}

/// How often the objects were listed anew.
fn lists(core: &Core) -> usize {
    core.cluster.asked("sendInitialEvents").len()
}

#[tokio::test]
async fn objects_take_effect_as_they_come_change_and_go() {
    let (core, two, rig) = routed(|setup| setup).await;
    let other = Backend::start("two", HTTP2);
    core.cluster.apply(&slices("two", &[other.address()]));
    await_direct(&rig, &path("two", "things"), &other).await;
    let one = Backend::start("one", HTTP2);
    core.cluster.apply(&objects("one", &[&one]));
    await_direct(&rig, &path("one", "things"), &one).await;
    core.cluster.delete("apiservices", "", "v1.two.example.com");
    await_core(&rig, "two").await;
    assert!(!two.seen().is_empty());
    // Of the whole cluster only what APIServices name is watched.
    assert!(core.cluster.asked("/api/v1/services").is_empty());
    assert!(!core.cluster.asked(&format!("/namespaces/{NAMESPACE}/services")).is_empty());
}

#[tokio::test]
async fn a_watch_that_ends_is_resumed_without_a_gap_and_without_a_new_list() {
    let (core, _two, rig) = routed(|setup| setup).await;
    let before = lists(&core);
    let one = Backend::start("one", HTTP2);
    core.cluster.refuse(Some(503));
    core.cluster.cut();
    core.cluster.apply(&objects("one", &[&one]));
    core.cluster.delete("apiservices", "", "v1.two.example.com");
    core.cluster.refuse(None);
    await_direct(&rig, &path("one", "things"), &one).await;
    await_core(&rig, "two").await;
    assert_eq!(lists(&core), before);
}

#[tokio::test]
async fn watches_that_end_at_once_are_resumed_less_and_less_often() {
    let (core, _two, _rig) = routed(|setup| setup).await;
    let resumed = || {
        let asked = core.cluster.asked("/apiservices?");
        asked.iter().filter(|asked| !asked.contains("sendInitialEvents")).count()
    };
    core.cluster.end_at_once();
    core.cluster.cut();
    let begun = Instant::now();
    eventually("resumed", async || resumed() >= 4).await;
    // Half of 500 ms, of a second and of two.
    assert!(begun.elapsed() >= Duration::from_millis(1750), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn an_api_service_in_another_namespace_is_the_cores_until_its_service_is_seen() {
    let (core, two, rig) = routed(|setup| setup.edit(probing)).await;
    let one = Backend::start("one", HTTP2);
    let elsewhere = |text: &str| text.replace(NAMESPACE, "elsewhere");
    core.cluster.refuse(Some(503));
    let trusting = api_service_with("one", "''\n  insecureSkipTLSVerify: true");
    let objects = trusting + &service("one") + &slices("one", &[one.address()]);
    core.cluster.apply(&elsewhere(&objects));
    let asked = || core.cluster.asked("/namespaces/elsewhere/endpointslices").len();
    eventually("the namespace is to be watched", async || asked() > 0).await;
    await_core(&rig, "one").await;
    // Nobody was told that it is not available.
    let labels = ["name=\"v1.one.example.com\""];
    assert_eq!(rig.metric("aggregator_unavailable_apiservice", &labels).await, None);
    core.cluster.refuse(None);
    await_direct(&rig, &path("one", "things"), &one).await;
    rig.await_some("aggregator_unavailable_apiservice", &labels).await;
    assert_eq!(rig.metric("aggregator_unavailable_apiservice", &labels).await, Some(0.0));
    assert_eq!(rig.metric("aggregator_unavailable_apiservice_total", &labels).await, None);
    // The other way about: its namespace goes on being watched until the new one is.
    core.cluster.refuse(Some(503));
    core.cluster.apply(&api_service("one").replace(NAMESPACE, "third"));
    eventually("the namespace is to be watched", async || {
        !core.cluster.asked("/namespaces/third/endpointslices").is_empty()
    })
    .await;
    let seen = one.seen().len();
    let mut client = rig.alice(Protocol::Http2).await;
    assert_eq!(client.get(&path("one", "things")).await.status, 200);
    assert_eq!(client.get(&path("two", "things")).await.status, 200);
    assert_eq!(one.seen().len(), seen + 1);
    assert!(!two.seen().is_empty());
}

#[tokio::test]
async fn what_happened_while_nobody_remembers_is_found_by_a_new_list() {
    let (core, _two, rig) = routed(|setup| setup).await;
    let one = Backend::start("one", HTTP2);
    core.cluster.refuse(Some(503));
    core.cluster.cut();
    core.cluster.apply(&objects("one", &[&one]));
    core.cluster.delete("apiservices", "", "v1.two.example.com");
    core.cluster.forget();
    core.cluster.refuse(None);
    await_direct(&rig, &path("one", "things"), &one).await;
    await_core(&rig, "two").await;
}

#[tokio::test]
async fn a_server_without_streamed_lists_is_listed_plainly() {
    let (core, two) = (Core::start(Manner::Believes), Backend::start("two", HTTP2));
    core.cluster.list_plainly();
    core.cluster.apply(&objects("two", &[&two]));
    let rig = core.portico(core.setup(&token())).await;
    await_direct(&rig, &path("two", "things"), &two).await;
    assert!(!core.cluster.asked("limit=500").is_empty());
    core.cluster.delete("apiservices", "", "v1.two.example.com");
    await_core(&rig, "two").await;
}

#[tokio::test]
async fn readiness_names_the_watches_until_everything_was_seen_once() {
    let (core, two) = (Core::start(Manner::Believes), Backend::start("two", HTTP2));
    core.cluster.apply(&objects("two", &[&two]));
    core.cluster.refuse(Some(500));
    let rig = core.setup(&token()).launch();
    let awaited = ready(&rig).await;
    assert!(awaited.contains("[-]poststarthook/core-watches"), "{awaited}");
    assert!(awaited.contains("[-]poststarthook/core-trust"), "{awaited}");
    core.cluster.refuse(None);
    await_ready(&rig).await;
    await_direct(&rig, &path("two", "things"), &two).await;
}

#[tokio::test]
async fn what_is_routed_outlives_the_core_and_is_followed_again_when_it_is_back() {
    let (core, two, rig) = routed(|setup| setup).await;
    core.set(Manner::Hangs);
    core.cluster.cut();
    core.cluster.delete("apiservices", "", "v1.two.example.com");
    let one = Backend::start("one", HTTP2);
    core.cluster.apply(&objects("one", &[&one]));
    for _ in 0..3 {
        let mut client = rig.alice(Protocol::Http2).await;
        assert_eq!(client.get(&path("two", "things")).await.status, 200);
    }
    await_ready(&rig).await;
    core.set(Manner::Believes);
    await_direct(&rig, &path("one", "things"), &one).await;
    await_core(&rig, "two").await;
    assert!(two.seen().len() >= 4);
}

#[tokio::test]
async fn what_was_seen_last_is_routed_by_after_a_restart_while_the_core_is_gone() {
    let data = tempfile::tempdir().unwrap();
    let data_dir = format!("--data-dir={}", data.path().display());
    let trusting = |setup: Setup| setup.without("client-ca-file").flag(&data_dir);
    let (core, two) = (Core::start(Manner::Believes), Backend::start("two", HTTP2));
    core.cluster.apply(&objects("two", &[&two]));
    let authority = PKI.authority.certificate();
    core.cluster.trust(&[(CLIENT_CA, &authority)]);
    let direct = "--remote-route=direct";
    let allowing = "--authorization-mode=AlwaysAllow";
    let rig = core.portico(trusting(core.setup(&token())).flag(direct).flag(allowing)).await;
    await_direct(&rig, &path("two", "things"), &two).await;
    let file = data.path().join("cluster.json");
    eventually("the state is kept", async || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains("BEGIN CERTIFICATE"))
    })
    .await;
    rig.stop().await;
    core.set(Manner::Hangs);
    core.cluster.cut();
    let rig = trusting(core.setup(&token())).flag(direct).flag(allowing).launch();
    let mut client = rig.alice(Protocol::Http2).await;
    eventually("routed by what was kept", async || {
        client.get(&path("two", "things")).await.status == 200
    })
    .await;
    await_ready(&rig).await;
    // What was kept and is gone goes with the first that is seen.
    core.cluster.delete("apiservices", "", "v1.two.example.com");
    core.set(Manner::Believes);
    await_core(&rig, "two").await;
}

#[tokio::test]
async fn whom_the_cluster_believes_is_believed_on_open_connections_too() {
    let core = Core::start(Manner::Believes);
    let (ours, strangers) = (PKI.authority.certificate(), PKI.stranger.certificate());
    core.cluster.refuse(Some(500));
    let setup = core.setup(&token()).without("client-ca-file");
    let rig = setup.without("requestheader-client-ca-file").launch();
    let mut client = rig.alice(Protocol::Http2).await;
    // Who may be known in a moment is not refused for good.
    assert_eq!(client.get("/api").await.status, 503);
    core.cluster.trust(&[(CLIENT_CA, &ours)]);
    core.cluster.refuse(None);
    eventually("alice is known", async || client.get("/api").await.status == 200).await;
    core.cluster.trust(&[(CLIENT_CA, &strangers)]);
    eventually("alice is unknown", async || {
        rig.alice(Protocol::Http1).await.get("/api").await.status == 401
    })
    .await;
    // What cannot be read leaves everything as it was.
    core.cluster.trust(&[(CLIENT_CA, "broken")]);
    core.cluster.trust(&[(CLIENT_CA, &(strangers + &ours))]);
    let mut client = rig.alice(Protocol::Http2).await;
    eventually("alice is known again", async || client.get("/api").await.status == 200).await;
}

async fn who(client: &mut Client, name: &str) -> (u16, String) {
    let answer = client.send(&Ask::get("/api/v1/x").header(name, "carol")).await;
    if answer.status != 200 {
        return (answer.status, String::new());
    }
    let told = answer.json();
    let user = crate::backend::told(&told, "headers", "x-remote-user").concat();
    (answer.status, user)
}

#[tokio::test]
async fn front_proxies_are_those_of_the_cluster_with_its_names_and_headers() {
    let core = Core::start(Manner::Believes);
    let authority = PKI.front_proxies.certificate();
    let trust = |names: &str, headers: &str| {
        core.cluster.trust(&[
            (FRONT_PROXY_CA, &authority),
            ("requestheader-allowed-names", names),
            ("requestheader-username-headers", headers),
        ]);
    };
    trust("[\"front-proxy\"]", "[\"X-Who\"]");
    let setup = core.setup(&token()).without("requestheader-client-ca-file");
    let rig = core.portico(setup).await;
    let mut client = rig.connect(Protocol::Http2, Some(&PKI.front_proxy)).await;
    eventually("carol by one header", async || {
        who(&mut client, "x-who").await == (200, "carol".to_owned())
    })
    .await;
    // As the flags would have it, but the cluster says otherwise.
    let mut client = rig.connect(Protocol::Http2, Some(&PKI.front_proxy)).await;
    assert_eq!(who(&mut client, "x-remote-user").await.0, 401);
    trust("[]", "[\"X-Other\"]");
    eventually("carol by the other header", async || {
        let mut client = rig.connect(Protocol::Http2, Some(&PKI.front_proxy)).await;
        who(&mut client, "x-other").await == (200, "carol".to_owned())
    })
    .await;
    trust("[\"nobody\"]", "[\"X-Other\"]");
    eventually("no front proxy", async || {
        let mut client = rig.connect(Protocol::Http2, Some(&PKI.front_proxy)).await;
        who(&mut client, "x-other").await.0 == 401
    })
    .await;
}

#[tokio::test]
async fn an_authority_is_published_beside_those_of_others_and_again_when_it_is_taken_out() {
    let core = Core::start(Manner::Believes);
    let (theirs, ours) = (PKI.front_proxies.certificate(), PKI.aggregators.certificate());
    core.cluster.trust(&[(FRONT_PROXY_CA, &theirs), ("requestheader-allowed-names", "[]")]);
    core.cluster.conflict(2);
    let setup = core.setup(&token());
    std::fs::write(setup.path("aggregators.crt"), &ours).unwrap();
    let rig = core.portico(setup.file_flag("publish-front-proxy-ca", "aggregators.crt")).await;
    let published = || {
        let name = "extension-apiserver-authentication";
        let object = core.cluster.get("configmaps", "kube-system", name);
        let text = object["data"][FRONT_PROXY_CA].as_str().unwrap().to_owned();
        let names = object["data"]["requestheader-allowed-names"].clone();
        (text.starts_with(&theirs), text.matches("BEGIN").count(), names)
    };
    eventually("published", async || published() == (true, 2, json!("[]"))).await;
    let believed = async || inside(&rig).await["cluster"]["believesPortico"] == true;
    eventually("believed", believed).await;
    let name = ["certificate=\"cluster-requestheader-client-ca\""];
    assert!(rig.metric("portico_certificate_expiration_timestamp_seconds", &name).await.is_some());
    core.cluster.trust(&[(FRONT_PROXY_CA, &theirs), ("requestheader-allowed-names", "[\"x\"]")]);
    eventually("published again", async || published() == (true, 2, json!("[\"x\"]"))).await;
    eventually("not believed", async || !believed().await).await;
}

#[tokio::test]
async fn extension_servers_are_reached_directly_once_they_believe_portico_though_the_core_does_not()
{
    let (core, two) = (Core::start(Manner::Refuses), Backend::start("two", HTTP2));
    core.cluster.apply(&objects("two", &[&two]));
    let (theirs, ours) = (PKI.front_proxies.certificate(), PKI.aggregators.certificate());
    core.cluster.trust(&[(FRONT_PROXY_CA, &theirs), ("requestheader-allowed-names", "[]")]);
    let rig = core.portico(core.setup(&token())).await;
    await_core(&rig, "two").await;
    core.cluster.trust(&[(FRONT_PROXY_CA, &(theirs + &ours))]);
    await_direct(&rig, &path("two", "things"), &two).await;
    core.cluster.trust(&[(FRONT_PROXY_CA, &ours), ("requestheader-allowed-names", "[\"x\"]")]);
    await_core(&rig, "two").await;
}

/// The condition that the cluster holds.
fn condition(core: &Core, name: &str) -> (String, String) {
    let object = core.cluster.get("apiservices", "", &format!("v1.{name}.example.com"));
    let condition = &object["status"]["conditions"][0];
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

fn holder(core: &Core) -> String {
    let lease = core.cluster.get("leases", "kube-system", "portico");
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn what_the_cluster_says_of_an_api_service_is_shown_and_not_obeyed() {
    let (core, two) = (Core::start(Manner::Believes), Backend::start("two", HTTP2));
    let status = "status: {conditions: [{type: Available, status: 'False', reason: Down}]}\n---\n";
    let text = objects("two", &[&two]).replacen("---\n", status, 1);
    core.cluster.apply(&text);
    let rig = core.portico(core.setup(&token())).await;
    await_direct(&rig, &path("two", "things"), &two).await;
    let page = inside(&rig).await;
    let shown = &page["apiServices"]["items"][0];
    assert_eq!((&shown["available"], &shown["reported"]["reason"]), (&json!(true), &json!("Down")));
    // Nor is anything written unasked.
    assert!(core.cluster.asked("PATCH").is_empty() && core.cluster.asked("PUT").is_empty());
}

#[tokio::test]
async fn one_of_several_writes_conditions_and_another_follows_when_it_ends() {
    let (core, two) = (Core::start(Manner::Believes), Backend::start("two", HTTP2));
    core.cluster.apply(&objects("two", &[&two]));
    let launch = || core.setup(&token()).flag("--write-availability").edit(probing).launch();
    let first = launch();
    let written = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
    eventually("written", async || condition(&core, "two") == written("True", "Passed")).await;
    let leader = holder(&core);
    let second = launch();
    eventually("the second looks", async || core.cluster.asked("GET /apis/coord").len() >= 3).await;
    assert_eq!(holder(&core), leader);
    first.stop().await;
    assert_eq!(holder(&core), "");
    core.cluster.delete("endpointslices", NAMESPACE, "two-0");
    let expected = written("False", "EndpointsNotFound");
    eventually("written by the other", async || condition(&core, "two") == expected).await;
    assert!(holder(&core) != leader && !holder(&core).is_empty());
    second.stop().await;
}
