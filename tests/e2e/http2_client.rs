//! HTTP/2 on h2's own frames: resets, their reasons and GOAWAY are seen as they come.

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use portico::runtime::tasks::{AbortOnDrop, spawn_owned};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;

use crate::client::{Ask, Incoming, Opened};
use crate::rig::within;

/// One connection.
pub(crate) struct Http2 {
    pub(crate) sender: SendRequest<Bytes>,
    over: watch::Receiver<bool>,
    _driver: AbortOnDrop,
}

impl Http2 {
    pub(crate) async fn new(stream: TlsStream<TcpStream>) -> Self {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(16 << 20);
        let (sender, connection) = builder.handshake(stream).await.unwrap();
        let (told, over) = watch::channel(false);
        let driver = spawn_owned("client-connection", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "client connection ended");
            }
            told.send_replace(true);
        });
        Self { sender, over, _driver: driver }
    }

    /// Sends a head; the body is to follow on the stream unless `end`.
    pub(crate) async fn start(
        &self,
        request: Request<()>,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut sender = within("room for a stream", self.sender.clone().ready()).await?;
        sender.send_request(request, end)
    }

    pub(crate) async fn ask(&self, ask: &Ask) -> Result<Response<RecvStream>, h2::Error> {
        let (response, mut stream) = self.start(head(ask), !ask.has_body()).await?;
        if ask.has_body() {
            upload(&mut stream, ask).await?;
        }
        response.await
    }

    pub(crate) async fn open(&mut self, ask: &Ask) -> Result<Opened<'_>, String> {
        let response = self.ask(ask).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        Ok(Opened {
            status: head.status.as_u16(),
            headers: head.headers,
            body: Incoming::Http2(body),
        })
    }

    /// Waits until the connection is over.
    pub(crate) async fn closed(&mut self) {
        within("the end of a connection", self.over.wait_for(|over| *over)).await.unwrap();
    }

    /// Waits for a GOAWAY and gives its reason.
    pub(crate) async fn goaway(&mut self) -> h2::Reason {
        self.closed().await;
        let error = self.sender.clone().ready().await.err().unwrap();
        assert!(error.is_go_away() && error.is_remote(), "{error:?}");
        error.reason().unwrap()
    }
}

/// The head of a request.
pub(crate) fn head(ask: &Ask) -> Request<()> {
    let mut request = Request::builder()
        .method(ask.method.as_str())
        .uri(format!("https://localhost{}", ask.target))
        .body(())
        .unwrap();
    *request.headers_mut() = fields(&ask.headers);
    if !ask.chunked && !ask.body.is_empty() {
        request.headers_mut().insert("content-length", ask.body.len().into());
    }
    request
}

fn fields(lines: &[(String, String)]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in lines {
        let name: HeaderName = name.to_ascii_lowercase().parse().unwrap();
        fields.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    fields
}

async fn upload(stream: &mut SendStream<Bytes>, ask: &Ask) -> Result<(), h2::Error> {
    let mut body = ask.body.clone();
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let room = match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(room) => room?,
            // The other end has answered and does not want the rest.
            None => return Ok(()),
        };
        let part = body.split_to(room.min(body.len()));
        stream.send_data(part, body.is_empty() && ask.trailers.is_empty())?;
    }
    if !ask.trailers.is_empty() {
        stream.send_trailers(fields(&ask.trailers))?;
    } else if ask.body.is_empty() {
        stream.send_data(Bytes::new(), true)?;
    }
    Ok(())
}
