//! The part of an object that belongs to the server: identity, birth, generation.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::catalogue::Resource;
use super::input::metadata_text;
use super::refusal::Refusal;
use crate::model::field_error::FieldError;
use crate::model::selector::is_subdomain;

/// How much of `generateName` is kept, so that the whole name stays a label's value.
const GENERATED_BASE_CHARACTERS_MAX: usize = 58;
const GENERATED_CHARACTERS: usize = 5;
/// Letters and digits that make no words.
const GENERATED_ALPHABET: &[char] = &[
    'b', 'c', 'd', 'f', 'g', 'h', 'j', 'k', 'l', 'm', 'n', 'p', 'q', 'r', 's', 't', 'v', 'w', 'x',
    'z', '2', '4', '5', '6', '7', '8', '9',
];
/// What only the server may say, and what it does not keep.
const NEVER_TAKEN: [&str; 4] =
    ["selfLink", "managedFields", "deletionTimestamp", "deletionGracePeriodSeconds"];
const NAME_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
    characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
    'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// Makes a new object's metadata complete and returns the object's name.
pub(crate) fn for_create(
    resource: &Resource,
    namespace: &str,
    object: &mut Value,
    now: Timestamp,
) -> Result<String, Refusal> {
    let sent_version = metadata_text(object, "resourceVersion");
    if !sent_version.is_empty() {
        let text = "resourceVersion should not be set on objects to be created";
        return Err(Refusal::bad_request(text));
    }
    let metadata = of(object)?;
    place(metadata, namespace)?;
    let name = name(metadata);
    if name.is_empty() {
        let error = FieldError::required("metadata.name", "name or generateName is required");
        return Err(Refusal::invalid(resource, "", vec![error]));
    }
    if !is_subdomain(&name) {
        let error = FieldError::invalid("metadata.name", &name.as_str().into(), NAME_RULE);
        return Err(Refusal::invalid(resource, &name, vec![error]));
    }
    for key in NEVER_TAKEN {
        metadata.remove(key);
    }
    for (key, value) in [
        ("name", name.as_str().into()),
        ("uid", uuid::Uuid::new_v4().to_string().into()),
        ("creationTimestamp", now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()),
        ("generation", Value::from(1)),
    ] {
        metadata.insert(key.to_owned(), value);
    }
    Ok(name)
}

/// Carries what the server owns over from `old`; 409 when `new` was made from another state.
pub(crate) fn for_update(
    resource: &'static Resource,
    namespace: &str,
    old: &Value,
    new: &mut Value,
) -> Result<(), Refusal> {
    let name = metadata_text(old, "name");
    let sent = |key| metadata_text(new, key);
    if !sent("name").is_empty() && sent("name") != name {
        return Err(Refusal::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            sent("name")
        )));
    }
    let (uid, old_uid) = (sent("uid"), metadata_text(old, "uid"));
    if !uid.is_empty() && uid != old_uid {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}"
        );
        return Err(Refusal::Conflict(resource, name.to_owned(), why));
    }
    let version = sent("resourceVersion");
    if !version.is_empty() && version != metadata_text(old, "resourceVersion") {
        return Err(Refusal::stale(resource, name));
    }
    let generation = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(1);
    let changed = old.get("spec") != new.get("spec");
    let metadata = of(new)?;
    place(metadata, namespace)?;
    for key in NEVER_TAKEN {
        metadata.remove(key);
    }
    for key in ["name", "uid", "creationTimestamp", "resourceVersion"] {
        metadata.insert(key.to_owned(), metadata_text(old, key).into());
    }
    metadata.insert("generation".to_owned(), (generation + i64::from(changed)).into());
    Ok(())
}

fn of(object: &mut Value) -> Result<&mut Map<String, Value>, Refusal> {
    match object.get_mut("metadata") {
        Some(Value::Object(metadata)) => Ok(metadata),
        _ => Err(Refusal::bad_request("the object has no metadata")),
    }
}

fn place(metadata: &mut Map<String, Value>, namespace: &str) -> Result<(), Refusal> {
    let sent = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
    if !sent.is_empty() && sent != namespace {
        return Err(Refusal::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if namespace.is_empty() {
        metadata.remove("namespace");
    } else {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
    Ok(())
}

/// The name as sent, or one made from `generateName`.
fn name(metadata: &Map<String, Value>) -> String {
    let sent = |key| metadata.get(key).and_then(Value::as_str).unwrap_or_default();
    if !sent("name").is_empty() || sent("generateName").is_empty() {
        return sent("name").to_owned();
    }
    let base = sent("generateName").chars().take(GENERATED_BASE_CHARACTERS_MAX);
    let random = std::iter::repeat_with(|| fastrand::choice(GENERATED_ALPHABET).copied());
    base.chain(random.flatten().take(GENERATED_CHARACTERS)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::catalogue::BAKERY;
    use serde_json::json;

    fn cakes() -> &'static Resource {
        BAKERY.resource("cakes").unwrap()
    }

    #[test]
    fn a_new_object_gets_what_the_server_owns() {
        let now: Timestamp = "2026-01-02T03:04:05.678Z".parse().unwrap();
        let mut object =
            json!({"metadata": {"generateName": "a-", "uid": "mine", "selfLink": "x"}});
        let name = for_create(cakes(), "ns", &mut object, now).unwrap();
        let metadata = &object["metadata"];
        assert!(name.starts_with("a-") && name.len() == 7, "{name}");
        assert_eq!(metadata["creationTimestamp"], "2026-01-02T03:04:05Z");
        assert_eq!((&metadata["namespace"], &metadata["generation"]), (&json!("ns"), &json!(1)));
        assert_ne!(metadata["uid"], "mine");
        assert_eq!(metadata.get("selfLink"), None);
    }

    #[test]
    fn a_new_object_must_have_a_name_that_is_one() {
        let code = |metadata: Value| {
            let mut object = json!({ "metadata": metadata });
            for_create(cakes(), "ns", &mut object, Timestamp::UNIX_EPOCH).unwrap_err().code()
        };
        assert_eq!(code(json!({})), 422);
        assert_eq!(code(json!({"name": "A b"})), 422);
        assert_eq!(code(json!({"name": "a", "namespace": "other"})), 400);
        assert_eq!(code(json!({"name": "a", "resourceVersion": "1"})), 400);
    }

    #[test]
    fn an_update_keeps_identity_and_counts_changes_of_the_spec() {
        let old = json!({
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "7", "generation": 2},
            "spec": 1,
        });
        let update = |metadata: Value, spec: i32| {
            let mut new = json!({ "metadata": metadata, "spec": spec });
            for_update(cakes(), "ns", &old, &mut new).map(|()| new["metadata"].clone())
        };
        assert_eq!(update(json!({}), 1).unwrap()["generation"], 2);
        assert_eq!(update(json!({"generation": 9}), 2).unwrap()["generation"], 3);
        assert_eq!(update(json!({}), 1).unwrap()["uid"], "u");
        assert_eq!(update(json!({"resourceVersion": "6"}), 1).unwrap_err().code(), 409);
        assert_eq!(update(json!({"uid": "v"}), 1).unwrap_err().code(), 409);
        assert_eq!(update(json!({"name": "b"}), 1).unwrap_err().code(), 400);
    }
}
