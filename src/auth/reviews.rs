//! Who is asked what portico cannot decide itself: a webhook where one is named, else the API server
//! beside which portico runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::access_review::{AccessReviewRules, AccessReviews};
use super::authorize::Mode;
use super::reviewer::Reviewer;
use super::token_review::{TokenReviewRules, TokenReviews};
use super::{AuthorizationMode, Config};
use crate::model::review::access::AccessTtl;
use crate::model::review::{ReviewVersion, access, token};
use crate::runtime::files::Files;
use crate::runtime::telemetry::Metrics;
use crate::upstream::{self, Access, ApiServer, KubeconfigError, Source};

/// How long answers of the API server beside which portico runs are good, as in extension API servers
/// (`options/authentication.go`, `options/authorization.go`).
const DELEGATED_TTL: Duration = Duration::from_secs(10);
/// The same for webhooks, as in kube-apiserver (`kubeapiserver/options`).
const TOKEN_WEBHOOK_TTL: Duration = Duration::from_secs(120);
const AUTHORIZED_WEBHOOK_TTL: Duration = Duration::from_secs(300);
const UNAUTHORIZED_WEBHOOK_TTL: Duration = Duration::from_secs(30);

/// A webhook that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// The kubeconfig that names it (`--authentication-token-webhook-config-file`,
    /// `--authorization-webhook-config-file`).
    pub kubeconfig: PathBuf,
    /// The version of the reviews (`--authentication-token-webhook-version`,
    /// `--authorization-webhook-version`).
    pub version: ReviewVersion,
}

/// Who is asked, and how long answers are good; times that are not given are upstream's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReviewConfig {
    /// Asked about tokens.
    pub tokens: Option<Webhook>,
    /// `--authentication-token-webhook-cache-ttl`.
    pub token_ttl: Option<Duration>,
    /// What tokens must be good for (`--api-audiences`).
    pub audiences: Vec<String>,
    /// Asked what callers may do.
    pub access: Option<Webhook>,
    /// `--authorization-webhook-cache-authorized-ttl`.
    pub authorized_ttl: Option<Duration>,
    /// `--authorization-webhook-cache-unauthorized-ttl`.
    pub unauthorized_ttl: Option<Duration>,
    /// How much longer answers are good when the reviewer cannot be reached
    /// (`--review-cache-outage-ttl`).
    pub outage_ttl: Duration,
}

/// Everybody who is asked.
#[derive(Debug)]
pub struct Reviews {
    /// Asked about tokens.
    pub(super) tokens: Option<TokenReviews>,
    /// The authorizers, in order.
    pub(super) modes: Vec<Mode>,
}

/// Why nobody can be asked.
#[derive(Debug, thiserror::Error)]
pub enum ReviewsError {
    /// A webhook's file is no use.
    #[error("--{flag}: {error}")]
    Kubeconfig {
        /// The flag.
        flag: &'static str,
        /// What is wrong.
        error: KubeconfigError,
    },
    /// There is nobody to be asked.
    #[error("--authorization-mode: Webhook needs --authorization-webhook-config-file beside it")]
    NoReviewer,
    /// The system does not give what is needed.
    #[error("{0}")]
    System(String),
}

impl Reviews {
    /// Everybody whom `config` names; `core` is the API server beside which portico runs, and the
    /// webhooks' kubeconfigs are some of `files`. Must be called on the runtime that is to keep the
    /// webhooks' tokens fresh.
    pub fn new(
        config: &Config,
        core: Option<&Arc<ApiServer>>,
        upstream: &upstream::Config,
        files: &mut Files,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, ReviewsError> {
        let modes = AuthorizationMode::in_force(&config.authorization_modes, core.is_some());
        let mut made = Made { config: &config.reviews, core, upstream, files, metrics };
        let modes = modes.iter().map(|mode| {
            Ok(match mode {
                AuthorizationMode::AlwaysAllow => Mode::AlwaysAllow,
                AuthorizationMode::AlwaysDeny => Mode::AlwaysDeny,
                AuthorizationMode::Webhook => Mode::Webhook(Box::new(made.access()?)),
            })
        });
        let modes = modes.collect::<Result<_, ReviewsError>>()?;
        Ok(Self { modes, tokens: made.tokens()? })
    }
}

/// What reviewers are made of.
struct Made<'a> {
    config: &'a ReviewConfig,
    core: Option<&'a Arc<ApiServer>>,
    upstream: &'a upstream::Config,
    files: &'a mut Files,
    metrics: &'a Arc<Metrics>,
}

impl Made<'_> {
    fn tokens(&mut self) -> Result<Option<TokenReviews>, ReviewsError> {
        let metrics = &self.metrics.reviews;
        let found = match (&self.config.tokens, self.core) {
            (Some(webhook), _) => {
                let flag = "authentication-token-webhook-config-file";
                let server = self.server(&webhook.kubeconfig, flag, "token-review-webhook")?;
                (server, String::new(), webhook.version, TOKEN_WEBHOOK_TTL)
            }
            (None, Some(core)) => {
                let path = path(token::GROUP, "tokenreviews");
                (Arc::clone(core), path, ReviewVersion::V1, DELEGATED_TTL)
            }
            (None, None) => return Ok(None),
        };
        let (server, path, version, ttl) = found;
        let rules = TokenReviewRules {
            version,
            audiences: self.config.audiences.clone(),
            ttl: self.config.token_ttl.unwrap_or(ttl),
            outage_ttl: self.config.outage_ttl,
        };
        let reviewer = Reviewer::new(server, path, metrics.tokens.clone());
        let reviews = TokenReviews::new(reviewer, rules, metrics.token_cache.clone());
        reviews.map(Some).map_err(ReviewsError::System)
    }

    fn access(&mut self) -> Result<AccessReviews, ReviewsError> {
        let metrics = &self.metrics.reviews;
        let (server, path, version, authorized, unauthorized) =
            match (&self.config.access, self.core) {
                (Some(webhook), _) => {
                    let flag = "authorization-webhook-config-file";
                    let server = self.server(&webhook.kubeconfig, flag, "access-review-webhook")?;
                    let (yes, no) = (AUTHORIZED_WEBHOOK_TTL, UNAUTHORIZED_WEBHOOK_TTL);
                    (server, String::new(), webhook.version, yes, no)
                }
                (None, Some(core)) => {
                    let path = path(access::GROUP, "subjectaccessreviews");
                    (Arc::clone(core), path, ReviewVersion::V1, DELEGATED_TTL, DELEGATED_TTL)
                }
                (None, None) => return Err(ReviewsError::NoReviewer),
            };
        let rules = AccessReviewRules {
            version,
            ttl: AccessTtl {
                authorized: self.config.authorized_ttl.unwrap_or(authorized),
                unauthorized: self.config.unauthorized_ttl.unwrap_or(unauthorized),
            },
            outage_ttl: self.config.outage_ttl,
        };
        let reviewer = Reviewer::new(server, path, metrics.access.clone());
        let reviews = AccessReviews::new(reviewer, rules, metrics.access_cache.clone());
        reviews.map_err(ReviewsError::System)
    }

    fn server(
        &mut self,
        kubeconfig: &Path,
        flag: &'static str,
        name: &str,
    ) -> Result<Arc<ApiServer>, ReviewsError> {
        let source = Source::Kubeconfig(kubeconfig.to_owned());
        let server = Access::follow(&source, &[], self.files)
            .and_then(|access| ApiServer::new(access, name, self.upstream, self.metrics))
            .map_err(|error| ReviewsError::Kubeconfig { flag, error })?;
        Ok(Arc::new(server))
    }
}

fn path(group: &str, resource: &str) -> String {
    format!("/apis/{group}/{}/{resource}", ReviewVersion::V1.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(config: &Config, expected: &str) {
        let (upstream, metrics) = (upstream::Config::default(), Arc::new(Metrics::new().unwrap()));
        let mut files = Files::default();
        let made = Reviews::new(config, None, &upstream, &mut files, &metrics).map(|_| ());
        let error = made.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn what_is_wrong_with_a_reviewer_is_said_with_the_flags_name() {
        let authorization_modes = vec![AuthorizationMode::Webhook];
        let config = Config { authorization_modes, ..Config::default() };
        check(&config, "Webhook needs --authorization-webhook-config-file beside it");
        let webhook = Webhook { kubeconfig: "/nowhere/file".into(), version: ReviewVersion::V1 };
        let reviews = ReviewConfig { access: Some(webhook.clone()), ..ReviewConfig::default() };
        check(
            &Config { reviews, ..config },
            "--authorization-webhook-config-file: kubeconfig /nowhere/file: ",
        );
        let reviews = ReviewConfig { tokens: Some(webhook), ..ReviewConfig::default() };
        check(
            &Config { reviews, ..Config::default() },
            "--authentication-token-webhook-config-file: kubeconfig /nowhere/file: ",
        );
    }
}
