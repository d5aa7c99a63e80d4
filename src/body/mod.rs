//! One body for all that is carried: HTTP/2 streams, HTTP/1.1 bodies, ready bytes and watches.
//!
//! An abort is never an end: a body that stops before its sender ended it gives an error, which
//! whoever carries it must turn into a reset or a closed connection.

mod kept;
mod pump;
mod stalls;
mod tunnel;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

pub use kept::{Kept, KeptRoom};
pub use pump::{PumpError, pump, pump_to_client};
pub use stalls::Stalls;
pub use tunnel::{Direction, Tunnel};

/// Bytes on their way, with an optional deadline and an optional observer.
pub struct Body {
    source: Source,
    deadline: Deadline,
    observer: Option<Box<dyn Observe>>,
    trailer_filter: Option<TrailerFilter>,
    last_line: Option<Box<LastLine>>,
}

/// When a body of lines is ended here, before its sender does it.
struct LastLine {
    due: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_due: bool,
    /// What was handed on last ended a line.
    is_whole: bool,
}

/// What may pass of a body's trailers.
pub type TrailerFilter = Arc<dyn Fn(HeaderMap) -> HeaderMap + Send + Sync>;

/// Learns what became of a body; dropped with it, so that a body that is cancelled is seen too.
pub trait Observe: Send + std::fmt::Debug {
    /// Bytes of data were handed on.
    fn passed(&mut self, _bytes: usize) {}
    /// The body came to its end (`None`) or was aborted by its sender.
    fn ended(&mut self, error: Option<&BodyError>);

    /// A tunnel carried that many bytes; told as they go.
    fn carried(&mut self, _direction: Direction, _bytes: usize) {}
}

/// Why a body did not come to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BodyError {
    /// The sender reset the HTTP/2 stream.
    #[error("stream reset by sender: {0}")]
    Reset(h2::Reason),
    /// The sender closed the connection, or stopped without ending the body.
    #[error("body aborted: {0}")]
    Aborted(String),
    /// The request's deadline passed while the body was on its way.
    #[error("deadline passed while the body was on its way")]
    Deadline,
    /// The receiver took nothing for too long, or too much waited for such receivers.
    #[error("receiver did not take the body")]
    Stalled,
}

impl BodyError {
    /// The reason to reset the receiver's stream with; never one that looks like a clean end.
    pub fn reset_reason(&self) -> h2::Reason {
        match self {
            Self::Reset(reason) if *reason != h2::Reason::NO_ERROR => *reason,
            Self::Reset(_) | Self::Aborted(_) | Self::Deadline => h2::Reason::INTERNAL_ERROR,
            Self::Stalled => h2::Reason::ENHANCE_YOUR_CALM,
        }
    }

    fn from_h2(error: &h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::Reset(reason),
            _ => Self::Aborted(error.to_string()),
        }
    }
}

/// A stream of chunks made here, such as a watch on portico's own objects.
pub type Chunks = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body")
            .field("source", &self.source)
            .field("deadline", &self.deadline)
            .field("observer", &self.observer)
            .finish_non_exhaustive()
    }
}

enum Source {
    Empty,
    Ready(Bytes),
    Parts(Parts),
    Http2 {
        stream: h2::RecvStream,
        held: usize,
        trailers: bool,
    },
    Http1(hyper::body::Incoming),
    Chunks(Chunks),
    Kept(kept::Reader),
    /// No bytes: what the connection is for after this message.
    Tunnel(Box<Tunnel>),
    /// After trailers, an end or an error.
    Done,
}

/// Ready pieces that many readers share, and how far one of them has come.
struct Parts {
    all: Arc<[Bytes]>,
    next: usize,
    /// Bytes that are still to come.
    left: u64,
}

impl Parts {
    fn next(&mut self) -> Option<Bytes> {
        let part = self.all.get(self.next)?.clone();
        self.next += 1;
        self.left -= part.len() as u64;
        Some(part)
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Ready(_) => "Ready",
            Self::Parts(_) => "Parts",
            Self::Http2 { .. } => "Http2",
            Self::Http1(_) => "Http1",
            Self::Chunks(_) => "Chunks",
            Self::Kept(_) => "Kept",
            Self::Tunnel(_) => "Tunnel",
            Self::Done => "Done",
        })
    }
}

#[derive(Debug)]
enum Deadline {
    None,
    /// Not yet needed: a body that is there at once never touches the timer.
    At(Instant),
    Armed(Pin<Box<Sleep>>),
}

impl Body {
    /// A body without bytes.
    pub fn empty() -> Self {
        Self::new(Source::Empty)
    }

    /// The stream of an HTTP/2 message; its flow-control capacity is given back as the bytes are
    /// handed on.
    pub fn http2(stream: h2::RecvStream) -> Self {
        if stream.is_end_stream() {
            return Self::empty();
        }
        Self::new(Source::Http2 { stream, held: 0, trailers: false })
    }

    /// The body of an HTTP/1.1 message.
    pub fn http1(incoming: hyper::body::Incoming) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        Self::new(Source::Http1(incoming))
    }

    /// Several ready pieces one after the other; none of them may be empty.
    pub fn parts(parts: Arc<[Bytes]>) -> Self {
        let left = parts.iter().map(|part| part.len() as u64).sum();
        if left == 0 {
            Self::empty()
        } else {
            Self::new(Source::Parts(Parts { all: parts, next: 0, left }))
        }
    }

    /// A body made here, piece by piece, that ends when the stream ends.
    pub fn chunks(chunks: Chunks) -> Self {
        Self::new(Source::Chunks(chunks))
    }

    fn kept(reader: kept::Reader) -> Self {
        Self::new(Source::Kept(reader))
    }

    /// The body of a 101: none, and the connection is the tunnel's from then on.
    pub fn tunnel(tunnel: Tunnel) -> Self {
        Self::new(Source::Tunnel(Box::new(tunnel)))
    }

    /// Takes the tunnel out, with the observer, when there is one.
    pub fn take_tunnel(&mut self) -> Option<Tunnel> {
        if !matches!(self.source, Source::Tunnel(_)) {
            return None;
        }
        let Source::Tunnel(mut tunnel) = std::mem::replace(&mut self.source, Source::Done) else {
            return None;
        };
        tunnel.observer = self.observer.take();
        Some(*tunnel)
    }

    fn new(source: Source) -> Self {
        let deadline = Deadline::None;
        Self { source, deadline, observer: None, trailer_filter: None, last_line: None }
    }

    /// From now on the body must be over by `deadline`, else it aborts.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Deadline::At(deadline);
    }

    /// When the body must be over.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.deadline {
            Deadline::None => None,
            Deadline::At(at) => Some(*at),
            Deadline::Armed(sleep) => Some(sleep.deadline()),
        }
    }

    /// The body must be over by `deadline`, unless it has a deadline already.
    pub fn limit(&mut self, deadline: Instant) {
        if matches!(self.deadline, Deadline::None) {
            self.deadline = Deadline::At(deadline);
        }
    }

    /// Tells `observer` from now on what becomes of the body; of one that is over, at once.
    pub fn set_observer(&mut self, mut observer: Box<dyn Observe>) {
        if self.is_end_stream() && !matches!(self.source, Source::Tunnel(_)) {
            observer.ended(None);
        } else {
            self.observer = Some(observer);
        }
    }

    /// Lets `filter` decide what passes of the trailers.
    pub fn set_trailer_filter(&mut self, filter: TrailerFilter) {
        self.trailer_filter = Some(filter);
    }

    /// Ends the body, which has to be one of lines, after a whole line once `due` is ready.
    pub fn end_lines(&mut self, due: impl Future<Output = ()> + Send + 'static) {
        let last_line = LastLine { due: Box::pin(due), is_due: false, is_whole: true };
        self.last_line = Some(Box::new(last_line));
    }

    /// True when no frame will come any more.
    pub fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty | Source::Tunnel(_) | Source::Done => true,
            Source::Ready(_) | Source::Chunks(_) => false,
            Source::Parts(parts) => parts.left == 0,
            Source::Http2 { stream, .. } => stream.is_end_stream(),
            Source::Http1(incoming) => incoming.is_end_stream(),
            Source::Kept(reader) => reader.is_end_stream(),
        }
    }

    /// Resolves when the deadline has passed; pending when there is none.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Deadline::At(at) = self.deadline {
            self.deadline = Deadline::Armed(Box::pin(tokio::time::sleep_until(at)));
        }
        match &mut self.deadline {
            Deadline::Armed(sleep) => sleep.as_mut().poll(cx),
            Deadline::None | Deadline::At(_) => Poll::Pending,
        }
    }

    /// The next frame; an error is the last thing that comes.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.last_line.as_mut().is_some_and(|last_line| last_line.poll(cx).is_ready()) {
            self.source = Source::Done;
        }
        let next = match self.source.poll_next(cx) {
            Poll::Pending if self.poll_deadline(cx).is_ready() => Some(Err(BodyError::Deadline)),
            Poll::Pending => return Poll::Pending,
            Poll::Ready(next) => self.filter_trailers(next),
        };
        match &next {
            Some(Ok(frame)) => {
                if let (Some(last_line), Some(data)) = (&mut self.last_line, frame.data_ref()) {
                    last_line.is_whole = data.last() == Some(&b'\n');
                }
                if frame.is_trailers() {
                    self.source = Source::Done;
                }
                if let Some(observer) = &mut self.observer {
                    observer.passed(frame.data_ref().map_or(0, Bytes::len));
                    if self.is_end_stream() {
                        self.observe_end(None);
                    }
                }
            }
            Some(Err(error)) => {
                self.source = Source::Done;
                self.observe_end(Some(error));
            }
            None => {
                self.source = Source::Done;
                self.observe_end(None);
            }
        }
        Poll::Ready(next)
    }

    fn filter_trailers(
        &self,
        next: Option<Result<Frame<Bytes>, BodyError>>,
    ) -> Option<Result<Frame<Bytes>, BodyError>> {
        let Some(filter) = &self.trailer_filter else { return next };
        next.map(|frame| {
            frame.map(|frame| match frame.into_trailers() {
                Ok(trailers) => Frame::trailers(filter(trailers)),
                Err(data) => data,
            })
        })
    }

    fn observe_end(&mut self, error: Option<&BodyError>) {
        if let Some(mut observer) = self.observer.take() {
            observer.ended(error);
        }
    }

    /// Ends a body that its receiver does not take.
    pub fn abort(&mut self, error: &BodyError) {
        self.source = Source::Done;
        self.observe_end(Some(error));
    }

    /// Bytes that its sender has sent and nobody was handed yet.
    fn unread(&mut self) -> usize {
        match &mut self.source {
            Source::Http2 { stream, .. } => stream.flow_control().used_capacity(),
            _ => 0,
        }
    }

    /// Ends a body of which nothing needs to be carried, as in the answer to a HEAD.
    pub fn finish(mut self) {
        self.observe_end(None);
    }
}

impl LastLine {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.is_due = self.is_due || self.due.as_mut().poll(cx).is_ready();
        if self.is_due && self.is_whole { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// A response of our own with all its bytes.
pub fn response(
    code: StatusCode,
    content_type: &'static str,
    body: impl Into<Body>,
) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::empty() } else { Self::new(Source::Ready(bytes)) }
    }
}

impl Source {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Empty | Self::Tunnel(_) | Self::Done => Poll::Ready(None),
            Self::Ready(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Done;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Self::Parts(parts) => Poll::Ready(parts.next().map(|part| Ok(Frame::data(part)))),
            Self::Kept(reader) => reader.poll_next(cx),
            Self::Chunks(chunks) => {
                chunks.as_mut().poll_next(cx).map(|next| next.map(|chunk| Ok(Frame::data(chunk))))
            }
            Self::Http1(incoming) => Pin::new(incoming).poll_frame(cx).map(|next| {
                next.map(|frame| frame.map_err(|error| BodyError::Aborted(error.to_string())))
            }),
            Self::Http2 { stream, held, trailers } => {
                // The bytes of the last frame are on their way: only now may the sender go on.
                if *held > 0 {
                    let released = stream.flow_control().release_capacity(*held);
                    *held = 0;
                    if let Err(error) = released {
                        return Poll::Ready(Some(Err(BodyError::from_h2(&error))));
                    }
                }
                poll_http2(stream, held, trailers, cx)
            }
        }
    }
}

fn poll_http2(
    stream: &mut h2::RecvStream,
    held: &mut usize,
    trailers: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    while !*trailers {
        match ready!(stream.poll_data(cx)) {
            // Empty frames are not passed on: they count against the receiver's patience.
            Some(Ok(bytes)) if bytes.is_empty() => {}
            Some(Ok(bytes)) => {
                *held = bytes.len();
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Some(Err(error)) => return Poll::Ready(Some(Err(BodyError::from_h2(&error)))),
            None => *trailers = true,
        }
    }
    match ready!(stream.poll_trailers(cx)) {
        Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
        Ok(None) if stream.is_end_stream() => Poll::Ready(None),
        Ok(None) => {
            let error = BodyError::Aborted("the stream stopped before its end".to_owned());
            Poll::Ready(Some(Err(error)))
        }
        Err(error) => Poll::Ready(Some(Err(BodyError::from_h2(&error)))),
    }
}

/// For hyper, which carries bodies on HTTP/1.1.
impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        Self::is_end_stream(self)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty | Source::Tunnel(_) | Source::Done => SizeHint::with_exact(0),
            Source::Ready(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Parts(parts) => SizeHint::with_exact(parts.left),
            Source::Http1(incoming) => incoming.size_hint(),
            Source::Kept(reader) => reader.size_hint(),
            Source::Http2 { .. } | Source::Chunks(_) => SizeHint::default(),
        }
    }
}
