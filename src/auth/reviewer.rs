//! Asks one reviewer, again where upstream would, within ten seconds in all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use tokio::time::{sleep, timeout};

use super::kept_reviews::Failing;
use crate::model::fault::Fault;
use crate::model::review::reply::Failure;
use crate::model::review::tries::{REVIEW_TIME_MAX, pause};
use crate::runtime::telemetry::RequestMetrics;
use crate::upstream::Pool;
use crate::upstream::api_server::ApiServer;

/// Who is asked, and where.
#[derive(Debug)]
pub(super) struct Reviewer {
    server: Arc<ApiServer>,
    path: String,
    metrics: RequestMetrics,
    failed: AtomicBool,
}

impl Reviewer {
    /// Posts to `path` behind the path of the server's URL; that of a webhook is its own, and `path`
    /// is empty.
    pub(super) fn new(server: Arc<ApiServer>, path: String, metrics: RequestMetrics) -> Self {
        Self { server, path, metrics, failed: AtomicBool::new(false) }
    }

    /// The answer to a review, which `read` understands; `failing` is told of the first failure.
    pub(super) async fn ask<T>(
        &self,
        pool: &Arc<Pool>,
        review: Vec<u8>,
        failing: &Failing,
        read: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Result<T, Failure> {
        let review = Bytes::from(review);
        let asking = async {
            let mut tries = 1;
            loop {
                let failure = match self.post(pool, &review).await {
                    Ok(body) => return read(&body).map_err(Failure::of_answer),
                    Err(failure) => failure,
                };
                if failure.is_outage {
                    failing();
                }
                let wait = pause(tries, fastrand::f64()).filter(|_| failure.may_pass);
                let Some(wait) = wait else { return Err(failure) };
                tries += 1;
                sleep(wait).await;
            }
        };
        let answer = timeout(REVIEW_TIME_MAX, asking).await.unwrap_or_else(|_| {
            failing();
            Err(Failure::of_time())
        });
        self.tell(answer.as_ref().err());
        answer
    }

    /// The first failure and the first answer after failures are worth a line, not each of many.
    fn tell(&self, failure: Option<&Failure>) {
        let failed_before = self.failed.load(Ordering::Relaxed);
        if failed_before == failure.is_some() {
            return;
        }
        self.failed.store(failure.is_some(), Ordering::Relaxed);
        let reviewer = &*self.server.service().name;
        if let Some(Failure { text, .. }) = failure {
            tracing::warn!(reviewer, path = self.path, error = text, "reviews fail");
        } else {
            tracing::info!(reviewer, path = self.path, "reviews succeed again");
        }
    }

    async fn post(&self, pool: &Arc<Pool>, review: &Bytes) -> Result<Bytes, Failure> {
        let begun = Instant::now();
        let reply = self.server.post(pool, &self.path, review.clone(), REVIEW_TIME_MAX).await;
        self.replied(reply.as_ref(), begun.elapsed());
        match reply {
            Ok((code, body)) => match Failure::of_code(code, &body) {
                Some(failure) => Err(failure),
                None => Ok(body),
            },
            Err(fault) => {
                let service = self.server.service();
                tracing::debug!(reviewer = %service, detail = &*fault.detail, "reviewer not reached");
                Err(Failure::of_fault(&fault, service))
            }
        }
    }

    fn replied(&self, reply: Result<&(StatusCode, Bytes), &Fault>, took: Duration) {
        self.metrics.replied(reply.ok().map(|(code, _)| code.as_u16()), took);
    }
}
