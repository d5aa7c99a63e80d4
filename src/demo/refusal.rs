//! Every way in which a toy refuses a request: what the proxy's rejections know, and what only a
//! server with objects of its own has to say.

use http::StatusCode;
use serde_json::{Value, json};

use super::catalogue::Resource;
use crate::model::field_error::{FieldError, invalid};
use crate::model::rejection::{Details, Rejection};

/// Seconds after which a client shall ask again for a revision that is not there yet.
const RETRY_AFTER_TOO_NEW_SECONDS: u32 = 1;

/// Why a request is refused.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// What the proxy too would say.
    Rejected(Rejection),
    /// 409: the name is taken.
    AlreadyExists(&'static Resource, String),
    /// 409: the object is not what the caller thought.
    Conflict(&'static Resource, String, String),
    /// 415; the media types that are accepted.
    UnsupportedMediaType(&'static str),
    /// 504: a revision that is yet to come, with the present one.
    TooNew(u64, u64),
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl Refusal {
    /// 400 with this sentence.
    pub(crate) fn bad_request(text: impl Into<String>) -> Self {
        Self::Rejected(Rejection::BadRequest(text.into()))
    }

    /// 404 for an object.
    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        Self::Rejected(Rejection::object_not_found(resource.group, resource.plural, name))
    }

    /// 422 for an object.
    pub(crate) fn invalid(resource: &Resource, name: &str, errors: Vec<FieldError>) -> Self {
        Self::Rejected(invalid(resource.kind, resource.group, name, errors))
    }

    /// 422 for the options of a request.
    pub(crate) fn invalid_options(kind: &str, error: FieldError) -> Self {
        Self::Rejected(invalid(kind, "meta.k8s.io", "", vec![error]))
    }

    /// 422 for a JSON patch whose operations do not fit the object; upstream says no more.
    pub(crate) fn unprocessable() -> Self {
        Self::Rejected(Rejection::Invalid(Box::new(Details {
            message: "the server rejected our request due to an error in our request".to_owned(),
            ..Details::default()
        })))
    }

    /// 409 because the caller changed an older version of the object.
    pub(crate) fn stale(resource: &'static Resource, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version \
                   and try again";
        Self::Conflict(resource, name.to_owned(), why.to_owned())
    }

    /// The HTTP status code.
    pub(crate) fn code(&self) -> StatusCode {
        match self {
            Self::Rejected(rejection) => rejection.code(),
            Self::AlreadyExists(..) | Self::Conflict(..) => StatusCode::CONFLICT,
            Self::UnsupportedMediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooNew(..) => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Seconds for the `Retry-After` header.
    pub(crate) fn retry_after_seconds(&self) -> Option<u32> {
        match self {
            Self::Rejected(rejection) => rejection.retry_after_seconds(),
            Self::TooNew(..) => Some(RETRY_AFTER_TOO_NEW_SECONDS),
            Self::AlreadyExists(..) | Self::Conflict(..) | Self::UnsupportedMediaType(_) => None,
        }
    }

    /// The body: a `metav1.Status`.
    pub(crate) fn status(&self) -> Value {
        let (reason, message, details) = match self {
            Self::Rejected(rejection) => return rejection.status(),
            Self::AlreadyExists(resource, name) => (
                "AlreadyExists",
                format!("{} \"{name}\" already exists", resource.qualified()),
                object_details(resource, name),
            ),
            Self::Conflict(resource, name, why) => (
                "Conflict",
                format!(
                    "Operation cannot be fulfilled on {} \"{name}\": {why}",
                    resource.qualified()
                ),
                object_details(resource, name),
            ),
            Self::UnsupportedMediaType(accepted) => (
                "UnsupportedMediaType",
                format!(
                    "the body of the request was in an unknown format - accepted media types \
                     include: {accepted}"
                ),
                json!({}),
            ),
            Self::TooNew(wanted, present) => (
                "Timeout",
                format!("Timeout: Too large resource version: {wanted}, current: {present}"),
                json!({
                    "causes": [{
                        "reason": "ResourceVersionTooLarge",
                        "message": "Too large resource version",
                    }],
                    "retryAfterSeconds": RETRY_AFTER_TOO_NEW_SECONDS,
                }),
            ),
        };
        json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": details,
            "code": self.code().as_u16(),
        })
    }
}

fn object_details(resource: &Resource, name: &str) -> Value {
    json!({ "name": name, "group": resource.group, "kind": resource.plural })
}
