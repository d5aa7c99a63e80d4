//! Which changes of protocol a client may ask for, and which answer is one (RFC 9110 §7.8).
//!
//! Upstream passes any; here only WebSocket and SPDY pass, since a caller that got, say, `h2c` would
//! hold a raw connection on which it is authenticated as the front proxy.

use http::HeaderMap;
use http::header::{AsHeaderName, CONNECTION, UPGRADE};

const WEBSOCKET: &[u8] = b"websocket";
const SPDY: &[u8] = b"spdy/";

/// True when the request asks for another protocol: it has an `Upgrade` header, and `Connection`
/// lists it.
pub fn is_asked(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && tokens(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
}

/// True when every protocol that the request names may pass, and there is one. Of several the
/// backend may choose any, so each must be allowed.
pub fn is_allowed(request: &HeaderMap) -> bool {
    let mut asked = tokens(request, UPGRADE).peekable();
    asked.peek().is_some() && asked.all(may_pass)
}

/// True when the request asks for a WebSocket and for nothing else (`wsstream.IsWebSocketRequest`).
pub fn is_websocket(request: &HeaderMap) -> bool {
    is_asked(request) && the_one(request).is_some_and(|name| name.eq_ignore_ascii_case(WEBSOCKET))
}

/// True when a 101 switches to one protocol, which the request asked for.
pub fn is_granted(request: &HeaderMap, response: &HeaderMap) -> bool {
    the_one(response).is_some_and(|granted| {
        tokens(request, UPGRADE).any(|asked| asked.eq_ignore_ascii_case(granted))
    })
}

fn may_pass(name: &[u8]) -> bool {
    if name.eq_ignore_ascii_case(WEBSOCKET) {
        return true;
    }
    match name.split_at_checked(SPDY.len()) {
        Some((prefix, version)) => {
            let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'.';
            prefix.eq_ignore_ascii_case(SPDY) && !version.is_empty() && version.iter().all(allowed)
        }
        None => false,
    }
}

/// The only protocol that `Upgrade` names.
fn the_one(headers: &HeaderMap) -> Option<&[u8]> {
    let mut names = tokens(headers, UPGRADE);
    names.next().filter(|_| names.next().is_none())
}

/// What a list header holds, over all its lines; empty elements do not count.
fn tokens(headers: &HeaderMap, name: impl AsHeaderName) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(name).into_iter();
    lines
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn an_upgrade_is_asked_for_by_two_headers() {
        let asked = |lines| is_asked(&headers(lines));
        assert!(asked(&[("connection", "keep-alive, UPGRADE"), ("upgrade", "h2c")]));
        assert!(asked(&[("connection", "x"), ("connection", "upgrade"), ("upgrade", "")]));
        assert!(!asked(&[("connection", "upgrade")]));
        assert!(!asked(&[("upgrade", "websocket")]));
        assert!(!asked(&[("connection", "upgrades"), ("upgrade", "websocket")]));
    }

    #[track_caller]
    fn check_allowed(value: &'static str, expected: bool) {
        assert_eq!(is_allowed(&headers(&[("upgrade", value)])), expected, "{value}");
    }

    #[test]
    fn only_websocket_and_spdy_pass_and_of_several_each_must() {
        check_allowed("websocket", true);
        check_allowed("WebSocket", true);
        check_allowed("SPDY/3.1", true);
        check_allowed("spdy/4", true);
        check_allowed("websocket, SPDY/3.1", true);
        check_allowed(", websocket,", true);
        check_allowed("SPDY", false);
        check_allowed("SPDY/", false);
        check_allowed("SPDY/3 1", false);
        check_allowed("websocket/13", false);
        check_allowed("h2c", false);
        check_allowed("websocket, h2c", false);
        check_allowed("TLS/1.0, HTTP/1.1", false);
        check_allowed("", false);
        check_allowed(",", false);
        let two = headers(&[("upgrade", "websocket"), ("upgrade", "h2c")]);
        assert!(!is_allowed(&two));
    }

    #[track_caller]
    fn check_granted(asked: &'static str, granted: &'static str, expected: bool) {
        let (asked, granted) = (headers(&[("upgrade", asked)]), headers(&[("upgrade", granted)]));
        assert_eq!(is_granted(&asked, &granted), expected);
    }

    #[test]
    fn a_switch_names_one_protocol_that_was_asked_for() {
        check_granted("SPDY/3.1", "SPDY/3.1", true);
        check_granted("SPDY/3.1", "spdy/3.1", true);
        check_granted("websocket, SPDY/3.1", "SPDY/3.1", true);
        check_granted("SPDY/3.1", "SPDY/3", false);
        check_granted("SPDY/3.1", "websocket", false);
        check_granted("websocket, SPDY/3.1", "websocket, SPDY/3.1", false);
        check_granted("websocket", "", false);
        assert!(!is_granted(&headers(&[("upgrade", "websocket")]), &headers(&[])));
    }

    #[test]
    fn a_websocket_request_asks_for_nothing_else() {
        let asked =
            |value| is_websocket(&headers(&[("connection", "Upgrade"), ("upgrade", value)]));
        assert!(asked("WebSocket"));
        assert!(!asked("SPDY/3.1"));
        assert!(!asked("websocket, SPDY/3.1"));
        assert!(!is_websocket(&headers(&[("upgrade", "websocket")])));
    }
}
