//! How many bytes of requests wait for one backend that has not answered them: what its clients have
//! sent stands in portico's memory until it takes them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::backend::Backend;
use crate::model::fault::{Fault, Hop};

/// Bytes of requests that one backend has not answered, over all threads; past it its callers are told
/// to come later.
const UNSENT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of one request that a client may send before anybody takes them: a stream's window. One
/// without a length counts as so long.
const UNSENT_REQUEST_BYTES_MAX: usize = 256 * 1024;

/// A request's share of its backend's bytes, until its answer begins.
#[derive(Debug)]
pub struct Unsent {
    backend: Arc<Backend>,
    bytes: usize,
}

impl Backend {
    /// Takes room for a request's body of that length, if that is known; refused past the limit.
    pub fn hold(self: &Arc<Self>, length: Option<u64>) -> Result<Unsent, Fault> {
        let length = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(usize::MAX);
        let bytes = length.min(UNSENT_REQUEST_BYTES_MAX);
        let held = Unsent { backend: Arc::clone(self), bytes };
        let before = self.unsent.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > UNSENT_BYTES_MAX {
            let text = format!("{before} bytes of requests wait for it");
            return Err(Fault::new(Hop::Overloaded, text));
        }
        Ok(held)
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.backend.unsent.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
