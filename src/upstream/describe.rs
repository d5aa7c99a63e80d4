//! What backends and pools are like inside, for `/debug/portico`.
//!
//! A pool belongs to its data-plane thread, so nobody looks into it from outside: its thread is
//! asked, and answers from its own pool between two requests. A question names few endpoints, so
//! that the answer takes a thread well under a millisecond.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::pool::Pool;
use super::slot::Class;
use crate::model::endpoints::Targets;
use crate::model::fault::ServicePort;

/// Endpoints in one question.
const ASKED_MAX: usize = 256;
/// Questions that wait for one thread.
pub(super) const QUESTIONS_MAX: usize = 8;
/// How long one thread may take for all that it is asked.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections to one endpoint that one thread describes by class; the others are only counted.
pub(super) const CONNECTIONS_SHOWN_MAX: usize = 16;

/// A backend as it is now.
#[derive(Clone, Debug)]
pub struct BackendState {
    /// The service.
    pub service: ServicePort,
    /// Who vouches for its certificate: `caBundle`, `system` or `anybody`.
    pub trust: &'static str,
    /// Where its requests are to be sent.
    pub targets: Targets,
    /// Requests of all threads that wait for a connection.
    pub waiting: usize,
    /// Its endpoints; for an external name, what it was resolved to last.
    pub endpoints: Vec<EndpointState>,
}

/// An endpoint as it is now, over all threads.
#[derive(Clone, Debug)]
pub struct EndpointState {
    /// Unique over the life of the process.
    pub id: u64,
    /// Where it listens.
    pub address: SocketAddr,
    /// Requests that are open on it, or wait for a connection to it.
    pub in_flight: usize,
    /// Connections that are open to it.
    pub connections: i64,
    /// `well`, `doubted`, `dead` or `revived`.
    pub standing: &'static str,
    /// Why it is dead.
    pub death: Option<&'static str>,
}

/// What one thread has for one endpoint and class of requests.
#[derive(Clone, Debug)]
pub struct SlotState {
    /// The endpoint's id.
    pub endpoint: u64,
    /// The class.
    pub class: Class,
    /// True while a connection is being made that any request of the class may use.
    pub dialing: bool,
    /// Its connections in the pool, the first few of them; HTTP/1.1 ones are there while idle.
    pub connections: Vec<ConnectionState>,
    /// How many connections there are beyond those.
    pub left_out: usize,
}

/// One connection in a pool.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionState {
    /// `h2` or `http/1.1`.
    pub protocol: &'static str,
    /// Requests that are open on it.
    pub streams: usize,
    /// How many the peer allows at a time.
    pub streams_max: usize,
    /// Since when nothing is open on it, if that is known.
    pub idle: Option<Duration>,
}

/// One data-plane thread's answer.
#[derive(Clone, Debug)]
pub struct ThreadState {
    /// The thread's name.
    pub thread: String,
    /// What it has for the endpoints in question; `None` when it did not answer in time.
    pub slots: Option<Vec<SlotState>>,
}

/// What a pool's thread is asked: what it has for these endpoints.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) endpoints: Vec<u64>,
    pub(super) answer: oneshot::Sender<Vec<SlotState>>,
}

/// The pools of all data-plane threads, by the threads' names.
#[derive(Clone, Debug, Default)]
pub struct Pools {
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// A thread's name, and where its pool is asked.
type Asked = (String, mpsc::Sender<Question>);

impl Pools {
    /// Adds the pool of the calling thread.
    pub fn add(&self, pool: &Pool) {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed").to_owned();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push((name, pool.questions().clone()));
        asked.sort_by(|one, other| one.0.cmp(&other.0));
    }

    /// Asks every thread what it has for these endpoints.
    pub async fn describe(&self, endpoints: &[u64]) -> Vec<ThreadState> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        join_all(asked.into_iter().map(async |(thread, questions)| {
            let slots = timeout(ANSWER_TIMEOUT, ask(&questions, endpoints)).await;
            ThreadState { thread, slots: slots.ok().flatten() }
        }))
        .await
    }
}

async fn ask(questions: &mpsc::Sender<Question>, endpoints: &[u64]) -> Option<Vec<SlotState>> {
    let mut slots = Vec::new();
    for endpoints in endpoints.chunks(ASKED_MAX) {
        let (answer, answered) = oneshot::channel();
        questions.send(Question { endpoints: endpoints.to_vec(), answer }).await.ok()?;
        slots.append(&mut answered.await.ok()?);
    }
    Some(slots)
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Short, Self::Long, Self::Anonymous];

    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Long => "long",
            Self::Anonymous => "anonymous",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tasks;

    #[tokio::test]
    async fn every_thread_is_asked_for_few_endpoints_at_a_time_and_one_that_is_gone_is_named() {
        let pools = Pools::default();
        let (questions, mut asked) = mpsc::channel::<Question>(QUESTIONS_MAX);
        let (gone, _) = mpsc::channel(QUESTIONS_MAX);
        *pools.asked.lock().unwrap() =
            vec![("answers".to_owned(), questions), ("gone".to_owned(), gone)];
        let _thread = tasks::spawn_owned("thread", async move {
            while let Some(Question { endpoints, answer }) = asked.recv().await {
                assert!(endpoints.len() <= ASKED_MAX);
                let slot = |&endpoint: &u64| SlotState {
                    endpoint,
                    class: Class::Short,
                    dialing: false,
                    connections: Vec::new(),
                    left_out: 0,
                };
                answer.send(endpoints.iter().map(slot).collect()).unwrap();
            }
        });
        let endpoints: Vec<u64> = (0..=2 * ASKED_MAX as u64).collect();
        let [answers, gone] = pools.describe(&endpoints).await.try_into().unwrap();
        let got: Vec<u64> = answers.slots.unwrap().iter().map(|slot| slot.endpoint).collect();
        assert_eq!((got, gone.thread.as_str()), (endpoints, "gone"));
        assert!(gone.slots.is_none());
    }
}
