//! Tokens of issuers: which count, which do not, and how long new keys are waited for.

use std::pin::pin;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use serde_json::{Value, json};

use super::signing::{Signer, jwks};
use super::*;
use crate::runtime::telemetry::Metrics;

const ISSUER: &str = "https://issuer.example.com";
const NOW: f64 = 1_000_000.0;

struct Fixture {
    signer: Signer,
    issuers: Issuers,
}

fn flags(algorithms: &[Algorithm]) -> OidcFlags {
    OidcFlags {
        issuer_url: ISSUER.to_owned(),
        client_id: "me".to_owned(),
        username_claim: "sub".to_owned(),
        username_prefix: None,
        groups_claim: Some("groups".to_owned()),
        groups_prefix: "oidc:".to_owned(),
        required_claims: Vec::new(),
        signing_algorithms: algorithms.to_vec(),
        ca_file: None,
    }
}

fn issuers(flags: &OidcFlags, keys: Option<&Signer>) -> Issuers {
    let known = FetchedKeys::new(&flags.issuer_url, RETRY_INTERVAL);
    if let Some(signer) = keys {
        known.end(Some(KeySet::from_jwks(&jwks(&[signer])).unwrap()));
    }
    one_issuer(flags, known, 1)
}

fn fixture() -> Fixture {
    let signer = Signer::new(Algorithm::Es256, "k");
    let issuers = issuers(&flags(&[Algorithm::Es256]), Some(&signer));
    Fixture { signer, issuers }
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "me", "sub": "jane", "groups": ["dev"], "exp": NOW + 60.0})
}

fn with(name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims();
    claims[name] = value.into();
    claims
}

impl Fixture {
    fn check(&self, token: &str) -> Checked {
        self.issuers.check(token, &issuer(token).unwrap_or_default(), NOW)
    }

    #[track_caller]
    fn accepted(&self, claims: &Value) -> User {
        match self.check(&self.signer.token(claims)) {
            Checked::User(user, _) => *user,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn refused(&self, token: &str, expected: &str) {
        match self.check(token) {
            Checked::Refused(error) => assert!(error.contains(expected), "{error}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_token_that_is_in_order_names_its_user() {
    let fixture = fixture();
    let jane = fixture.accepted(&claims());
    assert_eq!(jane.name, "https://issuer.example.com#jane");
    assert_eq!(jane.groups, ["oidc:dev"]);
    fixture.accepted(&with("aud", json!(["other", "me"])));
    fixture.accepted(&with("nbf", NOW + 299.0));
    fixture.accepted(&with("exp", NOW));
}

#[test]
fn a_token_that_is_for_others_or_not_of_now_is_refused() {
    let fixture = fixture();
    let refused =
        |claims: Value, expected| fixture.refused(&fixture.signer.token(&claims), expected);
    refused(with("aud", "other"), "expected audience in");
    refused(with("aud", json!([])), "expected audience in");
    refused(with("aud", Value::Null), "expected audience in");
    refused(with("aud", json!({"me": 1})), "neither a string nor a list");
    refused(with("exp", NOW - 1.0), "token is expired");
    refused(with("exp", Value::Null), "token is expired");
    refused(with("exp", "tomorrow"), "not a number of seconds");
    refused(with("exp", -1e300), "token is expired");
    refused(with("nbf", NOW + 301.0), "before the nbf");
    refused(with("groups", 1), "parse groups claim");
}

#[test]
fn only_configured_algorithms_count() {
    let fixture = fixture();
    for algorithm in ["none", "None", "HS256", "RS256", "ES384", ""] {
        let header = json!({"alg": algorithm, "kid": "k"});
        let token = fixture.signer.token_with(&header, &claims());
        fixture.refused(&token, "unsupported algorithm");
        let (signed, _) = token.rsplit_once('.').unwrap();
        fixture.refused(&format!("{signed}."), "unsupported algorithm");
    }
}

#[test]
fn other_issuers_tokens_are_nobodys() {
    let fixture = fixture();
    for issuer in ["https://other.example.com", "", "https://issuer.example.com/"] {
        let token = fixture.signer.token(&with("iss", issuer));
        assert!(matches!(fixture.check(&token), Checked::NotMine), "{issuer}");
    }
}

#[test]
fn googles_old_name_is_its_new_one() {
    let signer = Signer::new(Algorithm::Es256, "k");
    let google = OidcFlags { issuer_url: GOOGLE.1.to_owned(), ..flags(&[Algorithm::Es256]) };
    let fixture = Fixture { issuers: issuers(&google, Some(&signer)), signer };
    fixture.accepted(&with("iss", GOOGLE.0));
    fixture.accepted(&with("iss", GOOGLE.1));
}

#[test]
fn without_keys_nobody_is_believed() {
    let signer = Signer::new(Algorithm::Es256, "k");
    let issuers = issuers(&flags(&[Algorithm::Es256]), None);
    let fixture = Fixture { signer, issuers };
    fixture.refused(&fixture.signer.token(&claims()), "oidc: authenticator not initialized");
}

#[test]
fn an_unknown_key_has_keys_fetched_anew_and_a_wrong_signature_does_not() {
    let fixture = fixture();
    let stranger = Signer::new(Algorithm::Es256, "k2");
    let token = stranger.token(&claims());
    let keys = &fixture.issuers.all[0].keys;
    let tried = |seconds_ago: f64| {
        keys.begin(Duration::from_secs_f64(NOW - seconds_ago));
        keys.end(None);
    };
    tried(9.0);
    fixture.refused(&token, "failed to verify id token signature");
    tried(10.0);
    assert!(matches!(fixture.check(&token), Checked::KeyUnknown(..)));
    // What is being fetched for another one is waited for, too.
    keys.begin(Duration::from_secs_f64(NOW));
    assert!(matches!(fixture.check(&token), Checked::KeyUnknown(..)));
    keys.end(None);
    let forged = Signer::new(Algorithm::Es256, "k").token(&claims());
    fixture.refused(&forged, "failed to verify id token signature");
    let expired = stranger.token(&with("exp", NOW - 1.0));
    fixture.refused(&expired, "token is expired");
}

#[tokio::test]
async fn a_token_waits_for_keys_until_they_are_there_or_its_requests_time_is_over() {
    let fixture = fixture();
    let keys = &fixture.issuers.all[0].keys;
    let token = Signer::new(Algorithm::Es256, "k2").token(&claims());
    let awaited = || match fixture.check(&token) {
        Checked::KeyUnknown(awaited, _) => awaited,
        other => panic!("{other:?}"),
    };
    keys.begin(Duration::from_secs_f64(NOW));
    assert!(awaited().fetched(None).now_or_never().is_none());
    awaited().fetched(Some(Instant::now())).await;
    let waiting = [awaited(), awaited()];
    keys.end(None);
    for awaited in waiting {
        assert!(awaited.fetched(None).now_or_never().is_some());
    }
}

#[tokio::test]
async fn no_token_waits_in_the_pause_after_a_try_that_failed_slowly() {
    let fixture = fixture();
    let keys = &fixture.issuers.all[0].keys;
    let fails_slowly = async || {
        keys.begin(Duration::ZERO);
        Err::<KeySet, _>("no answer")
    };
    let metrics = Metrics::new().unwrap().tokens;
    let mut running = pin!(Arc::clone(keys).run(metrics, fails_slowly));
    assert!(running.as_mut().now_or_never().is_none());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seen = keys.current().unwrap();
    assert!(FetchedKeys::anew(keys, &seen, now).is_none());
    assert!(FetchedKeys::anew(keys, &seen, now + RETRY_INTERVAL).is_some());
}

#[tokio::test]
async fn keys_that_came_while_a_token_was_looked_at_are_not_missed() {
    let fixture = fixture();
    let keys = &fixture.issuers.all[0].keys;
    let seen = keys.current().unwrap();
    let now = Duration::from_secs_f64(NOW);
    keys.begin(now);
    keys.end(Some(KeySet::from_jwks(&jwks(&[&fixture.signer])).unwrap()));
    let awaited = FetchedKeys::anew(keys, &seen, now).unwrap();
    assert!(awaited.fetched(None).now_or_never().is_some());
    assert!(FetchedKeys::anew(keys, &keys.current().unwrap(), now).is_none());
}
