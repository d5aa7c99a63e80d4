//! The access log: one line a request, written when it is over, without waiting for the file.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::USER_AGENT;
use http::request::Parts;
use http::{HeaderValue, Method, Uri, Version};

use super::AccessLogFormat;
use crate::body::{BodyError, Observe};
use crate::runtime::lines::{Buffer, LineLog};
use crate::runtime::telemetry::Phases;

/// Bytes of a user agent that are kept; upstream's audit log cuts there too.
const USER_AGENT_MAX: usize = 1024;

/// The access log as one data-plane thread sees it.
#[derive(Debug)]
pub struct AccessLog {
    buffer: Arc<Buffer>,
    format: AccessLogFormat,
}

impl AccessLog {
    /// The log for one more thread.
    pub fn for_thread(lines: &LineLog, format: AccessLogFormat) -> Arc<Self> {
        Arc::new(Self { buffer: lines.buffer(), format })
    }

    /// Writes a request's line.
    pub(super) fn write(&self, line: &Line<'_>) {
        self.buffer.append(|out| match self.format {
            AccessLogFormat::Json => line.write_json(out),
            AccessLogFormat::Text => line.write_text(out),
        });
    }
}

/// What is kept of a request's head for its line.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) version: Version,
    pub(super) user_agent: Option<HeaderValue>,
    /// Only of a request that has a body.
    received: OnceLock<Arc<AtomicU64>>,
}

impl Entry {
    pub(super) fn new(parts: &Parts) -> Self {
        Self {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            version: parts.version,
            user_agent: parts.headers.get(USER_AGENT).cloned(),
            received: OnceLock::new(),
        }
    }

    /// Counts the bytes of the request's body.
    pub(super) fn receiver(&self) -> Box<dyn Observe> {
        Box::new(Received(Arc::clone(self.received.get_or_init(Arc::default))))
    }

    /// The bytes of the request's body that have passed.
    pub(super) fn received(&self) -> u64 {
        self.received.get().map_or(0, |received| received.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Received(Arc<AtomicU64>);

impl Observe for Received {
    fn passed(&mut self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn ended(&mut self, _error: Option<&BodyError>) {}
}

/// The fields of a line, in order, with what they are.
pub const ACCESS_LOG_FIELDS: [(&str, &str); 22] = [
    ("time", "when the request was over, in RFC 3339 with microseconds"),
    ("verb", "as in `apiserver_request_total`: GET, LIST, WATCH, …"),
    ("method", "HTTP's"),
    ("uri", "path and query as they came"),
    ("protocol", "the client's: HTTP/1.0, HTTP/1.1 or HTTP/2.0"),
    ("user", "who was authenticated"),
    ("impersonatedUser", "as whom the request went on"),
    ("srcIP", "the client's address"),
    ("userAgent", "the client's, up to 1024 bytes"),
    ("apiService", "whose request it was"),
    ("endpoint", "the endpoint that was tried last"),
    ("cause", "why it was not answered by the backend, or not to its end (see failures.md)"),
    ("auditID", "the same id that the backend and the client see"),
    ("status", "the code; 499 when the client went away before there was one"),
    ("latencySeconds", "from the request's headers to the end of the answer"),
    ("queueSeconds", "waiting for a connection, less the next two"),
    ("connectSeconds", "TCP"),
    ("tlsSeconds", "the TLS handshake"),
    ("firstByteSeconds", "to the head of the answer, less what is above"),
    ("bodySeconds", "from there to the end of the answer"),
    ("bytesReceived", "of the request's body, or of a tunnel's client"),
    ("bytesSent", "of the answer's body, or to a tunnel's client"),
];

/// One request, as its line tells it; what is empty is left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub(super) entry: &'a Entry,
    pub(super) verb: &'a str,
    pub(super) user: &'a str,
    pub(super) impersonated_user: &'a str,
    pub(super) client: &'a [u8],
    pub(super) api_service: &'a str,
    pub(super) endpoint: &'a str,
    pub(super) code: u16,
    pub(super) cause: &'a str,
    pub(super) latency: Duration,
    pub(super) phases: Option<&'a Phases>,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) audit_id: &'a [u8],
}

/// Seconds of a phase, rounded to what is shown.
fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// A field's value.
enum Field<'a> {
    Text(&'a [u8]),
    Seconds(Duration),
    Count(u64),
}

impl Line<'_> {
    /// Every field with its name, in order; this is where the log's fields are defined.
    fn each(&self, mut tell: impl FnMut(&'static str, Field<'_>)) {
        let mut text = |name, value: &[u8]| {
            if !value.is_empty() {
                tell(name, Field::Text(value));
            }
        };
        let entry = self.entry;
        now(|now| text("time", now.as_bytes()));
        text("verb", self.verb.as_bytes());
        text("method", entry.method.as_str().as_bytes());
        let uri = entry.uri.path_and_query().map_or(entry.uri.path(), |target| target.as_str());
        text("uri", uri.as_bytes());
        text("protocol", protocol(entry.version).as_bytes());
        text("user", self.user.as_bytes());
        text("impersonatedUser", self.impersonated_user.as_bytes());
        text("srcIP", self.client);
        let agent = entry.user_agent.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
        text("userAgent", agent.get(..USER_AGENT_MAX).unwrap_or(agent));
        text("apiService", self.api_service.as_bytes());
        text("endpoint", self.endpoint.as_bytes());
        text("cause", self.cause.as_bytes());
        text("auditID", self.audit_id);
        tell("status", Field::Count(self.code.into()));
        tell("latencySeconds", Field::Seconds(self.latency));
        if let Some(phases) = self.phases {
            if phases.has_waited() {
                tell("queueSeconds", Field::Seconds(span(phases.queue)));
                tell("connectSeconds", Field::Seconds(span(phases.connect)));
                tell("tlsSeconds", Field::Seconds(span(phases.tls)));
            }
            tell("firstByteSeconds", Field::Seconds(span(phases.first_byte)));
            tell("bodySeconds", Field::Seconds(span(phases.body)));
        }
        tell("bytesReceived", Field::Count(self.received));
        tell("bytesSent", Field::Count(self.sent));
    }

    fn write_json(&self, out: &mut Vec<u8>) {
        let mut separator = b'{';
        self.each(|name, field| {
            out.push(separator);
            separator = b',';
            out.push(b'"');
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            match field {
                Field::Text(text) => write_string(out, text),
                Field::Seconds(_) | Field::Count(_) => write_number(out, &field),
            }
        });
        out.push(b'}');
    }

    fn write_text(&self, out: &mut Vec<u8>) {
        let mut first = true;
        self.each(|name, field| {
            if !std::mem::replace(&mut first, false) {
                out.push(b' ');
            }
            out.extend_from_slice(name.as_bytes());
            out.push(b'=');
            match field {
                Field::Text(text) if text.iter().copied().all(is_plain) => {
                    out.extend_from_slice(text);
                }
                Field::Text(text) => write_string(out, text),
                Field::Seconds(_) | Field::Count(_) => write_number(out, &field),
            }
        });
    }
}

/// True for bytes that need no quotes in the text form.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\')
}

/// As a JSON string; what is no UTF-8 becomes replacement characters. A `Vec` takes every byte.
fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    if text.iter().all(|&byte| byte == b' ' || is_plain(byte)) {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
    } else {
        serde_json::to_writer(out, &String::from_utf8_lossy(text)).ok();
    }
}

fn write_number(out: &mut Vec<u8>, field: &Field<'_>) {
    match field {
        Field::Seconds(time) => {
            write_digits(out, time.as_secs(), 1);
            out.push(b'.');
            write_digits(out, time.subsec_micros().into(), MICROS_DIGITS);
        }
        Field::Count(count) => write_digits(out, *count, 1),
        Field::Text(_) => {}
    }
}

/// Digits of a fraction of a second in microseconds.
const MICROS_DIGITS: usize = 6;

/// At least that many digits; the formatting machinery of the library costs several times as much.
fn write_digits(out: &mut Vec<u8>, mut number: u64, least: usize) {
    let begin = out.len();
    while number > 0 || out.len() < begin + least {
        out.push(b'0' + u8::try_from(number % 10).unwrap_or_default());
        number /= 10;
    }
    if let Some(digits) = out.get_mut(begin..) {
        digits.reverse();
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// The time in RFC 3339 with microseconds; date and second are made once a second.
fn now<R>(tell: impl FnOnce(&str) -> R) -> R {
    thread_local! {
        static TEXT: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    const SECONDS_LEN: usize = "2026-01-01T00:00:00".len();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TEXT.with_borrow_mut(|(second, text)| {
        if *second != now.as_secs() || text.is_empty() {
            *second = now.as_secs();
            let timestamp = i64::try_from(now.as_secs()).ok();
            let timestamp = timestamp.and_then(|at| jiff::Timestamp::from_second(at).ok());
            *text = timestamp.unwrap_or_default().to_string();
        }
        text.truncate(SECONDS_LEN);
        // Writing into a string cannot fail.
        write!(text, ".{:06}Z", now.subsec_micros()).ok();
        tell(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn line(check: impl FnOnce(&Line<'_>)) {
        let (parts, ()) = Request::get("https://h/apis/g/v1/x?limit=%22")
            .version(Version::HTTP_2)
            .header("user-agent", "kubectl/v1 \"x\"")
            .body(())
            .unwrap()
            .into_parts();
        let entry = Entry::new(&parts);
        entry.receiver().passed(7);
        check(&Line {
            entry: &entry,
            verb: "LIST",
            user: "jür gen",
            impersonated_user: "",
            client: b"10.0.0.1",
            api_service: "v1.g",
            endpoint: "127.0.0.1:1",
            code: 200,
            cause: "",
            latency: Duration::from_millis(1500),
            phases: Some(&Phases { queue: 0.125, first_byte: 0.25, ..Phases::default() }),
            received: entry.received(),
            sent: 9,
            audit_id: b"id",
        });
    }

    #[test]
    fn a_line_of_json_has_every_field_once() {
        line(|line| {
            let mut out = Vec::new();
            line.write_json(&mut out);
            let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
            let time = value["time"].as_str().unwrap();
            assert!(time.parse::<jiff::Timestamp>().is_ok() && time.len() == 27, "{time}");
            assert_eq!(value["uri"], "/apis/g/v1/x?limit=%22");
            assert_eq!(value["user"], "jür gen");
            assert_eq!(value["userAgent"], "kubectl/v1 \"x\"");
            assert_eq!(value["endpoint"], "127.0.0.1:1");
            assert_eq!(
                (value["status"].as_u64(), value["bytesReceived"].as_u64()),
                (Some(200), Some(7))
            );
            assert_eq!(value["latencySeconds"].as_f64(), Some(1.5));
            assert_eq!(value["firstByteSeconds"].as_f64(), Some(0.25));
            assert!(value.get("cause").is_none() && value.get("impersonatedUser").is_none());
        });
    }

    #[test]
    fn every_field_is_documented_in_order() {
        line(|line| {
            let line = Line { cause: "x", impersonated_user: "y", ..*line };
            let mut names = Vec::new();
            line.each(|name, _| names.push(name));
            assert_eq!(names, ACCESS_LOG_FIELDS.map(|(name, _)| name));
        });
    }

    #[test]
    fn a_line_of_text_quotes_what_holds_blanks() {
        line(|line| {
            let mut out = Vec::new();
            line.write_text(&mut out);
            let text = String::from_utf8(out).unwrap();
            assert!(text.contains(" verb=LIST method=GET uri=/apis/g/v1/x?limit=%22 "), "{text}");
            assert!(text.contains(" user=\"jür gen\" srcIP=10.0.0.1 "), "{text}");
            assert!(text.contains(" userAgent=\"kubectl/v1 \\\"x\\\"\" "), "{text}");
            assert!(text.ends_with(" bytesReceived=7 bytesSent=9"), "{text}");
        });
    }
}
