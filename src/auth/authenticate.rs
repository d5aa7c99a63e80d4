//! Finds out who is calling, by upstream's union: front-proxy headers, then client certificate,
//! then bearer token, then the token of a WebSocket request; the first success counts.
//!
//! An error of one method does not stop the next, but if none succeeds and one had an error, the
//! caller is refused and never becomes anonymous.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{Context, SHA256};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::caller::Caller;
use super::token_file::Tokens;
use super::{Anonymous, RequestHeaderConfig, request_header, websocket_protocol, x509};
use crate::model::rejection::Rejection;
use crate::model::user::User;
use crate::runtime::snapshot::View;
use crate::runtime::telemetry::Metrics;
use crate::tls::client_chain::{ClientAuthority, earliest_expiry, leaf};

/// The authorities that vouch for callers; replaced as a whole when one changes.
#[derive(Debug, Default)]
pub struct Trust {
    /// Grows with every change; verdicts of an older generation are judged anew.
    pub generation: u64,
    /// Vouches for client certificates.
    pub client: Option<ClientAuthority>,
    /// Vouches for front proxies.
    pub request_header: Option<ClientAuthority>,
}

/// Finds out who is calling.
#[derive(Debug)]
pub struct Authenticator {
    trust: View<Trust>,
    request_header: RequestHeaderConfig,
    tokens: Tokens,
    anonymous: Anonymous,
    anonymous_caller: Arc<Caller>,
    verdicts: Verdicts,
    succeeded: prometheus::IntCounter,
    failed: prometheus::IntCounter,
}

/// What is remembered of a connection: its chain, and the verdict on it.
#[derive(Debug)]
pub struct ConnectionAuth {
    chain: Vec<CertificateDer<'static>>,
    verdict: Mutex<Option<Arc<Verdict>>>,
}

/// What a connection's certificate is worth.
#[derive(Debug)]
struct Verdict {
    generation: u64,
    /// Unix seconds after which the chain must be judged anew.
    valid_until: i64,
    /// Whether it may act as front proxy; `None` when nobody vouches for front proxies.
    front_proxy: Option<Result<(), String>>,
    /// The caller it names; `None` when it names none or nobody vouches for clients.
    client: Option<Result<Arc<Caller>, String>>,
}

impl ConnectionAuth {
    /// A connection on which `chain` was shown, leaf first; empty when none was.
    pub fn new(chain: Vec<CertificateDer<'static>>) -> Self {
        Self { chain, verdict: Mutex::new(None) }
    }
}

impl Authenticator {
    /// Believes whom `trust` and `tokens` say.
    pub fn new(
        trust: View<Trust>,
        request_header: RequestHeaderConfig,
        tokens: Tokens,
        anonymous: Anonymous,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        Ok(Self {
            trust,
            request_header,
            tokens,
            anonymous,
            anonymous_caller: Arc::new(Caller::new(User::anonymous())?),
            verdicts: Verdicts::default(),
            succeeded: metrics.authentication.with_label_values(&["success"]),
            failed: metrics.authentication.with_label_values(&["failure"]),
        })
    }

    /// The caller of a request; `always_allowed` says that its path is open to everybody.
    pub fn authenticate(
        &self,
        connection: &ConnectionAuth,
        headers: &HeaderMap,
        always_allowed: bool,
    ) -> Result<Arc<Caller>, Rejection> {
        let mut errors = Vec::new();
        match self.by_credentials(connection, headers, &mut errors) {
            Some(caller) => {
                self.succeeded.inc();
                Ok(caller)
            }
            None if errors.is_empty() => self.anonymous(always_allowed),
            None => {
                self.failed.inc();
                Err(Rejection::Unauthorized(format!("[{}]", errors.join(", "))))
            }
        }
    }

    fn anonymous(&self, always_allowed: bool) -> Result<Arc<Caller>, Rejection> {
        match self.anonymous {
            Anonymous::Accepted => Ok(Arc::clone(&self.anonymous_caller)),
            Anonymous::AlwaysAllowPaths if always_allowed => Ok(Arc::clone(&self.anonymous_caller)),
            Anonymous::AlwaysAllowPaths | Anonymous::Refused => {
                self.failed.inc();
                Err(Rejection::Unauthorized("no credentials provided".to_owned()))
            }
        }
    }

    fn by_credentials(
        &self,
        connection: &ConnectionAuth,
        headers: &HeaderMap,
        errors: &mut Vec<String>,
    ) -> Option<Arc<Caller>> {
        if !connection.chain.is_empty() {
            let verdict = self.verdict(connection);
            match &verdict.front_proxy {
                Some(Ok(())) => match self.by_request_header(headers) {
                    Some(Ok(caller)) => return Some(caller),
                    Some(Err(error)) => errors.push(error),
                    None => {}
                },
                Some(Err(error)) => errors.push(error.clone()),
                None => {}
            }
            match &verdict.client {
                Some(Ok(caller)) => return Some(Arc::clone(caller)),
                Some(Err(error)) => errors.push(error.clone()),
                None => {}
            }
        }
        match bearer_token(headers) {
            Some(Ok(token)) => {
                if let Some(caller) = self.by_token(token, errors) {
                    return Some(caller);
                }
            }
            Some(Err(error)) => errors.push(error),
            None => {}
        }
        match websocket_protocol::token(headers)? {
            Ok(token) => self.by_token(token.as_bytes(), errors),
            Err(error) => {
                errors.push(error.to_owned());
                None
            }
        }
    }

    fn by_token(&self, token: &[u8], errors: &mut Vec<String>) -> Option<Arc<Caller>> {
        let found = self.tokens.find(token);
        if found.is_none() {
            errors.push("invalid bearer token".to_owned());
        }
        found.map(Arc::clone)
    }

    fn by_request_header(&self, headers: &HeaderMap) -> Option<Result<Arc<Caller>, String>> {
        let user = request_header::user(&self.request_header, headers).transpose()?;
        Some(user.and_then(|user| Caller::new(user.authenticated()).map(Arc::new)))
    }

    /// The verdict on the connection's certificate, judged anew only when the authorities have
    /// changed or the chain has come to its end.
    fn verdict(&self, connection: &ConnectionAuth) -> Arc<Verdict> {
        let trust = self.trust.load();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let holds = |verdict: &Verdict| {
            verdict.generation == trust.generation && seconds <= verdict.valid_until
        };
        let mut kept = connection.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verdict) = kept.as_ref().filter(|verdict| holds(verdict)) {
            return Arc::clone(verdict);
        }
        let key = Verdicts::key(&connection.chain);
        let verdict = self.verdicts.find(&key).filter(|verdict| holds(verdict));
        let verdict = verdict.unwrap_or_else(|| {
            let time = UnixTime::since_unix_epoch(now);
            let verdict = Arc::new(self.judge(&trust, &connection.chain, time, seconds));
            self.verdicts.keep(key, &verdict, holds);
            verdict
        });
        *kept = Some(Arc::clone(&verdict));
        verdict
    }

    fn judge(
        &self,
        trust: &Trust,
        chain: &[CertificateDer<'static>],
        now: UnixTime,
        seconds: i64,
    ) -> Verdict {
        // What is over already does not become valid again; of a chain that was accepted nothing
        // that counts is over.
        let valid_until = earliest_expiry(chain, seconds);
        let parsed = chain.first().map_or_else(|| Err("no certificate".to_owned()), leaf);
        let verified = |authority: &ClientAuthority| match (authority.verify(chain, now), &parsed) {
            (Ok(()), Ok(leaf)) => Ok(leaf.clone()),
            (Err(error), Ok(leaf)) => {
                Err(format!("verifying certificate SN={} failed: {error}", leaf.serial))
            }
            (_, Err(error)) => Err(error.clone()),
        };
        let front_proxy = trust.request_header.as_ref().map(|authority| {
            let leaf = verified(authority)?;
            request_header::check_name(&self.request_header, &leaf.common_name)
        });
        let client = trust.client.as_ref().and_then(|authority| {
            let user = verified(authority).and_then(|leaf| x509::user(&leaf)).transpose()?;
            Some(user.and_then(|user| Caller::new(user.authenticated()).map(Arc::new)))
        });
        Verdict { generation: trust.generation, valid_until, front_proxy, client }
    }
}

/// Verdicts on chains that were accepted, so that a client that connects often is judged once:
/// verifying a chain costs as much as a resumed TLS handshake.
#[derive(Debug, Default)]
struct Verdicts(Mutex<HashMap<ChainDigest, Arc<Verdict>>>);

/// SHA-256 over a chain's certificates and their lengths.
type ChainDigest = [u8; 32];

/// Accepted chains that are remembered, over all threads.
const VERDICTS_MAX: usize = 4096;

impl Verdicts {
    fn key(chain: &[CertificateDer<'_>]) -> ChainDigest {
        let mut digest = Context::new(&SHA256);
        for certificate in chain {
            digest.update(&certificate.len().to_be_bytes());
            digest.update(certificate);
        }
        let mut key = ChainDigest::default();
        key.copy_from_slice(digest.finish().as_ref());
        key
    }

    fn find(&self, key: &ChainDigest) -> Option<Arc<Verdict>> {
        self.lock().get(key).map(Arc::clone)
    }

    /// Remembers a verdict unless the chain was refused: whoever makes up chains fills nothing.
    fn keep(&self, key: ChainDigest, verdict: &Arc<Verdict>, holds: impl Fn(&Verdict) -> bool) {
        let accepted =
            matches!(verdict.front_proxy, Some(Ok(()))) || matches!(verdict.client, Some(Ok(_)));
        if !accepted {
            return;
        }
        let mut kept = self.lock();
        if kept.len() >= VERDICTS_MAX {
            kept.retain(|_, verdict| holds(verdict));
        }
        if kept.len() >= VERDICTS_MAX {
            kept.clear();
        }
        kept.insert(key, Arc::clone(verdict));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChainDigest, Arc<Verdict>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

    #[test]
    fn only_accepted_chains_are_remembered_and_no_more_than_the_limit() {
        let verdicts = Verdicts::default();
        let verdict =
            |client| Arc::new(Verdict { generation: 1, valid_until: 9, front_proxy: None, client });
        let (refused, key) = (verdict(Some(Err("no".to_owned()))), Verdicts::key(&[]));
        verdicts.keep(key, &refused, |_| true);
        assert!(verdicts.find(&key).is_none());
        let caller = Arc::new(Caller::new(User::anonymous()).unwrap());
        let accepted = verdict(Some(Ok(caller)));
        for number in 0..VERDICTS_MAX as u64 + 2 {
            let chain = [CertificateDer::from(number.to_be_bytes().to_vec())];
            verdicts.keep(Verdicts::key(&chain), &accepted, |_| true);
        }
        assert_eq!(verdicts.lock().len(), 2);
    }
}
