//! Tokens that are verified here: service accounts' first, then those of issuers. Those that count are
//! remembered for a moment, so that not each request costs a signature.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use foldhash::quality::RandomState;
use moka::sync::Cache;

use super::caller::Caller;
use super::digest::Secret;
use super::jwt::{self, AnonymousRule, Awaited, Checked, Issuers, JwtError, KeySet};
use super::kept_reviews::Key;
use super::service_accounts::{ServiceAccountKeysError, ServiceAccounts};
use super::{Config, ServiceAccountLookup};
use crate::model::error_text::shortened;
use crate::model::user::User;
use crate::runtime::files::Files;
use crate::runtime::snapshot::View;
use crate::runtime::tasks::AbortOnDrop;
use crate::runtime::telemetry::TokenMetrics;
use crate::upstream::{self, ApiServer, Pool};

/// How long a token counts without being looked at again (`TokenSuccessCacheTTL` upstream).
const VERIFIED_TTL: Duration = Duration::from_secs(10);
/// Bytes of the callers of tokens that are remembered.
const VERIFIED_BYTES_MAX: u64 = 64 << 20;
/// Bytes of what a token may make of its bearer: all of it goes to backends with each request.
const USER_BYTES_MAX: usize = 128 << 10;
/// Bytes that a value costs beside its text.
const VALUE_BYTES: usize = 32;
/// Characters of a reason: it may quote the token's claims, which strangers write.
const REASON_MAX: usize = 500;
/// Bytes that a token costs beside its user.
const TOKEN_BYTES: usize = 512;

/// Verifies tokens without asking anybody.
pub struct OwnTokens {
    service_accounts: Option<ServiceAccounts>,
    issuers: View<Issuers>,
    verified: Cache<Key, Verified, RandomState>,
    secret: Secret,
    /// What keeps keys and rules up to date.
    _tasks: Vec<AbortOnDrop>,
}

/// A token that counts.
#[derive(Clone)]
struct Verified {
    caller: Arc<Caller>,
    /// What it costs to remember.
    bytes: u32,
    /// In Unix seconds.
    end: f64,
    /// Of the issuers by whose rules it counts.
    generation: u64,
    /// The service accounts' keys by which it counts.
    keys: Option<Arc<KeySet>>,
}

/// What verifies tokens, with what it needs.
#[derive(Debug)]
pub struct StartedTokens {
    /// What verifies tokens, if there are any to verify.
    pub(super) own_tokens: Option<OwnTokens>,
    /// What the file of `--authentication-config` says of anonymous callers.
    pub(super) anonymous: Option<AnonymousRule>,
}

/// Why tokens cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum OwnTokensError {
    /// The configuration file is no use.
    #[error("--authentication-config: {0}")]
    File(JwtError),
    /// The `--oidc-*` flags are no use.
    #[error("{0}")]
    Flags(JwtError),
    /// The keys of service accounts are no use.
    #[error("--service-account-key-file: {0}")]
    ServiceAccountKeys(#[from] ServiceAccountKeysError),
    /// The system does not give what is needed.
    #[error("{0}")]
    System(String),
}

/// What a token is worth.
#[derive(Debug)]
pub(super) enum OwnVerdict {
    /// It is nobody's of whom something is known here.
    NotMine,
    /// This caller's.
    Caller(Arc<Caller>),
    /// It does not count, for this reason.
    Refused(String),
    /// It may count once the keys are there that are being fetched because of it; else it does not,
    /// for this reason.
    KeyUnknown(Awaited, String),
}

impl fmt::Debug for OwnTokens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("OwnTokens")
            .field("service_accounts", &self.service_accounts)
            .field("issuers", &self.issuers)
            .finish_non_exhaustive()
    }
}

impl OwnTokens {
    /// What verifies the tokens that `config` names, if there are any; `core` is the API server beside
    /// which portico runs, and what the flags name are some of `files`. Must be called on the runtime
    /// that is to fetch keys.
    pub fn start(
        config: &Config,
        core: Option<&Arc<ApiServer>>,
        upstream: &upstream::Config,
        files: &mut Files,
        metrics: &TokenMetrics,
    ) -> Result<StartedTokens, OwnTokensError> {
        let flag = |error| match &config.jwt.file {
            Some(_) => OwnTokensError::File(error),
            None => OwnTokensError::Flags(error),
        };
        let accounts = &config.service_accounts;
        let started = jwt::start(&config.jwt, &accounts.issuers, files, metrics).map_err(flag)?;
        let mut tasks = started.tasks;
        let service_accounts = match (core, accounts.lookup, accounts.key_files.as_slice()) {
            (None, _, []) => None,
            (Some(_), ServiceAccountLookup::Review, key_files) => {
                if !key_files.is_empty() {
                    tracing::warn!(
                        "service account key files are not used: kube-apiserver is asked about \
                         tokens, unless --service-account-lookup is local"
                    );
                }
                None
            }
            (Some(core), ServiceAccountLookup::Local, []) => {
                let pool = Pool::new(upstream.clone());
                let core = Arc::clone(core);
                let (made, task) = ServiceAccounts::of_cluster(accounts, core, pool, metrics);
                tasks.push(task);
                Some(made)
            }
            (Some(_) | None, _, _) => Some(ServiceAccounts::of_files(accounts, files)?),
        };
        let is_needed =
            service_accounts.is_some() || config.jwt.file.is_some() || config.jwt.oidc.is_some();
        let own_tokens = is_needed.then(|| Self::new(service_accounts, started.issuers, tasks));
        let own_tokens = own_tokens.transpose().map_err(OwnTokensError::System)?;
        Ok(StartedTokens { own_tokens, anonymous: started.anonymous })
    }

    fn new(
        service_accounts: Option<ServiceAccounts>,
        issuers: View<Issuers>,
        tasks: Vec<AbortOnDrop>,
    ) -> Result<Self, String> {
        let verified = Cache::builder()
            .max_capacity(VERIFIED_BYTES_MAX)
            .weigher(|_, verified: &Verified| verified.bytes)
            .time_to_live(VERIFIED_TTL)
            .build_with_hasher(RandomState::default());
        Ok(Self { service_accounts, issuers, verified, secret: Secret::new()?, _tasks: tasks })
    }

    /// Whose token it is.
    pub(super) fn verify(&self, token: &[u8]) -> OwnVerdict {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.verify_at(token, now)
    }

    fn verify_at(&self, token: &[u8], now: f64) -> OwnVerdict {
        // Other tokens, such as those of a file, cost a look for dots.
        let Some(token) = str::from_utf8(token).ok().filter(|token| looks_signed(token)) else {
            return OwnVerdict::NotMine;
        };
        let issuers = self.issuers.load();
        let keys = self.service_accounts.as_ref().and_then(ServiceAccounts::keys);
        let digest = self.secret.digest(token.as_bytes());
        if let Some(known) = self.verified.get(&digest)
            && known.end >= now
            && known.generation == issuers.generation
            && known.keys.as_ref().map(Arc::as_ptr) == keys.as_ref().map(Arc::as_ptr)
        {
            return OwnVerdict::Caller(known.caller);
        }
        let (user, end) = match self.check(token, &issuers, now) {
            Ok(checked) => checked,
            Err(verdict) => return verdict,
        };
        let bytes = size(&user);
        if bytes > USER_BYTES_MAX {
            let text = format!("its user has {bytes} bytes, at most {USER_BYTES_MAX} are allowed");
            return OwnVerdict::Refused(text);
        }
        match Caller::new(user.authenticated()) {
            Ok(caller) => {
                let caller = Arc::new(caller);
                let bytes = u32::try_from(bytes + TOKEN_BYTES).unwrap_or(u32::MAX);
                let generation = issuers.generation;
                let caller_of_it = Arc::clone(&caller);
                let known = Verified { caller: caller_of_it, bytes, end, generation, keys };
                self.verified.insert(digest, known);
                OwnVerdict::Caller(caller)
            }
            Err(error) => refused(error),
        }
    }

    /// The user and the token's end; else what is known instead.
    fn check(&self, token: &str, issuers: &Issuers, now: f64) -> Result<(User, f64), OwnVerdict> {
        let issuer = jwt::issuer(token).ok_or(OwnVerdict::NotMine)?;
        let accounts = self.service_accounts.as_ref();
        if let Some(checked) = accounts.and_then(|accounts| accounts.check(token, &issuer, now)) {
            return checked.map_err(refused);
        }
        match issuers.check(token, &issuer, now) {
            Checked::NotMine => Err(OwnVerdict::NotMine),
            Checked::User(user, end) => Ok((*user, end)),
            Checked::Refused(error) => Err(refused(error)),
            Checked::KeyUnknown(awaited, error) => Err(OwnVerdict::KeyUnknown(awaited, error)),
        }
    }
}

fn refused(reason: String) -> OwnVerdict {
    OwnVerdict::Refused(shortened(reason, REASON_MAX))
}

/// What a user costs to carry, in bytes.
fn size(user: &User) -> usize {
    let value = |text: &String| VALUE_BYTES + text.len();
    let extra = user
        .extra
        .iter()
        .map(|(key, values)| values.iter().map(|text| key.len() + value(text)).sum::<usize>());
    user.name.len()
        + user.uid.len()
        + user.groups.iter().map(value).sum::<usize>()
        + extra.sum::<usize>()
}

fn looks_signed(token: &str) -> bool {
    token.bytes().filter(|&byte| byte == b'.').count() == 2
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::super::jwt::signing::{Signer, jwks};
    use super::super::jwt::{Algorithm, FetchedKeys, KeySet, OidcFlags, one_issuer};
    use super::*;
    use crate::runtime::snapshot::Publisher;

    const ISSUER: &str = "https://issuer.example.com";
    const NOW: f64 = 1_000_000.0;

    fn issuers(signer: &Signer, prefix: &str, generation: u64) -> Issuers {
        let flags = OidcFlags {
            issuer_url: ISSUER.to_owned(),
            client_id: "me".to_owned(),
            username_claim: "sub".to_owned(),
            username_prefix: Some(prefix.to_owned()),
            groups_claim: Some("groups".to_owned()),
            groups_prefix: String::new(),
            required_claims: Vec::new(),
            signing_algorithms: vec![Algorithm::Es256],
            ca_file: None,
        };
        let keys = FetchedKeys::new(ISSUER, Duration::ZERO);
        keys.end(Some(KeySet::from_jwks(&jwks(&[signer])).unwrap()));
        one_issuer(&flags, keys, generation)
    }

    fn claims(groups: impl Into<Value>) -> Value {
        let groups: Value = groups.into();
        json!({"iss": ISSUER, "aud": "me", "sub": "jane", "exp": NOW + 5.0, "groups": groups})
    }

    #[track_caller]
    fn name(verdict: OwnVerdict) -> String {
        match verdict {
            OwnVerdict::Caller(caller) => caller.user.name.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn check_refused(verdict: OwnVerdict, expected: &str) {
        match verdict {
            OwnVerdict::Refused(error) => assert!(error.contains(expected), "{error}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_token_is_remembered_until_it_ends_or_other_rules_are_in_force() {
        let signer = Signer::new(Algorithm::Es256, "k");
        let (publisher, view) = Publisher::new(issuers(&signer, "one:", 1));
        let own = OwnTokens::new(None, view, Vec::new()).unwrap();
        let token = signer.token(&claims(json!(["a"])));
        let verify = |now| own.verify_at(token.as_bytes(), now);
        assert_eq!(name(verify(NOW)), "one:jane");
        let (first, again) = (verify(NOW), verify(NOW + 5.0));
        let (OwnVerdict::Caller(first), OwnVerdict::Caller(again)) = (first, again) else {
            panic!("refused");
        };
        assert!(Arc::ptr_eq(&first, &again));
        check_refused(verify(NOW + 6.0), "token is expired");
        publisher.publish(issuers(&signer, "two:", 2));
        assert_eq!(name(verify(NOW)), "two:jane");
        publisher.publish(issuers(&Signer::new(Algorithm::Es256, "k"), "three:", 3));
        check_refused(verify(NOW), "failed to verify");
    }

    #[test]
    fn what_cannot_be_carried_is_refused() {
        let signer = Signer::new(Algorithm::Es256, "k");
        let own = OwnTokens::new(None, View::fixed(issuers(&signer, "-", 1)), Vec::new()).unwrap();
        let verify = |groups| own.verify_at(signer.token(&claims(groups)).as_bytes(), NOW);
        assert_eq!(name(verify(json!(vec!["g"; 3900]))), "jane");
        check_refused(verify(json!(vec!["g"; 4000])), "at most 131072 are allowed");
        check_refused(verify(json!(["a".repeat(USER_BYTES_MAX)])), "at most 131072 are allowed");
        check_refused(verify(json!(["a\nb"])), "group");
        let stranger = json!({"iss": ISSUER, "aud": "ä".repeat(100_000), "exp": NOW});
        match own.verify_at(signer.token(&stranger).as_bytes(), NOW) {
            OwnVerdict::Refused(reason) => assert_eq!(reason.chars().count(), REASON_MAX + 1),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_signed_or_not_text_is_nobodys() {
        let signer = Signer::new(Algorithm::Es256, "k");
        let own = OwnTokens::new(None, View::fixed(issuers(&signer, "-", 1)), Vec::new()).unwrap();
        for token in [&b"secret"[..], b"", b"a.b", b"a.b.c", b"a.b.c.d", b"\xff.\xff.\xff"] {
            assert!(matches!(own.verify_at(token, NOW), OwnVerdict::NotMine));
        }
    }
}
