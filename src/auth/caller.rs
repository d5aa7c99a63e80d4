//! A caller with the headers that tell a backend who it is, made once and reused.

use std::sync::{Arc, OnceLock};

use http::{HeaderName, HeaderValue};

use crate::model::user::User;

const X_REMOTE_USER: HeaderName = HeaderName::from_static("x-remote-user");
const X_REMOTE_UID: HeaderName = HeaderName::from_static("x-remote-uid");
const X_REMOTE_GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const X_REMOTE_EXTRA_PREFIX: &str = "x-remote-extra-";
const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
const IMPERSONATE_UID: HeaderName = HeaderName::from_static("impersonate-uid");
const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const IMPERSONATE_EXTRA_PREFIX: &str = "impersonate-extra-";

/// Lines of headers.
pub type Lines = Vec<(HeaderName, HeaderValue)>;

/// An authenticated caller.
#[derive(Debug)]
pub struct Caller {
    /// Who it is.
    pub user: User,
    /// The X-Remote-* headers for backends, in upstream's order (`SetAuthProxyHeaders`).
    pub headers: Lines,
    /// True for `system:anonymous`, whose requests travel on connections of their own.
    pub is_anonymous: bool,
    /// Who authenticated and acts as this user; `None` for who is here in person.
    pub impersonated_by: Option<Arc<Self>>,
    impersonation: OnceLock<Lines>,
}

impl Caller {
    /// Prepares the headers; an error names what cannot be carried in a header.
    pub fn new(user: User) -> Result<Self, String> {
        let mut headers = Vec::with_capacity(1 + user.groups.len() + user.extra.len());
        headers.push((X_REMOTE_USER, value("user name", &user.name)?));
        if !user.uid.is_empty() {
            headers.push((X_REMOTE_UID, value("uid", &user.uid)?));
        }
        for group in &user.groups {
            headers.push((X_REMOTE_GROUP, value("group", group)?));
        }
        for (key, values) in &user.extra {
            let name = format!("{X_REMOTE_EXTRA_PREFIX}{}", escape_key(key));
            let name = HeaderName::try_from(name)
                .map_err(|error| format!("extra key {key:?} makes no header: {error}"))?;
            for text in values {
                headers.push((name.clone(), value("extra value", text)?));
            }
        }
        let (is_anonymous, impersonation) = (user.is_anonymous(), OnceLock::new());
        Ok(Self { is_anonymous, user, headers, impersonated_by: None, impersonation })
    }

    /// The user as whom `by` acts.
    pub fn impersonated(user: User, by: &Arc<Self>) -> Result<Self, String> {
        Ok(Self { impersonated_by: Some(Arc::clone(by)), ..Self::new(user)? })
    }

    /// The same as Impersonate-* headers, for a server that lets portico act as its callers
    /// (`impersonatingRoundTripper` of client-go).
    pub fn impersonation(&self) -> &Lines {
        self.impersonation.get_or_init(|| {
            let renamed = self.headers.iter().filter_map(|(name, value)| {
                let name = match name {
                    name if name == X_REMOTE_USER => IMPERSONATE_USER,
                    name if name == X_REMOTE_UID => IMPERSONATE_UID,
                    name if name == X_REMOTE_GROUP => IMPERSONATE_GROUP,
                    name => {
                        let key = name.as_str().strip_prefix(X_REMOTE_EXTRA_PREFIX)?;
                        HeaderName::try_from(format!("{IMPERSONATE_EXTRA_PREFIX}{key}")).ok()?
                    }
                };
                Some((name, value.clone()))
            });
            renamed.collect()
        })
    }

    /// The user's name when somebody else acts as this user.
    pub fn impersonated_name(&self) -> Option<&str> {
        self.impersonated_by.as_ref().map(|_| self.user.name.as_str())
    }

    /// Who authenticated.
    pub fn requestor(&self) -> &Self {
        self.impersonated_by.as_deref().unwrap_or(self)
    }
}

/// Names go as they are, non-ASCII bytes too (`measured-1.37.md` §4).
fn value(what: &str, text: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_bytes(text.as_bytes())
        .map_err(|error| format!("{what} {text:?} cannot be carried in a header: {error}"))
}

/// Percent-encodes what may not stand in a header name, and `%` itself (`headerKeyEscape`).
fn escape_key(key: &str) -> String {
    let mut escaped = String::with_capacity(key.len());
    for byte in key.bytes() {
        if is_token(byte) && byte != b'%' {
            escaped.push(char::from(byte));
        } else {
            escaped.push('%');
            escaped.extend([byte >> 4, byte & 15].map(hex_digit));
        }
    }
    escaped
}

fn hex_digit(value: u8) -> char {
    char::from_digit(value.into(), 16).unwrap_or('0').to_ascii_uppercase()
}

/// RFC 9110 §5.6.2 `tchar`.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_keys_are_escaped_as_upstream_does() {
        assert_eq!(escape_key("example.com/two"), "example.com%2Ftwo");
        assert_eq!(escape_key("two%20three"), "two%2520three");
        assert_eq!(escape_key("@=:"), "%40%3D%3A");
        assert_eq!(escape_key("ä"), "%C3%A4");
    }

    #[test]
    fn a_name_that_would_break_the_header_is_refused() {
        let user = User { name: "a\nx-remote-group: b".to_owned(), ..User::default() };
        assert!(Caller::new(user).is_err());
        let user = User { name: "jürgen".to_owned(), ..User::default() };
        assert_eq!(Caller::new(user).unwrap().headers[0].1.as_bytes(), "jürgen".as_bytes());
    }

    #[test]
    fn each_group_and_each_extra_value_has_a_line() {
        let user = User {
            name: "a".to_owned(),
            uid: "u".to_owned(),
            groups: vec!["g,1".to_owned(), "g2".to_owned()],
            extra: [("k/x".to_owned(), vec!["1".to_owned(), "2".to_owned()])].into(),
        };
        let lines: Vec<String> = Caller::new(user)
            .unwrap()
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        assert_eq!(
            lines,
            [
                "x-remote-user: a",
                "x-remote-uid: u",
                "x-remote-group: g,1",
                "x-remote-group: g2",
                "x-remote-extra-k%2fx: 1",
                "x-remote-extra-k%2fx: 2",
            ]
        );
    }

    #[test]
    fn whom_portico_acts_as_is_told_in_as_many_lines() {
        let user = User {
            name: "a".to_owned(),
            uid: "u".to_owned(),
            groups: vec!["g".to_owned()],
            extra: [("k/x".to_owned(), vec!["1".to_owned()])].into(),
        };
        let caller = Caller::new(user).unwrap();
        let lines = caller.impersonation().iter();
        let lines: Vec<String> =
            lines.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        let expected = [
            "impersonate-user: a",
            "impersonate-uid: u",
            "impersonate-group: g",
            "impersonate-extra-k%2fx: 1",
        ];
        assert_eq!(lines, expected);
    }
}
