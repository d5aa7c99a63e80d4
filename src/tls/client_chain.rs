//! A client's certificate chain, judged against an authority after the handshake.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::expiry::ends;
use super::{TlsError, certificates, provider};
use crate::runtime::files::Files;
use crate::runtime::snapshot::View;

/// The subject attribute that holds a user's uid (`AllowParsingUserUIDFromCertAuth`).
const OID_USER_UID: &str = "1.3.6.1.4.1.57683.2";

/// The authorities that may vouch for clients.
#[derive(Debug)]
pub struct ClientAuthority {
    verifier: Arc<dyn ClientCertVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

/// What a client certificate says about its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The last common name of the subject, as Go reads it; empty when there is none.
    pub common_name: String,
    /// Every organization of the subject.
    pub organizations: Vec<String>,
    /// The uid attribute; an error text when it is repeated or empty.
    pub uid: Result<Option<String>, &'static str>,
    /// Lower-case hexadecimal SHA-256 of the certificate.
    pub fingerprint: String,
    /// The serial number, for the log.
    pub serial: String,
    /// The end of its validity, in Unix seconds.
    pub not_after: i64,
}

impl ClientAuthority {
    /// An authority from its certificates.
    pub fn new(place: &str, certificates: Vec<CertificateDer<'static>>) -> Result<Self, TlsError> {
        let problem = |problem| TlsError::Pem { place: place.to_owned(), problem };
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store.add(certificate.clone()).map_err(|error| problem(error.to_string()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider())
            .build()
            .map_err(|error| problem(error.to_string()))?;
        Ok(Self { verifier, certificates })
    }

    /// The authority in a file, for as long as `files` are followed: `what` names it in the log.
    pub fn follow(files: &mut Files, what: &str, file: &Path) -> Result<View<Self>, TlsError> {
        let place = file.display().to_string();
        files.add(what, [file], move |[pem]| Self::new(&place, certificates(&place, pem)?))
    }

    /// The certificates, in the order of their file.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// Verifies a chain, leaf first: issuer, validity and extended key usage `clientAuth`.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), rustls::Error> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        self.verifier.verify_client_cert(leaf, intermediates, now).map(drop)
    }
}

/// The earliest end of validity in a chain that is still to come, in Unix seconds. A client may send
/// along what nobody needs, expired ones too: those must not hide the end of the others.
pub fn earliest_expiry(chain: &[CertificateDer<'_>], now: i64) -> i64 {
    ends(chain).into_iter().filter(|&end| end >= now).min().unwrap_or(i64::MAX)
}

/// Reads what the leaf says about its holder.
pub fn leaf(certificate: &CertificateDer<'_>) -> Result<Leaf, String> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("bad certificate: {error}"))?;
    let subject = parsed.subject();
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().map(str::to_owned).unwrap_or_default()
    };
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.as_ref());
    let fingerprint = digest
        .as_ref()
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect();
    let mut uids = subject
        .iter_attributes()
        .filter(|attribute| attribute.attr_type().to_id_string() == OID_USER_UID)
        .map(text);
    let uid = match (uids.next(), uids.next()) {
        (None, _) => Ok(None),
        (Some(uid), None) if !uid.is_empty() => Ok(Some(uid)),
        (Some(_), None) => Err("the uid attribute of the subject is empty"),
        (Some(_), Some(_)) => Err("the subject has more than one uid attribute"),
    };
    Ok(Leaf {
        common_name: subject.iter_common_name().last().map(text).unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect(),
        uid,
        fingerprint,
        serial: parsed.raw_serial_as_string(),
        not_after: parsed.validity().not_after.timestamp(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn until(year: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn an_expired_certificate_sent_along_does_not_hide_when_the_leaf_ends() {
        let (now, leaf_ends) = (1_700_000_000, date_time_ymd(2040, 1, 1).unix_timestamp());
        let chain = [until(2040), until(2010), until(2050)];
        assert_eq!(earliest_expiry(&chain, now), leaf_ends);
        assert_eq!(earliest_expiry(&[until(2010)], now), i64::MAX);
    }
}
