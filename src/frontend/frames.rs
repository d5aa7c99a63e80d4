//! A client's HTTP/2 frames as they are read, below h2: those that bring nothing are counted.
//!
//! h2 answers pings and settings, and forgets the streams that its peer resets, as fast as they come
//! (CVE-2019-9512, -9515, -9511, CVE-2023-44487). Each is cheap, and a connection of them is nearly all
//! that its thread does: no memory grows, but other clients wait. Who sends them has an allowance, as
//! nginx has it: what is written to a client is to its credit, and so is time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// What a frame that brings nothing costs, in bytes that would have to be written to the client to
/// make up for it.
const COST: u32 = 64;
/// The same of one that makes more work: a stream that is reset, settings that may concern all streams.
const COST_DEAR: u32 = 10 * COST;
/// The time that gives the credit of one frame.
const CREDIT_PERIOD: Duration = Duration::from_millis(1);
/// Data in frames smaller than this brings nothing, in bytes.
const DATA_MIN: u32 = 64;
/// Windows that are opened by less bring nothing, in bytes.
const WINDOW_MIN: u32 = 1024;
/// Bytes that a client sends before its first frame.
const PREFACE: usize = 24;
/// Bytes of a frame's head.
const HEAD: usize = 9;

/// What a client may still send, and where in its frames reading has come.
#[derive(Debug)]
struct Allowance {
    /// Bytes left to spend.
    left: u32,
    most: u32,
    since: Instant,
    /// Bytes to the next head, or to its rest.
    skip: usize,
    head: [u8; HEAD + 4],
    filled: usize,
}

impl Allowance {
    /// For so many frames at a time.
    fn new(frames: u32) -> Self {
        let most = frames.saturating_mul(COST);
        let since = Instant::now();
        Self { left: most, most, since, skip: PREFACE, head: [0; HEAD + 4], filled: 0 }
    }

    /// Takes what was read; false when the frames in it were too many.
    fn read(&mut self, bytes: &[u8]) -> bool {
        let cost = self.cost(bytes);
        cost == 0 || self.spend(cost, Instant::now())
    }

    fn spend(&mut self, cost: u32, now: Instant) -> bool {
        let periods = (now - self.since).as_nanos() / CREDIT_PERIOD.as_nanos();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        self.since += CREDIT_PERIOD * periods;
        self.earn(periods.saturating_mul(COST));
        let left = self.left.checked_sub(cost);
        self.left = left.unwrap_or_default();
        left.is_some()
    }

    fn earn(&mut self, bytes: u32) {
        self.left = self.left.saturating_add(bytes).min(self.most);
    }

    /// What the frames cost whose heads are in these bytes.
    fn cost(&mut self, mut bytes: &[u8]) -> u32 {
        let mut cost = 0_u32;
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let Some((&byte, rest)) = bytes.split_first() else { return cost };
            if let Some(place) = self.head.get_mut(self.filled) {
                *place = byte;
            }
            (bytes, self.filled) = (rest, self.filled + 1);
            if let Some((frame, payload)) = Frame::parse(&self.head, self.filled) {
                cost = cost.saturating_add(frame.cost());
                (self.skip, self.filled) = (payload, 0);
            }
        }
    }
}

/// As much of a frame as tells what it is worth.
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    length: u32,
    /// Of a `WINDOW_UPDATE`.
    increment: u32,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// On DATA that it is the last, on SETTINGS that they acknowledge others.
const END_STREAM_OR_ACK: u8 = 1;

impl Frame {
    /// The frame, and how many bytes of it are still to come, when enough of it is there.
    fn parse(head: &[u8; HEAD + 4], filled: usize) -> Option<(Self, usize)> {
        let [a, b, c, kind, flags, _, _, _, _, increment @ ..] = *head;
        let length = u32::from_be_bytes([0, a, b, c]);
        let wanted = if kind == WINDOW_UPDATE && length == 4 { HEAD + 4 } else { HEAD };
        if filled < wanted.max(HEAD) {
            return None;
        }
        let left = usize::try_from(length).unwrap_or(usize::MAX).saturating_sub(wanted - HEAD);
        Some((Self { kind, flags, length, increment: u32::from_be_bytes(increment) }, left))
    }

    /// Of what h2 bounds by itself (heads and what continues them), nothing.
    fn cost(&self) -> u32 {
        let marked = self.flags & END_STREAM_OR_ACK != 0;
        match self.kind {
            HEADERS | CONTINUATION => 0,
            DATA if marked || self.length >= DATA_MIN => 0,
            WINDOW_UPDATE if self.increment >= WINDOW_MIN => 0,
            RST_STREAM => COST_DEAR,
            SETTINGS if !marked => COST_DEAR,
            // PING, PRIORITY, GOAWAY and what nobody knows.
            _ => COST,
        }
    }
}

/// A stream for h2, of which no more is read once the client has sent too many frames.
#[derive(Debug)]
pub(super) struct Metered<S> {
    stream: S,
    allowance: Allowance,
    flooded: Arc<AtomicBool>,
}

impl<S> Metered<S> {
    /// The stream, and what is set when there were more than `frames` at a time that bring nothing.
    pub(super) fn new(stream: S, frames: u32) -> (Self, Arc<AtomicBool>) {
        let flooded = Arc::new(AtomicBool::new(false));
        let allowance = Allowance::new(frames);
        (Self { stream, allowance, flooded: Arc::clone(&flooded) }, flooded)
    }

    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.allowance.earn(u32::try_from(bytes).unwrap_or(u32::MAX));
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    /// Pending for ever after a flood: whoever polls h2 looks at the mark next, and ends it.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.flooded.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if !self.allowance.read(buf.filled().get(before..).unwrap_or_default()) {
            self.flooded.store(true, Ordering::Relaxed);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    /// All of them after the preface, in pieces of each size: cuts anywhere change nothing.
    #[track_caller]
    fn check(frames: &[Vec<u8>], cost: u32) {
        let bytes = [vec![b'P'; PREFACE], frames.concat()].concat();
        for size in 1..=bytes.len() {
            let mut allowance = Allowance::new(1);
            let total: u32 = bytes.chunks(size).map(|piece| allowance.cost(piece)).sum();
            assert_eq!(total, cost, "in pieces of {size}");
        }
    }

    #[test]
    fn frames_that_carry_a_request_or_make_room_for_its_answer_cost_nothing() {
        let head = frame(HEADERS, 4, b"12345");
        let room = frame(WINDOW_UPDATE, 0, &4096_u32.to_be_bytes());
        let acknowledged = frame(SETTINGS, 1, b"");
        check(&[head.clone(), frame(CONTINUATION, 4, b"x"), room.clone()], 0);
        check(&[head.clone(), frame(DATA, 0, &[0; 64]), frame(DATA, 1, b"x"), head], 0);
        check(&[room, acknowledged], COST);
    }

    #[test]
    fn frames_that_bring_nothing_cost_and_dear_ones_more() {
        check(&[frame(6, 0, &[0; 8]), frame(6, 1, &[0; 8]), frame(2, 0, &[0; 5])], 3 * COST);
        check(&[frame(DATA, 0, b""), frame(DATA, 0, b"x"), frame(99, 0, b"xy")], 3 * COST);
        check(&[frame(WINDOW_UPDATE, 0, &1_u32.to_be_bytes())], COST);
        check(&[frame(WINDOW_UPDATE, 0, b"xyz")], COST);
        check(&[frame(RST_STREAM, 0, &[0; 4]), frame(SETTINGS, 0, &[0; 12])], 2 * COST_DEAR);
    }

    #[test]
    fn time_and_what_is_written_are_to_a_clients_credit_up_to_a_bound() {
        let mut allowance = Allowance::new(3);
        let begun = allowance.since;
        assert!(allowance.spend(3 * COST, begun));
        assert!(!allowance.spend(COST, begun));
        let later = begun + Duration::from_millis(1);
        assert!(allowance.spend(COST, later) && !allowance.spend(COST, later));
        allowance.earn(COST);
        assert!(allowance.spend(COST, later));
        allowance.earn(u32::MAX);
        let later = later + Duration::from_secs(1_000_000);
        assert!(allowance.spend(3 * COST, later) && !allowance.spend(1, later));
    }
}
