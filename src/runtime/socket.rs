//! What every TCP connection is set to: no delay, and an end for peers that are gone or do not read.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Silence after which the kernel asks whether the peer is still there, and between such questions
/// (Go's default, both ways).
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long bytes may stay unacknowledged, or a peer may take no more of them.
const UNSENT_MAX: Duration = Duration::from_secs(120);

/// Sets a connection up, or a listener: what it accepts has the same settings.
pub fn set_up(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE);
    socket.set_tcp_keepalive(&keep_alive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNSENT_MAX))?;
    Ok(())
}
