//! Digests under a secret that is made at start: keys that tell nothing of what they stand for.

use std::fmt;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use aws_lc_rs::rand;

use super::kept_reviews::Key;

/// Bytes of the secret.
const SECRET_BYTES: usize = 32;

/// The secret.
pub(super) struct Secret(hmac::Key);

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

impl Secret {
    /// A new one from the system's generator.
    pub(super) fn new() -> Result<Self, String> {
        let mut secret = [0; SECRET_BYTES];
        if rand::fill(&mut secret).is_err() {
            return Err("the system gives no random bytes".to_owned());
        }
        Ok(Self(hmac::Key::new(HMAC_SHA256, &secret)))
    }

    pub(super) fn digest(&self, bytes: &[u8]) -> Key {
        let mut key = Key::default();
        key.copy_from_slice(hmac::sign(&self.0, bytes).as_ref());
        key
    }
}
