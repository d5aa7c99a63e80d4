//! The certificates of all tests, made once: authorities that are believed and ones that are not.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use portico::tls::pki::PemPair;
use portico::tls::{certificates, provider, server};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// The namespace of every service.
pub(crate) const NAMESPACE: &str = "e2e";

const HOUR: Duration = Duration::from_secs(3600);

/// One authority.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Who believes whom.
pub(crate) struct Pki {
    /// Signs portico's and the backends' serving certificates, and those of clients.
    pub(crate) authority: Authority,
    /// Signs the certificates of front proxies before portico.
    pub(crate) front_proxies: Authority,
    /// Signs the certificate by which backends know portico.
    pub(crate) aggregators: Authority,
    /// Believed by nobody.
    pub(crate) stranger: Authority,
    pub(crate) server: PemPair,
    pub(crate) aggregator: PemPair,
    /// A client of the group dev.
    pub(crate) alice: PemPair,
    /// A member of system:masters.
    pub(crate) master: PemPair,
    /// A front proxy that portico believes.
    pub(crate) front_proxy: PemPair,
}

pub(crate) static PKI: LazyLock<Pki> = LazyLock::new(|| {
    let authority = Authority::new("e2e-ca");
    let front_proxies = Authority::new("e2e-front-proxy-ca");
    let aggregators = Authority::new("e2e-aggregator-ca");
    Pki {
        server: authority.sign(&Leaf::server(&["localhost"])),
        aggregator: aggregators.sign(&Leaf::client("aggregator", &[])),
        alice: authority.sign(&Leaf::client("alice", &["dev"])),
        master: authority.sign(&Leaf::client("master", &["system:masters"])),
        front_proxy: front_proxies.sign(&Leaf::client("front-proxy", &[])),
        stranger: Authority::new("e2e-stranger-ca"),
        authority,
        front_proxies,
        aggregators,
    }
});

/// What a certificate says.
#[derive(Clone)]
pub(crate) struct Leaf {
    names: Vec<String>,
    common_name: String,
    organizations: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Leaf {
    fn new(common_name: &str, usage: ExtendedKeyUsagePurpose) -> Self {
        let now = SystemTime::now();
        Self {
            names: Vec::new(),
            common_name: common_name.to_owned(),
            organizations: Vec::new(),
            usage,
            not_before: now - HOUR,
            not_after: now + 24 * HOUR,
        }
    }

    pub(crate) fn server(names: &[&str]) -> Self {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        Self { names, ..Self::new("server", ExtendedKeyUsagePurpose::ServerAuth) }
    }

    pub(crate) fn client(common_name: &str, organizations: &[&str]) -> Self {
        let organizations = organizations.iter().map(|&name| name.to_owned()).collect();
        Self { organizations, ..Self::new(common_name, ExtendedKeyUsagePurpose::ClientAuth) }
    }

    pub(crate) fn expired(mut self) -> Self {
        self.not_before = SystemTime::now() - 3 * HOUR;
        self.not_after = SystemTime::now() - 2 * HOUR;
        self
    }

    pub(crate) fn not_yet_valid(mut self) -> Self {
        self.not_before = SystemTime::now() + HOUR;
        self
    }

    pub(crate) fn valid_for(mut self, time: Duration) -> Self {
        self.not_after = SystemTime::now() + time;
        self
    }
}

impl Authority {
    fn new(common_name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { issuer: CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    pub(crate) fn certificate(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn sign(&self, leaf: &Leaf) -> PemPair {
        let mut params = CertificateParams::new(leaf.names.clone()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, leaf.common_name.as_str());
        for organization in &leaf.organizations {
            params.distinguished_name.push(DnType::OrganizationName, organization.as_str());
        }
        params.extended_key_usages = vec![leaf.usage.clone()];
        params.not_before = leaf.not_before.into();
        params.not_after = leaf.not_after.into();
        let key = KeyPair::generate().unwrap();
        let issuer: &Issuer<'_, KeyPair> = &self.issuer;
        let certificate = params.signed_by(&key, issuer).unwrap();
        PemPair { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// The name by which a service's certificate is checked.
pub(crate) fn host(service: &str) -> String {
    format!("{service}.{NAMESPACE}.svc")
}

/// The TLS side of a backend that demands portico's certificate and offers `protocols`.
pub(crate) fn backend_tls(service: &str, protocols: &[&str]) -> ServerConfig {
    backend_tls_with(&PKI.authority.sign(&Leaf::server(&[&host(service)])), protocols)
}

/// The same with a serving pair of the test's choice.
pub(crate) fn backend_tls_with(pair: &PemPair, protocols: &[&str]) -> ServerConfig {
    backend_tls_of(pair, protocols, &PKI.aggregators)
}

/// The same with an authority for callers of the test's choice.
pub(crate) fn backend_tls_of(
    pair: &PemPair,
    protocols: &[&str],
    callers: &Authority,
) -> ServerConfig {
    let callers = certificates("callers", callers.certificate().as_bytes()).unwrap();
    let mut config = server::mutual_config(&pair.key_pair().unwrap(), callers).unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

/// The same over TLS 1.2 only, where a certificate is refused within the handshake.
pub(crate) fn only_tls12(pair: &PemPair, protocols: &[&str], callers: &Authority) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    for root in certificates("callers", callers.certificate().as_bytes()).unwrap() {
        roots.add(root).unwrap();
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let pair = pair.key_pair().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(pair.chain, pair.key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}
