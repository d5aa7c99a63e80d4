//! Who a caller is, by each method, and who is refused.

use std::time::Duration;

use portico::tls::pki::PemPair;
use serde_json::Value;

use crate::client::{Ask, BOTH, Protocol};
use crate::pki::{Leaf, PKI};
use crate::proxying::Pair;
use crate::rig::{BOBS_TOKEN, Setup, eventually, path};

const CREDENTIAL_ID: &str = "x-remote-extra-authentication.kubernetes.io%2fcredential-id";

/// The headers of what a backend told that say who is calling.
pub(crate) fn identity(told: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    told["headers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| (text(&pair[0]), text(&pair[1])))
        .filter(|(name, _)| name.replace('_', "-").starts_with("x-remote-"))
        .collect()
}

#[track_caller]
fn check(told: &Value, expected: &[(&str, &str)]) {
    let mut got = identity(told);
    // A certificate's fingerprint is not the test's to know.
    got.retain(|(name, value)| {
        name != CREDENTIAL_ID || !value.starts_with("X509SHA256=") || value.len() != 75
    });
    let got: Vec<_> = got.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(got, expected);
}

const BOB: &[(&str, &str)] = &[
    ("x-remote-user", "bob"),
    ("x-remote-uid", "uid-7"),
    ("x-remote-group", "team-a"),
    ("x-remote-group", "team-b"),
    ("x-remote-group", "system:authenticated"),
];

#[tokio::test]
async fn a_client_certificate_names_its_user_and_groups() {
    let pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let got = client.get(&path(name, "things")).await.json();
        assert_eq!(identity(&got).iter().filter(|(name, _)| name == CREDENTIAL_ID).count(), 1);
        let groups = ["dev", "system:authenticated"].map(|group| ("x-remote-group", group));
        check(&got, &[&[("x-remote-user", "alice")], &groups[..]].concat());
    }
}

#[tokio::test]
async fn a_static_token_names_its_user_uid_and_groups() {
    let pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.connect(protocol, None).await;
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let token = format!("{scheme} {BOBS_TOKEN}");
            let ask = Ask::get(path(name, "things")).header("authorization", &token);
            check(&client.send(&ask).await.json(), BOB);
        }
    }
}

#[tokio::test]
async fn a_front_proxy_is_believed_about_the_caller() {
    let pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.connect(protocol, Some(&PKI.front_proxy)).await;
        let ask = Ask::get(path(name, "things"))
            .header("X-Remote-User", "jürgen")
            .header("X-Remote-Uid", "u-1")
            .header("X-Remote-Group", "one,two")
            .header("X-Remote-Group", "three")
            .header("X-Remote-Extra-Example.com%2fScope", "a b")
            .header("X-Remote-Extra-Example.com%2Fscope", "c")
            .bearer(BOBS_TOKEN);
        check(
            &client.send(&ask).await.json(),
            &[
                ("x-remote-user", "jürgen"),
                ("x-remote-uid", "u-1"),
                ("x-remote-group", "one,two"),
                ("x-remote-group", "three"),
                ("x-remote-group", "system:authenticated"),
                ("x-remote-extra-example.com%2fscope", "a b"),
                ("x-remote-extra-example.com%2fscope", "c"),
            ],
        );
    }
}

#[tokio::test]
async fn a_front_proxy_that_names_nobody_is_its_own_certificate_or_token() {
    let pair = Pair::start().await;
    let both = Pair::start_with(Setup::new().file_flag("client-ca-file", "both.crt")).await;
    for (protocol, name) in Pair::ways() {
        let things = Ask::get(path(name, "things"));
        let mut client = both.rig.connect(protocol, Some(&PKI.front_proxy)).await;
        let own = [("x-remote-user", "front-proxy"), ("x-remote-group", "system:authenticated")];
        check(&client.send(&things).await.json(), &own);
        let mut client = pair.rig.connect(protocol, Some(&PKI.front_proxy)).await;
        check(&client.send(&things.clone().bearer(BOBS_TOKEN)).await.json(), BOB);
        assert_eq!(client.send(&things).await.status, 401);
    }
}

#[tokio::test]
async fn a_client_certificate_comes_before_a_token() {
    let pair = Pair::start().await;
    for protocol in BOTH {
        let mut client = pair.rig.alice(protocol).await;
        for token in [BOBS_TOKEN, "wrong"] {
            let got = client.send(&Ask::get(path("two", "things")).bearer(token)).await.json();
            assert_eq!(identity(&got)[0].1, "alice");
        }
    }
}

type Headers<'a> = &'a [(&'a str, &'a str)];

const HEALTH: [&str; 3] = ["/healthz", "/livez", "/readyz"];

fn closed_to_anonymous() -> [String; 7] {
    let things = path("two", "things");
    let apis = "/apis/apiregistration.k8s.io/v1/apiservices";
    ["/", "/apis", "/version", "/metrics", "/unknown", apis, &things].map(str::to_owned)
}

#[tokio::test]
async fn anonymous_callers_reach_the_health_pages_only() {
    let pair = Pair::start().await;
    for protocol in BOTH {
        for target in HEALTH {
            let mut client = pair.rig.connect(protocol, None).await;
            assert_eq!(client.get(target).await.status, 200, "{protocol:?} {target}");
        }
        for target in closed_to_anonymous() {
            let mut client = pair.rig.connect(protocol, None).await;
            let answer = client.get(&target).await;
            assert_eq!(answer.status, 401, "{protocol:?} {target}");
            let status = answer.json();
            assert_eq!(
                (&status["reason"], &status["message"]),
                (&"Unauthorized".into(), &"Unauthorized".into())
            );
        }
    }
    assert_eq!(pair.two.seen().len(), 0);
}

#[tokio::test]
async fn without_anonymous_auth_nothing_answers_without_credentials() {
    let pair = Pair::start_with(Setup::new().flag("--anonymous-auth=false")).await;
    for protocol in BOTH {
        for target in closed_to_anonymous().iter().map(String::as_str).chain(HEALTH) {
            let mut client = pair.rig.connect(protocol, None).await;
            assert_eq!(client.get(target).await.status, 401, "{protocol:?} {target}");
        }
        assert_eq!(pair.rig.alice(protocol).await.get("/healthz").await.status, 200);
    }
}

#[tokio::test]
async fn bad_credentials_are_refused_everywhere() {
    let pair = Pair::start().await;
    let expired = PKI.authority.sign(&Leaf::client("alice", &[]).expired());
    let early = PKI.authority.sign(&Leaf::client("alice", &[]).not_yet_valid());
    let server = PKI.authority.sign(&Leaf::server(&["alice"]));
    let stranger = PKI.stranger.sign(&Leaf::client("alice", &["system:masters"]));
    let other_proxy = PKI.front_proxies.sign(&Leaf::client("other-proxy", &[]));
    let named = ("x-remote-user", "alice");
    let wrong = ("authorization", "Bearer wrong");
    let attempts: [(Option<&PemPair>, Headers<'_>); 8] = [
        (Some(&expired), &[]),
        (Some(&early), &[]),
        (Some(&server), &[]),
        (Some(&stranger), &[]),
        (Some(&stranger), &[named]),
        (Some(&other_proxy), &[named]),
        (None, &[wrong]),
        (None, &[("authorization", "Bearer bobs-secret-token"), wrong]),
    ];
    for protocol in BOTH {
        for (at, (certificate, headers)) in attempts.iter().enumerate() {
            for target in HEALTH.into_iter().chain(["/apis", "/apis/two.example.com/v1/things"]) {
                let mut client = pair.rig.connect(protocol, *certificate).await;
                let mut ask = Ask::get(target);
                for (name, value) in *headers {
                    ask = ask.header(name, value);
                }
                assert_eq!(client.send(&ask).await.status, 401, "{protocol:?} {at} {target}");
            }
        }
    }
    assert_eq!(pair.two.seen().len(), 0);
}

#[tokio::test]
async fn http2_connections_of_anonymous_and_refused_callers_end_with_goaway() {
    let pair = Pair::start().await;
    let requests = [
        (Ask::get("/healthz"), 200),
        (Ask::get("/apis"), 401),
        (Ask::get(path("two", "things")).bearer("wrong"), 401),
    ];
    for (ask, status) in requests {
        let mut client = pair.rig.connect(Protocol::Http2, None).await;
        assert_eq!(client.send(&ask).await.status, status);
        assert_eq!(client.http2().goaway().await, h2::Reason::NO_ERROR);
    }
    let mut client = pair.rig.connect(Protocol::Http2, Some(&PKI.front_proxy)).await;
    let ask = Ask::get(path("two", "things")).header("x-remote-user", "system:anonymous");
    assert_eq!(client.send(&ask).await.status, 200);
    assert_eq!(client.http2().goaway().await, h2::Reason::NO_ERROR);
}

#[tokio::test]
async fn a_certificate_that_expires_during_its_connection_is_refused_from_then_on() {
    let pair = Pair::start().await;
    let brief = PKI.authority.sign(&Leaf::client("brief", &[]).valid_for(Duration::from_secs(3)));
    let mut http1 = pair.rig.connect(Protocol::Http1, Some(&brief)).await;
    let mut http2 = pair.rig.connect(Protocol::Http2, Some(&brief)).await;
    assert_eq!(http1.get(&path("two", "things")).await.status, 200);
    assert_eq!(http2.get(&path("two", "things")).await.status, 200);
    eventually("the certificate's end", async || http1.get("/version").await.status == 401).await;
    assert_eq!(http2.get(&path("two", "things")).await.status, 401);
}
