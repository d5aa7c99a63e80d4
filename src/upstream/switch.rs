//! A request that asks for another protocol: on a connection of its own, dialled for it with HTTP/1.1
//! only and never used for another request.

use std::sync::Arc;
use std::time::Duration;

use http::response;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use super::backend::Backend;
use super::balance;
use super::connection::Lease;
use super::dial::{Protocols, dial};
use super::endpoint::{Endpoint, Place};
use super::exchange::{Answer, Outgoing, Step, http1_head};
use super::pool::EXCLUSIVE_MAX;
use super::retry::{Failed, Retry, Tried};
use crate::body::Body;
use crate::model::fault::{Fault, Hop};
use crate::runtime::tasks;

/// A backend's answer to a request for another protocol.
#[derive(Debug)]
pub enum Reply {
    /// 101: the connection speaks the protocol that the head names.
    Switched {
        /// Status and headers.
        head: response::Parts,
        /// The connection, with what came right behind the head.
        stream: Upgraded,
        /// To be kept until the connection is over.
        lease: Lease,
    },
    /// Any other answer; the connection ends with it.
    Answered(Answer),
}

impl Backend {
    /// Asks one of the endpoints to switch protocols and waits for the head of its answer. Tried
    /// again elsewhere only while nothing was sent. The request has no body.
    pub async fn switch(self: &Arc<Self>, request: &Outgoing<'_>) -> Result<Reply, Fault> {
        let endpoints = self.endpoints().await?;
        let mut tried = Tried::new();
        loop {
            let endpoint = balance::choose(&endpoints, &tried, self.config.slow_start)?;
            request.tries(endpoint.address);
            match self.ask(endpoint, request).await {
                Ok(reply) => return Ok(reply),
                Err(failed) => {
                    endpoint.metrics().failed(failed.fault.hop.word());
                    tried.push(endpoint.id);
                    if !failed.may_try_again(&endpoints, &tried) || !self.may_retry() {
                        return Err(failed.fault);
                    }
                    let cause = failed.fault.hop.word();
                    request.tries_again(endpoint, cause);
                    tracing::debug!(endpoint = %endpoint.address, cause, "trying again");
                }
            }
        }
    }

    async fn ask(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        request: &Outgoing<'_>,
    ) -> Result<Reply, Failed> {
        let place = Place::take(endpoint, true);
        if endpoint.in_flight() > EXCLUSIVE_MAX {
            let text = "as many connections as one endpoint may have";
            return Err(Failed::unreachable(Fault::new(Hop::Overloaded, text)));
        }
        let waiting = self.wait().map_err(Failed::finally)?;
        request.waits_for(Step::Connection);
        let dialed = dial(self, endpoint, Protocols::Http1, Duration::MAX)
            .await
            .map_err(Failed::unreachable)?;
        drop(waiting);
        request.waits_for(Step::Answer);
        let noted = dialed.noted;
        let fault = |error: &hyper::Error| {
            let unnoted = || Fault::new(Hop::BackendReset, error.to_string());
            noted.get().cloned().unwrap_or_else(unnoted)
        };
        let (mut sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(dialed.stream))
            .await
            .map_err(|error| Failed::unreachable(fault(&error)))?;
        let driver = tasks::spawn_owned("upstream-switch", async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upstream connection failed");
            }
        });
        let lease = Lease::dedicated(place, dialed.times, driver);
        let head = http1_head(self, request).map(|()| Body::empty());
        let mut response = sender.try_send_request(head).await.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            let retry = if unsent { Retry::Elsewhere } else { Retry::Never };
            Failed { fault: fault(error.error()), retry }
        })?;
        if response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            let switching = hyper::upgrade::on(&mut response);
            let stream = switching.await.map_err(|error| Failed::finally(fault(&error)))?;
            return Ok(Reply::Switched { head: response.into_parts().0, stream, lease });
        }
        let (head, incoming) = response.into_parts();
        Ok(Reply::Answered(Answer { head, body: Body::http1(incoming), lease }))
    }
}
