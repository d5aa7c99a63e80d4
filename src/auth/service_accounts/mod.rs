//! Tokens of service accounts, verified by the keys of who issues them (`pkg/serviceaccount` upstream).
//!
//! Nobody is asked here whether the account, or the pod or secret that a token is bound to, still
//! exists: that is what a TokenReview is for. What is refused here may be asked about all the same.

mod cluster_keys;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::jwt::{
    Algorithm, Claims, FetchedKeys, KeySet, KeysError, LEEWAY_SECONDS, RETRY_INTERVAL, Unverified,
    audiences, time,
};
use crate::model::user::{EXTRA_CREDENTIAL_ID, GROUP_SERVICE_ACCOUNTS, User};
use crate::runtime::files::{Files, Unreadable};
use crate::runtime::snapshot::View;
use crate::runtime::tasks::{AbortOnDrop, spawn_owned};
use crate::runtime::telemetry::TokenMetrics;
use crate::upstream::{ApiServer, Pool};

/// The issuer of tokens that live in secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
const LEGACY_PREFIX: &str = "kubernetes.io/serviceaccount/";

/// How service accounts' tokens may be signed (`signerFromRSAPrivateKey`, `signerFromECDSAPrivateKey`).
const ALGORITHMS: [Algorithm; 4] =
    [Algorithm::Rs256, Algorithm::Es256, Algorithm::Es384, Algorithm::Es512];

/// What a token may be bound to, and what the user's extra keys about it begin with.
const BOUND_TO: [(&str, &str); 4] = [
    ("pod", "authentication.kubernetes.io/pod"),
    ("node", "authentication.kubernetes.io/node"),
    (
        "validatingwebhookconfiguration",
        "authentication.kubernetes.io/validatingwebhookconfiguration",
    ),
    ("mutatingwebhookconfiguration", "authentication.kubernetes.io/mutatingwebhookconfiguration"),
];

/// Who finds out whether a service account's token counts (`--service-account-lookup`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceAccountLookup {
    /// A TokenReview, which knows of accounts and pods that are gone.
    #[default]
    Review,
    /// Portico alone, by the keys.
    Local,
}

/// How service accounts' tokens are verified here.
#[derive(Clone, Debug, Default)]
pub struct ServiceAccountConfig {
    /// Public keys (`--service-account-key-file`).
    pub key_files: Vec<PathBuf>,
    /// Who issues tokens (`--service-account-issuer`).
    pub issuers: Vec<String>,
    /// For whom tokens must be (`--api-audiences`); the issuers when empty.
    pub api_audiences: Vec<String>,
    /// Who finds out whether a token counts.
    pub lookup: ServiceAccountLookup,
}

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServiceAccountKeysError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] Unreadable),
    /// It holds no keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// Verifies service accounts' tokens.
#[derive(Debug)]
pub(super) struct ServiceAccounts {
    /// The first issues new ones.
    issuers: Vec<String>,
    /// For whom tokens must be.
    audiences: Vec<String>,
    keys: Keys,
}

/// Where the keys are from.
#[derive(Debug)]
enum Keys {
    Files(View<KeySet>),
    Cluster(Arc<FetchedKeys>),
}

/// What a token is worth, if it is a service account's: a user and the token's end in Unix seconds.
pub(super) type Checked = Option<Result<(User, f64), String>>;

impl ServiceAccounts {
    /// By the keys of the files.
    pub(super) fn of_files(
        config: &ServiceAccountConfig,
        files: &mut Files,
    ) -> Result<Self, ServiceAccountKeysError> {
        let paths = config.key_files.clone();
        let keys = files.add_read("service accounts' keys", move |reading| {
            let mut keys = KeySet::default();
            for path in &paths {
                let pem = reading.read(path)?;
                keys.append(KeySet::from_pem(&path.display().to_string(), &pem)?);
            }
            Ok::<_, ServiceAccountKeysError>(keys)
        });
        Ok(Self::new(config, Keys::Files(keys?)))
    }

    /// By the keys that the cluster publishes; they are fetched over `pool`, which must be of the
    /// calling thread, for as long as the task lives.
    pub(super) fn of_cluster(
        config: &ServiceAccountConfig,
        server: Arc<ApiServer>,
        pool: Arc<Pool>,
        metrics: &TokenMetrics,
    ) -> (Self, AbortOnDrop) {
        let issuer = config.issuers.first().map_or("", String::as_str);
        let keys = FetchedKeys::new(issuer, RETRY_INTERVAL);
        let fetching = Arc::clone(&keys)
            .run(metrics.clone(), async move || cluster_keys::fetch(&server, &pool).await);
        let task = spawn_owned("cluster-keys", fetching);
        (Self::new(config, Keys::Cluster(keys)), task)
    }

    fn new(config: &ServiceAccountConfig, keys: Keys) -> Self {
        let issuers = config.issuers.clone();
        let audiences = match config.api_audiences.as_slice() {
            [] => issuers.clone(),
            audiences => audiences.to_vec(),
        };
        Self { issuers, audiences, keys }
    }

    /// Whose token it is, at the Unix second `now`; `issuer` is who the token says has issued it.
    pub(super) fn check(&self, token: &str, issuer: &str, now: f64) -> Checked {
        let is_legacy = issuer == LEGACY_ISSUER;
        if !is_legacy && !self.issuers.iter().any(|own| own == issuer) {
            return None;
        }
        // As upstream: what cannot be parsed is somebody else's.
        let token = Unverified::parse(token).ok()?;
        let Some(keys) = self.keys_for(&token.kid, now) else {
            return Some(Err("the cluster's keys have not been fetched yet".to_owned()));
        };
        Some(check(&token, &keys, &self.audiences, is_legacy, now))
    }

    /// The keys of now, if there are any yet.
    pub(super) fn keys(&self) -> Option<Arc<KeySet>> {
        match &self.keys {
            Keys::Files(keys) => Some(keys.load()),
            Keys::Cluster(fetched) => fetched.current(),
        }
    }

    /// The same; those of a cluster are fetched anew when `kid` is not among them. Nobody waits for
    /// that: kube-apiserver is asked in the meantime.
    fn keys_for(&self, kid: &str, now: f64) -> Option<Arc<KeySet>> {
        let keys = self.keys()?;
        if let Keys::Cluster(fetched) = &self.keys
            && !keys.knows(kid)
        {
            drop(FetchedKeys::anew(fetched, &keys, Duration::from_secs_f64(now.max(0.0))));
        }
        Some(keys)
    }
}

fn check(
    token: &Unverified<'_>,
    keys: &KeySet,
    own_audiences: &[String],
    is_legacy: bool,
    now: f64,
) -> Result<(User, f64), String> {
    if !keys.knows(&token.kid) {
        return Err("invalid signature, no keys found".to_owned());
    }
    let algorithm = Algorithm::of_name(&token.algorithm).filter(|one| ALGORITHMS.contains(one));
    let algorithm =
        algorithm.ok_or_else(|| format!("unexpected signature algorithm {:?}", token.algorithm))?;
    if !keys.have_signed(token, algorithm) {
        return Err(
            "error in cryptographic primitive: the signature is not by a known key".to_owned()
        );
    }
    let found = audiences(&token.claims)?;
    // Those that name none are for whoever the API is.
    let is_for_us =
        found.is_empty() || found.iter().any(|one| own_audiences.iter().any(|own| own == one));
    if !is_for_us && !own_audiences.is_empty() {
        return Err(format!(
            "token audiences {found:?} is invalid for the target audiences {own_audiences:?}"
        ));
    }
    if is_legacy { legacy_user(&token.claims) } else { user(&token.claims, now) }
}

fn user(claims: &Claims, now: f64) -> Result<(User, f64), String> {
    let end = time(claims, "exp")?;
    if end.is_some_and(|end| now - LEEWAY_SECONDS > end) {
        return Err("service account token has expired".to_owned());
    }
    if time(claims, "nbf")?.is_some_and(|begin| now + LEEWAY_SECONDS < begin) {
        return Err("service account token is not valid yet".to_owned());
    }
    if time(claims, "iat")?.is_some_and(|issued| now + LEEWAY_SECONDS < issued) {
        return Err("service account token is issued in the future".to_owned());
    }
    let about = claims.get("kubernetes.io").unwrap_or(&Value::Null);
    let account = about.get("serviceaccount").unwrap_or(&Value::Null);
    let namespace = text(about, "namespace").ok_or("namespace claim is missing")?;
    let name = text(account, "name").ok_or("serviceaccount.name claim is missing")?;
    let uid = text(account, "uid").ok_or("serviceaccount.uid claim is missing")?;
    let mut user = account_user(namespace, name, uid);
    for (kind, key) in BOUND_TO {
        let Some(object) = about.get(kind) else { continue };
        for (field, suffix) in [("name", "name"), ("uid", "uid")] {
            if let Some(value) = text(object, field) {
                user.extra.insert(format!("{key}-{suffix}"), vec![value.to_owned()]);
            }
        }
    }
    if let Some(Value::String(id)) = claims.get("jti")
        && !id.is_empty()
    {
        user.extra.insert(EXTRA_CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
    }
    Ok((user, end.map_or(f64::INFINITY, |end| end + LEEWAY_SECONDS)))
}

fn legacy_user(claims: &Claims) -> Result<(User, f64), String> {
    let claim = |name: &str| match claims.get(&format!("{LEGACY_PREFIX}{name}")) {
        Some(Value::String(text)) if !text.is_empty() => Some(text.as_str()),
        _ => None,
    };
    let Some(Value::String(subject)) = claims.get("sub") else {
        return Err("sub claim is missing".to_owned());
    };
    let namespace = claim("namespace").ok_or("namespace claim is missing")?;
    claim("secret.name").ok_or("secretName claim is missing")?;
    let name = claim("service-account.name").ok_or("serviceAccountName claim is missing")?;
    let uid = claim("service-account.uid").ok_or("serviceAccountUID claim is missing")?;
    let user = account_user(namespace, name, uid);
    if user.name != *subject || user.service_account().is_none() {
        return Err("sub claim is invalid".to_owned());
    }
    Ok((user, f64::INFINITY))
}

fn account_user(namespace: &str, name: &str, uid: &str) -> User {
    User {
        name: format!("system:serviceaccount:{namespace}:{name}"),
        uid: uid.to_owned(),
        groups: vec![
            GROUP_SERVICE_ACCOUNTS.to_owned(),
            format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}"),
        ],
        ..User::default()
    }
}

/// A text that is not empty.
fn text<'a>(value: &'a Value, field: &str) -> Option<&'a str> {
    value.get(field)?.as_str().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests;
