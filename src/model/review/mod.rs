//! Questions to a reviewer: whose token this is, and whether somebody may do something.
//!
//! `token` and `access` write the questions and read the answers as Kubernetes' servers do, so that
//! any webhook for kube-apiserver can be asked; `reply` tells an answer from a failure, and `tries`
//! says when a failed question is asked again. `front_proxy` asks as whom the reviewer takes others.

pub mod access;
pub mod fingerprint;
pub mod front_proxy;
pub mod reply;
pub mod token;
pub mod tries;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The version of the review that a webhook is sent (`--authentication-token-webhook-version`,
/// `--authorization-webhook-version`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReviewVersion {
    /// What every server since Kubernetes 1.6 knows.
    #[default]
    V1,
    /// For webhooks from before.
    V1Beta1,
}

impl ReviewVersion {
    /// As it stands behind the group.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V1Beta1 => "v1beta1",
        }
    }

    /// Puts the version into a review that was written as v1.
    fn stamp(self, group: &str, review: &mut Value) {
        if let Value::Object(review) = review {
            let version = format!("{group}/{}", self.name());
            review.insert("apiVersion".to_owned(), version.into());
            // What is not known yet is not said.
            review.remove("metadata");
            review.remove("status");
        }
    }
}

/// The one part of a review that its answer is read for.
#[derive(Deserialize)]
struct Reviewed<S> {
    status: S,
}

/// The status of a review that came back.
fn status<S: DeserializeOwned>(body: &[u8]) -> Result<S, String> {
    let reviewed: Reviewed<S> = serde_json::from_slice(body)
        .map_err(|error| format!("the answer is no review with a status: {error}"))?;
    Ok(reviewed.status)
}
