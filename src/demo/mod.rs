//! Two toy extension API servers, a bakery and a library: what the proxy is shown and tested with.
//!
//! They behave as servers built with `k8s.io/apiserver` do where kubectl and client-go can tell,
//! and believe the front proxy only: by its client certificate first, then by the headers it sends.
//! They authorize nobody, keep everything in memory and ignore finalizers.

mod answer;
mod catalogue;
pub mod connections;
mod discovery;
mod identity;
mod input;
mod metadata;
mod objects;
mod openapi;
mod patch;
mod refusal;
mod rest;
mod view;
mod watch;
mod whoami;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::USER_AGENT;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::answer::{Body, refused, with_body};
use self::catalogue::{BAKERY, Group, LIBRARY, samples};
use self::objects::{Key, Objects};
use self::refusal::Refusal;
use self::rest::Call;
use crate::model::accept::{Accepted, wants_pretty};
use crate::model::negotiated::text;
use crate::model::query::Query;
use crate::model::rejection::Rejection;
use crate::model::request_info::{RequestInfo, decode_path};
use crate::runtime::tasks;

/// Which toy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToyKind {
    /// `bakery.example.com/v1`: cakes and ovens.
    Bakery,
    /// `library.example.com/v1` and `v1beta1`: books.
    Library,
}

/// How a toy is started.
#[derive(Clone, Debug)]
pub struct ToyConfig {
    /// The serving pair, demanding client certificates of the front-proxy CA, with ALPN.
    pub server: Arc<rustls::ServerConfig>,
    /// The common names of front proxies that are believed; empty believes all.
    pub requestheader_allowed_names: Vec<String>,
    /// Which toy.
    pub kind: ToyKind,
    /// Where it listens.
    pub bind: SocketAddr,
}

/// A running toy; it stops when dropped.
#[derive(Debug)]
pub struct Toy {
    address: SocketAddr,
    group: &'static Group,
    stopped: CancellationToken,
}

impl Toy {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The groups and versions it serves, best first.
    pub fn groups_versions(&self) -> &'static [(&'static str, &'static str)] {
        self.group.versions
    }

    /// Closes the listener and cuts every open connection, so that watches end with an abort.
    pub fn stop(&self) {
        self.stopped.cancel();
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Listens and serves on the runtime of the caller.
pub async fn start(config: ToyConfig) -> std::io::Result<Toy> {
    let group = match config.kind {
        ToyKind::Bakery => &BAKERY,
        ToyKind::Library => &LIBRARY,
    };
    let listener = TcpListener::bind(config.bind).await?;
    let address = listener.local_addr()?;
    let stopped = CancellationToken::new();
    let server = Arc::new(Server {
        group,
        objects: Arc::new(stocked(group)),
        acceptor: TlsAcceptor::from(config.server),
        allowed_names: config.requestheader_allowed_names,
        stopped: stopped.clone(),
    });
    let accept = connections::accept(listener, move |stream| connection(stream, &server));
    let accept = stopped.clone().run_until_cancelled_owned(accept);
    tasks::spawn("toy-accept", async move {
        accept.await;
    });
    Ok(Toy { address, group, stopped })
}

/// What the connections of a toy share.
struct Server {
    group: &'static Group,
    objects: Arc<Objects>,
    acceptor: TlsAcceptor,
    allowed_names: Vec<String>,
    stopped: CancellationToken,
}

fn connection(stream: TcpStream, server: &Arc<Server>) {
    let (server, stopped) = (Arc::clone(server), server.stopped.clone());
    let connection = stopped.run_until_cancelled_owned(async move {
        let service = |certificates: Option<&[CertificateDer<'_>]>| {
            let proxy = identity::believed(certificates, &server.allowed_names);
            let server = Arc::clone(&server);
            move |request| {
                let (server, proxy) = (Arc::clone(&server), proxy.clone());
                async move { handle(&server, proxy, request).await }
            }
        };
        connections::serve(stream, &server.acceptor, service).await;
    });
    tasks::spawn("toy-connection", async move {
        connection.await;
    });
}

async fn handle(
    server: &Server,
    proxy: Result<(), String>,
    request: Request<Incoming>,
) -> Response<Body> {
    let head = request.method() == Method::HEAD;
    let query = Query::parse(request.uri().query());
    let agent = text(request.headers(), USER_AGENT).map(ToOwned::to_owned);
    let response = try_handle(server, proxy, request, &query).await.unwrap_or_else(|refusal| {
        refused(&refusal, wants_pretty(&query, Accepted::JSON, agent.as_deref()))
    });
    // Over HTTP/2 hyper would send the body even here.
    if head { response.map(|_| Empty::new().boxed_unsync()) } else { response }
}

async fn try_handle(
    server: &Server,
    proxy: Result<(), String>,
    request: Request<Incoming>,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let (parts, body) = request.into_parts();
    let path = decode_path(parts.uri.path()).map_err(unreadable)?;
    let info = RequestInfo::parse(&parts.method, &path, parts.uri.query()).map_err(unreadable)?;
    if matches!(path.as_ref(), "/healthz" | "/livez" | "/readyz") {
        return Ok(with_body(StatusCode::OK, "text/plain; charset=utf-8", "ok"));
    }
    proxy.map_err(Rejection::Unauthorized)?;
    let user = identity::user(&parts.headers)?;
    if !info.is_resource {
        return documents(server.group, &info, &parts, query);
    }
    let version = serves(server.group, &info).ok_or(Rejection::PathNotFound)?;
    if info.resource == "whoami" && info.name.is_empty() {
        return whoami::answer(&parts, &user, body).await;
    }
    let resource = server.group.resource(info.resource).filter(|_| info.subresource.is_empty());
    let call = Call {
        objects: &server.objects,
        group: server.group,
        resource: resource.ok_or(Rejection::PathNotFound)?,
        version,
        namespace: info.namespace,
        name: info.name,
        query,
        headers: &parts.headers,
    };
    rest::serve(&call, &parts.method, body).await
}

/// What is served besides resources.
fn documents(
    group: &'static Group,
    info: &RequestInfo<'_>,
    parts: &http::request::Parts,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    if parts.method != Method::GET {
        return Err(Rejection::MethodNotAllowed.into());
    }
    let headers = &parts.headers;
    let path = info.path.trim_end_matches('/');
    if let Some(key) = path.strip_prefix("/openapi/v3") {
        return openapi::serve(group, key.trim_start_matches('/'), headers, query);
    }
    if let Some(version) = serves(group, info) {
        return discovery::resources(group, version, headers, query);
    }
    match path {
        "/version" => discovery::version(headers, query),
        "/apis" => discovery::groups(group, headers, query),
        _ if info.prefix == "apis" && info.group == group.name && info.segments == 2 => {
            discovery::group(group, headers, query)
        }
        _ => Err(Rejection::PathNotFound.into()),
    }
}

/// The version that the path names, if it is one of this group.
fn serves(group: &'static Group, info: &RequestInfo<'_>) -> Option<&'static str> {
    let ours = info.prefix == "apis" && info.group == group.name;
    group.version_names().find(|version| ours && *version == info.version)
}

fn unreadable(error: crate::model::request_info::PathError) -> Refusal {
    Refusal::bad_request(error.to_string())
}

/// The objects that are there from the start.
fn stocked(group: &'static Group) -> Objects {
    let objects = Objects::new();
    for (plural, namespace, name, spec) in samples(group) {
        let Some(resource) = group.resource(plural) else { continue };
        let mut object = serde_json::json!({
            "apiVersion": resource.api_version(group.storage_version()),
            "kind": resource.kind,
            "metadata": { "name": name },
            "spec": spec,
        });
        let key = Key { plural, namespace: namespace.to_owned(), name: name.to_owned() };
        let made = metadata::for_create(resource, namespace, &mut object, Timestamp::now())
            .and_then(|_| {
                let decoded = resource
                    .decode(object)
                    .map_err(|error| Refusal::bad_request(error.to_string()))?;
                objects.create(resource, key, decoded.object)
            });
        if let Err(refusal) = made {
            tracing::error!(?refusal, plural, name, "toy cannot make its sample");
        }
    }
    objects
}
