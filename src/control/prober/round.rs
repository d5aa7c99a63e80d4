//! One round: the questions to one backend's endpoints, and what came of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use http::uri::PathAndQuery;

use super::plan::Planned;
use crate::model::fault::Fault;
use crate::model::probing::{Failure, Probed, Question, Round, Wanted, first_questions};
use crate::runtime::telemetry::Metrics;
use crate::upstream::{Endpoint, Endpoints, Pool};

/// What comes this much later than a round's end, in milliseconds, was still seen late of it.
const ECHO_MS: u64 = 500;
/// Questions to one backend at a time.
const QUESTIONS_AT_A_TIME: usize = 8;

/// Asks backends.
#[derive(Debug)]
pub(super) struct Asking {
    pool: Arc<Pool>,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

/// What a round has found.
#[derive(Debug)]
pub(super) struct Found {
    /// What is known of each version, none where that is what it was before.
    pub(super) probed: Vec<Option<Probed>>,
    /// When each endpoint was heard of, by its id.
    pub(super) heard: HashMap<u64, u64, FixedState>,
}

impl Asking {
    pub(super) fn new(pool: Arc<Pool>, timeout: Duration, metrics: Arc<Metrics>) -> Self {
        Self { pool, timeout, metrics }
    }

    /// Asks as long as there is something to ask.
    pub(super) async fn ask(&self, planned: &Planned) -> Found {
        let endpoints = match planned.backend.endpoints().await {
            Ok(endpoints) => endpoints,
            Err(fault) => return unreachable(planned, &fault),
        };
        let wanted: Vec<Wanted> = planned.versions.iter().map(|(_, _, wanted)| *wanted).collect();
        let is_silent = |endpoint: &Arc<Endpoint>| {
            let heard = planned.heard.get(&endpoint.id).copied();
            let news = |heard: u64| endpoint.heard_ms() > heard + ECHO_MS;
            endpoint.is_dead() || !heard.is_some_and(news)
        };
        let silent: Vec<bool> = endpoints.iter().map(is_silent).collect();
        let mut questions = first_questions(&wanted, &silent, planned.turn);
        let mut round = Round::new(wanted, endpoints.len());
        while !questions.is_empty() {
            let asked: Vec<BoxFuture<'_, _>> = questions
                .into_iter()
                .filter_map(|question| {
                    let endpoint = endpoints.get(question.0)?;
                    let (_, path, _) = planned.versions.get(question.1)?;
                    Some(Box::pin(self.question(planned, endpoint, path, question)) as _)
                })
                .collect();
            let mut answers = stream::iter(asked).buffer_unordered(QUESTIONS_AT_A_TIME);
            while let Some((question, answer)) = answers.next().await {
                round.answered(question, answer);
            }
            questions = round.next_questions();
        }
        let mut probed = round.verdicts();
        if has_moved(planned, &endpoints).await {
            // Those that were asked are its endpoints no more: that they fail says nothing now.
            for verdict in &mut probed {
                verdict.take_if(|verdict| matches!(verdict, Probed::Failed(_)));
            }
        }
        Found { probed, heard: heard(&endpoints) }
    }

    async fn question(
        &self,
        planned: &Planned,
        endpoint: &Arc<Endpoint>,
        path: &PathAndQuery,
        question: Question,
    ) -> (Question, Result<(), Failure>) {
        let asked = self.pool.probe(&planned.backend, endpoint, path, self.timeout).await;
        let answer = match asked {
            Ok(status) if status.is_success() => Ok(()),
            Ok(status) => Err(Failure::Status(status.as_u16())),
            Err(fault) => Err(Failure::Fault(fault)),
        };
        let result =
            answer.as_ref().map_or_else(|failure| failure.fault().hop.word(), |()| "passed");
        self.metrics.probes.with_label_values(&[result]).inc();
        (question, answer)
    }
}

async fn has_moved(planned: &Planned, asked: &Endpoints) -> bool {
    let ids = |endpoints: &Endpoints| endpoints.iter().map(|it| it.id).collect::<Vec<u64>>();
    planned.backend.endpoints().await.is_ok_and(|now| ids(&now) != ids(asked))
}

fn heard(endpoints: &Endpoints) -> HashMap<u64, u64, FixedState> {
    endpoints.iter().map(|endpoint| (endpoint.id, endpoint.heard_ms())).collect()
}

/// There is nobody to ask.
fn unreachable(planned: &Planned, fault: &Fault) -> Found {
    let failed = || Some(Probed::Failed(Failure::Fault(fault.clone())));
    let probed = planned.versions.iter().map(|_| failed()).collect();
    Found { probed, heard: HashMap::default() }
}
