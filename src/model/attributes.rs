//! What an authorizer is asked about (`apiserver/pkg/authorization/authorizer`).

use std::borrow::Cow;

use super::request_info::RequestInfo;

/// Something that a user wants to do, in Kubernetes' terms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// Kubernetes' verb, or the lower-case method where `is_resource` is false.
    pub verb: Cow<'a, str>,
    /// False for discovery, health and every other path that names no resource.
    pub is_resource: bool,
    /// The decoded path; empty where the attributes are not a request's.
    pub path: &'a str,
    /// The API group; empty for the legacy core group.
    pub group: &'a str,
    /// The API version.
    pub version: &'a str,
    /// The namespace, empty for cluster scope.
    pub namespace: &'a str,
    /// The resource's plural name.
    pub resource: &'a str,
    /// The part after the name.
    pub subresource: &'a str,
    /// The object's name, empty for collections.
    pub name: &'a str,
}

impl<'a> From<&RequestInfo<'a>> for Attributes<'a> {
    fn from(info: &RequestInfo<'a>) -> Self {
        Self {
            verb: Cow::Borrowed(info.verb),
            is_resource: info.is_resource,
            path: info.path,
            group: info.group,
            version: info.version,
            namespace: info.namespace,
            resource: info.resource,
            subresource: info.subresource,
            name: info.name,
        }
    }
}
