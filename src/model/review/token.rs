//! TokenReview: whose token this is (`apiserver/plugin/pkg/authenticator/token/webhook`).

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use serde_json::Value;

use super::{ReviewVersion, status};
use crate::model::user::User;

/// The API group.
pub const GROUP: &str = "authentication.k8s.io";

/// What a reviewer knows of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenAnswer {
    /// It is this user's.
    User(User),
    /// It is nobody's, and why not; the text is for the log only.
    Refused(String),
}

/// The review of a token that is good for one of these audiences; with none it must be good for the
/// reviewer's own.
pub fn question(token: &str, audiences: &[String], version: ReviewVersion) -> Vec<u8> {
    let spec = TokenReviewSpec {
        token: Some(token.to_owned()),
        audiences: (!audiences.is_empty()).then(|| audiences.to_vec()),
    };
    let review = TokenReview { spec, ..TokenReview::default() };
    let mut review = serde_json::to_value(review).unwrap_or(Value::Null);
    version.stamp(GROUP, &mut review);
    review.to_string().into_bytes()
}

/// Reads what came back on a review for these audiences; the error says why it cannot be understood.
pub fn answer(body: &[u8], audiences: &[String]) -> Result<TokenAnswer, String> {
    let status: TokenReviewStatus = status(body)?;
    if status.authenticated != Some(true) {
        let error = status.error.filter(|error| !error.is_empty());
        let error = error.unwrap_or_else(|| "invalid bearer token".to_owned());
        return Ok(TokenAnswer::Refused(error));
    }
    // A reviewer that names no audiences does not know of them: then all tokens are for us.
    let got = status.audiences.unwrap_or_default();
    if !audiences.is_empty() && !got.is_empty() && !got.iter().any(|one| audiences.contains(one)) {
        let text =
            format!("token audiences {got:?} is invalid for the target audiences {audiences:?}");
        return Ok(TokenAnswer::Refused(text));
    }
    let user = status.user.unwrap_or_default();
    let user = User {
        name: user.username.unwrap_or_default(),
        uid: user.uid.unwrap_or_default(),
        groups: user.groups.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    };
    if user.name.is_empty() {
        return Err("the token is authenticated, but the review names no user".to_owned());
    }
    Ok(TokenAnswer::User(user))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn list(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn a_question_is_a_review_without_status() {
        let asked = |audiences: &[&str], version| -> Value {
            serde_json::from_slice(&question("t", &list(audiences), version)).unwrap()
        };
        assert_eq!(
            asked(&[], ReviewVersion::V1),
            json!({
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenReview",
                "spec": {"token": "t"},
            })
        );
        let beta = asked(&["a", "b"], ReviewVersion::V1Beta1);
        assert_eq!(beta["apiVersion"], "authentication.k8s.io/v1beta1");
        assert_eq!(beta["spec"], json!({"token": "t", "audiences": ["a", "b"]}));
    }

    #[track_caller]
    fn check(status: &Value, audiences: &[&str], expected: Result<&str, &str>) {
        let body = json!({"kind": "TokenReview", "metadata": null, "status": status}).to_string();
        let got = answer(body.as_bytes(), &list(audiences));
        let got = match &got {
            Ok(TokenAnswer::User(user)) => Ok(user.name.as_str()),
            Ok(TokenAnswer::Refused(text)) | Err(text) => Err(text.as_str()),
        };
        assert_eq!(got, expected, "{status}");
    }

    #[test]
    fn a_token_is_its_users_only_when_the_review_says_so() {
        check(&json!({"authenticated": true, "user": {"username": "a"}}), &[], Ok("a"));
        check(&json!({"user": {"username": "a"}}), &[], Err("invalid bearer token"));
        check(&json!({"authenticated": false, "error": "expired"}), &[], Err("expired"));
        let nobody = "the token is authenticated, but the review names no user";
        check(&json!({"authenticated": true}), &[], Err(nobody));
    }

    #[test]
    fn audiences_must_meet_when_both_sides_name_some() {
        let with = |audiences: &[&str]| json!({"authenticated": true, "user": {"username": "a"}, "audiences": audiences});
        check(&with(&["x"]), &[], Ok("a"));
        check(&with(&[]), &["x"], Ok("a"));
        check(&with(&["y", "x"]), &["x"], Ok("a"));
        check(
            &with(&["y"]),
            &["x", "z"],
            Err("token audiences [\"y\"] is invalid for the target audiences [\"x\", \"z\"]"),
        );
    }

    #[test]
    fn the_users_uid_groups_and_extra_keys_are_taken_over() {
        let user = json!({"username": "a", "uid": "u", "groups": ["g"], "extra": {"k": ["v"]}});
        let body = json!({"status": {"authenticated": true, "user": user}}).to_string();
        let expected = User {
            name: "a".to_owned(),
            uid: "u".to_owned(),
            groups: list(&["g"]),
            extra: [("k".to_owned(), list(&["v"]))].into(),
        };
        assert_eq!(answer(body.as_bytes(), &[]), Ok(TokenAnswer::User(expected)));
        for body in ["", "{}", "[]", "{\"status\": 1}", "{\"status\":{\"authenticated\":\"yes\"}}"]
        {
            let error = answer(body.as_bytes(), &[]).unwrap_err();
            assert!(error.contains("no review with a status"), "{body}: {error}");
        }
    }
}
