//! A backend that is asked to switch protocols and does what the last part of the path says.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::backend::{HTTP2, Listener};
use crate::pki::backend_tls;

type Stream = TlsStream<TcpStream>;

/// A request's head as it came.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) line: String,
    pub(crate) fields: Vec<(String, String)>,
    /// The connection's ALPN protocol.
    pub(crate) alpn: String,
}

impl Head {
    /// The values of a header.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        let same = self.fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    }

    fn value(&self, name: &str) -> &str {
        self.values(name).first().copied().unwrap_or_default()
    }
}

/// The backend; it prefers HTTP/2, as Kubernetes' servers do.
pub(crate) struct SwitchBackend {
    pub(crate) listener: Listener,
    seen: Arc<Mutex<Vec<Head>>>,
}

impl SwitchBackend {
    pub(crate) fn start(service: &str) -> Self {
        let seen = Arc::new(Mutex::default());
        let serving = Arc::clone(&seen);
        let listener = Listener::tls(backend_tls(service, HTTP2), move |stream, _| {
            let seen = Arc::clone(&serving);
            // How its clients leave is the test's to see, not this end's.
            async move { drop(serve(stream, &seen).await) }
        });
        Self { listener, seen }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.address
    }

    /// The heads of all requests, oldest first.
    pub(crate) fn seen(&self) -> Vec<Head> {
        self.seen.lock().unwrap().clone()
    }
}

/// By the path's last part: `echo` gives bytes back, `greet` does after a greeting in the same record
/// as the head, `leave` says goodbye and closes, `messages` gives WebSocket messages back, `large-<n>`
/// sends n bytes and closes, `count` tells at the client's end how many came — before it closes;
/// `hang` never answers, `code-<n>` answers with that code and a body, `offer` with 426, `moved` with a redirect; `other`,
/// `two`, `none` and `token` switch to what was not asked for.
async fn serve(mut stream: Stream, seen: &Mutex<Vec<Head>>) -> std::io::Result<()> {
    let head = read_head(&mut stream).await?;
    seen.lock().unwrap().push(head.clone());
    let target = head.line.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default().to_owned();
    let asked = head.value("upgrade").to_owned();
    match last.as_str() {
        "echo" => {
            switch(&mut stream, &[("Upgrade", &asked), ("X-Told", "yes")], b"").await?;
            echo(stream).await
        }
        "greet" => {
            switch(&mut stream, &[("Upgrade", &asked)], b"hello").await?;
            echo(stream).await
        }
        "leave" => {
            switch(&mut stream, &[("Upgrade", &asked)], b"goodbye").await?;
            stream.shutdown().await
        }
        "messages" => messages(stream, &head).await,
        "hang" => stream.read_u8().await.map(drop),
        "other" => switch(&mut stream, &[("Upgrade", "h2c")], b"raw").await,
        "two" => switch(&mut stream, &[("Upgrade", &asked), ("Upgrade", "h2c")], b"raw").await,
        "none" => switch(&mut stream, &[], b"raw").await,
        "token" => {
            let token = "base64url.bearer.authorization.k8s.io.c2VjcmV0";
            let fields = [("Upgrade", asked.as_str()), ("Sec-WebSocket-Protocol", token)];
            switch(&mut stream, &fields, b"raw").await
        }
        "moved" => answer(&mut stream, "302 Found", "Location: https://elsewhere/\r\n").await,
        "offer" => answer(&mut stream, "426 Upgrade Required", "Upgrade: SPDY/3.1\r\n").await,
        "count" => {
            switch(&mut stream, &[("Upgrade", &asked)], b"").await?;
            count(stream).await
        }
        other => match other.split_once('-') {
            Some(("large", size)) => {
                switch(&mut stream, &[("Upgrade", &asked)], b"").await?;
                large(stream, size.parse().unwrap()).await
            }
            Some(("code", code)) => answer(&mut stream, &format!("{code} Because"), "").await,
            _ => answer(&mut stream, "404 Not Found", "").await,
        },
    }
}

async fn read_head(stream: &mut Stream) -> std::io::Result<Head> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(stream.read_u8().await?);
    }
    let text = String::from_utf8(read).unwrap();
    let mut lines = text.trim_end().split("\r\n").map(str::to_owned);
    let line = lines.next().unwrap();
    let fields = lines.map(|line| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_owned(), value.trim().to_owned())
    });
    let alpn = stream.get_ref().1.alpn_protocol().unwrap_or_default();
    let alpn = String::from_utf8_lossy(alpn).into_owned();
    Ok(Head { line, fields: fields.collect(), alpn })
}

async fn switch(stream: &mut Stream, fields: &[(&str, &str)], then: &[u8]) -> std::io::Result<()> {
    let mut head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n".to_owned();
    for (name, value) in fields {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(then);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// An answer, after which the connection stays open for as long as the client wants it.
async fn answer(stream: &mut Stream, status: &str, field: &str) -> std::io::Result<()> {
    let body = "no tunnels today";
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\n{field}Content-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await?;
    stream.read_u8().await.map(drop)
}

async fn echo(mut stream: Stream) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count]).await?;
        stream.flush().await?;
    }
}

async fn large(mut stream: Stream, mut left: usize) -> std::io::Result<()> {
    let buffer = vec![b'x'; 64 * 1024];
    while left > 0 {
        let part = left.min(buffer.len());
        stream.write_all(&buffer[..part]).await?;
        left -= part;
    }
    stream.shutdown().await
}

/// Counts bytes up to a newline, then says how many there were.
async fn count(mut stream: Stream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let count = stream.read(&mut buffer).await?;
        total += count;
        if count == 0 || buffer[count - 1] == b'\n' {
            stream.write_all(format!("{total}\n").as_bytes()).await?;
            return stream.shutdown().await;
        }
    }
}

async fn messages(mut stream: Stream, head: &Head) -> std::io::Result<()> {
    let accept = derive_accept_key(head.value("sec-websocket-key").as_bytes());
    let chosen = head.value("sec-websocket-protocol").split(',').next().unwrap_or_default();
    let mut fields = vec![("Upgrade", "websocket"), ("Sec-WebSocket-Accept", accept.as_str())];
    if !chosen.is_empty() {
        fields.push(("Sec-WebSocket-Protocol", chosen.trim()));
    }
    switch(&mut stream, &fields, b"").await?;
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        let echoed = message.is_text() || message.is_binary();
        if echoed && socket.send(message).await.is_err() {
            break;
        }
    }
    Ok(())
}
