//! Whether a caller may do what the request asks for.
//!
//! Only this file makes a [`Permit`], and nothing is forwarded or served without one.

use std::sync::Arc;

use super::AuthorizationMode;
use super::caller::Caller;
use crate::model::attributes::Attributes;
use crate::model::rejection::Rejection;
use crate::model::request_info::RequestInfo;
use crate::model::user::{GROUP_MASTERS, User};

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

/// Decides by privileged group, then path, then mode (`authorizerfactory/delegating.go`).
#[derive(Debug)]
pub struct Authorizer {
    mode: AuthorizationMode,
    exact_paths: Vec<String>,
    path_prefixes: Vec<String>,
}

impl Authorizer {
    /// `always_allow_paths` are exact, or prefixes when they end in `*`; the leading `/` may be
    /// missing.
    pub fn new(mode: AuthorizationMode, always_allow_paths: &[String]) -> Self {
        let (mut exact_paths, mut path_prefixes) = (Vec::new(), Vec::new());
        for path in always_allow_paths {
            let path = format!("/{}", path.trim_start_matches('/'));
            match path.strip_suffix('*') {
                Some(prefix) => path_prefixes.push(prefix.to_owned()),
                None => exact_paths.push(path),
            }
        }
        Self { mode, exact_paths, path_prefixes }
    }

    /// True for paths that are open to everybody; never for resources.
    pub fn always_allows(&self, info: &RequestInfo<'_>) -> bool {
        !info.is_resource && self.is_open(info.path)
    }

    fn is_open(&self, path: &str) -> bool {
        self.exact_paths.iter().any(|open| open == path)
            || self.path_prefixes.iter().any(|prefix| path.starts_with(prefix))
    }

    /// Gives the caller a permit, or says in upstream's words why not.
    pub fn authorize(
        &self,
        caller: Arc<Caller>,
        info: &RequestInfo<'_>,
    ) -> Result<Permit, Rejection> {
        let attributes = Attributes::from(info);
        match self.decide(&caller.user, &attributes) {
            Ok(()) => Ok(Permit { caller }),
            Err(reason) => Err(Rejection::forbidden(&caller.user, &attributes, &reason)),
        }
    }

    /// Leaves the decision to kube-apiserver; good for requests that go there only.
    pub fn defer(&self, caller: Arc<Caller>) -> Deferral {
        Deferral { caller }
    }

    /// Whether a user may do this; else the reason, which may be empty.
    pub(super) fn decide(&self, user: &User, asked: &Attributes<'_>) -> Result<(), String> {
        let allowed = user.in_group(GROUP_MASTERS)
            || (!asked.is_resource && self.is_open(asked.path))
            || match self.mode {
                AuthorizationMode::AlwaysAllow => true,
            };
        if allowed { Ok(()) } else { Err(String::new()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn always_allow_paths_are_exact_or_prefixes_and_never_resources() {
        let paths = ["healthz".to_owned(), "/open/*".to_owned(), "/apis/g/v1/things".to_owned()];
        let authorizer = Authorizer::new(AuthorizationMode::AlwaysAllow, &paths);
        let allows =
            |path| authorizer.always_allows(&RequestInfo::parse(&Method::GET, path, None).unwrap());
        assert!(allows("/healthz") && allows("/open/a/b"));
        assert!(!allows("/healthz/x") && !allows("/livez") && !allows("/apis/g/v1/things"));
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
