//! Who is calling: the front proxy by its certificate, the user by the headers it vouches for.

use http::HeaderMap;
use percent_encoding::percent_decode_str;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::model::rejection::Rejection;
use crate::model::user::User;

const EXTRA_PREFIX: &str = "x-remote-extra-";

/// Whether the verified certificate belongs to a front proxy that is believed; an empty list of
/// names believes every one. The text is for the log.
pub(crate) fn believed(
    certificates: Option<&[CertificateDer<'_>]>,
    allowed_names: &[String],
) -> Result<(), String> {
    let certificate = certificates
        .and_then(<[_]>::first)
        .ok_or_else(|| "no client certificate was presented".to_owned())?;
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("reading the client certificate: {error}"))?;
    // Of several the last one counts, as in Go.
    let name = certificate.subject().iter_common_name().last();
    let name = name.and_then(|name| name.as_str().ok()).unwrap_or_default();
    if allowed_names.is_empty() || allowed_names.iter().any(|allowed| allowed == name) {
        Ok(())
    } else {
        Err(format!("x509: subject with cn={name} is not in the allowed list"))
    }
}

/// The user that the headers name.
pub(crate) fn user(headers: &HeaderMap) -> Result<User, Rejection> {
    let name = values(headers, "x-remote-user").next();
    let name = name.ok_or_else(|| Rejection::Unauthorized("no x-remote-user".to_owned()))?;
    let mut user = User {
        name,
        uid: values(headers, "x-remote-uid").next().unwrap_or_default(),
        groups: values(headers, "x-remote-group").collect(),
        ..User::default()
    };
    for (header, value) in headers {
        if let Some(key) = header.as_str().strip_prefix(EXTRA_PREFIX) {
            let key = match percent_decode_str(key).decode_utf8() {
                Ok(decoded) => decoded.into_owned(),
                Err(_) => key.to_owned(),
            };
            user.extra.entry(key).or_default().push(text(value.as_bytes()));
        }
    }
    Ok(user)
}

/// The values of a header that are not empty, in order.
fn values(headers: &HeaderMap, name: &'static str) -> impl Iterator<Item = String> {
    headers
        .get_all(name)
        .into_iter()
        .map(|value| text(value.as_bytes()))
        .filter(|value| !value.is_empty())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn the_user_is_read_from_the_headers() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-remote-user", ""),
            ("x-remote-user", "alice"),
            ("x-remote-group", "dev"),
            ("x-remote-group", "a,b"),
            ("x-remote-uid", "7"),
            ("x-remote-extra-example.com%2fscope", "one"),
            ("x-remote-extra-example.com%2Fscope", "two"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let user = user(&headers).unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("alice", "7"));
        assert_eq!(user.groups, ["dev", "a,b"]);
        assert_eq!(user.extra["example.com/scope"], ["one", "two"]);
        assert_eq!(super::user(&HeaderMap::new()).unwrap_err().code().as_u16(), 401);
    }

    #[test]
    fn no_certificate_is_never_believed() {
        assert!(believed(None, &[]).is_err());
    }
}
