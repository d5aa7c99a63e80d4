//! A request goes on as whom its caller asks to be, as `kubectl --as` does.

use crate::backend::told;
use crate::client::{Ask, BOTH, Protocol};
use crate::identity::identity;
use crate::pki::PKI;
use crate::proxying::Pair;
use crate::rig::{BOBS_TOKEN, path};

type Lines<'a> = &'a [(&'a str, &'a str)];

fn things(name: &str, lines: Lines<'_>) -> Ask {
    let ask = Ask::get(path(name, "things"));
    lines.iter().fold(ask, |ask, (name, value)| ask.header(name, value))
}

/// Alice sends these headers over each way; the backend is told this identity and of nothing else.
async fn check(pair: &Pair, lines: Lines<'_>, expected: Lines<'_>) {
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let answer = client.send(&things(name, lines)).await;
        assert_eq!(answer.status, 200, "{protocol:?} {name} {}", answer.text());
        let got = identity(&answer.json());
        let got: Vec<_> = got.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(got, expected, "{protocol:?} {name}");
        assert!(!answer.text().to_ascii_lowercase().contains("impersonate"));
    }
}

const AUTHENTICATED: (&str, &str) = ("x-remote-group", "system:authenticated");

#[tokio::test]
async fn the_backend_is_told_the_wanted_user_with_uid_groups_and_extra_keys_and_nobody_else() {
    let pair = Pair::start().await;
    check(&pair, &[("Impersonate-User", "bob")], &[("x-remote-user", "bob"), AUTHENTICATED]).await;
    check(
        &pair,
        &[
            ("Impersonate-Extra-Example.com%2FScope", "one"),
            ("Impersonate-Group", "ops"),
            ("Impersonate-Group", "dev,web"),
            ("Impersonate-Uid", "u-1"),
            ("IMPERSONATE-USER", "jürgen"),
            ("impersonate-extra-example.com%2fscope", "two"),
        ],
        &[
            ("x-remote-user", "jürgen"),
            ("x-remote-uid", "u-1"),
            ("x-remote-group", "ops"),
            ("x-remote-group", "dev,web"),
            AUTHENTICATED,
            ("x-remote-extra-example.com%2fscope", "one"),
            ("x-remote-extra-example.com%2fscope", "two"),
        ],
    )
    .await;
}

#[tokio::test]
async fn service_accounts_and_nodes_have_their_groups_and_administrators_pass() {
    let pair = Pair::start().await;
    let robot = "system:serviceaccount:ns:robot";
    let expected = [
        ("x-remote-user", robot),
        ("x-remote-group", "system:serviceaccounts"),
        ("x-remote-group", "system:serviceaccounts:ns"),
        AUTHENTICATED,
    ];
    check(&pair, &[("Impersonate-User", robot)], &expected).await;
    let node = "system:node:n1";
    let expected = [("x-remote-user", node), ("x-remote-group", "system:nodes"), AUTHENTICATED];
    check(&pair, &[("Impersonate-User", node)], &expected).await;
    let masters = ("x-remote-group", "system:masters");
    check(
        &pair,
        &[("Impersonate-User", "root"), ("Impersonate-Group", "system:masters")],
        &[("x-remote-user", "root"), masters, AUTHENTICATED],
    )
    .await;
}

#[tokio::test]
async fn tokens_and_front_proxies_may_ask_for_somebody_else_too() {
    let pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let asked = things(name, &[("Impersonate-User", "carol")]);
        let mut client = pair.rig.connect(protocol, None).await;
        let got = client.send(&asked.clone().bearer(BOBS_TOKEN)).await.json();
        assert_eq!(told(&got, "headers", "x-remote-user"), ["carol"]);
        assert!(told(&got, "headers", "x-remote-uid").is_empty());
        let mut client = pair.rig.connect(protocol, Some(&PKI.front_proxy)).await;
        let got = client.send(&asked.header("X-Remote-User", "dave")).await.json();
        assert_eq!(told(&got, "headers", "x-remote-user"), ["carol"]);
    }
}

#[tokio::test]
async fn a_caller_is_itself_again_in_its_next_request() {
    let pair = Pair::start().await;
    for protocol in BOTH {
        let mut client = pair.rig.alice(protocol).await;
        for (lines, expected) in
            [(&[("Impersonate-User", "bob")][..], "bob"), (&[], "alice"), (&[], "alice")]
        {
            let got = client.send(&things("two", lines)).await.json();
            assert_eq!(told(&got, "headers", "x-remote-user"), [expected], "{protocol:?}");
        }
    }
}

#[tokio::test]
async fn who_acts_as_anonymous_shares_no_backend_connection_with_others_and_keeps_its_own() {
    let pair = Pair::start().await;
    for protocol in BOTH {
        let mut client = pair.rig.alice(protocol).await;
        let number = async |client: &mut crate::client::Client, lines| {
            client.send(&things("two", lines)).await.json()["connection"].clone()
        };
        let own = number(&mut client, &[]).await;
        let anonymous = number(&mut client, &[("Impersonate-User", "system:anonymous")]).await;
        assert_ne!(own, anonymous, "{protocol:?}");
        // The client authenticated, so that its own connection goes on.
        let answer = client.send(&things("two", &[("Impersonate-User", "system:anonymous")])).await;
        assert_eq!(answer.header("connection"), "");
        let got = answer.json();
        assert_eq!(
            identity(&got),
            [("x-remote-user", "system:anonymous"), ("x-remote-group", "system:unauthenticated")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        assert_eq!(number(&mut client, &[]).await, own);
    }
}

#[tokio::test]
async fn half_a_wish_is_a_bad_request() {
    let pair = Pair::start().await;
    let wishes: [Lines<'_>; 5] = [
        &[("Impersonate-Group", "ops")],
        &[("Impersonate-Uid", "u")],
        &[("Impersonate-Extra-Scopes", "s")],
        &[("Impersonate-User", ""), ("Impersonate-Group", "system:masters")],
        &[("Impersonate-User", "bob"), ("Impersonate-User", "carol")],
    ];
    for protocol in BOTH {
        let mut client = pair.rig.alice(protocol).await;
        for wish in wishes {
            let answer = client.send(&things("two", wish)).await;
            assert_eq!(answer.status, 400, "{protocol:?} {wish:?}");
            assert_eq!(answer.json()["reason"], "BadRequest");
        }
        let answer = client.send(&things("two", wishes[0])).await;
        assert_eq!(
            answer.json()["message"],
            "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"ops\"}, \
             Extra:map[string][]string(nil)} without impersonating a user name"
        );
    }
    assert_eq!(pair.two.seen().len(), 0);
}

#[tokio::test]
async fn nobody_without_credentials_acts_as_somebody_else() {
    let pair = Pair::start().await;
    for protocol in BOTH {
        for (target, status) in [("/healthz", 403), ("/version", 401)] {
            let mut client = pair.rig.connect(protocol, None).await;
            let ask = Ask::get(target).header("Impersonate-User", "alice");
            assert_eq!(client.send(&ask).await.status, status, "{protocol:?} {target}");
        }
    }
    let mut client = pair.rig.alice(Protocol::Http2).await;
    let ask = Ask::get("/version").header("Impersonate-User", "bob");
    assert_eq!(client.send(&ask).await.status, 200);
}
