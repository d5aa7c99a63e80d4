//! What proves that a backend never acted on a request, so that it may be tried again.
//!
//! Only the protocol's own evidence counts: a dial that failed, a refused stream, a GOAWAY from the
//! remote below the stream. I/O errors and the library's own GOAWAY are never evidence: they would
//! execute a POST twice.

use crate::model::fault::{Fault, Hop};

/// Tries in all that one request gets.
pub(super) const TRIES_MAX: usize = 3;

/// A try that failed.
#[derive(Debug)]
pub(super) struct Failed {
    /// What went wrong.
    pub(super) fault: Fault,
    /// True when the backend provably never acted on the request.
    pub(super) never_acted_on: bool,
}

impl Failed {
    /// A failure before anything was sent.
    pub(super) fn before_sending(fault: Fault) -> Self {
        Self { fault, never_acted_on: true }
    }

    /// A failure of an HTTP/2 request that was handed to the library.
    pub(super) fn http2(error: &h2::Error, noted: Option<Fault>) -> Self {
        let refused = error.is_remote()
            && (error.is_go_away()
                || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)));
        let fault = noted.unwrap_or_else(|| {
            let hop = if error.is_library() && !error.is_io() {
                Hop::ProtocolError
            } else {
                Hop::BackendReset
            };
            Fault::new(hop, error.to_string())
        });
        Self { fault, never_acted_on: refused }
    }
}
