//! What every part stands on: published snapshots, named tasks, files that are followed or kept,
//! configuration files, the program's life, logs, metrics and spans.
//!
//! Nothing here knows about Kubernetes or HTTP; every part may import it.

pub mod background;
pub mod configuration_file;
pub mod descriptors;
pub mod files;
pub mod kept_file;
pub mod lifecycle;
pub mod lines;
pub mod snapshot;
pub mod socket;
pub mod spans;
pub mod tasks;
pub mod telemetry;
