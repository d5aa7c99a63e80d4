//! One watch that never ends: kube's watcher, which resumes where it was, begun anew where that
//! cannot help itself.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _};
use kube::api::Api;
use kube::runtime::watcher::{self, Config, Event, InitialListStrategy, watcher};
use kube::{Error as KubeError, Resource};
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::servers::{Watched, another_may_help};
use crate::model::error_text::with_causes;

/// After so many seconds the server ends a watch, which is resumed; a connection that is dead without
/// a sign is noticed five seconds later.
const WATCH_SECONDS: u32 = 60;
/// Between two parts of a streamed list; servers that know no such lists never end one.
const LIST_SILENCE_MAX: Duration = Duration::from_secs(10);

/// Why a watch does not go on at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// What is wrong; the same text for the same reason.
    pub(super) text: String,
    /// True when portico is not allowed to watch.
    pub(super) is_forbidden: bool,
}

/// Everything that the first of the servers shows, or the next when that does not answer, for ever;
/// `fields` is a field selector or empty. None tells that the watch goes on after a trouble.
pub(super) fn feed<K>(
    watched: Watched<K>,
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
        events: begin(watched.apis.first(), &config),
        watched,
        at: 0,
        config,
        is_listing: true,
        in_trouble: false,
    };
    stream::unfold(feed, |mut feed| async {
        let next = feed.next().await;
        Some((next, feed))
    })
}

struct Feed<K> {
    watched: Watched<K>,
    /// Which of the servers is asked.
    at: usize,
    config: Config,
    events: BoxStream<'static, watcher::Result<Event<K>>>,
    is_listing: bool,
    in_trouble: bool,
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
            let is_streamed =
                self.config.initial_list_strategy == InitialListStrategy::StreamingList;
            let awaits_list = self.is_listing && is_streamed;
            let pace = &self.watched.pace;
            let next = tokio::select! {
                biased;
                next = self.events.next() => next,
                () = async { pace.opened().await; sleep(LIST_SILENCE_MAX).await }, if awaits_list => {
                    self.list_plainly();
                    continue;
                }
                () = pace.opened(), if self.in_trouble && !awaits_list => {
                    self.in_trouble = false;
                    return Ok(None);
                }
            };
            match next {
                Some(Ok(event)) => {
                    match &event {
                        // A list that is asked for is not there yet.
                        Event::Init => self.is_listing = true,
                        Event::InitDone => {
                            self.is_listing = false;
                            self.in_trouble = false;
                        }
                        Event::Apply(_) | Event::Delete(_) | Event::InitApply(_) => {
                            self.in_trouble = false;
                        }
                    }
                    return Ok(Some(event));
                }
                Some(Err(error)) => {
                    if let Some(trouble) = self.fail(&error, is_streamed) {
                        return Err(trouble);
                    }
                }
                None => self.restart(),
            }
        }
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
                self.restart();
                return None;
            }
            _ => {}
        }
        self.watched.pace.ended();
        self.in_trouble = true;
        let servers = self.watched.apis.len();
        if servers > 1 && another_may_help(code(error)) {
            self.at = (self.at + 1) % servers;
            self.restart();
        }
        Some(trouble(error))
    }

    fn list_plainly(&mut self) {
        self.config.initial_list_strategy = InitialListStrategy::ListWatch;
        self.restart();
    }

    fn restart(&mut self) {
        self.events = begin(self.watched.apis.get(self.at), &self.config);
        self.is_listing = true;
    }
}

fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::WatchError(status)
        | watcher::Error::InitialListFailed(KubeError::Api(status))
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
    Trouble { text, is_forbidden: code(error) == Some(403) }
}

/// An error with its reasons.
pub(in crate::control) fn explain(error: &KubeError) -> String {
    if let KubeError::Api(status) = error {
        return format!("{}: {}", status.code, status.message);
    }
    with_causes(error)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::Status;
    use serde_json::json;
    use tokio::time::timeout;

    use super::*;
    use crate::control::watch::scripted;

    #[track_caller]
    fn check(error: &watcher::Error, expected: &str, is_forbidden: bool) {
        let text = expected.to_owned();
        assert_eq!(trouble(error), Trouble { text, is_forbidden });
    }

    #[test]
    fn a_trouble_tells_its_reason_once_and_without_the_librarys_frame() {
        let status =
            |code| Box::new(Status { code, message: "no".to_owned(), ..Status::default() });
        check(&watcher::Error::WatchError(status(500)), "500: no", false);
        check(&watcher::Error::WatchStartFailed(KubeError::Api(status(403))), "403: no", true);
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = KubeError::Service(Box::new(refused));
        let text = "ServiceError: connection refused";
        check(&watcher::Error::InitialListFailed(error), text, false);
    }

    #[tokio::test]
    async fn the_next_server_is_asked_when_one_is_not_well() {
        let servers = scripted::servers(vec![
            scripted::client(|_, _| Some((503, json!(null)))),
            scripted::lists("ConfigMap", &json!([])),
        ]);
        let mut events = pin!(feed::<ConfigMap>(servers.watched(Api::all), ""));
        let listed =
            async { while !matches!(events.next().await, Some(Ok(Some(Event::InitDone)))) {} };
        let limit = Duration::from_secs(30);
        timeout(limit, listed).await.expect("the second server is asked");
    }
}
