//! How objects are shown: in the version that was asked for, whole, as Table rows or metadata only.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::catalogue::Resource;
use crate::model::accept::Form;
use crate::model::query::Query;
use crate::model::rejection::Rejection;
use crate::model::table::{IncludeObject, Row, partial_list, partial_object, table};

/// One way to show the objects of a resource.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) resource: &'static Resource,
    pub(crate) version: &'static str,
    form: Form,
    include: IncludeObject,
}

impl View {
    /// The way that the request asks for.
    pub(crate) fn new(
        resource: &'static Resource,
        version: &'static str,
        form: Form,
        query: &Query,
    ) -> Result<Self, Rejection> {
        Ok(Self { resource, version, form, include: IncludeObject::parse(query)? })
    }

    /// The object itself in the version that was asked for.
    pub(crate) fn whole(&self, object: &Value) -> Value {
        let mut shown = object.clone();
        if let Value::Object(map) = &mut shown {
            map.insert("apiVersion".to_owned(), self.resource.api_version(self.version).into());
        }
        shown
    }

    /// One object; a Table's columns are left out of all watch events but the first.
    pub(crate) fn one(&self, object: &Value, with_columns: bool) -> Value {
        let shown = self.whole(object);
        if self.form == Form::Table {
            let version = object.pointer("/metadata/resourceVersion");
            let columns = with_columns.then_some(self.resource.columns);
            let row = self.row(&shown);
            return table(columns, &json!({ "resourceVersion": version }), [row], self.include);
        }
        if self.form == Form::Partial { partial_object(&shown) } else { shown }
    }

    /// A list as it was at `revision`.
    pub(crate) fn list(&self, revision: u64, objects: &[Arc<Value>]) -> Value {
        let shown: Vec<Value> = objects.iter().map(|object| self.whole(object)).collect();
        let metadata = json!({ "resourceVersion": revision.to_string() });
        match self.form {
            Form::Table => {
                let rows = shown.iter().map(|object| self.row(object));
                table(Some(self.resource.columns), &metadata, rows, self.include)
            }
            Form::Partial => partial_list(&metadata, &shown),
            Form::Object | Form::Discovery => json!({
                "kind": self.resource.list_kind(),
                "apiVersion": self.resource.api_version(self.version),
                "metadata": metadata,
                "items": shown,
            }),
        }
    }

    fn row<'a>(&self, object: &'a Value) -> Row<'a> {
        Row { cells: self.resource.cells(object, Timestamp::now()), object }
    }
}
