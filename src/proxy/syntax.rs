//! What of a request is refused before anything is made of it.

use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderValue, Method, Version};

use crate::model::rejection::Rejection;

/// Header lines of a request, on HTTP/2 too.
const HEADER_LINES_MAX: usize = 256;
/// Bytes of all `Connection` headers of a request: each header is compared with what they list.
const CONNECTION_BYTES_MAX: usize = 1024;

/// Refuses what servers may understand differently, which is how requests are smuggled: no or
/// several Host headers, a transfer coding other than chunked, a target without a path.
pub fn check_syntax(parts: &Parts) -> Result<(), Rejection> {
    if parts.method == Method::CONNECT || !parts.uri.path().starts_with('/') {
        return Err(Rejection::BadRequest("the request target has no path".to_owned()));
    }
    if parts.headers.len() > HEADER_LINES_MAX {
        return Err(Rejection::HeadersTooLarge);
    }
    if parts.version == Version::HTTP_2 {
        return Ok(());
    }
    let connection = parts.headers.get_all(CONNECTION).iter().map(HeaderValue::len).sum::<usize>();
    if connection > CONNECTION_BYTES_MAX {
        return Err(Rejection::HeadersTooLarge);
    }
    let mut hosts = parts.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next(), parts.version) {
        (Some(host), None, _) if host.as_bytes().iter().all(u8::is_ascii_graphic) => {}
        (None, None, Version::HTTP_10) => {}
        (Some(_), None, _) => {
            return Err(Rejection::BadRequest("malformed Host header".to_owned()));
        }
        (None, _, _) => {
            return Err(Rejection::BadRequest("missing required Host header".to_owned()));
        }
        (Some(_), Some(_), _) => {
            return Err(Rejection::BadRequest("too many Host headers".to_owned()));
        }
    }
    let chunked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if chunked(coding) => Ok(()),
        _ => Err(Rejection::NotImplemented("unsupported transfer encoding")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    #[track_caller]
    fn check(version: Version, headers: &[(&'static str, &'static str)], expected: Option<u16>) {
        let mut builder = Request::builder().version(version).uri("/apis");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let (parts, ()) = builder.body(()).unwrap().into_parts();
        let got = check_syntax(&parts).err().map(|rejection| rejection.code().as_u16());
        assert_eq!(got, expected, "{headers:?}");
    }

    #[test]
    fn what_servers_may_understand_differently_is_refused() {
        let http1 = Version::HTTP_11;
        check(http1, &[("host", "a")], None);
        check(http1, &[], Some(400));
        check(http1, &[("host", "a"), ("host", "a")], Some(400));
        check(http1, &[("host", "a b")], Some(400));
        check(http1, &[("host", "a"), ("transfer-encoding", "chunked")], None);
        check(http1, &[("host", "a"), ("transfer-encoding", "gzip, chunked")], Some(501));
        check(http1, &[("host", "a"), ("transfer-encoding", "identity")], Some(501));
        check(Version::HTTP_2, &[], None);
    }
}
