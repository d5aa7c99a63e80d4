//! Whether kube-apiserver believes a certificate about callers: over connections that show it, a user
//! of whom nobody can have heard is named by `X-Remote-*` and asks who it is (`SelfSubjectReview`).

use http::StatusCode;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;

use crate::model::fault::Hop;
use crate::model::user::{GROUP_AUTHENTICATED, User};

/// Where the question goes.
pub const PATH: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
/// The question.
pub const QUESTION: &[u8] =
    br#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;

/// The extra key that is sent to see whether it arrives.
const EXTRA_KEY: &str = "portico.dev/inquiry";

/// What an answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Front-proxy headers are believed; whether `X-Remote-Uid` is, too, where that can be seen.
    Believed {
        /// False where kube-apiserver was not told of the header.
        uid: Option<bool>,
    },
    /// They are not, for this reason.
    Refused(Disbelief),
    /// The answer tells nothing.
    Unclear(String),
}

/// Why front-proxy headers are not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disbelief {
    /// The handshake ends with the certificate.
    #[error("it refuses the proxy-client certificate")]
    Certificate,
    /// Nobody is known by the certificate.
    #[error("it does not believe the proxy-client certificate to be a front proxy's")]
    Unknown,
    /// The certificate is its owner's, who has this name.
    #[error("it took the proxy-client certificate for {0:?} and not for a front proxy's")]
    Owner(String),
    /// The user is believed and the groups are not.
    #[error("it does not believe X-Remote-Group")]
    Groups,
    /// The user is believed and the extra is not.
    #[error("it does not believe X-Remote-Extra-*")]
    Extra,
}

impl Disbelief {
    /// What is said by a connection that failed so, if anything.
    pub fn of(hop: Hop) -> Option<Self> {
        (hop == Hop::ClientCertificateRefused).then_some(Self::Certificate)
    }
}

/// A user whom only `unique` tells from others of the kind: letters, digits and dashes.
pub fn marker(unique: &str) -> User {
    let name = format!("portico:inquiry:{unique}");
    User {
        name: name.clone(),
        uid: unique.to_owned(),
        groups: vec![name, GROUP_AUTHENTICATED.to_owned()],
        extra: [(EXTRA_KEY.to_owned(), vec![unique.to_owned()])].into(),
    }
}

/// What the answer to the marker's question means.
pub fn judge(code: StatusCode, body: &[u8], marker: &User) -> Verdict {
    let unclear = || Verdict::Unclear(format!("it answered with status {}", code.as_u16()));
    match code {
        StatusCode::OK | StatusCode::CREATED => {
            let review: Result<SelfSubjectReview, _> = serde_json::from_slice(body);
            let Some(user) = review.ok().and_then(|review| review.status?.user_info) else {
                return Verdict::Unclear("it answered with no SelfSubjectReview".to_owned());
            };
            let name = user.username.unwrap_or_default();
            if name != marker.name {
                return Verdict::Refused(Disbelief::Owner(name));
            }
            // Everybody is in one group anyway, which says nothing.
            let groups = user.groups.unwrap_or_default();
            if !marker.groups.iter().all(|group| groups.contains(group)) {
                return Verdict::Refused(Disbelief::Groups);
            }
            let extra = user.extra.unwrap_or_default();
            if extra.get(EXTRA_KEY) != marker.extra.get(EXTRA_KEY) {
                return Verdict::Refused(Disbelief::Extra);
            }
            Verdict::Believed { uid: Some(user.uid.as_deref() == Some(&marker.uid)) }
        }
        StatusCode::UNAUTHORIZED => Verdict::Refused(Disbelief::Unknown),
        // Nobody but the marker is told so; it may only not ask who it is.
        StatusCode::FORBIDDEN => {
            let status: Result<Status, _> = serde_json::from_slice(body);
            let message = status.ok().and_then(|status| status.message).unwrap_or_default();
            if message.contains(&format!("User \"{}\"", marker.name)) {
                Verdict::Believed { uid: None }
            } else {
                unclear()
            }
        }
        _ => unclear(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(code: u16, body: impl FnOnce(&User) -> Value, expected: &Verdict) {
        let marker = marker("4711");
        let body = body(&marker).to_string();
        let code = StatusCode::from_u16(code).unwrap();
        assert_eq!(&judge(code, body.as_bytes(), &marker), expected);
    }

    fn review(name: &str, uid: &str, groups: &[String], extra: &Value) -> Value {
        let user = json!({ "username": name, "uid": uid, "groups": groups, "extra": extra });
        json!({
            "kind": "SelfSubjectReview",
            "apiVersion": "authentication.k8s.io/v1",
            "status": { "userInfo": user },
        })
    }

    #[test]
    fn front_proxy_headers_count_as_believed_when_user_groups_and_extra_come_back() {
        let all =
            |marker: &User| review(&marker.name, &marker.uid, &marker.groups, &json!(marker.extra));
        check(201, all, &Verdict::Believed { uid: Some(true) });
        let no_uid = |marker: &User| review(&marker.name, "", &marker.groups, &json!(marker.extra));
        check(201, no_uid, &Verdict::Believed { uid: Some(false) });
        let forbidden = |marker: &User| {
            let message = format!("selfsubjectreviews is forbidden: User \"{}\" no", marker.name);
            json!({ "kind": "Status", "code": 403, "message": message })
        };
        check(403, forbidden, &Verdict::Believed { uid: None });
    }

    #[test]
    fn headers_that_do_not_come_back_are_not_believed() {
        let all = [GROUP_AUTHENTICATED.to_owned()];
        let no_groups =
            |marker: &User| review(&marker.name, &marker.uid, &all, &json!(marker.extra));
        check(201, no_groups, &Verdict::Refused(Disbelief::Groups));
        let no_extra =
            |marker: &User| review(&marker.name, &marker.uid, &marker.groups, &json!({}));
        check(201, no_extra, &Verdict::Refused(Disbelief::Extra));
        let other = |_: &User| review("aggregator", "", &all, &json!({}));
        check(201, other, &Verdict::Refused(Disbelief::Owner("aggregator".to_owned())));
        check(401, |_| json!({ "kind": "Status" }), &Verdict::Refused(Disbelief::Unknown));
        assert_eq!(Disbelief::of(Hop::ClientCertificateRefused), Some(Disbelief::Certificate));
        assert_eq!(Disbelief::of(Hop::ConnectRefused), None);
    }

    #[test]
    fn other_answers_tell_nothing() {
        let unclear = |code: u16| Verdict::Unclear(format!("it answered with status {code}"));
        check(500, |_| json!({}), &unclear(500));
        check(404, |_| json!({}), &unclear(404));
        let someone = |_: &User| json!({ "message": "User \"system:anonymous\" cannot create" });
        check(403, someone, &unclear(403));
        let text = "it answered with no SelfSubjectReview".to_owned();
        check(201, |_| json!("text"), &Verdict::Unclear(text));
    }
}
