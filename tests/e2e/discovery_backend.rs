//! An extension API server as far as discovery goes, which serves or misbehaves as it is told while
//! it runs, and a portico that asks it often.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use portico::aggregate::aggregator;
use portico::model::discovery::schedule::Schedule;
use serde_json::{Value, json};

use crate::backend::{HTTP2, Listener, Sent};
use crate::client::{Ask, Protocol};
use crate::cluster::Cluster;
use crate::pki::backend_tls;
use crate::rig::{Rig, Setup, api_service, eventually, service, slices};

/// How clients ask for the aggregated document.
pub(crate) const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// How discovery is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// The aggregated document with its entity tag, and each version's own.
    Aggregated,
    /// Each version's own document, and `/apis` with this status and a list of groups.
    Legacy(u16),
    /// The same with `/apis` of the aggregated kind that is no more.
    Beta,
    /// An aggregated document with nothing but what is not asked for, and each version's own.
    ElsewhereAggregated,
    /// Never.
    Hang,
    /// With this status and text, whatever is asked for.
    Status(u16),
    Redirect,
    /// With a page for people.
    Html,
    /// The head and a part of the body.
    CutShort,
    /// A document that would be good but for 17 MiB of white space.
    TooLong,
    TooDeep,
    /// Many empty objects.
    Flood,
    /// Compressed, which nobody asked for.
    Gzip,
    /// For a group that it is not registered for.
    OtherGroup,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
}

impl Seen {
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }
}

#[derive(Debug)]
struct State {
    manner: Manner,
    /// The names of the resources of each `<group>/<version>`.
    served: BTreeMap<(String, String), Vec<String>>,
    seen: Vec<Seen>,
    /// Requests that are open and will never be answered.
    hanging: usize,
}

/// The backend; dropping it closes its port.
pub(crate) struct DiscoveryBackend {
    listener: Listener,
    state: Arc<Mutex<State>>,
}

impl DiscoveryBackend {
    /// The backend of a service, with group `<service>.example.com`, version v1, and one resource.
    pub(crate) fn start(service: &str) -> Self {
        let backend = Self::start_empty(service);
        backend.serve(&format!("{service}.example.com"), "v1", &["things"]);
        backend
    }

    /// The same without any group.
    pub(crate) fn start_empty(service: &str) -> Self {
        let state = Arc::new(Mutex::new(State {
            manner: Manner::Aggregated,
            served: BTreeMap::new(),
            seen: Vec::new(),
            hanging: 0,
        }));
        // As kube-apiserver it has no objects, which can be watched all the same.
        let serving = (Arc::clone(&state), Cluster::new());
        let listener = Listener::tls(backend_tls(service, HTTP2), move |stream, _| {
            let serving = serving.clone();
            async move {
                let service = service_fn(move |request| {
                    let (state, cluster) = serving.clone();
                    async move {
                        Ok::<_, Infallible>(if Cluster::concerns(&request) {
                            cluster.answer(request).await
                        } else {
                            answer(&state, request).await
                        })
                    }
                });
                let http = auto::Builder::new(TokioExecutor::new());
                // How its clients leave is the test's to see, not this end's.
                drop(http.serve_connection(TokioIo::new(stream), service).await);
            }
        });
        Self { listener, state }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.address
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Serves a version with these resources from now on.
    pub(crate) fn serve(&self, group: &str, version: &str, resources: &[&str]) {
        let resources = resources.iter().map(|&name| name.to_owned()).collect();
        self.state().served.insert((group.to_owned(), version.to_owned()), resources);
    }

    /// Answers in this manner from now on.
    pub(crate) fn behave(&self, manner: Manner) {
        self.state().manner = manner;
    }

    /// The requests for a path, oldest first.
    pub(crate) fn seen(&self, path: &str) -> Vec<Seen> {
        self.state().seen.iter().filter(|seen| seen.path == path).cloned().collect()
    }

    /// Requests that are open and will never be answered.
    pub(crate) fn hanging(&self) -> usize {
        self.state().hanging
    }

    /// Waits until it has been asked for a path more than this often.
    pub(crate) async fn asked_more_than(&self, times: usize, path: &str) {
        let what = format!("{path} asked more than {times} times");
        eventually(&what, async || self.seen(path).len() > times).await;
    }
}

struct Hanging(Arc<Mutex<State>>);

impl Hanging {
    fn new(state: &Arc<Mutex<State>>) -> Self {
        state.lock().unwrap().hanging += 1;
        Self(Arc::clone(state))
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.0.lock().unwrap().hanging -= 1;
    }
}

async fn answer(state: &Arc<Mutex<State>>, request: Request<Incoming>) -> Response<Sent> {
    let path = request.uri().path().to_owned();
    let headers = request.headers().clone();
    let method = request.method().clone();
    let (manner, served) = {
        let mut state = state.lock().unwrap();
        state.seen.push(Seen { method, path: path.clone(), headers: headers.clone() });
        (state.manner, state.served.clone())
    };
    let segments = path.split('/').count();
    let is_root = matches!(path.as_str(), "/apis" | "/api");
    let is_version = segments == if path.starts_with("/api/") { 3 } else { 4 };
    if !is_root && !is_version {
        return match path.rsplit('/').next() {
            Some("unknown") => text(StatusCode::NOT_FOUND, "application/json", "{}"),
            _ => text(StatusCode::OK, "application/json", "{\"kind\":\"ThingList\"}"),
        };
    }
    let aggregated = || aggregated(&served);
    match manner {
        Manner::Aggregated if is_root => with_etag(&aggregated(), &headers),
        Manner::ElsewhereAggregated if is_root => {
            let other = BTreeMap::from([(("other".to_owned(), "v1".to_owned()), Vec::new())]);
            with_etag(&self::aggregated(&other), &headers)
        }
        Manner::Beta if is_root => {
            let document = aggregated().to_string().replace("k8s.io/v2", "k8s.io/v2beta1");
            text(StatusCode::OK, &AGGREGATED.replace("v=v2", "v=v2beta1"), document)
        }
        Manner::Legacy(status) if is_root => {
            let groups = json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] });
            text(StatusCode::from_u16(status).unwrap(), "application/json", groups.to_string())
        }
        Manner::Aggregated | Manner::ElsewhereAggregated | Manner::Beta | Manner::Legacy(_) => {
            own(&served, &path)
        }
        Manner::Hang => {
            let _hanging = Hanging::new(state);
            std::future::pending().await
        }
        _ => misbehave(manner, &aggregated()),
    }
}

fn misbehave(manner: Manner, document: &Value) -> Response<Sent> {
    let document = document.to_string();
    let ok = |document: String| text(StatusCode::OK, AGGREGATED, document);
    match manner {
        Manner::Status(status) => {
            text(StatusCode::from_u16(status).unwrap(), "text/plain", "not today")
        }
        Manner::Redirect => {
            let mut answer = text(StatusCode::FOUND, "text/plain", "");
            answer.headers_mut().insert("location", "https://elsewhere/apis".parse().unwrap());
            answer
        }
        Manner::CutShort => {
            let half = Bytes::from(document).split_to(20);
            let cut = std::io::Error::other("cut short");
            let frames = stream::iter([Ok(Frame::data(half)), Err(cut)]);
            let builder = Response::builder().header("content-type", AGGREGATED);
            builder.body(StreamBody::new(frames).boxed_unsync()).unwrap()
        }
        Manner::TooLong => ok(" ".repeat(17 << 20) + &document),
        Manner::TooDeep => {
            let deep = format!("\"deep\":{}{},\"items\"", "[".repeat(1000), "]".repeat(1000));
            ok(document.replacen("\"items\"", &deep, 1))
        }
        Manner::Flood => {
            let flood = format!("\"flood\":[{}{{}}],\"items\"", "{},".repeat(1_000_000));
            ok(document.replacen("\"items\"", &flood, 1))
        }
        Manner::Gzip => {
            let mut answer = ok(document);
            answer.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
            answer
        }
        Manner::OtherGroup => {
            // `/apis/<group>/<version>` is answered with it too, which is none of its kind.
            ok(document.replace(".example.com", ".example.org"))
        }
        _ => text(StatusCode::OK, "text/html", "<!doctype html><title>hello</title>"),
    }
}

fn text(status: StatusCode, media: &str, body: impl Into<Bytes>) -> Response<Sent> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).header("content-type", media).body(body).unwrap()
}

/// An entity tag that no client would make up.
fn with_etag(document: &Value, headers: &HeaderMap) -> Response<Sent> {
    let body = document.to_string();
    let etag = format!("W/\"tag, {}\"", body.len());
    let known =
        headers.get("if-none-match").is_some_and(|value| value.as_bytes() == etag.as_bytes());
    let mut answer = if known {
        text(StatusCode::NOT_MODIFIED, AGGREGATED, "")
    } else {
        text(StatusCode::OK, AGGREGATED, body)
    };
    answer.headers_mut().insert("etag", etag.parse().unwrap());
    answer
}

fn aggregated(served: &BTreeMap<(String, String), Vec<String>>) -> Value {
    let group = |((group, version), resources): (&(String, String), &Vec<String>)| {
        let resources: Vec<Value> = resources
            .iter()
            .map(|name| {
                json!({ "resource": name, "scope": "Namespaced", "singularResource": "thing",
                    "responseKind": { "group": group, "version": version, "kind": "Thing" },
                    "verbs": ["get", "list"] })
            })
            .collect();
        let version = json!({ "version": version, "resources": resources, "freshness": "Current" });
        json!({ "metadata": { "name": group }, "versions": [version] })
    };
    let items: Vec<Value> = served.iter().map(group).collect();
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {}, "items": items })
}

/// A version's own document, by its path.
fn own(served: &BTreeMap<(String, String), Vec<String>>, path: &str) -> Response<Sent> {
    let mut segments = path.rsplit('/');
    let version = segments.next().unwrap().to_owned();
    let group = segments.next().filter(|group| *group != "api").unwrap_or_default().to_owned();
    let name = if group.is_empty() { version.clone() } else { format!("{group}/{version}") };
    let Some(resources) = served.get(&(group, version)) else {
        return text(StatusCode::NOT_FOUND, "text/plain", "404 page not found");
    };
    let resource = |resource: &String| {
        json!({ "name": resource, "singularName": "thing", "namespaced": true, "kind": "Thing",
            "verbs": ["get", "list"], "storageVersionHash": "aGFzaA==" })
    };
    let list = json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name,
        "resources": resources.iter().map(resource).collect::<Vec<Value>>() });
    text(StatusCode::OK, "application/json", list.to_string())
}

/// How discovery is kept up to date in tests: asked all the time.
pub(crate) fn often() -> aggregator::Config {
    aggregator::Config {
        schedule: Schedule {
            settle: Duration::ZERO,
            refresh: Duration::from_millis(50),
            backoff: Duration::from_millis(20),
            backoff_max: Duration::from_millis(100),
        },
        timeout: Duration::from_secs(3),
        ..aggregator::Config::default()
    }
}

/// The same without further questions unless there is a cause.
pub(crate) fn once() -> aggregator::Config {
    let hour = Duration::from_secs(3600);
    let schedule = Schedule { refresh: hour, backoff: hour, backoff_max: hour, ..often().schedule };
    aggregator::Config { schedule, ..often() }
}

/// A portico whose discovery is on.
pub(crate) fn discovering(discovery: aggregator::Config) -> Setup {
    Setup::new().edit(move |_, tuning| tuning.discovery = discovery)
}

/// A version of `<service>.example.com` with these annotations.
pub(crate) fn registered(name: &str, version: &str, annotations: &str) -> String {
    api_service(name)
        .replace("name: v1.", &format!("name: {version}."))
        .replace("version: v1\n", &format!("version: {version}\n"))
        .replace("{portico.dev/legacy-discovery: proxy}", &format!("{{{annotations}}}"))
}

/// Version v1 with its service and endpoints.
pub(crate) fn manifest(name: &str, annotations: &str, endpoints: &[SocketAddr]) -> String {
    registered(name, "v1", annotations) + &service(name) + &slices(name, endpoints)
}

/// What `/apis` shows: each group and version with its freshness and resources, in order.
pub(crate) async fn shown(rig: &Rig) -> Vec<(String, String)> {
    let mut client = rig.alice(Protocol::Http2).await;
    let answer = client.send(&Ask::get("/apis").header("accept", AGGREGATED)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut shown = Vec::new();
    for group in answer.json()["items"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let resources = version["resources"].as_array().cloned().unwrap_or_default();
            let freshness = text(&version["freshness"]);
            assert!(freshness == "Stale" || !resources.is_empty(), "Current without resources");
            let names: Vec<String> = resources.iter().map(|one| text(&one["resource"])).collect();
            let name =
                format!("{}/{}", text(&group["metadata"]["name"]), text(&version["version"]));
            shown.push((name, format!("{freshness} {}", names.join(","))));
        }
    }
    shown
}

/// How version v1 of `<name>.example.com` is shown, in words; nothing when it is left out.
pub(crate) async fn shown_of(rig: &Rig, name: &str) -> String {
    let wanted = format!("{name}.example.com/v1");
    let found = shown(rig).await.into_iter().find(|(name, _)| *name == wanted);
    found.map(|(_, how)| how).unwrap_or_default()
}

/// Waits until a service's version is shown so.
pub(crate) async fn await_shown(rig: &Rig, name: &str, how: &str) {
    let what = format!("{name} shown as {how:?}");
    eventually(&what, async || shown_of(rig, name).await == how).await;
}

/// The group-versions of the `APIGroupList`, in order.
pub(crate) async fn listed(rig: &Rig) -> Vec<String> {
    let list = rig.alice(Protocol::Http2).await.get("/apis").await.json();
    let groups = list["groups"].as_array().unwrap().iter();
    let versions = groups.flat_map(|group| group["versions"].as_array().unwrap());
    versions.map(|version| version["groupVersion"].as_str().unwrap().to_owned()).collect()
}
