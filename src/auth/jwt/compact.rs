//! A token as it came (JWS compact serialization, RFC 7515 §7.1), and the signatures that count.
//!
//! The algorithm is the configuration's to choose: a token's header only says which of them it used.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Map, Value};

/// How much clocks may differ where upstream grants something, in seconds (go-jose's `DefaultLeeway`).
pub(in crate::auth) const LEEWAY_SECONDS: f64 = 60.0;

/// What a token says about its bearer.
pub(in crate::auth) type Claims = Map<String, Value>;

/// A signature algorithm with a public key (RFC 7518 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
    Ps256,
    Ps384,
    Ps512,
}

impl Algorithm {
    /// All that Kubernetes accepts; no symmetric one is among them, and not `none`.
    pub const ALL: [Self; 9] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
    ];

    /// Its registered name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
        }
    }

    /// The algorithm of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
    crit: Option<Value>,
}

/// A token whose claims are not yet believed.
#[derive(Debug)]
pub struct Unverified<'a> {
    /// What is signed: the header and the payload as they came.
    pub signed: &'a str,
    /// The signature, base64url.
    pub signature: &'a str,
    /// Which key is said to have signed it; empty when the header does not say.
    pub(in crate::auth) kid: String,
    /// The name of the algorithm that is said to have been used.
    pub(in crate::auth) algorithm: String,
    /// The claims.
    pub(in crate::auth) claims: Claims,
}

/// Only the issuer, for finding out whose business a token is.
#[derive(Deserialize)]
struct Issued {
    #[serde(default)]
    iss: Option<String>,
}

impl<'a> Unverified<'a> {
    /// Takes a token apart; an error says what is malformed.
    pub fn parse(token: &'a str) -> Result<Self, String> {
        let (header, payload, signed, signature) = parts(token).ok_or("malformed jwt")?;
        let header: Header = serde_json::from_slice(&decoded("header", header)?)
            .map_err(|error| format!("malformed jwt header: {error}"))?;
        if header.crit.is_some() {
            return Err("the header's \"crit\" names extensions that are not supported".to_owned());
        }
        let claims = serde_json::from_slice(&decoded("payload", payload)?)
            .map_err(|error| format!("malformed jwt claims: {error}"))?;
        Ok(Self { signed, signature, kid: header.kid, algorithm: header.alg, claims })
    }
}

/// Who says to have issued a token, from its payload alone; `None` for what is no token of this kind.
pub fn issuer(token: &str) -> Option<String> {
    let (_, payload, _, _) = parts(token)?;
    let issued: Issued = serde_json::from_slice(&decoded("payload", payload).ok()?).ok()?;
    issued.iss
}

fn parts(token: &str) -> Option<(&str, &str, &str, &str)> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, payload) = signed.split_once('.')?;
    (!payload.contains('.')).then_some((header, payload, signed, signature))
}

fn decoded(what: &str, text: &str) -> Result<Vec<u8>, String> {
    BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|error| format!("malformed jwt {what}: {error}"))
}

/// A time claim in Unix seconds; none when it is not there or null.
pub(in crate::auth) fn time(claims: &Claims, name: &str) -> Result<Option<f64>, String> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) => Ok(number.as_f64()),
        Some(_) => Err(format!("claim {name} is not a number of seconds")),
    }
}

/// Whom a token is for: one name or a list of them.
pub(in crate::auth) fn audiences(claims: &Claims) -> Result<Vec<&str>, String> {
    let malformed = || "claim aud is neither a string nor a list of strings".to_owned();
    match claims.get("aud") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one]),
        Some(Value::Array(all)) => {
            all.iter().map(|one| one.as_str().ok_or_else(malformed)).collect()
        }
        Some(_) => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn token(header: &Value, payload: &Value) -> String {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2ln", part(header), part(payload))
    }

    #[track_caller]
    fn check_malformed(token: &str, expected: &str) {
        let error = Unverified::parse(token).unwrap_err();
        assert!(error.contains(expected), "{token}: {error}");
    }

    #[test]
    fn a_token_is_taken_apart() {
        let text = token(&json!({"alg": "RS256", "kid": "k"}), &json!({"iss": "i", "n": 1}));
        let token = Unverified::parse(&text).unwrap();
        assert_eq!((&*token.algorithm, &*token.kid, token.signature), ("RS256", "k", "c2ln"));
        assert_eq!(token.claims.get("n"), Some(&json!(1)));
        assert_eq!(format!("{}.{}", token.signed, token.signature), text);
        assert_eq!(issuer(&text).as_deref(), Some("i"));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "a", "a.b", "a.b.c.d", "{\"payload\":\"\"}", "bobs-secret-token"] {
            assert_eq!(issuer(text), None, "{text}");
            check_malformed(text, "malformed jwt");
        }
        check_malformed(&token(&json!({"kid": "k"}), &json!({})), "missing field `alg`");
        check_malformed(&token(&json!({"alg": "RS256", "crit": ["b64"]}), &json!({})), "crit");
        check_malformed(&token(&json!({"alg": "RS256"}), &json!([])), "malformed jwt claims");
        check_malformed("eyJhbGciOiJSUzI1NiJ9=.e30.x", "malformed jwt header");
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let deep = format!("e30.{}.x", BASE64_URL_SAFE_NO_PAD.encode(deep));
        assert_eq!(issuer(&deep), None);
    }

    #[test]
    fn times_and_audiences_have_their_types() {
        let claims = |value: Value| value.as_object().unwrap().clone();
        assert_eq!(time(&claims(json!({"exp": 1.5})), "exp"), Ok(Some(1.5)));
        assert_eq!(time(&claims(json!({})), "exp"), Ok(None));
        assert!(time(&claims(json!({"exp": "1"})), "exp").is_err());
        assert_eq!(audiences(&claims(json!({"aud": "a"}))), Ok(vec!["a"]));
        assert_eq!(audiences(&claims(json!({"aud": ["a", "b"]}))), Ok(vec!["a", "b"]));
        assert_eq!(audiences(&claims(json!({}))), Ok(vec![]));
        assert!(audiences(&claims(json!({"aud": [1]}))).is_err());
        assert!(audiences(&claims(json!({"aud": {}}))).is_err());
    }

    #[test]
    fn algorithms_are_known_by_their_exact_names() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::of_name(algorithm.name()), Some(algorithm));
        }
        for name in ["none", "None", "HS256", "rs256", "EdDSA", ""] {
            assert_eq!(Algorithm::of_name(name), None, "{name}");
        }
    }
}
