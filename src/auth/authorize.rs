//! Whether a caller may do what the request asks for.
//!
//! Only this file makes a [`Permit`], and nothing is forwarded or served without one.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::request::Parts;
use prometheus::IntCounter;

use super::Asker;
use super::access_review::AccessReviews;
use super::caller::Caller;
use super::kept_reviews::NoAnswer;
use crate::model::attributes::{Attributes, Selection};
use crate::model::rejection::Rejection;
use crate::model::request_info::RequestInfo;
use crate::model::review::access::Decision;
use crate::model::user::{GROUP_MASTERS, User};
use crate::runtime::telemetry::{Metrics, ReviewMetrics};

/// Why `AlwaysDeny` allows nothing, in upstream's words.
const EVERYTHING: &str = "Everything is forbidden.";
/// What upstream says of a reviewer that contradicts itself.
const BOTH: &str = "webhook subject access review returned both allow and deny response";

/// Proof that a caller may do what its request asks for.
#[derive(Clone, Debug)]
pub struct Permit {
    caller: Arc<Caller>,
}

/// Proof that a caller is known, and that kube-apiserver decides about its request: what is sent
/// there tells who calls.
#[derive(Clone, Debug)]
pub struct Deferral {
    caller: Arc<Caller>,
}

impl Deferral {
    /// Who calls.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
}

impl Permit {
    /// Who got it.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Refuses callers who did not log in as members of `system:masters`, whatever the authorizer
    /// says and whomever they act as: what is inside of portico is nobody else's business.
    pub fn masters_only(&self, info: &RequestInfo<'_>) -> Result<(), Rejection> {
        let user = &self.caller.requestor().user;
        if user.in_group(GROUP_MASTERS) {
            return Ok(());
        }
        Err(Rejection::forbidden(user, &Attributes::from(info), ""))
    }
}

/// Whether a caller may go on, as far as it is known at once.
#[derive(Clone, Debug)]
pub enum Authorized {
    /// It may.
    Permitted(Permit),
    /// This caller must be asked about, with [`Authorizer::ask`].
    Ask(Arc<Caller>),
}

/// One authorizer of several.
#[derive(Debug)]
pub(super) enum Mode {
    /// Allows everything.
    AlwaysAllow,
    /// Allows nothing, but leaves it to others.
    AlwaysDeny,
    /// Asks.
    Webhook(Box<AccessReviews>),
}

/// Decides by privileged group, then path, then the modes in their order
/// (`authorizerfactory/delegating.go`, `authorization/union`).
#[derive(Debug)]
pub struct Authorizer {
    modes: Vec<Mode>,
    exact_paths: Vec<String>,
    path_prefixes: Vec<String>,
    metrics: Attempts,
}

/// Why something may not be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nobody allowed it; the reason may be empty.
    NoOpinion(String),
    /// Somebody denied it; the reason may be empty.
    Denied(String),
    /// An authorizer failed, and nobody else allowed it.
    Failed(String),
    /// The request's time was over before there was a decision.
    Deadline,
}

type Verdict = Result<(), Refusal>;

/// What the authorizers said so far that were of no opinion.
#[derive(Debug, Default)]
struct Heard {
    reasons: Vec<Arc<str>>,
    /// Why one of them could not decide; only one of them asks, so that there are no more.
    error: Option<String>,
}

impl Heard {
    /// The verdict, when this decision is one.
    fn take(&mut self, decision: Decision) -> Option<Verdict> {
        match decision {
            Decision::Allow => Some(Ok(())),
            Decision::Deny(reason) => Some(Err(Refusal::Denied(reason.as_ref().to_owned()))),
            Decision::NoOpinion(reason) => {
                self.reasons.push(reason);
                None
            }
            Decision::Both => Some(Err(Refusal::Failed(BOTH.to_owned()))),
        }
    }

    fn unallowed(self) -> Refusal {
        if let Some(error) = self.error {
            return Refusal::Failed(error);
        }
        let reasons = self.reasons.iter().filter(|reason| !reason.is_empty());
        let reasons: Vec<&str> = reasons.map(|reason| &**reason).collect();
        Refusal::NoOpinion(reasons.join("\n"))
    }
}

impl Authorizer {
    /// `always_allow_paths` are exact, or prefixes when they end in `*`; the leading `/` may be
    /// missing.
    pub(super) fn new(modes: Vec<Mode>, always_allow_paths: &[String], metrics: &Metrics) -> Self {
        let (mut exact_paths, mut path_prefixes) = (Vec::new(), Vec::new());
        for path in always_allow_paths {
            let path = format!("/{}", path.trim_start_matches('/'));
            match path.strip_suffix('*') {
                Some(prefix) => path_prefixes.push(prefix.to_owned()),
                None => exact_paths.push(path),
            }
        }
        Self { modes, exact_paths, path_prefixes, metrics: Attempts::new(&metrics.reviews) }
    }

    /// True for paths that are open to everybody; never for resources.
    pub fn always_allows(&self, info: &RequestInfo<'_>) -> bool {
        !info.is_resource && self.is_open(info.path)
    }

    fn is_open(&self, path: &str) -> bool {
        self.exact_paths.iter().any(|open| open == path)
            || self.path_prefixes.iter().any(|prefix| path.starts_with(prefix))
    }

    /// Gives the caller a permit, or says in upstream's words why not, unless a reviewer must be asked.
    /// `query` is the raw one.
    pub fn authorize(
        &self,
        caller: Arc<Caller>,
        info: &RequestInfo<'_>,
        query: Option<&str>,
    ) -> Result<Authorized, Rejection> {
        let selection = self.selection(info, query);
        let wish = Attributes::from(info).narrowed(selection.as_ref());
        match self.known(&caller.user, &wish) {
            Some(verdict) => permit(caller, &wish, verdict).map(Authorized::Permitted),
            None => Ok(Authorized::Ask(caller)),
        }
    }

    /// Leaves the decision to kube-apiserver; good for requests that go there only.
    pub fn defer(&self, caller: Arc<Caller>) -> Deferral {
        Deferral { caller }
    }

    /// The same by asking. In a box, so that requests that are decided at once do not grow by this.
    #[cold]
    pub fn ask<'a>(
        &'a self,
        caller: Arc<Caller>,
        info: &'a RequestInfo<'a>,
        parts: &'a Parts,
        asker: Asker<'a>,
    ) -> BoxFuture<'a, Result<Permit, Rejection>> {
        let asking = async move {
            let selection = self.selection(info, parts.uri.query());
            let wish = Attributes::from(info).narrowed(selection.as_ref());
            let verdict = self.by_asking(&caller.user, &wish, asker).await;
            permit(caller, &wish, verdict)
        };
        asking.boxed()
    }

    /// What narrows a request, where there is somebody to be told.
    pub(super) fn selection(
        &self,
        info: &RequestInfo<'_>,
        query: Option<&str>,
    ) -> Option<Selection> {
        let asks = self.modes.iter().any(|mode| matches!(mode, Mode::Webhook(_)));
        asks.then(|| Selection::of(info, query)).flatten()
    }

    /// Whether a user may do this.
    pub(super) async fn decide(
        &self,
        user: &User,
        wish: &Attributes<'_>,
        asker: Asker<'_>,
    ) -> Verdict {
        match self.known(user, wish) {
            Some(verdict) => verdict,
            None => self.by_asking(user, wish, asker).await,
        }
    }

    /// Whether a user may do this, when that is known without asking.
    fn known(&self, user: &User, wish: &Attributes<'_>) -> Option<Verdict> {
        if user.in_group(GROUP_MASTERS) || (!wish.is_resource && self.is_open(wish.path)) {
            return Some(Ok(()));
        }
        if let Some(Mode::AlwaysAllow) = self.modes.first() {
            return Some(Ok(()));
        }
        let mut heard = Heard::default();
        for mode in &self.modes {
            let decision = match mode {
                Mode::AlwaysAllow => Decision::Allow,
                Mode::AlwaysDeny => Decision::NoOpinion(EVERYTHING.into()),
                Mode::Webhook(reviews) => reviews.look(user, wish)?,
            };
            if let Some(verdict) = heard.take(decision) {
                return Some(self.metrics.count(verdict));
            }
        }
        Some(self.metrics.count(Err(heard.unallowed())))
    }

    async fn by_asking(&self, user: &User, wish: &Attributes<'_>, asker: Asker<'_>) -> Verdict {
        let mut heard = Heard::default();
        for mode in &self.modes {
            let decision = match mode {
                Mode::AlwaysAllow => Decision::Allow,
                Mode::AlwaysDeny => Decision::NoOpinion(EVERYTHING.into()),
                Mode::Webhook(reviews) => match reviews.ask(user, wish, asker).await {
                    Ok(decision) => decision,
                    Err(NoAnswer::Deadline) => return self.metrics.count(Err(Refusal::Deadline)),
                    Err(NoAnswer::Failed(error)) => {
                        heard.error = Some(error);
                        continue;
                    }
                },
            };
            if let Some(verdict) = heard.take(decision) {
                return self.metrics.count(verdict);
            }
        }
        self.metrics.count(Err(heard.unallowed()))
    }
}

fn permit(
    caller: Arc<Caller>,
    wish: &Attributes<'_>,
    verdict: Verdict,
) -> Result<Permit, Rejection> {
    match verdict {
        Ok(()) => Ok(Permit { caller }),
        Err(Refusal::NoOpinion(reason) | Refusal::Denied(reason)) => {
            Err(Rejection::forbidden(&caller.user, wish, &reason))
        }
        Err(Refusal::Failed(error)) => Err(Rejection::AuthorizerError(error)),
        Err(Refusal::Deadline) => Err(Rejection::ReviewDeadline),
    }
}

/// The counters of verdicts.
#[derive(Debug)]
struct Attempts {
    allowed: IntCounter,
    denied: IntCounter,
    no_opinion: IntCounter,
    error: IntCounter,
}

impl Attempts {
    fn new(ReviewMetrics { allowed, denied, no_opinion, error, .. }: &ReviewMetrics) -> Self {
        let (allowed, denied) = (allowed.clone(), denied.clone());
        Self { allowed, denied, no_opinion: no_opinion.clone(), error: error.clone() }
    }

    fn count(&self, verdict: Verdict) -> Verdict {
        let counter = match &verdict {
            Ok(()) => &self.allowed,
            Err(Refusal::Denied(_)) => &self.denied,
            Err(Refusal::NoOpinion(_)) => &self.no_opinion,
            Err(Refusal::Failed(_) | Refusal::Deadline) => &self.error,
        };
        counter.inc();
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn always_allow_paths_are_exact_or_prefixes_and_never_resources() {
        let paths = ["healthz".to_owned(), "/open/*".to_owned(), "/apis/g/v1/things".to_owned()];
        let metrics = Metrics::new().unwrap();
        let authorizer = Authorizer::new(vec![Mode::AlwaysAllow], &paths, &metrics);
        let allows =
            |path| authorizer.always_allows(&RequestInfo::parse(&Method::GET, path, None).unwrap());
        assert!(allows("/healthz") && allows("/open/a/b"));
        assert!(!allows("/healthz/x") && !allows("/livez") && !allows("/apis/g/v1/things"));
    }

    #[track_caller]
    fn check_modes(modes: Vec<Mode>, path: &str, expected: Result<(), &str>) {
        let paths = ["/healthz".to_owned()];
        let authorizer = Authorizer::new(modes, &paths, &Metrics::new().unwrap());
        let info = RequestInfo::parse(&Method::GET, path, None).unwrap();
        let user = User { name: "u".to_owned(), ..User::default() };
        let caller = Arc::new(Caller::new(user).unwrap());
        let got = authorizer.authorize(caller, &info, None);
        assert!(!matches!(got, Ok(Authorized::Ask(_))));
        let got = got.map(|_| ()).map_err(|rejection| rejection.message());
        assert_eq!(got, expected.map_err(str::to_owned));
    }

    #[test]
    fn the_first_mode_that_allows_counts() {
        check_modes(vec![Mode::AlwaysAllow], "/x", Ok(()));
        check_modes(vec![Mode::AlwaysDeny, Mode::AlwaysAllow], "/x", Ok(()));
        let refused = "forbidden: User \"u\" cannot get path \"/x\"";
        let text = format!("{refused}: Everything is forbidden.");
        check_modes(vec![Mode::AlwaysDeny], "/x", Err(&text));
        check_modes(vec![Mode::AlwaysDeny], "/healthz", Ok(()));
        check_modes(Vec::new(), "/x", Err(refused));
    }

    #[track_caller]
    fn check_heard(decisions: &[Decision], error: Option<&str>, expected: &Verdict) {
        let mut heard = Heard { error: error.map(str::to_owned), ..Heard::default() };
        let verdict = decisions.iter().find_map(|decision| heard.take(decision.clone()));
        let verdict = verdict.unwrap_or_else(|| Err(heard.unallowed()));
        assert_eq!(&verdict, expected, "{decisions:?}");
    }

    #[test]
    fn an_error_counts_where_nobody_allows_and_reasons_are_told_together() {
        let no = |reason: &str| Decision::NoOpinion(reason.into());
        let text = |text: &str| text.to_owned();
        let denied = Err(Refusal::Denied(text("d")));
        check_heard(&[no("a"), no(""), no("b")], None, &Err(Refusal::NoOpinion(text("a\nb"))));
        check_heard(&[no("a"), Decision::Deny("d".into())], None, &denied);
        check_heard(&[Decision::Deny("d".into()), Decision::Allow], None, &denied);
        check_heard(&[Decision::Deny("d".into())], Some("e"), &denied);
        check_heard(&[no("a"), Decision::Allow], Some("e"), &Ok(()));
        check_heard(&[no("a")], Some("e"), &Err(Refusal::Failed(text("e"))));
        check_heard(&[Decision::Both, Decision::Allow], None, &Err(Refusal::Failed(text(BOTH))));
    }

    #[test]
    fn masters_alone_see_what_is_inside() {
        let info = RequestInfo::parse(&Method::GET, "/debug/portico", None).unwrap();
        let permit = |groups: &[&str]| {
            let groups = groups.iter().map(|&group| group.to_owned()).collect();
            let user = User { name: "u".to_owned(), groups, ..User::default() };
            Permit { caller: Arc::new(Caller::new(user).unwrap()) }
        };
        assert!(permit(&["a", GROUP_MASTERS]).masters_only(&info).is_ok());
        let refused = permit(&["a", "system:authenticated"]).masters_only(&info).unwrap_err();
        assert_eq!(refused.code(), 403);
        let sentence = "forbidden: User \"u\" cannot get path \"/debug/portico\"";
        assert_eq!(refused.message(), sentence);
    }
}
