//! x509 client certificates (`apiserver/pkg/authentication/request/x509`).

use crate::model::user::{EXTRA_CREDENTIAL_ID, User};
use crate::tls::client_chain::Leaf;

/// The user that a verified client certificate names: common name, organizations as groups, the uid
/// attribute, and the certificate's fingerprint as credential id. `None` without a common name.
pub(super) fn user(leaf: &Leaf) -> Result<Option<User>, String> {
    if leaf.common_name.is_empty() {
        return Ok(None);
    }
    let uid = leaf.uid.clone().map_err(str::to_owned)?.unwrap_or_default();
    let credential = vec![format!("X509SHA256={}", leaf.fingerprint)];
    Ok(Some(User {
        name: leaf.common_name.clone(),
        uid,
        groups: leaf.organizations.clone(),
        extra: [(EXTRA_CREDENTIAL_ID.to_owned(), credential)].into(),
    }))
}
