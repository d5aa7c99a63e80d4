//! Which certificate a client is shown, by the server name it asks for
//! (`apiserver/pkg/server/dynamiccertificates/named_certificates.go` and Go's `crypto/tls`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{Certificates, TlsError};

/// The certificates by name; immutable, a change makes another one.
#[derive(Debug)]
pub(super) struct ByName {
    default: Arc<CertifiedKey>,
    exact: HashMap<String, Arc<CertifiedKey>, RandomState>,
    /// By what stands behind the first label, dot included; `*` alone is the empty text.
    wildcard: HashMap<String, Arc<CertifiedKey>, RandomState>,
}

impl ByName {
    pub(super) fn new(certificates: &Certificates) -> Result<Self, TlsError> {
        let (pair, place) = &certificates.default;
        let mut made = Self {
            default: Arc::new(pair.certified_key(place)?),
            exact: HashMap::default(),
            wildcard: HashMap::default(),
        };
        let mut by_own_names = Vec::new();
        for (pair, setting) in &certificates.sni {
            let key = Arc::new(pair.certified_key(&setting.certificate.display().to_string())?);
            if setting.names.is_empty() {
                let names = pair.chain.first().map(names).unwrap_or_default();
                by_own_names.extend(names.into_iter().map(|name| (name, Arc::clone(&key))));
            }
            for name in &setting.names {
                made.add(name, &key);
            }
        }
        // Names that were given override those that stand in certificates.
        for (name, key) in by_own_names {
            made.add(&name, &key);
        }
        Ok(made)
    }

    /// The first one of a name wins.
    fn add(&mut self, name: &str, key: &Arc<CertifiedKey>) {
        let name = name.to_ascii_lowercase();
        let (map, name) = match name.strip_prefix('*') {
            Some(rest) if rest.is_empty() || rest.starts_with('.') => {
                (&mut self.wildcard, rest.to_owned())
            }
            _ => (&mut self.exact, name),
        };
        map.entry(name).or_insert_with(|| Arc::clone(key));
    }

    /// No name, or one that nobody has: the default. The address a client without a name connected
    /// to is not known here, so that a certificate for an address is shown only as the default.
    fn find(&self, name: Option<&str>) -> &Arc<CertifiedKey> {
        let Some(name) = name else { return &self.default };
        let rest = name.find('.').and_then(|at| name.get(at..)).unwrap_or_default();
        let found = self.exact.get(name).or_else(|| self.wildcard.get(rest));
        found.unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if self.exact.is_empty() && self.wildcard.is_empty() {
            return Some(Arc::clone(&self.default));
        }
        let lower = hello.server_name().map(str::to_ascii_lowercase);
        Some(Arc::clone(self.find(lower.as_deref())))
    }
}

/// The names in a certificate: the common name when it is a host name, and the DNS names
/// (`getCertificateNames`).
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let common = parsed.subject().iter_common_name().last();
    let common = common.and_then(|name| name.as_str().ok()).filter(|name| is_host_name(name));
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let alternative = alternative.iter().flat_map(|extension| &extension.value.general_names);
    let dns = alternative.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    common.into_iter().chain(dns).map(str::to_owned).collect()
}

/// `*`, or a DNS-1123 subdomain with or without `*.` before it, and no IP address.
fn is_host_name(name: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(is_alphanumeric)
            && bytes.last().is_some_and(is_alphanumeric)
            && bytes.iter().all(|byte| is_alphanumeric(byte) || *byte == b'-')
    };
    let rest = name.strip_prefix("*.").unwrap_or(name);
    let is_subdomain = rest.len() <= 253 && rest.split('.').all(is_label);
    name == "*" || (is_subdomain && name.parse::<IpAddr>().is_err())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::KeyPair;
    use crate::tls::server::SniPair;
    use rcgen::{CertificateParams, DistinguishedName, DnType};

    fn pair(common_name: &str, names: &[&str]) -> KeyPair {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        KeyPair { chain: vec![certificate.der().clone()], key: key.into() }
    }

    /// The pairs and their explicit names; the default comes first.
    fn by_name(pairs: Vec<(KeyPair, &[&str])>) -> (ByName, Vec<CertificateDer<'static>>) {
        let leaf = |pair: &KeyPair| pair.chain[0].clone();
        let default = pair("default", &["default.example.com"]);
        let leaves =
            [leaf(&default)].into_iter().chain(pairs.iter().map(|(pair, _)| leaf(pair))).collect();
        let sni = pairs.into_iter().map(|(pair, names)| {
            let names = names.iter().map(|&name| name.to_owned()).collect();
            (Arc::new(pair), SniPair { certificate: "c".into(), key: "k".into(), names })
        });
        let certificates =
            Certificates { default: (Arc::new(default), "default".to_owned()), sni: sni.collect() };
        (ByName::new(&certificates).unwrap(), leaves)
    }

    #[track_caller]
    fn check(made: &(ByName, Vec<CertificateDer<'static>>), name: Option<&str>, expected: usize) {
        let found = &made.0.find(name).cert[0];
        let at = made.1.iter().position(|leaf| leaf == found);
        assert_eq!(at, Some(expected), "{name:?}");
    }

    #[test]
    fn without_a_list_the_names_of_the_certificate_count_and_earlier_ones_win() {
        let made = by_name(vec![
            (pair("one", &["a.test", "*.b.test", "127.0.0.1"]), &[]),
            (pair("two.test", &["a.test", "x.b.test"]), &[]),
            (pair("10.0.0.1", &[]), &[]),
        ]);
        check(&made, Some("a.test"), 1);
        check(&made, Some("one"), 1);
        check(&made, Some("y.b.test"), 1);
        check(&made, Some("x.b.test"), 2);
        check(&made, Some("two.test"), 2);
        check(&made, Some("b.test"), 0);
        check(&made, Some("x.y.b.test"), 0);
        check(&made, Some("10.0.0.1"), 0);
        check(&made, Some("127.0.0.1"), 0);
        check(&made, None, 0);
    }

    #[test]
    fn names_that_are_given_override_those_in_certificates_and_replace_the_own() {
        let made = by_name(vec![
            (pair("one", &["a.test"]), &[]),
            (pair("two", &["two.test"]), &["a.test", "*.C.test", "*"]),
            (pair("three", &["three.test"]), &["a.test", "z.c.test"]),
        ]);
        check(&made, Some("a.test"), 2);
        check(&made, Some("one"), 1);
        check(&made, Some("q.c.test"), 2);
        check(&made, Some("z.c.test"), 3);
        check(&made, Some("anything"), 2);
        check(&made, Some("two.test"), 0);
        check(&made, Some("three.test"), 0);
    }

    #[test]
    fn a_common_name_counts_only_as_a_host_name() {
        for name in ["*", "a", "a.b-c.d1", "*.a.b"] {
            assert!(is_host_name(name), "{name}");
        }
        for name in ["", "10.0.0.1", "::1", "A.b", "a..b", "-a", "a b", "system:node", "*.", "*a"] {
            assert!(!is_host_name(name), "{name}");
        }
    }
}
