//! The verbs on resources: which one a request is, and what it does.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::answer::{Body, document, warn};
use super::catalogue::{Group, Resource};
use super::input::{
    self, DeleteOptions, Fault, FieldValidation, Read, WriteOptions, metadata_text,
};
use super::metadata;
use super::objects::{Change, Key, Objects, Selection};
use super::patch::Patch;
use super::refusal::Refusal;
use super::view::View;
use super::watch;
use crate::model::accept::Offer;
use crate::model::field_error::{FieldError, invalid};
use crate::model::list_options::ListOptions;
use crate::model::negotiated::Negotiated;
use crate::model::query::Query;
use crate::model::rejection::Rejection;

/// How often a generated name is made anew when it is taken.
const GENERATED_NAME_TRIES_MAX: usize = 8;

/// One request for a resource.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) objects: &'a Arc<Objects>,
    pub(crate) group: &'static Group,
    pub(crate) resource: &'static Resource,
    pub(crate) version: &'static str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) query: &'a Query,
    pub(crate) headers: &'a HeaderMap,
}

/// Does what the request asks for.
pub(crate) async fn serve(
    call: &Call<'_>,
    method: &Method,
    body: Incoming,
) -> Result<Response<Body>, Refusal> {
    let named = !call.name.is_empty();
    let everywhere = call.resource.namespaced && call.namespace.is_empty();
    if (everywhere && named) || (!call.resource.namespaced && !call.namespace.is_empty()) {
        return Err(Rejection::PathNotFound.into());
    }
    match (method.as_str(), named) {
        ("GET", true) => call.get(),
        ("GET", false) => call.list_or_watch(),
        ("POST", false) if !everywhere => call.create(&input::read(body).await?),
        ("PUT", true) => call.update(&input::read(body).await?),
        ("PATCH", true) => call.patch(&input::read(body).await?),
        ("DELETE", true) => call.delete(&input::read(body).await?),
        ("DELETE", false) if !everywhere => call.delete_collection(&input::read(body).await?),
        _ => Err(Rejection::MethodNotAllowed.into()),
    }
}

impl Call<'_> {
    fn get(&self) -> Result<Response<Body>, Refusal> {
        let negotiated = Negotiated::new(self.headers, self.query, Offer::Objects)?;
        let object = self.objects.get(&self.key(self.name));
        let object = object.ok_or_else(|| Refusal::not_found(self.resource, self.name))?;
        self.shown(negotiated, StatusCode::OK, &object)
    }

    fn list_or_watch(&self) -> Result<Response<Body>, Refusal> {
        let options = ListOptions::parse(self.query)?;
        let selection = self.selection(&options);
        let offer = if options.watch { Offer::Events } else { Offer::Objects };
        let negotiated = Negotiated::new(self.headers, self.query, offer)?;
        let view = self.view(negotiated)?;
        if options.watch {
            return watch::start(self.objects, selection, view, &options);
        }
        let (revision, objects) = self.objects.list(&selection);
        match options.resource_version {
            Some(wanted) if wanted > revision => return Err(Refusal::TooNew(wanted, revision)),
            Some(wanted) if options.exact && wanted != revision => {
                let text = "The resourceVersion for the provided list is too old.";
                return Err(Rejection::Expired(text.to_owned()).into());
            }
            _ => {}
        }
        document(negotiated, StatusCode::OK, &view.list(revision, &objects))
    }

    fn create(&self, bytes: &Bytes) -> Result<Response<Body>, Refusal> {
        let negotiated = Negotiated::new(self.headers, self.query, Offer::Objects)?;
        let options = WriteOptions::parse(self.query, "CreateOptions")?;
        let (object, warnings) = self.read(bytes, options)?;
        let mut tries = 0;
        let made = loop {
            tries += 1;
            match self.try_create(object.clone(), options) {
                Err(Refusal::AlreadyExists(..))
                    if metadata_text(&object, "name").is_empty()
                        && tries < GENERATED_NAME_TRIES_MAX => {}
                outcome => break outcome?,
            }
        };
        let mut response = self.shown(negotiated, StatusCode::CREATED, &made)?;
        warn(&mut response, &warnings);
        Ok(response)
    }

    fn try_create(&self, mut object: Value, options: WriteOptions) -> Result<Arc<Value>, Refusal> {
        let now = Timestamp::now();
        let name = metadata::for_create(self.resource, self.namespace, &mut object, now)?;
        let key = self.key(&name);
        if !options.dry_run {
            return self.objects.create(self.resource, key, object);
        }
        match self.objects.get(&key) {
            Some(_) => Err(Refusal::AlreadyExists(self.resource, name)),
            None => Ok(Arc::new(object)),
        }
    }

    fn update(&self, bytes: &Bytes) -> Result<Response<Body>, Refusal> {
        let negotiated = Negotiated::new(self.headers, self.query, Offer::Objects)?;
        let options = WriteOptions::parse(self.query, "UpdateOptions")?;
        let (new, warnings) = self.read(bytes, options)?;
        let made = self.change(options, |old| self.changed(old, new))?;
        let mut response = self.shown(negotiated, StatusCode::OK, &made)?;
        warn(&mut response, &warnings);
        Ok(response)
    }

    fn patch(&self, bytes: &Bytes) -> Result<Response<Body>, Refusal> {
        let negotiated = Negotiated::new(self.headers, self.query, Offer::Objects)?;
        let options = WriteOptions::parse(self.query, "PatchOptions")?;
        let patch = Patch::parse(self.headers, bytes)?;
        let view = self.view(negotiated)?;
        let mut warnings = Vec::new();
        let made = self.change(options, |old| {
            let mut new = view.whole(old);
            patch.apply(&mut new)?;
            let (new, unknown) = self.patched(new, options)?;
            warnings = unknown;
            self.changed(old, new)
        })?;
        let mut response = self.shown(negotiated, StatusCode::OK, &made)?;
        warn(&mut response, &warnings);
        Ok(response)
    }

    fn delete(&self, bytes: &Bytes) -> Result<Response<Body>, Refusal> {
        let negotiated = Negotiated::new(self.headers, self.query, Offer::Plain)?;
        let options = DeleteOptions::parse(self.headers, self.query, bytes)?;
        let gone = self.remove(&self.key(self.name), &options)?;
        let status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {
                "name": self.name,
                "group": self.resource.group,
                "kind": self.resource.plural,
                "uid": metadata_text(&gone, "uid"),
            },
        });
        document(negotiated, StatusCode::OK, &status)
    }

    fn delete_collection(&self, bytes: &Bytes) -> Result<Response<Body>, Refusal> {
        let negotiated = Negotiated::new(self.headers, self.query, Offer::Objects)?;
        let options = DeleteOptions::parse(self.headers, self.query, bytes)?;
        let list_options = ListOptions::parse(self.query)?;
        let (_, objects) = self.objects.list(&self.selection(&list_options));
        let mut gone = Vec::with_capacity(objects.len());
        for object in objects {
            match self.remove(&self.key(metadata_text(&object, "name")), &options) {
                Ok(object) => gone.push(object),
                // Another one was faster.
                Err(Refusal::Rejected(Rejection::NotFound(_))) => {}
                Err(other) => return Err(other),
            }
        }
        let view = self.view(negotiated)?;
        document(negotiated, StatusCode::OK, &view.list(self.objects.revision(), &gone))
    }

    fn remove(&self, key: &Key, options: &DeleteOptions) -> Result<Arc<Value>, Refusal> {
        let allowed = |object: &Value| options.check(self.resource, object);
        if !options.dry_run {
            return self.objects.delete(self.resource, key, allowed);
        }
        let object = self.objects.get(key);
        let object = object.ok_or_else(|| Refusal::not_found(self.resource, &key.name))?;
        allowed(&object)?;
        Ok(object)
    }

    /// Changes the named object, or only says what it would become.
    fn change(
        &self,
        options: WriteOptions,
        change: impl FnOnce(&Value) -> Result<Change, Refusal>,
    ) -> Result<Arc<Value>, Refusal> {
        let key = self.key(self.name);
        if !options.dry_run {
            return self.objects.update(self.resource, &key, change);
        }
        let old = self.objects.get(&key);
        let old = old.ok_or_else(|| Refusal::not_found(self.resource, self.name))?;
        match change(&old)? {
            Change::Keep => Ok(old),
            Change::Replace(new) => Ok(Arc::new(new)),
        }
    }

    fn changed(&self, old: &Value, mut new: Value) -> Result<Change, Refusal> {
        metadata::for_update(self.resource, self.namespace, old, &mut new)?;
        Ok(if *old == new { Change::Keep } else { Change::Replace(new) })
    }

    /// Reads and checks the object in a body; unknown fields become warnings or 400.
    fn read(&self, bytes: &Bytes, options: WriteOptions) -> Result<(Value, Vec<String>), Refusal> {
        let Resource { kind, .. } = self.resource;
        let unusable = |text: String| {
            let Self { version, .. } = self;
            Refusal::bad_request(format!(
                "{kind} in version \"{version}\" cannot be handled as a {kind}: {text}"
            ))
        };
        let value = input::document(self.headers, bytes, kind)?;
        let read = self.read_value(value).map_err(|fault| match fault {
            Fault::Version(text) => Refusal::bad_request(text),
            Fault::Type(text) => unusable(format!("json: {text}")),
        })?;
        if options.validation == FieldValidation::Strict && !read.unknown.is_empty() {
            return Err(unusable(strict(&read.unknown)));
        }
        self.checked(read, options)
    }

    /// The same for what a patch made of an object, which upstream answers with 422.
    fn patched(
        &self,
        value: Value,
        options: WriteOptions,
    ) -> Result<(Value, Vec<String>), Refusal> {
        let shown = value.to_string();
        let unusable = |text: &str| {
            let error = FieldError::invalid("patch", &shown.as_str().into(), text);
            Refusal::from(invalid("", "", "", vec![error]))
        };
        let read = self.read_value(value).map_err(|fault| match fault {
            Fault::Version(text) => Refusal::bad_request(text),
            Fault::Type(text) => unusable(&text),
        })?;
        if options.validation == FieldValidation::Strict && !read.unknown.is_empty() {
            return Err(unusable(&strict(&read.unknown)));
        }
        self.checked(read, options)
    }

    fn read_value(&self, value: Value) -> Result<Read, Fault> {
        input::object(self.resource, self.version, self.group.storage_version(), value)
    }

    fn checked(&self, read: Read, options: WriteOptions) -> Result<(Value, Vec<String>), Refusal> {
        let Read { decoded, unknown } = read;
        if !decoded.errors.is_empty() {
            let name = metadata_text(&decoded.object, "name");
            return Err(Refusal::invalid(self.resource, name, decoded.errors));
        }
        let warn = options.validation == FieldValidation::Warn;
        Ok((decoded.object, if warn { unknown } else { Vec::new() }))
    }

    fn shown(
        &self,
        negotiated: Negotiated,
        code: StatusCode,
        object: &Value,
    ) -> Result<Response<Body>, Refusal> {
        document(negotiated, code, &self.view(negotiated)?.one(object, true))
    }

    fn view(&self, negotiated: Negotiated) -> Result<View, Rejection> {
        View::new(self.resource, self.version, negotiated.accepted.form, self.query)
    }

    fn key(&self, name: &str) -> Key {
        Key {
            plural: self.resource.plural,
            namespace: self.namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    fn selection(&self, options: &ListOptions) -> Selection {
        Selection {
            plural: self.resource.plural,
            namespace: self.namespace.to_owned(),
            selectors: options.selectors.clone(),
        }
    }
}

fn strict(unknown: &[String]) -> String {
    format!("strict decoding error: {}", unknown.join(", "))
}
