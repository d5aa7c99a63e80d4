//! What Kubernetes' configuration files have in common: strict YAML with an `apiVersion` and a `kind`.

use serde::de::DeserializeOwned;

/// Reads YAML or JSON; fields that are unknown to a type that denies them are a fault.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Vec<String>> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| vec![error.to_string()])
}

/// What is wrong with a file's `apiVersion` and `kind`.
pub fn faults_of_type(
    (api_version, kind): (&str, &str),
    (known_versions, known_kind): (&[&str], &str),
) -> Vec<String> {
    let mut faults = Vec::new();
    if !known_versions.contains(&api_version) {
        let known = known_versions.join(", ");
        faults.push(format!("apiVersion: \"{api_version}\" is not one of {known}"));
    }
    if kind != known_kind {
        faults.push(format!("kind: \"{kind}\" is not {known_kind}"));
    }
    faults
}
