//! The keys that kube-apiserver publishes for its service accounts' tokens
//! (`pkg/serviceaccount/openidmetadata.go`).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};

use super::super::jwt::{KeySet, KeysError};
use crate::model::fault::Fault;
use crate::upstream::{ApiServer, Pool};

/// Where they are.
const PATH: &str = "/openid/v1/jwks";
/// What they are; kube-apiserver answers 406 to who does not name it (RFC 7517 §8.5.2).
const MEDIA_TYPE: HeaderValue = HeaderValue::from_static("application/jwk-set+json");

/// How long the answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why they could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClusterKeysError {
    #[error("{}: {}", .0.hop.word(), .0.detail)]
    Fault(Fault),
    #[error("kube-apiserver answered {0}")]
    Status(StatusCode),
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// Fetches them as portico itself, over `pool`, which must be of the calling thread.
pub(super) async fn fetch(
    server: &ApiServer,
    pool: &Arc<Pool>,
) -> Result<KeySet, ClusterKeysError> {
    match server.get(pool, (PATH, &MEDIA_TYPE), TIMEOUT).await {
        Ok((StatusCode::OK, json)) => Ok(KeySet::from_jwks(&json)?),
        Ok((status, _)) => Err(ClusterKeysError::Status(status)),
        Err(fault) => Err(ClusterKeysError::Fault(fault)),
    }
}
