//! What the toys serve: groups, versions, resources, their columns and the shape of their objects.
//!
//! An object is decoded into its Rust type and written out again: that fills in defaults, drops
//! what is not known and finds wrong types, with one description of each kind.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::model::field_error::FieldError;
use crate::model::table::{Column, age};

/// The verbs of every resource here.
pub(crate) const VERBS: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const LAYERS_MAX: i64 = 10;
const CREATED: &str = "/metadata/creationTimestamp";

/// An API group with its versions, best first; every version serves the same objects.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: &'static str,
    /// Group and version, best first.
    pub(crate) versions: &'static [(&'static str, &'static str)],
    pub(crate) resources: &'static [Resource],
}

/// A resource and the kind of its objects.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) group: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) short_names: &'static [&'static str],
    pub(crate) categories: &'static [&'static str],
    pub(crate) namespaced: bool,
    pub(crate) columns: &'static [Column],
    /// Where each column's value is in the object.
    cells: &'static [&'static str],
    decode: fn(Value) -> Result<Decoded, serde_json::Error>,
    /// The OpenAPI schemas of `spec` and `status`.
    pub(crate) schema: fn() -> Value,
}

/// An object in its canonical form, with what is wrong in its spec.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) object: Value,
    pub(crate) errors: Vec<FieldError>,
}

impl Group {
    /// The names of the versions, best first.
    pub(crate) fn version_names(&self) -> impl Iterator<Item = &'static str> {
        self.versions.iter().map(|(_, version)| *version)
    }

    /// The resource of this plural name.
    pub(crate) fn resource(&self, plural: &str) -> Option<&'static Resource> {
        self.resources.iter().find(|resource| resource.plural == plural)
    }

    /// The version in which objects are kept.
    pub(crate) fn storage_version(&self) -> &'static str {
        self.version_names().next().unwrap_or_default()
    }
}

impl Resource {
    /// `<group>/<version>`.
    pub(crate) fn api_version(&self, version: &str) -> String {
        format!("{}/{version}", self.group)
    }

    /// The kind of lists.
    pub(crate) fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// `<plural>.<group>`, as messages name the resource.
    pub(crate) fn qualified(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }

    /// Reads an object strictly by type, filling in defaults.
    pub(crate) fn decode(&self, object: Value) -> Result<Decoded, serde_json::Error> {
        (self.decode)(object)
    }

    /// The cells of the object's row in a table.
    pub(crate) fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let cell = |pointer: &&str| match (*pointer, object.pointer(pointer)) {
            (CREATED, created) => {
                let created = created.and_then(Value::as_str).and_then(|text| text.parse().ok());
                age(created, now).into()
            }
            (_, Some(value)) => value.clone(),
            (_, None) => "".into(),
        };
        self.cells.iter().map(cell).collect()
    }
}

/// What a kind's spec has to tell beyond its fields.
trait Spec: Default + Serialize + DeserializeOwned {
    type Status: Serialize + DeserializeOwned;
    /// What is wrong with the values.
    fn errors(&self) -> Vec<FieldError>;
    /// The status of an object that has none.
    fn initial_status() -> Option<Self::Status>;
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Object<S, T> {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: S,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<T>,
}

fn decode<S: Spec>(object: Value) -> Result<Decoded, serde_json::Error>
where
    S::Status: Default,
{
    let mut typed: Object<S, S::Status> = serde_json::from_value(object)?;
    typed.status = typed.status.or_else(S::initial_status);
    Ok(Decoded { errors: typed.spec.errors(), object: serde_json::to_value(&typed)? })
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
struct CakeSpec {
    flavour: String,
    layers: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    decoration: Option<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct CakeStatus {
    baked: bool,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct OvenSpec {
    degrees: i64,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct BookSpec {
    title: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pages: Option<i64>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
struct NoStatus {}

impl Default for CakeSpec {
    fn default() -> Self {
        Self { flavour: String::new(), layers: 1, decoration: None }
    }
}

impl Spec for CakeSpec {
    type Status = CakeStatus;

    fn errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if self.flavour.is_empty() {
            errors.push(FieldError::required("spec.flavour", ""));
        }
        if !(1..=LAYERS_MAX).contains(&self.layers) {
            let detail = format!("must be between 1 and {LAYERS_MAX}, inclusive");
            errors.push(FieldError::invalid("spec.layers", &self.layers.into(), &detail));
        }
        errors
    }

    fn initial_status() -> Option<CakeStatus> {
        Some(CakeStatus::default())
    }
}

impl Spec for OvenSpec {
    type Status = NoStatus;

    fn errors(&self) -> Vec<FieldError> {
        let detail = "must be greater than or equal to 0";
        let below = || FieldError::invalid("spec.degrees", &self.degrees.into(), detail);
        (self.degrees < 0).then(below).into_iter().collect()
    }

    fn initial_status() -> Option<NoStatus> {
        None
    }
}

impl Spec for BookSpec {
    type Status = NoStatus;

    fn errors(&self) -> Vec<FieldError> {
        let missing = || FieldError::required("spec.title", "");
        self.title.is_empty().then(missing).into_iter().collect()
    }

    fn initial_status() -> Option<NoStatus> {
        None
    }
}

const fn column(
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    description: &'static str,
) -> Column {
    Column { name, kind, format, description, priority: 0 }
}

const NAME: Column = column("Name", "string", "name", "The object's name.");
const AGE: Column = column("Age", "string", "", "The time since the object was created.");

const CAKES: Resource = Resource {
    group: "bakery.example.com",
    kind: "Cake",
    plural: "cakes",
    singular: "cake",
    short_names: &["ck"],
    categories: &["all"],
    namespaced: true,
    columns: &[
        NAME,
        column("Flavour", "string", "", "What the cake tastes of."),
        column("Layers", "integer", "int64", "How many layers the cake has."),
        AGE,
    ],
    cells: &["/metadata/name", "/spec/flavour", "/spec/layers", CREATED],
    decode: decode::<CakeSpec>,
    schema: cake_schema,
};

const OVENS: Resource = Resource {
    group: "bakery.example.com",
    kind: "Oven",
    plural: "ovens",
    singular: "oven",
    short_names: &[],
    categories: &[],
    namespaced: false,
    columns: &[
        NAME,
        column("Degrees", "integer", "int64", "How hot the oven is, in degrees Celsius."),
        AGE,
    ],
    cells: &["/metadata/name", "/spec/degrees", CREATED],
    decode: decode::<OvenSpec>,
    schema: oven_schema,
};

const BOOKS: Resource = Resource {
    group: "library.example.com",
    kind: "Book",
    plural: "books",
    singular: "book",
    short_names: &["bk"],
    categories: &[],
    namespaced: true,
    columns: &[
        NAME,
        column("Title", "string", "", "The book's title."),
        column("Author", "string", "", "Who wrote the book."),
        AGE,
    ],
    cells: &["/metadata/name", "/spec/title", "/spec/author", CREATED],
    decode: decode::<BookSpec>,
    schema: book_schema,
};

/// The bakery's group.
pub(crate) static BAKERY: Group = Group {
    name: "bakery.example.com",
    versions: &[("bakery.example.com", "v1")],
    resources: &[CAKES, OVENS],
};

/// The library's group: the same books in two versions.
pub(crate) static LIBRARY: Group = Group {
    name: "library.example.com",
    versions: &[("library.example.com", "v1"), ("library.example.com", "v1beta1")],
    resources: &[BOOKS],
};

/// The objects that are there from the start: resource, namespace, name, spec.
pub(crate) fn samples(group: &Group) -> Vec<(&'static str, &'static str, &'static str, Value)> {
    if group.name == BAKERY.name {
        vec![
            ("cakes", "default", "birthday", json!({"flavour": "chocolate", "layers": 3})),
            (
                "cakes",
                "default",
                "wedding",
                json!({"flavour": "vanilla", "layers": 5, "decoration": "roses"}),
            ),
            ("ovens", "", "large", json!({"degrees": 180})),
            ("ovens", "", "small", json!({"degrees": 220})),
        ]
    } else {
        vec![
            (
                "books",
                "default",
                "emma",
                json!({"title": "Emma", "author": "Jane Austen", "pages": 474}),
            ),
            ("books", "default", "walden", json!({"title": "Walden", "author": "H. D. Thoreau"})),
        ]
    }
}

fn cake_schema() -> Value {
    json!({
        "spec": {
            "type": "object",
            "description": "What the cake shall be.",
            "required": ["flavour"],
            "properties": {
                "flavour": { "type": "string", "description": "What the cake tastes of." },
                "layers": {
                    "type": "integer", "format": "int64", "default": 1,
                    "minimum": 1, "maximum": LAYERS_MAX,
                    "description": "How many layers the cake has.",
                },
                "decoration": { "type": "string", "description": "What is on top." },
            },
        },
        "status": {
            "type": "object",
            "description": "What the cake is.",
            "properties": {
                "baked": {
                    "type": "boolean", "default": false,
                    "description": "Whether the cake is ready.",
                },
            },
        },
    })
}

fn oven_schema() -> Value {
    json!({
        "spec": {
            "type": "object",
            "description": "What the oven shall do.",
            "properties": {
                "degrees": {
                    "type": "integer", "format": "int64", "default": 0, "minimum": 0,
                    "description": "How hot the oven is, in degrees Celsius.",
                },
            },
        },
    })
}

fn book_schema() -> Value {
    json!({
        "spec": {
            "type": "object",
            "description": "What the book is.",
            "required": ["title"],
            "properties": {
                "title": { "type": "string", "description": "The book's title." },
                "author": { "type": "string", "description": "Who wrote the book." },
                "pages": {
                    "type": "integer", "format": "int64",
                    "description": "How many pages the book has.",
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spec: &Value, expected: &[&str]) {
        let errors = CAKES.decode(json!({ "spec": spec })).unwrap().errors;
        let texts: Vec<_> = errors.iter().map(|e| format!("{}: {}", e.field, e.text)).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn cakes_are_checked() {
        check(&json!({"flavour": "lemon"}), &[]);
        check(&json!({}), &["spec.flavour: Required value"]);
        check(
            &json!({"flavour": "lemon", "layers": 11}),
            &["spec.layers: Invalid value: 11: must be between 1 and 10, inclusive"],
        );
        let wrong = CAKES.decode(json!({"spec": {"flavour": "lemon", "layers": "x"}}));
        assert!(wrong.unwrap_err().to_string().contains("expected i64"));
    }

    #[test]
    fn defaults_are_filled_in() {
        let decoded = CAKES.decode(json!({"spec": {"flavour": "lemon"}})).unwrap();
        assert_eq!(decoded.object["spec"], json!({"flavour": "lemon", "layers": 1}));
        assert_eq!(decoded.object["status"], json!({"baked": false}));
    }

    #[test]
    fn rows_have_a_cell_for_every_column() {
        for resource in BAKERY.resources.iter().chain(LIBRARY.resources) {
            assert_eq!(resource.columns.len(), resource.cells.len(), "{}", resource.plural);
        }
    }
}
