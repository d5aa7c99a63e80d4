//! One watch that never ends: kube's watcher, which resumes where it was, begun anew where that
//! cannot help itself, and slowed down while the server does not answer.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _};
use kube::api::Api;
use kube::runtime::watcher::{self, Config, Event, InitialListStrategy, watcher};
use kube::{Error as KubeError, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

/// After so many seconds the server ends a watch, which is resumed; a connection that is dead without
/// a sign is noticed five seconds later.
const WATCH_SECONDS: u32 = 60;
/// Between two parts of a streamed list; servers that know no such lists never end one.
const LIST_SILENCE_MAX: Duration = Duration::from_secs(10);
/// After a trouble without another for so long the watch counts as resumed: it takes longer than to
/// connect, and a resumed watch says nothing until something happens.
const RESUMED_AFTER: Duration = Duration::from_secs(8);
/// Before the first new try.
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Why a watch does not go on at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// What is wrong; the same text for the same reason.
    pub(super) text: String,
    /// True when portico is not allowed to watch.
    pub(super) is_forbidden: bool,
}

/// Everything that the first of `apis` shows, or the next when that does not answer, for ever;
/// `fields` is a field selector or empty. None tells that the watch goes on after a trouble.
pub(super) fn feed<K>(
    apis: Vec<Api<K>>,
    fields: &str,
) -> impl Stream<Item = Result<Option<Event<K>>, Trouble>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut config = Config::default().timeout(WATCH_SECONDS).streaming_lists();
    if !fields.is_empty() {
        config = config.fields(fields);
    }
    let feed = Feed {
        events: begin(apis.first(), &config),
        apis,
        at: 0,
        config,
        is_listing: true,
        in_trouble: false,
        backoff: BACKOFF_MIN,
        wait: false,
    };
    stream::unfold(feed, |mut feed| async {
        let next = feed.next().await;
        Some((next, feed))
    })
}

struct Feed<K> {
    /// The same of each server.
    apis: Vec<Api<K>>,
    /// Which of them is asked.
    at: usize,
    config: Config,
    events: BoxStream<'static, watcher::Result<Event<K>>>,
    is_listing: bool,
    in_trouble: bool,
    backoff: Duration,
    wait: bool,
}

fn begin<K>(api: Option<&Api<K>>, config: &Config) -> BoxStream<'static, watcher::Result<Event<K>>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    match api {
        Some(api) => watcher(api.clone(), config.clone()).boxed(),
        None => stream::pending().boxed(),
    }
}

impl<K> Feed<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    async fn next(&mut self) -> Result<Option<Event<K>>, Trouble> {
        loop {
            if std::mem::take(&mut self.wait) {
                // Spread, so that watches that were cut together do not come back together.
                sleep(self.backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
            }
            let is_streamed =
                self.config.initial_list_strategy == InitialListStrategy::StreamingList;
            let awaits_list = self.is_listing && is_streamed;
            let next = if awaits_list {
                timeout(LIST_SILENCE_MAX, self.events.next()).await
            } else if self.in_trouble {
                timeout(RESUMED_AFTER, self.events.next()).await
            } else {
                Ok(self.events.next().await)
            };
            match next {
                Err(_) if awaits_list => self.list_plainly(),
                Err(_) => {
                    self.recovered();
                    return Ok(None);
                }
                Ok(Some(Ok(event))) => {
                    match &event {
                        // A list that is asked for is not there yet.
                        Event::Init => self.is_listing = true,
                        Event::InitDone => {
                            self.is_listing = false;
                            self.recovered();
                        }
                        Event::Apply(_) | Event::Delete(_) | Event::InitApply(_) => {
                            self.recovered();
                        }
                    }
                    return Ok(Some(event));
                }
                Ok(Some(Err(error))) => {
                    if let Some(trouble) = self.fail(&error, is_streamed) {
                        return Err(trouble);
                    }
                }
                Ok(None) => {
                    self.wait = true;
                    self.restart();
                }
            }
        }
    }

    fn recovered(&mut self) {
        self.in_trouble = false;
        self.backoff = BACKOFF_MIN;
    }

    /// What is to be told of an error, if that is not of what can be done otherwise.
    fn fail(&mut self, error: &watcher::Error, is_streamed: bool) -> Option<Trouble> {
        match code(error) {
            // Not what the server can do.
            Some(400 | 422) if is_streamed => {
                self.list_plainly();
                return None;
            }
            // Too long ago to be resumed.
            Some(410) => {
                self.wait = true;
                self.restart();
                return None;
            }
            _ => {}
        }
        self.wait = true;
        self.in_trouble = true;
        if code(error).is_none() && self.apis.len() > 1 {
            self.at = (self.at + 1) % self.apis.len();
            self.restart();
        }
        Some(trouble(error))
    }

    fn list_plainly(&mut self) {
        self.config.initial_list_strategy = InitialListStrategy::ListWatch;
        self.restart();
    }

    fn restart(&mut self) {
        self.events = begin(self.apis.get(self.at), &self.config);
        self.is_listing = true;
    }
}

fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::InitialListFailed(KubeError::Api(status))
        | watcher::Error::WatchStartFailed(KubeError::Api(status))
        | watcher::Error::WatchFailed(KubeError::Api(status)) => Some(status.code),
        _ => None,
    }
}

fn trouble(error: &watcher::Error) -> Trouble {
    let text = match error {
        watcher::Error::WatchError(status) => format!("{}: {}", status.code, status.message),
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => explain(error),
        watcher::Error::NoResourceVersion => "an object has no resourceVersion".to_owned(),
    };
    Trouble { text, is_forbidden: matches!(code(error), Some(401 | 403)) }
}

/// An error with its reasons.
pub(in crate::control) fn explain(error: &KubeError) -> String {
    if let KubeError::Api(status) = error {
        return format!("{}: {}", status.code, status.message);
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let reason = error.to_string();
        if !text.ends_with(&reason) {
            text = format!("{text}: {reason}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[track_caller]
    fn check(error: watcher::Error, expected: &str, is_forbidden: bool) {
        let text = expected.to_owned();
        assert_eq!(trouble(&error), Trouble { text, is_forbidden });
    }

    #[test]
    fn a_trouble_tells_its_reason_once_and_without_the_librarys_frame() {
        let status = |code| Box::new(Status { code, message: "no".to_owned(), ..Status::default() });
        check(watcher::Error::WatchError(status(500)), "500: no", false);
        check(watcher::Error::WatchStartFailed(KubeError::Api(status(403))), "403: no", true);
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = KubeError::Service(Box::new(refused));
        let text = "ServiceError: connection refused";
        check(watcher::Error::InitialListFailed(error), text, false);
    }
}
