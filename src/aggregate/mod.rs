//! The discovery documents of all APIs together: ready bytes, read from what was published last.
//!
//! What is shown of each group-version is made into documents by [`assembly`]; here a request gets the one
//! that it agreed on. Nothing here waits for a backend, and a data-plane thread makes nothing that grows
//! with the number of APIs.

pub mod aggregator;
pub mod assembly;
mod document;
mod fetch;
mod keeper;
mod kept;
mod known;
mod rope;
mod written;

use std::sync::Arc;

use http::{HeaderMap, Method, Response};
use tokio::runtime::Handle;

use self::assembly::Published;
pub use self::document::Document;
use crate::body::Body;
use crate::model::accept::{Form, Offer};
use crate::model::fault::{Fault, Hop};
use crate::model::negotiated::Negotiated;
use crate::model::order::compare_in_group;
use crate::model::query::Query;
use crate::model::rejection::{BackendFault, Rejection};
use crate::model::request_info::RequestInfo;
use crate::model::routing_table::{self, Entry, OWN_GROUP, OWN_VERSION, Remote, RoutingTable};
use crate::runtime::background::Background;
use crate::runtime::snapshot::View;
use crate::upstream::Upstream;

type Table = RoutingTable<Upstream>;

/// The documents as requests read them.
#[derive(Debug)]
pub struct Documents {
    published: View<Published>,
    background: Background,
}

/// What a request for a document came with.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path and what it names.
    pub info: &'a RequestInfo<'a>,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The query.
    pub query: &'a Query,
}

impl Documents {
    /// Long forms of documents are made by `runtime`, which must be none of the data plane's.
    pub fn new(published: View<Published>, runtime: Handle) -> Self {
        Self { published, background: Background::new(runtime) }
    }

    /// A document of all APIs or of a group.
    pub async fn serve(
        &self,
        table: &Table,
        document: &routing_table::Document,
        asked: Asked<'_>,
    ) -> Result<Response<Body>, Rejection> {
        use routing_table::Document as Named;
        if document.is_read_only() && !matches!(*asked.method, Method::GET | Method::HEAD) {
            return Err(Rejection::MethodNotAllowed);
        }
        let published = self.published.load();
        // With a slash behind it, the path is another one, which knows the legacy form only.
        let both = matches!(asked.info.path, "/apis" | "/api");
        let offer = if both { Offer::Discovery } else { Offer::LegacyDiscovery };
        let negotiated = Negotiated::new(asked.headers, asked.query, offer)?;
        let aggregated = negotiated.accepted.form == Form::Discovery;
        let behind;
        let ready = match document {
            Named::Groups if aggregated => published.aggregated(),
            Named::Groups => published.listed(),
            Named::Core if aggregated => published.core(),
            Named::Core => published.core_versions(),
            Named::OwnResources => published
                .resources(OWN_GROUP, OWN_VERSION)
                .map_err(|_none| Rejection::PathNotFound)?,
            Named::Group(name) => {
                if let Some(ready) = published.group(name) {
                    ready
                } else if published.knows(name) {
                    // Each of its versions is left out.
                    return Err(Rejection::PathNotFound);
                } else {
                    // Registered, and not published yet.
                    let group = table.group(name).ok_or(Rejection::PathNotFound)?;
                    behind = Document::of_json(api_group(group).into());
                    &behind
                }
            }
        };
        ready.respond(asked.headers, negotiated, &self.background).await
    }

    /// The resources of an extension API server's version, without asking it.
    pub async fn resources(
        &self,
        remote: &Remote<Upstream>,
        asked: Asked<'_>,
    ) -> Result<Response<Body>, Rejection> {
        let RequestInfo { group, version, .. } = *asked.info;
        let published = self.published.load();
        let ready =
            published.resources(group, version).map_err(|fault| not_fetched(remote, fault))?;
        let negotiated = Negotiated::new(asked.headers, asked.query, Offer::LegacyDiscovery)?;
        ready.respond(asked.headers, negotiated, &self.background).await
    }
}

/// 503 that names why there is no document.
fn not_fetched(remote: &Remote<Upstream>, fault: Option<&Fault>) -> Rejection {
    let fault = remote.fault.as_ref().or(fault);
    let fault = fault.cloned().unwrap_or_else(|| Hop::DiscoveryNotFetched.into());
    Rejection::Backend(Box::new(BackendFault {
        api_service: Arc::clone(&remote.name),
        service: remote.service.clone(),
        fault,
        discovery: true,
    }))
}

/// The paths of all APIs for `GET /`, in no particular order; what belongs to no APIService too.
pub fn paths(table: &Table) -> Vec<String> {
    let mut paths: Vec<String> =
        ["/apis", "/apis/", "/apis/apiregistration.k8s.io", "/apis/apiregistration.k8s.io/v1"]
            .map(str::to_owned)
            .to_vec();
    for group in table.groups() {
        if group.name.is_empty() {
            paths.push("/api".to_owned());
            continue;
        }
        paths.push(format!("/apis/{}", group.name));
        let versions = group.entries.iter();
        paths.extend(versions.map(|entry| format!("/apis/{}/{}", group.name, entry.version)));
    }
    paths
}

/// A group's document from the table.
fn api_group(group: &routing_table::Group<Upstream>) -> Vec<u8> {
    let mut entries: Vec<&Arc<Entry<Upstream>>> = group.entries.iter().collect();
    entries.sort_by(|left, right| {
        compare_in_group(
            (left.version_priority, &left.version),
            (right.version_priority, &right.version),
        )
    });
    written::api_group(&group.name, entries.iter().map(|entry| &entry.version))
}
