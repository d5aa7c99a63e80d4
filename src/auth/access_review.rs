//! What callers may do, by SubjectAccessReview (`apiserver/plugin/pkg/authorizer/webhook`).

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use smallvec::SmallVec;

use super::Asker;
use super::digest::Secret;
use super::kept_reviews::{Found, KeptReviews, Key, Limits, NoAnswer};
use super::reviewer::Reviewer;
use crate::model::attributes::Attributes;
use crate::model::review::ReviewVersion;
use crate::model::review::access::{AccessTtl, Decision, KEPT_BYTES_MAX, answer, question};
use crate::model::review::fingerprint::Sink;
use crate::model::user::User;
use crate::runtime::telemetry::CacheMetrics;

/// Decisions that are kept.
const DECISIONS_MAX: u64 = 8192;
/// Bytes of a usual user and its wish.
const TOLD_BYTES: usize = 768;

/// How long decisions are good.
#[derive(Clone, Debug)]
pub(super) struct AccessReviewRules {
    /// The version that the reviewer knows.
    pub(super) version: ReviewVersion,
    /// How long decisions are good (`--authorization-webhook-cache-authorized-ttl`,
    /// `--authorization-webhook-cache-unauthorized-ttl`).
    pub(super) ttl: AccessTtl,
    /// How much longer when the reviewer cannot be reached (`--review-cache-outage-ttl`).
    pub(super) outage_ttl: Duration,
}

/// Asks what callers may do, and keeps the decisions.
#[derive(Debug)]
pub(super) struct AccessReviews {
    asked: Arc<Asked>,
    kept: KeptReviews<Decision>,
    secret: Secret,
}

#[derive(Debug)]
struct Asked {
    reviewer: Reviewer,
    rules: AccessReviewRules,
}

impl AccessReviews {
    /// Asks `reviewer`; an error says that the system gives no random bytes.
    pub(super) fn new(
        reviewer: Reviewer,
        rules: AccessReviewRules,
        metrics: CacheMetrics,
    ) -> Result<Self, String> {
        // Only callers who are known cause decisions, so that none are kept apart.
        let limits =
            Limits { answers_max: DECISIONS_MAX, refusals_max: 0, outage_ttl: rules.outage_ttl };
        let (kept, secret) = (KeptReviews::new(limits, metrics), Secret::new()?);
        Ok(Self { asked: Arc::new(Asked { reviewer, rules }), kept, secret })
    }

    /// The decision, when it is known.
    pub(super) fn look(&self, user: &User, wish: &Attributes<'_>) -> Option<Decision> {
        self.kept.look(&self.key(user, wish).0)
    }

    /// The decision; an error is the reviewer's or the deadline's.
    pub(super) async fn ask(
        &self,
        user: &User,
        wish: &Attributes<'_>,
        asker: Asker<'_>,
    ) -> Result<Decision, NoAnswer> {
        let (key, bytes) = self.key(user, wish);
        let begin = |failing| {
            let (whom, pool) = (Arc::clone(&self.asked), Arc::clone(asker.pool));
            let review = question(user, wish, whom.rules.version);
            async move {
                let Asked { reviewer, rules } = &*whom;
                let decision = reviewer.ask(&pool, review, &failing, answer).await?;
                let ttl = (bytes < KEPT_BYTES_MAX).then(|| rules.ttl.of(&decision));
                Ok(Found { answer: decision, ttl, is_refusal: false })
            }
            .boxed()
        };
        self.kept.ask(key, asker.deadline, begin).await
    }

    /// The question's key, and the bytes of its texts.
    fn key(&self, user: &User, wish: &Attributes<'_>) -> (Key, usize) {
        let mut told: SmallVec<[u8; TOLD_BYTES]> = SmallVec::new();
        let mut take = |bytes: &[u8]| told.extend_from_slice(bytes);
        let mut sink = Sink::new(&mut take);
        sink.user(user);
        sink.attributes(wish);
        let bytes = sink.bytes();
        (self.secret.digest(&told), bytes)
    }
}
