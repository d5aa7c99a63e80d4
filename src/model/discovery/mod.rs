//! Discovery: which groups, versions and resources there are, and how that is written.
//!
//! Types follow `k8s.io/api/apidiscovery/v2` and `apimachinery/pkg/apis/meta/v1`; fields are written
//! in Go's order, so that documents can be compared with upstream's byte by byte.

pub mod aggregated;
pub mod convert;
pub mod escape;
pub mod index;
pub mod legacy;
pub mod parse;
pub mod policy;
pub mod protobuf;
pub mod schedule;

use serde::{Deserialize, Deserializer};

/// Reads `null` as the empty value, as Go does: a nil list without `omitempty` is written so.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
