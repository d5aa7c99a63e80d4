//! The TLS configuration of all backends that are trusted for the same reason.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;

use super::BackendSpec;
use crate::model::fault::{Fault, Hop};
use crate::runtime::snapshot::View;
use crate::tls::backend::{Trust, client_config};
use crate::tls::{KeyPair, TlsError};

/// Made when it is first needed, since reading certificates and key takes a good part of the time of a
/// handshake; and made anew when the client pair is another one. Each configuration remembers TLS
/// sessions of its own, so that none that was begun with a replaced pair is resumed.
#[derive(Debug, Default)]
pub struct SharedTls(Mutex<Option<Made>>);

#[derive(Debug)]
struct Made {
    identity: Option<Arc<KeyPair>>,
    config: Result<Arc<ClientConfig>, Fault>,
}

impl SharedTls {
    /// The configuration, or why none can be made.
    pub(super) fn config(
        &self,
        spec: &BackendSpec,
        identity: Option<&View<KeyPair>>,
    ) -> Result<Arc<ClientConfig>, Fault> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = identity.map(View::load);
        let is_current = |made: &&Made| match (&made.identity, &identity) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        if let Some(made) = made.as_ref().filter(is_current) {
            return made.config.clone();
        }
        let config = make(spec, identity.as_deref());
        *made = Some(Made { identity, config: config.clone() });
        config
    }
}

fn make(spec: &BackendSpec, identity: Option<&KeyPair>) -> Result<Arc<ClientConfig>, Fault> {
    let trust = if spec.insecure_skip_tls_verify {
        Trust::Anybody
    } else if spec.ca_bundle.is_empty() {
        Trust::System
    } else {
        Trust::CaBundle(&spec.ca_bundle)
    };
    client_config(trust, identity).map_err(|error| {
        let hop = match error {
            TlsError::SystemRoots(_) => Hop::NoSystemRoots,
            _ => Hop::InvalidCaBundle,
        };
        Fault::new(hop, error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fault::ServicePort;
    use crate::runtime::snapshot::Publisher;
    use crate::tls::pki::{Authority, Purpose};

    #[test]
    fn a_configuration_is_kept_until_the_pair_is_another() {
        let authority = Authority::new("ca").unwrap();
        let pair = || authority.sign("a", Purpose::Client(&[])).unwrap().key_pair().unwrap();
        let spec = BackendSpec {
            service: ServicePort { namespace: "n".into(), name: "s".into(), port: 443 },
            ca_bundle: authority.certificate().as_bytes().into(),
            insecure_skip_tls_verify: false,
        };
        let (publisher, view) = Publisher::new(pair());
        let shared = SharedTls::default();
        let config = || shared.config(&spec, Some(&view)).unwrap();
        let first = config();
        assert!(Arc::ptr_eq(&first, &config()));
        publisher.publish(pair());
        let second = config();
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &config()));
        let nobody = || SharedTls::default().config(&spec, None).unwrap();
        assert!(!nobody().client_auth_cert_resolver.has_certs());
    }
}
