//! TLS towards clients: a client certificate is asked for, never demanded, and never judged here.
//!
//! As with Go's `RequestClientCert`, a bad certificate does not end the handshake: who is calling is
//! decided per request, so that another authenticator gets its turn. Only the proof that the client
//! holds the certificate's key is checked. Resumed sessions restore the chain unverified, which is
//! one more reason to judge it after the handshake.

mod settings;

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{KeyPair, TlsError, provider};

pub use settings::{MinVersion, Settings, SniPair, cipher_suite, cipher_suite_names};

/// TLS session tickets sent after each full handshake: one is enough for one more connection.
const TICKETS_PER_HANDSHAKE: usize = 1;

/// The serving configuration: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN.
pub fn server_config(pair: &KeyPair, place: &str) -> Result<ServerConfig, TlsError> {
    let pair_error = |error| TlsError::Pair { place: place.to_owned(), error };
    let verifier = Arc::new(RequestClientCertificate { provider: provider() });
    let mut config = config(pair, verifier).map_err(pair_error)?;
    config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(pair_error)?;
    Ok(config)
}

/// Asks for a certificate and takes whichever comes, if the client holds its key.
#[derive(Debug)]
struct RequestClientCertificate {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for RequestClientCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: Go clients send no certificate at all when none of the hints matches.
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A configuration that demands a client certificate of `authority`: what extension API servers
/// have that believe nobody but their front proxy.
pub fn mutual_config(
    pair: &KeyPair,
    authority: Vec<CertificateDer<'static>>,
) -> Result<ServerConfig, TlsError> {
    let place = "front-proxy authority";
    let pair_error = |error| TlsError::Pair { place: place.to_owned(), error };
    let mut roots = RootCertStore::empty();
    for certificate in authority {
        roots.add(certificate).map_err(pair_error)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| TlsError::Pem { place: place.to_owned(), problem: error.to_string() })?;
    config(pair, verifier).map_err(pair_error)
}

/// TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1.
fn config(
    pair: &KeyPair,
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(pair.chain.clone(), pair.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
