//! One GET on a connection of its own.

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::cli::doctor::api;
use crate::cli::doctor::facts::{Answer, Reply};
use crate::model::discovery::parse::AGGREGATED_BYTES_MAX;
use crate::model::fault::{Fault, Hop};
use crate::runtime::tasks::spawn_owned;
use crate::upstream::{Noted, Watched};

const AGENT: &str = concat!("portico-doctor/", env!("CARGO_PKG_VERSION"));

/// Asks; `claim` is the user and the group that the headers name.
pub(super) async fn get(
    stream: TlsStream<TcpStream>,
    authority: &str,
    path: &str,
    accept: &'static str,
    claim: Option<[&str; 2]>,
) -> Answer {
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let mut builder =
        Request::get(if is_http2 { format!("https://{authority}{path}") } else { path.to_owned() });
    builder = builder.header(ACCEPT, accept).header(USER_AGENT, AGENT);
    if let Some([user, group]) = claim {
        builder = builder.header("x-remote-user", user).header("x-remote-group", group);
    }
    builder =
        if is_http2 { builder.version(Version::HTTP_2) } else { builder.header(HOST, authority) };
    let request = builder.body(Empty::<Bytes>::new());
    let request = request.map_err(|error| Fault::new(Hop::ProtocolError, error.to_string()))?;
    let (stream, noted) = Watched::new(stream);
    let io = TokioIo::new(stream);
    let failed = |error: &hyper::Error| fault(&noted, error);
    // The task ends with this function.
    let (response, _running) = if is_http2 {
        let made = http2::handshake(TokioExecutor::new(), io).await;
        let (mut requests, connection) = made.map_err(|error| failed(&error))?;
        let running = spawn_owned("doctor connection", async move { drop(connection.await) });
        (requests.send_request(request).await, running)
    } else {
        let (mut requests, connection) =
            http1::handshake(io).await.map_err(|error| failed(&error))?;
        let running = spawn_owned("doctor connection", async move { drop(connection.await) });
        (requests.send_request(request).await, running)
    };
    let response = response.map_err(|error| failed(&error))?;
    read(response, &noted).await
}

async fn read(response: Response<Incoming>, noted: &Noted) -> Answer {
    let (parts, body) = response.into_parts();
    let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let collected = Limited::new(body, AGGREGATED_BYTES_MAX).collect().await;
    let body = collected.map_err(|error| fault(noted, &*error))?.to_bytes().to_vec();
    Ok(Reply {
        status: parts.status.as_u16(),
        content_type: content_type.unwrap_or_default().to_owned(),
        body,
        ..Reply::default()
    })
}

/// What the connection itself met, or what the library says.
fn fault(noted: &Noted, error: &(dyn Error + 'static)) -> Fault {
    if let Some(fault) = Arc::clone(noted).get() {
        return fault.clone();
    }
    api::fault(error)
}
