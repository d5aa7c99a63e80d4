//! Large frames of HTTP/2 written to the client several at a time.
//!
//! h2 flushes after each DATA frame, and most clients take frames of 16 KiB: that is a system call, a
//! packet, and over loopback a wake-up of the client, each. Where a frame is that large, more is likely
//! to follow; so [`Gathered`], above TLS, passes its flush on when it is asked a second time, and
//! [`Corked`], below, leaves the records in the TLS library's buffer until then, or until there are
//! many. h2 asks again when it has no more frames, in the same poll; what it does not ask for again the
//! wake brings, which [`Gathered`] gives its task.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use super::short_slices::ShortSlices;

/// Bytes from which on a write is one that others follow.
const LARGE_MIN: usize = 8 * 1024;
/// Bytes of records that are written though they may be held: four frames of 16 KiB.
const HELD_MAX: usize = 64 * 1024;
/// Bytes that the TLS library takes until some are written: another frame than are held.
pub(super) const TLS_BUFFER: usize = HELD_MAX + 32 * 1024;

/// What is above a [`Corked`] socket.
pub(super) trait Cork {
    /// Whether the socket may be written to later.
    fn hold(&mut self, held: bool);
}

impl<S> Cork for TlsStream<Corked<S>> {
    fn hold(&mut self, held: bool) {
        self.get_mut().0.held = held;
    }
}

impl<S: Cork> Cork for ShortSlices<S> {
    fn hold(&mut self, held: bool) {
        self.0.hold(held);
    }
}

impl<S: Cork> Cork for Box<S> {
    fn hold(&mut self, held: bool) {
        (**self).hold(held);
    }
}

/// A stream for h2, which asks again for a flush whenever it is polled.
#[derive(Debug)]
pub(super) struct Gathered<S> {
    stream: S,
    /// What was written last was large.
    large: bool,
}

impl<S> Gathered<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, large: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Cork + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.large = bufs.iter().map(|buf| buf.len()).sum::<usize>() >= LARGE_MIN;
        let large = self.large;
        self.stream.hold(large);
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        if large && written.is_pending() {
            // The TLS library's buffer is full, and who wakes this task is the socket.
            self.large = false;
            self.stream.hold(false);
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.large) {
            cx.waker().wake_by_ref();
            return Poll::Ready(Ok(()));
        }
        self.stream.hold(false);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.hold(false);
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A socket under TLS.
#[derive(Debug)]
pub(super) struct Corked<S> {
    socket: S,
    held: bool,
}

impl<S> Corked<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { socket, held: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    /// Pending, and nobody will wake the task, while the bytes are held: [`Gathered`] comes back.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.held && bufs.iter().map(|buf| buf.len()).sum::<usize>() < HELD_MAX {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    /// A TLS session of its own kind: it encrypts nothing and buffers as rustls does.
    struct Session {
        socket: Corked<Socket>,
        buffered: Vec<u8>,
        limit: usize,
    }

    /// How many bytes came at a time; no more while it is full.
    #[derive(Default)]
    struct Socket {
        writes: Vec<usize>,
        full: bool,
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Cork for Session {
        fn hold(&mut self, held: bool) {
            self.socket.held = held;
        }
    }

    impl Session {
        fn write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            while !self.buffered.is_empty() {
                let Poll::Ready(written) = Pin::new(&mut self.socket)
                    .poll_write_vectored(cx, &[IoSlice::new(&self.buffered)])
                else {
                    return Poll::Pending;
                };
                self.buffered.drain(..written.unwrap());
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Session {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            loop {
                let taken = buf.len().min(self.limit - self.buffered.len());
                self.buffered.extend_from_slice(&buf[..taken]);
                match (self.write_out(cx), taken) {
                    (Poll::Pending, 0) => return Poll::Pending,
                    (Poll::Ready(_), 0) => {}
                    _ => return Poll::Ready(Ok(taken)),
                }
            }
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            self.poll_write(cx, &bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.write_out(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.poll_flush(cx)
        }
    }

    impl AsyncWrite for Socket {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.full {
                return Poll::Pending;
            }
            self.writes.push(buf.len());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let [buf] = bufs else { unreachable!("the session has one buffer") };
            self.poll_write(cx, buf)
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A connection, as h2 has it.
    struct Connection {
        stream: Gathered<Session>,
        woken: Arc<Woken>,
    }

    impl Connection {
        fn new(limit: usize) -> Self {
            let socket = Corked::new(Socket::default());
            let stream = Gathered::new(Session { socket, buffered: Vec::new(), limit });
            Self { stream, woken: Arc::default() }
        }

        /// One frame and the flush after it; how many of its bytes were taken.
        fn frame(&mut self, length: usize) -> Poll<usize> {
            let waker = Waker::from(Arc::clone(&self.woken));
            let mut cx = Context::from_waker(&waker);
            let frame = vec![0; length];
            let written = Pin::new(&mut self.stream).poll_write(&mut cx, &frame);
            if written.is_ready() {
                self.flush();
            }
            written.map(Result::unwrap)
        }

        /// Whether nothing is left.
        fn flush(&mut self) -> bool {
            let waker = Waker::from(Arc::clone(&self.woken));
            let mut cx = Context::from_waker(&waker);
            Pin::new(&mut self.stream).poll_flush(&mut cx).is_ready()
        }

        fn socket(&mut self) -> &mut Socket {
            &mut self.stream.stream.socket.socket
        }

        fn woken(&self) -> usize {
            self.woken.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn what_is_small_is_written_at_once() {
        let mut connection = Connection::new(TLS_BUFFER);
        for length in [1, 100, LARGE_MIN - 1] {
            assert_eq!(connection.frame(length), Poll::Ready(length));
        }
        assert_eq!(connection.socket().writes, [1, 100, LARGE_MIN - 1]);
        assert_eq!(connection.woken(), 0);
    }

    #[test]
    fn large_frames_are_written_together_and_the_last_of_them_with_what_is_small() {
        let mut connection = Connection::new(TLS_BUFFER);
        for _ in 0..6 {
            assert_eq!(connection.frame(16_393), Poll::Ready(16_393));
        }
        assert_eq!(connection.socket().writes, [4 * 16_393]);
        assert_eq!(connection.frame(10), Poll::Ready(10));
        assert_eq!(connection.socket().writes, [4 * 16_393, 2 * 16_393 + 10]);
    }

    #[test]
    fn a_large_frame_that_nothing_follows_goes_when_its_task_runs_again() {
        let mut connection = Connection::new(TLS_BUFFER);
        assert_eq!(connection.frame(LARGE_MIN), Poll::Ready(LARGE_MIN));
        assert!(connection.socket().writes.is_empty());
        assert_eq!(connection.woken(), 1);
        assert!(connection.flush());
        assert_eq!(connection.socket().writes, [LARGE_MIN]);
        assert_eq!(connection.woken(), 1);
    }

    #[test]
    fn a_buffer_that_is_full_before_enough_is_held_is_written() {
        let mut connection = Connection::new(20_000);
        assert_eq!(connection.frame(16_393), Poll::Ready(16_393));
        assert_eq!(connection.frame(16_393), Poll::Ready(3_607));
        assert_eq!(connection.frame(12_786), Poll::Ready(12_786));
        assert_eq!(connection.socket().writes, [20_000, 12_786]);
    }

    #[test]
    fn a_client_that_reads_nothing_leaves_the_waking_to_its_socket() {
        let mut connection = Connection::new(TLS_BUFFER);
        connection.socket().full = true;
        while connection.frame(16_393).is_ready() {}
        let woken = connection.woken();
        assert_eq!(connection.frame(16_393), Poll::Pending);
        assert!(!connection.flush());
        assert_eq!(connection.woken(), woken, "the task runs for nothing");
        connection.socket().full = false;
        assert!(connection.flush());
        assert_eq!(connection.socket().writes, [TLS_BUFFER]);
    }
}
