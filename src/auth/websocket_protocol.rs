//! A bearer token among the subprotocols of a WebSocket request, which is where browsers can put one
//! (`apiserver/pkg/authentication/request/websocket/protocol.go`).

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{HeaderMap, HeaderValue};

use crate::model::upgrade;

/// What a subprotocol that carries a token begins with; unpadded base64url follows.
const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// As lenient as upstream's decoder: bits after the last byte do not count.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// The token that a WebSocket request carries, if there is one.
pub(super) fn token(headers: &HeaderMap) -> Option<Result<String, &'static str>> {
    if !headers.contains_key(SEC_WEBSOCKET_PROTOCOL) || !upgrade::is_websocket(headers) {
        return None;
    }
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL);
    let (tokens, others): (Vec<&[u8]>, Vec<&[u8]>) =
        lines.iter().flat_map(subprotocols).partition(|name| carries_token(name));
    let encoded = match tokens.as_slice() {
        [] => return None,
        [one] => one.get(PREFIX.len()..).unwrap_or_default(),
        _ => return Some(Err("multiple base64.bearer.authorization tokens specified")),
    };
    let Ok(bytes) = BASE64.decode(encoded) else {
        return Some(Err("invalid base64.bearer.authorization token encoding"));
    };
    let Ok(token) = String::from_utf8(bytes) else {
        return Some(Err("invalid base64.bearer.authorization token"));
    };
    if token.is_empty() {
        return None;
    }
    // One must be left for the backend to choose and the client to hear.
    if others.is_empty() {
        return Some(Err("missing additional subprotocol"));
    }
    Some(Ok(token))
}

/// What of a `Sec-WebSocket-Protocol` line a backend may see: all but tokens. `None` when nothing is
/// left of it.
pub fn without_tokens(line: &HeaderValue) -> Option<HeaderValue> {
    if !subprotocols(line).any(carries_token) {
        return Some(line.clone());
    }
    let left: Vec<&[u8]> = subprotocols(line).filter(|name| !carries_token(name)).collect();
    if left.is_empty() {
        return None;
    }
    HeaderValue::from_bytes(&left.join(&b", "[..])).ok()
}

/// True when a `Sec-WebSocket-Protocol` line names a token.
pub fn names_token(line: &HeaderValue) -> bool {
    subprotocols(line).any(carries_token)
}

fn subprotocols(line: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    line.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

fn carries_token(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("connection", HeaderValue::from_static("Upgrade"));
        headers.insert("upgrade", HeaderValue::from_static("websocket"));
        for line in lines {
            headers.append(SEC_WEBSOCKET_PROTOCOL, line.parse().unwrap());
        }
        headers
    }

    /// `P` stands for the prefix.
    #[track_caller]
    fn check(lines: &[&str], expected: Option<Result<&str, &'static str>>) {
        let lines: Vec<String> = lines.iter().map(|line| line.replace('P', PREFIX)).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let expected = expected.map(|result| result.map(str::to_owned));
        assert_eq!(token(&request(&lines)), expected, "{lines:?}");
    }

    #[test]
    fn tokens_are_read_as_upstream_reads_them() {
        check(&["v5.channel.k8s.io"], None);
        check(&["Pc2VjcmV0, v5"], Some(Ok("secret")));
        check(&["v5", " Pc2VjcmV0"], Some(Ok("secret")));
        check(&["Pc2VjcmV0"], Some(Err("missing additional subprotocol")));
        check(
            &["Pc2VjcmV0, v5, Pc2VjcmV0"],
            Some(Err("multiple base64.bearer.authorization tokens specified")),
        );
        let encoding = "invalid base64.bearer.authorization token encoding";
        check(&["Pc2VjcmV0!, v5"], Some(Err(encoding)));
        check(&["PYQ==, v5"], Some(Err(encoding)));
        check(&["PYR, v5"], Some(Ok("a")));
        check(&["P_w, v5"], Some(Err("invalid base64.bearer.authorization token")));
        check(&["P, v5"], None);
    }

    #[test]
    fn a_request_that_is_no_websocket_has_no_token() {
        let mut headers = request(&[&format!("{PREFIX}c2VjcmV0, v5")]);
        headers.insert("upgrade", HeaderValue::from_static("SPDY/3.1"));
        assert_eq!(token(&headers), None);
        headers.remove("upgrade");
        assert_eq!(token(&headers), None);
    }

    #[test]
    fn a_backend_sees_no_token() {
        let left = |line: &str| {
            without_tokens(&line.replace('P', PREFIX).parse().unwrap())
                .map(|line| line.to_str().unwrap().to_owned())
        };
        assert_eq!(left("a,b"), Some("a,b".to_owned()));
        assert_eq!(left("a,Px,b,P"), Some("a, b".to_owned()));
        assert_eq!(left("Px"), None);
        assert!(names_token(&format!("a, {PREFIX}x").parse().unwrap()));
        assert!(!names_token(&HeaderValue::from_static("a")));
    }
}
