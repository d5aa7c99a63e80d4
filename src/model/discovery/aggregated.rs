//! The entries of an aggregated document (`apidiscovery.k8s.io/v2`).

use serde::{Deserialize, Serialize};

use super::null_is_default;

/// Whether a version's resources were learnt from its server the last time it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Freshness {
    /// They were.
    Current,
    /// The server failed; what is listed is from before.
    Stale,
}

/// Whether objects of a resource live in namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// They do not.
    #[default]
    Cluster,
    /// They do.
    Namespaced,
}

/// A kind; group and version are empty where they are those of the version it is listed in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupVersionKind {
    /// The group.
    #[serde(deserialize_with = "null_is_default")]
    pub group: String,
    /// The version.
    #[serde(deserialize_with = "null_is_default")]
    pub version: String,
    /// The kind.
    #[serde(deserialize_with = "null_is_default")]
    pub kind: String,
}

/// A resource (`APIResourceDiscovery`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Resource {
    /// The plural name.
    #[serde(deserialize_with = "null_is_default")]
    pub resource: String,
    /// What requests to it are answered with; client-go drops resources without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_kind: Option<GroupVersionKind>,
    /// Namespaced or not.
    #[serde(deserialize_with = "null_is_default")]
    pub scope: Scope,
    /// The singular name.
    #[serde(deserialize_with = "null_is_default")]
    pub singular_resource: String,
    /// What can be done; `null` where nothing is said.
    pub verbs: Option<Vec<String>>,
    /// Names for the command line.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub short_names: Vec<String>,
    /// The lists it is in, such as `all`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub categories: Vec<String>,
    /// What is under its objects.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub subresources: Vec<Subresource>,
}

/// A subresource (`APISubresourceDiscovery`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Subresource {
    /// The name, such as `status`.
    #[serde(deserialize_with = "null_is_default")]
    pub subresource: String,
    /// What requests to it are answered with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_kind: Option<GroupVersionKind>,
    /// What it takes besides that.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub accepted_types: Vec<GroupVersionKind>,
    /// What can be done.
    pub verbs: Option<Vec<String>>,
}
