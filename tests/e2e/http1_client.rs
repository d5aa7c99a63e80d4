//! HTTP/1.1 by hand: the bytes that are sent are the test's own, and a missing last chunk is seen.

use std::fmt::Write as _;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::client::{Ask, Incoming, Opened};

/// One connection.
pub(crate) struct Http1 {
    stream: TlsStream<TcpStream>,
    read: BytesMut,
    framing: Framing,
    trailers: HeaderMap,
}

#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(usize),
    Chunked,
    Over,
}

impl Http1 {
    pub(crate) fn new(stream: TlsStream<TcpStream>) -> Self {
        Self { stream, read: BytesMut::new(), framing: Framing::Over, trailers: HeaderMap::new() }
    }

    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
        // What the socket did not take waits in the TLS session until someone asks.
        self.stream.flush().await.unwrap();
    }

    /// Writes a request; names go in the case in which they stand.
    pub(crate) async fn send(&mut self, ask: &Ask) {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: localhost\r\n", ask.method, ask.target);
        for (name, value) in &ask.headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        if ask.chunked {
            head.push_str("Transfer-Encoding: chunked\r\n\r\n");
        } else if ask.has_body() {
            write!(head, "Content-Length: {}\r\n\r\n", ask.body.len()).unwrap();
        } else {
            head.push_str("\r\n");
        }
        let mut bytes = head.into_bytes();
        if !ask.chunked {
            bytes.extend_from_slice(&ask.body);
            return self.write(bytes).await;
        }
        for chunk in ask.body.chunks(64 * 1024) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n");
        for (name, value) in &ask.trailers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        self.write(bytes).await;
    }

    pub(crate) async fn open(&mut self, ask: &Ask) -> Result<Opened<'_>, String> {
        self.send(ask).await;
        let (status, headers) = self.head(ask.method == "HEAD").await?;
        Ok(Opened { status, headers, body: Incoming::Http1(self) })
    }

    /// The status line and headers of the next answer; informational ones are passed over.
    pub(crate) async fn head(&mut self, to_head: bool) -> Result<(u16, HeaderMap), String> {
        loop {
            let (status, headers) = self.any_head().await?;
            if status < 200 {
                continue;
            }
            let chunked = headers.get("transfer-encoding").is_some_and(|value| value == "chunked");
            let length = headers.get("content-length").map(|value| value.to_str().unwrap());
            self.framing = match length {
                _ if to_head || matches!(status, 204 | 304) => Framing::Over,
                _ if chunked => Framing::Chunked,
                Some(length) => Framing::Length(length.parse().unwrap()),
                None => return Err(format!("{status} without framing: {headers:?}")),
            };
            return Ok((status, headers));
        }
    }

    /// The next status line and headers, of an informational answer too.
    pub(crate) async fn any_head(&mut self) -> Result<(u16, HeaderMap), String> {
        let line = self.line().await?;
        let status: u16 = line
            .strip_prefix("HTTP/1.1 ")
            .or_else(|| line.strip_prefix("HTTP/1.0 "))
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| format!("not a status line: {line:?}"))?;
        Ok((status, self.fields().await?))
    }

    pub(crate) async fn next_chunk(&mut self) -> Option<Result<Bytes, String>> {
        match self.framing {
            Framing::Over | Framing::Length(0) => None,
            Framing::Length(left) => Some(self.some(left).await.inspect(|bytes| {
                self.framing = Framing::Length(left - bytes.len());
            })),
            Framing::Chunked => self.chunk().await.transpose(),
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, String> {
        let line = self.line().await?;
        let size = usize::from_str_radix(&line, 16)
            .map_err(|error| format!("no size: {line:?}: {error}"))?;
        if size == 0 {
            self.trailers = self.fields().await?;
            self.framing = Framing::Over;
            return Ok(None);
        }
        while self.read.len() < size + 2 {
            self.fill().await?;
        }
        let bytes = self.read.split_to(size).freeze();
        self.read.advance(2);
        Ok(Some(bytes))
    }

    pub(crate) fn take_trailers(&mut self) -> HeaderMap {
        std::mem::take(&mut self.trailers)
    }

    /// So many bytes as they came.
    pub(crate) async fn bytes(&mut self, count: usize) -> Result<Bytes, String> {
        while self.read.len() < count {
            self.fill().await?;
        }
        Ok(self.read.split_to(count).freeze())
    }

    /// One byte as it came.
    pub(crate) async fn byte(&mut self) -> u8 {
        while self.read.is_empty() {
            self.fill().await.unwrap();
        }
        self.read.get_u8()
    }

    /// Reads until the other end closes, and says how many more bytes came; a reset counts as
    /// closing.
    pub(crate) async fn closed(&mut self) -> usize {
        while self.fill().await.is_ok() {}
        self.read.len()
    }

    async fn fields(&mut self) -> Result<HeaderMap, String> {
        let mut fields = HeaderMap::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) =
                line.split_once(':').ok_or_else(|| format!("no field: {line:?}"))?;
            let name: HeaderName =
                name.parse().map_err(|error| format!("bad name: {name:?}: {error}"))?;
            fields.append(name, HeaderValue::from_bytes(value.trim().as_bytes()).unwrap());
        }
    }

    async fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(at) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line = self.read.split_to(at);
                self.read.advance(2);
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.fill().await?;
        }
    }

    async fn some(&mut self, most: usize) -> Result<Bytes, String> {
        if self.read.is_empty() {
            self.fill().await?;
        }
        Ok(self.read.split_to(most.min(self.read.len())).freeze())
    }

    async fn fill(&mut self) -> Result<(), String> {
        match self.stream.read_buf(&mut self.read).await {
            Ok(0) => Err("connection closed".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("connection closed: {error}")),
        }
    }
}
