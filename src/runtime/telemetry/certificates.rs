//! Metrics about the ends of certificates.

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntGaugeVec, Opts};

/// Upstream's buckets of a client certificate's remaining lifetime, in seconds
/// (`authentication/request/x509/x509.go`): from half an hour to a year.
const CLIENT_BUCKETS: &[f64] = &[
    0.0,
    1_800.0,
    3_600.0,
    7_200.0,
    21_600.0,
    43_200.0,
    86_400.0,
    172_800.0,
    345_600.0,
    604_800.0,
    2_592_000.0,
    7_776_000.0,
    15_552_000.0,
    31_104_000.0,
];

/// When certificates end.
#[derive(Debug)]
pub struct CertificateMetrics {
    /// `portico_certificate_expiration_timestamp_seconds{certificate}`.
    pub own: IntGaugeVec,
    /// `portico_apiservice_ca_bundle_expiration_timestamp_seconds{apiservice}`.
    pub ca_bundles: IntGaugeVec,
    /// `apiserver_client_certificate_expiration_seconds`.
    pub clients: Histogram,
}

impl CertificateMetrics {
    /// Not yet registered.
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let gauge = |name, help, label| IntGaugeVec::new(Opts::new(name, help), &[label]);
        let clients = HistogramOpts::new(
            "apiserver_client_certificate_expiration_seconds",
            "Remaining lifetime of the client certificate that came with a request, in seconds.",
        );
        Ok(Self {
            own: gauge(
                "portico_certificate_expiration_timestamp_seconds",
                "When certificates that portico uses expire, in seconds since the epoch.",
                "certificate",
            )?,
            ca_bundles: gauge(
                "portico_apiservice_ca_bundle_expiration_timestamp_seconds",
                "When the next authority in an APIService's caBundle expires, in seconds since the \
                 epoch.",
                "apiservice",
            )?,
            clients: Histogram::with_opts(clients.buckets(CLIENT_BUCKETS.to_vec()))?,
        })
    }

    /// What is to be registered.
    pub(super) fn collectors(&self) -> [Box<dyn Collector>; 3] {
        [
            Box::new(self.own.clone()),
            Box::new(self.ca_bundles.clone()),
            Box::new(self.clients.clone()),
        ]
    }
}
