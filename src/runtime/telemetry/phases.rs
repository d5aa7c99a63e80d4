//! Where the time of forwarded requests goes, hop by hop.

/// The names of [`Phases`]' parts in `phase`, in order of time.
pub(super) const PHASES: [&str; 5] = ["queue", "connect", "tls", "first_byte", "body"];

/// Where a forwarded request's time went, in seconds. The first three are zero for a request that
/// found a connection with room.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Phases {
    /// Waiting for a connection, less what follows.
    pub queue: f64,
    /// TCP to the endpoint.
    pub connect: f64,
    /// The TLS handshake.
    pub tls: f64,
    /// From the request's headers to the head of the answer, less what is above.
    pub first_byte: f64,
    /// From the head of the answer to its end.
    pub body: f64,
}

impl Phases {
    /// True when a connection was waited for.
    pub fn has_waited(&self) -> bool {
        self.queue > 0.0 || self.connect > 0.0 || self.tls > 0.0
    }
}
