//! An API server, asked with a user's own credentials.

use std::error::Error;
use std::io;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::facts::{Reply, Sought};
use crate::cli::innermost;
use crate::cli::target::Target;
use crate::model::fault::{Fault, Hop};
use crate::upstream::tls_hop;

/// The longest answer that is read, in bytes: a list of 10,000 APIServices has 20 MiB.
const ANSWER_BYTES_MAX: usize = 64 << 20;
const AGENT: &str = concat!("portico-doctor/", env!("CARGO_PKG_VERSION"));

/// The server.
pub(super) struct Api {
    client: kube::Client,
    /// As people know it.
    pub(super) url: String,
    timeout: Duration,
}

impl Api {
    pub(super) fn new(target: &Target, timeout: Duration) -> anyhow::Result<Self> {
        Ok(Self { client: target.client()?, url: target.url.clone(), timeout })
    }

    /// Sends one request and reads the answer whole.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: Vec<u8>,
    ) -> Result<Reply, Fault> {
        let mut builder = Request::builder().method(method).uri(path);
        builder = builder.header(ACCEPT, "application/json").header(USER_AGENT, AGENT);
        if !body.is_empty() {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        let request = builder.body(Body::from(body));
        let request = request.map_err(|error| Fault::new(Hop::ProtocolError, error.to_string()))?;
        let begun = Instant::now();
        let asking = async {
            let response = self.client.send(request).await;
            let response = response.map_err(|error| fault(&error))?;
            let (parts, body) = response.into_parts();
            let content_type = parts.headers.get(CONTENT_TYPE);
            let content_type = content_type.and_then(|value| value.to_str().ok());
            let collected = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = collected.map_err(|error| fault(&*error))?.to_bytes().to_vec();
            Ok(Reply {
                status: parts.status.as_u16(),
                content_type: content_type.unwrap_or_default().to_owned(),
                body,
                took: begun.elapsed(),
            })
        };
        let answer = timeout(self.timeout, asking).await;
        answer.unwrap_or_else(|_elapsed| {
            let text = format!("no answer within {:?} (--timeout)", self.timeout);
            Err(Fault::new(Hop::Deadline, text))
        })
    }

    /// One GET; an error is what people are told.
    pub(super) async fn get(&self, path: &str) -> Result<Reply, String> {
        let answer = self.send(Method::GET, path, &[], Vec::new()).await;
        answer.map_err(|fault| fault.detail.to_string())
    }

    /// One object or list.
    pub(super) async fn read<T: DeserializeOwned>(&self, path: &str) -> Sought<T> {
        let reply = match self.get(path).await {
            Ok(reply) => reply,
            Err(error) => return Sought::Unknown(error),
        };
        match reply.status {
            404 => Sought::Missing,
            200 => match serde_json::from_slice(&reply.body) {
                Ok(object) => Sought::Found(object),
                Err(error) => Sought::Unknown(format!("{path} cannot be read: {error}")),
            },
            status => {
                Sought::Unknown(format!("{path} is answered with {status}: {}", reply.message()))
            }
        }
    }

    /// The same where there is nothing to do without it.
    pub(super) async fn require<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let found = match self.read(path).await {
            Sought::Found(found) => Ok(found),
            Sought::Missing => Err(anyhow::anyhow!("{path} is answered with 404")),
            Sought::Unknown(error) => Err(anyhow::anyhow!(error)),
        };
        found.with_context(|| self.url.clone())
    }
}

/// What became of a connection, in the library's innermost words.
pub(super) fn fault(error: &(dyn Error + 'static)) -> Fault {
    let last = innermost(error);
    let hop = match last.downcast_ref::<io::Error>() {
        Some(error) => tls_hop(error).unwrap_or(Hop::BackendReset),
        None => match error.downcast_ref::<hyper::Error>() {
            Some(error) if error.is_parse() => Hop::ProtocolError,
            _ => Hop::BackendReset,
        },
    };
    Fault::new(hop, last.to_string())
}
