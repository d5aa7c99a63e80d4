//! The frames of a watch: one compact JSON object a line.

use serde_json::{Value, json};

use super::history::Unknown;
use super::rejection::Rejection;

/// The annotation of the bookmark that ends the initial events.
pub const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// One frame; `kind` is `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
pub fn frame(kind: &str, object: &Value) -> Vec<u8> {
    // By hand, so that the type comes first, as upstream has it, whatever map serde_json uses.
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into_bytes()
}

/// The object of a `BOOKMARK`: nothing but how far the watcher has come.
pub fn bookmark(api_version: &str, kind: &str, revision: u64, initial_events_end: bool) -> Value {
    let version = revision.to_string();
    let metadata = if initial_events_end {
        json!({ "resourceVersion": version, "annotations": { INITIAL_EVENTS_END: "true" } })
    } else {
        json!({ "resourceVersion": version })
    };
    json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata })
}

/// The frame that ends a watch with a fault.
pub fn error(rejection: &Rejection) -> Vec<u8> {
    frame("ERROR", &rejection.status())
}

/// Why a watch cannot go on from `revision`. A revision yet to come is told in the same way: it is
/// from a server that had other objects, and 410 makes every client list again.
pub fn expired(revision: u64, unknown: Unknown) -> Rejection {
    let (Unknown::Expired(limit) | Unknown::TooNew(limit)) = unknown;
    Rejection::Expired(format!("too old resource version: {revision} ({limit})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_lines_of_compact_json() {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert_eq!(
            text(frame("ADDED", &json!({"a": "x\ny"}))),
            "{\"type\":\"ADDED\",\"object\":{\"a\":\"x\\ny\"}}\n"
        );
        let ended: Value =
            serde_json::from_slice(&error(&expired(3, Unknown::Expired(7)))).unwrap();
        assert_eq!(ended["type"], "ERROR");
        assert_eq!(ended["object"]["code"], 410);
        assert_eq!(ended["object"]["reason"], "Expired");
        assert_eq!(ended["object"]["message"], "too old resource version: 3 (7)");
    }

    #[test]
    fn the_bookmark_after_the_initial_events_says_so() {
        assert_eq!(
            bookmark("g/v1", "Thing", 7, true),
            json!({
                "kind": "Thing",
                "apiVersion": "g/v1",
                "metadata": {
                    "resourceVersion": "7",
                    "annotations": { "k8s.io/initial-events-end": "true" },
                },
            })
        );
        assert_eq!(
            bookmark("g/v1", "Thing", 7, false)["metadata"],
            json!({"resourceVersion": "7"})
        );
    }
}
