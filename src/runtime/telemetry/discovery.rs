//! How well the discovery of backends is known.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec};

use super::{counter, gauge};

/// The metrics of the aggregate loop.
#[derive(Debug)]
pub struct DiscoveryMetrics {
    /// `aggregator_discovery_aggregation_count_total`.
    pub published: IntCounter,
    versions: IntGaugeVec,
    fetches: IntCounterVec,
    fetch_seconds: Histogram,
}

impl DiscoveryMetrics {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let seconds = HistogramOpts::new(
            "portico_discovery_fetch_duration_seconds",
            "How long backends took to answer what they serve, or to fail.",
        );
        let versions = gauge(
            "portico_discovery_versions",
            "API versions of backends by how discovery shows them: current, held, stale or omitted.",
            &["shown"],
        )?;
        for shown in ["current", "held", "stale", "omitted"] {
            versions.with_label_values(&[shown]).set(0);
        }
        let buckets = vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
        Ok(Self {
            published: IntCounter::new(
                "aggregator_discovery_aggregation_count_total",
                "Counter of number of times discovery was aggregated.",
            )?,
            versions,
            fetches: counter(
                "portico_discovery_fetches_total",
                "Backends asked for what they serve, by result: aggregated, legacy, not_modified or \
                 the cause of the failure.",
                &["result"],
            )?,
            fetch_seconds: Histogram::with_opts(seconds.buckets(buckets))?,
        })
    }

    pub(super) fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.published.clone()),
            Box::new(self.versions.clone()),
            Box::new(self.fetches.clone()),
            Box::new(self.fetch_seconds.clone()),
        ]
    }

    /// A version is shown otherwise than before; none where it is not there.
    pub fn moved(&self, before: Option<&str>, after: Option<&str>) {
        if let Some(before) = before {
            self.versions.with_label_values(&[before]).dec();
        }
        if let Some(after) = after {
            self.versions.with_label_values(&[after]).inc();
        }
    }

    /// A backend was asked.
    pub fn fetched(&self, result: &str, took: Duration) {
        self.fetches.with_label_values(&[result]).inc();
        self.fetch_seconds.observe(took.as_secs_f64());
    }
}
