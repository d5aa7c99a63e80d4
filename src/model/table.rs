//! Tables, as `kubectl get` prints them, and objects reduced to their metadata.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::query::Query;
use super::rejection::Rejection;

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// The heading, which kubectl prints in capitals.
    pub name: &'static str,
    /// The OpenAPI type: `string`, `integer`, `boolean`.
    pub kind: &'static str,
    /// The OpenAPI format; `name` marks the column of names.
    pub format: &'static str,
    /// What the column shows.
    pub description: &'static str,
    /// Zero is always shown; higher ones only with `-o wide`.
    pub priority: u8,
}

/// What a row carries of its object besides the cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// The metadata, which kubectl needs for labels and namespaces.
    Metadata,
    /// Everything.
    Object,
}

impl IncludeObject {
    /// Reads `?includeObject=`.
    pub fn parse(query: &Query) -> Result<Self, Rejection> {
        match query.text("includeObject") {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => {
                Err(Rejection::BadRequest(format!("unrecognized includeObject value: {other:?}")))
            }
        }
    }
}

/// One row: the cells in order of the columns, and the object they were made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Row<'a> {
    /// The cells.
    pub cells: Vec<Value>,
    /// The object, with kind and apiVersion.
    pub object: &'a Value,
}

/// A `meta.k8s.io/v1` Table. `metadata` is that of the list (or `{"resourceVersion"}` of the one
/// object); `columns` is `None` in every watch event but the first.
pub fn table<'a>(
    columns: Option<&[Column]>,
    metadata: &Value,
    rows: impl IntoIterator<Item = Row<'a>>,
    include: IncludeObject,
) -> Value {
    let definitions: Vec<Value> = columns.unwrap_or_default().iter().map(definition).collect();
    let rows: Vec<Value> = rows
        .into_iter()
        .map(|row| {
            let object = match include {
                IncludeObject::None => Value::Null,
                IncludeObject::Metadata => partial_object(row.object),
                IncludeObject::Object => row.object.clone(),
            };
            json!({ "cells": row.cells, "object": object })
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

/// An object reduced to its metadata.
pub fn partial_object(object: &Value) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| Map::new().into());
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
    })
}

/// A list of objects reduced to their metadata.
pub fn partial_list<'a>(metadata: &Value, objects: impl IntoIterator<Item = &'a Value>) -> Value {
    let items: Vec<Value> = objects.into_iter().map(partial_object).collect();
    json!({
        "kind": "PartialObjectMetadataList",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "items": items,
    })
}

/// The age of what was made at `created`, as kubectl prints it.
pub fn age(created: Option<Timestamp>, now: Timestamp) -> String {
    match created {
        Some(created) => human_duration(now.as_second().saturating_sub(created.as_second())),
        None => "<unknown>".to_owned(),
    }
}

/// Upstream's `duration.HumanDuration` for whole seconds.
pub fn human_duration(seconds: i64) -> String {
    // Clocks may differ a little.
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        two(minutes, 'm', seconds % 60, 's')
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, 'h', minutes % 60, 'm')
    } else if hours < 48 {
        format!("{hours}h")
    } else if days < 8 {
        two(days, 'd', hours % 24, 'h')
    } else if days < 2 * 365 {
        format!("{days}d")
    } else if days < 8 * 365 {
        two(years, 'y', days % 365, 'd')
    } else {
        format!("{years}y")
    }
}

fn two(large: i64, large_unit: char, small: i64, small_unit: char) -> String {
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit}{small}{small_unit}")
    }
}

fn definition(column: &Column) -> Value {
    json!({
        "name": column.name,
        "type": column.kind,
        "format": column.format,
        "description": column.description,
        "priority": column.priority,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_kubectl_prints_them() {
        const MINUTE: i64 = 60;
        const HOUR: i64 = 60 * MINUTE;
        const DAY: i64 = 24 * HOUR;
        let cases = [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (10 * MINUTE - 1, "9m59s"),
            (10 * MINUTE, "10m"),
            (3 * HOUR - 1, "179m"),
            (3 * HOUR, "3h"),
            (3 * HOUR + 20 * MINUTE, "3h20m"),
            (8 * HOUR, "8h"),
            (2 * DAY - 1, "47h"),
            (2 * DAY, "2d"),
            (4 * DAY + 5 * HOUR, "4d5h"),
            (8 * DAY - 1, "7d23h"),
            (8 * DAY, "8d"),
            (2 * 365 * DAY - 1, "729d"),
            (2 * 365 * DAY, "2y"),
            (2 * 365 * DAY + DAY, "2y1d"),
            (8 * 365 * DAY - 1, "7y364d"),
            (8 * 365 * DAY + 3 * DAY, "8y"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(human_duration(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn an_unknown_birth_is_an_unknown_age() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        assert_eq!(age(None, now), "<unknown>");
        assert_eq!(age("2026-01-02T03:04:00Z".parse().ok(), now), "5s");
    }

    const NAME: Column = Column {
        name: "Name",
        kind: "string",
        format: "name",
        description: "The name.",
        priority: 0,
    };

    #[test]
    fn rows_carry_as_much_of_the_object_as_is_asked_for() {
        let object = json!({"kind": "Thing", "metadata": {"name": "a"}, "spec": {}});
        let made = |include| {
            let row = Row { cells: vec!["a".into()], object: &object };
            table(Some(&[NAME]), &json!({"resourceVersion": "7"}), [row], include)
        };
        let metadata = made(IncludeObject::Metadata);
        assert_eq!(metadata["columnDefinitions"][0]["format"], "name");
        assert_eq!(metadata["metadata"]["resourceVersion"], "7");
        assert_eq!(metadata["rows"][0]["cells"], json!(["a"]));
        assert_eq!(
            metadata["rows"][0]["object"],
            json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": {"name": "a"},
            })
        );
        assert_eq!(made(IncludeObject::Object)["rows"][0]["object"], object);
        assert_eq!(made(IncludeObject::None)["rows"][0]["object"], Value::Null);
    }

    #[test]
    fn later_events_carry_no_columns() {
        let later = table(None, &json!({}), [], IncludeObject::None);
        assert_eq!((&later["columnDefinitions"], &later["rows"]), (&json!([]), &json!([])));
    }

    #[test]
    fn lists_are_reduced_item_by_item() {
        let list = partial_list(&json!({}), [&json!({"metadata": {"name": "a"}, "spec": 1})]);
        assert_eq!(list["kind"], "PartialObjectMetadataList");
        assert_eq!(list["items"][0]["metadata"]["name"], "a");
        assert_eq!(list["items"][0].get("spec"), None);
    }

    #[test]
    fn include_object_is_one_of_three() {
        let parse = |text| IncludeObject::parse(&Query::parse(Some(text)));
        assert_eq!(parse(""), Ok(IncludeObject::Metadata));
        assert_eq!(parse("includeObject=Object"), Ok(IncludeObject::Object));
        assert_eq!(parse("includeObject=x").unwrap_err().code().as_u16(), 400);
    }
}
