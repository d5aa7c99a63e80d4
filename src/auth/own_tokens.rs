//! Tokens that are verified here: service accounts' first, then those of issuers. Those that count are
//! remembered for a moment, so that not each request costs a signature.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::rand::SystemRandom;
use foldhash::quality::RandomState;
use moka::sync::Cache;

use super::caller::Caller;
use super::jwt::{self, Awaited, Checked, Issuers};
use super::service_accounts::ServiceAccounts;
use crate::model::user::User;
use crate::runtime::snapshot::View;

/// How long a token counts without being looked at again (`TokenSuccessCacheTTL` upstream).
const VERIFIED_TTL: Duration = Duration::from_secs(10);
/// Tokens that are remembered.
const VERIFIED_MAX: u64 = 16_384;

/// Verifies tokens without asking anybody.
pub struct OwnTokens {
    service_accounts: Option<ServiceAccounts>,
    issuers: View<Issuers>,
    verified: Cache<Digest, Verified, RandomState>,
    /// Made at start: nobody outside can tell from a digest whose token it is.
    secret: hmac::Key,
}

type Digest = [u8; 32];

/// A token that counts.
#[derive(Clone)]
struct Verified {
    caller: Arc<Caller>,
    /// In Unix seconds.
    end: f64,
    /// Of the issuers by whose rules it counts.
    generation: u64,
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
    /// Asked in this order.
    pub fn new(
        service_accounts: Option<ServiceAccounts>,
        issuers: View<Issuers>,
    ) -> Result<Self, String> {
        let secret = hmac::Key::generate(HMAC_SHA256, &SystemRandom::new());
        let verified = Cache::builder()
            .max_capacity(VERIFIED_MAX)
            .time_to_live(VERIFIED_TTL)
            .build_with_hasher(RandomState::default());
        let secret = secret.ok().ok_or("the system gives no random bytes")?;
        Ok(Self { service_accounts, issuers, verified, secret })
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
        let digest = self.digest(token);
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

    fn digest(&self, token: &str) -> Digest {
        let mut digest = Digest::default();
        digest.copy_from_slice(hmac::sign(&self.secret, token.as_bytes()).as_ref());
        digest
    }
}

fn looks_signed(token: &str) -> bool {
    token.bytes().filter(|&byte| byte == b'.').count() == 2
}
