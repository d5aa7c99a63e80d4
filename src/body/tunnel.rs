//! What two connections become after a switch of protocols: bytes both ways until either end closes.
//!
//! A tunnel that waits holds no buffer. Bytes are read into a buffer that the whole thread shares and
//! written at once; only what the receiver does not take is kept, and nothing more is read until it
//! does.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::Observe;

/// Bytes read at a time, and so those kept at most for a receiver that does not take them.
const CHUNK_BYTES: usize = 32 * 1024;
/// How long the other end may take to take what was read before one end closed.
const FLUSH_MAX: Duration = Duration::from_secs(30);
/// How long an end that was told of the close may take to close too. To close while bytes of its are
/// unread would reset the connection, and with it what is still on its way to it.
const LINGER_MAX: Duration = Duration::from_secs(1);

thread_local! {
    static CHUNK: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK_BYTES].into_boxed_slice());
}

/// Which way bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    ToBackend,
    /// From the backend.
    ToClient,
}

/// A backend's connection after its 101, which waits for the client's.
#[derive(Debug)]
pub struct Tunnel {
    backend: Upgraded,
    pub(super) observer: Option<Box<dyn Observe>>,
}

impl Tunnel {
    /// A tunnel to this backend.
    pub fn new(backend: Upgraded) -> Self {
        Self { backend, observer: None }
    }

    /// Carries bytes between `client` and the backend until either of them closes, then closes both.
    pub async fn carry(mut self, client: Upgraded) {
        let (client, backend) = (TokioIo::new(client), TokioIo::new(self.backend));
        carry(client, backend, &mut self.observer).await;
        if let Some(mut observer) = self.observer {
            observer.ended(None);
        }
    }
}

type Observer = Option<Box<dyn Observe>>;

async fn carry<C, B>(mut client: C, mut backend: B, observer: &mut Observer)
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Way::new(Direction::ToBackend);
    let mut down = Way::new(Direction::ToClient);
    // The runtime's budget makes a socket seem not ready now and then, so that two ends which are
    // always ready do not keep the thread.
    let (direction, error) = poll_fn(|cx| {
        if let Poll::Ready(ended) = up.poll(&mut client, &mut backend, observer, cx) {
            return Poll::Ready((Direction::ToBackend, ended.err()));
        }
        if let Poll::Ready(ended) = down.poll(&mut backend, &mut client, observer, cx) {
            return Poll::Ready((Direction::ToClient, ended.err()));
        }
        Poll::Pending
    })
    .await;
    tracing::debug!(?direction, ?error, "tunnel ended");
    let flushing = poll_fn(|cx| {
        let sent = up.poll_close(&mut backend, observer, cx);
        let received = down.poll_close(&mut client, observer, cx);
        if sent.is_ready() && received.is_ready() { Poll::Ready(()) } else { Poll::Pending }
    });
    if timeout(FLUSH_MAX, flushing).await.is_err() {
        return tracing::debug!("tunnel cut with bytes that were not taken");
    }
    let lingering = poll_fn(|cx| {
        let client = poll_discard(&mut client, cx);
        let backend = poll_discard(&mut backend, cx);
        if client.is_ready() && backend.is_ready() { Poll::Ready(()) } else { Poll::Pending }
    });
    if timeout(LINGER_MAX, lingering).await.is_err() {
        tracing::debug!("tunnel cut at an end that did not close");
    }
}

/// One direction of a tunnel.
#[derive(Debug)]
struct Way {
    direction: Direction,
    /// What was read and not taken yet, from `start` on.
    kept: Vec<u8>,
    start: usize,
    /// True when the receiver may hold bytes back that were written to it.
    unflushed: bool,
    closed: bool,
}

/// What a look at the sender came to.
enum Read {
    /// There was something, and it was written or kept.
    Some,
    /// There is nothing now.
    Nothing,
    /// There will be no more.
    End(io::Result<()>),
}

impl Way {
    fn new(direction: Direction) -> Self {
        Self { direction, kept: Vec::new(), start: 0, unflushed: false, closed: false }
    }

    /// Carries until the sender has ended or either of them failed.
    fn poll<R, W>(
        &mut self,
        from: &mut R,
        to: &mut W,
        observer: &mut Observer,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            ready!(self.poll_kept(to, observer, cx))?;
            let read = CHUNK.with_borrow_mut(|chunk| {
                let mut buf = ReadBuf::new(chunk);
                let read = fill(from, &mut buf, cx);
                self.write(buf.filled(), to, observer, cx).map(|()| read)
            })?;
            match read {
                Read::Some => {}
                Read::Nothing => {
                    if self.unflushed && Pin::new(&mut *to).poll_flush(cx)?.is_ready() {
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
                Read::End(ended) => return Poll::Ready(ended),
            }
        }
    }

    /// Writes what the receiver takes now and keeps the rest.
    fn write<W: AsyncWrite + Unpin>(
        &mut self,
        mut bytes: &[u8],
        to: &mut W,
        observer: &mut Observer,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, bytes)? {
                Poll::Ready(count) => {
                    self.wrote(count, observer)?;
                    bytes = bytes.get(count..).unwrap_or_default();
                }
                Poll::Pending => {
                    self.kept = bytes.to_vec();
                    self.start = 0;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Ready when the receiver has taken all that was kept for it.
    fn poll_kept<W: AsyncWrite + Unpin>(
        &mut self,
        to: &mut W,
        observer: &mut Observer,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Some(bytes) = self.kept.get(self.start..).filter(|bytes| !bytes.is_empty()) {
            let count = ready!(Pin::new(&mut *to).poll_write(cx, bytes))?;
            self.wrote(count, observer)?;
            self.start += count;
        }
        self.kept = Vec::new();
        self.start = 0;
        Poll::Ready(Ok(()))
    }

    fn wrote(&mut self, count: usize, observer: &mut Observer) -> io::Result<()> {
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.unflushed = true;
        if let Some(observer) = observer {
            observer.carried(self.direction, count);
        }
        Ok(())
    }

    /// Gives the receiver what is left and tells it that no more comes; one that is gone is closed.
    fn poll_close<W: AsyncWrite + Unpin>(
        &mut self,
        to: &mut W,
        observer: &mut Observer,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if !self.closed {
            let kept = ready!(self.poll_kept(to, observer, cx));
            // Closing flushes first.
            let closed = match kept {
                Ok(()) => ready!(Pin::new(to).poll_shutdown(cx)),
                Err(error) => Err(error),
            };
            if let Err(error) = closed {
                tracing::debug!(direction = ?self.direction, %error, "end of a tunnel was gone");
            }
            self.closed = true;
        }
        Poll::Ready(())
    }
}

/// Reads what is there now, as far as it finds room.
fn fill<R: AsyncRead + Unpin>(from: &mut R, buf: &mut ReadBuf<'_>, cx: &mut Context<'_>) -> Read {
    while buf.remaining() > 0 {
        let before = buf.filled().len();
        match Pin::new(&mut *from).poll_read(cx, buf) {
            Poll::Ready(Ok(())) if buf.filled().len() == before => return Read::End(Ok(())),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Read::End(Err(error)),
            Poll::Pending if before == 0 => return Read::Nothing,
            Poll::Pending => return Read::Some,
        }
    }
    Read::Some
}

/// Ready when the sender has closed or is gone; what it still sends is for nobody.
fn poll_discard<R: AsyncRead + Unpin>(from: &mut R, cx: &mut Context<'_>) -> Poll<()> {
    CHUNK.with_borrow_mut(|chunk| {
        loop {
            let mut buf = ReadBuf::new(chunk);
            match fill(from, &mut buf, cx) {
                Read::Some => {}
                Read::Nothing => return Poll::Pending,
                Read::End(_) => return Poll::Ready(()),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::task::yield_now;

    use super::*;
    use crate::body::BodyError;

    /// Bytes to the backend, bytes to the client.
    #[derive(Clone, Debug, Default)]
    struct Counted(Arc<Mutex<(usize, usize)>>);

    impl Observe for Counted {
        fn ended(&mut self, _error: Option<&BodyError>) {}

        fn carried(&mut self, direction: Direction, bytes: usize) {
            let mut counted = self.0.lock().unwrap();
            match direction {
                Direction::ToBackend => counted.0 += bytes,
                Direction::ToClient => counted.1 += bytes,
            }
        }
    }

    #[tokio::test]
    async fn what_was_read_before_one_end_closed_reaches_the_other_and_both_are_closed() {
        // Narrow pipes, so that bytes must be kept.
        let ((mut client, near), (far, mut backend)) = (duplex(1000), duplex(7));
        let counted = Counted::default();
        let mut observer: Observer = Some(Box::new(counted.clone()));
        let sent: Vec<u8> = (0..100_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        let expected = sent.clone();
        let client = async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut rest = Vec::new();
            client.read_to_end(&mut rest).await.unwrap();
            rest
        };
        let backend = async move {
            backend.write_all(b"hello").await.unwrap();
            let mut received = Vec::new();
            backend.read_to_end(&mut received).await.unwrap();
            received
        };
        let ((), answered, received) =
            tokio::join!(carry(near, far, &mut observer), client, backend);
        assert_eq!(answered, b"hello");
        assert!(received == expected, "{} bytes", received.len());
        assert_eq!(*counted.0.lock().unwrap(), (100_000, 5));
    }

    #[tokio::test]
    async fn a_receiver_that_takes_nothing_holds_its_sender_back() {
        let ((mut client, near), (far, backend)) = (duplex(1), duplex(1));
        let mut observer = None;
        let writing = async {
            let (mut written, mut stuck) = (0, 0);
            while stuck < 100 {
                let pending = client.write_u8(0).now_or_never().is_none();
                if pending {
                    stuck += 1;
                } else {
                    (written, stuck) = (written + 1, 0);
                }
                // Gives the tunnel its turn.
                yield_now().await;
            }
            drop(backend);
            written
        };
        let ((), written) = tokio::join!(carry(near, far, &mut observer), writing);
        assert!((2..=CHUNK_BYTES).contains(&written), "{written}");
    }

    #[tokio::test]
    async fn an_end_that_is_gone_closes_the_other() {
        let ((client, near), (far, mut backend)) = (duplex(64), duplex(64));
        drop(client);
        let mut received = Vec::new();
        let mut observer = None;
        let ((), read) =
            tokio::join!(carry(near, far, &mut observer), backend.read_to_end(&mut received));
        assert_eq!(read.unwrap(), 0);
    }
}
