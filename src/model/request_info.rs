//! What a request asks for, read from method, path and query as upstream reads it
//! (`apiserver/pkg/endpoints/request/requestinfo.go`).
//!
//! The path is decoded once and then split, as the backend will do; everything borrows from it.

use std::borrow::Cow;
use std::time::Duration;

use http::Method;
use percent_encoding::percent_decode_str;

use super::duration::{self, Signed};
use super::query;

/// A request's method, path and query in Kubernetes' terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestInfo<'a> {
    /// The decoded path.
    pub path: &'a str,
    /// Kubernetes' verb for a resource request (`get`, `list`, `watch`, …), else the method: in lower
    /// case, but as it came where it is none of HTTP's own.
    pub verb: &'a str,
    /// False for discovery, health and every other path that names no resource.
    pub is_resource: bool,
    /// `api`, `apis` or empty.
    pub prefix: &'a str,
    /// The API group; empty for the legacy core group.
    pub group: &'a str,
    /// The API version.
    pub version: &'a str,
    /// The namespace, empty for cluster scope.
    pub namespace: &'a str,
    /// The resource's plural name.
    pub resource: &'a str,
    /// The part after the name.
    pub subresource: &'a str,
    /// The object's name, empty for collections.
    pub name: &'a str,
    /// The number of non-empty parts the trimmed path has.
    pub segments: usize,
}

/// A path that cannot be decoded or split; the caller gets 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The percent-decoded path is not UTF-8.
    #[error("the request path is not valid UTF-8 after percent-decoding")]
    NotUtf8,
    /// A `%` without two hexadecimal digits.
    #[error("the request path has an invalid percent-encoding")]
    BadEscape,
    /// Upstream's legacy `/proxy` and `/watch` prefixes with nothing behind them.
    #[error("unable to determine kind and namespace from the request path")]
    MissingResource,
}

/// A `?timeout=` that is no duration; the caller gets 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid timeout specified in the request URL - {0}")]
pub struct TimeoutError(String);

/// Decodes the percent-encoded path once; borrows when there is nothing to decode.
pub fn decode_path(raw: &str) -> Result<Cow<'_, str>, PathError> {
    if !raw.as_bytes().contains(&b'%') {
        return Ok(Cow::Borrowed(raw));
    }
    let mut rest = raw.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        match rest.get(at + 1..at + 3) {
            Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => {
                rest = rest.get(at + 3..).unwrap_or_default();
            }
            _ => return Err(PathError::BadEscape),
        }
    }
    match percent_decode_str(raw).decode_utf8() {
        Ok(decoded) => Ok(decoded),
        Err(_) => Err(PathError::NotUtf8),
    }
}

impl<'a> RequestInfo<'a> {
    /// Reads a request; `path` is the decoded path, `query` the raw one.
    pub fn parse(
        method: &'a Method,
        path: &'a str,
        query: Option<&str>,
    ) -> Result<Self, PathError> {
        let mut info = Self {
            path,
            verb: lower_case(method),
            is_resource: false,
            prefix: "",
            group: "",
            version: "",
            namespace: "",
            resource: "",
            subresource: "",
            name: "",
            segments: 0,
        };
        let trimmed = path.trim_matches('/');
        if trimmed.is_empty() {
            return Ok(info);
        }
        info.segments = 1 + trimmed.bytes().filter(|&byte| byte == b'/').count();
        let mut parts = trimmed.split('/');
        info.prefix = match parts.next() {
            Some("api") => "api",
            Some("apis") => "apis",
            _ => return Ok(info),
        };
        if info.prefix == "apis" {
            info.group = parts.next().unwrap_or_default();
        }
        info.version = parts.next().unwrap_or_default();
        let Some(first) = parts.next() else { return Ok(info) };
        info.is_resource = true;
        info.split_resource(method, first, parts)?;
        if info.verb == "get" && info.name.is_empty() {
            info.verb = if wants_watch(query) { "watch" } else { "list" };
        } else if info.verb == "delete" && info.name.is_empty() {
            info.verb = "deletecollection";
        }
        Ok(info)
    }

    fn split_resource(
        &mut self,
        method: &Method,
        first: &'a str,
        mut parts: std::str::Split<'a, char>,
    ) -> Result<(), PathError> {
        self.verb = resource_verb(method);
        let mut first = first;
        let legacy_verb = matches!(first, "proxy" | "watch");
        if legacy_verb {
            self.verb = first;
            first =
                parts.next().filter(|part| !part.is_empty()).ok_or(PathError::MissingResource)?;
        }
        if first == "namespaces" {
            let namespace = parts.next();
            match (namespace, parts.clone().next()) {
                (Some(namespace), Some(next)) if next != "status" && next != "finalize" => {
                    self.namespace = namespace;
                    self.resource = next;
                    parts.next();
                    self.name = parts.next().unwrap_or_default();
                }
                (namespace, _) => {
                    self.resource = "namespaces";
                    self.name = namespace.unwrap_or_default();
                    self.namespace = self.name;
                }
            }
        } else {
            self.resource = first;
            self.name = parts.next().unwrap_or_default();
        }
        if self.verb != "proxy" {
            self.subresource = parts.next().unwrap_or_default();
        }
        Ok(())
    }

    /// True for requests that have no total deadline: watches, and the streaming subresources
    /// (`BasicLongRunningRequestCheck` with kube-apiserver's lists).
    pub fn is_long_running(&self) -> bool {
        if !self.is_resource {
            return self.path.starts_with("/debug/pprof/");
        }
        matches!(self.verb, "watch" | "proxy")
            || matches!(self.subresource, "attach" | "exec" | "proxy" | "log" | "portforward")
    }

    /// How long the request may take: `most`, or less where its `?timeout=` says so; `None` when it is
    /// long-running. Zero, negative and larger values mean `most` (`filters/request_deadline.go`).
    pub fn timeout(
        &self,
        query: Option<&str>,
        most: Duration,
    ) -> Result<Option<Duration>, TimeoutError> {
        if self.is_long_running() {
            return Ok(None);
        }
        let asked = query::first(query, "timeout").filter(|value| !value.is_empty());
        let Some(asked) = asked else { return Ok(Some(most)) };
        match duration::parse(&asked).map_err(TimeoutError)? {
            Signed::Positive(asked) if !asked.is_zero() && asked < most => Ok(Some(asked)),
            Signed::Positive(_) | Signed::Negative(_) => Ok(Some(most)),
        }
    }

    /// True for a request that changes nothing: it counts against another limit than those that do
    /// (`nonMutatingRequestVerbs` in `filters/maxinflight.go`).
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch")
    }

    /// True for `/apis/<group>/<version>`: upstream bounds these to five seconds
    /// (`NewRequestForProxy`: a non-resource path of exactly three parts).
    pub fn is_version_discovery(&self) -> bool {
        !self.is_resource && self.segments == 3
    }

    /// True for `/apis/<group>/<version>` and `/api/<version>`.
    pub fn names_version(&self) -> bool {
        !self.is_resource && !self.version.is_empty()
    }

    /// The `verb` label of upstream's request metrics.
    pub fn metrics_verb(&self) -> &'static str {
        match self.verb {
            "get" | "head" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" | "post" => "POST",
            "update" | "put" => "PUT",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            "proxy" => "CONNECT",
            _ => "other",
        }
    }
}

fn lower_case(method: &Method) -> &str {
    match method.as_str() {
        "GET" => "get",
        "HEAD" => "head",
        "POST" => "post",
        "PUT" => "put",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "OPTIONS" => "options",
        "CONNECT" => "connect",
        "TRACE" => "trace",
        other => other,
    }
}

fn resource_verb(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// True when the first `watch` of the query is anything but `false` and `0`, in any case: read as
/// the backend will read it (`Convert_Slice_string_To_bool`).
fn wants_watch(query: Option<&str>) -> bool {
    let watch = query::first(query, "watch");
    watch.is_some_and(|value| !value.eq_ignore_ascii_case("false") && value != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &Method, uri: &str, expected: &str) {
        let (path, query) = match uri.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (uri, None),
        };
        let decoded = decode_path(path).unwrap();
        let i = RequestInfo::parse(method, &decoded, query).unwrap();
        let kind = if i.is_resource { "resource" } else { "path" };
        let got = format!(
            "{} {kind} {}/{} ns={} {}/{} name={}",
            i.verb, i.group, i.version, i.namespace, i.resource, i.subresource, i.name
        );
        assert_eq!(got, expected, "{uri}");
    }

    #[test]
    fn requests_are_read_as_upstream_reads_them() {
        let get = &Method::GET;
        check(get, "/", "get path / ns= / name=");
        check(get, "/healthz", "get path / ns= / name=");
        check(get, "/apis", "get path / ns= / name=");
        check(get, "/apis/g", "get path g/ ns= / name=");
        check(get, "/apis/g/v1/", "get path g/v1 ns= / name=");
        check(get, "/api/v1", "get path /v1 ns= / name=");
        check(get, "/apis/g/v1/things", "list resource g/v1 ns= things/ name=");
        check(get, "/apis/g/v1/things?watch", "watch resource g/v1 ns= things/ name=");
        check(get, "/apis/g/v1/things?watch=0", "list resource g/v1 ns= things/ name=");
        check(get, "/apis/g/v1/things?watch=False", "list resource g/v1 ns= things/ name=");
        check(get, "/apis/g/v1/things?watch=0&watch=1", "list resource g/v1 ns= things/ name=");
        check(get, "/apis/g/v1/things?%77atch=1", "watch resource g/v1 ns= things/ name=");
        check(get, "/apis/g/v1/things?watch=true", "watch resource g/v1 ns= things/ name=");
        check(get, "/apis/g/v1/things/a", "get resource g/v1 ns= things/ name=a");
        check(get, "/apis/g/v1/things/a/status", "get resource g/v1 ns= things/status name=a");
        check(get, "/apis/g/v1/namespaces/n/things/a", "get resource g/v1 ns=n things/ name=a");
        check(get, "/api/v1/namespaces/n", "get resource /v1 ns=n namespaces/ name=n");
        check(
            get,
            "/api/v1/namespaces/n/finalize",
            "get resource /v1 ns=n namespaces/finalize name=n",
        );
        check(get, "/apis/g/v1/watch/things", "watch resource g/v1 ns= things/ name=");
        check(&Method::POST, "/apis/g/v1/things", "create resource g/v1 ns= things/ name=");
        check(
            &Method::DELETE,
            "/apis/g/v1/things",
            "deletecollection resource g/v1 ns= things/ name=",
        );
        check(get, "/%61pis/g/v1/thing%73", "list resource g/v1 ns= things/ name=");
        check(get, "/apis/g%2Fv1/things", "list resource g/v1 ns= things/ name=");
    }

    #[test]
    fn broken_escapes_are_refused() {
        assert_eq!(decode_path("/a%2"), Err(PathError::BadEscape));
        assert_eq!(decode_path("/a%zz"), Err(PathError::BadEscape));
        assert_eq!(decode_path("/a%ff"), Err(PathError::NotUtf8));
    }

    #[test]
    fn discovery_and_long_running_paths_are_told_apart() {
        let info = |path| RequestInfo::parse(&Method::GET, path, Some("watch=1")).unwrap();
        assert!(info("/apis/g/v1").is_version_discovery());
        assert!(!info("/apis/g/v1/x").is_version_discovery());
        for (path, names_version) in [
            ("/apis/g/v1", true),
            ("/apis/g/v1/", true),
            ("/api/v1", true),
            ("/apis/g/v1/x", false),
            ("/apis/g", false),
            ("/api", false),
        ] {
            assert_eq!(info(path).names_version(), names_version, "{path}");
        }
        assert!(info("/apis/g/v1/x").is_long_running());
        assert!(info("/api/v1/namespaces/n/pods/p/log").is_long_running());
        assert!(!info("/apis/g/v1/x/y").is_long_running());
    }

    #[test]
    fn the_timeout_in_the_url_can_only_shorten_a_requests_time() {
        let most = Duration::from_secs(60);
        let timeout = |uri: &str| {
            let (path, query) = uri.split_once('?').unwrap();
            let info = RequestInfo::parse(&Method::GET, path, Some(query)).unwrap();
            info.timeout(Some(query), most).map(|timeout| timeout.map(|it| it.as_secs()))
        };
        assert_eq!(timeout("/apis?timeout=32s"), Ok(Some(32)));
        for query in ["a=1", "timeout=", "timeout=0s", "timeout=0", "timeout=2m", "timeout=-1s"] {
            assert_eq!(timeout(&format!("/apis/g/v/x?{query}")), Ok(Some(60)), "{query}");
        }
        assert_eq!(timeout("/apis/g/v/x?watch=1&timeout=3s"), Ok(None));
        let text = timeout("/apis/g/v/x?timeout=30").unwrap_err().to_string();
        assert_eq!(
            text,
            "invalid timeout specified in the request URL - time: missing unit in duration \"30\""
        );
    }
}
