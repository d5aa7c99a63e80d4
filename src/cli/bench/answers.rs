//! What a right answer is: status, media type, and a document that is whole. A document is parsed
//! once for each of its ETags (without one: its checksum), and from then on known by its length.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex};

use flate2::read::GzDecoder;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::client::{Body, Fault, Head};

/// client-go's Accept for the merged document alone.
pub(super) const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// For all other documents.
pub(super) const JSON: &str = "application/json";

/// A document's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Document {
    /// APIGroupDiscoveryList.
    Aggregated,
    /// APIGroupList.
    Groups,
    /// APIVersions.
    Versions,
    /// APIResourceList.
    Resources,
}

impl Document {
    fn kind(self) -> &'static str {
        match self {
            Self::Aggregated => "APIGroupDiscoveryList",
            Self::Groups => "APIGroupList",
            Self::Versions => "APIVersions",
            Self::Resources => "APIResourceList",
        }
    }
}

/// What an aggregated document or a list of groups holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// API groups.
    pub(super) groups: usize,
    /// Their versions, as `<group>/<version>`.
    pub(super) group_versions: Vec<String>,
    /// Versions whose freshness is Stale.
    pub(super) stale: usize,
    /// Resources, subresources not counted.
    pub(super) resources: usize,
    /// Bytes of its JSON.
    pub(super) bytes: usize,
}

/// What is known of the answers of one target.
#[derive(Debug, Default)]
pub(super) struct Answers {
    known: Mutex<HashMap<(Document, String, bool), Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    etag: Option<HeaderValue>,
    length: u64,
    checksum: u32,
    contents: Arc<Contents>,
}

impl Answers {
    /// Whether the body of this answer has to be looked at.
    pub(super) fn is_new(&self, document: Document, path: &str, head: &Head) -> bool {
        let known = self.known(document, path, head.is_gzip());
        // Without an ETag each body's checksum is compared.
        head.etag().is_none() || known.is_none_or(|known| known.etag.as_ref() != head.etag())
    }

    /// Checks an answer that should carry a document.
    pub(super) fn check(
        &self,
        document: Document,
        path: &str,
        head: &Head,
        body: &Body,
    ) -> Result<(), Fault> {
        check_head(document, head)?;
        let Some(bytes) = &body.kept else {
            let known = self.known(document, path, head.is_gzip());
            return match known {
                Some(known) if known.length == body.length => Ok(()),
                _ => Err(Fault("another length than before under the same ETag".to_owned())),
            };
        };
        let checksum = crc32fast::hash(bytes);
        let known = self.known(document, path, head.is_gzip());
        if known.is_some_and(|known| known.checksum == checksum && known.length == body.length) {
            return Ok(());
        }
        let contents = if head.is_gzip() {
            let mut plain = Vec::new();
            let unpacked = GzDecoder::new(bytes.as_slice()).read_to_end(&mut plain);
            unpacked.map_err(|error| Fault::new("gzip", error))?;
            parse(document, &plain)?
        } else {
            parse(document, bytes)?
        };
        let etag = head.etag().cloned();
        let contents = Arc::new(contents);
        let known = Known { etag, length: body.length, checksum, contents };
        if let Ok(mut all) = self.known.lock() {
            all.insert((document, path.to_owned(), head.is_gzip()), known);
        }
        Ok(())
    }

    /// The ETag of the last document of this kind.
    pub(super) fn etag(&self, document: Document, path: &str) -> Option<HeaderValue> {
        let plain = self.known(document, path, false).or_else(|| self.known(document, path, true));
        plain.and_then(|known| known.etag)
    }

    /// What the last document of this kind holds.
    pub(super) fn contents(&self, document: Document, path: &str) -> Option<Arc<Contents>> {
        let plain = self.known(document, path, false).or_else(|| self.known(document, path, true));
        plain.map(|known| known.contents)
    }

    /// Whether the last answer to a reader that takes gzip was plain.
    pub(super) fn gzip_is_missing(&self, document: Document, path: &str) -> bool {
        self.known(document, path, true).is_none()
    }

    fn known(&self, document: Document, path: &str, gzip: bool) -> Option<Known> {
        let known = self.known.lock().ok()?;
        known.get(&(document, path.to_owned(), gzip)).cloned()
    }
}

fn check_head(document: Document, head: &Head) -> Result<(), Fault> {
    if head.status != StatusCode::OK {
        return Err(Fault(format!("answered {}", head.status)));
    }
    let mut parts = head.content_type().split(';').map(str::trim);
    let is_json = parts.next() == Some("application/json");
    let is_aggregated = parts.any(|parameter| parameter == "as=APIGroupDiscoveryList");
    if !is_json || is_aggregated != (document == Document::Aggregated) {
        let (found, wanted) = (head.content_type(), document.kind());
        return Err(Fault(format!("content type {found:?} instead of JSON of {wanted}")));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Any {
    kind: String,
    #[serde(default)]
    items: Vec<AnyGroup>,
    #[serde(default)]
    groups: Vec<ListedGroup>,
    #[serde(default)]
    resources: Option<Vec<IgnoredAny>>,
    #[serde(default)]
    versions: Vec<String>,
}

#[derive(Deserialize)]
struct AnyGroup {
    #[serde(default)]
    metadata: Name,
    #[serde(default)]
    versions: Vec<AnyVersion>,
}

#[derive(Default, Deserialize)]
struct Name {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct AnyVersion {
    version: String,
    #[serde(default)]
    resources: Vec<IgnoredAny>,
    #[serde(default)]
    freshness: String,
}

#[derive(Deserialize)]
struct ListedGroup {
    versions: Vec<ListedVersion>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedVersion {
    group_version: String,
}

fn parse(document: Document, json: &[u8]) -> Result<Contents, Fault> {
    let any: Any = serde_json::from_slice(json).map_err(|error| Fault::new("JSON", error))?;
    if any.kind != document.kind() {
        return Err(Fault(format!("kind {:?} instead of {}", any.kind, document.kind())));
    }
    let mut contents = Contents { bytes: json.len(), ..Contents::default() };
    match document {
        Document::Aggregated => {
            contents.groups = any.items.len();
            for AnyGroup { metadata, versions } in any.items {
                for AnyVersion { version, resources, freshness } in versions {
                    contents.group_versions.push(format!("{}/{version}", metadata.name));
                    contents.stale += usize::from(freshness == "Stale");
                    contents.resources += resources.len();
                }
            }
        }
        Document::Groups => {
            contents.groups = any.groups.len();
            let versions = any.groups.into_iter().flat_map(|group| group.versions);
            contents.group_versions = versions.map(|version| version.group_version).collect();
        }
        Document::Versions => contents.group_versions = any.versions,
        Document::Resources => contents.resources = any.resources.map_or(0, |all| all.len()),
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use http::header::{CONTENT_TYPE, ETAG};

    use super::*;

    fn head(status: u16, content_type: &str, etag: Option<&str>) -> Head {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
        if let Some(etag) = etag {
            headers.insert(ETAG, etag.parse().unwrap());
        }
        Head { status: StatusCode::from_u16(status).unwrap(), headers }
    }

    fn body(text: &str) -> Body {
        Body { length: text.len() as u64, kept: Some(text.as_bytes().to_vec()) }
    }

    const DOCUMENT: &str = r#"{"kind":"APIGroupDiscoveryList","items":[{"metadata":{"name":"g"},
        "versions":[{"version":"v1","resources":[{},{}],"freshness":"Current"},
        {"version":"v2","freshness":"Stale"}]}]}"#;

    #[test]
    fn a_document_is_looked_at_once_for_each_etag() {
        let answers = Answers::default();
        let first = head(200, AGGREGATED, Some("\"1\""));
        let check = |head: &Head, body: &Body| {
            answers.check(Document::Aggregated, "/apis", head, body).map_err(|fault| fault.0)
        };
        assert!(answers.is_new(Document::Aggregated, "/apis", &first));
        assert_eq!(check(&first, &body(DOCUMENT)), Ok(()));
        assert!(!answers.is_new(Document::Aggregated, "/apis", &first));
        let whole = Body { length: DOCUMENT.len() as u64, kept: None };
        assert_eq!(check(&first, &whole), Ok(()));
        let cut = Body { length: 7, kept: None };
        assert!(check(&first, &cut).unwrap_err().contains("another length"));
        let second = head(200, AGGREGATED, Some("\"2\""));
        assert!(answers.is_new(Document::Aggregated, "/apis", &second));
        let contents = answers.contents(Document::Aggregated, "/apis").unwrap();
        assert_eq!((contents.groups, contents.stale, contents.resources), (1, 1, 2));
        assert_eq!(contents.group_versions, ["g/v1", "g/v2"]);
    }

    #[test]
    fn without_an_etag_every_body_is_looked_at() {
        let answers = Answers::default();
        let head = head(200, JSON, None);
        let list =
            body(r#"{"kind":"APIGroupList","groups":[{"versions":[{"groupVersion":"g/v1"}]}]}"#);
        for _ in 0..2 {
            assert!(answers.is_new(Document::Groups, "/apis", &head));
            assert_eq!(answers.check(Document::Groups, "/apis", &head, &list), Ok(()));
        }
        let cut = body(r#"{"kind":"APIGroupList","groups":["#);
        assert!(answers.check(Document::Groups, "/apis", &head, &cut).is_err());
    }

    #[test]
    fn wrong_answers_are_told_apart() {
        for (document, head, text, reason) in [
            (Document::Aggregated, head(503, AGGREGATED, None), "", "answered 503"),
            (Document::Aggregated, head(200, JSON, None), DOCUMENT, "content type"),
            (Document::Groups, head(200, AGGREGATED, None), DOCUMENT, "content type"),
            (Document::Groups, head(200, JSON, None), "{\"kind\":\"Status\"}", "kind \"Status\""),
            (Document::Resources, head(200, JSON, None), "{", "JSON"),
        ] {
            let answer = Answers::default().check(document, "/", &head, &body(text));
            let fault = answer.unwrap_err().0;
            assert!(fault.contains(reason), "{fault}");
        }
    }
}
