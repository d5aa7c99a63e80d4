//! Whose a bearer token is, by TokenReview
//! (`apiserver/pkg/authentication/token/cache`, `plugin/pkg/authenticator/token/webhook`).

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::Asker;
use super::caller::Caller;
use super::digest::Secret;
use super::kept_reviews::{Found, KeptReviews, Key, Limits, NoAnswer};
use super::reviewer::Reviewer;
use crate::model::review::ReviewVersion;
use crate::model::review::token::{TokenAnswer, answer, question};
use crate::runtime::telemetry::CacheMetrics;

/// Tokens whose users are kept.
const TOKENS_MAX: u64 = 4096;
/// Tokens that are known to be refused: strangers make them, and push out nobody's.
const REFUSALS_MAX: u64 = 4096;
/// How long a refusal is good at most: a reviewer that fails inside says so in the same words, and
/// upstream keeps none of those.
const REFUSAL_TTL_MAX: Duration = Duration::from_secs(10);

/// Which audiences are asked for, and how long answers are good.
#[derive(Clone, Debug)]
pub(super) struct TokenReviewRules {
    /// The version that the reviewer knows.
    pub(super) version: ReviewVersion,
    /// What tokens must be good for (`--api-audiences`); the reviewer's own when empty.
    pub(super) audiences: Vec<String>,
    /// How long an answer is good (`--authentication-token-webhook-cache-ttl`); refusals for ten
    /// seconds at most.
    pub(super) ttl: Duration,
    /// How much longer when the reviewer cannot be reached (`--review-cache-outage-ttl`).
    pub(super) outage_ttl: Duration,
}

/// Asks whose tokens are, and keeps the answers; tokens are not kept.
#[derive(Debug)]
pub(super) struct TokenReviews {
    asked: Arc<Asked>,
    kept: KeptReviews<Reviewed>,
    secret: Secret,
}

#[derive(Debug)]
struct Asked {
    reviewer: Reviewer,
    rules: TokenReviewRules,
}

/// The caller whose token it is, or why it is nobody's.
type Reviewed = Result<Arc<Caller>, Arc<str>>;

impl TokenReviews {
    /// Asks `reviewer`; an error says that the system gives no random bytes.
    pub(super) fn new(
        reviewer: Reviewer,
        rules: TokenReviewRules,
        metrics: CacheMetrics,
    ) -> Result<Self, String> {
        let limits = Limits {
            answers_max: TOKENS_MAX,
            refusals_max: REFUSALS_MAX,
            outage_ttl: rules.outage_ttl,
        };
        let (kept, secret) = (KeptReviews::new(limits, metrics), Secret::new()?);
        Ok(Self { asked: Arc::new(Asked { reviewer, rules }), kept, secret })
    }

    /// Whose token it is, when that is known.
    pub(super) fn look(&self, token: &str) -> Option<Reviewed> {
        self.kept.look(&self.key(token))
    }

    /// Whose token it is; an error is the reviewer's or the deadline's.
    pub(super) async fn ask(&self, token: &str, asker: Asker<'_>) -> Result<Reviewed, NoAnswer> {
        let key = self.key(token);
        let begin = |failing| {
            let (whom, pool) = (Arc::clone(&self.asked), Arc::clone(asker.pool));
            let token = token.to_owned();
            async move {
                let Asked { reviewer, rules } = &*whom;
                let review = question(&token, &rules.audiences, rules.version);
                let read = |body: &[u8]| answer(body, &rules.audiences).and_then(caller);
                let reviewed = reviewer.ask(&pool, review, &failing, read).await?;
                let is_refusal = reviewed.is_err();
                let ttl = if is_refusal { rules.ttl.min(REFUSAL_TTL_MAX) } else { rules.ttl };
                Ok(Found { answer: reviewed, ttl: Some(ttl), is_refusal })
            }
            .boxed()
        };
        self.kept.ask(key, asker.deadline, begin).await
    }

    fn key(&self, token: &str) -> Key {
        self.secret.digest(token.as_bytes())
    }
}

fn caller(answer: TokenAnswer) -> Result<Reviewed, String> {
    Ok(match answer {
        TokenAnswer::User(user) => Ok(Arc::new(Caller::new(user.authenticated())?)),
        TokenAnswer::Refused(reason) => Err(reason.into()),
    })
}
