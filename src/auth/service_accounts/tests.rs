//! Service accounts' tokens: which count, and whose they are.

use serde_json::json;

use super::super::jwt::signing::{Signer, jwks};
use super::*;

const ISSUER: &str = "https://kubernetes.default.svc";
const NOW: f64 = 1_000_000.0;

struct Fixture {
    signer: Signer,
    accounts: ServiceAccounts,
}

fn fixture(algorithm: Algorithm, api_audiences: &[&str]) -> Fixture {
    let signer = Signer::new(algorithm, "k");
    let keys = KeySet::from_jwks(&jwks(&[&signer])).unwrap();
    let accounts = ServiceAccounts::new(&config(api_audiences), Keys::Files(View::fixed(keys)));
    Fixture { signer, accounts }
}

fn config(api_audiences: &[&str]) -> ServiceAccountConfig {
    ServiceAccountConfig {
        issuers: vec!["https://new".to_owned(), ISSUER.to_owned()],
        api_audiences: api_audiences.iter().map(|&one| one.to_owned()).collect(),
        ..ServiceAccountConfig::default()
    }
}

fn claims() -> Value {
    json!({
        "iss": ISSUER,
        "sub": "system:serviceaccount:ns:robot",
        "aud": [ISSUER],
        "iat": NOW, "nbf": NOW, "exp": NOW + 3600.0,
        "jti": "id-1",
        "kubernetes.io": {
            "namespace": "ns",
            "serviceaccount": {"name": "robot", "uid": "u-1"},
            "pod": {"name": "pod-1", "uid": "p-1"},
            "node": {"name": "node-1", "uid": "n-1"},
        },
    })
}

fn legacy() -> Value {
    json!({
        "iss": "kubernetes/serviceaccount",
        "sub": "system:serviceaccount:ns:robot",
        "kubernetes.io/serviceaccount/namespace": "ns",
        "kubernetes.io/serviceaccount/secret.name": "robot-token",
        "kubernetes.io/serviceaccount/service-account.name": "robot",
        "kubernetes.io/serviceaccount/service-account.uid": "u-1",
    })
}

fn with(mut claims: Value, name: &str, value: impl Into<Value>) -> Value {
    claims[name] = value.into();
    claims
}

impl Fixture {
    fn check(&self, claims: &Value) -> Checked {
        let issuer = claims["iss"].as_str().unwrap_or_default();
        self.accounts.check(&self.signer.token(claims), issuer, NOW)
    }

    #[track_caller]
    fn refused(&self, claims: &Value, expected: &str) {
        let error = self.check(claims).unwrap().unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_bound_token_names_its_account_and_what_it_is_bound_to() {
    for algorithm in ALGORITHMS {
        let (robot, end) = fixture(algorithm, &[]).check(&claims()).unwrap().unwrap();
        assert_eq!((&*robot.name, &*robot.uid), ("system:serviceaccount:ns:robot", "u-1"));
        assert_eq!(robot.groups, ["system:serviceaccounts", "system:serviceaccounts:ns"]);
        let extra: Vec<_> =
            robot.extra.iter().map(|(key, values)| format!("{key}={}", values.join(","))).collect();
        let prefix = "authentication.kubernetes.io/";
        let expected = [
            "credential-id=JTI=id-1",
            "node-name=node-1",
            "node-uid=n-1",
            "pod-name=pod-1",
            "pod-uid=p-1",
        ]
        .map(|line| format!("{prefix}{line}"));
        assert_eq!(extra, expected);
        assert!((end - (NOW + 3660.0)).abs() < 0.1);
    }
}

#[test]
fn times_have_a_minutes_leeway() {
    let fixture = fixture(Algorithm::Es256, &[]);
    for (name, accepted, refused, text) in [
        ("exp", NOW - 60.0, NOW - 61.0, "service account token has expired"),
        ("nbf", NOW + 60.0, NOW + 61.0, "service account token is not valid yet"),
        ("iat", NOW + 60.0, NOW + 61.0, "service account token is issued in the future"),
    ] {
        assert!(fixture.check(&with(claims(), name, accepted)).unwrap().is_ok(), "{name}");
        fixture.refused(&with(claims(), name, refused), text);
        fixture.refused(&with(claims(), name, "soon"), "not a number");
    }
}

#[test]
fn tokens_must_be_for_this_api() {
    let issuers = fixture(Algorithm::Es256, &[]);
    let named = fixture(Algorithm::Es256, &["api"]);
    assert!(issuers.check(&with(claims(), "aud", "https://new")).unwrap().is_ok());
    issuers.refused(&with(claims(), "aud", "vault"), "token audiences [\"vault\"] is invalid");
    named.refused(&claims(), "is invalid for the target audiences [\"api\"]");
    assert!(named.check(&with(claims(), "aud", json!(["x", "api"]))).unwrap().is_ok());
    assert!(named.check(&legacy()).unwrap().is_ok());
}

#[test]
fn others_tokens_are_left_to_others() {
    let fixture = fixture(Algorithm::Es256, &[]);
    assert!(fixture.check(&with(claims(), "iss", "https://other")).is_none());
    assert!(fixture.accounts.check("a.b", ISSUER, NOW).is_none());
    assert!(fixture.accounts.check("a.b.c", ISSUER, NOW).is_none());
}

#[test]
fn only_known_keys_and_their_algorithms_count() {
    let fixture = fixture(Algorithm::Es256, &[]);
    let check = |token: &str| fixture.accounts.check(token, ISSUER, NOW).unwrap().unwrap_err();
    let stranger = Signer::new(Algorithm::Es256, "k");
    assert!(check(&stranger.token(&claims())).contains("not by a known key"));
    let unnamed = stranger.token_with(&json!({"alg": "ES256"}), &claims());
    assert!(check(&unnamed).contains("not by a known key"));
    let stranger = Signer::new(Algorithm::Es256, "other");
    assert_eq!(check(&stranger.token(&claims())), "invalid signature, no keys found");
    for algorithm in ["none", "HS256", "PS256"] {
        let token = fixture.signer.token_with(&json!({"alg": algorithm, "kid": "k"}), &claims());
        assert!(check(&token).contains("unexpected signature algorithm"), "{algorithm}");
    }
}

#[test]
fn claims_about_the_account_must_be_there() {
    let fixture = fixture(Algorithm::Es256, &[]);
    fixture.refused(&with(claims(), "kubernetes.io", json!({})), "namespace claim is missing");
    let about = json!({"namespace": "ns", "serviceaccount": {"name": "robot"}});
    fixture.refused(&with(claims(), "kubernetes.io", about), "serviceaccount.uid");
    let about = json!({"namespace": "ns", "serviceaccount": "robot"});
    fixture.refused(&with(claims(), "kubernetes.io", about), "serviceaccount.name");
}

#[test]
fn tokens_from_secrets_count_without_an_end() {
    let fixture = fixture(Algorithm::Rs256, &[]);
    let (robot, end) = fixture.check(&legacy()).unwrap().unwrap();
    assert_eq!((&*robot.name, &*robot.uid), ("system:serviceaccount:ns:robot", "u-1"));
    assert!(robot.extra.is_empty() && end.is_infinite());
    for (name, text) in [
        ("sub", "sub claim is missing"),
        ("kubernetes.io/serviceaccount/namespace", "namespace claim is missing"),
        ("kubernetes.io/serviceaccount/secret.name", "secretName claim is missing"),
        (
            "kubernetes.io/serviceaccount/service-account.name",
            "serviceAccountName claim is missing",
        ),
        ("kubernetes.io/serviceaccount/service-account.uid", "serviceAccountUID claim is missing"),
    ] {
        fixture.refused(&with(legacy(), name, Value::Null), text);
    }
    let other = with(legacy(), "sub", "system:serviceaccount:ns:other");
    fixture.refused(&other, "sub claim is invalid");
}

#[test]
fn a_clusters_keys_count_once_they_are_there_and_an_unknown_one_has_them_fetched_anew() {
    let (old, new) = (Signer::new(Algorithm::Es256, "1"), Signer::new(Algorithm::Es256, "2"));
    let published = |signer: &Signer| Some(KeySet::from_jwks(&jwks(&[signer])).unwrap());
    let keys = FetchedKeys::new("cluster", RETRY_INTERVAL);
    let accounts = ServiceAccounts::new(&config(&[]), Keys::Cluster(Arc::clone(&keys)));
    let check = |signer: &Signer| accounts.check(&signer.token(&claims()), ISSUER, NOW).unwrap();
    assert!(check(&old).unwrap_err().contains("not been fetched yet"));
    keys.end(published(&old));
    assert!(check(&old).is_ok() && !keys.are_wanted());
    assert_eq!(check(&new).unwrap_err(), "invalid signature, no keys found");
    assert!(keys.are_wanted());
    keys.end(published(&new));
    assert!(check(&old).is_err() && check(&new).is_ok());
}
