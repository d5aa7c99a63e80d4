//! TLS towards backends: whom to trust, and the proxy-client certificate to show.

use std::sync::Arc;

use rustls::client::{ClientConfig, Resumption};
use rustls::{RootCertStore, version};

use super::verifier::BackendVerifier;
use super::{KeyPair, TlsError, certificates, provider};

/// TLS sessions remembered for resumption, by all backends that are trusted for the same reason; the
/// library takes eight a server.
const SESSIONS_MAX: usize = 512;

/// Whom to trust as the backend.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// The PEM certificates of a caBundle, and nobody else.
    CaBundle(&'a [u8]),
    /// The system's roots.
    System,
    /// Anybody (`insecureSkipTLSVerify`).
    Anybody,
}

/// The configuration for one TLS identity (`BuildTransportConfig` upstream): TLS 1.2 or 1.3, HTTP/2
/// preferred, the client pair shown when the backend asks for it.
pub fn client_config(
    trust: Trust<'_>,
    identity: Option<&KeyPair>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let verifier = verifier(trust)?;
    let pair_error = |error| TlsError::Pair { place: "proxy-client certificate".to_owned(), error };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(pair_error)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(pair) => builder
            .with_client_auth_cert(pair.chain.clone(), pair.key.clone_key())
            .map_err(pair_error)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    Ok(Arc::new(config))
}

/// The judge of certificates for this trust.
pub(super) fn verifier(trust: Trust<'_>) -> Result<BackendVerifier, TlsError> {
    match trust {
        Trust::CaBundle(pem) => {
            BackendVerifier::roots(certificates("unable to load root certificates", pem)?)
        }
        Trust::System => BackendVerifier::system(system_roots()?),
        Trust::Anybody => Ok(BackendVerifier::anybody()),
    }
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    let (added, _ignored) = store.add_parsable_certificates(loaded.certs);
    if added == 0 {
        let why =
            loaded.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(TlsError::SystemRoots(why));
    }
    Ok(store)
}
