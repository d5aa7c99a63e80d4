//! Metrics under upstream's names where it has them, and the log's set-up.

use prometheus::{GaugeVec, IntCounterVec, Opts, Registry};

/// The program's metrics; one value, shared by every part.
#[derive(Debug)]
pub struct Metrics {
    /// Where all of them are registered.
    pub registry: Registry,
    /// `aggregator_unavailable_apiservice{name}`: 0 available, 1 not.
    pub unavailable: GaugeVec,
    /// `aggregator_unavailable_apiservice_total{name,reason}`.
    pub unavailable_total: IntCounterVec,
}

impl Metrics {
    /// Registers every metric in a registry of its own.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let unavailable = GaugeVec::new(
            Opts::new(
                "aggregator_unavailable_apiservice",
                "Gauge of APIServices which are marked as unavailable broken down by APIService name.",
            ),
            &["name"],
        )?;
        let unavailable_total = IntCounterVec::new(
            Opts::new(
                "aggregator_unavailable_apiservice_total",
                "Counter of APIServices which are marked as unavailable broken down by APIService \
                 name and reason.",
            ),
            &["name", "reason"],
        )?;
        registry.register(Box::new(unavailable.clone()))?;
        registry.register(Box::new(unavailable_total.clone()))?;
        Ok(Self { registry, unavailable, unavailable_total })
    }
}
