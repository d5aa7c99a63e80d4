//! What every part stands on: published snapshots, named tasks, the program's life, logs and metrics.
//!
//! Nothing here knows about Kubernetes or HTTP; every part may import it.

pub mod descriptors;
pub mod lifecycle;
pub mod lines;
pub mod snapshot;
pub mod socket;
pub mod tasks;
pub mod telemetry;
