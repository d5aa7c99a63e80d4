//! In front of kube-apiserver, which is asked about tokens, and about requests that do not go to it.

use serde_json::{Value, json};

use crate::backend::{Backend, HTTP2};
use crate::client::{Ask, Protocol};
use crate::core_backend::{Core, ERINS_TOKEN, Manner, PORTICOS_TOKEN, claims, token};
use crate::issuer::{SigningKey, now};
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

#[tokio::test]
async fn the_clusters_keys_verify_service_accounts_tokens_and_the_core_is_asked_about_others() {
    let (key, other) = (SigningKey::new("1"), SigningKey::new("2"));
    let core = Core::start(Manner::Believes);
    core.publish(&[&key]);
    let setup = core.setup(&token());
    let local = setup.flag("--service-account-lookup=local");
    let rig = core.portico(local.flag("--service-account-issuer=https://cluster")).await;
    let mut client = rig.connect(Protocol::Http2, None).await;
    let robots = |key: &SigningKey, id: &str| {
        key.token(&json!({
            "iss": "https://cluster", "aud": "https://cluster", "exp": now() + 600, "jti": id,
            "kubernetes.io": {"namespace": "ns", "serviceaccount": {"name": "robot", "uid": "u-1"}},
        }))
    };
    let ask = |token: &str| Ask::get("/api/v1/pods").bearer(token);
    let first = robots(&key, "first");
    eventually("the cluster's keys are known", async || {
        client.send(&ask(&first)).await.status == 200
    })
    .await;
    let before = core.reviews().len();
    let got = client.send(&ask(&robots(&key, "second"))).await;
    let got = claims(&got.json());
    let got: Vec<_> = got.iter().map(|(_, value)| value.as_str()).collect();
    assert_eq!(
        got,
        [
            "system:serviceaccount:ns:robot",
            "u-1",
            "system:serviceaccounts",
            "system:serviceaccounts:ns",
            "system:authenticated",
        ]
    );
    assert_eq!(core.reviews().len(), before);
    assert_eq!(client.send(&ask(&robots(&other, "third"))).await.status, 401);
    assert_eq!(client.send(&ask(ERINS_TOKEN)).await.status, 200);
    assert_eq!(core.reviews().len(), before + 2);
}
