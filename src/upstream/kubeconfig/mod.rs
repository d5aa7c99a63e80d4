//! A server that is named by a kubeconfig, or by what a pod finds in its files.
//!
//! Kubeconfigs are parsed by the `kube` crate; here is what portico takes of them, and a refusal, with
//! the reason, of what it cannot follow. The files that one names are read with it, once, and followed
//! with it: what comes of it holds certificates, keys and tokens and no name of a file.

mod inline;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri};
use kube::config::{AuthInfo, Kubeconfig};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};

use self::inline::{Inline, auth_info, credentials, current, identity, secret, token_of};
use crate::model::endpoints::Host;
use crate::runtime::files::{Files, Reading, Unreadable};
use crate::runtime::snapshot::View;
use crate::tls::backend::{Trust, client_config};
use crate::tls::{self, KeyPair, TlsError};

/// Where a pod finds the files of its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// What a text may begin with that says that it is UTF-8.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// What is wrong with a kubeconfig, or with one of the files that it names.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct KubeconfigError {
    /// The kubeconfig, or what stands for it.
    pub place: String,
    /// What is wrong.
    pub problem: String,
}

/// Who names a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A kubeconfig's current context.
    Kubeconfig(PathBuf),
    /// What a pod finds in its environment and its service account's files.
    InCluster,
}

/// How a server is reached, and who one is there.
#[derive(Clone, Debug)]
pub struct Access {
    place: String,
    /// For clients that do not carry requests; without credentials for a header.
    kube: kube::Config,
    url: Uri,
    others: Vec<Uri>,
    /// The authorities in PEM, empty for the system's.
    ca_bundle: Arc<[u8]>,
    server_name: Option<ServerName<'static>>,
    identity: Option<View<KeyPair>>,
    credentials: Credentials,
}

/// What says in a header who portico is.
#[derive(Clone, Debug)]
pub(super) enum Credentials {
    /// This, or nothing.
    Given(Option<HeaderValue>),
    /// What a program gives.
    Plugin(Box<AuthInfo>),
}

impl Access {
    /// The server that `source` names, with these further servers of its cluster, as its files have it
    /// for as long as `files` are followed.
    pub fn follow(
        source: &Source,
        others: &[Uri],
        files: &mut Files,
    ) -> Result<View<Self>, KubeconfigError> {
        let (source, others) = (source.clone(), others.to_vec());
        let what = source.place();
        let first = OnceLock::new();
        files.add_read(&what, move |reading| {
            let access = Self::read(&source, reading)?.with_servers(&others)?;
            access.check_same(first.get_or_init(|| access.fixed()))?;
            Ok(access)
        })
    }

    /// The server that `source` names.
    fn read(source: &Source, reading: &mut Reading) -> Result<Self, KubeconfigError> {
        match source {
            Source::Kubeconfig(file) => Self::read_kubeconfig(file, reading),
            Source::InCluster => {
                let variable = |name: &str| {
                    std::env::var(name)
                        .map_err(|error| source.error(&format!("${name} of the pod: {error}")))
                };
                let host = variable("KUBERNETES_SERVICE_HOST")?;
                let port = variable("KUBERNETES_SERVICE_PORT")?;
                Self::of_pod((&host, &port), Path::new(SERVICE_ACCOUNT), reading)
            }
        }
    }

    /// The server and the user of the file's current context.
    fn read_kubeconfig(file: &Path, reading: &mut Reading) -> Result<Self, KubeconfigError> {
        let source = Source::Kubeconfig(file.to_owned());
        let error = |problem: &str| source.error(problem);
        let failed = |problem: kube::config::KubeconfigError| error(&problem.to_string());
        let bytes = reading.read(file).map_err(|unreadable| error(&unreadable.to_string()))?;
        let text = str::from_utf8(&bytes).map_err(|invalid| error(&invalid.to_string()))?;
        let text = text.trim_start_matches(BYTE_ORDER_MARK);
        let mut kubeconfig = Kubeconfig::from_yaml(text).map_err(failed)?;
        let base = file.parent().unwrap_or(Path::new("."));
        let mut inline = Inline { source: &source, base, reading };
        let (mut proxied, mut ca_bundle) = (false, Vec::new());
        let (cluster, user) = current(&mut kubeconfig);
        if let Some(cluster) = cluster {
            proxied = cluster.proxy_url.as_deref().is_some_and(|url| !url.is_empty());
            ca_bundle = inline.authority(cluster)?;
        }
        if let Some(user) = user {
            inline.user(user)?;
        }
        let mut kube = kube::Config::try_from(kubeconfig).map_err(failed)?;
        // Nor is the environment's proxy followed.
        kube.proxy_url = None;
        let access = Self::new(source.place(), kube, ca_bundle)?;
        if proxied {
            return Err(access.error("proxy-url is not supported"));
        }
        Ok(access)
    }

    /// The server and the service account of a pod with these files.
    fn of_pod(
        (host, port): (&str, &str),
        files: &Path,
        reading: &mut Reading,
    ) -> Result<Self, KubeconfigError> {
        let source = Source::InCluster;
        let failed = |unreadable: Unreadable| source.error(&unreadable.to_string());
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let url = if port == "443" { host } else { format!("{host}:{port}") };
        let url = format!("https://{url}").parse::<Uri>();
        let url = url.map_err(|error| source.error(&format!("host and port: {error}")))?;
        let ca_bundle = reading.read(&files.join("ca.crt")).map_err(failed)?;
        let token = files.join("token");
        let text = reading.read(&token).map_err(failed)?;
        let mut kube = kube::Config::new(url);
        let invalid = |error: TlsError| source.error(&error.to_string());
        let authorities = tls::certificates("ca.crt", &ca_bundle).map_err(invalid)?;
        kube.root_cert = Some(authorities.iter().map(|der| der.to_vec()).collect());
        let token = token_of(&token, &text).map_err(|problem| source.error(&problem))?;
        kube.auth_info =
            auth_info(&[("token", Some(token))]).map_err(|problem| source.error(&problem))?;
        Self::new(source.place(), kube, ca_bundle)
    }

    /// `kube` holds all certificates, keys and tokens itself.
    fn new(
        place: String,
        mut kube: kube::Config,
        ca_bundle: Vec<u8>,
    ) -> Result<Self, KubeconfigError> {
        let error =
            |problem: &str| KubeconfigError { place: place.clone(), problem: problem.into() };
        let user = &kube.auth_info;
        let identity = identity(user).map_err(|problem| error(&problem))?;
        let credentials = credentials(user).map_err(|problem| error(&problem))?;
        let acts = user.impersonate.is_some()
            || user.impersonate_uid.is_some()
            || user.impersonate_groups.is_some()
            || user.impersonate_user_extra.is_some();
        if acts {
            return Err(error("as, as-uid, as-groups and as-user-extra are not supported"));
        }
        let server_name = kube.tls_server_name.clone().map(|name| {
            ServerName::try_from(name.clone())
                .map_err(|invalid| error(&format!("tls-server-name {name:?}: {invalid}")))
        });
        let server_name = server_name.transpose()?;
        let pair = [
            ("client-certificate-data", user.client_certificate_data.clone()),
            ("client-key-data", secret(user, "client-key-data")),
        ];
        kube.auth_info = auth_info(&pair).map_err(|problem| error(&problem))?;
        let access = Self {
            url: kube.cluster_url.clone(),
            others: Vec::new(),
            ca_bundle: ca_bundle.into(),
            server_name,
            identity: identity.map(View::fixed),
            credentials,
            kube,
            place,
        };
        access.check_url(&access.url)?;
        access.check_tls()?;
        Ok(access)
    }

    /// What is wrong with authorities and certificate is said here, not to the first caller.
    fn check_tls(&self) -> Result<(), KubeconfigError> {
        let trust = if self.insecure_skip_tls_verify() {
            Trust::Anybody
        } else if self.ca_bundle.is_empty() {
            Trust::System
        } else {
            Trust::CaBundle(&self.ca_bundle)
        };
        let identity = self.identity.as_ref().map(View::load);
        let made = client_config(trust, identity.as_deref());
        made.map(drop).map_err(|error| self.error(&error.to_string()))
    }

    /// The same with further servers of the same cluster; they must show a certificate that the
    /// same authority signed, for `tls-server-name` or for their own host.
    fn with_servers(mut self, urls: &[Uri]) -> Result<Self, KubeconfigError> {
        for url in urls {
            self.check_url(url)?;
            if !self.prefix().is_empty() || !path(url).is_empty() {
                return Err(self.error("several servers of a cluster cannot have paths"));
            }
            if *url != self.url && !self.others.contains(url) {
                self.others.push(url.clone());
            }
        }
        Ok(self)
    }

    /// What stays while portico runs.
    fn fixed(&self) -> (Uri, Option<Value>) {
        let plugin = match &self.credentials {
            Credentials::Given(_) => None,
            Credentials::Plugin(user) => Some(json!([user.exec, user.auth_provider])),
        };
        (self.url.clone(), plugin)
    }

    fn check_same(&self, (url, plugin): &(Uri, Option<Value>)) -> Result<(), KubeconfigError> {
        if self.url != *url {
            let text =
                format!("the server is {}, another one than {url} takes a restart", self.url);
            return Err(self.error(&text));
        }
        if self.fixed().1 != *plugin {
            return Err(self.error("a change of what gives the credentials takes a restart"));
        }
        Ok(())
    }

    /// True when connections are made as with the other; with the same certificate, too, if it is
    /// `own` connections.
    pub(super) fn connects_like(&self, other: &Self, own: bool) -> bool {
        let same_pair = || match (&self.identity, &other.identity) {
            (Some(one), Some(other)) => one.load() == other.load(),
            (one, other) => one.is_none() && other.is_none(),
        };
        self.ca_bundle == other.ca_bundle
            && self.server_name == other.server_name
            && self.insecure_skip_tls_verify() == other.insecure_skip_tls_verify()
            && (!own || same_pair())
    }

    /// What `kube` makes of it, for clients that do not carry requests; the credentials for a header
    /// are theirs to add.
    pub(super) fn kube(&self) -> kube::Config {
        self.kube.clone()
    }

    /// Where it is from, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The URL of the first server, which tells one cluster from another.
    pub fn url(&self) -> &Uri {
        &self.url
    }

    /// What comes before every path, without a slash at its end; mostly empty.
    pub fn prefix(&self) -> &str {
        path(&self.url)
    }

    /// The port of the first server.
    pub(super) fn port(&self) -> u16 {
        port(&self.url)
    }

    /// What the server is called in requests.
    pub(super) fn authority(&self) -> Authority {
        let named = self.url.authority().cloned();
        named.unwrap_or_else(|| Authority::from_static("invalid"))
    }

    /// The name that all servers' certificates must have; none when each must have its own.
    pub(super) fn server_name(&self) -> Option<ServerName<'static>> {
        self.server_name.clone()
    }

    /// Every server.
    pub(super) fn hosts(&self) -> Vec<Host> {
        self.urls().map(|url| Host { name: host(url).to_owned(), port: port(url) }).collect()
    }

    /// The URL of every server, that of the kubeconfig first.
    pub(super) fn urls(&self) -> impl Iterator<Item = &Uri> {
        std::iter::once(&self.url).chain(&self.others)
    }

    /// The authorities in PEM, empty for the system's.
    pub(super) fn ca_bundle(&self) -> Arc<[u8]> {
        Arc::clone(&self.ca_bundle)
    }

    /// The same in DER, one behind the other.
    pub fn authorities(&self) -> Vec<u8> {
        self.kube.root_cert.iter().flatten().flatten().copied().collect()
    }

    /// `insecure-skip-tls-verify`.
    pub(super) fn insecure_skip_tls_verify(&self) -> bool {
        self.kube.accept_invalid_certs
    }

    /// The client certificate.
    pub(super) fn identity(&self) -> Option<View<KeyPair>> {
        self.identity.clone()
    }

    /// What says in a header who portico is.
    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    fn check_url(&self, url: &Uri) -> Result<(), KubeconfigError> {
        let problem = if url.scheme() != Some(&Scheme::HTTPS) {
            "only servers with https:// are supported"
        } else if url.host().is_none_or(str::is_empty) {
            "it has no host"
        } else if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(self.error("credentials in the server's URL are not supported"));
        } else if url.query().is_some() {
            "it has a query"
        } else {
            return Ok(());
        };
        Err(self.error(&format!("server {url}: {problem}")))
    }

    /// An error with this place.
    pub fn error(&self, problem: &str) -> KubeconfigError {
        KubeconfigError { place: self.place.clone(), problem: problem.to_owned() }
    }
}

impl Source {
    /// What it is called in messages.
    fn place(&self) -> String {
        match self {
            Self::Kubeconfig(file) => format!("kubeconfig {}", file.display()),
            Self::InCluster => "service account of the pod".to_owned(),
        }
    }

    fn error(&self, problem: &str) -> KubeconfigError {
        KubeconfigError { place: self.place(), problem: problem.to_owned() }
    }
}

fn path(url: &Uri) -> &str {
    url.path().trim_end_matches('/')
}

fn host(url: &Uri) -> &str {
    url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

fn port(url: &Uri) -> u16 {
    url.port_u16().unwrap_or(443)
}

#[cfg(test)]
mod tests;
