//! `portico demo`: a whole aggregation layer in one process, with a tour to paste.
//!
//! Two toy extension API servers are registered exactly as a user would register them, by files in
//! a directory of manifests.

pub mod tour;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, Parser as _};

use super::{Signals, log};
use crate::app::{self, Tuning};
use crate::config;
use crate::demo::{self, Toy, ToyConfig, ToyKind};
use crate::tls::certificates;
use crate::tls::pki::{Authority, PemPair, Purpose, write_file};
use crate::tls::server::mutual_config;

/// The namespace of the toys' services.
const NAMESPACE: &str = "demo";
/// The common name of the certificate that portico shows to the toys.
const FRONT_PROXY: &str = "front-proxy-client";
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// `portico demo`'s flags.
#[derive(Args, Clone, Debug)]
pub(super) struct Flags {
    /// Where to keep certificates, manifests and admin.kubeconfig; a temporary directory, removed at
    /// the end, when not given.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The port on which to serve HTTPS; 0 takes a free one.
    #[arg(long, default_value_t = 6443, value_name = "PORT")]
    secure_port: u16,
    #[command(flatten)]
    log: config::LogFlags,
}

/// Serves until a signal comes.
pub(super) async fn run(flags: &Flags) -> anyhow::Result<()> {
    log::init(&flags.log.config());
    let mut signals = Signals::new()?;
    let data = DataDir::new(flags.data_dir.as_deref())?;
    let pki = Pki::make(data.path())?;
    let toys = start_toys(&pki).await?;
    for toy in &toys {
        toy.register(data.path(), &pki)?;
    }
    let config = config(data.path(), flags.secure_port)?;
    let running = app::start(&config, Tuning::default())?;
    let server = format!("https://{}", running.address);
    let kubeconfig = data.path().join("admin.kubeconfig");
    write_file(&kubeconfig, pki.kubeconfig(&server).as_bytes(), 0o600)?;
    tour::print(&server, data.path(), flags.data_dir.is_none())?;
    signals.wait_and_stop(running).await;
    Ok(())
}

/// The flags that a user would give, as the demo sets them.
fn config(data: &Path, port: u16) -> anyhow::Result<config::Config> {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        flags: config::Flags,
    }
    let file = |flag: &str, name: &str| format!("--{flag}={}", data.join(name).display());
    let line = Line::try_parse_from([
        "portico run".to_owned(),
        format!("--bind-address={LOOPBACK}"),
        format!("--secure-port={port}"),
        file("tls-cert-file", "pki/server.crt"),
        file("tls-private-key-file", "pki/server.key"),
        file("client-ca-file", "pki/ca.crt"),
        file("proxy-client-cert-file", "pki/front-proxy-client.crt"),
        file("proxy-client-key-file", "pki/front-proxy-client.key"),
        file("manifests", "manifests"),
    ])?;
    line.flags.config().map_err(|faults| {
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", texts.join("; "))
    })
}

/// The directory of the demo's files; a temporary one goes with it.
struct DataDir {
    path: PathBuf,
    temporary: bool,
}

impl DataDir {
    fn new(given: Option<&Path>) -> anyhow::Result<Self> {
        let temporary = given.is_none();
        let path = match given {
            Some(path) => path.to_owned(),
            None => std::env::temp_dir().join(format!("portico-demo-{}", uuid::Uuid::new_v4())),
        };
        for directory in [path.clone(), path.join("pki"), path.join("manifests")] {
            create_private(&directory)
                .with_context(|| format!("cannot make directory {}", directory.display()))?;
        }
        let path = path.canonicalize().unwrap_or(path);
        Ok(Self { path, temporary })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if self.temporary
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(directory = %self.path.display(), %error, "temporary directory not removed");
        }
    }
}

fn create_private(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// The demo's certificates: an authority for servers and clients, and one for front proxies alone.
struct Pki {
    authority: Authority,
    front_proxies: Authority,
    admin: PemPair,
}

impl Pki {
    /// Makes them all and writes what users and `portico run` need.
    fn make(data: &Path) -> anyhow::Result<Self> {
        let authority = Authority::new("portico-demo-ca")?;
        let front_proxies = Authority::new("portico-demo-front-proxy-ca")?;
        let server =
            authority.sign("portico", Purpose::Server(&["localhost", "127.0.0.1", "::1"]))?;
        let admin = authority.sign("admin", Purpose::Client(&["system:masters"]))?;
        let front_proxy = front_proxies.sign(FRONT_PROXY, Purpose::Client(&[]))?;
        let pki = data.join("pki");
        write_file(&pki.join("ca.crt"), authority.certificate().as_bytes(), 0o644)?;
        let front_proxy_ca = front_proxies.certificate();
        write_file(&pki.join("front-proxy-ca.crt"), front_proxy_ca.as_bytes(), 0o644)?;
        for (name, pair) in
            [("server", &server), ("admin", &admin), ("front-proxy-client", &front_proxy)]
        {
            pair.write(&pki.join(format!("{name}.crt")), &pki.join(format!("{name}.key")))?;
        }
        Ok(Self { authority, front_proxies, admin })
    }

    fn kubeconfig(&self, server: &str) -> String {
        let encode = |pem: &str| BASE64_STANDARD.encode(pem);
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: portico\n  \
               cluster:\n    \
                 server: {server}\n    \
                 certificate-authority-data: {}\n\
             users:\n\
             - name: admin\n  \
               user:\n    \
                 client-certificate-data: {}\n    \
                 client-key-data: {}\n\
             contexts:\n\
             - name: portico\n  \
               context:\n    \
                 cluster: portico\n    \
                 user: admin\n\
             current-context: portico\n",
            encode(&self.authority.certificate()),
            encode(&self.admin.certificate),
            encode(&self.admin.key),
        )
    }
}

/// A running toy and the service that it stands behind.
struct Registered {
    toy: Toy,
    service: &'static str,
}

async fn start_toys(pki: &Pki) -> anyhow::Result<Vec<Registered>> {
    let mut toys = Vec::new();
    for (kind, service) in [(ToyKind::Bakery, "bakery"), (ToyKind::Library, "library")] {
        let name = format!("{service}.{NAMESPACE}.svc");
        let pair = pki.authority.sign(&name, Purpose::Server(&[&name]))?.key_pair()?;
        let front_proxies =
            certificates("front-proxy authority", pki.front_proxies.certificate().as_bytes())?;
        let config = ToyConfig {
            server: Arc::new(mutual_config(&pair, front_proxies)?),
            requestheader_allowed_names: vec![FRONT_PROXY.to_owned()],
            kind,
            bind: SocketAddr::new(LOOPBACK, 0),
        };
        toys.push(Registered { toy: demo::start(config).await?, service });
    }
    Ok(toys)
}

impl Registered {
    /// Writes the objects that register the toy: APIServices and Service in one file, its endpoints
    /// in another.
    fn register(&self, data: &Path, pki: &Pki) -> anyhow::Result<()> {
        let Self { toy, service } = self;
        let ca_bundle = BASE64_STANDARD.encode(pki.authority.certificate());
        let mut objects = String::new();
        for (at, (group, version)) in toy.groups_versions().iter().enumerate() {
            let priority = 100 - at;
            write!(
                objects,
                "apiVersion: apiregistration.k8s.io/v1\n\
                 kind: APIService\n\
                 metadata:\n  name: {version}.{group}\n\
                 spec:\n  group: {group}\n  version: {version}\n  \
                 groupPriorityMinimum: 1000\n  versionPriority: {priority}\n  \
                 service:\n    namespace: {NAMESPACE}\n    name: {service}\n  \
                 caBundle: {ca_bundle}\n---\n"
            )?;
        }
        write!(
            objects,
            "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: {NAMESPACE}\n  \
             name: {service}\nspec:\n  ports:\n  - name: https\n    port: 443\n"
        )?;
        let address = toy.address();
        let endpoints = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
             namespace: {NAMESPACE}\n  name: {service}\n  labels:\n    \
             kubernetes.io/service-name: {service}\naddressType: IPv4\nports:\n- name: https\n  \
             port: {}\nendpoints:\n- addresses: [\"{}\"]\n",
            address.port(),
            address.ip(),
        );
        let manifests = data.join("manifests");
        write_file(&manifests.join(format!("{service}.yaml")), objects.as_bytes(), 0o644)?;
        let file = manifests.join(format!("{service}-endpoints.yaml"));
        write_file(&file, endpoints.as_bytes(), 0o644)?;
        Ok(())
    }
}
