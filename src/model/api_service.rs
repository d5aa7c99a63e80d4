//! An APIService as an object: defaults, validation and table cells.
//!
//! Rules and texts are upstream's (`kube-aggregator/pkg/apis/apiregistration/validation`,
//! `pkg/registry/apiservice`).

use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{
    APIService, APIServiceCondition, APIServiceSpec, ServiceReference,
};

use serde_json::Value;

use super::availability::AVAILABLE;
use super::fault::ServicePort;
use super::field_error::FieldError;

/// The port of a service reference that names none.
const DEFAULT_PORT: u16 = 443;
/// `spec.groupPriorityMinimum` is at most this.
const GROUP_PRIORITY_MAX: i32 = 20_000;
/// `spec.versionPriority` is at most this.
const VERSION_PRIORITY_MAX: i32 = 1_000;
const SUBDOMAIN_LENGTH_MAX: usize = 253;
const LABEL_LENGTH_MAX: usize = 63;

pub(super) const NOT_A_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case \
    alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character \
    (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const NOT_A_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or \
    '-', start with an alphabetic character, and end with an alphanumeric character \
    (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

/// The name that the APIService of a version must have.
pub fn name(group: &str, version: &str) -> String {
    format!("{version}.{group}")
}

/// What is below a version: `/apis/<group>/<version>`, or `/api/<version>` for the core.
pub fn path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

/// The service that an APIService names, with the default port.
pub fn service_of(spec: &APIServiceSpec) -> Option<ServicePort> {
    let service = spec.service.as_ref()?;
    let port = service.port.map_or(Ok(DEFAULT_PORT), u16::try_from);
    Some(ServicePort {
        namespace: service.namespace.as_deref().unwrap_or_default().into(),
        name: service.name.as_deref().unwrap_or_default().into(),
        // Validation lets no other number in; 0 is a port that no service has.
        port: port.unwrap_or_default(),
    })
}

/// Fills in the only default there is: the port of a service that names none.
pub fn set_defaults(object: &mut APIService) {
    if let Some(service) = object.spec.as_mut().and_then(|spec| spec.service.as_mut()) {
        service.port.get_or_insert(i32::from(DEFAULT_PORT));
    }
}

/// Everything that is wrong with the object, in upstream's order.
pub fn validate(object: &APIService) -> Vec<FieldError> {
    let nothing = APIServiceSpec::default();
    let spec = object.spec.as_ref().unwrap_or(&nothing);
    let mut errors = validate_names(object, spec);
    errors.extend(validate_group_and_version(spec));
    if !(1..=GROUP_PRIORITY_MAX).contains(&spec.group_priority_minimum) {
        errors.push(FieldError::invalid(
            "spec.groupPriorityMinimum",
            &spec.group_priority_minimum.into(),
            &format!("must be positive and less than {GROUP_PRIORITY_MAX}"),
        ));
    }
    if !(1..=VERSION_PRIORITY_MAX).contains(&spec.version_priority) {
        errors.push(FieldError::invalid(
            "spec.versionPriority",
            &spec.version_priority.into(),
            &format!("must be positive and less than {VERSION_PRIORITY_MAX}"),
        ));
    }
    errors.extend(match &spec.service {
        None => validate_local(spec),
        Some(service) => validate_remote(spec, service),
    });
    errors
}

fn validate_names(object: &APIService, spec: &APIServiceSpec) -> Vec<FieldError> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let required = name(&text(&spec.group), &text(&spec.version));
    let check = |field, name: &str| {
        let details = name_faults(name, &required).into_iter();
        let value = Value::from(name);
        details.map(move |detail| FieldError::invalid(field, &value, &detail)).collect()
    };
    let (name, prefix) = (text(&object.metadata.name), text(&object.metadata.generate_name));
    let mut errors: Vec<FieldError> = Vec::new();
    if !prefix.is_empty() {
        errors.extend::<Vec<_>>(check("metadata.generateName", &prefix));
    }
    if name.is_empty() {
        let detail = "name or generateName is required";
        errors.push(FieldError::required("metadata.name", detail));
    } else {
        errors.extend::<Vec<_>>(check("metadata.name", &name));
    }
    errors
}

fn name_faults(name: &str, required: &str) -> Vec<String> {
    if matches!(name, "." | "..") {
        return vec![format!("may not be '{name}'")];
    }
    let forbidden = ['/', '%'].into_iter().filter(|&character| name.contains(character));
    let mut faults: Vec<String> =
        forbidden.map(|character| format!("may not contain '{character}'")).collect();
    if faults.is_empty() && name != required {
        faults.push(format!("must be `spec.version+\".\"+spec.group`: {required:?}"));
    }
    faults
}

fn validate_group_and_version(spec: &APIServiceSpec) -> Vec<FieldError> {
    let group = spec.group.as_deref().unwrap_or_default();
    let version = spec.version.as_deref().unwrap_or_default();
    let mut errors = Vec::new();
    if group.is_empty() && version != "v1" {
        let detail = "only v1 may have an empty group and it better be legacy kube";
        errors.push(FieldError::required("spec.group", detail));
    }
    let mut invalid = |field, value: &str, detail: String| {
        errors.push(FieldError::invalid(field, &value.into(), &detail));
    };
    if group.len() > SUBDOMAIN_LENGTH_MAX {
        let detail = format!("must be no more than {SUBDOMAIN_LENGTH_MAX} characters");
        invalid("spec.group", group, detail);
    }
    if !group.is_empty() && !group.split('.').all(|part| is_label(part, false)) {
        invalid("spec.group", group, NOT_A_SUBDOMAIN.to_owned());
    }
    if version.len() > LABEL_LENGTH_MAX {
        let detail = format!("must be no more than {LABEL_LENGTH_MAX} characters");
        invalid("spec.version", version, detail);
    }
    if !is_label(version, true) {
        invalid("spec.version", version, NOT_A_LABEL.to_owned());
    }
    errors
}

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`, with a letter at its head where `letter_first`.
fn is_label(text: &str, letter_first: bool) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    let head = if letter_first { first.is_ascii_lowercase() } else { alphanumeric(first) };
    head && alphanumeric(last) && bytes.iter().all(|&byte| byte == b'-' || alphanumeric(byte))
}

fn validate_local(spec: &APIServiceSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let bytes = spec.ca_bundle.as_ref().map_or(0, |bundle| bundle.0.len());
    if bytes > 0 {
        let detail = "local APIServices may not have a caBundle";
        let value = format!("{bytes} bytes").into();
        errors.push(FieldError::invalid("spec.caBundle", &value, detail));
    }
    if spec.insecure_skip_tls_verify == Some(true) {
        let detail = "local APIServices may not have insecureSkipTLSVerify";
        errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", &true.into(), detail));
    }
    errors
}

fn validate_remote(spec: &APIServiceSpec, service: &ServiceReference) -> Vec<FieldError> {
    let is_empty = |value: &Option<String>| value.as_deref().unwrap_or_default().is_empty();
    let mut errors = Vec::new();
    if is_empty(&service.namespace) {
        errors.push(FieldError::required("spec.service.namespace", ""));
    }
    if is_empty(&service.name) {
        errors.push(FieldError::required("spec.service.name", ""));
    }
    let port = service.port.unwrap_or(i32::from(DEFAULT_PORT));
    if !(1..=i32::from(u16::MAX)).contains(&port) {
        let detail = "port is not valid: must be between 1 and 65535, inclusive";
        errors.push(FieldError::invalid("spec.service.port", &port.into(), detail));
    }
    let has_bundle = spec.ca_bundle.as_ref().is_some_and(|bundle| !bundle.0.is_empty());
    if spec.insecure_skip_tls_verify == Some(true) && has_bundle {
        let detail = "may not be true if caBundle is present";
        errors.push(FieldError::invalid("spec.insecureSkipTLSVerify", &true.into(), detail));
    }
    errors
}

/// The columns of `kubectl get apiservices`: name, type, format; the age is the server's to add.
pub const COLUMNS: [(&str, &str, &str); 4] = [
    ("Name", "string", "name"),
    ("Service", "string", ""),
    ("Available", "string", ""),
    ("Age", "string", ""),
];

/// The cell `Service`.
pub fn service_cell(object: &APIService) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    match object.spec.as_ref().and_then(|spec| spec.service.as_ref()) {
        None => "Local".to_owned(),
        Some(service) => format!("{}/{}", text(&service.namespace), text(&service.name)),
    }
}

/// The condition `Available`.
pub fn available(object: &APIService) -> Option<&APIServiceCondition> {
    let conditions = object.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == AVAILABLE)
}

/// The cell `Available`.
pub fn available_cell(object: &APIService) -> String {
    let Some(condition) = available(object) else { return "Unknown".to_owned() };
    match condition.reason.as_deref() {
        Some(reason) if condition.status != "True" && !reason.is_empty() => {
            format!("{} ({reason})", condition.status)
        }
        _ => condition.status.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn api_service(name: &str, spec: &Value) -> APIService {
        serde_json::from_value(json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {"name": name}, "spec": spec,
        }))
        .unwrap()
    }

    /// A valid spec with some fields replaced; `null` takes one out.
    fn spec(changes: &Value) -> Value {
        let mut spec = json!({
            "group": "example.com", "version": "v1", "groupPriorityMinimum": 100,
            "versionPriority": 10, "service": {"namespace": "n", "name": "s"},
        });
        json_patch::merge(&mut spec, changes);
        spec
    }

    #[track_caller]
    fn check(name: &str, changes: &Value, expected: &[&str]) {
        let mut object = api_service(name, &spec(changes));
        set_defaults(&mut object);
        let errors: Vec<String> = validate(&object).iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected);
    }

    #[test]
    fn names_are_version_dot_group() {
        let name = "v1.example.com";
        check(name, &json!({}), &[]);
        check("v1.", &json!({"group": null}), &[]);
        let required = "metadata.name: Required value: name or generateName is required";
        check("", &json!({}), &[required]);
        check("..", &json!({}), &["metadata.name: Invalid value: \"..\": may not be '..'"]);
        let slash = "metadata.name: Invalid value: \"a/%\": may not contain '/'";
        let percent = "metadata.name: Invalid value: \"a/%\": may not contain '%'";
        check("a/%", &json!({}), &[slash, percent]);
        let other = "metadata.name: Invalid value: \"v2.example.com\": must be \
                     `spec.version+\".\"+spec.group`: \"v1.example.com\"";
        check("v2.example.com", &json!({}), &[other]);
        let mut generated = api_service("", &spec(&json!({})));
        generated.metadata.generate_name = Some("v1.".to_owned());
        let fields: Vec<_> = validate(&generated).iter().map(|error| error.field.clone()).collect();
        assert_eq!(fields, ["metadata.generateName", "metadata.name"]);
    }

    #[test]
    fn groups_and_versions_are_dns_names() {
        let empty = "spec.group: Required value: only v1 may have an empty group and it better be \
                     legacy kube";
        check("v2.", &json!({"group": null, "version": "v2"}), &[empty]);
        let group = format!("spec.group: Invalid value: \"A\": {NOT_A_SUBDOMAIN}");
        check("v1.A", &json!({"group": "A"}), &[&group]);
        let version = format!("spec.version: Invalid value: \"1\": {NOT_A_LABEL}");
        check("1.example.com", &json!({"version": "1"}), &[&version]);
        let long = "v".repeat(64);
        let length =
            format!("spec.version: Invalid value: \"{long}\": must be no more than 63 characters");
        check(&format!("{long}.example.com"), &json!({"version": long}), &[&length]);
    }

    #[test]
    fn priorities_and_ports_have_bounds() {
        let name = "v1.example.com";
        check(name, &json!({"groupPriorityMinimum": 20000, "versionPriority": 1000}), &[]);
        check(
            name,
            &json!({"groupPriorityMinimum": 20001, "versionPriority": 0}),
            &[
                "spec.groupPriorityMinimum: Invalid value: 20001: must be positive and less than \
                 20000",
                "spec.versionPriority: Invalid value: 0: must be positive and less than 1000",
            ],
        );
        let port = "spec.service.port: Invalid value: 0: port is not valid: must be between 1 and \
                    65535, inclusive";
        check(name, &json!({"service": {"port": 0}}), &[port]);
    }

    #[test]
    fn what_a_service_may_have_a_local_api_service_may_not() {
        let name = "v1.example.com";
        check(
            name,
            &json!({"service": null, "caBundle": "YWJj", "insecureSkipTLSVerify": true}),
            &[
                "spec.caBundle: Invalid value: \"3 bytes\": local APIServices may not have a \
                 caBundle",
                "spec.insecureSkipTLSVerify: Invalid value: true: local APIServices may not have \
                 insecureSkipTLSVerify",
            ],
        );
        check(
            name,
            &json!({"service": {"namespace": null, "name": null}, "caBundle": "YWJj",
                   "insecureSkipTLSVerify": true}),
            &[
                "spec.service.namespace: Required value",
                "spec.service.name: Required value",
                "spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is \
                 present",
            ],
        );
    }

    #[test]
    fn table_cells_are_upstreams() {
        let mut object = api_service("v1.example.com", &spec(&json!({})));
        assert_eq!(service_cell(&object), "n/s");
        let cell = |object: &mut APIService, condition: Value| {
            object.status = serde_json::from_value(json!({"conditions": [condition]})).unwrap();
            available_cell(object)
        };
        assert_eq!(available_cell(&object), "Unknown");
        let condition =
            |status, reason| json!({"type": "Available", "status": status, "reason": reason});
        assert_eq!(cell(&mut object, condition("True", "Passed")), "True");
        assert_eq!(
            cell(&mut object, condition("False", "MissingEndpoints")),
            "False (MissingEndpoints)"
        );
        assert_eq!(cell(&mut object, condition("False", "")), "False");
        let local = api_service("v1.example.com", &spec(&json!({"service": null})));
        assert_eq!(service_cell(&local), "Local");
    }
}
