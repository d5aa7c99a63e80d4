//! Finds out how kube-apiserver is to be told who calls: a user whom nobody knows is named over the
//! front-proxy connections, with a uid and an extra value, and kube-apiserver is asked who that is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::{Core, RemoteRoute, Standing, UpstreamIdentity};
use crate::auth::{Caller, Trust};
use crate::model::fault::{Fault, Hop};
use crate::model::review::front_proxy::{Disbelief, PATH, QUESTION, Verdict, judge, marker};
use crate::model::user::User;
use crate::runtime::snapshot::{Publisher, View, replaced};
use crate::upstream::{self, ApiServer, Pool, ServerUpstream};

/// How long the answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// After how long is asked again while nothing is known, and the least time between two questions.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// After how long is asked again whether front-proxy headers are believed by now, or still: a
/// kube-apiserver that was restarted with other flags may take the certificate for its owner's.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

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
    /// Holds the proxy-client pair.
    upstream: upstream::Config,
    /// Whether extension API servers believe portico; none until portico runs.
    trust: Option<View<Trust>>,
}

impl Inquiry {
    pub(super) fn new(
        core: &Core,
        (identity, remote_route): (UpstreamIdentity, RemoteRoute),
        upstream: &upstream::Config,
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
            upstream: upstream.clone(),
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
        let mut pair = self.upstream.identity.clone();
        let mut access = Some(self.server.follow_access());
        loop {
            let pause = self.ask(pool, front_proxy).await;
            sleep(RETRY_INTERVAL).await;
            tokio::select! {
                () = sleep(pause) => {}
                () = self.doubt.notified() => {}
                () = replaced(&mut pair) => {}
                // Whom its authorities vouch for by now may be somebody else.
                () = replaced(&mut access) => {}
            }
        }
    }

    /// Asks once; gives the time until the next question.
    async fn ask(&self, pool: &Arc<Pool>, front_proxy: &ServerUpstream) -> Duration {
        let marker = marker(&format!("{:032x}", fastrand::u128(..)));
        let headers = || headers(&marker);
        let review = Bytes::from_static(QUESTION);
        let front_proxy = front_proxy.now();
        let asking = self.server.post_over(pool, &front_proxy, PATH, review, (&headers, TIMEOUT));
        let verdict = match asking.await {
            Ok((code, body)) => judge(code, &body, &marker),
            Err(fault) => {
                let Some(reason) = Disbelief::of(fault.hop) else {
                    self.unknown(fault);
                    return Duration::ZERO;
                };
                Verdict::Refused(reason)
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
                LOOK_INTERVAL
            }
            Verdict::Refused(reason) => {
                self.decide(Standing::Impersonate, &reason.to_string());
                LOOK_INTERVAL
            }
            Verdict::Unclear(answer) => {
                self.unknown(Fault::new(Hop::ReviewRefused, answer));
                Duration::ZERO
            }
        }
    }

    /// What was known stays: a core that is gone for a while comes back as it was.
    fn unknown(&self, fault: Fault) {
        let current = self.standing.current();
        let Standing::Unknown(before) = &*current else { return };
        if before.as_ref().is_some_and(|before| before.hop == fault.hop) {
            return;
        }
        let (cause, detail) = (fault.hop.word(), &*fault.detail);
        tracing::warn!(
            cause,
            detail,
            "the core does not say how it is to be told who calls, trying on"
        );
        self.standing.publish(Standing::Unknown(Some(fault)));
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

fn headers(marker: &User) -> HeaderMap {
    // Its parts are letters, digits and colons.
    let lines = Caller::new(marker.clone()).map(|caller| caller.headers).unwrap_or_default();
    lines.into_iter().collect::<HeaderMap<HeaderValue>>()
}
