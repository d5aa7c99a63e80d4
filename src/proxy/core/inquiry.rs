//! Finds out how kube-apiserver is to be told who calls: a user whom nobody knows is named over the
//! front-proxy connections, with a uid and an extra value, and kube-apiserver is asked who that is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::{Core, RemoteRoute, Standing, UpstreamIdentity};
use crate::auth::{Caller, Trust};
use crate::model::fault::{Fault, Hop};
use crate::model::user::{GROUP_AUTHENTICATED, User};
use crate::runtime::snapshot::{Publisher, View};
use crate::upstream::{ApiServer, Pool, ServerUpstream};

const PATH: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const REVIEW: &[u8] = br#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
/// The extra key that is sent to see whether it arrives.
const EXTRA_KEY: &str = "portico.dev/inquiry";

/// How long the answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// After how long is asked again while nothing is known, and the least time between two questions.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// After how long is asked again whether front-proxy headers are believed by now.
const REFUSED_INTERVAL: Duration = Duration::from_secs(60);

/// The question, asked until it is answered and whenever the answer is in doubt.
#[derive(Debug)]
pub struct Inquiry {
    server: Arc<ApiServer>,
    front_proxy: Option<Arc<ServerUpstream>>,
    identity: UpstreamIdentity,
    remote_route: RemoteRoute,
    standing: Publisher<Standing>,
    takes_remotes: Arc<AtomicBool>,
    doubt: Arc<Notify>,
    /// Whether extension API servers believe portico; none until portico runs.
    trust: Option<View<Trust>>,
}

/// What an answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Front-proxy headers are believed; whether `X-Remote-Uid` is, too, where that can be seen.
    Believed { uid: Option<bool> },
    /// They are not, for this reason.
    Refused(String),
    /// The answer tells nothing.
    Unclear(String),
}

impl Inquiry {
    pub(super) fn new(
        core: &Core,
        (identity, remote_route): (UpstreamIdentity, RemoteRoute),
        standing: Publisher<Standing>,
    ) -> Self {
        let inquiry = Self {
            server: Arc::clone(&core.server),
            front_proxy: core.front_proxy.clone(),
            identity,
            remote_route,
            standing,
            takes_remotes: Arc::clone(&core.takes_remotes),
            doubt: Arc::clone(&core.doubt),
            trust: None,
        };
        // What needs no question is in force before the first request.
        match (identity, &inquiry.front_proxy) {
            (UpstreamIdentity::FrontProxy, Some(_)) => {
                inquiry.decide(Standing::FrontProxy, "--upstream-identity says so");
            }
            (UpstreamIdentity::Impersonate, _) => {
                inquiry.decide(Standing::Impersonate, "--upstream-identity says so");
            }
            (_, None) => {
                inquiry.decide(Standing::Impersonate, "there is no proxy-client certificate");
            }
            (UpstreamIdentity::Auto, Some(_)) => {
                let takes_remotes = remote_route == RemoteRoute::Core;
                inquiry.takes_remotes.store(takes_remotes, Ordering::Relaxed);
            }
        }
        inquiry
    }

    /// Asks over `pool`, which must be of the calling thread, until portico ends; `trust` says whether
    /// extension API servers believe portico.
    pub async fn run(mut self, pool: Arc<Pool>, mut trust: View<Trust>) {
        self.trust = Some(trust.clone());
        let follow = async {
            loop {
                self.route_remotes();
                if !trust.changed().await {
                    return;
                }
            }
        };
        tokio::join!(follow, self.ask_on(&pool));
    }

    async fn ask_on(&self, pool: &Arc<Pool>) {
        let Some(front_proxy) = &self.front_proxy else { return };
        if self.identity != UpstreamIdentity::Auto {
            return;
        }
        loop {
            let pause = self.ask(pool, front_proxy).await;
            sleep(RETRY_INTERVAL).await;
            match pause {
                None => self.doubt.notified().await,
                Some(pause) => {
                    // Whichever comes first; the end of the pause is no error.
                    timeout(pause, self.doubt.notified()).await.ok();
                }
            }
        }
    }

    /// Asks once; gives the time until the next question, none when there is no need of one.
    async fn ask(&self, pool: &Arc<Pool>, front_proxy: &ServerUpstream) -> Option<Duration> {
        let marker = marker();
        let headers = || headers(&marker);
        let review = Bytes::from_static(REVIEW);
        let front_proxy = front_proxy.now();
        let asking = self.server.post_over(pool, &front_proxy, PATH, review, (&headers, TIMEOUT));
        let verdict = match asking.await {
            Ok((code, body)) => judge(code, &body, &marker),
            Err(fault) if fault.hop == Hop::ClientCertificateRefused => {
                Verdict::Refused("it refuses the proxy-client certificate".to_owned())
            }
            Err(fault) => {
                self.unknown(Some(fault));
                return Some(Duration::ZERO);
            }
        };
        match verdict {
            Verdict::Believed { uid } => {
                self.decide(Standing::FrontProxy, "it believes the proxy-client certificate");
                if uid == Some(false) {
                    tracing::info!(
                        "the core does not believe X-Remote-Uid, its flag \
                         --requestheader-uid-headers would let it"
                    );
                }
                None
            }
            Verdict::Refused(reason) => {
                self.decide(Standing::Impersonate, &reason);
                Some(REFUSED_INTERVAL)
            }
            Verdict::Unclear(answer) => {
                tracing::warn!(answer, "the core does not say how it is to be told who calls");
                self.unknown(None);
                Some(Duration::ZERO)
            }
        }
    }

    /// What was known stays: a core that is gone for a while comes back as it was.
    fn unknown(&self, fault: Option<Fault>) {
        let current = self.standing.current();
        let Standing::Unknown(before) = &*current else { return };
        let next = fault.as_ref().map(|fault| fault.hop);
        if before.as_ref().map(|before| before.hop) == next {
            return;
        }
        if let Some(fault) = &fault {
            let (cause, detail) = (fault.hop.word(), &*fault.detail);
            tracing::warn!(cause, detail, "the core is not reached, trying on");
        }
        self.standing.publish(Standing::Unknown(fault));
    }

    fn decide(&self, standing: Standing, reason: &str) {
        if *self.standing.current() == standing {
            return;
        }
        let through_core = self.through_core(&standing);
        tracing::info!(
            upstream_identity =
                if standing == Standing::FrontProxy { "front-proxy" } else { "impersonate" },
            remote_route = if through_core { "core" } else { "direct" },
            reason,
            "way to the core in force"
        );
        self.takes_remotes.store(through_core, Ordering::Relaxed);
        self.standing.publish(standing);
    }

    /// Looks again which way requests for extension API servers go.
    fn route_remotes(&self) {
        let through_core = self.through_core(&self.standing.current());
        if self.takes_remotes.swap(through_core, Ordering::Relaxed) != through_core {
            let remote_route = if through_core { "core" } else { "direct" };
            tracing::info!(remote_route, "way to extension api servers in force");
        }
    }

    fn through_core(&self, standing: &Standing) -> bool {
        // They read in the ConfigMap whom to believe, and kube-apiserver in its flags.
        let believed = || self.trust.as_ref()?.load().believes_portico;
        match self.remote_route {
            RemoteRoute::Auto => {
                believed().map_or(*standing == Standing::Impersonate, |believed| !believed)
            }
            RemoteRoute::Direct => false,
            RemoteRoute::Core => true,
        }
    }
}

/// A user of whom nobody can have heard.
fn marker() -> User {
    let unique = format!("{:032x}", fastrand::u128(..));
    User {
        name: format!("portico:inquiry:{unique}"),
        uid: unique.clone(),
        groups: vec![GROUP_AUTHENTICATED.to_owned()],
        extra: [(EXTRA_KEY.to_owned(), vec![unique])].into(),
    }
}

fn headers(marker: &User) -> HeaderMap {
    // Its parts are letters, digits and colons.
    let lines = Caller::new(marker.clone()).map(|caller| caller.headers).unwrap_or_default();
    lines.into_iter().collect::<HeaderMap<HeaderValue>>()
}

fn judge(code: StatusCode, body: &[u8], marker: &User) -> Verdict {
    let unclear = || Verdict::Unclear(format!("it answered with status {}", code.as_u16()));
    match code {
        StatusCode::OK | StatusCode::CREATED => {
            let review: Result<SelfSubjectReview, _> = serde_json::from_slice(body);
            let Some(user) = review.ok().and_then(|review| review.status?.user_info) else {
                return Verdict::Unclear("it answered with no SelfSubjectReview".to_owned());
            };
            let name = user.username.unwrap_or_default();
            if name != marker.name {
                return Verdict::Refused(format!(
                    "it took the proxy-client certificate for {name:?} and not for a front proxy's"
                ));
            }
            let extra = user.extra.unwrap_or_default();
            if extra.get(EXTRA_KEY) != marker.extra.get(EXTRA_KEY) {
                return Verdict::Refused("it does not believe X-Remote-Extra-*".to_owned());
            }
            Verdict::Believed { uid: Some(user.uid.as_deref() == Some(&marker.uid)) }
        }
        StatusCode::UNAUTHORIZED => Verdict::Refused(
            "it does not believe the proxy-client certificate to be a front proxy's".to_owned(),
        ),
        // Nobody but the marker is told so; it may only not ask who it is.
        StatusCode::FORBIDDEN => {
            let status: Result<Status, _> = serde_json::from_slice(body);
            let message = status.ok().and_then(|status| status.message).unwrap_or_default();
            if message.contains(&format!("User \"{}\"", marker.name)) {
                Verdict::Believed { uid: None }
            } else {
                unclear()
            }
        }
        _ => unclear(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(code: u16, body: impl FnOnce(&User) -> Value, expected: &Verdict) {
        let marker = marker();
        let body = body(&marker).to_string();
        let code = StatusCode::from_u16(code).unwrap();
        assert_eq!(&judge(code, body.as_bytes(), &marker), expected);
    }

    fn review(name: &str, uid: &str, extra: &Value) -> Value {
        json!({
            "kind": "SelfSubjectReview",
            "apiVersion": "authentication.k8s.io/v1",
            "status": { "userInfo": { "username": name, "uid": uid, "extra": extra } },
        })
    }

    #[test]
    fn front_proxy_headers_count_as_believed_when_user_and_extra_come_back() {
        let all = |marker: &User| review(&marker.name, &marker.uid, &json!(marker.extra));
        check(201, all, &Verdict::Believed { uid: Some(true) });
        let no_uid = |marker: &User| review(&marker.name, "", &json!(marker.extra));
        check(201, no_uid, &Verdict::Believed { uid: Some(false) });
        let forbidden = |marker: &User| {
            let message = format!("selfsubjectreviews is forbidden: User \"{}\" no", marker.name);
            json!({ "kind": "Status", "code": 403, "message": message })
        };
        check(403, forbidden, &Verdict::Believed { uid: None });
    }

    #[test]
    fn headers_that_do_not_come_back_are_not_believed() {
        let no_extra = |marker: &User| review(&marker.name, &marker.uid, &json!({}));
        check(201, no_extra, &Verdict::Refused("it does not believe X-Remote-Extra-*".to_owned()));
        let other = |_: &User| review("aggregator", "", &json!({}));
        let reason = "it took the proxy-client certificate for \"aggregator\" and not for a front \
                      proxy's";
        check(201, other, &Verdict::Refused(reason.to_owned()));
        let reason = "it does not believe the proxy-client certificate to be a front proxy's";
        check(401, |_| json!({ "kind": "Status" }), &Verdict::Refused(reason.to_owned()));
    }

    #[test]
    fn other_answers_tell_nothing() {
        let unclear = |code: u16| Verdict::Unclear(format!("it answered with status {code}"));
        check(500, |_| json!({}), &unclear(500));
        check(404, |_| json!({}), &unclear(404));
        let someone = |_: &User| json!({ "message": "User \"system:anonymous\" cannot create" });
        check(403, someone, &unclear(403));
        let text = "it answered with no SelfSubjectReview".to_owned();
        check(201, |_| json!("text"), &Verdict::Unclear(text));
    }
}
