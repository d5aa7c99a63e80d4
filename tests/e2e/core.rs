//! In front of kube-apiserver: what goes there arrives as it was sent, with who sent it, and
//! kube-apiserver decides.

use bytes::Bytes;
use hyper::body::Frame;

use crate::backend::{Backend, HTTP2, told};
use crate::client::{Ask, BOTH, Protocol, tls};
use crate::core_backend::{Core, Manner, PORTICOS_TOKEN, await_direct, claims, shown, token};
use crate::http1_client::Http1;
use crate::pki::PKI;
use crate::rig::{BOBS_TOKEN, path, within};
use crate::upgrades::{SPDY, head, upgrade};

type Lines<'a> = &'a [(&'a str, &'a str)];

#[track_caller]
fn check(told: &serde_json::Value, certificate: &str, expected: Lines<'_>) {
    let got = claims(told);
    let got: Vec<_> = got.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!((shown(told).as_str(), &got[..]), (certificate, expected));
}

const ALICE: Lines<'_> = &[
    ("x-remote-user", "alice"),
    ("x-remote-group", "dev"),
    ("x-remote-group", "system:authenticated"),
];

#[tokio::test]
async fn all_but_porticos_own_pages_and_aggregated_apis_goes_to_the_core_byte_for_byte() {
    let core = Core::start(Manner::Believes);
    let rig = core.portico(core.setup(&token())).await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        for target in [
            "/api/v1/namespaces/n/pods?limit=500&labelSelector=a%20in+(b,c)",
            "/api",
            "/apis/apps/v1",
            "/apis/apps/v1/namespaces/n/deployments/a%2Fb",
            "/apis/apiregistration.k8s.io/v1/apiservices",
            "/openapi/v3/apis/apps/v1?hash=AB%2FC",
            "/openapi/v2",
            "/.well-known/openid-configuration",
            "/no//such/../path;x=1",
        ] {
            let got = client.get(target).await;
            assert_eq!((got.status, &got.json()["target"]), (200, &target.into()), "{protocol:?}");
            check(&got.json(), "aggregator", ALICE);
        }
        for target in ["/livez", "/readyz/ping", "/metrics", "/", "/apis"] {
            let before = core.seen().len();
            client.get(target).await;
            assert_eq!(core.seen().len(), before, "{target}");
        }
    }
}

#[tokio::test]
async fn the_cores_decisions_reach_the_client_untouched_whoever_it_is() {
    let core = Core::start(Manner::Believes);
    let rig = core.portico(core.setup(&token())).await;
    let mut client = rig.alice(Protocol::Http2).await;
    for code in [401, 403, 404, 409, 429, 500] {
        let answer = client.get(&format!("/api/v1/code-{code}")).await;
        assert_eq!((answer.status, answer.body.len()), (code, 0));
    }
    let protobuf: Bytes = b"k8s\0\x0a\x02\xff\x00rest".to_vec().into();
    let ask = Ask::new("POST", "/api/v1/mirror")
        .header("content-type", "application/vnd.kubernetes.protobuf")
        .body(protobuf.clone());
    assert_eq!(client.send(&ask).await.body, protobuf);
    let mut client = rig.connect(Protocol::Http2, None).await;
    let got = client.send(&Ask::get("/api/v1/pods").bearer(BOBS_TOKEN)).await;
    check(
        &got.json(),
        "aggregator",
        &[
            ("x-remote-user", "bob"),
            ("x-remote-uid", "uid-7"),
            ("x-remote-group", "team-a"),
            ("x-remote-group", "team-b"),
            ("x-remote-group", "system:authenticated"),
        ],
    );
    let wrong = client.send(&Ask::get("/api/v1/pods").bearer("wrong")).await;
    assert_eq!(wrong.status, 401);
}

#[tokio::test]
async fn whom_a_caller_asks_to_act_as_is_for_the_core_to_judge() {
    let core = Core::start(Manner::Believes);
    let rig = core.portico(core.setup(&token())).await;
    for protocol in BOTH {
        let ask = Ask::get("/api/v1/pods")
            .header(
                if protocol == Protocol::Http1 { "Connection" } else { "x" },
                "impersonate-user",
            )
            .header("Impersonate-User", "bob")
            .header("Impersonate-Group", "ops")
            .header("Impersonate-Uid", "7")
            .header("Impersonate-Extra-A%2fB", "x")
            .header("Impersonate-Other", "evil")
            .header("Impersonate_User", "evil")
            .header("X-Remote-User", "evil")
            .header("Authorization", "Basic evil");
        let got = rig.alice(protocol).await.send(&ask).await.json();
        let asked = [
            ("impersonate-user", "bob"),
            ("impersonate-group", "ops"),
            ("impersonate-uid", "7"),
            ("impersonate-extra-a%2fb", "x"),
        ];
        check(&got, "aggregator", &[&asked[..], ALICE].concat());
    }
    // It is the core that refuses what is asked wrongly, too.
    let ask = Ask::get("/api/v1/pods").header("Impersonate-Group", "ops");
    assert_eq!(rig.alice(Protocol::Http2).await.send(&ask).await.status, 200);
}

#[tokio::test]
async fn who_shows_nothing_shows_nothing_to_the_core_on_a_connection_of_its_own() {
    let core = Core::start(Manner::Believes);
    let rig = core.portico(core.setup(&token())).await;
    let alices = rig.alice(Protocol::Http2).await.get("/api/v1/pods").await.json();
    let mut numbers = vec![alices["connection"].clone()];
    for protocol in BOTH {
        let mut client = rig.connect(protocol, None).await;
        let got = client.get("/api/v1/pods").await;
        assert_eq!(got.status, 200);
        check(&got.json(), "", &[]);
        numbers.push(got.json()["connection"].clone());
    }
    assert_ne!(numbers[0], numbers[1]);
    assert_ne!(numbers[0], numbers[2]);
    let rig = core.portico(core.setup(&token()).flag("--anonymous-auth=false")).await;
    let refused = rig.connect(Protocol::Http2, None).await.get("/api/v1/pods").await;
    assert_eq!(refused.status, 401);
}

#[tokio::test]
async fn without_belief_in_its_certificate_portico_acts_as_its_callers_with_its_own_credentials() {
    let core = Core::start(Manner::Refuses);
    let rig = core.portico(core.setup(&token())).await;
    let porticos = format!("Bearer {PORTICOS_TOKEN}");
    let mut client = rig.alice(Protocol::Http2).await;
    let got = client.get("/api/v1/pods").await.json();
    let as_alice = [
        ("impersonate-user", "alice"),
        ("impersonate-group", "dev"),
        ("impersonate-group", "system:authenticated"),
        ("authorization", &porticos),
    ];
    check(&got, "", &as_alice);
    // Whom she asks to act as is checked here, for the core sees portico alone.
    let ask = Ask::get("/api/v1/pods").header("Impersonate-User", "bob");
    let got = client.send(&ask.header("Impersonate-Uid", "7")).await.json();
    let as_bob = [
        ("impersonate-user", "bob"),
        ("impersonate-uid", "7"),
        ("impersonate-group", "system:authenticated"),
        ("authorization", &porticos),
    ];
    check(&got, "", &as_bob);
    let ask = Ask::get("/api/v1/pods").header("Impersonate-Group", "ops");
    assert_eq!(client.send(&ask).await.status, 400);
    let got = rig.connect(Protocol::Http2, None).await.get("/api/v1/pods").await.json();
    check(&got, "", &[]);
}

#[tokio::test]
async fn watches_of_the_core_are_streamed() {
    let mut core = Core::start(Manner::Believes);
    let rig = core.portico(core.setup(&token())).await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        let mut opened = client.open(&Ask::get("/api/v1/events?watch=true")).await;
        let watch = core.backend.watch().await;
        assert_eq!(opened.status, 200);
        for event in ["one", "two"] {
            watch.send(Ok(Frame::data(Bytes::from(event)))).await.unwrap();
            assert_eq!(opened.body.read(3).await, event.as_bytes());
        }
    }
}

#[tokio::test]
async fn exec_and_the_like_become_tunnels_to_the_core() {
    let core = Core::start(Manner::Believes);
    let rig = core.portico(core.setup(&token())).await;
    let mut client = Http1::new(tls(rig.address, "http/1.1", Some(&PKI.alice)).await);
    let target = "/api/v1/namespaces/n/pods/a/exec?command=sh";
    client.send(&upgrade("POST", target, SPDY)).await;
    let (status, headers) = head(&mut client).await;
    assert_eq!((status, headers["upgrade"].to_str().unwrap()), (101, SPDY));
    client.write("hello").await;
    assert_eq!(within("the echo", client.bytes(5)).await.unwrap(), "hello");
    let seen = core.seen().pop().unwrap();
    assert_eq!(seen["target"], target);
    check(&seen, "aggregator", ALICE);
    let mut client = Http1::new(tls(rig.address, "http/1.1", Some(&PKI.alice)).await);
    client.send(&upgrade("POST", "/api/v1/namespaces/n/pods/a/forbidden", SPDY)).await;
    assert_eq!(head(&mut client).await.0, 403);
}

#[tokio::test]
async fn a_core_that_is_gone_takes_nothing_down_that_does_not_need_it() {
    let core = Core::start(Manner::Believes);
    let backend = Backend::start("two", HTTP2);
    let setup = core.setup(&token()).service("two", &[backend.address()]);
    let rig = core.portico(setup.flag("--authorization-mode=AlwaysAllow")).await;
    let things = path("two", "things");
    await_direct(&rig, &things, &backend).await;
    drop(core);
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        let gone = client.get("/api/v1/pods").await;
        let message = "error trying to reach kube-apiserver: connecting to kube-apiserver: \
                       connection refused";
        assert_eq!((gone.status, gone.cause().as_str()), (503, "ConnectRefused"));
        assert_eq!(
            (gone.json()["message"].as_str(), gone.header("retry-after")),
            (Some(message), "")
        );
        let served = client.get(&things).await;
        assert_eq!(served.status, 200);
        assert_eq!(told(&served.json(), "headers", "x-remote-user"), ["alice"]);
        assert_eq!(client.get("/livez").await.status, 200);
        assert_eq!(client.get("/apis").await.status, 200);
    }
}
