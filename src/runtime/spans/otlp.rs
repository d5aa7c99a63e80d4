//! Sends spans to a collector by OTLP over gRPC, in batches.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::interval;

use super::settings::Settings;
use super::{Attributes, Call, Parent, Span, SpansError, Value};
use crate::runtime::tasks;

const NAME: &str = "portico";
/// Spans that wait to be sent; what comes beyond is dropped and counted.
const QUEUE_MAX: usize = 4096;
/// Spans sent at once.
const BATCH_MAX: usize = 512;
/// How long a span waits for others.
const DELAY: Duration = Duration::from_secs(5);
/// How long the collector may take to take a batch.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The way to the task that sends.
#[derive(Debug)]
pub(super) struct Exporter {
    rate_per_million: u32,
    queue: mpsc::Sender<SpanData>,
    dropped: Arc<AtomicU64>,
    scope: InstrumentationScope,
}

impl Exporter {
    /// Begins to send as the file says.
    pub(super) fn start(
        file: &Path,
    ) -> Result<(Self, oneshot::Sender<()>, JoinHandle<()>), SpansError> {
        let settings = Settings::read(file)?;
        let made = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&settings.endpoint)
            .with_timeout(SEND_TIMEOUT)
            .build();
        let mut sender = made.map_err(|error| SpansError::Invalid {
            path: file.to_owned(),
            faults: format!("endpoint: {error}"),
        })?;
        let version = env!("CARGO_PKG_VERSION");
        let resource = Resource::builder_empty()
            .with_service_name(NAME)
            .with_attribute(KeyValue::new("service.version", version));
        sender.set_resource(&resource.build());
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let (ending, ended) = oneshot::channel();
        let dropped = Arc::new(AtomicU64::new(0));
        let task = tasks::spawn("spans", run(sender, waiting, ended, Arc::clone(&dropped)));
        tracing::info!(
            endpoint = settings.endpoint,
            rate_per_million = settings.rate_per_million,
            "sending spans"
        );
        let scope = InstrumentationScope::builder(NAME).with_version(version).build();
        let rate_per_million = settings.rate_per_million;
        Ok((Self { rate_per_million, queue, dropped, scope }, ending, task))
    }

    pub(super) fn rate_per_million(&self) -> u32 {
        self.rate_per_million
    }

    /// Never waits: what the task cannot keep up with is dropped.
    pub(super) fn send(&self, mut span: Span, ended: Instant) {
        let call = span.call.take().map(|call| self.call(&span, call, ended));
        for data in call.into_iter().chain([self.server(span, ended)]) {
            if self.queue.try_send(data).is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn server(&self, span: Span, ended: Instant) -> SpanData {
        let mut links = SpanLinks::default();
        if let Some(parent) = span.parent.filter(|_| !span.follows) {
            links.links.push(Link::new(remote(parent), Vec::new(), 0));
        }
        let followed = span.parent.filter(|_| span.follows);
        SpanData {
            span_context: context(&span, span.id),
            parent_span_id: id(followed.map_or(0, |parent| parent.span_id)),
            parent_span_is_remote: followed.is_some(),
            span_kind: SpanKind::Server,
            name: span.name.into(),
            start_time: span.began,
            end_time: span.began + (ended - span.begun),
            attributes: key_values(span.attributes),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: status(span.failed),
            instrumentation_scope: self.scope.clone(),
        }
    }

    fn call(&self, span: &Span, call: Call, ended: Instant) -> SpanData {
        let at = |instant: Instant| -> SystemTime { span.began + (instant - span.begun) };
        SpanData {
            span_context: context(span, call.id),
            parent_span_id: id(span.id),
            parent_span_is_remote: false,
            span_kind: SpanKind::Client,
            name: call.name.into(),
            start_time: at(call.begun),
            end_time: at(ended),
            attributes: key_values(call.attributes),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: status(call.failed),
            instrumentation_scope: self.scope.clone(),
        }
    }
}

fn id(number: u64) -> SpanId {
    SpanId::from_bytes(number.to_be_bytes())
}

fn context(span: &Span, span_id: u64) -> SpanContext {
    let trace_id = TraceId::from_bytes(span.trace_id.to_be_bytes());
    // A malformed state counts as if there were none.
    let state: TraceState = span.state.parse().unwrap_or_default();
    SpanContext::new(trace_id, id(span_id), TraceFlags::SAMPLED, false, state)
}

fn remote(parent: Parent) -> SpanContext {
    let trace_id = TraceId::from_bytes(parent.trace_id.to_be_bytes());
    let flags = TraceFlags::default().with_sampled(parent.sampled);
    SpanContext::new(trace_id, id(parent.span_id), flags, true, TraceState::default())
}

fn status(failed: bool) -> Status {
    if failed { Status::error("") } else { Status::Unset }
}

fn key_values(attributes: Attributes) -> Vec<KeyValue> {
    let pairs = attributes.into_iter().map(|(key, value)| match value {
        Value::Text(text) => KeyValue::new(key, text),
        Value::Number(number) => KeyValue::new(key, number),
        Value::Seconds(seconds) => KeyValue::new(key, seconds),
    });
    pairs.collect()
}

/// Sends what comes until it is told to end, or nobody is left to tell; then the rest.
async fn run(
    sender: SpanExporter,
    mut queue: mpsc::Receiver<SpanData>,
    mut ending: oneshot::Receiver<()>,
    dropped: Arc<AtomicU64>,
) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut tick = interval(DELAY);
    let mut over = false;
    loop {
        let room = BATCH_MAX - batch.len();
        let full = tokio::select! {
            _ = &mut ending, if !over => {
                over = true;
                queue.close();
                false
            }
            read = queue.recv_many(&mut batch, room) => {
                if read == 0 {
                    return send(&sender, &mut batch, &dropped).await;
                }
                read == room
            }
            _ = tick.tick() => true,
        };
        if full {
            send(&sender, &mut batch, &dropped).await;
        }
    }
}

async fn send(sender: &SpanExporter, batch: &mut Vec<SpanData>, dropped: &AtomicU64) {
    let lost = dropped.swap(0, Ordering::Relaxed);
    if lost > 0 {
        tracing::warn!(spans = lost, "spans dropped, they came faster than they could be sent");
    }
    if batch.is_empty() {
        return;
    }
    let spans = batch.len();
    if let Err(error) = sender.export(std::mem::take(batch)).await {
        tracing::warn!(spans, %error, "spans not sent");
    }
}
