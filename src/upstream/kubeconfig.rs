//! A server that is named by a kubeconfig, or by what a pod finds in its files.
//!
//! Kubeconfigs are read by the `kube` crate; here is what portico takes of them, and a refusal, with
//! the reason, of what it cannot follow.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use http::uri::{Authority, Scheme};
use kube::config::{AuthInfo, Kubeconfig};
use rustls_pki_types::ServerName;

use crate::model::endpoints::Host;
use crate::tls::{self, KeyPair};

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
    kube: kube::Config,
    url: Uri,
    others: Vec<Uri>,
}

impl Access {
    /// The server that `source` names.
    pub fn from_source(source: &Source) -> Result<Self, KubeconfigError> {
        match source {
            Source::Kubeconfig(file) => Self::from_kubeconfig(file),
            Source::InCluster => Self::in_cluster(),
        }
    }

    /// The server and the user of the file's current context.
    pub fn from_kubeconfig(file: &Path) -> Result<Self, KubeconfigError> {
        let place = format!("kubeconfig {}", file.display());
        let failed = |error: kube::config::KubeconfigError| KubeconfigError {
            place: place.clone(),
            problem: error.to_string(),
        };
        let kubeconfig = Kubeconfig::read_from(file).map_err(failed)?;
        let proxied = names_proxy(&kubeconfig);
        let mut kube = kube::Config::try_from(kubeconfig).map_err(failed)?;
        // Nor is the environment's proxy followed.
        kube.proxy_url = None;
        let access = Self::new(place, kube)?;
        if proxied {
            return Err(access.error("proxy-url is not supported"));
        }
        Ok(access)
    }

    /// The server and the service account of the pod that portico runs in.
    pub fn in_cluster() -> Result<Self, KubeconfigError> {
        let place = "service account of the pod".to_owned();
        match kube::Config::incluster() {
            Ok(kube) => Self::new(place, kube),
            Err(error) => Err(KubeconfigError { place, problem: error.to_string() }),
        }
    }

    fn new(place: String, kube: kube::Config) -> Result<Self, KubeconfigError> {
        let access = Self { place, url: kube.cluster_url.clone(), kube, others: Vec::new() };
        access.check_url(&access.url)?;
        let user = &access.kube.auth_info;
        let acts = user.impersonate.is_some()
            || user.impersonate_uid.is_some()
            || user.impersonate_groups.is_some()
            || user.impersonate_user_extra.is_some();
        if acts {
            return Err(access.error("as, as-uid, as-groups and as-user-extra are not supported"));
        }
        Ok(access)
    }

    /// The same with further servers of the same cluster; they must show a certificate that the
    /// same authority signed, for `tls-server-name` or for their own host.
    pub fn with_servers(mut self, urls: &[Uri]) -> Result<Self, KubeconfigError> {
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

    /// What `kube` makes of it, for clients that do not carry requests.
    pub fn kube(&self) -> kube::Config {
        self.kube.clone()
    }

    /// Where it is from, for messages.
    pub fn place(&self) -> &str {
        &self.place
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
    pub(super) fn server_name(&self) -> Result<Option<ServerName<'static>>, KubeconfigError> {
        let Some(name) = &self.kube.tls_server_name else { return Ok(None) };
        let parsed = ServerName::try_from(name.clone());
        parsed.map(Some).map_err(|error| self.error(&format!("tls-server-name {name:?}: {error}")))
    }

    /// Every server.
    pub(super) fn hosts(&self) -> Vec<Host> {
        let urls = std::iter::once(&self.url).chain(&self.others);
        urls.map(|url| Host { name: host(url).to_owned(), port: port(url) }).collect()
    }

    /// The file that holds the token, where nothing else tells who portico is.
    pub(super) fn token_file(&self) -> Option<PathBuf> {
        let user = &self.kube.auth_info;
        let otherwise = user.username.is_some()
            || user.token.is_some()
            || user.exec.is_some()
            || user.auth_provider.is_some();
        let file = user.token_file.as_deref().filter(|_| !otherwise)?;
        Some(PathBuf::from(file))
    }

    /// The authorities in PEM, empty for the system's.
    pub(super) fn ca_bundle(&self) -> Vec<u8> {
        self.kube.root_cert.iter().flatten().flat_map(|der| tls::pem(der).into_bytes()).collect()
    }

    /// `insecure-skip-tls-verify`.
    pub(super) fn insecure_skip_tls_verify(&self) -> bool {
        self.kube.accept_invalid_certs
    }

    /// The client certificate.
    pub fn identity(&self) -> Result<Option<KeyPair>, KubeconfigError> {
        let user = &self.kube.auth_info;
        let place = |name: &str| format!("{name} of user");
        let certificate = self.bytes(
            "client-certificate-data",
            user.client_certificate_data.as_deref(),
            user.client_certificate.as_deref(),
        )?;
        let data = key_data(user);
        let key = self.bytes("client-key-data", data.as_deref(), user.client_key.as_deref())?;
        match (certificate, key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => {
                let (certificate_place, key_place) =
                    (place("client certificate"), place("client key"));
                tls::key_pair((&certificate_place, &certificate), (&key_place, &key))
                    .map(Some)
                    .map_err(|error| self.error(&error.to_string()))
            }
            _ => {
                Err(self.error("a client certificate needs a client key, and a key a certificate"))
            }
        }
    }

    /// What stands in the kubeconfig in base64, or else in the file that it names.
    fn bytes(
        &self,
        key: &str,
        data: Option<&str>,
        file: Option<&str>,
    ) -> Result<Option<Vec<u8>>, KubeconfigError> {
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            let decoded = STANDARD.decode(data.trim());
            return decoded.map(Some).map_err(|error| self.error(&format!("{key}: {error}")));
        }
        let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(None) };
        let read = std::fs::read(file);
        read.map(Some).map_err(|error| self.error(&format!("cannot read {file}: {error}")))
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

/// The private key in base64. `kube` hides secrets behind a type of a crate that only it needs;
/// written out, they can be read.
fn key_data(user: &AuthInfo) -> Option<String> {
    let written = serde_json::to_value(user).ok()?;
    Some(written.get("client-key-data")?.as_str()?.to_owned())
}

/// True when the cluster of the current context is behind a proxy.
fn names_proxy(kubeconfig: &Kubeconfig) -> bool {
    let current = kubeconfig.current_context.as_deref();
    let context = kubeconfig.contexts.iter().find(|context| Some(&*context.name) == current);
    let context = context.and_then(|named| named.context.as_ref());
    let named = context.and_then(|context| {
        kubeconfig.clusters.iter().find(|cluster| cluster.name == context.cluster)
    });
    let cluster = named.and_then(|named| named.cluster.as_ref());
    let proxy = cluster.and_then(|cluster| cluster.proxy_url.as_deref());
    proxy.is_some_and(|url| !url.is_empty())
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
mod tests {
    use super::*;
    use crate::tls::pki::{Authority as Signer, Purpose};

    fn read(cluster: &str, user: &str) -> Result<Access, KubeconfigError> {
        let text = format!(
            "clusters: [{{name: c, cluster: {{{cluster}}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Access::from_kubeconfig(file.path())
    }

    #[track_caller]
    fn check_refused(cluster: &str, user: &str, expected: &str) {
        let error = read(cluster, user).unwrap_err().to_string();
        assert!(error.starts_with("kubeconfig /") && error.contains(expected), "{error}");
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_the_reason() {
        check_refused("server: 'http://127.0.0.1'", "", "only servers with https://");
        check_refused("server: 'https://a:b@h'", "", "credentials in the server's URL");
        check_refused("server: 'https://h', proxy-url: 'http://p'", "", "proxy-url");
        check_refused("server: 'https://h'", "as: somebody", "as-groups");
        let error = Access::from_kubeconfig(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.starts_with("kubeconfig /nowhere: "), "{error}");
    }

    #[test]
    fn a_servers_hosts_names_and_path_are_told_apart() {
        let access = read("server: 'https://one.example.com:6443'", "").unwrap();
        let more = ["https://[::1]:6444".parse().unwrap(), "https://two".parse().unwrap()];
        let access = access.with_servers(&more).unwrap().with_servers(&more).unwrap();
        let hosts: Vec<_> = access.hosts().into_iter().map(|host| (host.name, host.port)).collect();
        let expected = [("one.example.com", 6443), ("::1", 6444), ("two", 443)];
        assert_eq!(hosts, expected.map(|(name, port)| (name.to_owned(), port)));
        assert_eq!(access.server_name().unwrap(), None);
        assert_eq!(access.authority(), "one.example.com:6443");
        let other = read("server: 'https://h/authn/', tls-server-name: other", "").unwrap();
        assert_eq!(other.prefix(), "/authn");
        assert_eq!(other.server_name().unwrap(), Some("other".try_into().unwrap()));
        assert!(other.with_servers(&more).unwrap_err().to_string().contains("paths"));
    }

    #[test]
    fn authorities_and_the_client_pair_are_taken_from_files_and_from_data() {
        let signer = Signer::new("ca").unwrap();
        let pair = signer.sign("portico", Purpose::Client(&[])).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (ca, key) = (file("ca", &signer.certificate()), file("key", &pair.key));
        let cluster = format!("server: 'https://h', certificate-authority: '{ca}'");
        let data = STANDARD.encode(&pair.certificate);
        let user = format!("client-certificate-data: '{data}', client-key: '{key}'");
        let access = read(&cluster, &user).unwrap();
        assert_eq!(access.identity().unwrap().unwrap().chain.len(), 1);
        let bundle = access.ca_bundle();
        let parsed = tls::certificates("ca", &bundle).unwrap();
        assert_eq!(parsed, tls::certificates("ca", signer.certificate().as_bytes()).unwrap());
        let data = STANDARD.encode(&pair.key);
        let user = format!("{user}, client-key-data: '{data}'");
        assert!(read(&cluster, &user).unwrap().identity().unwrap().is_some());
        let alone = read(&cluster, "client-certificate-data: 'YQ=='").unwrap();
        assert!(alone.identity().unwrap_err().to_string().contains("needs a client key"));
    }
}
