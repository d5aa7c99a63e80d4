//! What an authorizer is asked about (`apiserver/pkg/authorization/authorizer`).

use std::borrow::Cow;

use super::query;
use super::request_info::RequestInfo;
use super::selector::{LabelSelector, SelectorRequirement, field_requirements};

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
    /// What narrows a collection; none where it is not known or there is nothing.
    pub selection: Option<&'a Selection>,
}

/// What narrows a request for a collection, as far as it can be understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Requirements on fields; empty when the selector cannot be understood.
    pub fields: Vec<SelectorRequirement>,
    /// Requirements on labels; empty when the selector cannot be understood.
    pub labels: Vec<SelectorRequirement>,
    /// The one object that a list or watch is about, named by the field selector.
    pub name: Option<String>,
}

impl Selection {
    /// What the query narrows a request for a collection by; `None` for other requests and when there
    /// is nothing.
    pub fn of(info: &RequestInfo<'_>, query: Option<&str>) -> Option<Self> {
        let named = match info.verb {
            "list" | "watch" => info.name.is_empty(),
            "deletecollection" => false,
            _ => return None,
        };
        let text = |key| query::first(query, key).filter(|text| !text.is_empty());
        let (fields, labels) = (text("fieldSelector"), text("labelSelector"));
        if fields.is_none() && labels.is_none() {
            return None;
        }
        let fields = fields.and_then(|text| field_requirements(&text)).unwrap_or_default();
        let labels = labels.map(|text| LabelSelector::parse(&text));
        // Upstream names nothing when it cannot read all of the query.
        let name = match &labels {
            Some(Err(_)) => None,
            Some(Ok(_)) | None => exact_name(&fields).filter(|_| named).map(str::to_owned),
        };
        let labels = labels.and_then(Result::ok).map(|labels| labels.requirements());
        Some(Self { fields, labels: labels.unwrap_or_default(), name })
    }
}

/// The name that `metadata.name=<name>` requires, where it can be part of a path.
fn exact_name(fields: &[SelectorRequirement]) -> Option<&str> {
    let exact = |it: &&SelectorRequirement| it.key == "metadata.name" && it.operator == "In";
    let name = fields.iter().find(exact)?.values.first()?;
    let fits = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '%']);
    fits.then_some(name)
}

impl<'a> Attributes<'a> {
    /// The same, narrowed.
    #[must_use]
    pub fn narrowed(mut self, selection: Option<&'a Selection>) -> Self {
        if let Some(name) = selection.and_then(|selection| selection.name.as_deref()) {
            self.name = name;
        }
        self.selection = selection;
        self
    }
}

impl<'a> From<&RequestInfo<'a>> for Attributes<'a> {
    fn from(info: &RequestInfo<'a>) -> Self {
        // Of a path the authorizer hears the method in lower case, whatever method it is.
        let verb = if !info.is_resource && info.verb.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(info.verb.to_ascii_lowercase())
        } else {
            Cow::Borrowed(info.verb)
        };
        Self {
            verb,
            is_resource: info.is_resource,
            path: info.path,
            group: info.group,
            version: info.version,
            namespace: info.namespace,
            resource: info.resource,
            subresource: info.subresource,
            name: info.name,
            selection: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[track_caller]
    fn check(method: &Method, path: &str, query: &str, expected: Option<(usize, usize, &str)>) {
        let info = RequestInfo::parse(method, path, Some(query)).unwrap();
        let selection = Selection::of(&info, Some(query));
        let got = selection.as_ref().map(|it| {
            let name = Attributes::from(&info).narrowed(selection.as_ref()).name;
            (it.fields.len(), it.labels.len(), name)
        });
        assert_eq!(got, expected, "{method} {path}?{query}");
    }

    #[test]
    fn the_verb_of_a_path_is_its_method_in_lower_case_whatever_that_is() {
        let verb = |method: &str, path| {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let info = RequestInfo::parse(&method, path, None).unwrap();
            Attributes::from(&info).verb.into_owned()
        };
        assert_eq!(verb("OPTIONS", "/apis"), "options");
        assert_eq!(verb("PROPFIND", "/apis"), "propfind");
        assert_eq!(verb("PROPFIND", "/apis/g/v1/things"), "");
    }

    #[test]
    fn collections_are_narrowed_by_what_can_be_understood_and_one_name_is_taken_out() {
        let (get, delete) = (&Method::GET, &Method::DELETE);
        let things = "/apis/g/v1/things";
        check(get, things, "limit=5", None);
        check(get, things, "fieldSelector=&labelSelector=", None);
        check(get, things, "fieldSelector=metadata.name%3Da", Some((1, 0, "a")));
        check(get, things, "watch=1&fieldSelector=metadata.name%3Da", Some((1, 0, "a")));
        check(delete, things, "fieldSelector=metadata.name%3Da", Some((1, 0, "")));
        check(get, things, "fieldSelector=metadata.name!%3Da", Some((1, 0, "")));
        check(get, things, "fieldSelector=metadata.name%3D..", Some((1, 0, "")));
        check(get, things, "fieldSelector=metadata.name%3Da%252fb", Some((1, 0, "")));
        check(get, things, "labelSelector=a,b", Some((0, 2, "")));
        check(get, things, "labelSelector=a(&fieldSelector=metadata.name%3Da", Some((1, 0, "")));
        check(get, things, "fieldSelector=what", Some((0, 0, "")));
        check(get, "/apis/g/v1/things/a", "labelSelector=a", None);
        check(get, "/apis", "labelSelector=a", None);
    }
}
