//! In front of kube-apiserver: which way requests take, how that is found out, and several servers.

use crate::backend::{Backend, HTTP2, told};
use crate::client::{Ask, Client, Protocol, tls};
use crate::core_backend::{Core, Manner, await_direct, claims, kubeconfig, shown, token};
use crate::http1_client::Http1;
use crate::pki::PKI;
use crate::rig::{Setup, eventually, path};
use crate::rotation::rename_over;
use crate::upgrades::{SPDY, head, upgrade};

#[tokio::test]
async fn a_core_that_comes_late_is_waited_for_and_told_apart_from_one_that_refuses() {
    let core = Core::start(Manner::Hangs);
    let backend = Backend::start("two", HTTP2);
    let setup = core.setup(&token()).service("two", &[backend.address()]);
    let rig = setup.flag("--authorization-mode=AlwaysAllow").launch();
    let things = path("two", "things");
    let mut client = rig.alice(Protocol::Http2).await;
    let early = client.get("/api/v1/pods").await;
    assert_eq!((early.status, early.json()["reason"].as_str()), (503, Some("ServiceUnavailable")));
    // Until the cluster has said in which headers its servers look for identities, none can be sent;
    // what no manifest names yet goes to the core.
    eventually("manifests in effect", async || {
        let early = client.get(&things).await;
        (early.status, early.cause().as_str()) == (503, "")
    })
    .await;
    assert!(backend.seen().is_empty());
    core.set(Manner::Believes);
    await_direct(&rig, &things, &backend).await;
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

/// Whether alice's requests reach the core by impersonation.
async fn is_impersonated(client: &mut Client) -> bool {
    let got = client.get("/api/v1/pods").await.json();
    told(&got, "headers", "impersonate-user") == ["alice"]
}

#[tokio::test]
async fn a_core_that_no_longer_believes_is_told_otherwise_after_its_first_refusal() {
    let core = Core::start(Manner::Believes);
    let rig = core.portico(core.setup(&token())).await;
    let mut client = rig.alice(Protocol::Http2).await;
    core.set(Manner::Refuses);
    eventually("impersonation", async || {
        client.get("/api/v1/code-401").await;
        is_impersonated(&mut client).await
    })
    .await;
}

#[tokio::test]
async fn a_refused_upgrade_raises_the_same_doubt() {
    let core = Core::start(Manner::Believes);
    let rig = core.portico(core.setup(&token())).await;
    core.set(Manner::Refuses);
    let mut client = rig.alice(Protocol::Http1).await;
    eventually("impersonation", async || {
        let mut switching = Http1::new(tls(rig.address, "http/1.1", Some(&PKI.alice)).await);
        switching.send(&upgrade("POST", "/api/v1/namespaces/n/pods/a/unauthorized", SPDY)).await;
        assert_eq!(head(&mut switching).await.0, 401);
        is_impersonated(&mut client).await
    })
    .await;
}

#[tokio::test]
async fn another_kubeconfig_raises_the_same_doubt() {
    let core = Core::start(Manner::Believes);
    let rig = core.portico(core.setup(&token())).await;
    core.set(Manner::Refuses);
    let server = format!("https://{}", core.address());
    let text = kubeconfig(&server, "tls-server-name: 127.0.0.1,", &token());
    rename_over(&rig.path("kubeconfig"), &text);
    let mut client = rig.alice(Protocol::Http2).await;
    eventually("impersonation", async || is_impersonated(&mut client).await).await;
}

#[tokio::test]
async fn a_core_that_does_not_say_as_whom_it_takes_callers_is_named() {
    let core = Core::start(Manner::Fails);
    let rig = core.setup(&token()).launch();
    let mut client = rig.alice(Protocol::Http2).await;
    eventually("the cause", async || {
        let refused = client.get("/api/v1/pods").await;
        (refused.status, refused.cause().as_str()) == (503, "ReviewRefused")
    })
    .await;
    core.set(Manner::Believes);
    rig.await_status("/api/v1/pods", 200).await;
}

#[tokio::test]
async fn the_core_is_told_of_nobody_before_it_has_said_in_which_headers_it_looks() {
    let core = Core::start(Manner::Believes);
    core.cluster.refuse(Some(503));
    let rig = core.setup(&token()).launch();
    let mut client = rig.alice(Protocol::Http2).await;
    let ask = Ask::get("/api/v1/pods").header("x-groups", "system:masters");
    let early = client.send(&ask).await;
    assert_eq!((early.status, early.cause().as_str()), (503, ""));
    assert!(core.seen().is_empty());
    core.cluster.trust(&[("requestheader-group-headers", "[\"X-Groups\"]")]);
    core.cluster.refuse(None);
    rig.await_status("/api/v1/pods", 200).await;
    let got = client.send(&ask).await.json();
    assert_eq!(shown(&got), "aggregator");
    assert!(told(&got, "headers", "x-groups").is_empty());
}

#[tokio::test]
async fn headers_in_which_the_cluster_looks_for_identities_are_nobodys_to_send() {
    let (core, two) = (Core::start(Manner::Believes), Backend::start("two", HTTP2));
    // The flags name front proxies of their own, and none of these headers.
    core.cluster.trust(&[
        ("requestheader-username-headers", "[\"X-Who\",\"X-Remote-User\"]"),
        ("requestheader-group-headers", "[\"X-Groups\"]"),
        ("requestheader-extra-headers-prefix", "[\"X-More-\"]"),
    ]);
    let setup = core.setup(&token()).service("two", &[two.address()]);
    let rig = core.portico(setup.flag("--remote-route=direct")).await;
    let mut client = rig.alice(Protocol::Http2).await;
    for target in [&*path("two", "things"), "/api/v1/pods"] {
        let mut ask = Ask::get(target).header("x-kept", "yes");
        for name in ["x-who", "x_groups", "x-more-scopes"] {
            ask = ask.header(name, "admin");
        }
        let got = client.send(&ask).await.json();
        assert_eq!(told(&got, "headers", "x-kept"), ["yes"]);
        for name in ["x-who", "x_groups", "x-more-scopes"] {
            assert!(told(&got, "headers", name).is_empty(), "{target}: {name}");
        }
        assert_eq!(told(&got, "headers", "x-remote-user"), ["alice"]);
    }
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
    eventually("both are asked", async || {
        client.get("/api/v1/pods").await;
        !one.seen().is_empty() && !two.seen().is_empty()
    })
    .await;
    drop(one);
    // One request may have been on its way when the connection was cut.
    eventually("every request is served by the other", async || {
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
