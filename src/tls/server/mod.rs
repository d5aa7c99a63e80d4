//! TLS towards clients: a client certificate is asked for, never demanded, and never judged here.
//!
//! As with Go's `RequestClientCert`, a bad certificate does not end the handshake: who is calling is
//! decided per request, so that another authenticator gets its turn. Only the proof that the client
//! holds the certificate's key is checked. Resumed sessions restore the chain unverified, which is
//! one more reason to judge it after the handshake.

mod settings;
mod shown;
mod sni;
mod tickets;

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    ALL_VERSIONS, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::expiry::{Kind, Watched};
use super::{KeyPair, TlsError, provider};

pub use settings::{MinVersion, Settings, SniPair, cipher_suite, cipher_suite_names};
pub use shown::Shown;

/// TLS session tickets sent after each full handshake: one is enough for one more connection.
const TICKETS_PER_HANDSHAKE: usize = 1;
/// What is offered by ALPN, the better one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The certificates that are shown to clients.
#[derive(Debug)]
pub struct Certificates {
    /// The pair that is shown unless another one has the name, and where it is from.
    pub default: (Arc<KeyPair>, String),
    /// Pairs for certain names; earlier ones win.
    pub sni: Vec<(Arc<KeyPair>, SniPair)>,
}

impl Certificates {
    /// Their ends, under the names `serving` and `sni/<place in the list>`.
    pub fn watched(&self) -> Vec<Watched> {
        let (pair, place) = &self.default;
        let mut watched = vec![Watched::new("serving", place, Kind::Chain, &pair.chain)];
        for (at, (pair, setting)) in self.sni.iter().enumerate() {
            let place = setting.certificate.display().to_string();
            watched.push(Watched::new(&format!("sni/{at}"), &place, Kind::Chain, &pair.chain));
        }
        watched
    }
}

/// The serving configuration: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN, keys exchanged by
/// X25519MLKEM768 with those who can.
///
/// Each configuration has ticket keys of its own: who publishes another one, because authorities or
/// certificates changed, thereby ends the sessions that were begun under the old one, and their
/// clients make a full handshake.
pub fn server_config(
    settings: &Settings,
    certificates: &Certificates,
) -> Result<ServerConfig, TlsError> {
    let (_, place) = &certificates.default;
    let problem = |error| TlsError::Pair { place: place.clone(), error };
    let verifier = Arc::new(RequestClientCertificate { provider: provider() });
    let mut config = ServerConfig::builder_with_provider(narrowed(&settings.cipher_suites))
        .with_protocol_versions(versions(settings.min_version))
        .map_err(problem)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(sni::ByName::new(certificates)?));
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
    config.ticketer = tickets::Tickets::new()?;
    // Sessions kept here would outlive the tickets' hour.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

static TLS13_ONLY: &[&SupportedProtocolVersion] = &[&TLS13];

fn versions(oldest: MinVersion) -> &'static [&'static SupportedProtocolVersion] {
    match oldest {
        MinVersion::Tls12 => ALL_VERSIONS,
        MinVersion::Tls13 => TLS13_ONLY,
    }
}

/// The provider with these suites of TLS 1.2 only, in the given order; those of TLS 1.3 stay.
fn narrowed(wanted: &[SupportedCipherSuite]) -> Arc<CryptoProvider> {
    let mut provider = CryptoProvider::clone(&provider());
    if !wanted.is_empty() {
        provider.cipher_suites.retain(|suite| suite.tls13().is_some());
        provider.cipher_suites.extend(wanted.iter().filter(|suite| suite.tls13().is_none()));
    }
    Arc::new(provider)
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
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(pair_error)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(pair.chain.clone(), pair.key.clone_key())
        .map_err(pair_error)?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::certificates;
    use crate::tls::pki::{Authority, Purpose};
    use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConnection};
    use rustls_pki_types::ServerName;

    fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> ServerConnection {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
        while client.wants_write() || server.wants_write() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).unwrap();
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets().unwrap();
            }
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).unwrap();
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        server
    }

    #[track_caller]
    fn check_resumption(version: &'static SupportedProtocolVersion) {
        let authority = Authority::new("ca").unwrap();
        let serving = authority.sign("localhost", Purpose::Server(&["localhost"])).unwrap();
        let alice = authority.sign("alice", Purpose::Client(&[])).unwrap().key_pair().unwrap();
        let shown = Certificates {
            default: (Arc::new(serving.key_pair().unwrap()), "test".to_owned()),
            sni: Vec::new(),
        };
        let server = || Arc::new(server_config(&Settings::default(), &shown).unwrap());
        let mut roots = RootCertStore::empty();
        for root in certificates("ca", authority.certificate().as_bytes()).unwrap() {
            roots.add(root).unwrap();
        }
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(alice.chain.clone(), alice.key)
            .unwrap();
        let (client, before, after) = (Arc::new(client), server(), server());
        for (server, kind) in [
            (&before, HandshakeKind::Full),
            (&before, HandshakeKind::Resumed),
            (&after, HandshakeKind::Full),
            (&after, HandshakeKind::Resumed),
        ] {
            let connection = handshake(&client, server);
            assert_eq!(connection.handshake_kind(), Some(kind));
            assert_eq!(connection.peer_certificates(), Some(&alice.chain[..]));
        }
        assert_eq!(before.max_early_data_size, 0);
    }

    #[test]
    fn a_ticket_is_good_for_the_configuration_that_made_it_and_carries_the_clients_chain() {
        check_resumption(&TLS13);
        check_resumption(&rustls::version::TLS12);
    }
}
