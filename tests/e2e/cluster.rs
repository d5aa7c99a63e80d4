//! The objects of a cluster as an API server shows them: lists, watches, and the few writes that
//! portico makes. It can end watches, forget what happened, and refuse.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::backend::{Sent, full};

/// The collections that portico watches, by their path and the object's type.
const COLLECTIONS: [(&str, &str, &str, &str); 5] = [
    ("/apis/apiregistration.k8s.io/v1", "apiservices", "apiregistration.k8s.io/v1", "APIService"),
    ("/api/v1", "services", "v1", "Service"),
    ("/apis/discovery.k8s.io/v1", "endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("/api/v1", "configmaps", "v1", "ConfigMap"),
    ("/apis/coordination.k8s.io/v1", "leases", "coordination.k8s.io/v1", "Lease"),
];
/// The only ConfigMap there is.
const TRUST: &str = "extension-apiserver-authentication";

/// Which object: collection, namespace, name.
type Key = (String, String, String);

/// A cluster; clones are the same.
#[derive(Clone)]
pub(crate) struct Cluster {
    state: Arc<Mutex<State>>,
    /// Sent to with every change, and when watches are to end.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, Value>,
    /// What happened, in order.
    events: Vec<Event>,
    /// Watches from before it are told 410.
    oldest: u64,
    /// Watches that began before are ended.
    generation: u64,
    /// It knows no streamed lists.
    lists_plainly: bool,
    /// Watches end once they have shown what there is.
    ends_at_once: bool,
    /// Everything is refused with this code.
    refuses: Option<u16>,
    /// The next write is told that somebody else was faster.
    conflicts: usize,
    /// `METHOD target` of what was asked.
    asked: Vec<String>,
}

struct Event {
    revision: u64,
    kind: &'static str,
    key: Key,
    object: Value,
}

/// A watch under way.
struct Watch {
    cluster: Cluster,
    what: (String, String),
    revision: u64,
    generation: u64,
    changed: watch::Receiver<()>,
    lines: Vec<Value>,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let state = State { revision: 10, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), changed: watch::Sender::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn edit<T>(&self, edit: impl FnOnce(&mut State) -> T) -> T {
        let done = edit(&mut self.lock());
        self.changed.send_replace(());
        done
    }

    /// Puts the objects of a YAML text of several documents.
    pub(crate) fn apply(&self, text: &str) {
        for document in text.split("---\n").filter(|document| !document.trim().is_empty()) {
            let object: Value = serde_saphyr::from_str(document).unwrap();
            let kind = object["kind"].as_str().unwrap();
            let (.., plural, _, _) = COLLECTIONS.iter().find(|(.., of)| *of == kind).unwrap();
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
            let key = ((*plural).to_owned(), text("namespace").to_owned(), text("name").to_owned());
            self.edit(|state| state.put(key, object.clone()));
        }
    }

    /// Puts the ConfigMap that says whom the cluster believes.
    pub(crate) fn trust(&self, data: &[(&str, &str)]) {
        let data: BTreeMap<_, _> = data.iter().copied().collect();
        let metadata = json!({"namespace": "kube-system", "name": TRUST});
        let key = ("configmaps".to_owned(), "kube-system".to_owned(), TRUST.to_owned());
        self.edit(|state| state.put(key, json!({"metadata": metadata, "data": data})));
    }

    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.edit(|state| {
            let mut object = state.objects.remove(&key).unwrap();
            state.revision += 1;
            object["metadata"]["resourceVersion"] = state.revision.to_string().into();
            state.events.push(Event { revision: state.revision, kind: "DELETED", key, object });
        });
    }

    /// The object, or null.
    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Value {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        self.lock().objects.get(&key).cloned().unwrap_or_default()
    }

    /// Ends all watches as a server does after their time.
    pub(crate) fn cut(&self) {
        self.edit(|state| state.generation += 1);
    }

    /// From now on, ends every watch as soon as it has shown what there is.
    pub(crate) fn end_at_once(&self) {
        self.edit(|state| state.ends_at_once = true);
    }

    /// Forgets what happened before: who resumes from there has to list anew.
    pub(crate) fn forget(&self) {
        self.edit(|state| {
            state.oldest = state.revision + 1;
            state.revision += 1;
            state.events.clear();
        });
    }

    pub(crate) fn list_plainly(&self) {
        self.edit(|state| state.lists_plainly = true);
    }

    pub(crate) fn refuse(&self, code: Option<u16>) {
        self.edit(|state| state.refuses = code);
    }

    pub(crate) fn conflict(&self, times: usize) {
        self.edit(|state| state.conflicts = times);
    }

    /// `METHOD target` of what was asked so far and contains the text.
    pub(crate) fn asked(&self, text: &str) -> Vec<String> {
        self.lock().asked.iter().filter(|asked| asked.contains(text)).cloned().collect()
    }

    /// True when the request is one of portico's own about the cluster.
    pub(crate) fn concerns<B>(request: &Request<B>) -> bool {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let is_watched = is_of_client(request) && place(path).is_some();
        let lists = query.contains("watch=true") || query.contains("limit=500");
        is_watched
            && (request.method() != Method::GET
                || lists
                || path.ends_with(TRUST)
                || path.contains("/leases"))
    }

    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<Sent> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let target = parts.uri.path_and_query().unwrap().as_str();
        let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
        let ((plural, namespace, name), subresource) = place(path).unwrap();
        self.edit(|state| state.asked.push(format!("{} {target}", parts.method)));
        if let Some(code) = self.lock().refuses {
            return status(code);
        }
        if query.contains("watch=true") {
            let of = |name: &str| {
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
            };
            let initial = of("sendInitialEvents").is_some();
            return self.watch((plural, namespace), &of("resourceVersion").unwrap(), initial);
        }
        let key = (plural, namespace, name);
        if key.2.is_empty() && parts.method == Method::GET {
            return self.list(&key);
        }
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        self.edit(|state| match parts.method {
            Method::GET => match state.objects.get(&key) {
                Some(object) => json(StatusCode::OK, object),
                None => status(404),
            },
            Method::PATCH => state.patch(&key, subresource, &body),
            _ => state.write(key, body),
        })
    }

    fn list(&self, (plural, namespace, _): &Key) -> Response<Sent> {
        let state = self.lock();
        let items: Vec<_> = state.seen(plural, namespace).map(|(_, object)| object).collect();
        let metadata = json!({"resourceVersion": state.revision.to_string()});
        let (.., version, kind) = COLLECTIONS.iter().find(|(_, of, ..)| of == plural).unwrap();
        let list = json!({"apiVersion": version, "kind": format!("{kind}List"),
                          "metadata": metadata, "items": items});
        json(StatusCode::OK, &list)
    }

    fn watch(&self, what: (String, String), from: &str, initial: bool) -> Response<Sent> {
        let changed = self.changed.subscribe();
        let state = self.lock();
        if initial && state.lists_plainly {
            return status(422);
        }
        let mut lines = Vec::new();
        let mut revision: u64 = from.parse().unwrap();
        if initial {
            let object = |(_, object): (&Key, &Value)| json!({"type": "ADDED", "object": object});
            lines.extend(state.seen(&what.0, &what.1).map(object));
            revision = state.revision;
            let (.., version, kind) =
                COLLECTIONS.iter().find(|(_, of, ..)| **of == what.0).unwrap();
            lines.push(json!({"type": "BOOKMARK", "object": {
                "apiVersion": version, "kind": kind, "metadata": {
                    "resourceVersion": revision.to_string(),
                    "annotations": {"k8s.io/initial-events-end": "true"},
                },
            }}));
        } else if revision < state.oldest {
            lines.push(json!({"type": "ERROR", "object": {
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old resource version", "reason": "Expired", "code": 410,
            }}));
            revision = u64::MAX;
        }
        let generation = state.generation;
        drop(state);
        let cluster = self.clone();
        let watch = Watch { cluster, what, revision, generation, changed, lines };
        let body = StreamBody::new(stream::unfold(watch, |mut watch| async {
            let lines = watch.next().await?;
            Some((Ok(Frame::data(lines)), watch))
        }));
        let mut response = Response::new(body.boxed_unsync());
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
        response
    }
}

impl Watch {
    /// The next lines; none when the watch ends.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            {
                let state = self.cluster.lock();
                if state.generation != self.generation {
                    return None;
                }
                let (plural, namespace) = &self.what;
                let after = |event: &&Event| event.revision > self.revision;
                for event in state.events.iter().filter(after) {
                    if is_seen(&event.key, plural, namespace) {
                        let (kind, object) = (event.kind, &event.object);
                        self.lines.push(json!({"type": kind, "object": object}));
                    }
                }
                self.revision = self.revision.max(state.revision);
            }
            if !self.lines.is_empty() {
                let lines = self.lines.drain(..).map(|line| format!("{line}\n"));
                return Some(lines.collect::<String>().into());
            }
            if self.cluster.lock().ends_at_once {
                return None;
            }
            self.changed.changed().await.ok()?;
        }
    }
}

impl State {
    fn seen(&self, plural: &str, namespace: &str) -> impl Iterator<Item = (&Key, &Value)> {
        self.objects.iter().filter(move |(key, _)| is_seen(key, plural, namespace))
    }

    fn put(&mut self, key: Key, mut object: Value) {
        self.revision += 1;
        let (.., version, of) = COLLECTIONS.iter().find(|(_, of, ..)| **of == key.0).unwrap();
        object["apiVersion"] = (*version).into();
        object["kind"] = (*of).into();
        object["metadata"]["name"] = key.2.clone().into();
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let kind = if self.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        self.objects.insert(key.clone(), object.clone());
        self.events.push(Event { revision: self.revision, kind, key, object });
    }

    /// PUT and POST, with the check of the resourceVersion.
    fn write(&mut self, mut key: Key, object: Value) -> Response<Sent> {
        if self.conflicts > 0 {
            self.conflicts -= 1;
            return status(409);
        }
        let metadata = &object["metadata"];
        if key.2.is_empty() {
            metadata["name"].as_str().unwrap().clone_into(&mut key.2);
        }
        let stored = self.objects.get(&key);
        let version = stored.map(|stored| &stored["metadata"]["resourceVersion"]);
        if version.unwrap_or(&Value::Null) != &metadata["resourceVersion"] {
            return status(409);
        }
        self.put(key.clone(), object);
        json(StatusCode::OK, &self.objects[&key])
    }

    /// A patch of the status, whose conditions replace what was there.
    fn patch(&mut self, key: &Key, subresource: &str, patch: &Value) -> Response<Sent> {
        assert_eq!(subresource, "status");
        let Some(mut object) = self.objects.get(key).cloned() else { return status(404) };
        object["status"] = patch["status"].clone();
        self.put(key.clone(), object);
        json(StatusCode::OK, &self.objects[key])
    }
}

fn is_seen(key: &Key, plural: &str, namespace: &str) -> bool {
    key.0 == plural && (namespace.is_empty() || key.1 == namespace)
}

/// True for what comes from portico itself and not from one of its callers.
fn is_of_client<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    !headers.contains_key("x-remote-user") && !headers.contains_key("impersonate-user")
}

/// Collection, namespace and name that a path names, and the subresource.
fn place(path: &str) -> Option<(Key, &str)> {
    let (prefix, plural) = COLLECTIONS.iter().find_map(|(prefix, plural, ..)| {
        let mut rest = path.strip_prefix(prefix)?.split('/').skip(1);
        let first = rest.next()?;
        let found = if first == "namespaces" { rest.nth(1)? } else { first };
        (found == *plural).then_some((prefix, plural))
    })?;
    let mut rest = path.strip_prefix(prefix)?.split('/').skip(1);
    let first = rest.next()?;
    let namespace = if first == "namespaces" { rest.next()? } else { "" };
    if first == "namespaces" {
        rest.next()?;
    }
    let name = rest.next().unwrap_or_default();
    let key = ((*plural).to_owned(), namespace.to_owned(), name.to_owned());
    Some((key, rest.next().unwrap_or_default()))
}

fn json(code: StatusCode, body: &Value) -> Response<Sent> {
    let mut response = Response::new(full(body.to_string().into()));
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

fn status(code: u16) -> Response<Sent> {
    let reason = if code == 404 { "NotFound" } else { "Scripted" };
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                      "message": format!("scripted {code}"), "reason": reason, "code": code});
    json(StatusCode::from_u16(code).unwrap(), &body)
}
