//! The discovery documents that extension API servers send.
//!
//! What cannot be read, or would need much more memory than its size, is refused whole, with the
//! cause. Fields that are not known are passed over, as everywhere in Kubernetes.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::aggregated::{GroupVersionKind, Resource};
use super::legacy::ApiResource;
use super::null_is_default;

/// The largest aggregated document, in bytes: twice that of a cluster of 1,000 versions.
pub const AGGREGATED_BYTES_MAX: usize = 16 << 20;

/// The largest legacy document, that of one version, in bytes.
pub const LEGACY_BYTES_MAX: usize = 4 << 20;

/// The most objects in a document: `{}` becomes a hundred times its size.
pub const OBJECTS_MAX: usize = 200_000;

/// The most commas in a document, since a list's entry takes memory even when it is empty.
pub const COMMAS_MAX: usize = 2_000_000;

/// The deepest nesting of a document, in levels; an honest one has ten.
pub const DEPTH_MAX: usize = 64;

/// The most versions, of all groups together, in a document; each has its group's name.
pub const VERSIONS_MAX: usize = 10_000;

/// The longest name of a group, version or resource, in bytes: they are repeated in what is made of
/// them, and none that is longer can be asked for.
pub const NAME_BYTES_MAX: usize = 253;

/// How much of a faulty document is cited, in characters.
const CITED_CHARS_MAX: usize = 120;

const AGGREGATED_KIND: [&str; 2] = ["APIGroupDiscoveryList", "apidiscovery.k8s.io/v2"];
const LEGACY_KIND: [&str; 2] = ["APIResourceList", "v1"];

/// A version that a server says it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The group, empty for the core.
    pub group: String,
    /// The version.
    pub version: String,
    /// Its resources; each, and what is under it, has a response kind.
    pub resources: Vec<Resource>,
}

/// Why a document is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// More bytes than are read.
    #[error("the document has {bytes} bytes, more than {limit}")]
    TooLarge {
        /// The document's size.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// More entries than fit into reasonable memory.
    #[error("the document has {count} {what}, more than {limit}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// What is allowed.
        limit: usize,
    },
    /// Nested too deeply.
    #[error("the document is nested more than {limit} levels deep")]
    TooDeep {
        /// What is allowed.
        limit: usize,
    },
    /// A name that is too long.
    #[error("the name of a {what} has {bytes} bytes, more than {limit}")]
    NameTooLong {
        /// What it is the name of.
        what: &'static str,
        /// The name's length.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// It ends in the middle.
    #[error("the document is cut short at line {line}, column {column}")]
    CutShort {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// Not JSON, or a field of another type than it should have.
    #[error("the document cannot be read at line {line}, column {column}: {problem}")]
    Unreadable {
        /// The line, from 1.
        line: usize,
        /// The column.
        column: usize,
        /// What is wrong there.
        problem: String,
    },
    /// A document of another kind.
    #[error("the document is a {found}, not a {expected}")]
    WrongKind {
        /// Its kind and version.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// The resources of another version.
    #[error("the document is that of {found}, not of {expected}")]
    WrongVersion {
        /// The version it is of.
        found: String,
        /// What was asked for.
        expected: String,
    },
}

/// Reads an aggregated document (`apidiscovery.k8s.io/v2`), in its order.
///
/// Kind and version may be missing, since the content type says them. A response kind that is
/// missing is filled with an empty one (upstream: `handler_discovery.go`, for client-go 0.26). Of a
/// version that is there twice the last counts, as for upstream and client-go.
pub fn aggregated(body: &[u8]) -> Result<Vec<Found>, ParseError> {
    let list: AggregatedList = read(body, AGGREGATED_BYTES_MAX)?;
    check_kind([&list.kind, &list.api_version], AGGREGATED_KIND)?;
    let versions = list.items.iter().map(|group| group.versions.len()).sum();
    if versions > VERSIONS_MAX {
        return Err(ParseError::TooMany { what: "versions", count: versions, limit: VERSIONS_MAX });
    }
    let mut found: Vec<Found> = Vec::new();
    let mut places: HashMap<(String, String), usize> = HashMap::new();
    for group in list.items {
        let name = group.metadata.name;
        check_name("group", &name)?;
        for version in group.versions {
            check_name("version", &version.version)?;
            let mut resources = version.resources;
            for resource in &mut resources {
                check_name("resource", &resource.resource)?;
                fill(resource);
            }
            let place =
                *places.entry((name.clone(), version.version.clone())).or_insert(found.len());
            match found.get_mut(place) {
                Some(earlier) => earlier.resources = resources,
                None => {
                    found.push(Found { group: name.clone(), version: version.version, resources });
                }
            }
        }
    }
    Ok(found)
}

/// Reads the legacy document of one version, in its order.
///
/// Kind, version and `groupVersion` may be missing, but not wrong: a server that answers every path
/// with the same document must not get its resources listed under each. A document that says none
/// of them and has no resources is any answer of a server that knows no discovery, not an empty list.
pub fn legacy(body: &[u8], group: &str, version: &str) -> Result<Vec<ApiResource>, ParseError> {
    let list: LegacyList = read(body, LEGACY_BYTES_MAX)?;
    check_kind([&list.kind, &list.api_version], LEGACY_KIND)?;
    if list.kind.is_empty() && list.group_version.is_empty() && list.resources.is_empty() {
        let found = "document without kind and resources".to_owned();
        return Err(ParseError::WrongKind { found, expected: LEGACY_KIND.join(" of ") });
    }
    let expected = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    if !list.group_version.is_empty() && list.group_version != expected {
        return Err(ParseError::WrongVersion { found: cited(&list.group_version), expected });
    }
    for resource in &list.resources {
        for part in resource.name.splitn(2, '/') {
            check_name("resource", part)?;
        }
    }
    Ok(list.resources)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AggregatedList {
    #[serde(deserialize_with = "null_is_default")]
    kind: String,
    #[serde(deserialize_with = "null_is_default")]
    api_version: String,
    #[serde(deserialize_with = "null_is_default")]
    items: Vec<Group>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Group {
    #[serde(deserialize_with = "null_is_default")]
    metadata: Metadata,
    #[serde(deserialize_with = "null_is_default")]
    versions: Vec<Version>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    #[serde(deserialize_with = "null_is_default")]
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Version {
    #[serde(deserialize_with = "null_is_default")]
    version: String,
    #[serde(deserialize_with = "null_is_default")]
    resources: Vec<Resource>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct LegacyList {
    #[serde(deserialize_with = "null_is_default")]
    kind: String,
    #[serde(deserialize_with = "null_is_default")]
    api_version: String,
    #[serde(deserialize_with = "null_is_default")]
    group_version: String,
    #[serde(deserialize_with = "null_is_default")]
    resources: Vec<ApiResource>,
}

fn read<T: DeserializeOwned>(body: &[u8], bytes_max: usize) -> Result<T, ParseError> {
    if body.len() > bytes_max {
        return Err(ParseError::TooLarge { bytes: body.len(), limit: bytes_max });
    }
    Extent::of(body).check()?;
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        if error.is_eof() {
            return ParseError::CutShort { line, column };
        }
        let text = error.to_string();
        let place = format!(" at line {line} column {column}");
        let problem = cited(text.strip_suffix(&place).unwrap_or(&text));
        ParseError::Unreadable { line, column, problem }
    })
}

/// What a text will need once it is read; found without reading it, and whether or not it is JSON.
#[derive(Debug, Default)]
struct Extent {
    objects: usize,
    commas: usize,
    depth: usize,
}

impl Extent {
    fn of(text: &[u8]) -> Self {
        let mut extent = Self::default();
        let mut depth: usize = 0;
        let mut bytes = text.iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b'"' => skip_string(&mut bytes),
                b',' => extent.commas += 1,
                b'{' | b'[' => {
                    extent.objects += usize::from(*byte == b'{');
                    depth += 1;
                    extent.depth = extent.depth.max(depth);
                }
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        extent
    }

    fn check(&self) -> Result<(), ParseError> {
        if self.depth > DEPTH_MAX {
            return Err(ParseError::TooDeep { limit: DEPTH_MAX });
        }
        let counts =
            [("objects", self.objects, OBJECTS_MAX), ("list entries", self.commas, COMMAS_MAX)];
        for (what, count, limit) in counts {
            if count > limit {
                return Err(ParseError::TooMany { what, count, limit });
            }
        }
        Ok(())
    }
}

/// Past the end of the string that has begun.
fn skip_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            // What is escaped ends nothing.
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
}

fn check_kind(found: [&str; 2], expected: [&str; 2]) -> Result<(), ParseError> {
    let is_wrong = |(found, expected): (&str, &str)| !found.is_empty() && found != expected;
    if !found.into_iter().zip(expected).any(is_wrong) {
        return Ok(());
    }
    let [found_kind, found_version] = found.map(cited);
    let [kind, version] = expected;
    Err(ParseError::WrongKind {
        found: format!("{found_kind} of {found_version}"),
        expected: format!("{kind} of {version}"),
    })
}

fn check_name(what: &'static str, name: &str) -> Result<(), ParseError> {
    if name.len() > NAME_BYTES_MAX {
        let (bytes, limit) = (name.len(), NAME_BYTES_MAX);
        return Err(ParseError::NameTooLong { what, bytes, limit });
    }
    Ok(())
}

fn fill(resource: &mut Resource) {
    resource.response_kind.get_or_insert_with(GroupVersionKind::default);
    for subresource in &mut resource.subresources {
        subresource.response_kind.get_or_insert_with(GroupVersionKind::default);
    }
}

/// The beginning of what a server wrote, fit for one line of a log.
fn cited(text: &str) -> String {
    let mut chars = text.chars();
    let cited: String = chars
        .by_ref()
        .take(CITED_CHARS_MAX)
        .map(|char| if char.is_control() { '\u{fffd}' } else { char })
        .collect();
    if chars.next().is_some() { cited + "…" } else { cited }
}

#[cfg(test)]
mod tests;
