//! Patches: RFC 7386 and RFC 6902.
//!
//! Strategic merge and server-side apply need facts about types that the toys do not have: 415.

use http::HeaderMap;
use json_patch::PatchOperation;
use serde_json::Value;

use super::input::media_type;
use super::refusal::Refusal;

const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json";

/// A patch that has been read.
#[derive(Debug)]
pub(crate) enum Patch {
    /// `application/merge-patch+json`
    Merge(Value),
    /// `application/json-patch+json`
    Operations(Vec<PatchOperation>),
}

impl Patch {
    /// Reads the body by its media type.
    pub(crate) fn parse(headers: &HeaderMap, bytes: &[u8]) -> Result<Self, Refusal> {
        let undecodable = |error: serde_json::Error| {
            Refusal::bad_request(format!("error decoding patch: {error}"))
        };
        match media_type(headers) {
            "application/merge-patch+json" => {
                let patch: Value = serde_json::from_slice(bytes).map_err(undecodable)?;
                if patch.is_object() {
                    Ok(Self::Merge(patch))
                } else {
                    Err(Refusal::bad_request("error decoding patch: a merge patch is an object"))
                }
            }
            "application/json-patch+json" => {
                serde_json::from_slice(bytes).map(Self::Operations).map_err(undecodable)
            }
            _ => Err(Refusal::UnsupportedMediaType(ACCEPTED)),
        }
    }

    /// Changes `object`; 422 when an operation does not fit it.
    pub(crate) fn apply(&self, object: &mut Value) -> Result<(), Refusal> {
        match self {
            Self::Merge(patch) => {
                json_patch::merge(object, patch);
                Ok(())
            }
            Self::Operations(operations) => {
                let applied = json_patch::patch(object, operations);
                applied.map_err(|error| {
                    tracing::debug!(%error, "toy cannot apply patch");
                    Refusal::unprocessable()
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use http::header::CONTENT_TYPE;
    use serde_json::json;

    fn patched(media_type: &'static str, patch: &str) -> Result<Value, u16> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media_type))]);
        let mut object = json!({"a": 1, "b": {"c": 2}});
        let patch = Patch::parse(&headers, patch.as_bytes());
        match patch.and_then(|patch| patch.apply(&mut object)) {
            Ok(()) => Ok(object),
            Err(refusal) => Err(refusal.code().as_u16()),
        }
    }

    #[test]
    fn both_patches_change_the_object() {
        let merge = "application/merge-patch+json; charset=utf-8";
        assert_eq!(patched(merge, r#"{"a":null,"b":{"d":3}}"#), Ok(json!({"b": {"c": 2, "d": 3}})));
        let operations = r#"[{"op":"test","path":"/a","value":1},{"op":"remove","path":"/b"}]"#;
        assert_eq!(patched("application/json-patch+json", operations), Ok(json!({"a": 1})));
    }

    #[test]
    fn what_cannot_be_applied_is_refused() {
        let json = "application/json-patch+json";
        assert_eq!(patched(json, r#"[{"op":"test","path":"/a","value":2}]"#), Err(422));
        assert_eq!(patched(json, r#"[{"op":"remove","path":"/x"}]"#), Err(422));
        assert_eq!(patched(json, r#"{"op":"remove"}"#), Err(400));
        assert_eq!(patched("application/merge-patch+json", "[]"), Err(400));
        assert_eq!(patched("application/strategic-merge-patch+json", "{}"), Err(415));
        assert_eq!(patched("application/apply-patch+yaml", "{}"), Err(415));
    }
}
