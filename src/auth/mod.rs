//! Who is calling, and whether they may.
//!
//! `authenticate` runs one file per method in upstream's order; `impersonate` says as whom a request
//! goes on; `authorize` gives the [`Permit`] without which nothing is forwarded. Signed tokens are
//! verified here (`own_tokens`: `service_accounts`, `jwt`); what cannot be decided here is asked of
//! reviewers (`token_review`, `access_review`), whose answers are kept.

mod access_review;
mod authenticate;
mod authorize;
mod caller;
mod digest;
mod identity_headers;
mod impersonate;
mod jwt;
mod kept_reviews;
mod own_tokens;
mod request_header;
mod reviewer;
mod reviews;
mod service_accounts;
mod setup;
mod token_file;
mod token_review;
mod trust;
mod websocket_protocol;
mod x509;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

pub use crate::tls::cluster_trust::FrontProxies;
pub use authenticate::{Authenticated, Authenticator, ConnectionAuth, Unknown};
pub use authorize::{Authorized, Authorizer, Deferral, Permit};
pub use caller::{Caller, Lines};
pub use identity_headers::IdentityHeaders;
pub use jwt::{Algorithm, JwtConfig, JwtError, KeysError, OidcFlags, Unverified, issuer};
pub use own_tokens::{OwnTokens, OwnTokensError, StartedTokens};
pub use reviews::{ReviewConfig, Reviews, ReviewsError, Webhook};
pub use service_accounts::{ServiceAccountConfig, ServiceAccountKeysError, ServiceAccountLookup};
pub use setup::{AuthError, OPEN_TO_EVERYBODY};
pub use token_file::{TokenFileError, Tokens};
pub use trust::{GivenTrust, Trust, follow};
pub use websocket_protocol::{names_token, without_tokens};

use crate::model::request_info::RequestInfo;
use crate::runtime::snapshot::View;
use crate::upstream::Pool;

/// What callers without credentials may do (`--anonymous-auth`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Anonymous {
    /// They reach the always-allow paths only (unset).
    #[default]
    AlwaysAllowPaths,
    /// They are the user `system:anonymous`.
    Accepted,
    /// They are refused everywhere.
    Refused,
    /// They are the user `system:anonymous` on the paths that a configuration file names.
    OnPaths,
}

/// One way to authorize requests (`--authorization-mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorizationMode {
    /// Every authenticated caller may do everything.
    AlwaysAllow,
    /// Nobody may do anything, but for what others allow.
    AlwaysDeny,
    /// A SubjectAccessReview decides.
    Webhook,
}

impl AuthorizationMode {
    /// Those that are in force when these are named: where none are, the API server decides that
    /// portico is in front of; without one everything is allowed.
    pub fn in_force(named: &[Self], in_front: bool) -> &[Self] {
        match (named, in_front) {
            ([], true) => &[Self::Webhook],
            ([], false) => &[Self::AlwaysAllow],
            (named, _) => named,
        }
    }
}

/// On whose connections a request's questions go out, and until when it waits for the answers.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The calling thread's connections.
    pub pool: &'a Arc<Pool>,
    /// When the request's own time is over; none for long-running ones, which wait for as long as a
    /// question may take.
    pub deadline: Option<Instant>,
}

/// Who is believed and who may do what.
#[derive(Clone, Debug)]
pub struct Config {
    /// Authorities of client certificates (`--client-ca-file`).
    pub client_ca_file: Option<PathBuf>,
    /// Authorities of front-proxy certificates (`--requestheader-client-ca-file`).
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// The front-proxy headers.
    pub request_header: FrontProxies,
    /// Static tokens (`--token-auth-file`).
    pub token_file: Option<PathBuf>,
    /// Issuers of tokens.
    pub jwt: JwtConfig,
    /// Service accounts' tokens.
    pub service_accounts: ServiceAccountConfig,
    /// Callers without credentials.
    pub anonymous: Anonymous,
    /// The authorizers that are named, see [`AuthorizationMode::in_force`]; the first that allows or
    /// denies counts.
    pub authorization_modes: Vec<AuthorizationMode>,
    /// Who is asked about tokens and what callers may do.
    pub reviews: ReviewConfig,
    /// Paths that everybody may read (`--authorization-always-allow-paths`).
    pub always_allow_paths: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            client_ca_file: None,
            requestheader_client_ca_file: None,
            request_header: FrontProxies::of_flags(),
            token_file: None,
            jwt: JwtConfig::default(),
            service_accounts: ServiceAccountConfig::default(),
            anonymous: Anonymous::default(),
            authorization_modes: Vec::new(),
            reviews: ReviewConfig::default(),
            always_allow_paths: ["/healthz", "/readyz", "/livez"].map(str::to_owned).to_vec(),
        }
    }
}

/// Authentication and authorization as the pipeline uses them.
#[derive(Debug)]
pub struct Auth {
    /// Finds out who is calling.
    pub authenticator: Authenticator,
    /// Decides what they may do.
    pub authorizer: Authorizer,
    /// Who vouches for callers, and which headers carry identity.
    pub trust: View<Trust>,
    /// The paths of [`Anonymous::OnPaths`].
    pub anonymous_paths: Option<Vec<String>>,
}

impl Auth {
    /// True for paths that callers without credentials may ask for. What goes `to_core` is
    /// kube-apiserver's to decide, for them too, unless a configuration file names the paths.
    pub fn is_open(&self, info: &RequestInfo<'_>, to_core: bool) -> bool {
        match &self.anonymous_paths {
            None => to_core || self.authorizer.always_allows(info),
            Some(paths) => paths.iter().any(|path| path == info.path),
        }
    }
}
