//! What users set of the TLS towards clients: versions, cipher suites, certificates by name.

use std::path::PathBuf;
use std::str::FromStr;

use rustls::SupportedCipherSuite;
use rustls::crypto::aws_lc_rs::cipher_suite as suites;

/// The settings of the TLS towards clients.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The oldest version that is spoken (`--tls-min-version`).
    pub min_version: MinVersion,
    /// Cipher suites of TLS 1.2 that are spoken (`--tls-cipher-suites`); empty for all there are.
    /// Those of TLS 1.3 are always on, as with Go.
    pub cipher_suites: Vec<SupportedCipherSuite>,
    /// Certificates for certain server names (`--tls-sni-cert-key`); earlier ones win.
    pub sni: Vec<SniPair>,
}

/// The oldest version of TLS that is spoken, under Go's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinVersion {
    /// `VersionTLS12`.
    #[default]
    Tls12,
    /// `VersionTLS13`.
    Tls13,
}

/// A certificate that is shown to clients that ask for certain names
/// (`component-base/cli/flag/namedcertkey_flag.go`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SniPair {
    /// File with the certificate, intermediates after it.
    pub certificate: PathBuf,
    /// File with its private key.
    pub key: PathBuf,
    /// The names, with `*` as a whole first label; empty for those in the certificate.
    pub names: Vec<String>,
}

impl FromStr for MinVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" | "VersionTLS12" => Ok(Self::Tls12),
            "VersionTLS13" => Ok(Self::Tls13),
            "VersionTLS10" | "VersionTLS11" => Err(format!(
                "{text} is not supported: TLS 1.2 is the oldest; supported: VersionTLS12, \
                 VersionTLS13"
            )),
            _ => Err(format!(
                "unknown tls version \"{text}\"; supported: VersionTLS12, VersionTLS13"
            )),
        }
    }
}

impl std::fmt::Display for MinVersion {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Tls12 => "VersionTLS12",
            Self::Tls13 => "VersionTLS13",
        })
    }
}

impl FromStr for SniPair {
    type Err = String;

    /// `cert,key` or `cert,key:name,*.wild`; blanks around the parts do not count.
    fn from_str(text: &str) -> Result<Self, String> {
        let (files, names) = match text.split_once(':') {
            None => (text, Vec::new()),
            Some((_, names)) if names.trim().is_empty() => {
                return Err("empty names list is not allowed".to_owned());
            }
            Some((files, names)) => {
                (files, names.split(',').map(|name| name.trim().to_owned()).collect())
            }
        };
        let mut files = files.split(',').map(str::trim);
        let (Some(certificate), Some(key), None) = (files.next(), files.next(), files.next())
        else {
            return Err("expected comma separated certificate and key file paths".to_owned());
        };
        if certificate.is_empty() || key.is_empty() {
            return Err("the paths of certificate and key must not be empty".to_owned());
        }
        Ok(Self { certificate: certificate.into(), key: key.into(), names })
    }
}

impl std::fmt::Display for SniPair {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{},{}", self.certificate.display(), self.key.display())?;
        if !self.names.is_empty() {
            write!(formatter, ":{}", self.names.join(","))?;
        }
        Ok(())
    }
}

/// Every suite there is under Go's name, in the order of preference.
const SUITES: [(&str, SupportedCipherSuite); 9] = [
    ("TLS_AES_128_GCM_SHA256", suites::TLS13_AES_128_GCM_SHA256),
    ("TLS_AES_256_GCM_SHA384", suites::TLS13_AES_256_GCM_SHA384),
    ("TLS_CHACHA20_POLY1305_SHA256", suites::TLS13_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    (
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

/// Suites that Go's crypto/tls has and that are not here: no forward secrecy, or CBC or RC4.
const REFUSED_SUITES: &[&str] = &[
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_RSA_WITH_RC4_128_SHA",
];

/// Names that may be given to `--tls-cipher-suites`.
pub fn cipher_suite_names() -> impl Iterator<Item = &'static str> {
    SUITES.iter().map(|(name, _)| *name)
}

/// A cipher suite by the name that Go gives it (`component-base/cli/flag/ciphersuites_flag.go`).
/// Suites of TLS 1.3 may be named as well, which changes nothing.
pub fn cipher_suite(name: &str) -> Result<SupportedCipherSuite, String> {
    let known =
        |name: &str| SUITES.iter().find(|(known, _)| *known == name).map(|(_, suite)| *suite);
    let legacy = || known(name.ends_with("_POLY1305").then(|| format!("{name}_SHA256"))?.as_str());
    if let Some(suite) = known(name).or_else(legacy) {
        return Ok(suite);
    }
    let problem = if REFUSED_SUITES.contains(&name) {
        "is not supported here since it lacks forward secrecy or authenticated encryption"
    } else {
        "not supported or doesn't exist"
    };
    let supported: Vec<_> = cipher_suite_names().collect();
    Err(format!("Cipher suite {name} {problem}; supported: {}", supported.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_gos_names_and_old_ones_are_refused_with_the_reason() {
        assert_eq!("VersionTLS12".parse(), Ok(MinVersion::Tls12));
        assert_eq!("VersionTLS13".parse(), Ok(MinVersion::Tls13));
        assert_eq!("".parse(), Ok(MinVersion::Tls12));
        for old in ["VersionTLS10", "VersionTLS11"] {
            let error = old.parse::<MinVersion>().unwrap_err();
            assert!(error.contains("TLS 1.2 is the oldest"), "{error}");
        }
        assert!("tls1.2".parse::<MinVersion>().unwrap_err().contains("unknown tls version"));
        for version in [MinVersion::Tls12, MinVersion::Tls13] {
            assert_eq!(version.to_string().parse(), Ok(version));
        }
    }

    #[test]
    fn every_suite_of_the_provider_has_its_name() {
        for suite in rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES {
            let name = format!("{:?}", suite.suite()).replace("TLS13_", "TLS_");
            assert_eq!(cipher_suite(&name).as_ref(), Ok(suite), "{name}");
        }
        assert_eq!(SUITES.len(), rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES.len());
    }

    #[test]
    fn suites_have_gos_legacy_names_and_weak_or_unknown_ones_are_refused() {
        for key in ["RSA", "ECDSA"] {
            let legacy = format!("TLS_ECDHE_{key}_WITH_CHACHA20_POLY1305");
            assert_eq!(cipher_suite(&legacy), cipher_suite(&format!("{legacy}_SHA256")));
            assert!(cipher_suite(&legacy).is_ok());
        }
        let error = cipher_suite("TLS_RSA_WITH_AES_128_CBC_SHA").unwrap_err();
        assert!(error.contains("lacks forward secrecy"), "{error}");
        assert!(error.contains("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"), "{error}");
        let error = cipher_suite("ROT13").unwrap_err();
        assert!(error.starts_with("Cipher suite ROT13 not supported or doesn't exist"), "{error}");
    }

    #[track_caller]
    fn check_pair(text: &str, expected: Result<(&str, &str, &[&str]), &str>) {
        let expected = expected.map_err(str::to_owned).map(|(certificate, key, names)| SniPair {
            certificate: certificate.into(),
            key: key.into(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
        });
        assert_eq!(text.parse(), expected, "{text:?}");
        if let Ok(pair) = expected {
            assert_eq!(pair.to_string().parse(), Ok(pair));
        }
    }

    #[test]
    fn pairs_are_written_as_upstream_writes_them() {
        check_pair("foo.crt,foo.key", Ok(("foo.crt", "foo.key", &[])));
        check_pair(" foo.crt , foo.key ", Ok(("foo.crt", "foo.key", &[])));
        check_pair("foo.crt,foo.key:abc", Ok(("foo.crt", "foo.key", &["abc"])));
        check_pair("foo.crt, foo.key: a.b , *.c", Ok(("foo.crt", "foo.key", &["a.b", "*.c"])));
        let files = "expected comma separated certificate and key file paths";
        check_pair("", Err(files));
        check_pair("foo.crt", Err(files));
        check_pair("foo.crt,foo.key,abc", Err(files));
        check_pair(":abc", Err(files));
        check_pair("foo.crt,foo.key:", Err("empty names list is not allowed"));
        check_pair("foo.crt,foo.key: ", Err("empty names list is not allowed"));
        check_pair(",foo.key", Err("the paths of certificate and key must not be empty"));
    }
}
