//! Every way in which a request ends here, with the code upstream gives and a `metav1.Status` body.
//!
//! The client's text and the log's text differ: what a caller may read is in `message` and
//! `causes`; the private detail is for the log only.

use std::fmt::Write as _;
use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{StatusCode, Uri};
use serde_json::{Value, json};

use super::attributes::Attributes;
use super::fault::{Fault, Hop, ServicePort};
use super::user::User;

/// Seconds that a client shall wait before all paths are known
/// (`apiserver/pkg/util/notfoundhandler`).
pub const RETRY_AFTER_NOT_READY_SECONDS: u32 = 5;
/// Seconds that a client shall wait after it met a limit.
pub const RETRY_AFTER_BUSY_SECONDS: u32 = 1;

/// Why a request is answered here and not by whom it was meant for.
#[derive(Clone, Debug, PartialEq)]
pub enum Rejection {
    /// 400: the request cannot be understood.
    BadRequest(String),
    /// 401; the text is for the log only.
    Unauthorized(String),
    /// 403 with upstream's sentence.
    Forbidden(Box<Details>),
    /// 404 for a path that nothing serves; upstream's text is `404 page not found`.
    PathNotFound,
    /// 404 for an object, a resource or a version.
    NotFound(Box<Details>),
    /// 404 for an APIService that has no service: nothing is delegated to in standalone mode.
    LocalOnly,
    /// 405.
    MethodNotAllowed,
    /// 406; the text names what is served.
    NotAcceptable(&'static str),
    /// 410: a resource version that history no longer holds.
    Expired(String),
    /// 431: more header lines or bytes than are taken.
    HeadersTooLarge,
    /// 413.
    TooLarge {
        /// The limit in bytes.
        limit_bytes: usize,
    },
    /// 422.
    Invalid(Box<Details>),
    /// 429: as many requests of its kind are being served as may be (`--max-requests-inflight`,
    /// `--max-mutating-requests-inflight`).
    TooManyRequests,
    /// 500; the text is for the log only.
    Internal(String),
    /// 500: the authorizer failed, and why; answered in plain text as upstream does.
    AuthorizerError(String),
    /// 501: a transfer coding other than chunked.
    NotImplemented(&'static str),
    /// 504: the request's time was over before a reviewer had answered.
    ReviewDeadline,
    /// 503 until the objects have been read once.
    NotReady,
    /// The way to the backend failed: 502, 503 or 504 by hop.
    Backend(Box<BackendFault>),
}

/// The variable part of rejections about objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// The sentence for the caller.
    pub message: String,
    /// The object's name.
    pub name: String,
    /// The API group.
    pub group: String,
    /// The resource's plural (the kind for 422).
    pub kind: String,
    /// Field errors: reason, message, field.
    pub causes: Vec<(&'static str, String, String)>,
}

/// A fault on the way to a backend together with whose backend it is.
#[derive(Clone, Debug, PartialEq)]
pub struct BackendFault {
    /// The APIService's name, empty for kube-apiserver.
    pub api_service: Arc<str>,
    /// The service it names.
    pub service: ServicePort,
    /// What failed.
    pub fault: Fault,
    /// True for `/apis/<group>/<version>`, where upstream answers a deadline with 503.
    pub discovery: bool,
}

impl Rejection {
    /// The HTTP status code.
    pub fn code(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::PathNotFound | Self::NotFound(_) | Self::LocalOnly => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
            Self::Expired(_) => StatusCode::GONE,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal(_) | Self::AuthorizerError(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ReviewDeadline => StatusCode::GATEWAY_TIMEOUT,
            Self::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Self::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            Self::Backend(backend) => match (backend.fault.hop, backend.discovery) {
                (Hop::Redirect | Hop::WrongUpgrade, _) => StatusCode::BAD_GATEWAY,
                // What is wrong with the APIService or with portico, not with the backend.
                (Hop::InvalidCaBundle | Hop::NoSystemRoots, _) => StatusCode::INTERNAL_SERVER_ERROR,
                (Hop::Deadline | Hop::Unresponsive, false) => StatusCode::GATEWAY_TIMEOUT,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            },
        }
    }

    /// The `metav1.StatusReason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest(_) | Self::NotImplemented(_) => "BadRequest",
            Self::Unauthorized(_) => "Unauthorized",
            Self::Forbidden(_) => "Forbidden",
            Self::PathNotFound | Self::NotFound(_) | Self::LocalOnly => "NotFound",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable(_) => "NotAcceptable",
            Self::Expired(_) => "Expired",
            Self::TooLarge { .. } | Self::HeadersTooLarge => "RequestEntityTooLarge",
            Self::Invalid(_) => "Invalid",
            Self::TooManyRequests => "TooManyRequests",
            Self::Internal(_) | Self::AuthorizerError(_) => "InternalError",
            Self::ReviewDeadline => "Timeout",
            Self::NotReady => "ServiceUnavailable",
            Self::Backend(_) => match self.code() {
                StatusCode::GATEWAY_TIMEOUT => "Timeout",
                StatusCode::BAD_GATEWAY | StatusCode::INTERNAL_SERVER_ERROR => "InternalError",
                _ => "ServiceUnavailable",
            },
        }
    }

    /// The one word for metrics, log and `details.causes[].reason`.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::Backend(backend) => backend.fault.hop.word(),
            Self::NotImplemented(_) => "NotImplemented",
            Self::PathNotFound => "PathNotFound",
            Self::LocalOnly => "LocalAPIService",
            Self::NotReady => "NotReady",
            Self::HeadersTooLarge => "HeadersTooLarge",
            Self::AuthorizerError(_) => "AuthorizerError",
            Self::ReviewDeadline => "ReviewDeadline",
            Self::BadRequest(_)
            | Self::Unauthorized(_)
            | Self::Forbidden(_)
            | Self::NotFound(_)
            | Self::MethodNotAllowed
            | Self::NotAcceptable(_)
            | Self::Expired(_)
            | Self::TooLarge { .. }
            | Self::Invalid(_)
            | Self::TooManyRequests
            | Self::Internal(_) => self.reason(),
        }
    }

    /// Seconds for the `Retry-After` header. Only for overload, drain and start-up: client-go
    /// retries every verb up to ten times where the header is (`measured-1.37.md` §2). Never on the
    /// discovery path of a known APIService.
    pub fn retry_after_seconds(&self) -> Option<u32> {
        match self {
            Self::NotReady => Some(RETRY_AFTER_NOT_READY_SECONDS),
            Self::TooManyRequests => Some(RETRY_AFTER_BUSY_SECONDS),
            Self::Backend(backend) => (backend.fault.hop == Hop::Overloaded && !backend.discovery)
                .then_some(RETRY_AFTER_BUSY_SECONDS),
            Self::BadRequest(_)
            | Self::Unauthorized(_)
            | Self::Forbidden(_)
            | Self::PathNotFound
            | Self::NotFound(_)
            | Self::LocalOnly
            | Self::MethodNotAllowed
            | Self::NotAcceptable(_)
            | Self::Expired(_)
            | Self::TooLarge { .. }
            | Self::HeadersTooLarge
            | Self::Invalid(_)
            | Self::Internal(_)
            | Self::AuthorizerError(_)
            | Self::ReviewDeadline
            | Self::NotImplemented(_) => None,
        }
    }

    /// The sentence for the caller; kubectl prints this and nothing else for 502, 503 and 504.
    pub fn message(&self) -> String {
        match self {
            Self::BadRequest(text) | Self::Expired(text) => text.clone(),
            Self::Unauthorized(_) => "Unauthorized".to_owned(),
            Self::Forbidden(details) | Self::NotFound(details) | Self::Invalid(details) => {
                details.message.clone()
            }
            Self::PathNotFound => "the server could not find the requested resource".to_owned(),
            Self::LocalOnly => "the APIService of this path is local, and no server is there to \
                                delegate it to"
                .to_owned(),
            Self::MethodNotAllowed => {
                "the server does not allow this method on the requested resource".to_owned()
            }
            Self::NotAcceptable(served) => {
                format!("only the following media types are accepted: {served}")
            }
            Self::TooLarge { limit_bytes } => {
                format!("Request entity too large: limit is {limit_bytes}")
            }
            Self::HeadersTooLarge => "Request header fields too large".to_owned(),
            Self::TooManyRequests => "Too many requests, please try again later.".to_owned(),
            Self::Internal(_) => "Internal error occurred: see the server's log".to_owned(),
            Self::AuthorizerError(text) => format!("Internal Server Error: {text}"),
            Self::ReviewDeadline => {
                "Timeout: request did not complete within the allotted timeout".to_owned()
            }
            Self::NotImplemented(text) => (*text).to_owned(),
            Self::NotReady => "the request has been made before all known HTTP paths have been \
                               installed, please try again"
                .to_owned(),
            Self::Backend(backend) => backend.message(),
        }
    }

    /// What the log shows beside the code, empty when there is nothing beyond the message.
    pub fn detail(&self) -> &str {
        match self {
            Self::Unauthorized(text) | Self::Internal(text) | Self::AuthorizerError(text) => text,
            Self::Backend(backend) => &backend.fault.detail,
            Self::BadRequest(_)
            | Self::Forbidden(_)
            | Self::PathNotFound
            | Self::NotFound(_)
            | Self::LocalOnly
            | Self::MethodNotAllowed
            | Self::NotAcceptable(_)
            | Self::Expired(_)
            | Self::TooLarge { .. }
            | Self::HeadersTooLarge
            | Self::Invalid(_)
            | Self::TooManyRequests
            | Self::ReviewDeadline
            | Self::NotImplemented(_)
            | Self::NotReady => "",
        }
    }

    /// The body where it is plain text; `uri` is the request's as it came
    /// (`responsewriters.InternalError`).
    pub fn plain_text(&self, uri: &Uri) -> Option<String> {
        let Self::AuthorizerError(text) = self else { return None };
        let uri = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        Some(escape_html(&format!("Internal Server Error: {uri:?}: {text}")))
    }

    /// The body: a `metav1.Status`.
    pub fn status(&self) -> Value {
        let mut details = self.details();
        if let (Some(seconds), Value::Object(map)) = (self.retry_after_seconds(), &mut details) {
            map.insert("retryAfterSeconds".to_owned(), seconds.into());
        }
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message(),
            "reason": self.reason(),
            "code": self.code().as_u16(),
        });
        if let Value::Object(map) = &mut status
            && !matches!(self, Self::Unauthorized(_))
        {
            map.insert("details".to_owned(), details);
        }
        status
    }

    fn details(&self) -> Value {
        match self {
            Self::Forbidden(details) | Self::NotFound(details) | Self::Invalid(details) => {
                details.to_json()
            }
            Self::Backend(backend) => {
                let cause = json!({
                    "reason": backend.fault.hop.word(),
                    "message": backend.fault.hop.sentence(&backend.service),
                });
                if backend.api_service.is_empty() {
                    return json!({ "causes": [cause] });
                }
                json!({
                    "name": &*backend.api_service,
                    "group": "apiregistration.k8s.io",
                    "kind": "apiservices",
                    "causes": [cause],
                })
            }
            _ => json!({}),
        }
    }

    /// 403 for `user`, in upstream's words (`responsewriters/errors.go`); `reason` is the
    /// authorizer's, and may be empty.
    pub fn forbidden(user: &User, info: &Attributes<'_>, reason: &str) -> Self {
        let who = &user.name;
        let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        if !info.is_resource {
            let mut message = escape_html(&format!(
                "forbidden: User \"{who}\" cannot {} path \"{}\"",
                info.verb, info.path
            ));
            message.push_str(&because);
            return Self::Forbidden(Box::new(Details { message, ..Details::default() }));
        }
        let object = qualified(info.resource, info.group);
        let mut sentence = if info.name.is_empty() {
            format!("{object} is forbidden: ")
        } else {
            format!("{object} \"{}\" is forbidden: ", info.name)
        };
        let resource = match info.subresource {
            "" => info.resource.to_owned(),
            subresource => format!("{}/{subresource}", info.resource),
        };
        let _ = write!(
            sentence,
            "User \"{who}\" cannot {} resource \"{resource}\" in API group \"{}\" ",
            info.verb, info.group
        );
        if info.namespace.is_empty() {
            sentence.push_str("at the cluster scope");
        } else {
            let _ = write!(sentence, "in the namespace \"{}\"", info.namespace);
        }
        Self::Forbidden(Box::new(Details {
            message: escape_html(&sentence) + &because,
            name: info.name.to_owned(),
            group: info.group.to_owned(),
            kind: info.resource.to_owned(),
            causes: Vec::new(),
        }))
    }

    /// 404 for one object of a resource.
    pub fn object_not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::NotFound(Box::new(Details {
            message: format!("{} \"{name}\" not found", qualified(resource, group)),
            name: name.to_owned(),
            group: group.to_owned(),
            kind: resource.to_owned(),
            causes: Vec::new(),
        }))
    }
}

impl Details {
    fn to_json(&self) -> Value {
        let mut map = serde_json::Map::new();
        for (key, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind)] {
            if !text.is_empty() {
                map.insert(key.to_owned(), text.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|(reason, message, field)| {
                json!({ "reason": reason, "message": message, "field": field })
            });
            map.insert("causes".to_owned(), causes.collect());
        }
        Value::Object(map)
    }
}

impl BackendFault {
    fn message(&self) -> String {
        let Self { api_service, service, fault, .. } = self;
        let sentence = fault.hop.sentence(service);
        match fault.hop {
            // Upstream's whole body, which clients may compare (`upgradeaware.go`).
            Hop::Redirect => sentence,
            _ if api_service.is_empty() => format!("error trying to reach {service}: {sentence}"),
            _ => format!("error trying to reach service for APIService {api_service}: {sentence}"),
        }
    }
}

fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::request_info::RequestInfo;
    use http::Method;

    fn backend(hop: Hop, discovery: bool) -> Rejection {
        Rejection::Backend(Box::new(BackendFault {
            api_service: "v1.g".into(),
            service: ServicePort { namespace: "ns".into(), name: "svc".into(), port: 443 },
            fault: Fault::new(hop, "10.0.0.1:443: private"),
            discovery,
        }))
    }

    #[test]
    fn a_failed_hop_is_named_in_message_and_causes_and_its_private_detail_is_not() {
        let rejection = backend(Hop::ConnectRefused, false);
        let status = rejection.status();
        assert_eq!(status["code"], 503);
        assert_eq!(status["details"]["causes"][0]["reason"], "ConnectRefused");
        assert_eq!(
            status["message"],
            "error trying to reach service for APIService v1.g: \
             connecting to ns/svc:443: connection refused"
        );
        assert!(!status.to_string().contains("10.0.0.1"));
        assert_eq!(rejection.retry_after_seconds(), None);
    }

    #[test]
    fn codes_follow_the_hop() {
        let code = |hop, discovery| backend(hop, discovery).code().as_u16();
        assert_eq!(code(Hop::Redirect, false), 502);
        assert_eq!(code(Hop::WrongUpgrade, false), 502);
        assert_eq!(code(Hop::InvalidUpgrade(200), false), 503);
        assert_eq!(code(Hop::Deadline, false), 504);
        assert_eq!(code(Hop::Deadline, true), 503);
        assert_eq!(code(Hop::Unresponsive, false), 504);
        assert_eq!(code(Hop::NoEndpoints, false), 503);
    }

    #[test]
    fn retry_after_is_for_overload_drain_and_start_up_only() {
        assert_eq!(backend(Hop::Overloaded, false).retry_after_seconds(), Some(1));
        assert_eq!(backend(Hop::Overloaded, true).retry_after_seconds(), None);
        assert_eq!(Rejection::NotReady.retry_after_seconds(), Some(5));
        assert_eq!(Rejection::NotReady.status()["details"]["retryAfterSeconds"], 5);
        assert_eq!(backend(Hop::Deadline, false).retry_after_seconds(), None);
    }

    #[test]
    fn an_authorizers_failure_is_plain_text_with_the_requests_uri() {
        let failed = Rejection::AuthorizerError("<gone>".to_owned());
        let text = failed.plain_text(&Uri::from_static("https://host/apis/g?a=1&b=2")).unwrap();
        assert_eq!(text, "Internal Server Error: \"/apis/g?a=1&amp;b=2\": &lt;gone&gt;");
        assert_eq!((failed.code().as_u16(), failed.detail()), (500, "<gone>"));
        assert_eq!(Rejection::NotReady.plain_text(&Uri::from_static("/")), None);
    }

    #[track_caller]
    fn check_forbidden(path: &str, expected: &str) {
        let user = User { name: "u".to_owned(), ..User::default() };
        let info = RequestInfo::parse(&Method::GET, path, None).unwrap();
        let attributes = Attributes::from(&info);
        assert_eq!(Rejection::forbidden(&user, &attributes, "").message(), expected);
        let reasoned = format!("{expected}: a <reason>");
        let got = Rejection::forbidden(&user, &attributes, "a <reason>").message();
        assert_eq!(got, reasoned);
    }

    #[test]
    fn forbidden_is_worded_as_upstream_words_it() {
        check_forbidden(
            "/api/v1/namespaces/ns/pods/p",
            "pods \"p\" is forbidden: User \"u\" cannot get resource \"pods\" in API group \"\" \
             in the namespace \"ns\"",
        );
        check_forbidden(
            "/apis/g/v1/things",
            "things.g is forbidden: User \"u\" cannot list resource \"things\" in API group \"g\" \
             at the cluster scope",
        );
        check_forbidden("/metrics", "forbidden: User \"u\" cannot get path \"/metrics\"");
    }
}
