//! Finds out who is calling, by upstream's union: front-proxy headers, then client certificate,
//! then bearer token, then the token of a WebSocket request; the first success counts.
//!
//! An error of one method does not stop the next, but if none succeeds and one had an error, the
//! caller is refused and never becomes anonymous.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{Context, SHA256};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::caller::Caller;
use super::kept_reviews::NoAnswer;
use super::own_tokens::{OwnTokens, OwnVerdict};
use super::token_file::Tokens;
use super::token_review::TokenReviews;
use super::{Anonymous, Asker, FrontProxies, Trust, request_header, websocket_protocol, x509};
use crate::model::rejection::Rejection;
use crate::model::user::User;
use crate::runtime::snapshot::View;
use crate::runtime::telemetry::Metrics;
use crate::tls::client_chain::{ClientAuthority, earliest_expiry, leaf};

/// Finds out who is calling.
#[derive(Debug)]
pub struct Authenticator {
    trust: View<Trust>,
    tokens: View<Tokens>,
    own_tokens: Option<OwnTokens>,
    reviews: Option<TokenReviews>,
    anonymous: Anonymous,
    anonymous_caller: Arc<Caller>,
    /// Verdicts on chains that were accepted, for the next connection with the same one: what a
    /// resumed session saves is not spent on verifying.
    verdicts: Mutex<HashMap<ChainDigest, Arc<Verdict>>>,
    succeeded: prometheus::IntCounter,
    failed: prometheus::IntCounter,
    client_certificate_expiration: prometheus::Histogram,
}

/// Who is calling, as far as it is known at once.
#[derive(Debug)]
pub enum Authenticated {
    /// This caller.
    Known(Arc<Caller>),
    /// Whose the request's token is must be asked, with [`Authenticator::ask`].
    Ask(Box<Unknown>),
}

/// A request with tokens that must be asked about.
pub struct Unknown {
    /// In the order in which they count.
    tokens: Vec<Box<[u8]>>,
    errors: Vec<String>,
    /// Whether the connection showed a certificate, too.
    has_certificate: bool,
}

impl fmt::Debug for Unknown {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Tokens are shown to nobody.
        formatter.debug_struct("Unknown").field("errors", &self.errors).finish_non_exhaustive()
    }
}

/// What a request's credentials are worth.
enum Found {
    Caller(Arc<Caller>),
    /// There are none, or none that count.
    Nobody,
    /// These tokens must be asked about.
    Ask(Vec<Box<[u8]>>),
}

/// What a token is worth.
enum OfToken {
    Caller(Arc<Caller>),
    Refused(String),
    Ask,
}

/// Accepted chains whose verdict is remembered. Chains of strangers are not, so that nobody fills
/// this who could not come in.
const VERDICTS_MAX: usize = 1024;

const INVALID_TOKEN: &str = "invalid bearer token";

/// Why a token does not count, when more than one has looked at it.
fn joined(before: Option<String>, error: &str) -> String {
    before.map_or_else(|| error.to_owned(), |before| format!("{before}, {error}"))
}

/// A certificate chain, leaf first.
type Chain = Vec<CertificateDer<'static>>;

/// What is remembered of a connection: its chain, and the verdict on it.
#[derive(Debug)]
pub struct ConnectionAuth {
    chain: Chain,
    verdict: Mutex<Option<Arc<Verdict>>>,
}

/// What a connection's certificate is worth.
#[derive(Debug)]
struct Verdict {
    generation: u64,
    /// Unix seconds after which the chain must be judged anew.
    valid_until: i64,
    /// The end of the leaf's validity, in Unix seconds; none when it cannot be read.
    leaf_ends: Option<i64>,
    /// The headers by which it says who calls when it may act as front proxy; `None` when nobody vouches for front proxies.
    front_proxy: Option<Result<Arc<FrontProxies>, String>>,
    /// The caller it names; `None` when it names none or nobody vouches for clients.
    client: Option<Result<Arc<Caller>, String>>,
}

impl Verdict {
    fn holds(&self, trust: &Trust, seconds: i64) -> bool {
        self.generation == trust.generation && seconds <= self.valid_until
    }

    fn is_accepted(&self) -> bool {
        matches!(self.client, Some(Ok(_))) || matches!(self.front_proxy, Some(Ok(_)))
    }
}

impl ConnectionAuth {
    /// A connection on which `chain` was shown, leaf first; empty when none was.
    pub fn new(chain: Vec<CertificateDer<'static>>) -> Self {
        Self { chain, verdict: Mutex::new(None) }
    }
}

impl Authenticator {
    /// Believes whom `trust` and `tokens` say.
    pub(super) fn new(
        trust: View<Trust>,
        tokens: View<Tokens>,
        anonymous: Anonymous,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        Ok(Self {
            trust,
            tokens,
            own_tokens: None,
            reviews: None,
            anonymous,
            anonymous_caller: Arc::new(Caller::new(User::anonymous())?),
            verdicts: Mutex::default(),
            client_certificate_expiration: metrics.certificates.clients.clone(),
            succeeded: metrics.authentication.with_label_values(&["success"]),
            failed: metrics.authentication.with_label_values(&["failure"]),
        })
    }

    /// Verifies signed tokens too; to be called before the authenticator is shared.
    #[must_use]
    pub(super) fn with_own_tokens(self, own_tokens: Option<OwnTokens>) -> Self {
        Self { own_tokens, ..self }
    }

    /// Asks about tokens too; to be called before the authenticator is shared.
    #[must_use]
    pub(super) fn with_reviews(self, reviews: Option<TokenReviews>) -> Self {
        Self { reviews, ..self }
    }

    /// The caller of a request, unless its token must be asked about; `always_allowed` says that its
    /// path is open to everybody.
    pub fn authenticate(
        &self,
        connection: &ConnectionAuth,
        headers: &HeaderMap,
        always_allowed: bool,
    ) -> Result<Authenticated, Rejection> {
        let mut errors = Vec::new();
        let caller = match self.by_credentials(connection, headers, &mut errors) {
            Found::Caller(caller) => self.success(caller),
            Found::Ask(tokens) => {
                let has_certificate = !connection.chain.is_empty();
                let unknown = Unknown { tokens, errors, has_certificate };
                return Ok(Authenticated::Ask(Box::new(unknown)));
            }
            Found::Nobody if errors.is_empty() => self.anonymous(connection, always_allowed)?,
            Found::Nobody => return Err(self.failure(&errors, !connection.chain.is_empty())),
        };
        Ok(Authenticated::Known(caller))
    }

    /// The caller whose token it is that had to be asked about. In a box, so that requests without
    /// such a token do not grow by this.
    #[cold]
    pub fn ask<'a>(
        &'a self,
        unknown: Unknown,
        asker: Asker<'a>,
    ) -> BoxFuture<'a, Result<Arc<Caller>, Rejection>> {
        let Unknown { tokens, mut errors, has_certificate } = unknown;
        let asking = async move {
            for token in tokens {
                match self.by_asked_token(&token, asker).await? {
                    Ok(caller) => return Ok(self.success(caller)),
                    Err(error) => errors.push(error),
                }
            }
            Err(self.failure(&errors, has_certificate))
        };
        asking.boxed()
    }

    /// The caller, or why there is none.
    async fn by_asked_token(
        &self,
        token: &[u8],
        asker: Asker<'_>,
    ) -> Result<Result<Arc<Caller>, String>, Rejection> {
        if let Some(caller) = self.tokens.load().find(token) {
            return Ok(Ok(Arc::clone(caller)));
        }
        let mut own = self.verified_here(token);
        if let OwnVerdict::KeyUnknown(keys, _) = own {
            keys.fetched(asker.deadline).await;
            own = self.verified_here(token);
        }
        let refused = match own {
            OwnVerdict::Caller(caller) => return Ok(Ok(caller)),
            OwnVerdict::Refused(error) | OwnVerdict::KeyUnknown(_, error) => Some(error),
            OwnVerdict::NotMine => None,
        };
        let Some((reviews, token)) = self.reviews_of(token) else {
            return Ok(Err(refused.unwrap_or_else(|| INVALID_TOKEN.to_owned())));
        };
        match reviews.ask(token, asker).await {
            Ok(Ok(caller)) => Ok(Ok(caller)),
            Ok(Err(reason)) => Ok(Err(joined(refused, &reason))),
            Err(NoAnswer::Failed(error)) => Ok(Err(joined(refused, &error))),
            Err(NoAnswer::Deadline) => Err(Rejection::ReviewDeadline),
        }
    }

    fn success(&self, caller: Arc<Caller>) -> Arc<Caller> {
        self.succeeded.inc();
        caller
    }

    fn anonymous(
        &self,
        connection: &ConnectionAuth,
        always_allowed: bool,
    ) -> Result<Arc<Caller>, Rejection> {
        let has_certificate = !connection.chain.is_empty();
        match self.anonymous {
            // Whose certificate cannot be judged yet must not be taken for nobody.
            _ if has_certificate && self.trust.load().is_pending => Err(Rejection::NotReady),
            Anonymous::Accepted => Ok(Arc::clone(&self.anonymous_caller)),
            Anonymous::AlwaysAllowPaths | Anonymous::OnPaths if always_allowed => {
                Ok(Arc::clone(&self.anonymous_caller))
            }
            Anonymous::AlwaysAllowPaths | Anonymous::OnPaths | Anonymous::Refused => {
                Err(self.refused("no credentials provided".to_owned()))
            }
        }
    }

    /// Nobody with a certificate is refused for good by a portico that does not know yet whom the
    /// cluster believes.
    fn failure(&self, errors: &[String], has_certificate: bool) -> Rejection {
        if has_certificate && self.trust.load().is_pending {
            return Rejection::NotReady;
        }
        self.refused(format!("[{}]", errors.join(", ")))
    }

    fn refused(&self, reason: String) -> Rejection {
        self.failed.inc();
        Rejection::Unauthorized(reason)
    }

    fn by_credentials(
        &self,
        connection: &ConnectionAuth,
        headers: &HeaderMap,
        errors: &mut Vec<String>,
    ) -> Found {
        if !connection.chain.is_empty() {
            let (verdict, now) = self.verdict(connection);
            match &verdict.front_proxy {
                Some(Ok(config)) => match request_header::caller(config, headers) {
                    Some(Ok(caller)) => return Found::Caller(caller),
                    Some(Err(error)) => errors.push(error),
                    None => {}
                },
                Some(Err(error)) => errors.push(error.clone()),
                None => {}
            }
            if let (Some(_), Some(end)) = (&verdict.client, verdict.leaf_ends) {
                let left = seconds_f64(end.saturating_sub(now));
                self.client_certificate_expiration.observe(left);
            }
            match &verdict.client {
                Some(Ok(caller)) => return Found::Caller(Arc::clone(caller)),
                Some(Err(error)) => errors.push(error.clone()),
                None => {}
            }
        }
        self.by_tokens(headers, errors)
    }

    /// The bearer token first, then that of a WebSocket request.
    fn by_tokens(&self, headers: &HeaderMap, errors: &mut Vec<String>) -> Found {
        let mut unknown = Vec::new();
        match bearer_token(headers) {
            Some(Ok(token)) => match self.by_token(token) {
                OfToken::Caller(caller) => return Found::Caller(caller),
                OfToken::Refused(error) => errors.push(error),
                OfToken::Ask => unknown.push(token.into()),
            },
            Some(Err(error)) => errors.push(error),
            None => {}
        }
        match websocket_protocol::token(headers) {
            Some(Ok(token)) if unknown.is_empty() => match self.by_token(token.as_bytes()) {
                OfToken::Caller(caller) => return Found::Caller(caller),
                OfToken::Refused(error) => errors.push(error),
                OfToken::Ask => unknown.push(token.into_bytes().into()),
            },
            Some(Ok(token)) => unknown.push(token.into_bytes().into()),
            Some(Err(error)) => errors.push(error.to_owned()),
            None => {}
        }
        if unknown.is_empty() { Found::Nobody } else { Found::Ask(unknown) }
    }

    fn by_token(&self, token: &[u8]) -> OfToken {
        if let Some(caller) = self.tokens.load().find(token) {
            return OfToken::Caller(Arc::clone(caller));
        }
        let refused = match self.verified_here(token) {
            OwnVerdict::Caller(caller) => return OfToken::Caller(caller),
            OwnVerdict::KeyUnknown(..) => {
                // Whom the reviewer knows does not wait for an issuer.
                let reviewed =
                    self.reviews_of(token).and_then(|(reviews, token)| reviews.look(token));
                return match reviewed {
                    Some(Ok(caller)) => OfToken::Caller(caller),
                    Some(Err(_)) | None => OfToken::Ask,
                };
            }
            OwnVerdict::Refused(error) => Some(error),
            OwnVerdict::NotMine => None,
        };
        let Some((reviews, token)) = self.reviews_of(token) else {
            return OfToken::Refused(refused.unwrap_or_else(|| INVALID_TOKEN.to_owned()));
        };
        match reviews.look(token) {
            Some(Ok(caller)) => OfToken::Caller(caller),
            Some(Err(reason)) => OfToken::Refused(joined(refused, &reason)),
            None => OfToken::Ask,
        }
    }

    /// Who can be asked about a token.
    fn reviews_of<'a>(&self, token: &'a [u8]) -> Option<(&TokenReviews, &'a str)> {
        Some((self.reviews.as_ref()?, str::from_utf8(token).ok()?))
    }

    fn verified_here(&self, token: &[u8]) -> OwnVerdict {
        self.own_tokens.as_ref().map_or(OwnVerdict::NotMine, |own| own.verify(token))
    }

    /// The verdict on the connection's certificate, judged anew only when the authorities have
    /// changed or the chain has come to its end; and the Unix seconds now.
    fn verdict(&self, connection: &ConnectionAuth) -> (Arc<Verdict>, i64) {
        let trust = self.trust.load();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let mut kept = connection.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verdict) = kept.as_ref().filter(|verdict| verdict.holds(&trust, seconds)) {
            return (Arc::clone(verdict), seconds);
        }
        let digest = digest(&connection.chain);
        let verdict = self.remembered(&digest, &trust, seconds).unwrap_or_else(|| {
            let time = UnixTime::since_unix_epoch(now);
            let verdict = Arc::new(Self::judge(&trust, &connection.chain, time, seconds));
            self.remember(digest, &verdict);
            verdict
        });
        *kept = Some(Arc::clone(&verdict));
        (verdict, seconds)
    }

    fn remembered(&self, chain: &ChainDigest, trust: &Trust, seconds: i64) -> Option<Arc<Verdict>> {
        let verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.get(chain).filter(|verdict| verdict.holds(trust, seconds)).cloned()
    }

    fn remember(&self, chain: ChainDigest, verdict: &Arc<Verdict>) {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        if !verdict.is_accepted() {
            verdicts.remove(&chain);
            return;
        }
        if verdicts.len() >= VERDICTS_MAX {
            verdicts.clear();
        }
        verdicts.insert(chain, Arc::clone(verdict));
    }

    fn judge(
        trust: &Trust,
        chain: &[CertificateDer<'static>],
        now: UnixTime,
        seconds: i64,
    ) -> Verdict {
        // What is over already does not become valid again; of a chain that was accepted nothing
        // that counts is over.
        let valid_until = earliest_expiry(chain, seconds);
        let parsed = chain.first().map_or_else(|| Err("no certificate".to_owned()), leaf);
        let leaf_ends = parsed.as_ref().ok().map(|leaf| leaf.not_after);
        let verified = |authority: &ClientAuthority| match (authority.verify(chain, now), &parsed) {
            (Ok(()), Ok(leaf)) => Ok(leaf.clone()),
            (Err(error), Ok(leaf)) => {
                Err(format!("verifying certificate SN={} failed: {error}", leaf.serial))
            }
            (_, Err(error)) => Err(error.clone()),
        };
        let front_proxy = trust.request_header.as_ref().map(|authority| {
            let leaf = verified(authority)?;
            request_header::check_name(&trust.front_proxies, &leaf.common_name)?;
            Ok(Arc::clone(&trust.front_proxies))
        });
        let client = trust.client.as_ref().and_then(|authority| {
            let user = verified(authority).and_then(|leaf| x509::user(&leaf)).transpose()?;
            Some(user.and_then(|user| Caller::new(user.authenticated()).map(Arc::new)))
        });
        Verdict { generation: trust.generation, valid_until, leaf_ends, front_proxy, client }
    }
}

/// SHA-256 over a chain's certificates and their lengths: a chain itself may be large.
type ChainDigest = [u8; 32];

fn digest(chain: &[CertificateDer<'_>]) -> ChainDigest {
    let mut digest = Context::new(&SHA256);
    for certificate in chain {
        digest.update(&certificate.len().to_be_bytes());
        digest.update(certificate);
    }
    let mut key = ChainDigest::default();
    key.copy_from_slice(digest.finish().as_ref());
    key
}

/// Exact for any time that a certificate may have left.
fn seconds_f64(seconds: i64) -> f64 {
    let magnitude = Duration::from_secs(seconds.unsigned_abs()).as_secs_f64();
    if seconds < 0 { -magnitude } else { magnitude }
}

/// The bearer token, if there is one (`bearertoken.go`): the scheme in any case, then one space.
fn bearer_token(headers: &HeaderMap) -> Option<Result<&[u8], String>> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return Some(Err("more than one Authorization header".to_owned()));
    }
    token_of(value).map(Ok)
}

fn token_of(value: &HeaderValue) -> Option<&[u8]> {
    let mut parts = value.as_bytes().trim_ascii().splitn(3, |&byte| byte == b' ');
    let scheme = parts.next()?;
    let token = parts.next()?;
    (scheme.eq_ignore_ascii_case(b"bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::snapshot::Publisher;
    use crate::tls::certificates;
    use crate::tls::pki::{Authority, Purpose};

    #[track_caller]
    fn check(value: &'static str, expected: Option<&str>) {
        let value = HeaderValue::from_static(value);
        assert_eq!(token_of(&value), expected.map(str::as_bytes));
    }

    #[test]
    fn bearer_tokens_are_read_as_upstream_reads_them() {
        check("Bearer abc", Some("abc"));
        check("  bEaReR abc ", Some("abc"));
        check("Bearer abc more", Some("abc"));
        check("Bearer  abc", None);
        check("Bearer", None);
        check("Basic abc", None);
    }

    fn chain_of(authority: &Authority, name: &str) -> Chain {
        authority.sign(name, Purpose::Client(&[])).unwrap().key_pair().unwrap().chain
    }

    fn trust(authority: &Authority, generation: u64) -> Trust {
        let roots = certificates("ca", authority.certificate().as_bytes()).unwrap();
        let client = Some(Arc::new(ClientAuthority::new("ca", roots).unwrap()));
        Trust { generation, client, ..Trust::default() }
    }

    #[test]
    fn a_chain_is_judged_once_for_all_its_connections_and_anew_when_authorities_change() {
        let (authority, other) = (Authority::new("a").unwrap(), Authority::new("b").unwrap());
        let (publisher, view) = Publisher::new(trust(&authority, 0));
        let made = Authenticator::new(
            view,
            View::fixed(Tokens::default()),
            Anonymous::Refused,
            &Metrics::new().unwrap(),
        );
        let authenticator = made.unwrap();
        let alice = chain_of(&authority, "alice");
        let verdict = |chain: &Chain| authenticator.verdict(&ConnectionAuth::new(chain.clone())).0;
        let first = verdict(&alice);
        assert!(first.is_accepted());
        assert!(Arc::ptr_eq(&first, &verdict(&alice)));
        let bob = verdict(&chain_of(&authority, "bob"));
        assert!(!Arc::ptr_eq(&first, &bob));
        // Strangers leave nothing behind.
        assert!(!verdict(&chain_of(&other, "alice")).is_accepted());
        assert_eq!(authenticator.verdicts.lock().unwrap().len(), 2);
        publisher.publish(trust(&other, 1));
        assert!(!verdict(&alice).is_accepted());
        assert_eq!(authenticator.verdicts.lock().unwrap().len(), 1);
    }
}
