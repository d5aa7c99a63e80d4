//! What proves that a backend never acted on a request, so that it may be tried again.
//!
//! Only the protocol's own evidence counts: a dial that failed, a refused stream, a GOAWAY from the
//! remote below the stream. I/O errors and the library's own GOAWAY are no evidence: they would
//! execute a POST twice. Where a connection is lost, only what reads and has no body is tried again.

use std::sync::Arc;

use http::Method;

use super::endpoint::Endpoint;
use crate::model::fault::{Fault, Hop};

/// Tries in all that one request gets.
pub(super) const TRIES_MAX: usize = 3;

/// The ids of the endpoints that were tried.
pub(super) type Tried = smallvec::SmallVec<[u64; TRIES_MAX]>;

/// A try that failed.
#[derive(Debug)]
pub(super) struct Failed {
    /// What went wrong.
    pub(super) fault: Fault,
    /// Where the request may be tried again.
    pub(super) retry: Retry,
}

/// Where a request that failed may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// Nowhere: the backend may have acted on it, or the fault is not an endpoint's.
    Never,
    /// On another endpoint: this one cannot be reached.
    Elsewhere,
    /// On any endpoint: the connection was at fault.
    Anywhere,
}

impl Failed {
    /// The endpoint could not be reached, so nothing was sent.
    pub(super) fn unreachable(fault: Fault) -> Self {
        Self { fault, retry: Retry::Elsewhere }
    }

    /// A failure that another try would meet too, or whose request may have been acted on.
    pub(super) fn finally(fault: Fault) -> Self {
        Self { fault, retry: Retry::Never }
    }

    /// True when another try is allowed, after those of `tried`, and has somewhere to go.
    pub(super) fn may_try_again(&self, endpoints: &[Arc<Endpoint>], tried: &Tried) -> bool {
        let again = match self.retry {
            Retry::Never => false,
            Retry::Elsewhere => endpoints
                .iter()
                .any(|other| !tried.contains(&other.id) && other.hopeless().is_none()),
            Retry::Anywhere => true,
        };
        again && tried.len() < TRIES_MAX
    }

    /// A failure of an HTTP/2 request that was handed to the library; `is_repeatable` where to do it
    /// twice does no harm.
    pub(super) fn http2(error: &h2::Error, noted: Option<Fault>, is_repeatable: bool) -> Self {
        let refused = error.is_remote()
            && (error.is_go_away()
                || (error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)));
        let lost = match &noted {
            Some(fault) => fault.hop == Hop::Unresponsive,
            None => error.is_io() || (error.is_go_away() && error.is_library()),
        };
        let fault = noted.unwrap_or_else(|| {
            let hop = if error.is_library() && !error.is_io() {
                Hop::ProtocolError
            } else {
                Hop::BackendReset
            };
            Fault::new(hop, error.to_string())
        });
        let again = refused || (lost && is_repeatable);
        Self { fault, retry: if again { Retry::Anywhere } else { Retry::Never } }
    }
}

/// Whether a request may be carried out twice: it only reads (RFC 9110, section 9.2.1) and is as it
/// was, for it has no body.
pub(super) fn is_repeatable(method: &Method, has_body: bool) -> bool {
    method.is_safe() && !has_body
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::upstream::endpoint::for_tests;

    #[test]
    fn what_could_not_be_sent_goes_to_another_endpoint_unless_that_is_known_to_hang() {
        let endpoints = for_tests(2);
        let failed = || Failed::unreachable(Hop::ConnectRefused.into());
        let mut tried = Tried::new();
        tried.push(endpoints[0].id);
        assert!(failed().may_try_again(&endpoints, &tried));
        // It refused, too, and may be back.
        assert!(endpoints[1].not_dialled(&Hop::ConnectRefused.into(), Duration::ZERO));
        assert!(failed().may_try_again(&endpoints, &tried));
        endpoints[1].not_dialled(&Hop::HandshakeTimeout.into(), Duration::ZERO);
        assert!(!failed().may_try_again(&endpoints, &tried));
    }

    #[test]
    fn only_reads_without_a_body_may_be_carried_out_twice() {
        let repeatable = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE];
        let found: Vec<_> =
            repeatable.iter().filter(|method| is_repeatable(method, false)).collect();
        assert_eq!(found, [Method::GET, Method::HEAD]);
        assert!(!is_repeatable(&Method::GET, true));
    }
}
