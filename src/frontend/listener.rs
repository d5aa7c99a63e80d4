//! The listening socket, also while there is no file descriptor left for another connection.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep};

use crate::runtime::descriptors::{self, Spare};

/// Pause after the system refused to accept and no connection could be refused in its place.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two lines in the log about the same trouble.
const SAY_INTERVAL: Duration = Duration::from_secs(1);
/// Connections that wait in the kernel to be accepted.
const BACKLOG: u32 = 4096;

/// Binds and listens.
pub(super) fn listen(address: SocketAddr) -> io::Result<StdListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Accepts connections for ever.
#[derive(Debug)]
pub(super) struct Listener {
    socket: TcpListener,
    spare: Spare,
    said: Option<Instant>,
}

/// What came of waiting for a connection.
#[derive(Debug)]
pub(super) enum Accepted {
    /// One that can be served.
    Connection(TcpStream, SocketAddr),
    /// One that was closed at once, since there was no descriptor left for it.
    Refused,
}

impl Listener {
    pub(super) fn new(listener: StdListener) -> io::Result<Self> {
        let socket = TcpListener::from_std(listener)?;
        Ok(Self { socket, spare: Spare::take(), said: None })
    }

    /// The next connection. Without a descriptor for it, a client would hang in the kernel's queue
    /// and the listener would be ready all the time: the spare one serves to take it out and close
    /// it, so that the client knows and the others get on.
    pub(super) async fn accept(&mut self) -> Accepted {
        loop {
            let error = match self.socket.accept().await {
                Ok((stream, address)) => return Accepted::Connection(stream, address),
                Err(error) => error,
            };
            if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) {
                // The client is gone already; the next one is not.
                continue;
            }
            self.say(&error);
            if descriptors::are_used_up(&error) && self.refuse() {
                return Accepted::Refused;
            }
            sleep(ACCEPT_PAUSE).await;
        }
    }

    /// Closes the connection that waits; false when that was not possible.
    fn refuse(&mut self) -> bool {
        let socket = &self.socket;
        let refused = self.spare.lend(|| matches!(socket.accept().now_or_never(), Some(Ok(_))));
        refused.unwrap_or_default()
    }

    fn say(&mut self, error: &io::Error) {
        if self.said.is_none_or(|when| when.elapsed() >= SAY_INTERVAL) {
            self.said = Some(Instant::now());
            tracing::warn!(%error, "accept failed");
        }
    }
}
