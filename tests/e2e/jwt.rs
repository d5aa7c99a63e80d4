//! Tokens that are verified here: of issuers that a file or flags name, and of service accounts.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::client::{Ask, Protocol};
use crate::identity::identity;
use crate::issuer::{Issuer, SigningKey, now};
use crate::pki::PKI;
use crate::proxying::Pair;
use crate::review_server::{ReviewServer, nobodys, whose};
use crate::rig::{BOBS_TOKEN, Rig, Setup, eventually, path, within};

const CONFIG: &str = "authentication.yaml";

/// A file that names this issuer, with the user name mapped by an expression.
fn configuration(issuer: &Issuer, username: &str) -> String {
    let authority = PKI.authority.certificate().replace('\n', "\n      ");
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n\
         - issuer:\n    url: {}\n    audiences: [me, other]\n    audienceMatchPolicy: MatchAny\n    \
         certificateAuthority: |\n      {authority}\n  \
         claimValidationRules:\n  - {{expression: \"claims.?hd.orValue('own') == 'own'\"}}\n  \
         claimMappings:\n    username: {{expression: \"{username}\"}}\n    \
         groups: {{expression: \"claims.?roles.orValue([]).map(r, 'oidc:' + r)\"}}\n    \
         uid: {{claim: uid}}\n    \
         extra: [{{key: example.org/tenant, valueExpression: 'claims.?tenant.orValue([])'}}]\n  \
         userValidationRules:\n  - expression: \"!user.username.startsWith('system:')\"\n",
        issuer.url
    )
}

const USERNAME: &str = "'oidc:' + claims.sub";

/// With the issuer's file, and soon at a changed key.
fn setup(issuer: &Issuer) -> Setup {
    let setup = Setup::new();
    std::fs::write(setup.path(CONFIG), configuration(issuer, USERNAME)).unwrap();
    quick(setup.file_flag("authentication-config", CONFIG))
}

pub(crate) fn quick(setup: Setup) -> Setup {
    setup.edit(|config, _| config.auth.jwt.retry_interval = Duration::from_millis(20))
}

/// What a caller with this token gets.
async fn ask(rig: &Rig, protocol: Protocol, token: &str) -> (u16, Vec<(String, String)>) {
    let mut client = rig.connect(protocol, None).await;
    let answer = client.send(&Ask::get(path("two", "things")).bearer(token)).await;
    let told = if answer.status == 200 { identity(&answer.json()) } else { Vec::new() };
    (answer.status, told)
}

pub(crate) async fn status(rig: &Rig, token: &str) -> u16 {
    ask(rig, Protocol::Http2, token).await.0
}

pub(crate) async fn until_accepted(rig: &Rig, token: &str) {
    eventually("the token is accepted", async || status(rig, token).await == 200).await;
}

async fn user(rig: &Rig, token: &str) -> String {
    ask(rig, Protocol::Http1, token)
        .await
        .1
        .first()
        .map(|(_, name)| name.clone())
        .unwrap_or_default()
}

fn with(mut claims: Value, name: &str, value: impl Into<Value>) -> Value {
    claims[name] = value.into();
    claims
}

#[tokio::test]
async fn a_token_of_a_configured_issuer_names_its_user_to_the_backend() {
    let key = SigningKey::new("k1");
    let issuer = Issuer::start(&[&key]);
    let pair = Pair::start_with(setup(&issuer)).await;
    let mut claims = with(issuer.claims("jane"), "roles", json!(["dev", "ops"]));
    claims = with(with(with(claims, "uid", "u-1"), "tenant", "t-1"), "jti", "id-1");
    let token = key.token(&claims);
    until_accepted(&pair.rig, &token).await;
    let expected = [
        ("x-remote-user", "oidc:jane"),
        ("x-remote-uid", "u-1"),
        ("x-remote-group", "oidc:dev"),
        ("x-remote-group", "oidc:ops"),
        ("x-remote-group", "system:authenticated"),
        ("x-remote-extra-authentication.kubernetes.io%2fcredential-id", "JTI=id-1"),
        ("x-remote-extra-example.org%2ftenant", "t-1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.connect(protocol, None).await;
        let got = client.send(&Ask::get(path(name, "things")).bearer(&token)).await.json();
        assert_eq!(identity(&got), expected, "{protocol:?} {name}");
        let headers = got["headers"].as_array().unwrap();
        assert!(headers.iter().all(|pair| pair[0] != "authorization"));
    }
    // Those of the file of tokens are known all the same.
    assert_eq!(user(&pair.rig, BOBS_TOKEN).await, "bob");
}

#[tokio::test]
async fn a_token_that_does_not_count_is_refused_and_never_anonymous() {
    let key = SigningKey::new("k1");
    let issuer = Issuer::start(&[&key]);
    let pair = Pair::start_with(setup(&issuer)).await;
    let claims = || with(issuer.claims("jane"), "uid", "u");
    until_accepted(&pair.rig, &key.token(&claims())).await;
    let header = |algorithm: &str| json!({"alg": algorithm, "kid": "k1"});
    let unsigned = |algorithm: &str| {
        let token = key.token_with(&header(algorithm), &claims());
        format!("{}.", token.rsplit_once('.').unwrap().0)
    };
    let forged = {
        let (own, other) = (key.token(&claims()), key.token(&with(claims(), "sub", "root")));
        let signature = own.rsplit_once('.').unwrap().1;
        format!("{}.{signature}", other.rsplit_once('.').unwrap().0)
    };
    let tokens = [
        key.token(&with(claims(), "exp", now() - 1)),
        key.token(&with(claims(), "nbf", now() + 3600)),
        key.token(&with(claims(), "aud", "somebody")),
        key.token(&with(claims(), "iss", "https://localhost")),
        key.token(&with(claims(), "hd", "another")),
        key.token(&with(claims(), "sub", 7)),
        key.token(&issuer.claims("without-uid")),
        SigningKey::new("k1").token(&claims()),
        key.token_with(&header("HS256"), &claims()),
        key.token_with(&header("RS256"), &claims()),
        unsigned("none"),
        unsigned("ES256"),
        forged,
        format!("{}.e30.{}", BASE64_URL_SAFE_NO_PAD.encode("{}"), "x"),
        "a.b.c".to_owned(),
    ];
    for token in tokens {
        assert_eq!(status(&pair.rig, &token).await, 401, "{token}");
        let mut client = pair.rig.connect(Protocol::Http1, None).await;
        let health = client.send(&Ask::get("/livez").bearer(&token)).await;
        assert_eq!(health.status, 401, "{token}");
    }
    let system = key.token(&with(claims(), "sub", "x"));
    assert_eq!(status(&pair.rig, &system).await, 200);
}

#[tokio::test]
async fn rotated_keys_are_fetched_and_old_ones_kept_while_the_issuer_is_down() {
    let (old, new) = (SigningKey::new("k1"), SigningKey::new("k2"));
    let issuer = Issuer::start(&[&old]);
    let pair = Pair::start_with(setup(&issuer)).await;
    let token =
        |key: &SigningKey, subject: &str| key.token(&with(issuer.claims(subject), "uid", "u"));
    until_accepted(&pair.rig, &token(&old, "first")).await;
    assert_eq!(status(&pair.rig, &token(&new, "early")).await, 401);
    issuer.set_down(true);
    let before = issuer.asked();
    eventually("the issuer is asked in vain", async || {
        assert_eq!(status(&pair.rig, &token(&new, "down")).await, 401);
        issuer.asked() > before
    })
    .await;
    assert_eq!(status(&pair.rig, &token(&old, "second")).await, 200);
    issuer.publish(&[&new]);
    issuer.set_down(false);
    until_accepted(&pair.rig, &token(&new, "late")).await;
    assert_eq!(status(&pair.rig, &token(&old, "third")).await, 401);
}

#[tokio::test]
async fn many_tokens_of_a_new_key_wait_for_one_fetch() {
    let (old, new) = (SigningKey::new("k1"), SigningKey::new("k2"));
    let issuer = Issuer::start(&[&old]);
    let pair = Pair::start_with(
        setup(&issuer).edit(|config, _| config.auth.jwt.retry_interval = Duration::from_millis(1)),
    )
    .await;
    let token =
        |key: &SigningKey, subject: &str| key.token(&with(issuer.claims(subject), "uid", "u"));
    until_accepted(&pair.rig, &token(&old, "first")).await;
    issuer.publish(&[&old, &new]);
    let before = issuer.asked();
    let asking = (0..20).map(|number| {
        let (rig, token) = (&pair.rig, token(&new, &format!("user-{number}")));
        async move { status(rig, &token).await }
    });
    assert_eq!(futures_util::future::join_all(asking).await, [200; 20]);
    // For each fetch a document and the keys; a second one may have been asked for at the last moment.
    assert!(issuer.asked() <= before + 4, "{} times", issuer.asked() - before);
}

#[tokio::test]
async fn a_webhook_is_asked_about_tokens_that_nobody_here_believes() {
    let key = SigningKey::new("k1");
    let issuer = Issuer::start(&[&key]);
    let claims = || with(issuer.claims("jane"), "uid", "u");
    let expired = key.token(&with(claims(), "exp", now() - 1));
    let (unknown, foreign) = (
        SigningKey::new("k2").token(&claims()),
        key.token(&with(claims(), "iss", "https://elsewhere")),
    );
    let known = foreign.clone();
    let webhook = ReviewServer::start(move |review| match review["spec"]["token"].as_str() {
        Some(token) if token == known => whose(&json!({"username": "carol"})),
        _ => nobodys("no"),
    });
    let pair = Pair::start_with(webhook.reviews_tokens(setup(&issuer))).await;
    let good = key.token(&claims());
    eventually("the issuer's keys are known", async || user(&pair.rig, &good).await == "oidc:jane")
        .await;
    assert_eq!(user(&pair.rig, &foreign).await, "carol");
    for token in [&expired, &unknown] {
        assert_eq!(status(&pair.rig, token).await, 401);
    }
    for token in [&foreign, &expired, &unknown] {
        assert_eq!(webhook.tokens(token).len(), 1);
    }
    let asked = webhook.reviews().len();
    assert_eq!(user(&pair.rig, &key.token(&with(claims(), "sub", "june"))).await, "oidc:june");
    assert_eq!(webhook.reviews().len(), asked);
}

#[tokio::test]
async fn whom_the_webhook_knows_does_not_wait_for_an_issuer_that_hangs() {
    let (known, new) = (SigningKey::new("k1"), SigningKey::new("k2"));
    let issuer = Issuer::start(&[&known]);
    let webhook = ReviewServer::start(|_| whose(&json!({"username": "carol"})));
    let pair = Pair::start_with(webhook.reviews_tokens(setup(&issuer))).await;
    let token = |key: &SigningKey| key.token(&with(issuer.claims("jane"), "uid", "u"));
    let (own, reviewed) = (token(&known), token(&new));
    eventually("the issuer's keys are known", async || user(&pair.rig, &own).await == "oidc:jane")
        .await;
    assert_eq!(user(&pair.rig, &reviewed).await, "carol");
    issuer.hold();
    let before = issuer.asked();
    eventually("the issuer is asked in vain", async || {
        assert_eq!(user(&pair.rig, &reviewed).await, "carol");
        issuer.asked() > before
    })
    .await;
    // A wait for keys takes five seconds.
    within("the answers", async {
        for _ in 0..10 {
            assert_eq!(user(&pair.rig, &reviewed).await, "carol");
        }
    })
    .await;
    assert_eq!(webhook.tokens(&reviewed).len(), 1);
}

#[tokio::test]
async fn an_issuer_that_comes_later_is_waited_for() {
    let key = SigningKey::new("k1");
    let issuer = Issuer::start(&[&key]);
    issuer.set_down(true);
    let pair = Pair::start_with(setup(&issuer)).await;
    let token = key.token(&with(issuer.claims("jane"), "uid", "u"));
    eventually("the issuer is asked", async || issuer.asked() > 0).await;
    assert_eq!(status(&pair.rig, &token).await, 401);
    issuer.set_down(false);
    until_accepted(&pair.rig, &token).await;
}

#[tokio::test]
async fn a_changed_file_takes_effect_and_a_wrong_one_does_not() {
    let key = SigningKey::new("k1");
    let issuer = Issuer::start(&[&key]);
    let pair = Pair::start_with(setup(&issuer)).await;
    let rig = &pair.rig;
    let token = key.token(&with(issuer.claims("jane"), "uid", "u"));
    until_accepted(rig, &token).await;
    assert_eq!(user(rig, &token).await, "oidc:jane");
    let write = |text: &str| {
        std::fs::write(rig.path("partial.yaml"), text).unwrap();
        std::fs::rename(rig.path("partial.yaml"), rig.path(CONFIG)).unwrap();
    };
    let asked = issuer.asked();
    let second = configuration(&issuer, "'second:' + claims.sub");
    write(&second);
    eventually("the second file", async || user(rig, &token).await == "second:jane").await;
    // Keys that are known are not fetched again.
    assert_eq!(issuer.asked(), asked);
    write("jwt: [");
    write(&second.replace("claims.sub", "nothing.sub"));
    write(&format!("{second}anonymous: {{enabled: true}}\n"));
    let reloads = "apiserver_authentication_config_controller_automatic_reloads_total";
    eventually("the last of them is refused", async || {
        rig.metric(reloads, &["status=\"failure\""]).await.is_some()
    })
    .await;
    assert_eq!(user(rig, &token).await, "second:jane");
    write(&configuration(&issuer, "'third:' + claims.sub"));
    eventually("the third file", async || user(rig, &token).await == "third:jane").await;
    write("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n");
    eventually("nobody is believed", async || status(rig, &token).await == 401).await;
}

#[tokio::test]
async fn a_new_issuer_takes_effect_once_its_keys_are_there() {
    let (key, new_key) = (SigningKey::new("k1"), SigningKey::new("k1"));
    let (issuer, new) = (Issuer::start(&[&key]), Issuer::start(&[&new_key]));
    new.set_down(true);
    let pair = Pair::start_with(setup(&issuer)).await;
    let rig = &pair.rig;
    let token = key.token(&with(issuer.claims("jane"), "uid", "u"));
    let of_new = new_key.token(&with(new.claims("june"), "uid", "u"));
    until_accepted(rig, &token).await;
    let more = configuration(&new, USERNAME);
    let text =
        configuration(&issuer, "'second:' + claims.sub") + more.split_once("jwt:\n").unwrap().1;
    std::fs::write(rig.path(CONFIG), text).unwrap();
    eventually("the new issuer is asked", async || new.asked() > 0).await;
    let reloads = "apiserver_authentication_config_controller_automatic_reloads_total";
    assert_eq!(user(rig, &token).await, "oidc:jane");
    assert_eq!(status(rig, &of_new).await, 401);
    assert_eq!(rig.metric(reloads, &["status=\"success\""]).await, None);
    new.set_down(false);
    until_accepted(rig, &of_new).await;
    assert_eq!(user(rig, &token).await, "second:jane");
    assert_eq!(rig.metric(reloads, &["status=\"success\""]).await, Some(1.0));
    let fetches = ["result=\"failure\"".to_owned(), format!("issuer=\"{}\"", new.url)];
    let fetches = fetches.each_ref().map(String::as_str);
    assert!(rig.metric("portico_token_keys_fetches_total", &fetches).await.is_some());
}

#[tokio::test]
async fn the_oidc_flags_name_one_issuer() {
    let key = SigningKey::new("k1");
    let issuer = Issuer::start(&[&key]);
    let setup = Setup::new()
        .flag(&format!("--oidc-issuer-url={}", issuer.url))
        .flag("--oidc-client-id=me")
        .flag("--oidc-groups-claim=groups")
        .flag("--oidc-groups-prefix=g:")
        .flag("--oidc-required-claim=hd=own")
        .flag("--oidc-signing-algs=RS256,ES256")
        .file_flag("oidc-ca-file", "ca.crt");
    let pair = Pair::start_with(quick(setup)).await;
    let claims = with(with(issuer.claims("jane"), "groups", "dev"), "hd", "own");
    let token = key.token(&claims);
    until_accepted(&pair.rig, &token).await;
    let (_, told) = ask(&pair.rig, Protocol::Http2, &token).await;
    let told: Vec<&str> = told.iter().map(|(_, value)| value.as_str()).collect();
    let name = format!("{}#jane", issuer.url);
    assert_eq!(told, [name.as_str(), "g:dev", "system:authenticated"]);
    assert_eq!(status(&pair.rig, &key.token(&with(claims, "hd", "x"))).await, 401);
}

pub(crate) fn account(issuer: &str, audience: &str) -> Value {
    json!({
        "iss": issuer, "aud": [audience], "sub": "system:serviceaccount:ns:robot", "exp": now() + 600,
        "kubernetes.io": {"namespace": "ns", "serviceaccount": {"name": "robot", "uid": "u-1"}},
    })
}

#[tokio::test]
async fn service_accounts_tokens_are_verified_by_key_files() {
    let (one, two) = (SigningKey::new(""), SigningKey::new(""));
    let setup = Setup::new();
    for (name, key) in [("one.pub", &one), ("two.pub", &two)] {
        std::fs::write(setup.path(name), key.pem()).unwrap();
    }
    let setup = setup
        .file_flag("service-account-key-file", "one.pub")
        .file_flag("service-account-key-file", "two.pub")
        .flag("--service-account-issuer=https://new")
        .flag("--service-account-issuer=https://old")
        .flag("--api-audiences=api");
    let pair = Pair::start_with(setup).await;
    for (key, issuer) in [(&one, "https://new"), (&two, "https://old")] {
        let token = key.token_with(&json!({"alg": "ES256"}), &account(issuer, "api"));
        let (_, told) = ask(&pair.rig, Protocol::Http2, &token).await;
        let told: Vec<&str> = told.iter().map(|(_, value)| value.as_str()).collect();
        let expected = [
            "system:serviceaccount:ns:robot",
            "u-1",
            "system:serviceaccounts",
            "system:serviceaccounts:ns",
            "system:authenticated",
        ];
        assert_eq!(told, expected);
    }
    let token = |issuer: &str, audience: &str| {
        one.token_with(&json!({"alg": "ES256"}), &account(issuer, audience))
    };
    assert_eq!(status(&pair.rig, &token("https://new", "vault")).await, 401);
    assert_eq!(status(&pair.rig, &token("https://third", "api")).await, 401);
}

#[tokio::test]
async fn the_file_says_on_which_paths_callers_are_anonymous() {
    let key = SigningKey::new("k1");
    let issuer = Issuer::start(&[&key]);
    let setup = setup(&issuer);
    let anonymous = "anonymous: {enabled: true, conditions: [{path: /livez}, {path: /version}]}\n";
    let text = configuration(&issuer, USERNAME) + anonymous;
    std::fs::write(setup.path(CONFIG), text).unwrap();
    let pair = Pair::start_with(setup).await;
    for (target, expected) in
        [("/livez", 200), ("/version", 200), ("/readyz", 401), ("/version/", 401), ("/apis", 401)]
    {
        let mut client = pair.rig.connect(Protocol::Http1, None).await;
        assert_eq!(client.get(target).await.status, expected, "{target}");
    }
}
