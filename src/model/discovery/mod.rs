//! Discovery: which groups, versions and resources there are, and how that is written.
//!
//! Types follow `k8s.io/api/apidiscovery/v2` and `apimachinery/pkg/apis/meta/v1`; fields are written
//! in Go's order, so that documents can be compared with upstream's byte by byte.

pub mod aggregated;
pub mod index;
pub mod legacy;
pub mod policy;
pub mod schedule;
