//! What a server shows in its handshake, and what would be thought of it: for diagnosis, which looks
//! on where a proxy must stop.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error, SignatureScheme, version};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::backend::{Trust, verifier};
use super::verifier::BackendVerifier;
use super::{KeyPair, TlsError, provider};

/// What one server has shown; filled by the handshake, also by one that fails later.
#[derive(Debug, Default)]
pub struct Shown {
    chain: OnceLock<Vec<CertificateDer<'static>>>,
    wanted: OnceLock<Vec<Vec<u8>>>,
}

impl Shown {
    /// The server's certificates, leaf first; empty when it did not come to that.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        self.chain.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// The names (DER) of the authorities whose client certificates the server says it takes, which
    /// is a hint only and may be empty; none when it did not ask for a certificate.
    pub fn wanted(&self) -> Option<&[Vec<u8>]> {
        self.wanted.get().map(Vec::as_slice)
    }
}

/// A configuration that lets a handshake go on whatever certificate the server shows, and notes it;
/// `identity` is shown to a server that asks for it.
pub fn client_config(
    identity: Option<&KeyPair>,
    protocols: &[&[u8]],
) -> Result<(Arc<ClientConfig>, Arc<Shown>), TlsError> {
    let shown = Arc::new(Shown::default());
    let key = identity.map(|pair| pair.certified_key("proxy-client certificate")).transpose()?;
    let looker = Looker { anybody: BackendVerifier::anybody(), shown: Arc::clone(&shown) };
    let presenter = Presenter { key: key.map(Arc::new), shown: Arc::clone(&shown) };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .map_err(|error| TlsError::Pair { place: "TLS versions".to_owned(), error })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(looker))
        .with_client_cert_resolver(Arc::new(presenter));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    // A resumed session shows no certificate.
    config.resumption = Resumption::disabled();
    Ok((Arc::new(config), shown))
}

/// Why a server would not be believed.
#[derive(Debug, thiserror::Error)]
pub enum Disbelief {
    /// There is nothing to judge by.
    #[error(transparent)]
    Roots(#[from] TlsError),
    /// The certificate is at fault.
    #[error(transparent)]
    Certificate(#[from] Error),
}

/// Whether a proxy that trusts so would believe a server that shows `chain` to be `name`.
pub fn judge(
    trust: Trust<'_>,
    chain: &[CertificateDer<'_>],
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), Disbelief> {
    let verifier = verifier(trust)?;
    let (leaf, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
    verifier.verify_server_cert(leaf, intermediates, name, &[], now)?;
    Ok(())
}

/// Notes the server's certificates and believes it, if it holds their key.
#[derive(Debug)]
struct Looker {
    anybody: BackendVerifier,
    shown: Arc<Shown>,
}

impl ServerCertVerifier for Looker {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(end_entity).chain(intermediates);
        let chain = chain.map(|certificate| certificate.clone().into_owned()).collect();
        // There is one handshake for each of these.
        let _first = self.shown.chain.set(chain);
        self.anybody.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.anybody.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.anybody.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.anybody.supported_verify_schemes()
    }
}

/// Notes that a certificate is asked for, and shows the one there is.
#[derive(Debug)]
struct Presenter {
    key: Option<Arc<CertifiedKey>>,
    shown: Arc<Shown>,
}

impl ResolvesClientCert for Presenter {
    fn resolve(
        &self,
        root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let hints = root_hint_subjects.iter().map(|name| name.to_vec()).collect();
        let _first = self.shown.wanted.set(hints);
        self.key.clone()
    }

    fn has_certs(&self) -> bool {
        // Also without one: rustls would not ask, and what is wanted would stay unknown.
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::certificates;
    use crate::tls::pki::{Authority, Purpose};
    use crate::tls::server::mutual_config;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    #[tokio::test]
    async fn what_a_server_shows_and_wants_is_noted_though_nobody_would_believe_it() {
        let (servers, clients) = (Authority::new("servers").unwrap(), Authority::new("c").unwrap());
        let pair = servers.sign("other", Purpose::Server(&["other.ns.svc"])).unwrap();
        let roots = certificates("clients", clients.certificate().as_bytes()).unwrap();
        let server = mutual_config(&pair.key_pair().unwrap(), roots).unwrap();
        let (config, shown) = client_config(None, &[b"http/1.1"]).unwrap();
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = ServerName::try_from("svc.ns.svc").unwrap();
        let accepting = TlsAcceptor::from(Arc::new(server));
        let connecting = TlsConnector::from(config).connect(name.clone(), near);
        // The server refuses a client without a certificate, which the client learns later.
        let (connected, accepted) = tokio::join!(connecting, accepting.accept(far));
        assert!(connected.is_ok() && accepted.is_err());
        assert_eq!(shown.chain().len(), 1);
        assert_eq!(shown.wanted().map(<[_]>::len), Some(1));

        let (bundle, stranger) = (servers.certificate(), clients.certificate());
        let judge = |pem: &str, name: &str| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            judge(Trust::CaBundle(pem.as_bytes()), shown.chain(), &name, UnixTime::now())
        };
        assert!(judge(&bundle, "other.ns.svc").is_ok());
        assert!(matches!(judge(&bundle, "svc.ns.svc"), Err(Disbelief::Certificate(_))));
        assert!(matches!(judge(&stranger, "other.ns.svc"), Err(Disbelief::Certificate(_))));
        assert!(matches!(judge("no pem", "other.ns.svc"), Err(Disbelief::Roots(_))));
    }
}
