//! Bearer tokens that only a webhook knows.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::client::{Answer, Ask, BOTH, Protocol};
use crate::identity::identity;
use crate::proxying::Pair;
use crate::review_server::{Reply, ReviewServer, nobodys, whose};
use crate::rig::{BOBS_TOKEN, Setup, eventually, path, within};

/// Callers at a time.
const MANY: usize = 50;

fn carol(_: &Value) -> Reply {
    whose(&json!({
        "username": "carol", "uid": "c-1", "groups": ["ops"],
        "extra": {"example.com/scope": ["one", "two"]},
    }))
}

async fn start(server: &ReviewServer, setup: Setup) -> Pair {
    Pair::start_with(server.reviews_tokens(setup)).await
}

async fn get(pair: &Pair, protocol: Protocol, token: &str) -> Answer {
    let mut client = pair.rig.connect(protocol, None).await;
    client.send(&Ask::get(path("two", "things")).bearer(token)).await
}

#[tokio::test]
async fn a_reviewed_token_names_its_user_uid_groups_and_extra_keys_and_is_asked_about_once() {
    let server = ReviewServer::start(carol);
    let pair = start(&server, Setup::new()).await;
    let expected = [
        ("x-remote-user", "carol"),
        ("x-remote-uid", "c-1"),
        ("x-remote-group", "ops"),
        ("x-remote-group", "system:authenticated"),
        ("x-remote-extra-example.com%2fscope", "one"),
        ("x-remote-extra-example.com%2fscope", "two"),
    ];
    for protocol in BOTH {
        let got = identity(&get(&pair, protocol, "carols").await.json());
        let got: Vec<_> = got.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(got, expected);
    }
    let expected = json!({
        "apiVersion": "authentication.k8s.io/v1beta1",
        "kind": "TokenReview",
        "path": "/token",
        "spec": {"token": "carols"},
    });
    assert_eq!(server.reviews(), [expected]);
    let name = "authentication_token_cache_request_total";
    assert_eq!(pair.rig.metric(name, &["status=\"hit\""]).await, Some(1.0));
    assert_eq!(pair.rig.metric(name, &["status=\"miss\""]).await, Some(1.0));
    let name = "apiserver_delegated_authn_request_total";
    assert_eq!(pair.rig.metric(name, &["code=\"201\""]).await, Some(1.0));
}

#[tokio::test]
async fn a_refused_token_is_refused_again_without_being_asked_about() {
    let server = ReviewServer::start(|_| nobodys("invalid bearer token, expired"));
    let pair = start(&server, Setup::new()).await;
    for protocol in BOTH {
        let answer = get(&pair, protocol, "wrong").await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.json()["message"], "Unauthorized");
    }
    assert_eq!(server.tokens("wrong").len(), 1);
    assert!(pair.two.seen().is_empty());
}

#[tokio::test]
async fn what_another_authenticator_knows_is_not_asked_about() {
    let server = ReviewServer::start(carol);
    let pair = start(&server, Setup::new()).await;
    for protocol in BOTH {
        let got = get(&pair, protocol, BOBS_TOKEN).await.json();
        assert_eq!(identity(&got)[0].1, "bob");
        let mut alice = pair.rig.alice(protocol).await;
        let ask = Ask::get(path("two", "things")).bearer("carols");
        assert_eq!(identity(&alice.send(&ask).await.json())[0].1, "alice");
    }
    assert_eq!(server.reviews(), Vec::<Value>::new());
}

#[tokio::test]
async fn a_failed_review_refuses_the_token_and_is_not_kept() {
    let server = ReviewServer::start(|_| (503, json!({})));
    let pair = start(&server, Setup::new()).await;
    assert_eq!(get(&pair, Protocol::Http2, "carols").await.status, 401);
    server.answer(|_| (200, json!({"status": "nonsense"})));
    assert_eq!(get(&pair, Protocol::Http2, "carols").await.status, 401);
    server.answer(carol);
    assert_eq!(get(&pair, Protocol::Http2, "carols").await.status, 200);
    assert_eq!(server.tokens("carols").len(), 3);
}

#[tokio::test]
async fn a_reviewer_with_an_internal_error_is_asked_again() {
    let server = ReviewServer::start(|_| (500, json!({"reason": "InternalError"})));
    let pair = start(&server, Setup::new()).await;
    let mut client = pair.rig.connect(Protocol::Http2, None).await;
    let ask = Ask::get(path("two", "things")).bearer("carols");
    let asking = client.send(&ask);
    let healing = async {
        eventually("a first review", async || !server.tokens("carols").is_empty()).await;
        server.answer(carol);
    };
    let (answer, ()) = tokio::join!(asking, healing);
    assert_eq!(answer.status, 200);
    assert_eq!(server.tokens("carols").len(), 2);
}

#[tokio::test]
async fn many_callers_with_one_token_ask_once_over_all_threads() {
    let server = Arc::new(ReviewServer::start(carol));
    let pair = start(&server, Setup::new().flag("--data-plane-threads=2")).await;
    server.hold();
    let mut clients = Vec::new();
    for number in 0..MANY {
        clients.push(pair.rig.connect(BOTH[number % 2], None).await);
    }
    let ask = Ask::get(path("two", "things")).bearer("carols");
    let asking = futures_util::future::join_all(clients.iter_mut().map(|client| client.send(&ask)));
    let releasing = async {
        let name = "authentication_token_cache_active_fetch_count";
        pair.rig.await_metric(name, &["status=\"blocked\""], 50.0).await;
        server.release();
    };
    let all = Box::pin(async { tokio::join!(asking, releasing) });
    let (answers, ()) = within("all answers", all).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    // One, or one a thread when the machine is slow: none waits long for another's.
    assert!((1..=2).contains(&server.tokens("carols").len()));
}

#[tokio::test]
async fn a_review_goes_on_when_its_caller_has_gone() {
    let server = ReviewServer::start(carol);
    let pair = start(&server, Setup::new()).await;
    server.hold();
    let mut client = pair.rig.connect(Protocol::Http2, None).await;
    let ask = Ask::get(path("two", "things")).bearer("carols");
    tokio::select! {
        _ = client.send(&ask) => panic!("answered before the review"),
        () = eventually("a review", async || !server.tokens("carols").is_empty()) => {}
    }
    drop(client);
    let name = "authentication_token_cache_active_fetch_count";
    pair.rig.await_metric(name, &["status=\"blocked\""], 0.0).await;
    server.release();
    pair.rig.await_metric(name, &["status=\"in_flight\""], 0.0).await;
    assert_eq!(get(&pair, Protocol::Http1, "carols").await.status, 200);
    assert_eq!(server.tokens("carols").len(), 1);
}

#[tokio::test]
async fn a_request_waits_no_longer_than_its_own_time_and_the_review_goes_on() {
    let server = ReviewServer::start(carol);
    let pair = start(&server, Setup::new()).await;
    server.hold();
    let mut client = pair.rig.connect(Protocol::Http2, None).await;
    let ask = Ask::get(path("two", "things?timeout=50ms")).bearer("carols");
    let answer = client.send(&ask).await;
    assert_eq!(answer.status, 504);
    let text = "Timeout: request did not complete within the allotted timeout";
    assert_eq!(
        (&answer.json()["reason"], answer.json()["message"].as_str()),
        (&"Timeout".into(), Some(text))
    );
    server.release();
    assert_eq!(get(&pair, Protocol::Http2, "carols").await.status, 200);
    assert_eq!(server.tokens("carols").len(), 1);
}

#[tokio::test]
async fn an_answer_is_good_for_its_time_only() {
    let server = ReviewServer::start(carol);
    let setup = Setup::new().flag("--authentication-token-webhook-cache-ttl=1ms");
    let pair = start(&server, setup).await;
    assert_eq!(get(&pair, Protocol::Http2, "carols").await.status, 200);
    server.answer(|_| nobodys(""));
    eventually("the answer's end", async || {
        get(&pair, Protocol::Http2, "carols").await.status == 401
    })
    .await;
    assert!(server.tokens("carols").len() >= 2);
    let never = Setup::new().flag("--authentication-token-webhook-cache-ttl=0s");
    let pair = start(&server, never).await;
    for asked in 1..=3 {
        assert_eq!(get(&pair, Protocol::Http2, "daves").await.status, 401);
        assert_eq!(server.tokens("daves").len(), asked);
    }
}

#[tokio::test]
async fn known_tokens_outlive_an_outage_for_as_long_as_they_are_told_to() {
    let server = ReviewServer::start(carol);
    let setup = Setup::new()
        .flag("--authentication-token-webhook-cache-ttl=1ms")
        .flag("--review-cache-outage-ttl=1h");
    let pair = start(&server, setup).await;
    let brief = Setup::new().flag("--authentication-token-webhook-cache-ttl=1ms");
    let other = start(&server, brief).await;
    for pair in [&pair, &other] {
        assert_eq!(get(pair, Protocol::Http2, "carols").await.status, 200);
    }
    drop(server);
    let name = "authentication_token_cache_request_total";
    eventually("an answer past its time", async || {
        assert_eq!(get(&pair, Protocol::Http2, "carols").await.status, 200);
        pair.rig.metric(name, &["status=\"outage\""]).await.is_some_and(|count| count > 1.0)
    })
    .await;
    assert_eq!(get(&pair, Protocol::Http2, "daves").await.status, 401);
    eventually("the answer's end", async || {
        get(&other, Protocol::Http2, "carols").await.status == 401
    })
    .await;
}

#[tokio::test]
async fn who_is_refused_after_an_outage_is_not_let_in_by_what_was_known() {
    let server = ReviewServer::start(carol);
    let setup = Setup::new()
        .flag("--authentication-token-webhook-cache-ttl=1ms")
        .flag("--review-cache-outage-ttl=1h");
    let pair = start(&server, setup).await;
    assert_eq!(get(&pair, Protocol::Http2, "carols").await.status, 200);
    server.answer(|_| nobodys("deleted"));
    eventually("the refusal", async || get(&pair, Protocol::Http2, "carols").await.status == 401)
        .await;
    drop(server);
    for _ in 0..3 {
        assert_eq!(get(&pair, Protocol::Http2, "carols").await.status, 401);
    }
}

#[tokio::test]
async fn tokens_are_to_be_good_for_the_audiences_that_are_named() {
    let server = ReviewServer::start(|review| {
        let (_, mut body) = carol(review);
        body["status"]["audiences"] = json!([review["spec"]["token"]]);
        (201, body)
    });
    let setup = Setup::new()
        .flag("--api-audiences=api,other")
        .flag("--authentication-token-webhook-version=v1");
    let pair = start(&server, setup).await;
    assert_eq!(get(&pair, Protocol::Http2, "api").await.status, 200);
    assert_eq!(get(&pair, Protocol::Http2, "elsewhere").await.status, 401);
    assert_eq!(server.tokens("api")[0]["audiences"], json!(["api", "other"]));
    assert_eq!(server.reviews()[0]["apiVersion"], "authentication.k8s.io/v1");
}
