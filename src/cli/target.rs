//! Which API server is spoken to, and as whom: a kubeconfig or a URL with credentials, under kubectl's
//! flag names. `portico bench` measures it, `portico doctor` asks it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, ValueHint};
use http::uri::Scheme;
use http::{HeaderMap, Request, Response, Uri};
use kube::Config;
use kube::client::{Body, ConfigExt as _};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use rustls::pki_types::ServerName;
use tower::{BoxError, Layer as _, ServiceExt as _, service_fn};

use crate::tls;

/// The flags that name the server and how to be known to it; whether one is needed is the command's
/// to say.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Target")]
#[group(id = "target-flags")]
pub(super) struct Flags {
    /// The kubeconfig file that names the server and the credentials; plugins that fetch
    /// credentials are run.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context; its current one when not given.
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    context: Option<String>,
    /// The server's URL; with a kubeconfig, in place of the one there.
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    server: Option<String>,
    /// A file with the authorities that signed the server's certificate.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    certificate_authority: Option<PathBuf>,
    /// Believe any certificate of the server's.
    #[arg(long)]
    insecure_skip_tls_verify: bool,
    /// The certificate to show to the server.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "client_key")]
    client_certificate: Option<PathBuf>,
    /// The certificate's key.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "client_certificate")]
    client_key: Option<PathBuf>,
    /// The bearer token; other users of this machine can see it in the list of processes.
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    token: Option<String>,
    /// A file with the bearer token.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    token_file: Option<PathBuf>,
}

/// An API server, with what it takes to be let in.
#[derive(Clone)]
pub(super) struct Target {
    config: Config,
    /// Its scheme, host and port, as shown to people; never credentials.
    pub(super) url: String,
}

/// Where and how to connect: all that a connection of the load needs.
#[derive(Clone)]
pub(super) struct Endpoint {
    /// The name or address to dial.
    pub(super) host: String,
    /// The TCP port.
    pub(super) port: u16,
    /// The TLS side and the name on the server's certificate; none for `http://`.
    pub(super) tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
    /// `host:port` as the server is told it.
    pub(super) authority: String,
    /// What comes before every path, without a slash at its end; mostly empty.
    pub(super) prefix: String,
}

impl Flags {
    /// Whether they name a server at all.
    pub(super) fn is_given(&self) -> bool {
        self.kubeconfig.is_some() || self.server.is_some()
    }

    /// The target that the flags name.
    pub(super) async fn target(&self) -> anyhow::Result<Target> {
        let mut config = match (&self.kubeconfig, &self.server) {
            (Some(file), _) => from_kubeconfig(file, self.context.clone()).await?,
            (None, Some(url)) => Config::new(server_url(url)?),
            (None, None) => bail!("--kubeconfig or --server is needed"),
        };
        if let Some(url) = &self.server {
            config.cluster_url = server_url(url)?;
        }
        let overrides = Overrides {
            certificate_authority: self.certificate_authority.as_deref(),
            insecure_skip_tls_verify: self.insecure_skip_tls_verify,
            pair: self.client_certificate.as_deref().zip(self.client_key.as_deref()),
            token: self.token.as_deref(),
            token_file: self.token_file.as_deref(),
        };
        overrides.apply(&mut config)?;
        Target::new(config)
    }
}

/// What flags put in the place of a kubeconfig's settings.
pub(super) struct Overrides<'a> {
    pub(super) certificate_authority: Option<&'a Path>,
    pub(super) insecure_skip_tls_verify: bool,
    pub(super) pair: Option<(&'a Path, &'a Path)>,
    pub(super) token: Option<&'a str>,
    pub(super) token_file: Option<&'a Path>,
}

impl Overrides<'_> {
    /// Puts them in their places.
    pub(super) fn apply(&self, config: &mut Config) -> anyhow::Result<()> {
        if let Some(file) = self.certificate_authority {
            let authorities = tls::read_certificates(file)?;
            config.root_cert =
                Some(authorities.into_iter().map(|authority| authority.to_vec()).collect());
            config.root_cert_file = None;
            config.accept_invalid_certs = false;
        }
        if self.insecure_skip_tls_verify {
            if self.certificate_authority.is_some() {
                bail!(
                    "an authority for the server's certificate, and not to verify it, exclude each other"
                );
            }
            config.accept_invalid_certs = true;
        }
        let auth = &mut config.auth_info;
        if let Some((certificate, key)) = self.pair {
            // Read here too, for a clear error about the file that is at fault.
            tls::read_key_pair(certificate, key)?;
            auth.client_certificate = Some(text(certificate)?);
            auth.client_key = Some(text(key)?);
            (auth.client_certificate_data, auth.client_key_data) = (None, None);
        }
        if self.token.is_some() || self.token_file.is_some() {
            // What would win over a token, and what a plugin would add.
            (auth.username, auth.password, auth.auth_provider, auth.exec) =
                (None, None, None, None);
            auth.token = self.token.map(Into::into);
            auth.token_file = self.token_file.map(text).transpose()?;
        }
        Ok(())
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
}

pub(super) async fn from_kubeconfig(
    file: &Path,
    context: Option<String>,
) -> anyhow::Result<Config> {
    let kubeconfig = Kubeconfig::read_from(file)
        .with_context(|| format!("kubeconfig {} cannot be used", file.display()))?;
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig.clone(), &options)
        .await
        .with_context(|| format!("kubeconfig {} cannot be used", file.display()))?;
    // The environment's proxy is not followed: it would be measured or diagnosed, too.
    config.proxy_url = None;
    let proxied = kubeconfig.clusters.iter().filter_map(|named| named.cluster.as_ref()).any(|it| {
        let same = it.server.as_deref().and_then(|url| url.parse::<Uri>().ok());
        same.as_ref() == Some(&config.cluster_url)
            && it.proxy_url.as_ref().is_some_and(|url| !url.is_empty())
    });
    if proxied {
        bail!("kubeconfig {}: its proxy-url is not followed", file.display());
    }
    Ok(config)
}

/// A URL with a scheme that can be spoken and a host.
pub(super) fn server_url(text: &str) -> anyhow::Result<Uri> {
    let url: Uri = text.parse().with_context(|| format!("{text:?} is no URL"))?;
    let known = [Some(&Scheme::HTTPS), Some(&Scheme::HTTP)].contains(&url.scheme());
    if !known || url.host().is_none_or(str::is_empty) {
        bail!("{text:?} is no URL of a server, expected for instance https://127.0.0.1:6443");
    }
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        bail!("credentials in the server's URL are not used; give --token-file or a certificate");
    }
    Ok(url)
}

impl Target {
    /// The server of a configuration.
    pub(super) fn new(mut config: Config) -> anyhow::Result<Self> {
        // An answer counts as it comes: a 503 that is asked for again and again becomes a timeout.
        config.default_retry = false;
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        server_url(&url)?;
        Ok(Self { config, url })
    }

    /// A client of the Kubernetes API, for what is not measured. Answers come as they are, 429 and
    /// 503 too.
    pub(super) fn client(&self) -> anyhow::Result<kube::Client> {
        kube::Client::try_from(self.config.clone()).with_context(|| self.at("credentials"))
    }

    /// The same, which tries again where the server asks for patience (429, 503, 504).
    pub(super) fn patient_client(&self) -> anyhow::Result<kube::Client> {
        let mut config = self.config.clone();
        config.default_retry = true;
        kube::Client::try_from(config).with_context(|| self.at("credentials"))
    }

    /// The same server with a certificate for its only credentials.
    pub(super) fn with_pair(&self, certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let mut config = self.config.clone();
        config.auth_info = AuthInfo {
            client_certificate: Some(text(certificate)?),
            client_key: Some(text(key)?),
            ..AuthInfo::default()
        };
        Self::new(config)
    }

    /// The same for clients of one's own making.
    pub(super) fn config(&self) -> Config {
        self.config.clone()
    }

    /// Where and how to connect.
    pub(super) fn endpoint(&self) -> anyhow::Result<Endpoint> {
        let url = &self.config.cluster_url;
        let secure = url.scheme() == Some(&Scheme::HTTPS);
        let host = url.host().with_context(|| self.at("URL without a host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = if secure {
            let mut config =
                self.config.rustls_client_config().with_context(|| self.at("credentials"))?;
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            let name = self.config.tls_server_name.clone().unwrap_or_else(|| host.clone());
            let name = ServerName::try_from(name).with_context(|| self.at("name of the server"))?;
            Some((Arc::new(config), name))
        } else {
            None
        };
        let authority = url.authority().map(ToString::to_string).unwrap_or_default();
        let prefix = url.path().trim_end_matches('/').to_owned();
        Ok(Endpoint { host, port, tls, authority, prefix })
    }

    /// The headers by which the target knows the caller; asked for anew before each measurement,
    /// since tokens end.
    pub(super) async fn headers(&self) -> anyhow::Result<HeaderMap> {
        // An echo, since the headers are set on the way to a server.
        let echo = service_fn(|request: Request<Body>| async move {
            let mut response = Response::new(());
            *response.headers_mut() = request.into_parts().0.headers;
            Ok::<_, BoxError>(response)
        });
        let extra = self.config.extra_headers_layer().with_context(|| self.at("headers"))?;
        let echo = extra.layer(echo);
        let response = match self.config.auth_layer().with_context(|| self.at("credentials"))? {
            Some(auth) => auth.layer(echo).oneshot(Request::new(Body::empty())).await,
            None => echo.oneshot(Request::new(Body::empty())).await,
        };
        let response = response.map_err(|error| anyhow::anyhow!(error));
        Ok(response.with_context(|| self.at("credentials"))?.into_parts().0.headers)
    }

    fn at(&self, hop: &str) -> String {
        format!("{}: {hop}", self.url)
    }
}
