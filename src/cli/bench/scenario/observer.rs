//! Looking at the target's aggregated document again and again, without being a load to it.
//!
//! One read at a time, compressed, with the `ETag` that is known, so that most answers are a 304; after
//! an answer a pause of [`PAUSE_PER_LOOK`] times what the look took, at least [`PAUSE_MIN`]. What a look finds became visible after
//! the look before it was sent: that is how late each finding can be, and it is kept with it.

use std::io::Read as _;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use flate2::read::GzDecoder;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, IF_NONE_MATCH};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::sight::{Document, Seen, Sight};
use crate::cli::bench::fleet::Fleet;

/// The shortest pause between two looks.
const PAUSE_MIN: Duration = Duration::from_millis(4);
/// The pause in looks: reading a long document takes CPU that the target may need.
const PAUSE_PER_LOOK: u32 = 1;
/// Bytes of a document after which no more of it is read.
const DOCUMENT_BYTES_MAX: u64 = 1 << 30;
/// After this long a look has failed.
const LOOK_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause after a look that failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Looks from a thread of its own until it is dropped.
#[derive(Debug)]
pub(super) struct Observer {
    pub(super) seen: watch::Receiver<Seen>,
    stopped: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    /// Begins to look at the server that `config` names for the groups of `fleet`.
    pub(super) fn start(
        config: kube::Config,
        fleet: Arc<Fleet>,
        seen: Seen,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = {
            let _guard = runtime.enter();
            Client::try_from(config).context("the target's credentials cannot be used")?
        };
        let (sender, seen) = watch::channel(seen);
        let stopped = CancellationToken::new();
        let looking = stopped.clone().run_until_cancelled_owned(async move {
            look_on(&client, &fleet, &sender).await;
        });
        let thread = std::thread::Builder::new()
            .name("bench-observer".to_owned())
            .spawn(move || {
                runtime.block_on(looking);
            })
            .context("the observer's thread cannot start")?;
        Ok(Self { seen, stopped, thread: Some(thread) })
    }

    /// Waits until what was seen is so.
    pub(super) async fn until(&mut self, so: impl FnMut(&Seen) -> bool) -> anyhow::Result<()> {
        let seen = self.seen.wait_for(so).await;
        seen.map(|_| ()).context("the observer's thread has ended")
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stopped.cancel();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the observer's thread panicked");
        }
    }
}

async fn look_on(client: &Client, fleet: &Fleet, seen: &watch::Sender<Seen>) {
    let mut etag: Option<HeaderValue> = None;
    let mut before = Instant::now();
    loop {
        let asked = Instant::now();
        let look = timeout(LOOK_TIMEOUT, look(client, etag.as_ref())).await;
        let look = look.unwrap_or_else(|_| bail_late());
        let failed = look.is_err();
        match look {
            Ok(look) => {
                let sight = Sight { at: look.at, late_at_most: look.at - before };
                let body = look.found.map(|(new, body)| {
                    etag = new;
                    body
                });
                let document = body.as_deref().map(Document::parse);
                seen.send_modify(|seen| seen.look(sight, document, fleet));
                before = asked;
            }
            Err(error) => seen.send_modify(|seen| seen.failed(format!("{error:#}"))),
        }
        let least = if failed { PAUSE_AFTER_FAILURE } else { PAUSE_MIN };
        sleep((asked.elapsed() * PAUSE_PER_LOOK).max(least)).await;
    }
}

fn bail_late() -> anyhow::Result<Look> {
    bail!("no answer within {LOOK_TIMEOUT:?}")
}

/// An answer of the target's.
struct Look {
    /// When its head came.
    at: Instant,
    /// The document with its `ETag`, unless it is the one that is known.
    found: Option<(Option<HeaderValue>, Vec<u8>)>,
}

async fn look(client: &Client, etag: Option<&HeaderValue>) -> anyhow::Result<Look> {
    let mut request =
        Request::get("/apis").header(ACCEPT, AGGREGATED).header(ACCEPT_ENCODING, "gzip");
    if let Some(etag) = etag {
        request = request.header(IF_NONE_MATCH, etag);
    }
    let response = client.send(request.body(Body::empty())?).await?;
    let at = Instant::now();
    match response.status() {
        StatusCode::NOT_MODIFIED => Ok(Look { at, found: None }),
        StatusCode::OK => {
            let etag = response.headers().get(ETAG).cloned();
            let zipped = response.headers().get(CONTENT_ENCODING).is_some();
            let body = response.into_body().collect().await.context("the document was cut")?;
            let mut document = Vec::new();
            let body = body.to_bytes();
            if zipped {
                let mut inflated = GzDecoder::new(&body[..]).take(DOCUMENT_BYTES_MAX);
                inflated.read_to_end(&mut document).context("the document is no gzip")?;
            } else {
                document.extend_from_slice(&body);
            }
            Ok(Look { at, found: Some((etag, document)) })
        }
        status => bail!("GET /apis was answered with {status}"),
    }
}
