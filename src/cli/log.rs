//! The log's set-up: text on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts logging at klog's verbosity: up to 2 what matters, from 4 on every step.
pub(super) fn init(verbosity: u8) {
    let filter = match verbosity {
        0..=2 => "info",
        3 => "info,portico=debug",
        _ => "debug",
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .finish();
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::debug!("log was set up before");
    }
}
