//! What callers may do, when a webhook decides.

use serde_json::{Value, json};

use crate::client::{Answer, Ask, BOTH, Protocol};
use crate::pki::PKI;
use crate::proxying::Pair;
use crate::review_server::{Reply, ReviewServer, allowed, not_allowed};
use crate::rig::{BOBS_TOKEN, Setup, eventually, path};

async fn start(server: &ReviewServer, setup: Setup) -> Pair {
    Pair::start_with(server.reviews_access(setup)).await
}

/// Alice may do everything, which the rig takes for granted; others what `script` says.
fn others(script: impl Fn(&Value) -> Reply + Send + Sync + 'static) -> ReviewServer {
    ReviewServer::start(
        move |review| {
            if review["spec"]["user"] == "alice" { allowed() } else { script(review) }
        },
    )
}

async fn as_bob(pair: &Pair, protocol: Protocol, target: &str) -> Answer {
    let mut client = pair.rig.connect(protocol, None).await;
    client.send(&Ask::get(target).bearer(BOBS_TOKEN)).await
}

#[tokio::test]
async fn what_is_allowed_goes_on_and_is_asked_once() {
    let server = others(|_| allowed());
    let pair = start(&server, Setup::new()).await;
    for protocol in BOTH {
        for _ in 0..2 {
            let answer =
                as_bob(&pair, protocol, &path("two", "namespaces/n/things/a/status")).await;
            assert_eq!(answer.status, 200);
        }
    }
    let expected = json!({
        "user": "bob", "uid": "uid-7", "group": ["team-a", "team-b", "system:authenticated"],
        "resourceAttributes": {
            "verb": "get", "group": "two.example.com", "version": "v1", "namespace": "n",
            "resource": "things", "subresource": "status", "name": "a",
        },
    });
    assert_eq!(server.access("bob"), [expected]);
    let name = "portico_access_review_cache_request_total";
    assert!(pair.rig.metric(name, &["status=\"hit\""]).await.unwrap() >= 3.0);
    let name = "apiserver_delegated_authz_request_total";
    assert!(pair.rig.metric(name, &["code=\"201\""]).await.unwrap() >= 1.0);
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_with_the_reviewers_reason_and_asked_once() {
    let server = others(|_| not_allowed("no <role>"));
    let pair = start(&server, Setup::new()).await;
    for protocol in BOTH {
        let answer = as_bob(&pair, protocol, &path("two", "things")).await;
        assert_eq!(answer.status, 403);
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(
            answer.json()["message"],
            "things.two.example.com is forbidden: User \"bob\" cannot list resource \"things\" in \
             API group \"two.example.com\" at the cluster scope: no <role>"
        );
    }
    assert_eq!(server.access("bob").len(), 1);
    assert!(pair.two.seen().is_empty());
    let answer = as_bob(&pair, Protocol::Http2, "/apis").await;
    let text = "forbidden: User \"bob\" cannot get path \"/apis\": no <role>";
    assert_eq!(answer.json()["message"], text);
    let asked = &server.access("bob")[1]["nonResourceAttributes"];
    assert_eq!(asked, &json!({"path": "/apis", "verb": "get"}));
}

#[tokio::test]
async fn whether_something_exists_is_told_only_to_who_may_ask() {
    let server = others(|_| not_allowed(""));
    let pair = start(&server, Setup::new()).await;
    let target = path("nobody", "things");
    assert_eq!(as_bob(&pair, Protocol::Http2, &target).await.status, 403);
    assert_eq!(pair.rig.alice(Protocol::Http2).await.get(&target).await.status, 404);
}

#[tokio::test]
async fn a_denial_counts_and_contradictions_are_an_error() {
    let server = others(|review| match review["spec"]["resourceAttributes"]["name"].as_str() {
        Some("denied") => (200, json!({"status": {"allowed": false, "denied": true}})),
        _ => (200, json!({"status": {"allowed": true, "denied": true}})),
    });
    let setup = server.reviews_access_among(Setup::new(), "AlwaysDeny,Webhook,AlwaysAllow");
    let pair = Pair::start_with(setup).await;
    assert_eq!(as_bob(&pair, Protocol::Http2, &path("two", "things/denied")).await.status, 403);
    let answer = as_bob(&pair, Protocol::Http2, &path("two", "things/both")).await;
    assert_eq!(answer.status, 500);
    let text = "Internal Server Error: \"/apis/two.example.com/v1/things/both\": webhook subject \
                access review returned both allow and deny response\n";
    assert_eq!(answer.text(), text);
    // Where the webhook is of no opinion, the next mode decides.
    server.answer(|_| not_allowed(""));
    assert_eq!(as_bob(&pair, Protocol::Http2, &path("two", "things/other")).await.status, 200);
}

#[tokio::test]
async fn without_a_reviewer_there_is_an_error_in_plain_text_but_for_who_needs_none() {
    let server = others(|_| allowed());
    let pair = start(&server, Setup::new()).await;
    drop(server);
    for protocol in BOTH {
        let answer = as_bob(&pair, protocol, &path("two", "things?a=b&c")).await;
        assert_eq!(answer.status, 500);
        assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        let text = answer.text();
        let begin = "Internal Server Error: \"/apis/two.example.com/v1/things?a=b&amp;c\": ";
        assert!(text.starts_with(begin) && text.ends_with('\n'), "{text}");
        assert!(!text.contains("127.0.0.1"), "{text}");
        let mut master = pair.rig.connect(protocol, Some(&PKI.master)).await;
        assert_eq!(master.get(&path("two", "things")).await.status, 200);
        let mut nobody = pair.rig.connect(protocol, None).await;
        assert_eq!(nobody.get("/livez").await.status, 200);
    }
}

#[tokio::test]
async fn decisions_outlive_an_outage_for_as_long_as_they_are_told_to() {
    let server = others(|review| match review["spec"]["resourceAttributes"]["name"].as_str() {
        Some("yes") => allowed(),
        _ => not_allowed("no"),
    });
    let setup = Setup::new()
        .flag("--authorization-webhook-cache-authorized-ttl=1ms")
        .flag("--authorization-webhook-cache-unauthorized-ttl=1ms")
        .flag("--review-cache-outage-ttl=1h");
    let pair = start(&server, setup).await;
    let status = async |name: &str| {
        as_bob(&pair, Protocol::Http2, &path("two", &format!("things/{name}"))).await.status
    };
    assert_eq!((status("yes").await, status("no").await), (200, 403));
    drop(server);
    eventually("decisions past their time", async || {
        assert_eq!((status("yes").await, status("no").await), (200, 403));
        let name = "portico_access_review_cache_request_total";
        pair.rig.metric(name, &["status=\"outage\""]).await.is_some_and(|count| count > 3.0)
    })
    .await;
    assert_eq!(status("new").await, 500);
}

#[tokio::test]
async fn a_decision_is_good_for_its_time_only_and_large_ones_are_not_kept() {
    let server = others(|_| not_allowed(""));
    let setup = Setup::new().flag("--authorization-webhook-cache-unauthorized-ttl=1ms");
    let pair = start(&server, setup).await;
    let target = path("two", "things");
    assert_eq!(as_bob(&pair, Protocol::Http2, &target).await.status, 403);
    server.answer(|_| allowed());
    eventually("the decision's end", async || {
        as_bob(&pair, Protocol::Http2, &target).await.status == 200
    })
    .await;
    server.answer(|_| not_allowed(""));
    assert_eq!(as_bob(&pair, Protocol::Http2, &target).await.status, 200);
    let (before, large) = (server.access("bob").len(), "x".repeat(10_000));
    for asked in 1..=2 {
        let target = path("two", &format!("things/{large}"));
        assert_eq!(as_bob(&pair, Protocol::Http2, &target).await.status, 403);
        assert_eq!(server.access("bob").len(), before + asked);
    }
}

#[tokio::test]
async fn callers_of_front_proxies_are_reviewed_with_uid_and_extra_keys() {
    let server = others(|_| allowed());
    let setup = Setup::new().flag("--authorization-webhook-version=v1");
    let pair = start(&server, setup).await;
    for protocol in BOTH {
        let mut client = pair.rig.connect(protocol, Some(&PKI.front_proxy)).await;
        let ask = Ask::get(path("two", "things"))
            .header("X-Remote-User", "dave")
            .header("X-Remote-Uid", "d-1")
            .header("X-Remote-Group", "one")
            .header("X-Remote-Extra-Example.com%2fscope", "s");
        assert_eq!(client.send(&ask).await.status, 200);
    }
    let asked = server.access("dave");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0]["uid"], "d-1");
    assert_eq!(asked[0]["groups"], json!(["one", "system:authenticated"]));
    assert_eq!(asked[0]["extra"], json!({"example.com/scope": ["s"]}));
}

#[tokio::test]
async fn what_narrows_a_list_is_told_and_counts() {
    let server = others(|review| {
        let named = review["spec"]["resourceAttributes"]["name"] == "a";
        if named { allowed() } else { not_allowed("") }
    });
    let pair = start(&server, Setup::new()).await;
    let ask = async |query: &str| {
        as_bob(&pair, Protocol::Http2, &path("two", &format!("things?{query}"))).await.status
    };
    assert_eq!(ask("fieldSelector=metadata.name%3Da&labelSelector=x+in+(y)").await, 200);
    assert_eq!(ask("labelSelector=x+in+(y)").await, 403);
    assert_eq!(ask("limit=1").await, 403);
    let asked = server.access("bob");
    assert_eq!(asked.len(), 3);
    let attributes = &asked[0]["resourceAttributes"];
    let field = json!({"key": "metadata.name", "operator": "In", "values": ["a"]});
    assert_eq!(attributes["fieldSelector"], json!({"requirements": [field]}));
    let label = json!({"key": "x", "operator": "In", "values": ["y"]});
    assert_eq!(attributes["labelSelector"], json!({"requirements": [label]}));
}

#[tokio::test]
async fn each_step_of_impersonation_is_asked_for() {
    let server = others(|review| {
        let wish = &review["spec"]["resourceAttributes"];
        let asks_for_carol = wish["resource"] == "users" && wish["name"] == "carol";
        match (review["spec"]["user"].as_str(), wish["verb"].as_str()) {
            (Some("carol"), _) => allowed(),
            (_, Some("impersonate")) if asks_for_carol => allowed(),
            _ => not_allowed("not in the list"),
        }
    });
    let pair = start(&server, Setup::new()).await;
    let mut client = pair.rig.connect(Protocol::Http2, None).await;
    let things = Ask::get(path("two", "things")).bearer(BOBS_TOKEN);
    let as_carol = things.clone().header("Impersonate-User", "carol");
    assert_eq!(client.send(&as_carol).await.status, 200);
    let verbs = |user: &str| -> Vec<String> {
        let asked = server.access(user);
        let verbs =
            asked.iter().map(|it| it["resourceAttributes"]["verb"].as_str().unwrap().to_owned());
        verbs.collect()
    };
    assert_eq!(verbs("bob"), ["impersonate-on:user-info:list", "impersonate"]);
    assert_eq!(verbs("carol"), ["list"]);
    // All of it is known now.
    assert_eq!(client.send(&as_carol).await.status, 200);
    assert_eq!((verbs("bob").len(), verbs("carol").len()), (2, 1));
    let answer = client.send(&things.header("Impersonate-User", "dave")).await;
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.json()["message"],
        "things.two.example.com is forbidden: User \"bob\" cannot impersonate-on:user-info:list \
         resource \"things\" in API group \"two.example.com\" at the cluster scope: not in the list"
    );
    assert_eq!(verbs("bob").last().map(String::as_str), Some("impersonate"));
}

#[tokio::test]
async fn callers_without_credentials_are_reviewed_when_they_are_accepted() {
    let server = others(|review| match review["spec"]["user"].as_str() {
        Some("system:anonymous") => not_allowed("who are you"),
        _ => allowed(),
    });
    let pair = start(&server, Setup::new().flag("--anonymous-auth")).await;
    let mut client = pair.rig.connect(Protocol::Http2, None).await;
    let answer = client.get("/version").await;
    assert_eq!(answer.status, 403);
    let text = "forbidden: User \"system:anonymous\" cannot get path \"/version\": who are you";
    assert_eq!(answer.json()["message"], text);
}
