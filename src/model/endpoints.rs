//! Where a service's requests are to be sent.

use std::net::SocketAddr;

/// What a service resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Addresses to connect to.
    Addresses(Vec<SocketAddr>),
    /// An external name, resolved by DNS when it is needed.
    Name {
        /// The host name.
        host: String,
        /// The port.
        port: u16,
    },
}
