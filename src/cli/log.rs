//! The log's set-up: text or JSON on standard error.

use std::io::{self, IsTerminal as _};

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::config::{LogConfig, LogFormat};

/// Starts logging.
pub(super) fn init(config: &LogConfig) {
    let ansi = io::stderr().is_terminal();
    set(Registry::default().with(lines(config, io::stderr, ansi)));
}

/// Starts the log of a command that prints its findings itself: portico's own errors, such as a manifest
/// that is broken.
pub(super) fn init_errors() {
    let layer = fmt::layer().without_time().with_writer(io::stderr);
    let layer = layer.with_ansi(io::stderr().is_terminal());
    let own = Targets::new().with_target("portico", LevelFilter::ERROR);
    set(Registry::default().with(layer.with_filter(own)));
}

fn set(subscriber: impl Subscriber + Send + Sync) {
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::debug!("log was set up before");
    }
}

/// The layer that writes the log's lines.
fn lines<S, W>(config: &LogConfig, writer: W, ansi: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    W: for<'writer> fmt::MakeWriter<'writer> + Send + Sync + 'static,
{
    let filter = levels(config);
    let layer = fmt::layer().with_writer(writer);
    match config.format {
        LogFormat::Text => layer.with_ansi(ansi).with_filter(filter).boxed(),
        LogFormat::Json => layer.json().with_ansi(false).with_filter(filter).boxed(),
    }
}

/// klog's verbosity in `tracing`'s words: up to 2 what matters, from 3 on every request, from 6 on the
/// libraries' steps too.
fn levels(config: &LogConfig) -> Targets {
    let level = |verbosity| if verbosity <= 2 { LevelFilter::INFO } else { LevelFilter::DEBUG };
    let libraries = if config.verbosity <= 5 { LevelFilter::INFO } else { LevelFilter::DEBUG };
    // They tell of every try what portico says once.
    let watchers = if config.verbosity <= 5 { LevelFilter::OFF } else { LevelFilter::DEBUG };
    let mut targets = Targets::new()
        .with_default(libraries)
        .with_target("kube_client", watchers)
        .with_target("kube_runtime", watchers)
        .with_target("portico", level(config.verbosity));
    for part in &config.parts {
        targets = targets.with_target(format!("portico::{}", part.part), level(part.level));
    }
    targets
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::config::PartLevel;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged of an event of each level from the proxy, from auth and from a library.
    fn logged(config: &LogConfig) -> String {
        let written = Written::default();
        let writer = written.clone();
        let layer = lines(config, move || writer.clone(), false);
        let subscriber = Registry::default().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "portico::proxy", port = 1, "proxy info");
            tracing::debug!(target: "portico::proxy", "proxy debug");
            tracing::debug!(target: "portico::auth::x509", "auth debug");
            tracing::info!(target: "h2", "library info");
            tracing::debug!(target: "h2", "library debug");
            tracing::error!(target: "kube_client::client", "watcher error");
        });
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    /// Every message that is tried.
    const ALL: [&str; 6] = [
        "proxy info",
        "proxy debug",
        "auth debug",
        "library info",
        "library debug",
        "watcher error",
    ];

    #[track_caller]
    fn check(verbosity: u8, parts: &[(&'static str, u8)], expected: &[&str]) {
        let parts = parts.iter().map(|&(part, level)| PartLevel { part, level }).collect();
        let config = LogConfig { format: LogFormat::Text, verbosity, parts };
        let text = logged(&config);
        let found: Vec<_> = ALL.into_iter().filter(|message| text.contains(message)).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn verbosity_counts_as_klog_does_and_parts_have_their_own() {
        let quiet = ["proxy info", "library info"];
        check(0, &[], &quiet);
        check(2, &[], &quiet);
        check(3, &[], &["proxy info", "proxy debug", "auth debug", "library info"]);
        check(4, &[], &["proxy info", "proxy debug", "auth debug", "library info"]);
        check(6, &[], &ALL);
        check(10, &[], &ALL);
        check(0, &[("auth", 4)], &["proxy info", "auth debug", "library info"]);
        check(3, &[("proxy", 0)], &["proxy info", "auth debug", "library info"]);
        check(0, &[("auth", 4), ("auth", 0)], &quiet);
    }

    #[test]
    fn json_lines_hold_the_fields_by_name() {
        let config = LogConfig { format: LogFormat::Json, ..LogConfig::default() };
        let text = logged(&config);
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(first["level"], "INFO");
        assert_eq!(first["target"], "portico::proxy");
        assert_eq!(first["fields"]["message"], "proxy info");
        assert_eq!(first["fields"]["port"], 1);
        assert!(first["timestamp"].is_string());
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
