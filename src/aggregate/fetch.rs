//! Asks one extension API server what it serves.
//!
//! Rules are upstream's (`handler_discovery.go:fetchFreshDiscoveryForService`): the aggregated
//! document first, each version's own where there is none. Then each version's own all the same, for
//! what only that says (`storageVersionHash`); without it the rest is shown.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode, response};
use http_body_util::BodyExt as _;
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::body::Body;
use crate::model::accept::{DISCOVERY_JSON, is_aggregated};
use crate::model::api_service;
use crate::model::discovery::aggregated::Resource;
use crate::model::discovery::convert;
use crate::model::discovery::escape;
use crate::model::discovery::legacy::ApiResource;
use crate::model::discovery::parse::{self, AGGREGATED_BYTES_MAX, LEGACY_BYTES_MAX};
use crate::model::fault::{Fault, Hop};
use crate::model::routing_table::Entry;
use crate::upstream::{
    ApiServer, Backend, Class, Outgoing, Pool, Progress, Upstream, own_agent, own_identity,
};

/// Versions of one server whose own documents are asked for at a time.
const VERSIONS_AT_A_TIME: usize = 16;
/// Bytes of each answer that count for nothing in what follows: short answers wait for no other.
const FREE_BYTES: usize = 1024 * 1024;
/// Bytes of all answers that are being read at a time.
const READING_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of an answer that is read where it comes in.
const IN_PLACE_BYTES_MAX: usize = 16 * 1024;
/// Answers that are read at a time on other threads.
const READERS_MAX: usize = 4;
/// Bytes of one version's list as it is served.
const VERSION_BYTES_MAX: usize = 16 * 1024 * 1024;
/// In what steps that budget is taken, in bytes.
const READING_STEP: usize = 64 * 1024;

/// Asks servers; shared by all that are asked at the same time.
#[derive(Debug)]
pub(super) struct Fetcher {
    pool: Arc<Pool>,
    timeout: Duration,
    core: Option<FetchedCore>,
    /// In steps of [`READING_STEP`].
    reading: Semaphore,
    /// Turns to read on other threads.
    readers: Semaphore,
}

/// kube-apiserver, which portico asks itself and not on behalf of the aggregator.
#[derive(Clone, Debug)]
pub(super) struct FetchedCore {
    server: Arc<ApiServer>,
    backend: Arc<Backend>,
}

impl FetchedCore {
    pub(super) fn new(server: Arc<ApiServer>) -> Self {
        Self { backend: Arc::clone(&server.upstream().backend), server }
    }

    /// What stands for it where backends are told apart, also when its kubeconfig has changed.
    pub(super) fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

/// One version that an APIService registers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct GroupVersion {
    pub(super) group: Arc<str>,
    pub(super) version: Arc<str>,
}

/// What was learnt of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Learnt {
    /// The resources as the aggregated document lists them, a JSON array; or why they cannot be
    /// listed so, though the version's own document is well.
    pub(super) resources: Result<Bytes, Fault>,
    /// The version's own document, without `storageVersionHash` when it was not asked for yet.
    pub(super) legacy: Bytes,
}

/// What a server answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// The aggregated document is the one that it was before.
    NotModified,
    /// What each version has, in the order that was asked for.
    Versions {
        /// Of the aggregated document, to be sent back as it is.
        etag: Option<HeaderValue>,
        /// True when each version's own document was the source, which has all there is.
        from_legacy: bool,
        /// What each has.
        versions: Vec<Result<Learnt, Fault>>,
    },
}

/// A whole answer, with its share of the bytes that may be read at a time.
struct Document<'a> {
    head: response::Parts,
    body: Bytes,
    _share: Option<SemaphorePermit<'a>>,
}

impl Fetcher {
    /// Asks over `pool`, which must be of the calling thread; `timeout` is for all that one server
    /// is asked until its versions are known.
    pub(super) fn new(pool: Arc<Pool>, timeout: Duration, core: Option<FetchedCore>) -> Self {
        let steps = READING_BYTES_MAX.div_ceil(READING_STEP);
        let (reading, readers) = (Semaphore::new(steps), Semaphore::new(READERS_MAX));
        Self { pool, timeout, core, reading, readers }
    }

    /// What the server has for these versions; `etag` is that of the document known already.
    pub(super) async fn versions(
        &self,
        backend: &Arc<Backend>,
        wanted: &[GroupVersion],
        etag: Option<&HeaderValue>,
    ) -> Result<Answer, Fault> {
        let deadline = Instant::now() + self.timeout;
        let core = wanted.iter().all(|wanted| wanted.group.is_empty());
        let path = PathAndQuery::from_static(if core { "/api" } else { "/apis" });
        let accept = HeaderValue::from_static(DISCOVERY_JSON);
        let limits = (AGGREGATED_BYTES_MAX, deadline);
        let document = self.get(backend, &path, accept, etag, limits).await?;
        let head = &document.head;
        match head.status {
            StatusCode::NOT_MODIFIED if etag.is_some() => Ok(Answer::NotModified),
            StatusCode::SERVICE_UNAVAILABLE => Err(status_fault(&path, head.status)),
            StatusCode::OK if is_aggregated(head.headers.get(CONTENT_TYPE)) => {
                self.aggregated(backend, wanted, document, deadline).await
            }
            _ => {
                let versions = self.legacy(backend, wanted, deadline).await;
                Ok(Answer::Versions { etag: None, from_legacy: true, versions })
            }
        }
    }

    async fn aggregated(
        &self,
        backend: &Arc<Backend>,
        wanted: &[GroupVersion],
        document: Document<'_>,
        deadline: Instant,
    ) -> Result<Answer, Fault> {
        let mut etag = document.head.headers.get(ETAG).cloned();
        let (body, asked) = (document.body.clone(), wanted.to_vec());
        let found = self.off_thread(body.len(), move || read_aggregated(&body, &asked)).await?;
        drop(document);
        let mut versions = Vec::with_capacity(wanted.len());
        for (wanted, found) in wanted.iter().zip(found) {
            versions.push(if let Some(learnt) = found {
                learnt
            } else {
                // Upstream shows such a version as Current and empty, which defeats kubectl's cache;
                // and a 304 could not tell anything about it.
                etag = None;
                self.legacy_of(backend, wanted, deadline).await
            });
        }
        Ok(Answer::Versions { etag, from_legacy: false, versions })
    }

    /// What each version's own document says, within `deadline`.
    async fn legacy(
        &self,
        backend: &Arc<Backend>,
        wanted: &[GroupVersion],
        deadline: Instant,
    ) -> Vec<Result<Learnt, Fault>> {
        let mut asking: Vec<BoxFuture<'_, _>> = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            asking.push(Box::pin(self.legacy_of(backend, wanted, deadline)));
        }
        stream::iter(asking).buffered(VERSIONS_AT_A_TIME).collect().await
    }

    /// The own documents of versions that are known by the aggregated one.
    pub(super) async fn own_documents(
        &self,
        backend: &Arc<Backend>,
        wanted: &[GroupVersion],
    ) -> Vec<Result<Learnt, Fault>> {
        self.legacy(backend, wanted, Instant::now() + self.timeout).await
    }

    async fn legacy_of(
        &self,
        backend: &Arc<Backend>,
        wanted: &GroupVersion,
        deadline: Instant,
    ) -> Result<Learnt, Fault> {
        let invalid = |_error| Fault::new(Hop::InvalidDiscovery, "its name makes no path");
        let target: PathAndQuery = wanted.path().parse().map_err(invalid)?;
        let accept = HeaderValue::from_static("application/json");
        let limits = (LEGACY_BYTES_MAX, deadline);
        let document = self.get(backend, &target, accept, None, limits).await?;
        if document.head.status != StatusCode::OK {
            return Err(status_fault(&target, document.head.status));
        }
        let (body, asked) = (document.body.clone(), wanted.clone());
        self.off_thread(body.len(), move || read_legacy(&body, &asked)).await
    }

    /// Reads what is not short on another thread, so that the loop goes on meanwhile.
    async fn off_thread<T: Send + 'static>(
        &self,
        bytes: usize,
        read: impl FnOnce() -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        if bytes <= IN_PLACE_BYTES_MAX {
            return read();
        }
        let invalid = |text: String| Fault::new(Hop::InvalidDiscovery, text);
        let turn = self.readers.acquire().await.map_err(|error| invalid(error.to_string()))?;
        let reading = tokio::task::spawn_blocking(read).await;
        drop(turn);
        reading.map_err(|error| invalid(error.to_string()))?
    }

    /// One document, whole, with at most so many bytes and before its deadline.
    async fn get(
        &self,
        backend: &Arc<Backend>,
        path: &PathAndQuery,
        accept: HeaderValue,
        etag: Option<&HeaderValue>,
        (bytes_max, deadline): (usize, Instant),
    ) -> Result<Document<'_>, Fault> {
        let core = self.core.as_ref().filter(|core| Arc::ptr_eq(&core.backend, backend));
        let core = core.map(|core| &core.server);
        let of_now = core.map(|core| core.upstream());
        let backend = of_now.as_ref().map_or(backend, |core| &core.backend);
        let headers = || {
            let mut headers = request_headers(&accept, etag);
            match core {
                Some(core) => headers.extend(core.authorization().map(|it| (AUTHORIZATION, it))),
                None => headers.extend(own_identity()),
            }
            headers
        };
        let progress = Progress::default();
        let request =
            Outgoing { method: &Method::GET, path, headers: &headers, progress: &progress };
        let whole = async {
            let call = self.pool.call(backend, Class::Short, &request, Body::empty());
            let answer = call.await?;
            if let Some(encoding) = answer.head.headers.get(CONTENT_ENCODING) {
                let text = format!("{path}: content encoding {encoding:?} was not asked for");
                return Err(Fault::new(Hop::InvalidDiscovery, text));
            }
            // Kept until the body is read: the connection is busy so long.
            let _lease = answer.lease;
            let (body, share) = self.read(answer.body, path, bytes_max).await?;
            Ok(Document { head: answer.head, body, _share: share })
        };
        match timeout_at(deadline, whole).await {
            Ok(document) => document.map_err(|fault| fault.at(progress.endpoint())),
            Err(_) => Err(progress.deadline().at(progress.endpoint())),
        }
    }

    async fn read(
        &self,
        mut body: Body,
        path: &PathAndQuery,
        most: usize,
    ) -> Result<(Bytes, Option<SemaphorePermit<'_>>), Fault> {
        let mut bytes = BytesMut::new();
        let mut share: Option<SemaphorePermit<'_>> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Fault::new(Hop::BackendReset, error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > most {
                let text = format!("{path}: the answer is longer than {most} bytes");
                return Err(Fault::new(Hop::InvalidDiscovery, text));
            }
            bytes.extend_from_slice(&data);
            let steps = share.as_ref().map_or(0, SemaphorePermit::num_permits);
            let more = bytes.len().saturating_sub(FREE_BYTES).div_ceil(READING_STEP);
            let more = u32::try_from(more.saturating_sub(steps)).unwrap_or(u32::MAX);
            if more == 0 {
                continue;
            }
            // Who waits here does so until its deadline at most.
            let more = self.reading.acquire_many(more).await.map_err(|_closed| {
                Fault::new(Hop::Overloaded, "no more bytes of discovery are read")
            })?;
            match &mut share {
                None => share = Some(more),
                Some(share) => share.merge(more),
            }
        }
        Ok((bytes.freeze(), share))
    }
}

impl GroupVersion {
    pub(super) fn of(entry: &Entry<Upstream>) -> Self {
        Self { group: Arc::clone(&entry.group), version: Arc::clone(&entry.version) }
    }

    fn path(&self) -> String {
        api_service::path(&self.group, &self.version)
    }
}

/// What an aggregated document says of each version, in their order; nothing of one that is not in it.
fn read_aggregated(
    body: &[u8],
    wanted: &[GroupVersion],
) -> Result<Vec<Option<Result<Learnt, Fault>>>, Fault> {
    let found = parse::aggregated(body)
        .map_err(|error| Fault::new(Hop::InvalidDiscovery, error.to_string()))?;
    let found: HashMap<(&str, &str), &[Resource]> =
        found.iter().map(|found| ((&*found.group, &*found.version), &*found.resources)).collect();
    let versions = wanted.iter().map(|wanted| {
        let resources = found.get(&(&*wanted.group, &*wanted.version))?;
        Some(learnt_of_aggregated(wanted, resources))
    });
    Ok(versions.collect())
}

/// What a version's own document says of it.
fn read_legacy(body: &[u8], wanted: &GroupVersion) -> Result<Learnt, Fault> {
    let invalid = |error: &dyn std::fmt::Display| {
        Fault::new(Hop::InvalidDiscovery, format!("{}: {error}", wanted.path()))
    };
    let list = parse::legacy(body, &wanted.group, &wanted.version).map_err(|e| invalid(&e))?;
    let resources = convert::to_aggregated(&list).map_err(|e| invalid(&e));
    let resources = resources.and_then(|resources| json(&resources));
    Ok(Learnt { resources, legacy: legacy_document(wanted, &list)? })
}

fn request_headers(accept: &HeaderValue, etag: Option<&HeaderValue>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(6);
    headers.insert(ACCEPT, accept.clone());
    headers.extend([own_agent()]);
    if let Some(etag) = etag {
        headers.insert(IF_NONE_MATCH, etag.clone());
    }
    headers
}

fn status_fault(path: &PathAndQuery, status: StatusCode) -> Fault {
    let text = format!("{path} was answered with status {}", status.as_u16());
    Fault::new(Hop::DiscoveryRefused, text)
}

fn learnt_of_aggregated(wanted: &GroupVersion, resources: &[Resource]) -> Result<Learnt, Fault> {
    let list = convert::to_legacy(resources, &wanted.group, &wanted.version);
    Ok(Learnt { resources: Ok(json(resources)?), legacy: legacy_document(wanted, &list)? })
}

/// `APIResourceList`, in Go's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ApiResourceList<'a> {
    kind: &'static str,
    api_version: &'static str,
    group_version: String,
    resources: &'a [ApiResource],
}

/// A version's own document as far as its resources in the aggregated one tell it.
pub(super) fn legacy_of_resources(wanted: &GroupVersion, resources: &Bytes) -> Option<Bytes> {
    let resources: Vec<Resource> = serde_json::from_slice(resources).ok()?;
    let list = convert::to_legacy(&resources, &wanted.group, &wanted.version);
    legacy_document(wanted, &list).ok()
}

fn legacy_document(wanted: &GroupVersion, resources: &[ApiResource]) -> Result<Bytes, Fault> {
    let GroupVersion { group, version } = wanted;
    let group_version =
        if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    let list =
        ApiResourceList { kind: "APIResourceList", api_version: "v1", group_version, resources };
    let mut written = Vec::from(json(&list)?);
    // As Go ends what it writes to a stream.
    written.push(b'\n');
    Ok(written.into())
}

fn json(value: &(impl Serialize + ?Sized)) -> Result<Bytes, Fault> {
    let invalid = |text: String| Fault::new(Hop::InvalidDiscovery, text);
    let written = serde_json::to_vec(value).map_err(|error| invalid(error.to_string()))?;
    let written = escape::as_go(written);
    if written.len() > VERSION_BYTES_MAX {
        return Err(invalid(format!("the list is longer than {VERSION_BYTES_MAX} bytes")));
    }
    Ok(written.into())
}
