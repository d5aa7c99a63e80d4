//! In front of kube-apiserver, which is asked about tokens, and about requests that do not go to it.

use serde_json::{Value, json};

use crate::backend::{Backend, HTTP2};
use crate::client::{Ask, BOTH, Protocol};
use crate::core_backend::{Core, ERINS_TOKEN, Manner, PORTICOS_TOKEN, await_direct, claims, token};
use crate::rig::path;

#[tokio::test]
async fn the_core_knows_tokens_and_decides_about_its_own_requests_without_a_review() {
    let core = Core::start(Manner::Believes);
    let rig = core.portico(core.setup(&token())).await;
    let mut client = rig.connect(Protocol::Http2, None).await;
    for _ in 0..2 {
        let answer = client.send(&Ask::get("/api/v1/pods").bearer(ERINS_TOKEN)).await;
        assert_eq!(answer.status, 200);
        let groups = ["guests", "system:authenticated"].map(|group| ("x-remote-group", group));
        let got = claims(&answer.json());
        let got: Vec<_> = got.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(got, [&[("x-remote-user", "erin")], &groups[..]].concat());
    }
    let asked = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": ERINS_TOKEN},
        "by": format!("Bearer {PORTICOS_TOKEN}"),
    });
    assert_eq!(core.reviews(), [asked]);
    let mut stranger = rig.connect(Protocol::Http2, None).await;
    assert_eq!(stranger.send(&Ask::get("/api/v1/pods").bearer("wrong")).await.status, 401);
}

#[tokio::test]
async fn requests_to_extension_api_servers_are_reviewed_by_the_core_and_the_answer_is_kept() {
    let core = Core::start(Manner::Believes);
    let two = Backend::start("two", HTTP2);
    let setup = core.setup(&token()).service("two", &[two.address()]);
    let rig = core.portico(setup.flag("--remote-route=direct")).await;
    let target = path("two", "things");
    await_direct(&rig, &target, &two).await;
    let mut client = rig.connect(Protocol::Http2, None).await;
    for _ in 0..2 {
        let answer = client.send(&Ask::get(&target).bearer(ERINS_TOKEN)).await;
        assert_eq!(answer.status, 403);
        assert_eq!(
            answer.json()["message"],
            "things.two.example.com is forbidden: User \"erin\" cannot list resource \"things\" in \
             API group \"two.example.com\" at the cluster scope: nothing for erin"
        );
    }
    let about = |user: &str| -> Vec<Value> {
        core.reviews().into_iter().filter(|review| review["spec"]["user"] == user).collect()
    };
    assert_eq!((about("erin").len(), about("alice").len()), (1, 1));
    assert_eq!(about("erin")[0]["apiVersion"], "authorization.k8s.io/v1");
    assert_eq!(about("erin")[0]["by"], format!("Bearer {PORTICOS_TOKEN}"));
}

#[tokio::test]
async fn what_the_core_decided_outlives_it_for_as_long_as_that_is_told_to() {
    let core = Core::start(Manner::Believes);
    let two = Backend::start("two", HTTP2);
    let setup = core.setup(&token()).service("two", &[two.address()]);
    let setup = setup
        .flag("--remote-route=direct")
        .flag("--authorization-webhook-cache-authorized-ttl=0s")
        .flag("--authentication-token-webhook-cache-ttl=0s")
        .flag("--review-cache-outage-ttl=1h");
    let rig = core.portico(setup).await;
    let target = path("two", "things");
    await_direct(&rig, &target, &two).await;
    let mut erin = rig.connect(Protocol::Http2, None).await;
    let ask = Ask::get(&target).bearer(ERINS_TOKEN);
    assert_eq!(erin.send(&ask).await.status, 403);
    drop(core);
    for protocol in BOTH {
        assert_eq!(rig.alice(protocol).await.get(&target).await.status, 200);
        assert_eq!(rig.alice(protocol).await.get(&path("two", "others")).await.status, 500);
    }
    // Whose the token is, is known, and what was decided about her.
    assert_eq!(erin.send(&ask).await.status, 403);
    assert_eq!(erin.send(&Ask::get(&target).bearer("another")).await.status, 401);
}
