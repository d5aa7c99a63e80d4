//! Each distinct caBundle once: thousands of `APIServices` have the same one.

use std::collections::HashSet;
use std::sync::Arc;

use foldhash::fast::FixedState;

/// Number of caBundles from which on those that nobody has any more are looked for.
const SWEEP_MIN: usize = 64;

/// The caBundles that somebody has.
#[derive(Debug, Default)]
pub(super) struct CaBundles {
    known: HashSet<Arc<[u8]>, FixedState>,
    sweep_at: usize,
}

impl CaBundles {
    /// The one copy of that PEM text.
    pub(super) fn share(&mut self, pem: &[u8]) -> Arc<[u8]> {
        if let Some(known) = self.known.get(pem) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at.max(SWEEP_MIN) {
            self.known.retain(|pem| Arc::strong_count(pem) > 1);
            self.sweep_at = 2 * self.known.len();
        }
        let shared: Arc<[u8]> = pem.into();
        self.known.insert(Arc::clone(&shared));
        shared
    }
}
