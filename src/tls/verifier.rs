//! Judges a backend's certificate as Go does, where the web's rules are stricter.
//!
//! caBundles in the field hold what rustls-webpki refuses and Go accepts: a leaf that is its own
//! bundle, also when it is marked as a CA, and leaves marked as a CA that a bundled CA signed
//! (`reference/dependencies.md` §2). The web's verification runs first; only its refusals of that
//! kind get a second look, which asks for the same: a trusted key, the right name, a valid time.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{TlsError, provider};

/// Verifies a backend's certificate against one set of roots.
#[derive(Debug)]
pub(super) struct BackendVerifier {
    provider: Arc<CryptoProvider>,
    /// `None` accepts anybody.
    web: Option<Arc<WebPkiServerVerifier>>,
    /// The bundle's certificates for the second look; empty for the system's roots.
    bundle: Vec<CertificateDer<'static>>,
}

impl BackendVerifier {
    /// Trusts the bundle's certificates and nobody else.
    pub(super) fn roots(bundle: Vec<CertificateDer<'static>>) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        // What cannot be an anchor may still be the leaf itself.
        store.add_parsable_certificates(bundle.iter().cloned());
        let web = if store.is_empty() { None } else { Some(web_verifier(store)?) };
        let Some(web) = web else {
            return Err(TlsError::Pem {
                place: "unable to load root certificates".to_owned(),
                problem: "no valid certificate authority data seen".to_owned(),
            });
        };
        Ok(Self { provider: provider(), web: Some(web), bundle })
    }

    /// Trusts the system's roots.
    pub(super) fn system(store: RootCertStore) -> Result<Self, TlsError> {
        Ok(Self { provider: provider(), web: Some(web_verifier(store)?), bundle: Vec::new() })
    }

    /// Trusts anybody who holds the key of the certificate that is shown.
    pub(super) fn anybody() -> Self {
        Self { provider: provider(), web: None, bundle: Vec::new() }
    }

    /// The second look at a certificate that the web's rules refuse.
    fn accepts_as_go_does(
        &self,
        leaf: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let Ok((_, parsed)) = X509Certificate::from_der(leaf) else {
            return Err(CertificateError::BadEncoding.into());
        };
        let trusted = self
            .bundle
            .iter()
            .any(|root| root.as_ref() == leaf.as_ref() || self.signed_by(&parsed, root, now));
        if !trusted {
            return Err(unknown());
        }
        check_validity(&parsed, now)?;
        verify_server_name(&ParsedCertificate::try_from(leaf)?, name)
    }

    /// True when `root` is a valid authority whose key made the signature of `leaf`.
    fn signed_by(
        &self,
        leaf: &X509Certificate<'_>,
        root: &CertificateDer<'_>,
        now: UnixTime,
    ) -> bool {
        let Ok((_, root)) = X509Certificate::from_der(root) else { return false };
        if root.subject() != leaf.issuer() || check_validity(&root, now).is_err() || !root.is_ca() {
            return false;
        }
        let Some(algorithm) = algorithm_identifier(leaf) else { return false };
        let key_info = root.public_key();
        let key = &key_info.subject_public_key.data;
        self.provider.signature_verification_algorithms.all.iter().any(|candidate| {
            candidate.signature_alg_id().as_ref() == algorithm
                && candidate
                    .verify_signature(
                        key,
                        leaf.tbs_certificate.as_ref(),
                        &leaf.signature_value.data,
                    )
                    .is_ok()
        })
    }
}

/// The contents of the certificate's signature algorithm identifier, as rustls compares it.
fn algorithm_identifier<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    // The identifier stands behind the to-be-signed part: SEQUENCE, length, contents.
    let algorithm = &certificate.signature_algorithm;
    KNOWN_ALGORITHMS
        .iter()
        .find(|(oid, _)| algorithm.algorithm.as_bytes() == *oid)
        .map(|(_, contents)| *contents)
}

/// Object identifiers of the signature algorithms in use with their DER identifiers' contents.
const KNOWN_ALGORITHMS: &[(&[u8], &[u8])] = &[
    (
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
        &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
    ),
    (
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03],
        &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03],
    ),
    (
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b],
        &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b, 0x05, 0x00],
    ),
    (
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c],
        &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c, 0x05, 0x00],
    ),
    (
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d],
        &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d, 0x05, 0x00],
    ),
    (&[0x2b, 0x65, 0x70], &[0x06, 0x03, 0x2b, 0x65, 0x70]),
];

fn check_validity(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), Error> {
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if seconds > certificate.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    if seconds < certificate.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    Ok(())
}

fn web_verifier(store: RootCertStore) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider()).build().map_err(
        |error| TlsError::Pem {
            place: "unable to load root certificates".to_owned(),
            problem: error.to_string(),
        },
    )
}

/// True for the refusals that Go would not make.
fn deserves_second_look(error: &Error) -> bool {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
        Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => {
            // rustls hides webpki's own errors behind this.
            other.to_string().contains("CaUsedAsEndEntity")
        }
        _ => false,
    }
}

impl ServerCertVerifier for BackendVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(web) = &self.web else { return Ok(ServerCertVerified::assertion()) };
        let verdict =
            web.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verdict {
            Err(error) if deserves_second_look(&error) && !self.bundle.is_empty() => {
                self.accepts_as_go_does(end_entity, server_name, now)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair as Key, date_time_ymd,
    };

    const NAME: &str = "svc.ns.svc";

    fn params(name: &str, ca: bool) -> CertificateParams {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("{name} {ca}"));
        params
    }

    fn authority(name: &str) -> CertifiedIssuer<'static, Key> {
        CertifiedIssuer::self_signed(params(name, true), Key::generate().unwrap()).unwrap()
    }

    fn self_signed(params: &CertificateParams) -> CertificateDer<'static> {
        params.self_signed(&Key::generate().unwrap()).unwrap().der().clone()
    }

    fn signed(
        params: &CertificateParams,
        issuer: &CertifiedIssuer<'static, Key>,
    ) -> CertificateDer<'static> {
        params.signed_by(&Key::generate().unwrap(), issuer).unwrap().der().clone()
    }

    #[track_caller]
    fn check(bundle: CertificateDer<'static>, leaf: &CertificateDer<'_>, expected: &str) {
        let verifier = BackendVerifier::roots(vec![bundle]).unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let verdict = verifier.verify_server_cert(leaf, &[], &name, &[], UnixTime::now());
        let got = match verdict {
            Ok(_) => "accepted".to_owned(),
            Err(error) => format!("{error:?}"),
        };
        assert!(got.contains(expected), "{got}, expected {expected}");
    }

    #[test]
    fn what_go_accepts_is_accepted() {
        let ca = authority("ca");
        check(ca.der().clone(), &signed(&params(NAME, false), &ca), "accepted");
        let own = self_signed(&params(NAME, false));
        check(own.clone(), &own, "accepted");
        let own_ca = self_signed(&params(NAME, true));
        check(own_ca.clone(), &own_ca, "accepted");
        check(ca.der().clone(), &signed(&params(NAME, true), &ca), "accepted");
        let bundled_leaf = signed(&params(NAME, false), &ca);
        check(bundled_leaf.clone(), &bundled_leaf, "accepted");
    }

    #[test]
    fn the_second_look_asks_for_issuer_name_and_time_all_the_same() {
        let (ca, other) = (authority("ca"), authority("other"));
        check(other.der().clone(), &signed(&params(NAME, false), &ca), "UnknownIssuer");
        check(other.der().clone(), &signed(&params(NAME, true), &ca), "UnknownIssuer");
        let wrong_name = self_signed(&params("other.ns.svc", true));
        check(wrong_name.clone(), &wrong_name, "NotValidForName");
        let mut old = params(NAME, true);
        old.not_before = date_time_ymd(2001, 1, 1);
        old.not_after = date_time_ymd(2002, 1, 1);
        let old = self_signed(&old);
        check(old.clone(), &old, "Expired");
    }

    #[test]
    fn a_bundle_without_a_certificate_is_an_error() {
        assert!(super::super::certificates("x", b"-----BEGIN NONSENSE").is_err());
    }
}
