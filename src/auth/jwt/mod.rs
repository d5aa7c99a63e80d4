//! JSON Web Tokens of issuers that a configuration names: ID tokens of OIDC and the like
//! (`plugin/pkg/authenticator/token/oidc` upstream).
//!
//! ```text
//! file or flags -> configuration -> validation -> Rules      location -> fetched_keys (in the background)
//!                                        └──────────┬────────────────────────┘
//! token -> compact -> Issuer::check -> keys have signed -> mapping -> User
//! ```

mod compact;
mod configuration;
mod expression;
mod fetched_keys;
mod fetchers;
mod keys;
mod location;
mod mapping;
mod reload;
#[cfg(test)]
pub(super) mod signing;
mod validation;

use std::sync::Arc;
use std::time::Duration;

pub use compact::{Algorithm, Unverified, issuer};

pub use keys::KeysError;
pub use reload::JwtError;

pub(super) use compact::{Claims, LEEWAY_SECONDS, audiences, time};
pub(super) use fetched_keys::{Awaited, FetchedKeys, RETRY_INTERVAL};
pub(super) use keys::KeySet;
pub(super) use reload::start;
pub(super) use validation::AnonymousRule;

use validation::Rules;

use crate::model::user::User;

/// How early a token may be used, in seconds (go-oidc).
const NOT_BEFORE_LEEWAY_SECONDS: f64 = 300.0;
const NOT_SIGNED: &str = "oidc: verify token: failed to verify signature: failed to verify id token \
                          signature";
/// What Google's tokens used to name as issuer, and what it is since.
const GOOGLE: (&str, &str) = ("accounts.google.com", "https://accounts.google.com");

/// Where issuers and their rules come from.
#[derive(Clone, Debug)]
pub struct JwtConfig {
    /// The file of `--authentication-config`.
    pub file: Option<std::path::PathBuf>,
    /// The one issuer of the `--oidc-*` flags.
    pub oidc: Option<OidcFlags>,
    /// Between two tries to fetch an issuer's keys, and between two fetches that unknown keys ask for.
    pub retry_interval: Duration,
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self { file: None, oidc: None, retry_interval: RETRY_INTERVAL }
    }
}

/// The `--oidc-*` flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OidcFlags {
    /// Who issues tokens.
    pub issuer_url: String,
    /// For whom.
    pub client_id: String,
    /// The claim with the user's name.
    pub username_claim: String,
    /// Put in front of it; none for upstream's default, `-` for nothing.
    pub username_prefix: Option<String>,
    /// The claim with the user's groups, if any.
    pub groups_claim: Option<String>,
    /// Put in front of each.
    pub groups_prefix: String,
    /// Claims that a token must have, with these values.
    pub required_claims: Vec<(String, String)>,
    /// How tokens may be signed.
    pub signing_algorithms: Vec<Algorithm>,
    /// Authorities of the issuer's own certificate.
    pub ca_file: Option<std::path::PathBuf>,
}

/// All issuers; replaced as a whole when their file changes.
#[derive(Debug, Default)]
pub(in crate::auth) struct Issuers {
    /// Grows with every change.
    pub(super) generation: u64,
    all: Vec<Issuer>,
}

#[derive(Debug)]
struct Issuer {
    rules: Rules,
    keys: Arc<FetchedKeys>,
}

/// What a token is worth.
#[derive(Debug)]
pub(super) enum Checked {
    /// No issuer of ours has issued it.
    NotMine,
    /// This user's, until then, in Unix seconds.
    User(Box<User>, f64),
    /// It is one of ours, but does not count.
    Refused(String),
    /// It is signed by a key that is not known; a new one may be, once the keys are fetched anew.
    KeyUnknown(Awaited, String),
}

impl Issuers {
    /// Whose token it is, at the Unix second `now`; `issuer` is who the token says has issued it.
    pub(super) fn check(&self, token: &str, issuer: &str, now: f64) -> Checked {
        let issuer = if issuer == GOOGLE.0 { GOOGLE.1 } else { issuer };
        match self.all.iter().find(|known| known.rules.location.issuer == issuer) {
            Some(issuer) => issuer.check(token, now),
            None => Checked::NotMine,
        }
    }
}

impl Issuer {
    fn check(&self, token: &str, now: f64) -> Checked {
        let Some(keys) = self.keys.current() else {
            return Checked::Refused("oidc: authenticator not initialized".to_owned());
        };
        let verified = Unverified::parse(token).and_then(|token| {
            let algorithm = self.algorithm(&token)?;
            let end = self.check_meant_for_us(&token.claims, now)?;
            Ok((token, algorithm, end))
        });
        let (token, algorithm, end) = match verified {
            Ok(verified) => verified,
            Err(error) => return Checked::Refused(format!("oidc: verify token: {error}")),
        };
        if !keys.have_signed(&token, algorithm) {
            let error = NOT_SIGNED.to_owned();
            // A key that is known and has not signed it will not have done so later either.
            let may_be_new = token.kid.is_empty() || !keys.knows(&token.kid);
            let now = Duration::from_secs_f64(now.max(0.0));
            let awaited = may_be_new.then(|| FetchedKeys::anew(&self.keys, &keys, now)).flatten();
            return match awaited {
                Some(awaited) => Checked::KeyUnknown(awaited, error),
                None => Checked::Refused(error),
            };
        }
        match self.rules.mapping.user(token.claims) {
            Ok(user) => Checked::User(Box::new(user), end),
            Err(error) => Checked::Refused(format!("oidc: {error}")),
        }
    }

    /// The algorithm, if it is one of those that may be used.
    fn algorithm(&self, token: &Unverified<'_>) -> Result<Algorithm, String> {
        Algorithm::of_name(&token.algorithm)
            .filter(|algorithm| self.rules.algorithms.contains(algorithm))
            .ok_or_else(|| {
                let names: Vec<&str> = self.rules.algorithms.iter().map(|one| one.name()).collect();
                format!(
                    "id token signed with unsupported algorithm, expected {names:?} got {:?}",
                    token.algorithm
                )
            })
    }

    /// Audience and time; gives the end, in Unix seconds.
    fn check_meant_for_us(&self, claims: &Claims, now: f64) -> Result<f64, String> {
        let found = audiences(claims)?;
        if !found.iter().any(|one| self.rules.audiences.iter().any(|own| own == one)) {
            return Err(format!("expected audience in {:?} got {found:?}", self.rules.audiences));
        }
        let end = time(claims, "exp")?.unwrap_or_default();
        if end < now {
            return Err(format!("token is expired (Token Expiry: {end})"));
        }
        match time(claims, "nbf")? {
            Some(begin) if now + NOT_BEFORE_LEEWAY_SECONDS < begin => {
                Err(format!("current time {now} before the nbf (not before) time: {begin}"))
            }
            _ => Ok(end),
        }
    }
}

/// The issuer of these flags with these keys.
#[cfg(test)]
pub(super) fn one_issuer(flags: &OidcFlags, keys: Arc<FetchedKeys>, generation: u64) -> Issuers {
    let rules = validation::of_flags(flags, String::new(), &[]).unwrap();
    Issuers { generation, all: vec![Issuer { rules, keys }] }
}

#[cfg(test)]
mod tests;
