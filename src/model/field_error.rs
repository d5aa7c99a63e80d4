//! Faults in single fields, in the words of upstream's `field` package, and the 422 made of them.

use serde_json::Value;

use super::api_service::NOT_A_SUBDOMAIN;
use super::rejection::{Details, Rejection};
use super::selector::is_subdomain;

/// What may stand after the first `/` of a domain-prefixed path, beside letters and digits.
const PATH_MARKS: &[u8] = b"/-._~%!$&'()*+,;=:";
const NOT_A_PATH: &str =
    "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";

/// One fault in one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The cause's reason, for instance `FieldValueRequired`.
    pub reason: &'static str,
    /// The field's path, for instance `spec.layers`.
    pub field: String,
    /// What is wrong with it, for instance `Required value`.
    pub text: String,
}

impl FieldError {
    /// A field that must be set.
    pub fn required(field: &str, detail: &str) -> Self {
        Self::new("FieldValueRequired", field, with_detail("Required value", detail))
    }

    /// A field whose value cannot be used.
    pub fn invalid(field: &str, value: &Value, detail: &str) -> Self {
        let text = with_detail(&format!("Invalid value: {value}"), detail);
        Self::new("FieldValueInvalid", field, text)
    }

    /// A field that must not be set here.
    pub fn forbidden(field: &str, detail: &str) -> Self {
        Self::new("FieldValueForbidden", field, with_detail("Forbidden", detail))
    }

    /// A field that takes a few values only.
    pub fn unsupported(field: &str, value: &str, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|name| format!("{name:?}")).collect();
        let text =
            format!("Unsupported value: {value:?}: supported values: {}", supported.join(", "));
        Self::new("FieldValueNotSupported", field, text)
    }

    /// A value that may stand once only.
    pub fn duplicate(field: &str, value: &str) -> Self {
        Self::new("FieldValueDuplicate", field, format!("Duplicate value: {value:?}"))
    }

    /// A list that is too long.
    pub fn too_many(field: &str, count: usize, max: usize) -> Self {
        let text = format!("Too many: {count}: must have at most {max} items");
        Self::new("FieldValueTooMany", field, text)
    }

    /// What is wrong with a text that must be a domain and a path (`IsDomainPrefixedPath`).
    pub fn domain_prefixed_path(field: &str, text: &str) -> Option<Self> {
        let fault = |part: &str, detail| Some(Self::invalid(field, &part.into(), detail));
        let parts =
            text.split_once('/').filter(|(host, path)| !host.is_empty() && !path.is_empty());
        let Some((host, path)) = parts else {
            return fault(text, "must be a domain-prefixed path (such as \"acme.io/foo\")");
        };
        if !is_subdomain(host) {
            return fault(host, NOT_A_SUBDOMAIN);
        }
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || PATH_MARKS.contains(byte);
        if path.as_bytes().iter().all(fits) { None } else { fault(path, NOT_A_PATH) }
    }

    fn new(reason: &'static str, field: &str, text: String) -> Self {
        Self { reason, field: field.to_owned(), text }
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.text)
    }
}

/// 422 for an object of `kind` with every fault that was found.
pub fn invalid(kind: &str, group: &str, name: &str, errors: Vec<FieldError>) -> Rejection {
    let kind_group = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let faults = match texts.as_slice() {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    Rejection::Invalid(Box::new(Details {
        message: format!("{kind_group} \"{name}\" is invalid: {faults}"),
        name: name.to_owned(),
        group: group.to_owned(),
        kind: kind.to_owned(),
        causes: errors.into_iter().map(|error| (error.reason, error.text, error.field)).collect(),
    }))
}

fn with_detail(word: &str, detail: &str) -> String {
    if detail.is_empty() { word.to_owned() } else { format!("{word}: {detail}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_fault_stands_alone_and_several_stand_in_brackets() {
        let required = FieldError::required("spec.a", "");
        let wrong = FieldError::invalid("spec.b", &json!(11), "too many");
        let one = invalid("Cake", "g", "x", vec![required.clone()]);
        assert_eq!(one.message(), "Cake.g \"x\" is invalid: spec.a: Required value");
        let two = invalid("Cake", "", "x", vec![required, wrong]);
        assert_eq!(
            two.message(),
            "Cake \"x\" is invalid: [spec.a: Required value, spec.b: Invalid value: 11: too many]"
        );
        assert_eq!(
            two.status()["details"]["causes"][1],
            json!({
                "reason": "FieldValueInvalid",
                "message": "Invalid value: 11: too many",
                "field": "spec.b",
            })
        );
    }
}
