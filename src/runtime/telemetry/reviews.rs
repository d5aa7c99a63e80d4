//! What reviewers were asked, how long they took, and what was known without them.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{counter, gauge, histogram};

/// Upstream's buckets (`authenticatorfactory/metrics.go`), in seconds.
const BUCKETS: &[f64] = &[0.25, 0.5, 0.7, 1.0, 1.5, 3.0, 5.0, 10.0];
/// The code of requests that got no reply, as upstream has it.
const NO_CODE: &str = "<error>";

/// The metrics of TokenReviews and SubjectAccessReviews.
#[derive(Debug)]
pub struct ReviewMetrics {
    /// TokenReviews that were sent.
    pub tokens: RequestMetrics,
    /// SubjectAccessReviews that were sent.
    pub access: RequestMetrics,
    /// Tokens that were asked about.
    pub token_cache: CacheMetrics,
    /// Decisions that were asked for.
    pub access_cache: CacheMetrics,
    attempts: IntCounterVec,
    /// `authorization_attempts_total{result="allowed"}`.
    pub allowed: IntCounter,
    /// `authorization_attempts_total{result="denied"}`.
    pub denied: IntCounter,
    /// `authorization_attempts_total{result="no-opinion"}`.
    pub no_opinion: IntCounter,
    /// `authorization_attempts_total{result="error"}`.
    pub error: IntCounter,
}

/// Requests to one kind of reviewer.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    total: IntCounterVec,
    seconds: HistogramVec,
}

/// One kind of answers that are kept.
#[derive(Clone, Debug)]
pub struct CacheMetrics {
    requests: IntCounterVec,
    active: IntGaugeVec,
    /// Answers that were known.
    pub hits: IntCounter,
    /// Answers that were not known.
    pub misses: IntCounter,
    /// Answers past their time that were given since the reviewer could not be reached.
    pub outages: IntCounter,
    /// Requests that wait for an answer.
    pub blocked: IntGauge,
    /// Questions that are being asked.
    pub in_flight: IntGauge,
}

impl RequestMetrics {
    fn new(kind: &str, what: &str) -> Result<Self, prometheus::Error> {
        let total = format!("apiserver_delegated_{kind}_request_total");
        let seconds = format!("apiserver_delegated_{kind}_request_duration_seconds");
        Ok(Self {
            total: counter(
                &total,
                &format!("{what} sent, by status code of the reply."),
                &["code"],
            )?,
            seconds: histogram(
                &seconds,
                &format!("How long replies to {what} took, by their status code."),
                &["code"],
                BUCKETS,
            )?,
        })
    }

    /// A request was sent; without a reply there is no code.
    pub fn replied(&self, code: Option<u16>, took: Duration) {
        let code = code.map(|code| code.to_string());
        let code = code.as_deref().unwrap_or(NO_CODE);
        self.total.with_label_values(&[code]).inc();
        self.seconds.with_label_values(&[code]).observe(took.as_secs_f64());
    }
}

impl CacheMetrics {
    fn new(requests: &str, active: &str, what: &str) -> Result<Self, prometheus::Error> {
        let requests = counter(
            requests,
            &format!(
                "Requests for {what}: hit where it was known, miss where it was not, outage where \
                 it was past its time and the reviewer could not be reached."
            ),
            &["status"],
        )?;
        let active = gauge(
            active,
            &format!("Requests that wait for {what} (blocked), and reviews under way (in_flight)."),
            &["status"],
        )?;
        Ok(Self {
            hits: requests.with_label_values(&["hit"]),
            misses: requests.with_label_values(&["miss"]),
            outages: requests.with_label_values(&["outage"]),
            blocked: active.with_label_values(&["blocked"]),
            in_flight: active.with_label_values(&["in_flight"]),
            requests,
            active,
        })
    }
}

impl ReviewMetrics {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let attempts = counter(
            "authorization_attempts_total",
            "Counter of authorization attempts, by result; not those of privileged groups and \
             always-allow paths.",
            &["result"],
        )?;
        Ok(Self {
            tokens: RequestMetrics::new("authn", "TokenReviews")?,
            access: RequestMetrics::new("authz", "SubjectAccessReviews")?,
            token_cache: CacheMetrics::new(
                "authentication_token_cache_request_total",
                // Upstream's name, although no other gauge ends so.
                "authentication_token_cache_active_fetch_count",
                "whose a token is",
            )?,
            access_cache: CacheMetrics::new(
                "portico_access_review_cache_request_total",
                "portico_access_review_cache_active_fetches",
                "a decision",
            )?,
            allowed: attempts.with_label_values(&["allowed"]),
            denied: attempts.with_label_values(&["denied"]),
            no_opinion: attempts.with_label_values(&["no-opinion"]),
            error: attempts.with_label_values(&["error"]),
            attempts,
        })
    }

    pub(super) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        let mut collectors: Vec<Box<dyn Collector>> = vec![Box::new(self.attempts.clone())];
        for RequestMetrics { total, seconds } in [&self.tokens, &self.access] {
            collectors.push(Box::new(total.clone()));
            collectors.push(Box::new(seconds.clone()));
        }
        for cache in [&self.token_cache, &self.access_cache] {
            collectors.push(Box::new(cache.requests.clone()));
            collectors.push(Box::new(cache.active.clone()));
        }
        collectors
    }
}
