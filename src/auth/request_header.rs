//! The front proxy's headers (`apiserver/pkg/authentication/request/headerrequest`).

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;

use super::{Caller, FrontProxies};
use crate::model::user::User;

/// Checks that a verified certificate may act as front proxy.
pub(super) fn check_name(config: &FrontProxies, common_name: &str) -> Result<(), String> {
    let allowed = &config.allowed_names;
    if allowed.is_empty() || allowed.iter().any(|name| name == common_name) {
        Ok(())
    } else {
        Err(format!("x509: subject with cn={common_name} is not in the allowed list"))
    }
}

/// The caller that the headers name; `None` when they name none.
pub(super) fn caller(
    config: &FrontProxies,
    headers: &HeaderMap,
) -> Option<Result<Arc<Caller>, String>> {
    let user = user(config, headers).transpose()?;
    Some(user.and_then(|user| Caller::new(user.authenticated()).map(Arc::new)))
}

/// The user that the headers name; `None` when they name none, an error when they are no text: two
/// names must not become one.
fn user(config: &FrontProxies, headers: &HeaderMap) -> Result<Option<User>, String> {
    let Some(name) = first(headers, &config.username_headers)? else { return Ok(None) };
    let uid = first(headers, &config.uid_headers)?.unwrap_or_default();
    let mut groups = Vec::new();
    for value in config.group_headers.iter().flat_map(|name| headers.get_all(name)) {
        groups.push(text(value)?);
    }
    groups.retain(|group| !group.is_empty());
    Ok(Some(User { name, uid, groups, extra: extra(headers, &config.extra_prefixes)? }))
}

fn first(headers: &HeaderMap, names: &[String]) -> Result<Option<String>, String> {
    for value in names.iter().filter_map(|name| headers.get(name)) {
        let value = text(value)?;
        if !value.is_empty() {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// Extra keys are the rest of the name in lower case, then percent-decoded; a malformed one is kept
/// as it is, and keys that collide are merged.
fn extra(
    headers: &HeaderMap,
    prefixes: &[String],
) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut extra = BTreeMap::<String, Vec<String>>::new();
    for prefix in prefixes {
        for (name, value) in headers {
            let Some(key) = strip_prefix_ignoring_case(name.as_str(), prefix) else { continue };
            let key = match percent_decode_str(key).decode_utf8() {
                Ok(decoded) => decoded.into_owned(),
                Err(_) => key.to_owned(),
            };
            extra.entry(key).or_default().push(text(value)?);
        }
    }
    Ok(extra)
}

fn strip_prefix_ignoring_case<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let head = name.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| name.get(prefix.len()..)).flatten()
}

fn text(value: &HeaderValue) -> Result<String, String> {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(format!("a front-proxy header is not UTF-8: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn the_headers_are_read_as_upstream_reads_them() {
        let config = FrontProxies {
            uid_headers: vec!["X-Remote-Uid".to_owned()],
            ..FrontProxies::of_flags()
        };
        let user = user(
            &config,
            &headers(&[
                ("x-remote-user", "alice"),
                ("x-remote-uid", "u1"),
                ("x-remote-group", "a,b"),
                ("x-remote-group", "c"),
                ("x-remote-extra-example.com%2ftwo", "1"),
                ("x-remote-extra-bad%zz", "2"),
            ]),
        )
        .unwrap()
        .unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("alice", "u1"));
        assert_eq!(user.groups, ["a,b", "c"]);
        assert_eq!(user.extra["example.com/two"], ["1"]);
        assert_eq!(user.extra["bad%zz"], ["2"]);
    }

    #[test]
    fn without_a_name_there_is_no_user() {
        let config = FrontProxies::of_flags();
        assert_eq!(user(&config, &headers(&[("x-remote-group", "a")])), Ok(None));
        assert_eq!(user(&config, &headers(&[("x-remote-user", "")])), Ok(None));
    }

    #[test]
    fn a_name_that_is_no_text_is_refused_and_not_made_alike_with_others() {
        let mut map = HeaderMap::new();
        map.insert("x-remote-user", HeaderValue::from_bytes(b"a\xff").unwrap());
        assert!(user(&FrontProxies::of_flags(), &map).is_err());
    }

    #[test]
    fn allowed_names_limit_who_may_be_the_front_proxy() {
        let mut config = FrontProxies::of_flags();
        assert!(check_name(&config, "anyone").is_ok());
        config.allowed_names = vec!["proxy".to_owned()];
        assert!(check_name(&config, "proxy").is_ok());
        assert!(check_name(&config, "other").is_err());
    }
}
