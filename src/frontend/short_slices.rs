//! Writes to clients in short slices.
//!
//! The TLS library takes over each slice by one `memcpy`, which glibc does by `rep movsb` from 2,112
//! bytes on where the processor is said to be good at it (`glibc.cpu.x86_rep_movsb_threshold`). AMD's
//! are several times slower at it wherever the two places lie badly to each other (glibc bug 30994).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are copied at a time.
const SLICE_MAX: usize = 2048;
/// Slices that are passed on at a time: what is written at most is two of the largest frames.
const SLICES_MAX: usize = 64;

/// A stream whose writes are passed on in short slices.
#[derive(Debug)]
pub(super) struct ShortSlices<S>(pub(super) S);

impl<S: AsyncRead + Unpin> AsyncRead for ShortSlices<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ShortSlices<S> {
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
        let stream = Pin::new(&mut self.0);
        if bufs.iter().all(|buf| buf.len() <= SLICE_MAX) {
            return match bufs {
                [buf] => stream.poll_write(cx, buf),
                bufs => stream.poll_write_vectored(cx, bufs),
            };
        }
        let mut short = [IoSlice::new(&[]); SLICES_MAX];
        let slices = bufs.iter().flat_map(|buf| buf.chunks(SLICE_MAX));
        let mut count = 0;
        for (short, slice) in short.iter_mut().zip(slices) {
            *short = IoSlice::new(slice);
            count += 1;
        }
        stream.poll_write_vectored(cx, short.get(..count).unwrap_or_default())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Takes all, and remembers how long the slices were.
    #[derive(Default)]
    struct Sink {
        bytes: Vec<u8>,
        lengths: Vec<usize>,
    }

    impl AsyncWrite for Sink {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.bytes.extend_from_slice(buf);
            self.lengths.push(buf.len());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            for buf in bufs {
                self.bytes.extend_from_slice(buf);
                self.lengths.push(buf.len());
            }
            Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn everything_is_written_in_order_and_in_short_slices() {
        for length in [0, 1, SLICE_MAX, SLICE_MAX + 1, 16_384, 16_393, 500_000] {
            let bytes: Vec<u8> = (0..=250).cycle().take(length).collect();
            let mut stream = ShortSlices(Sink::default());
            stream.write_all(&bytes).await.unwrap();
            let (head, rest) = bytes.split_at(length.min(9));
            let mut both = [IoSlice::new(head), IoSlice::new(rest)];
            let mut left = &mut both[..];
            while left.iter().any(|slice| !slice.is_empty()) {
                let written = stream.write_vectored(left).await.unwrap();
                IoSlice::advance_slices(&mut left, written);
            }
            let Sink { bytes: written, lengths } = stream.0;
            assert_eq!(written, [&bytes[..], &bytes[..]].concat(), "{length}");
            assert!(lengths.iter().all(|length| *length <= SLICE_MAX), "{lengths:?}");
        }
    }
}
