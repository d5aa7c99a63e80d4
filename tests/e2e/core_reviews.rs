//! In front of kube-apiserver, which is asked about tokens, and about requests that do not go to it.

use serde_json::{Value, json};

use crate::backend::{Backend, HTTP2};
use crate::client::{Ask, Protocol};
use crate::core_backend::{Core, ERINS_TOKEN, Manner, PORTICOS_TOKEN, claims, token};
use crate::rig::{eventually, path};

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
    eventually("the extension API server is registered", async || {
        rig.alice(Protocol::Http2).await.get(&target).await;
        !two.seen().is_empty()
    })
    .await;
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
