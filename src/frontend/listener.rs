//! The listening socket, also while there is no file descriptor left for another connection.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpSocket;
use tokio::time::{Instant, sleep};

use super::SAY_INTERVAL;
use crate::runtime::descriptors::{self, Spare};
use crate::runtime::socket;

/// Pause after the system refused to accept and no connection could be refused in its place.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that wait in the kernel to be accepted.
const BACKLOG: u32 = 4096;

/// Binds and listens.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket::set_up(&socket)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Accepts connections for ever. They may be handed to other threads, so no runtime learns of them
/// here.
#[derive(Debug)]
pub(super) struct Listener {
    socket: AsyncFd<TcpListener>,
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
    pub(super) fn new(listener: TcpListener) -> io::Result<Self> {
        #[expect(deprecated, reason = "a listener owns its descriptor, and unsafe code is out")]
        let socket = AsyncFd::with_interest(listener, Interest::READABLE)?;
        Ok(Self { socket, spare: Spare::take(), said: None })
    }

    /// The next connection. Without a descriptor for it, a client would hang in the kernel's queue
    /// and the listener would be ready all the time: the spare one serves to take it out and close
    /// it, so that the client knows and the others get on.
    pub(super) async fn accept(&mut self) -> Accepted {
        loop {
            let accepted = self.socket.async_io(Interest::READABLE, TcpListener::accept).await;
            let nonblocking = accepted.and_then(|(stream, address)| {
                stream.set_nonblocking(true)?;
                Ok((stream, address))
            });
            let error = match nonblocking {
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
        let socket = self.socket.get_ref();
        self.spare.lend(|| socket.accept().is_ok()).unwrap_or_default()
    }

    fn say(&mut self, error: &io::Error) {
        if self.said.is_none_or(|when| when.elapsed() >= SAY_INTERVAL) {
            self.said = Some(Instant::now());
            tracing::warn!(%error, "accept failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_accepted_has_the_listeners_settings() {
        let bound = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = bound.local_addr().unwrap();
        let mut listener = Listener::new(bound).unwrap();
        let _client = TcpStream::connect(address).unwrap();
        let Accepted::Connection(stream, _) = listener.accept().await else {
            panic!("refused");
        };
        let socket = socket2::SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert!(socket.nonblocking().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(120)));
    }
}
