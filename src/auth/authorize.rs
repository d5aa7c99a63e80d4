//! Whether a caller may do what the request asks for.
//!
//! Only this file makes a [`Permit`], and nothing is forwarded or served without one.

use std::sync::Arc;

use http::HeaderMap;

use super::AuthorizationMode;
use super::caller::Caller;
use crate::model::rejection::{Details, Rejection};
use crate::model::request_info::RequestInfo;
use crate::model::user::GROUP_MASTERS;

/// Proof that a caller may do what its request asks for.
#[derive(Clone, Debug)]
pub struct Permit {
    caller: Arc<Caller>,
}

impl Permit {
    /// Who got it.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Refuses callers outside of `system:masters`, whatever the authorizer says: what is inside
    /// of portico is nobody else's business.
    pub fn masters_only(&self, info: &RequestInfo<'_>) -> Result<(), Rejection> {
        if self.caller.user.in_group(GROUP_MASTERS) {
            return Ok(());
        }
        Err(Rejection::forbidden(&self.caller.user, info))
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
        !info.is_resource
            && (self.exact_paths.iter().any(|path| path == info.path)
                || self.path_prefixes.iter().any(|prefix| info.path.starts_with(prefix)))
    }

    /// Gives the caller a permit, or says in upstream's words why not.
    pub fn authorize(
        &self,
        caller: Arc<Caller>,
        info: &RequestInfo<'_>,
    ) -> Result<Permit, Rejection> {
        let allowed = caller.user.in_group(GROUP_MASTERS)
            || self.always_allows(info)
            || match self.mode {
                AuthorizationMode::AlwaysAllow => true,
            };
        if allowed { Ok(Permit { caller }) } else { Err(Rejection::forbidden(&caller.user, info)) }
    }
}

/// Refuses requests to act as somebody else: whether a caller may cannot be decided yet.
pub fn refuse_impersonation(caller: &Caller, headers: &HeaderMap) -> Result<(), Rejection> {
    let asked = headers.iter().find_map(|(name, value)| {
        let rest = name.as_str().strip_prefix("impersonate")?.get(1..)?;
        let resource = match rest.split(['-', '_']).next()? {
            "user" => "users",
            "group" => "groups",
            "uid" => "uids",
            "extra" => "userextras",
            _ => return None,
        };
        Some((resource, String::from_utf8_lossy(value.as_bytes()).into_owned()))
    });
    let Some((resource, name)) = asked else { return Ok(()) };
    let message = format!(
        "{resource} \"{name}\" is forbidden: User \"{}\" cannot impersonate resource \"{resource}\" \
         in API group \"\" at the cluster scope: impersonation is not supported",
        caller.user.name
    );
    let kind = resource.to_owned();
    Err(Rejection::Forbidden(Box::new(Details { message, name, kind, ..Details::default() })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::user::User;
    use http::{HeaderValue, Method};

    fn caller(name: &str) -> Arc<Caller> {
        Arc::new(Caller::new(User { name: name.to_owned(), ..User::default() }).unwrap())
    }

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

    #[test]
    fn impersonation_is_refused_in_every_spelling_and_unknown_headers_of_its_kind_are_not() {
        for name in ["impersonate-user", "impersonate_user", "impersonate-extra-scopes"] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static("root"));
            let rejection = refuse_impersonation(&caller("alice"), &headers).unwrap_err();
            assert_eq!(rejection.code(), 403, "{name}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("impersonate-nothing", HeaderValue::from_static("x"));
        assert!(refuse_impersonation(&caller("alice"), &headers).is_ok());
    }
}
