//! One manifest file as text: YAML or JSON documents to objects.
//!
//! A document is read straight into its type as soon as its `apiVersion` and `kind` are known, so
//! that a fault is named with its line and column. Only what comes before them is kept aside.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, IntoDeserializer as _,
    MapAccess, Visitor,
};
use serde_json::Value;

use crate::store::{Kind, Object};

/// Documents in one file; the parser's own default is 1,024.
const DOCUMENTS_MAX: usize = 100_000;
/// Values in one file, enough for a dump of 50,000 objects.
const NODES_MAX: usize = 10_000_000;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Yaml,
    Json,
}

/// What a file holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// The objects of kinds that are stored, in order.
    pub objects: Vec<Object>,
    /// `apiVersion/kind` of the others.
    pub ignored: Vec<String>,
}

/// Why a file cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ParseError {
    /// The line, 0 when it is not known.
    pub line: u64,
    /// The column, 0 when it is not known.
    pub column: u64,
    /// The parser's words.
    pub reason: String,
}

/// Reads all documents of a file; one that is broken breaks the file.
pub fn parse(format: Format, text: &str) -> Result<Contents, ParseError> {
    let documents = match format {
        Format::Yaml => parse_yaml(text)?,
        Format::Json => parse_json(text)?,
    };
    let mut contents = Contents::default();
    for document in documents {
        contents.add(document, None)?;
    }
    Ok(contents)
}

fn parse_yaml(text: &str) -> Result<Vec<Document>, ParseError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: DOCUMENTS_MAX,
            max_nodes: NODES_MAX,
            max_events: NODES_MAX * 2,
        },
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let (line, column) =
            error.location().map_or((0, 0), |place| (place.line(), place.column()));
        ParseError { line, column, reason: error.to_string() }
    })
}

fn parse_json(text: &str) -> Result<Vec<Document>, ParseError> {
    let documents = serde_json::Deserializer::from_str(text).into_iter();
    documents.collect::<Result<_, _>>().map_err(|error| ParseError {
        line: u64::try_from(error.line()).unwrap_or_default(),
        column: u64::try_from(error.column()).unwrap_or_default(),
        reason: error.to_string(),
    })
}

impl Contents {
    /// `list`: the type of the list that holds the document.
    fn add(&mut self, document: Document, list: Option<&Type>) -> Result<(), ParseError> {
        match document {
            Document::Object(object) => self.objects.push(object),
            Document::List(name, items) => {
                for item in items {
                    self.add(item, Some(&name))?;
                }
            }
            Document::Other(name) => self.ignored.push(name.to_string()),
            Document::Untyped(fields) => {
                let item = list
                    .and_then(Type::item)
                    .ok_or_else(|| unplaced("an object has no apiVersion and kind".to_owned()))?;
                match item.stored() {
                    Some(kind) => self.objects.push(item_of(kind, fields)?),
                    None => self.ignored.push(item.to_string()),
                }
            }
            Document::Empty => {}
        }
        Ok(())
    }
}

fn unplaced(reason: String) -> ParseError {
    ParseError { line: 0, column: 0, reason }
}

/// Items of typed lists need not repeat their type.
fn item_of(kind: Kind, fields: Vec<(String, Value)>) -> Result<Object, ParseError> {
    let fields = Value::Object(fields.into_iter().collect());
    typed(kind, fields).map_err(|error: serde_json::Error| unplaced(error.to_string()))
}

fn typed<'de, D: Deserializer<'de>>(kind: Kind, deserializer: D) -> Result<Object, D::Error> {
    Ok(match kind {
        Kind::ApiService => Object::ApiService(Box::deserialize(deserializer)?),
        Kind::Service => Object::Service(Box::deserialize(deserializer)?),
        Kind::EndpointSlice => Object::EndpointSlice(Box::deserialize(deserializer)?),
        Kind::Endpoints => Object::Endpoints(Box::deserialize(deserializer)?),
    })
}

/// `apiVersion` and `kind`.
#[derive(Clone, Debug, Default)]
struct Type {
    api_version: String,
    kind: String,
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.api_version, self.kind)
    }
}

impl Type {
    fn is_known(&self) -> bool {
        !self.api_version.is_empty() && !self.kind.is_empty()
    }

    fn is_list(&self) -> bool {
        self.kind.ends_with("List")
    }

    /// The type of the items of a typed list.
    fn item(&self) -> Option<Self> {
        let kind = self.kind.strip_suffix("List").filter(|kind| !kind.is_empty())?;
        Some(Self { api_version: self.api_version.clone(), kind: kind.to_owned() })
    }

    fn stored(&self) -> Option<Kind> {
        match (self.api_version.as_str(), self.kind.as_str()) {
            ("apiregistration.k8s.io/v1", "APIService") => Some(Kind::ApiService),
            ("v1", "Service") => Some(Kind::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Kind::EndpointSlice),
            ("v1", "Endpoints") => Some(Kind::Endpoints),
            _ => None,
        }
    }
}

/// One document, or one item of a list.
#[derive(Debug)]
enum Document {
    Object(Object),
    List(Type, Vec<Self>),
    /// Of a kind that is not stored.
    Other(Type),
    /// Says neither what it is nor whose.
    Untyped(Vec<(String, Value)>),
    /// Nothing between two separators.
    Empty,
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DocumentVisitor)
    }
}

struct DocumentVisitor;

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with apiVersion and kind")
    }

    fn visit_unit<E>(self) -> Result<Document, E> {
        Ok(Document::Empty)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut name = Type::default();
        let mut items: Option<Vec<Document>> = None;
        let mut fields: Vec<(String, Value)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "apiVersion" => name.api_version = map.next_value()?,
                "kind" => name.kind = map.next_value()?,
                "items" if name.kind.is_empty() || name.is_list() => items = map.next_value()?,
                _ if name.is_known() => {
                    map.next_value::<IgnoredAny>()?;
                }
                _ => fields.push((key, map.next_value()?)),
            }
            if let Some(kind) = name.stored() {
                fields.push(("apiVersion".to_owned(), name.api_version.into()));
                fields.push(("kind".to_owned(), name.kind.into()));
                let chain = Chain { fields: fields.into_iter(), value: None, map };
                return Ok(Document::Object(typed(kind, MapAccessDeserializer::new(chain))?));
            }
        }
        Ok(match (name.is_known(), items) {
            (true, items) if name.is_list() => Document::List(name, items.unwrap_or_default()),
            (true, _) => Document::Other(name),
            (false, _) => Document::Untyped(fields),
        })
    }
}

/// The fields that were kept aside, then the rest of the map.
struct Chain<A> {
    fields: std::vec::IntoIter<(String, Value)>,
    value: Option<Value>,
    map: A,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Chain<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let Some((key, value)) = self.fields.next() else { return self.map.next_key_seed(seed) };
        self.value = Some(value);
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        match self.value.take() {
            Some(value) => seed.deserialize(value).map_err(A::Error::custom),
            None => self.map.next_value_seed(seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(format: Format, text: &str, names: &[&str], ignored: &[&str]) {
        let contents = parse(format, text).unwrap();
        let keys = contents.objects.iter().map(Object::key);
        let found: Vec<String> =
            keys.map(|key| format!("{} {}", key.kind.as_str(), key.name)).collect();
        assert_eq!(found, names);
        assert_eq!(contents.ignored, ignored);
    }

    #[test]
    fn documents_are_objects_lists_and_what_is_not_ours() {
        let yaml = "\
---
# nothing here
---
apiVersion: v1
kind: Service
metadata: {name: a}
spec: {ports: [{port: 443, targetPort: https}]}
---
metadata: {name: b, creationTimestamp: null}
spec: {group: g, version: v1, groupPriorityMinimum: 1, versionPriority: 1, caBundle: YWJj}
kind: APIService
apiVersion: apiregistration.k8s.io/v1
---
apiVersion: v1
kind: ConfigMap
items: 7
---
apiVersion: v1
items:
- {apiVersion: v1, kind: Endpoints, metadata: {name: c}}
- {apiVersion: v1, kind: Secret}
kind: List
metadata: {resourceVersion: \"\"}
";
        let names = ["Service a", "APIService b", "Endpoints c"];
        check(Format::Yaml, yaml, &names, &["v1/ConfigMap", "v1/Secret"]);
        check(Format::Yaml, "", &[], &[]);
        check(Format::Yaml, "# only a comment\n", &[], &[]);
    }

    #[test]
    fn items_of_typed_lists_need_no_type() {
        let json = r#"{"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "items": [
            {"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": []}]}
            {"kind": "PodList", "apiVersion": "v1", "items": [{"metadata": {"name": "p"}}]}
            {"kind": "ServiceList", "apiVersion": "v1", "items": null}"#;
        check(Format::Json, json, &["EndpointSlice a"], &["v1/Pod"]);
    }

    #[track_caller]
    fn check_broken(format: Format, text: &str, line: u64, reason: &str) {
        let error = parse(format, text).unwrap_err();
        assert!(error.reason.contains(reason), "{error:?}");
        assert_eq!(error.line, line, "{error:?}");
    }

    #[test]
    fn faults_are_named_with_their_place() {
        let service = "apiVersion: v1\nkind: Service\n";
        check_broken(Format::Yaml, &format!("{service}spec: {{ports: [\n"), 3, "");
        let port = format!("{service}spec:\n  ports:\n  - port: many\n");
        check_broken(Format::Yaml, &port, 5, "");
        let twice = format!("{service}spec: {{}}\nspec: {{}}\n");
        check_broken(Format::Yaml, &twice, 4, "duplicate");
        check_broken(Format::Yaml, "just text\n", 0, "apiVersion and kind");
        check_broken(Format::Yaml, "metadata: {name: a}\n", 0, "no apiVersion and kind");
        let json = "{\"apiVersion\": \"v1\", \"kind\": \"Service\",\n \"spec\": 1}";
        check_broken(Format::Json, json, 2, "invalid type");
    }
}
