//! HTTP/2 by hand: frames of the test's own, well-formed or not, and those that come back.

use std::future::Future;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::client::tls;
use crate::pki::PKI;
use crate::rig::{Rig, within};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const ACK: u8 = 1;

/// `ENHANCE_YOUR_CALM`.
pub(crate) const CALM: u32 = 11;

/// One frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Self {
        Self { kind, flags, stream, payload: payload.to_vec() }
    }

    /// A request's head, which ends with this frame.
    pub(crate) fn head(stream: u32, method: &str, path: &str, flags: u8) -> Self {
        Self::new(HEADERS, flags | END_HEADERS, stream, &block(method, path))
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], self.kind, self.flags];
        bytes.extend_from_slice(&self.stream.to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// The last number in it: the code of a GOAWAY (whose words follow it) or of a reset.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A header block of literals that are not indexed.
pub(crate) fn block(method: &str, path: &str) -> Vec<u8> {
    let fields =
        [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)];
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // One byte holds lengths up to 126.
            assert!(text.len() < 127);
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// One connection of alice's.
pub(crate) struct RawHttp2 {
    reader: ReadHalf<TlsStream<TcpStream>>,
    writer: WriteHalf<TlsStream<TcpStream>>,
}

impl RawHttp2 {
    /// With these settings, each a number and a value.
    pub(crate) async fn connect(rig: &Rig, settings: &[(u16, u32)]) -> Self {
        let (reader, writer) = split(tls(rig.address, "h2", Some(&PKI.alice)).await);
        let mut client = Self { reader, writer };
        let mut payload = Vec::new();
        for (number, value) in settings {
            payload.extend_from_slice(&number.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        client.writer.write_all(PREFACE).await.unwrap();
        client.send(&[Frame::new(SETTINGS, 0, 0, &payload)]).await.unwrap();
        client
    }

    pub(crate) async fn send(&mut self, frames: &[Frame]) -> std::io::Result<()> {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
        self.writer.write_all(&bytes).await?;
        self.writer.flush().await
    }

    /// The next frame; `None` when the connection is over.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        next(&mut self.reader).await
    }

    /// Waits for a frame of one of these kinds.
    pub(crate) async fn until(&mut self, kinds: &[u8]) -> Frame {
        let waiting = async {
            loop {
                let frame = self.next().await.expect("the connection is over");
                if kinds.contains(&frame.kind) {
                    return frame;
                }
            }
        };
        within("a frame", waiting).await
    }

    /// Sends batch after batch, and reads all the while, until the connection is over. Gives the last
    /// GOAWAY's code.
    pub(crate) async fn flood(self, mut batch: impl FnMut(u32) -> Vec<Frame>) -> Option<u32> {
        let Self { mut reader, mut writer } = self;
        let writing = async {
            let mut number = 0;
            loop {
                let bytes: Vec<u8> = batch(number).iter().flat_map(Frame::bytes).collect();
                if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                    return std::future::pending::<()>().await;
                }
                number += 1;
            }
        };
        within(
            "the end of a flood",
            until_over(writing, async {
                let mut code = None;
                while let Some(frame) = next(&mut reader).await {
                    if frame.kind == GOAWAY {
                        code = Some(frame.code());
                    }
                }
                code
            }),
        )
        .await
    }

    /// The connection's socket.
    pub(crate) fn into_inner(self) -> TlsStream<TcpStream> {
        self.reader.unsplit(self.writer)
    }
}

async fn until_over<T>(forever: impl Future<Output = ()>, ending: impl Future<Output = T>) -> T {
    tokio::pin!(forever, ending);
    tokio::select! {
        () = &mut forever => ending.await,
        ended = &mut ending => ended,
    }
}

async fn next(reader: &mut ReadHalf<TlsStream<TcpStream>>) -> Option<Frame> {
    let mut head = [0; 9];
    reader.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    reader.read_exact(&mut payload).await.ok()?;
    let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
    Some(Frame { kind: head[3], flags: head[4], stream, payload })
}
