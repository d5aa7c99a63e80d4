//! When the requests of one watch go out: the next one later and later while they come to nothing.
//!
//! A layer around kube's client, since kube's watcher asks again at once when a watch ends, however
//! soon that is. It also tells whether the last request was answered, which the watcher keeps to
//! itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response, Uri};
use kube::Client;
use kube::Error as KubeError;
use kube::client::Body;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

/// Before the second request of a watch that came to nothing.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Between two requests.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A request that counted for so long came to something.
const STEADY: Duration = Duration::from_secs(30);
/// How long a server may take to begin its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What a request asks for; each has pauses of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A list that goes on as a watch.
    StreamedList,
    /// The first page of a list.
    List,
    /// A watch from where another one ended.
    Watch,
}

impl Kind {
    /// None for what is no concern of this: single objects, and further pages.
    fn of(uri: &Uri) -> Option<Self> {
        let query = uri.query().unwrap_or_default();
        let has = |name: &str| {
            query.split('&').any(|pair| pair.split_once('=').is_some_and(|(key, _)| key == name))
        };
        match (has("watch"), has("sendInitialEvents")) {
            (true, true) => Some(Self::StreamedList),
            (true, false) => Some(Self::Watch),
            (false, _) => (has("limit") && !has("continue")).then_some(Self::List),
        }
    }
}

/// The pauses between requests of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Pauses {
    /// When the last one went out.
    begun: Option<Instant>,
    /// The pause before the next one, if that comes soon; zero for the shortest.
    pause: Duration,
    /// True when it was not answered as it should be.
    is_failed: bool,
}

impl Pauses {
    /// How long the next request is to wait, which counts as begun then. `spread` is between 0 and
    /// 1, so that watches that were cut together do not come back together.
    fn next(&mut self, now: Instant, spread: f64) -> Duration {
        let is_steady = |begun: Instant| now.saturating_duration_since(begun) >= STEADY;
        let wait = if self.begun.is_none_or(is_steady) {
            self.pause = PAUSE_MIN;
            Duration::ZERO
        } else {
            let pause = self.pause.max(PAUSE_MIN);
            self.pause = (pause * 2).min(PAUSE_MAX);
            pause.mul_f64(0.5 + spread / 2.0)
        };
        self.begun = Some(now + wait);
        wait
    }
}

/// When the requests of one watch go out, and whether the last one was answered.
#[derive(Debug)]
pub(super) struct Pace {
    pauses: Mutex<[Pauses; 3]>,
    is_open: watch::Sender<bool>,
    /// Of all watches of the same servers: one got through that did not before.
    back: Arc<Notify>,
}

impl Pace {
    pub(super) fn new(back: Arc<Notify>) -> Arc<Self> {
        let (is_open, _) = watch::channel(false);
        Arc::new(Self { pauses: Mutex::default(), is_open, back })
    }

    /// The same client, at this pace.
    pub(super) fn applied(self: &Arc<Self>, client: Client) -> Client {
        let (pace, namespace) = (Arc::clone(self), client.default_namespace().to_owned());
        let service = tower::service_fn(move |request| {
            let (pace, client) = (Arc::clone(&pace), client.clone());
            async move { pace.send(client, request).await }
        });
        Client::new(service, namespace)
    }

    /// Ends once a request is answered as it should be.
    pub(super) async fn opened(&self) {
        // The sender is this value's own, so that it does not end before.
        self.is_open.subscribe().wait_for(|is_open| *is_open).await.ok();
    }

    /// What the last request was answered with came to its end.
    pub(super) fn ended(&self) {
        self.is_open.send_replace(false);
    }

    async fn send(
        &self,
        client: Client,
        request: Request<Body>,
    ) -> Result<Response<Body>, KubeError> {
        let Some(kind) = Kind::of(request.uri()) else { return client.send(request).await };
        self.ended();
        self.wait(kind).await;
        let answer = match timeout(ANSWER_LIMIT, client.send(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(KubeError::Service("no answer in time".into())),
        };
        let is_failed = !answer.as_ref().is_ok_and(|answer| answer.status().is_success());
        self.is_open.send_replace(!is_failed);
        let before = self.edit(kind, |pauses| std::mem::replace(&mut pauses.is_failed, is_failed));
        if before && !is_failed {
            self.back.notify_waiters();
        }
        answer
    }

    async fn wait(&self, kind: Kind) {
        let wait = self.edit(kind, |pauses| pauses.next(Instant::now(), fastrand::f64()));
        // The shortest pause is made in any case.
        sleep(wait.min(PAUSE_MIN)).await;
        tokio::select! {
            () = sleep(wait.saturating_sub(PAUSE_MIN)) => {}
            () = self.back.notified() => self.edit(kind, |pauses| {
                pauses.begun = Some(Instant::now());
                pauses.pause = PAUSE_MIN;
            }),
        }
    }

    fn edit<T>(&self, kind: Kind, edit: impl FnOnce(&mut Pauses) -> T) -> T {
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        let [streamed, list, watch] = &mut *pauses;
        edit(match kind {
            Kind::StreamedList => streamed,
            Kind::List => list,
            Kind::Watch => watch,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_request_of_a_list_and_of_a_watch_is_one_of_the_watchs() {
        let kind = |query: &str| Kind::of(&format!("/api/v1/services?{query}").parse().unwrap());
        let streamed = "watch=true&timeoutSeconds=60&sendInitialEvents=true";
        assert_eq!(kind(streamed), Some(Kind::StreamedList));
        assert_eq!(kind("&watch=true&resourceVersion=7"), Some(Kind::Watch));
        assert_eq!(kind("&limit=500&resourceVersion=0"), Some(Kind::List));
        assert_eq!(kind("&limit=500&continue=abc"), None);
        assert_eq!(kind("fieldSelector=watch"), None);
        assert_eq!(Kind::of(&"/api/v1/services".parse().unwrap()), None);
    }

    #[test]
    fn pauses_grow_while_requests_come_to_nothing_and_end_with_one_that_lasts() {
        let mut pauses = Pauses::default();
        let mut now = Instant::now();
        let mut next = |after: u64, spread: f64| {
            now += Duration::from_millis(after);
            let wait = pauses.next(now, spread);
            now += wait;
            wait.as_millis()
        };
        assert_eq!(next(0, 1.0), 0);
        for expected in [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
            assert_eq!(next(20, 1.0), expected);
        }
        assert_eq!(next(20, 0.0), 30_000);
        assert_eq!(next(30_000, 1.0), 0);
        assert_eq!(next(29_999, 1.0), 500);
        assert_eq!(next(60_000, 1.0), 0);
    }
}
