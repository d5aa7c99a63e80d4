//! Whether a caller may act as somebody else, and as whom it goes on.
//!
//! `model::impersonation` says what must be allowed; here the authorizer is asked. Nothing is
//! remembered between requests, so the modes are always tried in the same order.

use std::sync::Arc;

use http::HeaderMap;

use super::authorize::Authorizer;
use super::caller::Caller;
use crate::model::attributes::Attributes;
use crate::model::impersonation::{Attempt, Mode, Step, wanted};
use crate::model::rejection::Rejection;
use crate::model::request_info::RequestInfo;

impl Authorizer {
    /// The caller as whom a request goes on when its headers ask for another one than who sent it;
    /// `None` when they do not.
    pub fn impersonate(
        &self,
        caller: &Arc<Caller>,
        info: &RequestInfo<'_>,
        headers: &HeaderMap,
    ) -> Result<Option<Arc<Caller>>, Rejection> {
        let Some(wanted) = wanted(headers)? else { return Ok(None) };
        let request = Attributes::from(info);
        let mut first = None;
        for mode in Mode::ALL {
            let Some(attempt) = mode.attempt(&wanted, &caller.user, &request) else { continue };
            match self.try_attempt(caller, &attempt) {
                Ok(()) => {
                    tracing::debug!(
                        user = caller.user.name,
                        impersonated_user = attempt.user.name,
                        mode = mode.name(),
                        "impersonating"
                    );
                    let user = Caller::impersonated(attempt.user, caller);
                    return Ok(Some(Arc::new(user.map_err(Rejection::BadRequest)?)));
                }
                Err(rejection) => {
                    first.get_or_insert(rejection);
                }
            }
        }
        // The last mode is for every user, so that one has failed.
        Err(first.unwrap_or_else(|| Rejection::Internal("no impersonation mode fits".to_owned())))
    }

    fn try_attempt(&self, caller: &Caller, attempt: &Attempt<'_>) -> Result<(), Rejection> {
        attempt.steps.iter().try_for_each(|step| match step {
            Step::One(asked) => self.may(caller, attempt, asked),
            Step::AllOrEach(all, each) => self
                .may(caller, attempt, all)
                .or_else(|_| each.iter().try_for_each(|asked| self.may(caller, attempt, asked))),
            Step::Never(asked, reason) => Err(Rejection::forbidden(&caller.user, asked, reason)),
        })
    }

    /// Nobody vouches for who brought no credentials: whoever it acted as would be believed.
    fn may(
        &self,
        caller: &Caller,
        attempt: &Attempt<'_>,
        asked: &Attributes<'_>,
    ) -> Result<(), Rejection> {
        let decision = if caller.is_anonymous {
            Err(String::new())
        } else {
            self.decide(&attempt.requestor, asked)
        };
        decision.map_err(|reason| Rejection::forbidden(&caller.user, asked, &reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::AuthorizationMode;
    use crate::model::user::User;
    use http::Method;

    fn ask(
        caller: User,
        lines: &[(&'static str, &'static str)],
    ) -> Result<Option<Arc<Caller>>, Rejection> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        let authorizer = Authorizer::new(AuthorizationMode::AlwaysAllow, &["/healthz".to_owned()]);
        let info = RequestInfo::parse(&Method::GET, "/healthz", None).unwrap();
        authorizer.impersonate(&Arc::new(Caller::new(caller).unwrap()), &info, &headers)
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

    #[test]
    fn a_request_goes_on_as_whom_it_names_and_keeps_nothing_of_its_callers_identity() {
        assert!(ask(alice(), &[("accept", "*/*")]).unwrap().is_none());
        let got = ask(alice(), &[("impersonate-user", "bob"), ("impersonate-group", "ops")]);
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

    #[test]
    fn what_constrained_modes_never_allow_is_for_the_legacy_one_to_allow() {
        let lines = [("impersonate-user", "root"), ("impersonate-group", "system:masters")];
        let got = ask(alice(), &lines).unwrap().unwrap();
        assert_eq!(got.user.groups, ["system:masters", "system:authenticated"]);
    }

    #[test]
    fn a_caller_without_credentials_acts_as_nobody_else() {
        let rejection = ask(User::anonymous(), &[("impersonate-user", "bob")]).unwrap_err();
        assert_eq!(rejection.code(), 403);
        // As upstream words what its first fitting mode was refused.
        assert_eq!(
            rejection.message(),
            "forbidden: User \"system:anonymous\" cannot impersonate-on:user-info:get path \"/healthz\""
        );
    }
}
