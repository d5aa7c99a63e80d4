//! The entries of the documents from before aggregation (`meta/v1`).

use serde::{Deserialize, Serialize};

use super::null_is_default;

/// A resource, or as `<resource>/<name>` a subresource (`APIResource`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ApiResource {
    /// The plural name.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// The singular name.
    #[serde(deserialize_with = "null_is_default")]
    pub singular_name: String,
    /// Whether its objects live in namespaces.
    #[serde(deserialize_with = "null_is_default")]
    pub namespaced: bool,
    /// The kind's group, where it is not the list's.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub group: String,
    /// The kind's version, where it is not the list's.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub version: String,
    /// The kind.
    #[serde(deserialize_with = "null_is_default")]
    pub kind: String,
    /// What can be done; `null` where nothing is said.
    pub verbs: Option<Vec<String>>,
    /// Names for the command line.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub short_names: Vec<String>,
    /// The lists it is in, such as `all`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub categories: Vec<String>,
    /// Changes when objects are stored in another form.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null_is_default")]
    pub storage_version_hash: String,
}
