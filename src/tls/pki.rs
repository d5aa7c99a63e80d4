//! Certificates made here: the self-signed serving pair, and the small PKI of `portico demo`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair as Key, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{KeyPair, TlsError};

/// The file name of a serving pair made at start, as kube-apiserver names it.
const PAIR_NAME: &str = "apiserver";
/// How long a certificate made here is valid, in days.
const VALIDITY_DAYS: i64 = 365;
/// How far back its validity begins, so that clocks may differ, in hours.
const BACKDATE_HOURS: i64 = 1;

/// A certificate and key in PEM, ready to be written to files.
#[derive(Clone, Debug)]
pub struct PemPair {
    /// The certificate chain.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// An authority that can sign.
#[derive(Debug)]
pub struct Authority {
    issuer: CertifiedIssuer<'static, Key>,
}

/// Whom a certificate is for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose<'a> {
    /// A server with these names and addresses.
    Server(&'a [&'a str]),
    /// A client with these organizations, which become its groups.
    Client(&'a [&'a str]),
}

impl Authority {
    /// A new self-signed authority.
    pub fn new(common_name: &str) -> Result<Self, TlsError> {
        let mut params = base(common_name)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, Key::generate()?)? })
    }

    /// The authority's certificate in PEM.
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// A new certificate and key signed by this authority.
    pub fn sign(&self, common_name: &str, purpose: Purpose<'_>) -> Result<PemPair, TlsError> {
        let mut params = base(common_name)?;
        match purpose {
            Purpose::Server(names) => {
                params.subject_alt_names = alternative_names(names)?;
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }
            Purpose::Client(organizations) => {
                for &organization in organizations {
                    params.distinguished_name.push(DnType::OrganizationName, organization);
                }
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = Key::generate()?;
        let issuer: &Issuer<'_, Key> = &self.issuer;
        let certificate = params.signed_by(&key, issuer)?;
        Ok(PemPair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

impl PemPair {
    /// The pair in the form in which TLS uses it.
    pub fn key_pair(&self) -> Result<KeyPair, TlsError> {
        let problem = |error: rustls_pki_types::pem::Error| TlsError::Pem {
            place: "generated certificate".to_owned(),
            problem: error.to_string(),
        };
        Ok(KeyPair {
            chain: CertificateDer::pem_slice_iter(self.certificate.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(problem)?,
            key: PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(problem)?,
        })
    }

    /// Writes both files; the key is readable by its owner only.
    pub fn write(&self, certificate: &Path, key: &Path) -> Result<(), TlsError> {
        write_file(certificate, self.certificate.as_bytes(), 0o644)?;
        write_file(key, self.key.as_bytes(), 0o600)
    }
}

/// The serving pair when none is given, as kube-apiserver does it
/// (`MaybeDefaultWithSelfSignedCerts`): `DIR/apiserver.{crt,key}` when they are there, else a
/// certificate for `localhost` signed by a throw-away authority, made and saved. It is not made anew when it
/// expires. Both files, certificate and key.
pub fn serving_pair(
    directory: &Path,
    alternates: &[IpAddr],
) -> Result<(PathBuf, PathBuf), TlsError> {
    let certificate = directory.join(format!("{PAIR_NAME}.crt"));
    let key = directory.join(format!("{PAIR_NAME}.key"));
    // One alone is a fault that is reported, never replaced.
    if !certificate.exists() && !key.exists() {
        std::fs::create_dir_all(directory)
            .map_err(|error| TlsError::Write { path: directory.display().to_string(), error })?;
        let authority = Authority::new("localhost-ca")?;
        let addresses: Vec<String> = alternates.iter().map(ToString::to_string).collect();
        let mut names = vec!["localhost", "127.0.0.1", "::1"];
        names.extend(addresses.iter().map(String::as_str));
        let mut pair = authority.sign("localhost", Purpose::Server(&names))?;
        pair.certificate.push_str(&authority.certificate());
        pair.write(&certificate, &key)?;
    }
    Ok((certificate, key))
}

fn base(common_name: &str) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = std::time::SystemTime::now();
    let hours = |hours: i64| std::time::Duration::from_secs(hours.unsigned_abs() * 3600);
    params.not_before = (now - hours(BACKDATE_HOURS)).into();
    params.not_after = (now + hours(VALIDITY_DAYS * 24)).into();
    Ok(params)
}

fn alternative_names(names: &[&str]) -> Result<Vec<SanType>, TlsError> {
    names
        .iter()
        .map(|name| match name.parse::<IpAddr>() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => Ok(SanType::DnsName((*name).try_into()?)),
        })
        .collect()
}

/// Writes a file whole or not at all, with the given mode.
pub fn write_file(path: &Path, contents: &[u8], mode: u32) -> Result<(), TlsError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let write = || {
        let partial = path.with_extension("partial");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(mode).open(&partial)?;
        file.write_all(contents)?;
        std::fs::rename(&partial, path)
    };
    write().map_err(|error| TlsError::Write { path: path.display().to_string(), error })
}
