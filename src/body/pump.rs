//! A body into an HTTP/2 stream, with the flow control of both sides coupled: the sender is given
//! room only as the receiver takes bytes, so nothing queues in between.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::SendStream;
use http_body::Frame;

use super::stalls::Waiting;
use super::{Body, BodyError, Stalls};

/// Why a body did not reach its receiver whole.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The body's sender aborted; the receiver's stream was reset accordingly.
    #[error(transparent)]
    Sender(#[from] BodyError),
    /// The receiver reset its stream or its connection is gone.
    #[error("receiver gone: {0}")]
    Receiver(h2::Error),
    /// The receiver's stream was closed before the body was over.
    #[error("receiver gone: stream closed")]
    Closed,
}

/// Carries `body` into `stream` until one of them ends. When the body aborts, the stream is reset,
/// never ended; when the receiver resets, the body is dropped, which cancels its sender.
pub async fn pump(body: Body, stream: &mut SendStream<Bytes>) -> Result<(), PumpError> {
    carry(body, stream, Waiting::new(None)).await
}

/// Does the same for a receiver who may not want what it asked for: `stalls` says what it may leave.
pub async fn pump_to_client(
    body: Body,
    stream: &mut SendStream<Bytes>,
    stalls: &Stalls,
) -> Result<(), PumpError> {
    carry(body, stream, Waiting::new(Some(stalls))).await
}

async fn carry(
    mut body: Body,
    stream: &mut SendStream<Bytes>,
    mut waiting: Waiting<'_>,
) -> Result<(), PumpError> {
    loop {
        let frame = poll_fn(|cx| poll_frame(&mut body, stream, cx)).await?;
        let Some(frame) = frame else {
            // The end came without a frame that could carry it.
            return stream.send_data(Bytes::new(), true).map_err(PumpError::Receiver);
        };
        match frame.into_data() {
            Ok(bytes) => {
                let last = send(&mut body, stream, bytes, &mut waiting).await?;
                waiting.taken();
                if last {
                    return Ok(());
                }
            }
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                return stream.send_trailers(trailers).map_err(PumpError::Receiver);
            }
        }
    }
}

/// The next frame, or the receiver's reset, whichever comes first.
fn poll_frame(
    body: &mut Body,
    stream: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Frame<Bytes>>, PumpError>> {
    match body.poll_next(cx) {
        Poll::Ready(Some(Ok(frame))) => Poll::Ready(Ok(Some(frame))),
        Poll::Ready(None) => Poll::Ready(Ok(None)),
        Poll::Ready(Some(Err(error))) => {
            stream.send_reset(error.reset_reason());
            Poll::Ready(Err(error.into()))
        }
        Poll::Pending => match stream.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => Poll::Ready(Err(PumpError::Receiver(reason.into()))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(PumpError::Receiver(error))),
            Poll::Pending => Poll::Pending,
        },
    }
}

/// Sends one frame's bytes as the receiver gives room; true when they were the last.
async fn send(
    body: &mut Body,
    stream: &mut SendStream<Bytes>,
    mut bytes: Bytes,
    waiting: &mut Waiting<'_>,
) -> Result<bool, PumpError> {
    loop {
        stream.reserve_capacity(bytes.len());
        let room = match stream.capacity() {
            0 => poll_fn(|cx| poll_room(body, stream, waiting, cx)).await?,
            room => room,
        };
        let part = bytes.split_to(room.min(bytes.len()));
        let last = bytes.is_empty() && body.is_end_stream();
        stream.send_data(part, last).map_err(PumpError::Receiver)?;
        if bytes.is_empty() {
            return Ok(last);
        }
    }
}

/// Room at the receiver, or the body's deadline, or that of its receiver: one that reads too slowly
/// meets them too.
fn poll_room(
    body: &mut Body,
    stream: &mut SendStream<Bytes>,
    waiting: &mut Waiting<'_>,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, PumpError>> {
    match stream.poll_capacity(cx) {
        Poll::Ready(Some(Ok(0))) => {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(room))) => return Poll::Ready(Ok(room)),
        Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(PumpError::Receiver(error))),
        Poll::Ready(None) => return Poll::Ready(Err(PumpError::Closed)),
        Poll::Pending => {}
    }
    let error = if body.poll_deadline(cx).is_ready() {
        BodyError::Deadline
    } else if waiting.poll(|| body.unread(), cx).is_ready() {
        BodyError::Stalled
    } else {
        return Poll::Pending;
    };
    stream.send_reset(error.reset_reason());
    body.abort(&error);
    Poll::Ready(Err(error.into()))
}
