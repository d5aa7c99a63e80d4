//! In front of kube-apiserver: which way requests take, how that is found out, and several servers.

use crate::backend::{Backend, HTTP2, told};
use crate::client::Protocol;
use crate::core_backend::{Core, Manner, await_direct, claims, kubeconfig, shown, token};
use crate::pki::PKI;
use crate::rig::{Setup, path};

#[tokio::test]
async fn a_core_that_comes_late_is_waited_for_and_told_apart_from_one_that_refuses() {
    let core = Core::start(Manner::Hangs);
    let backend = Backend::start("two", HTTP2);
    let setup = core.setup(&token()).service("two", &[backend.address()]);
    let rig = setup.flag("--authorization-mode=AlwaysAllow").launch();
    let things = path("two", "things");
    await_direct(&rig, &things, &backend).await;
    let mut client = rig.alice(Protocol::Http2).await;
    let early = client.get("/api/v1/pods").await;
    assert_eq!((early.status, early.json()["reason"].as_str()), (503, Some("ServiceUnavailable")));
    core.set(Manner::Believes);
    rig.await_status("/api/v1/pods", 200).await;
    assert_eq!(shown(&client.get("/api/v1/pods").await.json()), "aggregator");
}

#[tokio::test]
async fn the_first_request_is_served_though_the_way_is_only_just_asked_for() {
    let core = Core::start(Manner::Believes);
    let rig = core.setup(&token()).launch();
    let got = rig.alice(Protocol::Http2).await.get("/api/v1/pods").await;
    assert_eq!((got.status, shown(&got.json()).as_str()), (200, "aggregator"));
}

#[tokio::test]
async fn a_core_that_no_longer_believes_is_told_otherwise_after_its_first_refusal() {
    let core = Core::start(Manner::Believes);
    let rig = core.portico(core.setup(&token())).await;
    let mut client = rig.alice(Protocol::Http2).await;
    core.set(Manner::Refuses);
    crate::rig::eventually("impersonation", async || {
        client.get("/api/v1/code-401").await;
        let got = client.get("/api/v1/pods").await.json();
        told(&got, "headers", "impersonate-user") == ["alice"]
    })
    .await;
}

#[tokio::test]
async fn extension_servers_that_do_not_believe_portico_are_reached_through_the_core() {
    let core = Core::start(Manner::Refuses);
    let backend = Backend::start("two", HTTP2);
    let setup = core.setup(&token()).service("two", &[backend.address()]);
    let rig = core.portico(setup.flag("--remote-route=auto")).await;
    let mut client = rig.alice(Protocol::Http2).await;
    for target in [&*path("two", "things"), "/apis/two.example.com/v1", "/apis/two.example.com"] {
        let got = client.get(target).await.json();
        assert_eq!(got["target"], target);
        assert_eq!(told(&got, "headers", "impersonate-user"), ["alice"]);
    }
    assert!(backend.seen().is_empty());
    // A flag says so for a core that believes, too.
    let core = Core::start(Manner::Believes);
    let setup = core.setup(&token()).service("two", &[backend.address()]);
    let rig = core.portico(setup.flag("--remote-route=core")).await;
    let got = rig.alice(Protocol::Http2).await.get(&path("two", "things")).await.json();
    assert_eq!(
        (shown(&got), got["target"].as_str()),
        ("aggregator".into(), Some(&*path("two", "things")))
    );
    assert!(backend.seen().is_empty());
}

#[tokio::test]
async fn flags_name_the_way_without_a_question() {
    let core = Core::start(Manner::Refuses);
    let rig = core.portico(core.setup(&token()).flag("--upstream-identity=front-proxy")).await;
    let got = rig.alice(Protocol::Http2).await.get("/api/v1/pods").await.json();
    assert_eq!(shown(&got), "aggregator");
    let core = Core::start(Manner::Believes);
    // By a certificate of portico's own.
    let setup = core.setup("client-certificate: client.crt, client-key: client.key");
    std::fs::write(setup.path("client.crt"), &PKI.master.certificate).unwrap();
    std::fs::write(setup.path("client.key"), &PKI.master.key).unwrap();
    let rig = core.portico(setup.flag("--upstream-identity=impersonate")).await;
    let got = rig.alice(Protocol::Http2).await.get("/api/v1/pods").await.json();
    assert_eq!(shown(&got), "master");
    let names: Vec<_> = claims(&got).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["impersonate-user", "impersonate-group", "impersonate-group"]);
}

#[tokio::test]
async fn of_several_servers_one_that_is_gone_is_left_out() {
    let (one, two) = (Core::start(Manner::Believes), Core::start(Manner::Believes));
    let setup = one.setup(&token()).flag(&format!("--core-server=https://{}", two.address()));
    let rig = one.portico(setup).await;
    let mut client = rig.alice(Protocol::Http2).await;
    crate::rig::eventually("both are asked", async || {
        client.get("/api/v1/pods").await;
        !one.seen().is_empty() && !two.seen().is_empty()
    })
    .await;
    drop(one);
    // One request may have been on its way when the connection was cut.
    crate::rig::eventually("every request is served by the other", async || {
        let mut served = true;
        for _ in 0..20 {
            served &= client.get("/api/v1/pods").await.status == 200;
        }
        served
    })
    .await;
}

#[tokio::test]
async fn the_core_must_be_whom_the_kubeconfig_names() {
    let core = Core::start_as(Manner::Believes, "core.example.com");
    let setup = |more: &str| {
        let setup = Setup::new();
        let text = kubeconfig(&format!("https://{}", core.address()), more, &token());
        std::fs::write(setup.path("kubeconfig"), text).unwrap();
        setup.file_flag("kubeconfig", "kubeconfig")
    };
    core.portico(setup("tls-server-name: core.example.com,")).await;
    let rig = setup("").launch();
    rig.await_status("/api/v1/pods", 503).await;
    let mut client = rig.connect(Protocol::Http2, None).await;
    let refused = client.get("/api/v1/pods").await;
    assert_eq!((refused.status, refused.cause().as_str()), (503, "NameMismatch"));
}
