//! SubjectAccessReview: whether somebody may do something
//! (`apiserver/plugin/pkg/authorizer/webhook`).

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    FieldSelectorAttributes, LabelSelectorAttributes, NonResourceAttributes, ResourceAttributes,
    SubjectAccessReview, SubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    FieldSelectorRequirement, LabelSelectorRequirement,
};
use serde_json::Value;

use super::{ReviewVersion, status};
use crate::model::attributes::Attributes;
use crate::model::selector::SelectorRequirement;
use crate::model::user::User;

/// The API group.
pub const GROUP: &str = "authorization.k8s.io";

/// Bytes of user and attributes from which on a decision is not kept: callers choose them.
pub const KEPT_BYTES_MAX: usize = 10_000;

/// What an authorizer says; a reason may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may be done.
    Allow,
    /// It may not, whatever others say.
    Deny(Arc<str>),
    /// Others may say.
    NoOpinion(Arc<str>),
    /// It was allowed and denied at once: it may not, and the reviewer is at fault.
    Both,
}

/// How long decisions are good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccessTtl {
    /// Where something was allowed.
    pub authorized: Duration,
    /// Where it was not.
    pub unauthorized: Duration,
}

impl AccessTtl {
    /// How long this decision is good.
    pub fn of(&self, decision: &Decision) -> Duration {
        match decision {
            Decision::Allow => self.authorized,
            Decision::Deny(_) | Decision::NoOpinion(_) | Decision::Both => self.unauthorized,
        }
    }
}

/// The review of what a user wants to do.
pub fn question(user: &User, asked: &Attributes<'_>, version: ReviewVersion) -> Vec<u8> {
    let mut spec = SubjectAccessReviewSpec {
        user: filled(&user.name),
        uid: filled(&user.uid),
        groups: (!user.groups.is_empty()).then(|| user.groups.clone()),
        extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
        ..SubjectAccessReviewSpec::default()
    };
    if asked.is_resource {
        spec.resource_attributes = Some(resource_attributes(asked));
    } else {
        spec.non_resource_attributes =
            Some(NonResourceAttributes { path: filled(asked.path), verb: filled(&asked.verb) });
    }
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let mut review = serde_json::to_value(review).unwrap_or(Value::Null);
    version.stamp(GROUP, &mut review);
    if version == ReviewVersion::V1Beta1
        && let Some(spec) = review.get_mut("spec").and_then(Value::as_object_mut)
        && let Some(groups) = spec.remove("groups")
    {
        spec.insert("group".to_owned(), groups);
    }
    review.to_string().into_bytes()
}

fn resource_attributes(asked: &Attributes<'_>) -> ResourceAttributes {
    let selection = asked.selection;
    let fields = selection.map(|it| it.fields.as_slice()).filter(|fields| !fields.is_empty());
    let labels = selection.map(|it| it.labels.as_slice()).filter(|labels| !labels.is_empty());
    ResourceAttributes {
        verb: filled(&asked.verb),
        group: filled(asked.group),
        version: filled(asked.version),
        namespace: filled(asked.namespace),
        resource: filled(asked.resource),
        subresource: filled(asked.subresource),
        name: filled(asked.name),
        field_selector: fields.map(|fields| FieldSelectorAttributes {
            requirements: Some(fields.iter().map(field).collect()),
            ..FieldSelectorAttributes::default()
        }),
        label_selector: labels.map(|labels| LabelSelectorAttributes {
            requirements: Some(labels.iter().map(label).collect()),
            ..LabelSelectorAttributes::default()
        }),
    }
}

fn filled(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn field(requirement: &SelectorRequirement) -> FieldSelectorRequirement {
    let SelectorRequirement { key, operator, values } = requirement;
    let values = (!values.is_empty()).then(|| values.clone());
    FieldSelectorRequirement { key: key.clone(), operator: (*operator).to_owned(), values }
}

fn label(requirement: &SelectorRequirement) -> LabelSelectorRequirement {
    let SelectorRequirement { key, operator, values } = requirement;
    let values = (!values.is_empty()).then(|| values.clone());
    LabelSelectorRequirement { key: key.clone(), operator: (*operator).to_owned(), values }
}

/// Reads what came back; the error says why it cannot be understood.
pub fn answer(body: &[u8]) -> Result<Decision, String> {
    let status: SubjectAccessReviewStatus = status(body)?;
    let reason = || status.reason.as_deref().unwrap_or_default().into();
    Ok(match (status.allowed, status.denied == Some(true)) {
        (true, true) => Decision::Both,
        (false, true) => Decision::Deny(reason()),
        (true, false) => Decision::Allow,
        (false, false) => Decision::NoOpinion(reason()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::attributes::Selection;
    use crate::model::request_info::RequestInfo;
    use http::Method;
    use serde_json::json;

    fn alice() -> User {
        User {
            name: "alice".to_owned(),
            uid: "u".to_owned(),
            groups: vec!["dev".to_owned()],
            extra: [("k/x".to_owned(), vec!["v".to_owned()])].into(),
        }
    }

    fn asked(user: &User, uri: &str, version: ReviewVersion) -> Value {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let info = RequestInfo::parse(&Method::GET, path, Some(query)).unwrap();
        let selection = Selection::of(&info, Some(query));
        let attributes = Attributes::from(&info).narrowed(selection.as_ref());
        serde_json::from_slice(&question(user, &attributes, version)).unwrap()
    }

    #[test]
    fn the_question_tells_who_and_what_and_how_it_is_narrowed() {
        let uri =
            "/apis/g/v1/namespaces/n/things?labelSelector=a%3Db,c&fieldSelector=metadata.name%3Dx";
        assert_eq!(
            asked(&alice(), uri, ReviewVersion::V1),
            json!({
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "user": "alice", "uid": "u", "groups": ["dev"], "extra": {"k/x": ["v"]},
                    "resourceAttributes": {
                        "verb": "list", "group": "g", "version": "v1", "namespace": "n",
                        "resource": "things", "name": "x",
                        "fieldSelector": {"requirements": [
                            {"key": "metadata.name", "operator": "In", "values": ["x"]},
                        ]},
                        "labelSelector": {"requirements": [
                            {"key": "a", "operator": "In", "values": ["b"]},
                            {"key": "c", "operator": "Exists"},
                        ]},
                    },
                },
            })
        );
    }

    #[test]
    fn paths_are_asked_for_as_such_and_beta_names_groups_otherwise() {
        let user = User { name: "u".to_owned(), ..User::default() };
        let review = asked(&user, "/apis/g", ReviewVersion::V1);
        let attributes = json!({"path": "/apis/g", "verb": "get"});
        assert_eq!(review["spec"], json!({"user": "u", "nonResourceAttributes": attributes}));
        let beta = asked(&alice(), "/apis/g", ReviewVersion::V1Beta1);
        assert_eq!(beta["apiVersion"], "authorization.k8s.io/v1beta1");
        assert_eq!(beta["spec"]["group"], json!(["dev"]));
        assert_eq!(beta["spec"].get("groups"), None);
    }

    #[track_caller]
    fn check(status: &Value, expected: &Decision) {
        let body = json!({"status": status}).to_string();
        assert_eq!(answer(body.as_bytes()).as_ref(), Ok(expected), "{status}");
    }

    #[test]
    fn what_is_not_allowed_is_left_to_others_unless_it_is_denied() {
        let because = json!({"allowed": false, "reason": "no"});
        check(&because, &Decision::NoOpinion("no".into()));
        check(&json!({"allowed": true, "reason": "yes"}), &Decision::Allow);
        check(&json!({"allowed": true, "denied": false}), &Decision::Allow);
        check(&json!({"allowed": false, "denied": true}), &Decision::Deny("".into()));
        check(&json!({"allowed": true, "denied": true}), &Decision::Both);
        assert!(answer(b"{\"status\": null}").is_err());
        assert!(answer(b"{\"spec\": {}}").is_err());
    }

    #[test]
    fn only_what_is_allowed_is_good_for_the_time_of_authorized_requests() {
        let ttl = AccessTtl {
            authorized: Duration::from_secs(300),
            unauthorized: Duration::from_secs(30),
        };
        assert_eq!(ttl.of(&Decision::Allow), ttl.authorized);
        for decision in [Decision::Deny("".into()), Decision::NoOpinion("".into()), Decision::Both]
        {
            assert_eq!(ttl.of(&decision), ttl.unauthorized);
        }
    }
}
