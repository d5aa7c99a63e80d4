//! What comes in with a write: the body within its limit, its encoding, the options, the object.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value};

use super::catalogue::{Decoded, Resource};
use super::refusal::Refusal;
use crate::model::field_error::FieldError;
use crate::model::negotiated::text;
use crate::model::query::Query;
use crate::model::rejection::Rejection;

/// The largest body that is read.
const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// What happens to fields that the type does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// The options of creates, updates and patches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteOptions {
    pub(crate) dry_run: bool,
    pub(crate) validation: FieldValidation,
}

/// The options of a delete.
#[derive(Debug, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) dry_run: bool,
    uid: Option<String>,
    resource_version: Option<String>,
}

/// Reads a body of at most three MiB.
pub(crate) async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Rejection::TooLarge { limit_bytes: BODY_BYTES_MAX }.into())
        }
        Err(error) => Err(Refusal::bad_request(format!("reading the body: {error}"))),
    }
}

/// The media type of the body without its parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> &str {
    let full = text(headers, CONTENT_TYPE).unwrap_or_default();
    full.split(';').next().unwrap_or_default().trim()
}

/// Reads a JSON or YAML body; `what` names the type it must be of.
pub(crate) fn document(headers: &HeaderMap, bytes: &[u8], what: &str) -> Result<Value, Refusal> {
    let unrecognized = |error: String| {
        let refusal = "the object provided is unrecognized";
        Refusal::bad_request(format!("{refusal} (must be of type {what}): {error}"))
    };
    match media_type(headers) {
        "" | "application/json" => {
            serde_json::from_slice(bytes).map_err(|error| unrecognized(error.to_string()))
        }
        "application/yaml" => {
            let text = std::str::from_utf8(bytes).map_err(|e| unrecognized(e.to_string()))?;
            serde_saphyr::from_str(text).map_err(|error| unrecognized(error.to_string()))
        }
        _ => Err(Refusal::UnsupportedMediaType("application/json, application/yaml")),
    }
}

impl WriteOptions {
    /// Reads the options; `kind` is what they are called in a refusal.
    pub(crate) fn parse(query: &Query, kind: &str) -> Result<Self, Refusal> {
        let validation = match query.text("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let supported = ["", "Ignore", "Strict", "Warn"];
                let fault = FieldError::unsupported("fieldValidation", other, &supported);
                return Err(Refusal::invalid_options(kind, fault));
            }
        };
        Ok(Self { dry_run: dry_run(query.all("dryRun"), kind)?, validation })
    }
}

impl DeleteOptions {
    /// Reads the options from the body or, when that is empty, from the query.
    pub(crate) fn parse(headers: &HeaderMap, query: &Query, bytes: &[u8]) -> Result<Self, Refusal> {
        let kind = "DeleteOptions";
        if bytes.is_empty() {
            let dry_run = dry_run(query.all("dryRun"), kind)?;
            return Ok(Self { dry_run, ..Self::default() });
        }
        let body = document(headers, bytes, kind)?;
        let words = body.get("dryRun").and_then(Value::as_array).into_iter().flatten();
        let dry_run = dry_run(words.filter_map(Value::as_str), kind)?;
        let precondition =
            |key: &str| body.get("preconditions")?.get(key)?.as_str().map(ToOwned::to_owned);
        let policies = ["Orphan", "Background", "Foreground"];
        match body.get("propagationPolicy").and_then(Value::as_str) {
            Some(policy) if !policies.contains(&policy) => {
                let fault = FieldError::unsupported("propagationPolicy", policy, &policies);
                Err(Refusal::invalid_options(kind, fault))
            }
            _ => Ok(Self {
                dry_run,
                uid: precondition("uid"),
                resource_version: precondition("resourceVersion"),
            }),
        }
    }

    /// 409 when the object is not the one that the preconditions mean.
    pub(crate) fn check(&self, resource: &'static Resource, object: &Value) -> Result<(), Refusal> {
        let checks = [
            (&self.uid, "uid", "UID", "deleted and then recreated"),
            (&self.resource_version, "resourceVersion", "ResourceVersion", "modified"),
        ];
        for (wanted, key, word, perhaps) in checks {
            let actual = metadata_text(object, key);
            if let Some(wanted) = wanted
                && wanted != actual
            {
                let why = format!(
                    "the {word} in the precondition ({wanted}) does not match the {word} in record \
                     ({actual}). The object might have been {perhaps}"
                );
                return Err(Refusal::Conflict(
                    resource,
                    metadata_text(object, "name").to_owned(),
                    why,
                ));
            }
        }
        Ok(())
    }
}

fn dry_run<'a>(mut words: impl Iterator<Item = &'a str>, kind: &str) -> Result<bool, Refusal> {
    let Some(first) = words.next() else { return Ok(false) };
    match std::iter::once(first).chain(words).find(|word| *word != "All") {
        None => Ok(true),
        Some(other) => {
            let fault = FieldError::unsupported("dryRun", other, &["All"]);
            Err(Refusal::invalid_options(kind, fault))
        }
    }
}

/// An object read by its type.
#[derive(Debug)]
pub(crate) struct Read {
    /// The canonical form, in the storage version.
    pub(crate) decoded: Decoded,
    /// One sentence for each field that the type does not know.
    pub(crate) unknown: Vec<String>,
}

/// Reads an object of `resource` sent to `version`; the text says why it cannot be one.
pub(crate) fn object(
    resource: &Resource,
    version: &str,
    storage_version: &str,
    mut value: Value,
) -> Result<Read, Fault> {
    let Value::Object(map) = &mut value else {
        return Err(Fault::Type(format!("cannot unmarshal {} into an object", word(&value))));
    };
    let expected = resource.api_version(version);
    check_type(map, "apiVersion", &expected).map_err(|found| {
        Fault::Version(format!(
            "the API version in the data ({found}) does not match the expected API version \
             ({expected})"
        ))
    })?;
    check_type(map, "kind", resource.kind).map_err(|found| {
        Fault::Version(format!(
            "the kind in the data ({found}) does not match the expected kind ({})",
            resource.kind
        ))
    })?;
    map.insert("apiVersion".to_owned(), resource.api_version(storage_version).into());
    map.insert("kind".to_owned(), resource.kind.into());
    let decoded = resource.decode(value.clone()).map_err(|error| Fault::Type(error.to_string()))?;
    let mut unknown = Vec::new();
    find_unknown(&value, &decoded.object, "", &mut unknown)?;
    Ok(Read { decoded, unknown })
}

/// Why a document is no object of the resource.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It says that it is of another kind or version; a whole sentence.
    Version(String),
    /// A value has the wrong type; the decoder's words.
    Type(String),
}

fn check_type(map: &Map<String, Value>, key: &str, expected: &str) -> Result<(), String> {
    match map.get(key).and_then(Value::as_str).unwrap_or_default() {
        "" => Ok(()),
        found if found == expected => Ok(()),
        found => Err(found.to_owned()),
    }
}

fn word(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What was sent but is not in the canonical form is not known to the type.
fn find_unknown(
    sent: &Value,
    known: &Value,
    path: &str,
    unknown: &mut Vec<String>,
) -> Result<(), Fault> {
    match (sent, known) {
        (Value::Object(sent), Value::Object(known)) => {
            for (key, value) in sent.iter().filter(|(_, value)| !value.is_null()) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match known.get(key) {
                    Some(known) => find_unknown(value, known, &path, unknown)?,
                    None => unknown.push(format!("unknown field \"{path}\"")),
                }
            }
        }
        (Value::Array(sent), Value::Array(known)) => {
            for (index, (value, known)) in sent.iter().zip(known).enumerate() {
                find_unknown(value, known, &format!("{path}[{index}]"), unknown)?;
            }
        }
        // serde takes the fields of a struct in their order too; Kubernetes does not.
        (Value::Array(_), Value::Object(_)) => {
            return Err(Fault::Type(format!("cannot unmarshal array into {path}, an object")));
        }
        _ => {}
    }
    Ok(())
}

/// A text of the object's metadata, empty when there is none.
pub(crate) fn metadata_text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get("metadata").and_then(|metadata| metadata.get(key)?.as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::catalogue::BAKERY;
    use serde_json::json;

    fn read(value: Value) -> Result<Read, Fault> {
        object(BAKERY.resource("cakes").unwrap(), "v1", "v1", value)
    }

    #[test]
    fn unknown_fields_are_found_wherever_they_are() {
        let read = read(json!({
            "metadata": {
                "name": "a",
                "labels": {"any": "x"},
                "colour": 1,
                "creationTimestamp": null,
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u", "extra": 1}
                ],
            },
            "spec": {"flavour": "lemon", "foo": {"bar": 1}},
            "more": true,
        }));
        let mut unknown = read.unwrap().unknown;
        unknown.sort();
        assert_eq!(
            unknown,
            [
                "unknown field \"metadata.colour\"",
                "unknown field \"metadata.ownerReferences[0].extra\"",
                "unknown field \"more\"",
                "unknown field \"spec.foo\"",
            ]
        );
    }

    #[test]
    fn objects_of_another_type_are_refused() {
        for value in [json!({"kind": "Pie"}), json!({"apiVersion": "bakery.example.com/v2"})] {
            assert!(matches!(read(value), Err(Fault::Version(_))));
        }
        for value in [json!([]), json!({"spec": []}), json!({"spec": {"flavour": 1}})] {
            assert!(matches!(read(value), Err(Fault::Type(_))));
        }
    }

    #[test]
    fn options_are_checked() {
        let parse = |query| WriteOptions::parse(&Query::parse(Some(query)), "CreateOptions");
        assert!(parse("dryRun=All").unwrap().dry_run);
        assert_eq!(parse("").unwrap().validation, FieldValidation::Warn);
        for query in ["dryRun=x", "dryRun=All&dryRun=", "fieldValidation=x"] {
            assert_eq!(parse(query).unwrap_err().code().as_u16(), 422, "{query}");
        }
    }
}
