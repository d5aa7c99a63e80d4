//! In front of kube-apiserver, whose service accounts' tokens are verified here.

use serde_json::json;

use crate::client::{Ask, Protocol};
use crate::core_backend::{Core, ERINS_TOKEN, Manner, claims, token};
use crate::issuer::{SigningKey, now};
use crate::rig::eventually;

#[tokio::test]
async fn the_clusters_keys_verify_service_accounts_tokens_and_the_core_is_asked_about_others() {
    let (key, other) = (SigningKey::new("1"), SigningKey::new("2"));
    let core = Core::start(Manner::Believes);
    core.publish(&[&key]);
    let setup = core.setup(&token());
    let local = setup.flag("--service-account-lookup=local");
    let rig = core.portico(local.flag("--service-account-issuer=https://cluster")).await;
    let robots = |key: &SigningKey, id: &str| {
        key.token(&json!({
            "iss": "https://cluster", "aud": "https://cluster", "exp": now() + 600, "jti": id,
            "kubernetes.io": {"namespace": "ns", "serviceaccount": {"name": "robot", "uid": "u-1"}},
        }))
    };
    let ask = async |token: &str| {
        // A refusal ends its connection.
        let mut client = rig.connect(Protocol::Http2, None).await;
        client.send(&Ask::get("/api/v1/pods").bearer(token)).await
    };
    let first = robots(&key, "first");
    eventually("the cluster's keys are known", async || ask(&first).await.status == 200).await;
    let before = core.reviews().len();
    let got = ask(&robots(&key, "second")).await;
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
    assert_eq!(ask(&robots(&other, "third")).await.status, 401);
    assert_eq!(ask(ERINS_TOKEN).await.status, 200);
    assert_eq!(core.reviews().len(), before + 2);
}
