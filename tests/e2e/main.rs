//! The real program, started on a free port with manifests in a directory of its own, against
//! scripted backends on loopback: what a user, a client or an attacker can observe.
//!
//! No test waits for time to pass: each awaits a fact (a response, a frame, a counter, a closed
//! socket), bounded by a generous limit.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what a test relies on it may take for granted, and to panic is how it fails"
)]

mod backend;
mod client;
mod cluster;
mod core_backend;
mod core_discovery;
mod discovery_backend;
mod http1_client;
mod http2_client;
mod issuer;
mod pki;
mod raw_http2;
mod relay;
mod review_server;
mod rig;
mod switch_backend;

mod access_log;
mod access_reviews;
mod admin;
mod availability;
mod bench;
mod bench_fleet;
mod core;
mod core_reviews;
mod core_tokens;
mod core_watches;
mod core_ways;
mod credentials;
mod deadlines;
mod discovery;
mod discovery_failing;
mod discovery_start;
mod doctor;
mod documents;
mod ending;
mod faults;
mod frontend;
mod identity;
mod impersonation;
mod jwt;
mod kube_rs;
mod manifests;
mod misbehaving;
mod objects;
mod overload;
mod pooling;
mod process;
mod proxying;
mod rotation;
#[cfg(feature = "otlp")]
mod spans;
mod spoofing;
mod suspicion;
mod tls;
mod token_reviews;
mod tracing_context;
mod upgrade_refusals;
mod upgrades;
mod watches;
