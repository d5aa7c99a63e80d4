//! Whether the keys and rules by which tokens are verified here are up to date.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{GaugeVec, IntCounterVec, Opts};

use super::counter;

/// The metrics of tokens that are verified here.
#[derive(Clone, Debug)]
pub struct TokenMetrics {
    reloads: IntCounterVec,
    last_reload: GaugeVec,
    fetches: IntCounterVec,
}

impl TokenMetrics {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            reloads: counter(
                "apiserver_authentication_config_controller_automatic_reloads_total",
                "Total number of automatic reloads of authentication configuration split by status.",
                &["status"],
            )?,
            last_reload: GaugeVec::new(
                Opts::new(
                    "apiserver_authentication_config_controller_automatic_reload_last_timestamp_\
                     seconds",
                    "Timestamp of the last automatic reload of authentication configuration split \
                     by status.",
                ),
                &["status"],
            )?,
            fetches: counter(
                "portico_token_keys_fetches_total",
                "Fetches of the keys of token issuers, by issuer and result.",
                &["issuer", "result"],
            )?,
        })
    }

    pub(super) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.reloads.clone()),
            Box::new(self.last_reload.clone()),
            Box::new(self.fetches.clone()),
        ]
    }

    /// A changed file has come into force, or has not.
    pub fn reloaded(&self, has_succeeded: bool) {
        let status = result(has_succeeded);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.reloads.with_label_values(&[status]).inc();
        self.last_reload.with_label_values(&[status]).set(now.as_secs_f64());
    }

    /// The keys of an issuer were asked for.
    pub fn fetched(&self, issuer: &str, has_succeeded: bool) {
        self.fetches.with_label_values(&[issuer, result(has_succeeded)]).inc();
    }
}

fn result(has_succeeded: bool) -> &'static str {
    if has_succeeded { "success" } else { "failure" }
}
