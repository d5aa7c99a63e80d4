//! Discovery documents in Kubernetes' protobuf encoding.
//!
//! Made of the JSON documents, so that both say the same. Messages are those of
//! `apimachinery/pkg/apis/meta/v1/generated.proto` and `api/apidiscovery/v2/generated.proto`, and the
//! bytes are what kube-apiserver writes: fields that are no pointers are always there, even empty.

use std::borrow::Cow;

use prost::Message;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::null_is_default;

/// What begins every document (`apimachinery/pkg/runtime/serializer/protobuf`).
const MAGIC: &[u8] = b"k8s\0";

/// The keys of `typeMeta` and `raw` in `runtime.Unknown`: fields 1 and 2, each with its length.
const TYPE_META: u8 = 0x0a;
const RAW: u8 = 0x12;

/// `contentEncoding` and `contentType`, fields 3 and 4 of `runtime.Unknown`, both empty.
const NO_CONTENT_TYPE: &[u8] = &[0x1a, 0, 0x22, 0];

/// The version of the aggregated document, whose kind no other may have.
const AGGREGATED_VERSION: &str = "apidiscovery.k8s.io/v2";

/// Why a document was not encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// It is not the JSON of such a document.
    #[error("the document cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// It is no discovery document.
    #[error("there is no protobuf encoding of {kind} of {api_version:?} here")]
    UnknownKind {
        /// The document's kind.
        kind: String,
        /// The document's version.
        api_version: String,
    },
}

/// The same document in protobuf, in the envelope that Kubernetes puts around it.
///
/// Known are `APIVersions`, `APIGroupList`, `APIGroup`, `APIResourceList` and
/// `APIGroupDiscoveryList`.
pub fn encode(json: &[u8]) -> Result<Vec<u8>, EncodeError> {
    let head: Head<'_> = serde_json::from_slice(json)?;
    let raw = match (&*head.kind, &*head.api_version) {
        // `/api` is written without a version.
        ("APIVersions", "" | "v1") => message::<ApiVersions>(json)?,
        ("APIGroupList", "v1") => message::<ApiGroupList>(json)?,
        ("APIGroup", "v1") => message::<ApiGroup>(json)?,
        ("APIResourceList", "v1") => message::<ApiResourceList>(json)?,
        ("APIGroupDiscoveryList", AGGREGATED_VERSION) => message::<GroupDiscoveryList>(json)?,
        (kind, api_version) => {
            let (kind, api_version) = (kind.to_owned(), api_version.to_owned());
            return Err(EncodeError::UnknownKind { kind, api_version });
        }
    };
    let type_meta =
        TypeMeta { api_version: head.api_version.into_owned(), kind: head.kind.into_owned() }
            .encode_length_delimited_to_vec();
    let parts = [MAGIC, &[TYPE_META], &*type_meta, &[RAW], &*raw, NO_CONTENT_TYPE];
    Ok(parts.concat())
}

/// The document as the message it is, its length before it.
fn message<M: Message + DeserializeOwned>(json: &[u8]) -> Result<Vec<u8>, EncodeError> {
    Ok(serde_json::from_slice::<M>(json)?.encode_length_delimited_to_vec())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeMeta {
    #[prost(string, required, tag = 1)]
    api_version: String,
    #[prost(string, required, tag = 2)]
    kind: String,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ApiVersions {
    #[prost(string, repeated, tag = 1)]
    #[serde(default, deserialize_with = "null_is_default")]
    versions: Vec<String>,
    #[prost(message, repeated, tag = 2)]
    #[serde(default, rename = "serverAddressByClientCIDRs", deserialize_with = "null_is_default")]
    server_addresses: Vec<ServerAddressByClientCidr>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
struct ServerAddressByClientCidr {
    #[prost(string, required, tag = 1)]
    #[serde(rename = "clientCIDR")]
    client_cidr: String,
    #[prost(string, required, tag = 2)]
    #[serde(rename = "serverAddress")]
    server_address: String,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
struct ApiGroupList {
    #[prost(message, repeated, tag = 1)]
    #[serde(deserialize_with = "null_is_default")]
    groups: Vec<ApiGroup>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ApiGroup {
    #[prost(string, required, tag = 1)]
    name: String,
    #[prost(message, repeated, tag = 2)]
    #[serde(deserialize_with = "null_is_default")]
    versions: Vec<GroupVersionForDiscovery>,
    #[prost(message, required, tag = 3)]
    #[serde(default, deserialize_with = "null_is_default")]
    preferred_version: GroupVersionForDiscovery,
    #[prost(message, repeated, tag = 4)]
    #[serde(default, rename = "serverAddressByClientCIDRs", deserialize_with = "null_is_default")]
    server_addresses: Vec<ServerAddressByClientCidr>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GroupVersionForDiscovery {
    #[prost(string, required, tag = 1)]
    group_version: String,
    #[prost(string, required, tag = 2)]
    version: String,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ApiResourceList {
    #[prost(string, required, tag = 1)]
    group_version: String,
    #[prost(message, repeated, tag = 2)]
    #[serde(deserialize_with = "null_is_default")]
    resources: Vec<ApiResource>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ApiResource {
    #[prost(string, required, tag = 1)]
    name: String,
    #[prost(bool, required, tag = 2)]
    namespaced: bool,
    #[prost(string, required, tag = 3)]
    kind: String,
    #[prost(message, optional, tag = 4)]
    verbs: Option<Verbs>,
    #[prost(string, repeated, tag = 5)]
    #[serde(deserialize_with = "null_is_default")]
    short_names: Vec<String>,
    #[prost(string, required, tag = 6)]
    singular_name: String,
    #[prost(string, repeated, tag = 7)]
    #[serde(deserialize_with = "null_is_default")]
    categories: Vec<String>,
    #[prost(string, required, tag = 8)]
    group: String,
    #[prost(string, required, tag = 9)]
    version: String,
    #[prost(string, required, tag = 10)]
    storage_version_hash: String,
}

/// A list that may be missing, which no repeated field can say.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(transparent)]
struct Verbs {
    #[prost(string, repeated, tag = 1)]
    items: Vec<String>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
struct GroupDiscoveryList {
    #[prost(message, required, tag = 1)]
    #[serde(skip)]
    metadata: ListMeta,
    #[prost(message, repeated, tag = 2)]
    #[serde(deserialize_with = "null_is_default")]
    items: Vec<GroupDiscovery>,
}

/// Empty, but its fields are written.
#[derive(Clone, PartialEq, Message)]
struct ListMeta {
    #[prost(string, required, tag = 1)]
    self_link: String,
    #[prost(string, required, tag = 2)]
    resource_version: String,
    #[prost(string, required, tag = 3)]
    continue_token: String,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
struct GroupDiscovery {
    #[prost(message, required, tag = 1)]
    metadata: ObjectMeta,
    #[prost(message, repeated, tag = 2)]
    #[serde(default, deserialize_with = "null_is_default")]
    versions: Vec<VersionDiscovery>,
}

/// All of it but the name is empty, yet written.
#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
struct ObjectMeta {
    #[prost(string, required, tag = 1)]
    name: String,
    #[prost(string, required, tag = 2)]
    #[serde(skip)]
    generate_name: String,
    #[prost(string, required, tag = 3)]
    #[serde(skip)]
    namespace: String,
    #[prost(string, required, tag = 4)]
    #[serde(skip)]
    self_link: String,
    #[prost(string, required, tag = 5)]
    #[serde(skip)]
    uid: String,
    #[prost(string, required, tag = 6)]
    #[serde(skip)]
    resource_version: String,
    #[prost(int64, required, tag = 7)]
    #[serde(skip)]
    generation: i64,
    #[prost(message, required, tag = 8)]
    #[serde(skip)]
    creation_timestamp: (),
}

#[derive(Clone, PartialEq, Message, Deserialize)]
struct VersionDiscovery {
    #[prost(string, required, tag = 1)]
    version: String,
    #[prost(message, repeated, tag = 2)]
    #[serde(default, deserialize_with = "null_is_default")]
    resources: Vec<ResourceDiscovery>,
    #[prost(string, required, tag = 3)]
    #[serde(default)]
    freshness: String,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ResourceDiscovery {
    #[prost(string, required, tag = 1)]
    resource: String,
    #[prost(message, optional, tag = 2)]
    response_kind: Option<GroupVersionKind>,
    #[prost(string, required, tag = 3)]
    scope: String,
    #[prost(string, required, tag = 4)]
    singular_resource: String,
    #[prost(string, repeated, tag = 5)]
    #[serde(deserialize_with = "null_is_default")]
    verbs: Vec<String>,
    #[prost(string, repeated, tag = 6)]
    #[serde(deserialize_with = "null_is_default")]
    short_names: Vec<String>,
    #[prost(string, repeated, tag = 7)]
    #[serde(deserialize_with = "null_is_default")]
    categories: Vec<String>,
    #[prost(message, repeated, tag = 8)]
    #[serde(deserialize_with = "null_is_default")]
    subresources: Vec<SubresourceDiscovery>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SubresourceDiscovery {
    #[prost(string, required, tag = 1)]
    subresource: String,
    #[prost(message, optional, tag = 2)]
    response_kind: Option<GroupVersionKind>,
    #[prost(message, repeated, tag = 3)]
    #[serde(deserialize_with = "null_is_default")]
    accepted_types: Vec<GroupVersionKind>,
    #[prost(string, repeated, tag = 4)]
    #[serde(deserialize_with = "null_is_default")]
    verbs: Vec<String>,
}

#[derive(Clone, PartialEq, Message, Deserialize)]
#[serde(default)]
struct GroupVersionKind {
    #[prost(string, required, tag = 1)]
    group: String,
    #[prost(string, required, tag = 2)]
    version: String,
    #[prost(string, required, tag = 3)]
    kind: String,
}

#[cfg(test)]
mod tests;
