//! Key pairs, authorities and the two TLS configurations: towards clients and towards backends.

pub mod backend;
pub mod client_chain;
pub mod cluster_trust;
pub mod examine;
pub mod expiry;
pub mod pki;
pub mod server;
mod verifier;

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::runtime::files::{Files, Unreadable};
use crate::runtime::snapshot::View;

/// Characters of a line of PEM text (RFC 7468 §2).
const PEM_LINE: usize = 64;

/// A certificate chain with its private key.
#[derive(Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// The leaf first, then its intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: PrivateKeyDer<'static>,
}

/// What can be wrong with keys and certificates in files or objects.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {error}")]
    Write {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// PEM that cannot be parsed, or that holds nothing of what is needed.
    #[error("{place}: {problem}")]
    Pem {
        /// The file, or what the bytes are.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// Certificate and key do not belong together, or cannot be used.
    #[error("{place}: certificate and key cannot be used: {error}")]
    Pair {
        /// The certificate's file.
        place: String,
        /// Why.
        error: rustls::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// The system's trusted roots cannot be loaded.
    #[error("cannot load the system's trusted certificates: {0}")]
    SystemRoots(String),
}

/// The one cryptography provider, AWS-LC.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Every certificate in PEM text; an error when there is none or one cannot be parsed, as with Go's
/// `certutil.ParseCertsPEM`.
pub fn certificates(place: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let problem = |problem: String| TlsError::Pem { place: place.to_owned(), problem };
    let found = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| problem(format!("unable to parse bytes as PEM block: {error}")))?;
    if found.is_empty() {
        return Err(problem("data does not contain any valid certificates".to_owned()));
    }
    Ok(found)
}

/// A certificate as PEM text.
pub fn pem(certificate: &[u8]) -> String {
    let mut text = "-----BEGIN CERTIFICATE-----".to_owned();
    for (at, letter) in BASE64_STANDARD.encode(certificate).chars().enumerate() {
        if at % PEM_LINE == 0 {
            text.push('\n');
        }
        text.push(letter);
    }
    text.push_str("\n-----END CERTIFICATE-----\n");
    text
}

/// Reads a file of PEM certificates.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates(&path.display().to_string(), &read(path)?)
}

/// Reads a certificate file and a key file; they must match.
pub fn read_key_pair(certificate: &Path, key: &Path) -> Result<KeyPair, TlsError> {
    let place = |file: &Path| file.display().to_string();
    key_pair((&place(certificate), &read(certificate)?), (&place(key), &read(key)?))
}

/// The same for as long as `files` are followed: `what` names the pair in the log.
pub fn follow_key_pair(
    files: &mut Files,
    what: &str,
    certificate: &Path,
    key: &Path,
) -> Result<View<KeyPair>, TlsError> {
    let (certificate_place, key_place) =
        (certificate.display().to_string(), key.display().to_string());
    files.add(what, [certificate, key], move |[certificate, key]| {
        key_pair((&certificate_place, certificate), (&key_place, key))
    })
}

/// A certificate and a key, each with the place that their PEM text is from; they must match.
pub fn key_pair(certificate: (&str, &[u8]), key: (&str, &[u8])) -> Result<KeyPair, TlsError> {
    let chain = certificates(certificate.0, certificate.1)?;
    let key = PrivateKeyDer::from_pem_slice(key.1).map_err(|error| TlsError::Pem {
        place: key.0.to_owned(),
        problem: format!("no private key: {error}"),
    })?;
    let pair = KeyPair { chain, key };
    pair.certified_key(certificate.0)?;
    Ok(pair)
}

impl From<Unreadable> for TlsError {
    fn from(Unreadable { path, error }: Unreadable) -> Self {
        Self::Read { path: path.display().to_string(), error }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Read { path: path.display().to_string(), error })
}

impl KeyPair {
    /// The pair in the form in which TLS uses it; an error when the two do not match.
    pub fn certified_key(&self, place: &str) -> Result<rustls::sign::CertifiedKey, TlsError> {
        rustls::sign::CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &provider())
            .map_err(|error| TlsError::Pair { place: place.to_owned(), error })
    }
}
