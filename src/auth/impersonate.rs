//! Whether a caller may act as somebody else, and as whom it goes on.
//!
//! `model::impersonation` says what must be allowed; here the authorizer is asked. Nothing is
//! remembered between requests, so the modes are always tried in the same order.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::request::Parts;

use super::Asker;
use super::authorize::{Authorizer, Refusal};
use super::caller::Caller;
use crate::model::attributes::Attributes;
use crate::model::impersonation::{Attempt, Mode, Step, wanted};
use crate::model::rejection::Rejection;
use crate::model::request_info::RequestInfo;
use crate::model::user::User;

/// The question as whom a request goes on.
type Asking<'a> = BoxFuture<'a, Result<Arc<Caller>, Rejection>>;

impl Authorizer {
    /// The caller as whom a request goes on when its headers ask for another one than who sent it;
    /// `None` when they do not. In a box, so that requests that ask for nobody do not grow by this.
    pub fn impersonate<'a>(
        &'a self,
        caller: &Arc<Caller>,
        info: &'a RequestInfo<'a>,
        parts: &'a Parts,
        asker: Asker<'a>,
    ) -> Result<Option<Asking<'a>>, Rejection> {
        let Some(wanted) = wanted(&parts.headers)? else { return Ok(None) };
        let caller = Arc::clone(caller);
        let asking = async move {
            let selection = self.selection(info, parts.uri.query());
            let request = Attributes::from(info).narrowed(selection.as_ref());
            self.by_modes(&caller, &wanted, &request, asker).await
        };
        Ok(Some(asking.boxed()))
    }

    async fn by_modes(
        &self,
        caller: &Arc<Caller>,
        wanted: &User,
        request: &Attributes<'_>,
        asker: Asker<'_>,
    ) -> Result<Arc<Caller>, Rejection> {
        let mut first = None;
        for mode in Mode::ALL {
            let Some(attempt) = mode.attempt(wanted, &caller.user, request) else { continue };
            match self.try_attempt(caller, &attempt, asker).await {
                Ok(()) => {
                    tracing::debug!(
                        user = caller.user.name,
                        impersonated_user = attempt.user.name,
                        mode = mode.name(),
                        "impersonating"
                    );
                    let user = Caller::impersonated(attempt.user, caller);
                    return Ok(Arc::new(user.map_err(Rejection::BadRequest)?));
                }
                // Nothing more can be asked.
                Err(rejection @ Rejection::ReviewDeadline) => return Err(rejection),
                Err(rejection) => {
                    first.get_or_insert(rejection);
                }
            }
        }
        // The last mode is for every user, so that one has failed.
        Err(first.unwrap_or_else(|| Rejection::Internal("no impersonation mode fits".to_owned())))
    }

    async fn try_attempt(
        &self,
        caller: &Caller,
        attempt: &Attempt<'_>,
        asker: Asker<'_>,
    ) -> Result<(), Rejection> {
        for step in &attempt.steps {
            let each = match step {
                Step::One(wish) => std::slice::from_ref(wish),
                Step::AllOrEach(all, each) => match self.may(caller, attempt, all, asker).await {
                    Err(Rejection::Forbidden(_)) => each.as_slice(),
                    Ok(()) => continue,
                    Err(rejection) => return Err(rejection),
                },
                Step::Never(wish, reason) => {
                    return Err(Rejection::forbidden(&caller.user, wish, reason));
                }
            };
            for wish in each {
                self.may(caller, attempt, wish, asker).await?;
            }
        }
        Ok(())
    }

    /// Nobody vouches for who brought no credentials: whoever it acted as would be believed. What
    /// fails is refused, with the failure as the reason, as upstream has it.
    async fn may(
        &self,
        caller: &Caller,
        attempt: &Attempt<'_>,
        wish: &Attributes<'_>,
        asker: Asker<'_>,
    ) -> Result<(), Rejection> {
        let verdict = if caller.is_anonymous {
            Err(Refusal::NoOpinion(String::new()))
        } else {
            self.decide(&attempt.requestor, wish, asker).await
        };
        match verdict {
            Ok(()) => Ok(()),
            Err(Refusal::NoOpinion(reason) | Refusal::Denied(reason) | Refusal::Failed(reason)) => {
                Err(Rejection::forbidden(&caller.user, wish, &reason))
            }
            Err(Refusal::Deadline) => Err(Rejection::ReviewDeadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::authorize;
    use crate::runtime::telemetry::Metrics;
    use crate::upstream::{self, Pool};
    use http::{Method, Request};

    async fn ask(
        caller: User,
        lines: &[(&'static str, &'static str)],
    ) -> Result<Option<Arc<Caller>>, Rejection> {
        let mut request = Request::get("/healthz");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let modes = vec![authorize::Mode::AlwaysAllow];
        let authorizer = Authorizer::new(modes, &["/healthz".to_owned()], &Metrics::new().unwrap());
        let info = RequestInfo::parse(&Method::GET, "/healthz", None).unwrap();
        let pool = Pool::new(upstream::Config::default());
        let asker = Asker { pool: &pool, deadline: None };
        let caller = Arc::new(Caller::new(caller).unwrap());
        match authorizer.impersonate(&caller, &info, &parts, asker)? {
            Some(asking) => asking.await.map(Some),
            None => Ok(None),
        }
    }

    fn alice() -> User {
        let extra = [("a.io/k".to_owned(), vec!["alice's".to_owned()])].into();
        User {
            name: "alice".to_owned(),
            uid: "1".to_owned(),
            groups: vec!["dev".to_owned()],
            extra,
        }
    }

    #[tokio::test]
    async fn a_request_goes_on_as_whom_it_names_and_keeps_nothing_of_its_callers_identity() {
        assert!(ask(alice(), &[("accept", "*/*")]).await.unwrap().is_none());
        let got = ask(alice(), &[("impersonate-user", "bob"), ("impersonate-group", "ops")]).await;
        let got = got.unwrap().unwrap();
        let expected = User {
            name: "bob".to_owned(),
            groups: vec!["ops".to_owned(), "system:authenticated".to_owned()],
            ..User::default()
        };
        assert_eq!(got.user, expected);
        assert_eq!(got.requestor().user, alice());
        let sent: Vec<_> = got.headers.iter().map(|(_, value)| value.to_str().unwrap()).collect();
        assert_eq!(sent, ["bob", "ops", "system:authenticated"]);
    }

    #[tokio::test]
    async fn what_constrained_modes_never_allow_is_for_the_legacy_one_to_allow() {
        let lines = [("impersonate-user", "root"), ("impersonate-group", "system:masters")];
        let got = ask(alice(), &lines).await.unwrap().unwrap();
        assert_eq!(got.user.groups, ["system:masters", "system:authenticated"]);
    }

    #[tokio::test]
    async fn a_caller_without_credentials_acts_as_nobody_else() {
        let rejection = ask(User::anonymous(), &[("impersonate-user", "bob")]).await.unwrap_err();
        assert_eq!(rejection.code(), 403);
        // As upstream words what its first fitting mode was refused.
        assert_eq!(
            rejection.message(),
            "forbidden: User \"system:anonymous\" cannot impersonate-on:user-info:get path \"/healthz\""
        );
    }
}
