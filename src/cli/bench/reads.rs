//! The kinds of reads: what each asks for, and when it has succeeded.

use clap::ValueEnum;
use futures_util::TryStreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::StatusCode;

use super::answers::{AGGREGATED, Answers, Document, JSON};
use super::client::{Ask, Connection, Fault};

/// A kind of read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(super) enum Kind {
    /// The merged document of all APIs, `/apis` as APIGroupDiscoveryList.
    Aggregated,
    /// The same, compressed.
    Gzip,
    /// The same with the last ETag, to be answered 304.
    NotModified,
    /// The merged document of the core API, `/api`; only where there is one.
    Api,
    /// The list of groups, `/apis` as APIGroupList.
    Legacy,
    /// What clients without the merged document do: `/api` and `/apis`, then all group-versions at
    /// once (over HTTP/1.1 one by one).
    Walk,
}

impl Kind {
    /// As on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Aggregated => "aggregated",
            Self::Gzip => "gzip",
            Self::NotModified => "not-modified",
            Self::Api => "api",
            Self::Legacy => "legacy",
            Self::Walk => "walk",
        }
    }

    /// One read; how many bytes its answer had on the wire, without heads.
    pub(super) async fn read(
        self,
        connection: &Connection,
        answers: &Answers,
    ) -> Result<u64, Fault> {
        let get = |document, path, gzip| get(connection, answers, document, path, gzip);
        match self {
            Self::Aggregated => get(Document::Aggregated, "/apis", false).await,
            Self::Gzip => get(Document::Aggregated, "/apis", true).await,
            Self::Api => get(Document::Aggregated, "/api", false).await,
            Self::Legacy => get(Document::Groups, "/apis", false).await,
            Self::NotModified => not_modified(connection, answers).await,
            Self::Walk => walk(connection, answers).await,
        }
    }
}

async fn get(
    connection: &Connection,
    answers: &Answers,
    document: Document,
    path: &str,
    gzip: bool,
) -> Result<u64, Fault> {
    let accept = if document == Document::Aggregated { AGGREGATED } else { JSON };
    let ask = Ask { path, accept, gzip, if_none_match: None };
    let keep = |head: &super::client::Head| answers.is_new(document, path, head);
    let (head, body) = connection.get(&ask, keep).await?;
    answers.check(document, path, &head, &body)?;
    Ok(body.length)
}

async fn not_modified(connection: &Connection, answers: &Answers) -> Result<u64, Fault> {
    let (document, path) = (Document::Aggregated, "/apis");
    if answers.etag(document, path).is_none() {
        get(connection, answers, document, path, false).await?;
    }
    let Some(etag) = answers.etag(document, path) else {
        return Err(Fault("the server gives no ETag".to_owned()));
    };
    let ask = Ask { path, accept: AGGREGATED, gzip: false, if_none_match: Some(etag) };
    let keep = |head: &super::client::Head| answers.is_new(document, path, head);
    let (head, body) = connection.get(&ask, keep).await?;
    if head.status == StatusCode::NOT_MODIFIED {
        return Ok(body.length);
    }
    // A right answer if the document has changed, but none that shows what a 304 costs.
    answers.check(document, path, &head, &body)?;
    Err(Fault("answered 200 instead of 304: the document had changed".to_owned()))
}

async fn walk(connection: &Connection, answers: &Answers) -> Result<u64, Fault> {
    let mut bytes = 0;
    let mut paths: Vec<String> = Vec::new();
    match get(connection, answers, Document::Versions, "/api", false).await {
        Ok(length) => {
            bytes += length;
            let core = answers.contents(Document::Versions, "/api").unwrap_or_default();
            paths.extend(core.group_versions.iter().map(|version| format!("/api/{version}")));
        }
        // An aggregator without a core API.
        Err(fault) if fault.0.starts_with("answered 404") => {}
        Err(fault) => return Err(Fault::new("/api", fault)),
    }
    let listed = get(connection, answers, Document::Groups, "/apis", false).await;
    bytes += listed.map_err(|fault| Fault::new("/apis", fault))?;
    let groups = answers.contents(Document::Groups, "/apis").unwrap_or_default();
    paths.extend(groups.group_versions.iter().map(|version| format!("/apis/{version}")));
    let reads: FuturesUnordered<_> = paths
        .iter()
        .map(|path| async move {
            let read = get(connection, answers, Document::Resources, path, false).await;
            // A connection that broke is no one path's fault.
            read.map_err(|fault| {
                if fault.0.starts_with("connection broke") {
                    fault
                } else {
                    Fault::new(path, fault)
                }
            })
        })
        .collect();
    let listed = reads.try_fold(0, async |sum, length| Ok(sum + length)).await;
    Ok(bytes + listed?)
}
