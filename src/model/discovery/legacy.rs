//! The entries of the documents from before aggregation (`meta/v1`).

use serde::{Deserialize, Serialize};

/// A resource, or as `<resource>/<name>` a subresource (`APIResource`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ApiResource {
    /// The plural name.
    pub name: String,
    /// The singular name.
    pub singular_name: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// The kind's group, where it is not the list's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The kind's version, where it is not the list's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The kind.
    pub kind: String,
    /// What can be done; `null` where nothing is said.
    pub verbs: Option<Vec<String>>,
    /// Names for the command line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub short_names: Vec<String>,
    /// The lists it is in, such as `all`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// Changes when objects are stored in another form.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub storage_version_hash: String,
}
