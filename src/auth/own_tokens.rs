//! Tokens that are verified here: service accounts' first, then those of issuers. Those that count are
//! remembered for a moment, so that not each request costs a signature.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use foldhash::quality::RandomState;
use moka::sync::Cache;

use super::caller::Caller;
use super::digest::Secret;
use super::jwt::{self, AnonymousRule, Awaited, Checked, Issuers, JwtError};
use super::kept_reviews::Key;
use super::service_accounts::{ServiceAccountKeysError, ServiceAccounts};
use super::{Config, ServiceAccountLookup};
use crate::model::user::User;
use crate::runtime::snapshot::View;
use crate::runtime::tasks::AbortOnDrop;
use crate::upstream::{self, ApiServer, Pool};

/// How long a token counts without being looked at again (`TokenSuccessCacheTTL` upstream).
const VERIFIED_TTL: Duration = Duration::from_secs(10);
/// Tokens that are remembered.
const VERIFIED_MAX: u64 = 16_384;

/// Verifies tokens without asking anybody.
pub struct OwnTokens {
    service_accounts: Option<ServiceAccounts>,
    issuers: View<Issuers>,
    verified: Cache<Key, Verified, RandomState>,
    secret: Secret,
}

/// A token that counts.
#[derive(Clone)]
struct Verified {
    caller: Arc<Caller>,
    /// In Unix seconds.
    end: f64,
    /// Of the issuers by whose rules it counts.
    generation: u64,
}

/// What verifies tokens, with what it needs.
#[derive(Debug)]
pub struct StartedTokens {
    /// What verifies tokens, if there are any to verify.
    pub own_tokens: Option<OwnTokens>,
    /// What the file of `--authentication-config` says of anonymous callers.
    pub anonymous: Option<AnonymousRule>,
    /// What keeps keys and rules up to date, for as long as they are kept.
    pub tasks: Vec<AbortOnDrop>,
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
pub enum OwnVerdict {
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
    /// which portico runs. Must be called on the runtime that is to fetch keys.
    pub fn start(
        config: &Config,
        core: Option<&Arc<ApiServer>>,
        upstream: &upstream::Config,
    ) -> Result<StartedTokens, OwnTokensError> {
        let flag = |error| match &config.jwt.file {
            Some(_) => OwnTokensError::File(error),
            None => OwnTokensError::Flags(error),
        };
        let accounts = &config.service_accounts;
        let started = jwt::start(&config.jwt, &accounts.issuers).map_err(flag)?;
        let mut tasks = vec![started.task];
        let service_accounts = match (core, accounts.lookup, accounts.key_files.as_slice()) {
            (Some(_), ServiceAccountLookup::Review, _) | (None, _, []) => None,
            (Some(core), ServiceAccountLookup::Local, []) => {
                let pool = Pool::new(upstream.clone());
                let (made, task) = ServiceAccounts::of_cluster(accounts, Arc::clone(core), pool);
                tasks.push(task);
                Some(made)
            }
            (Some(_) | None, _, _) => Some(ServiceAccounts::of_files(accounts)?),
        };
        let is_needed =
            service_accounts.is_some() || config.jwt.file.is_some() || config.jwt.oidc.is_some();
        let own_tokens = is_needed.then(|| Self::new(service_accounts, started.issuers));
        let own_tokens = own_tokens.transpose().map_err(OwnTokensError::System)?;
        Ok(StartedTokens { own_tokens, anonymous: started.anonymous, tasks })
    }

    fn new(
        service_accounts: Option<ServiceAccounts>,
        issuers: View<Issuers>,
    ) -> Result<Self, String> {
        let verified = Cache::builder()
            .max_capacity(VERIFIED_MAX)
            .time_to_live(VERIFIED_TTL)
            .build_with_hasher(RandomState::default());
        Ok(Self { service_accounts, issuers, verified, secret: Secret::new()? })
    }

    /// Whose token it is.
    pub fn verify(&self, token: &[u8]) -> OwnVerdict {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.verify_at(token, now)
    }

    fn verify_at(&self, token: &[u8], now: f64) -> OwnVerdict {
        // Other tokens, such as those of a file, cost a look for dots.
        let Some(token) = str::from_utf8(token).ok().filter(|token| looks_signed(token)) else {
            return OwnVerdict::NotMine;
        };
        let issuers = self.issuers.load();
        let digest = self.secret.digest(token.as_bytes());
        if let Some(known) = self.verified.get(&digest)
            && known.end >= now
            && known.generation == issuers.generation
        {
            return OwnVerdict::Caller(known.caller);
        }
        let (user, end) = match self.check(token, &issuers, now) {
            Ok(checked) => checked,
            Err(verdict) => return verdict,
        };
        match Caller::new(user.authenticated()) {
            Ok(caller) => {
                let caller = Arc::new(caller);
                let generation = issuers.generation;
                let known = Verified { caller: Arc::clone(&caller), end, generation };
                self.verified.insert(digest, known);
                OwnVerdict::Caller(caller)
            }
            Err(error) => OwnVerdict::Refused(error),
        }
    }

    /// The user and the token's end; else what is known instead.
    fn check(&self, token: &str, issuers: &Issuers, now: f64) -> Result<(User, f64), OwnVerdict> {
        let issuer = jwt::issuer(token).ok_or(OwnVerdict::NotMine)?;
        let accounts = self.service_accounts.as_ref();
        if let Some(checked) = accounts.and_then(|accounts| accounts.check(token, &issuer, now)) {
            return checked.map_err(OwnVerdict::Refused);
        }
        match issuers.check(token, &issuer, now) {
            Checked::NotMine => Err(OwnVerdict::NotMine),
            Checked::User(user, end) => Ok((*user, end)),
            Checked::Refused(error) => Err(OwnVerdict::Refused(error)),
            Checked::KeyUnknown(awaited, error) => Err(OwnVerdict::KeyUnknown(awaited, error)),
        }
    }
}

fn looks_signed(token: &str) -> bool {
    token.bytes().filter(|&byte| byte == b'.').count() == 2
}
