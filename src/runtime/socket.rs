//! What every TCP connection is set to: no delay, and an end for peers that are gone or do not read.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Silence after which the kernel asks whether the peer is still there, and between such questions
/// (Go's default, both ways).
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long bytes may stay unacknowledged, or a peer may take no more of them.
const UNSENT_MAX: Duration = Duration::from_secs(120);

/// Sets a connection up.
pub fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE);
    socket.set_tcp_keepalive(&keep_alive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNSENT_MAX))?;
    Ok(())
}
