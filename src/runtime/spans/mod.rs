//! Spans of sampled requests, sent by OTLP (`--tracing-config-file`).
//!
//! A span is plain data until its request is over; then it goes into a queue, and a task of its own
//! sends what is in there. Without the feature `otlp` there is nowhere to send, so nothing is ever
//! sampled.

#[cfg_attr(feature = "otlp", path = "otlp.rs")]
#[cfg_attr(not(feature = "otlp"), path = "off.rs")]
mod exporter;
#[cfg(feature = "otlp")]
mod settings;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::exporter::Exporter;

/// How long the ending waits for the last spans to be sent.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
const MILLION: u32 = 1_000_000;

/// Decides which requests are sampled, and takes their spans.
#[derive(Debug, Default)]
pub struct Spans(Option<Exporter>);

/// Sends the last spans when the program ends.
#[derive(Debug, Default)]
pub struct Flush(Option<(oneshot::Sender<()>, JoinHandle<()>)>);

/// Why no spans can be sent.
#[derive(Debug, thiserror::Error)]
pub enum SpansError {
    /// The feature `otlp` is off.
    #[error("this portico was built without the feature otlp, it can send no spans")]
    NotBuilt,
    /// The file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file does not say what it should; each fault in a line of its own.
    #[error("{path}: {faults}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        faults: String,
    },
}

impl Spans {
    /// Sends spans as the file says, from a task on the calling runtime; without a file, none.
    pub fn start(file: Option<&Path>) -> Result<(Self, Flush), SpansError> {
        let Some(file) = file else { return Ok(Self::default().with(None)) };
        let (exporter, ending, task) = Exporter::start(file)?;
        Ok(Self(Some(exporter)).with(Some((ending, task))))
    }

    fn with(self, task: Option<(oneshot::Sender<()>, JoinHandle<()>)>) -> (Self, Flush) {
        (self, Flush(task))
    }

    /// True when requests may be sampled at all.
    pub fn are_sent(&self) -> bool {
        self.0.is_some()
    }

    /// A span for a request that began at `begun`, when it is sampled: as its parent is when that is
    /// trusted, else by the rate of the file. A parent that is not trusted is linked to only
    /// (`WithPublicEndpoint` upstream).
    pub fn sample(
        &self,
        begun: Instant,
        parent: Option<Parent>,
        trusted: bool,
    ) -> Option<Box<Span>> {
        let rate = self.0.as_ref()?.rate_per_million();
        let followed = parent.filter(|_| trusted);
        let sampled = match followed {
            Some(parent) => parent.sampled,
            None => rate > 0 && fastrand::u32(..MILLION) < rate,
        };
        sampled.then(|| Box::new(Span::new(begun, parent, followed.is_some())))
    }

    /// Takes the span of a request that is over.
    pub fn send(&self, span: Span, ended: Instant) {
        if let Some(exporter) = &self.0 {
            exporter.send(span, ended);
        }
    }
}

impl Flush {
    /// Returns when the last spans have been sent, or could not be in time.
    pub async fn finish(self) {
        let Some((ending, task)) = self.0 else { return };
        // A task that is gone has nothing to send.
        ending.send(()).ok();
        if timeout(FLUSH_TIMEOUT, task).await.is_err() {
            tracing::warn!("last spans not sent in time");
        }
    }
}

/// Whose child a request is: its `traceparent` header (W3C Trace Context §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    trace_id: u128,
    span_id: u64,
    sampled: bool,
}

impl Parent {
    /// Reads the header; `None` when it is malformed, which counts as if there were none.
    pub fn parse(header: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(header).ok()?;
        let mut parts = text.split('-');
        let version = hexadecimal(parts.next()?, 2)?;
        let trace_id = hexadecimal(parts.next()?, 32).filter(|&id| id != 0)?;
        let span_id = hexadecimal(parts.next()?, 16).filter(|&id| id != 0)?;
        let flags = hexadecimal(parts.next()?, 2)?;
        let more = parts.next().is_some();
        // Later versions may have more parts; 255 is none.
        if version == 255 || (version == 0 && more) {
            return None;
        }
        Some(Self { trace_id, span_id: u64::try_from(span_id).ok()?, sampled: flags & 1 == 1 })
    }
}

/// Lower case only, as the standard has it.
fn hexadecimal(text: &str, digits: usize) -> Option<u128> {
    let good =
        text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    good.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Number(i64),
    /// A duration, in seconds.
    Seconds(f64),
}

/// What is told of a span: by which names, is for who fills it in.
pub type Attributes = Vec<(&'static str, Value)>;

/// The span of one request, and of its call to a backend.
#[derive(Debug)]
#[cfg_attr(
    not(feature = "otlp"),
    expect(dead_code, reason = "some of it is read where spans are sent")
)]
pub struct Span {
    trace_id: u128,
    id: u64,
    parent: Option<Parent>,
    /// The parent is this span's; else it is only linked to.
    follows: bool,
    /// The parent's `tracestate`, when the parent is followed.
    pub state: String,
    began: SystemTime,
    begun: Instant,
    /// The span's name.
    pub name: String,
    /// What is told of the request.
    pub attributes: Attributes,
    /// The request failed, and not for the client's fault.
    pub failed: bool,
    /// The call to a backend.
    pub call: Option<Call>,
}

/// A sampled request's call to a backend; it ends with the request.
#[derive(Debug)]
#[cfg_attr(
    not(feature = "otlp"),
    expect(dead_code, reason = "some of it is read where spans are sent")
)]
pub struct Call {
    id: u64,
    begun: Instant,
    /// The span's name.
    pub name: String,
    /// What is told of the call.
    pub attributes: Attributes,
    /// The call failed, for whosever fault.
    pub failed: bool,
}

impl Span {
    fn new(begun: Instant, parent: Option<Parent>, follows: bool) -> Self {
        let trace_id = match parent {
            Some(parent) if follows => parent.trace_id,
            _ => fastrand::u128(1..),
        };
        Self {
            trace_id,
            id: fastrand::u64(1..),
            parent,
            follows,
            state: String::new(),
            began: SystemTime::now() - begun.elapsed(),
            begun,
            name: String::new(),
            attributes: Attributes::new(),
            failed: false,
            call: None,
        }
    }

    /// True when the span is a child of the request's own parent.
    pub fn follows_parent(&self) -> bool {
        self.follows
    }

    /// A call to a backend begins; gives its `traceparent`.
    pub fn begin_call(&mut self, name: String, attributes: Attributes) -> String {
        let id = fastrand::u64(1..);
        self.call = Some(Call { id, begun: Instant::now(), name, attributes, failed: false });
        format!("00-{:032x}-{id:016x}-01", self.trace_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[track_caller]
    fn check(header: &str, sampled: Option<bool>) {
        assert_eq!(
            Parent::parse(header.as_bytes()).map(|parent| parent.sampled),
            sampled,
            "{header}"
        );
    }

    #[test]
    fn parents_are_read_as_the_standard_says() {
        check(&format!("00-{TRACE}-{SPAN}-01"), Some(true));
        check(&format!("00-{TRACE}-{SPAN}-03"), Some(true));
        check(&format!("00-{TRACE}-{SPAN}-00"), Some(false));
        check(&format!("cc-{TRACE}-{SPAN}-01-more"), Some(true));
        check(&format!("00-{TRACE}-{SPAN}-01-more"), None);
        check(&format!("ff-{TRACE}-{SPAN}-01"), None);
        check(&format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None);
        check(&format!("00-{:032}-{SPAN}-01", 0), None);
        check(&format!("00-{TRACE}-{:016}-01", 0), None);
        check(&format!("00-{TRACE}-{SPAN}"), None);
        check(&format!("00-{TRACE}-{SPAN}-+1"), None);
        check("", None);
        assert_eq!(Parent::parse(b"00-\xff"), None);
    }

    #[test]
    fn a_call_is_the_spans_child_and_a_new_trace_is_begun_without_a_parent_to_follow() {
        let parent = Parent::parse(format!("00-{TRACE}-{SPAN}-01").as_bytes());
        let mut span = Span::new(Instant::now(), parent, true);
        let header = span.begin_call("GET".to_owned(), Attributes::new());
        let sent = Parent::parse(header.as_bytes()).unwrap();
        assert_eq!(sent.trace_id, parent.unwrap().trace_id);
        assert_eq!(Some(sent.span_id), span.call.as_ref().map(|call| call.id));
        assert!(sent.sampled && sent.span_id != span.id);
        let mut other = Span::new(Instant::now(), parent, false);
        assert!(!other.begin_call("GET".to_owned(), Attributes::new()).contains(TRACE));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_followed_is_a_fault() {
        let error = Spans::start(Some(Path::new("/nowhere/tracing.yaml"))).unwrap_err();
        let expected = if cfg!(feature = "otlp") { "cannot read" } else { "without the feature" };
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[tokio::test]
    async fn without_a_file_nothing_is_sampled() {
        let (spans, flush) = Spans::start(None).unwrap();
        let parent = Parent::parse(format!("00-{TRACE}-{SPAN}-01").as_bytes());
        assert!(!spans.are_sent() && spans.sample(Instant::now(), parent, true).is_none());
        flush.finish().await;
    }
}
