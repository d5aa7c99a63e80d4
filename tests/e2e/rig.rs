//! Portico as a user starts it: flags, certificate files and a directory of manifests.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Parser as _;
use portico::aggregate::aggregator;
use portico::app::{self, Running, Tuning};
use portico::config::{Config, Flags};
use portico::control::prober;
use portico::model::discovery::schedule::Schedule;
use portico::tls::pki::PemPair;
use tempfile::TempDir;
use tokio::time::{interval, timeout};

use crate::client::{Ask, Client, Protocol};
use crate::pki::{NAMESPACE, PKI};

/// How long anything may take before a test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Between two looks at something that is awaited.
const LOOK: Duration = Duration::from_millis(2);

/// The token of `bob`, with uid and two groups.
pub(crate) const BOBS_TOKEN: &str = "bobs-secret-token";

type Edit = Box<dyn FnOnce(&mut Config, &mut Tuning)>;

/// A portico to be started.
pub(crate) struct Setup {
    directory: TempDir,
    arguments: Vec<String>,
    edit: Edit,
}

/// A running portico with its files.
pub(crate) struct Rig {
    directory: TempDir,
    running: Running,
    pub(crate) address: SocketAddr,
}

#[derive(clap::Parser)]
#[command(args_override_self = true)]
struct Line {
    #[command(flatten)]
    flags: Flags,
}

impl Setup {
    /// With every authenticator, an own certificate towards backends, and no manifest yet.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).unwrap();
        };
        write("ca.crt", &PKI.authority.certificate());
        write("front-proxy-ca.crt", &PKI.front_proxies.certificate());
        write("both.crt", &(PKI.authority.certificate() + &PKI.front_proxies.certificate()));
        write("tokens.csv", &format!("{BOBS_TOKEN},bob,uid-7,\"team-a,team-b\"\n"));
        for (name, pair) in [("server", &PKI.server), ("aggregator", &PKI.aggregator)] {
            write(&format!("{name}.crt"), &pair.certificate);
            write(&format!("{name}.key"), &pair.key);
        }
        std::fs::create_dir(directory.path().join("manifests")).unwrap();
        let file =
            |flag: &str, name: &str| format!("--{flag}={}", directory.path().join(name).display());
        let arguments = vec![
            "portico".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            "--secure-port=0".to_owned(),
            "--data-plane-threads=1".to_owned(),
            "--requestheader-allowed-names=front-proxy".to_owned(),
            "--requestheader-uid-headers=X-Remote-Uid".to_owned(),
            file("tls-cert-file", "server.crt"),
            file("tls-private-key-file", "server.key"),
            file("client-ca-file", "ca.crt"),
            file("requestheader-client-ca-file", "front-proxy-ca.crt"),
            file("token-auth-file", "tokens.csv"),
            file("proxy-client-cert-file", "aggregator.crt"),
            file("proxy-client-key-file", "aggregator.key"),
            file("manifests", "manifests"),
        ];
        Self { directory, arguments, edit: Box::new(|_, _| {}) }
    }

    /// One of the rig's files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// One more flag, which takes the place of an earlier one.
    pub(crate) fn flag(mut self, flag: &str) -> Self {
        self.arguments.push(flag.to_owned());
        self
    }

    /// Without a flag that all have.
    pub(crate) fn without(mut self, flag: &str) -> Self {
        self.arguments.retain(|argument| !argument.starts_with(&format!("--{flag}=")));
        self
    }

    /// The flags as they stand, for a program in a process of its own.
    pub(crate) fn flags(&self) -> &[String] {
        self.arguments.get(1..).unwrap_or_default()
    }

    /// A flag whose value is one of the rig's files.
    pub(crate) fn file_flag(self, flag: &str, name: &str) -> Self {
        let value = self.directory.path().join(name).display().to_string();
        self.flag(&format!("--{flag}={value}"))
    }

    /// What no flag sets.
    pub(crate) fn edit(mut self, edit: impl FnOnce(&mut Config, &mut Tuning) + 'static) -> Self {
        self.edit = Box::new(edit);
        self
    }

    /// A manifest file.
    pub(crate) fn manifest(self, name: &str, text: &str) -> Self {
        std::fs::write(self.directory.path().join("manifests").join(name), text).unwrap();
        self
    }

    /// Group `<name>.example.com`, version v1, behind a service with these endpoints.
    pub(crate) fn service(self, name: &str, endpoints: &[SocketAddr]) -> Self {
        let text = api_service(name) + &service(name) + &slices(name, endpoints);
        self.manifest(&format!("{name}.yaml"), &text)
    }

    /// Starts, without waiting for the manifests.
    pub(crate) fn launch(self) -> Rig {
        let line = Line::try_parse_from(&self.arguments).unwrap();
        let (mut config, mut tuning) = (line.flags.config().unwrap(), quiet());
        (self.edit)(&mut config, &mut tuning);
        let running = app::start(&config, tuning).unwrap();
        Rig { directory: self.directory, address: running.address, running }
    }

    /// Starts and waits until the manifests are in effect.
    pub(crate) async fn start(self) -> Rig {
        let rig = self.launch();
        let mut client = rig.alice(Protocol::Http1).await;
        eventually("manifests in effect", async || {
            client.get("/apis/nobody.example.com/v1").await.status == 404
        })
        .await;
        rig
    }
}

/// Backends are not asked what they serve, nor whether they are available, unless a test is about
/// that: it would stand among the requests and connections that others count.
fn quiet() -> Tuning {
    let schedule = Schedule { settle: Duration::from_secs(3600), ..Schedule::default() };
    let discovery =
        aggregator::Config { schedule, start_timeout: Duration::ZERO, ..Default::default() };
    let probes = prober::Config { schedule, ..Default::default() };
    Tuning { discovery, probes, ..Tuning::default() }
}

/// Backends are asked whether they are available when something changes, and soon again when they
/// failed.
pub(crate) fn probing(_: &mut Config, tuning: &mut Tuning) {
    tuning.upstream.verdict_after = Duration::from_millis(200);
    tuning.upstream.revival_interval = Duration::from_millis(50);
    tuning.probes = prober::Config {
        schedule: Schedule {
            settle: Duration::ZERO,
            refresh: Duration::from_secs(3600),
            backoff: Duration::from_millis(20),
            backoff_max: Duration::from_millis(100),
        },
        first_after: Duration::ZERO,
        timeout: Duration::from_secs(2),
    };
}

impl Rig {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes or replaces a manifest file, whole at once.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let partial = self.path("partial");
        std::fs::write(&partial, text).unwrap();
        std::fs::rename(partial, self.path("manifests").join(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path("manifests").join(name)).unwrap();
    }

    /// Ends the program and returns when it has ended.
    pub(crate) async fn stop(self) {
        self.running.stop().await;
    }

    /// A connection that shows this certificate, or none.
    pub(crate) async fn connect(&self, protocol: Protocol, pair: Option<&PemPair>) -> Client {
        Client::connect(self.address, protocol, pair).await
    }

    /// What a Kubernetes client needs to call as alice.
    pub(crate) fn kube_config(&self) -> kube::Config {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject as _;
        let mut config = kube::Config::new(format!("https://{}", self.address).parse().unwrap());
        config.tls_server_name = Some("localhost".to_owned());
        let root = CertificateDer::from_pem_slice(PKI.authority.certificate().as_bytes()).unwrap();
        config.root_cert = Some(vec![root.to_vec()]);
        let auth = &mut config.auth_info;
        auth.client_certificate_data = Some(BASE64_STANDARD.encode(&PKI.alice.certificate));
        auth.client_key_data = Some(BASE64_STANDARD.encode(&PKI.alice.key).into());
        config
    }

    /// A connection of alice's.
    pub(crate) async fn alice(&self, protocol: Protocol) -> Client {
        self.connect(protocol, Some(&PKI.alice)).await
    }

    /// The sum of a metric's series that have all these labels, as written: `name="value"`.
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        // Let in also where others are told to come later.
        let mut client = self.connect(Protocol::Http1, Some(&PKI.master)).await;
        let text = client.get("/metrics").await.text();
        let series = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        series
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .reduce(|a, b| a + b)
    }

    /// Waits until a metric has a series with these labels.
    pub(crate) async fn await_some(&self, name: &str, labels: &[&str]) {
        eventually(&format!("{name}{labels:?}"), async || {
            self.metric(name, labels).await.is_some()
        })
        .await;
    }

    /// Waits until a metric has this value.
    pub(crate) async fn await_metric(&self, name: &str, labels: &[&str], value: f64) {
        let what = format!("{name}{labels:?} = {value}");
        eventually(&what, async || {
            (self.metric(name, labels).await.unwrap_or_default() - value).abs() < 0.5
        })
        .await;
    }

    /// Waits until a path is answered with this code.
    pub(crate) async fn await_status(&self, path: &str, status: u16) {
        let mut client = self.alice(Protocol::Http2).await;
        eventually(&format!("{path} answers {status}"), async || {
            client.send(&Ask::get(path)).await.status == status
        })
        .await;
    }
}

/// Looks again and again until the condition holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let mut look = interval(LOOK);
    let looking = async {
        while !condition().await {
            look.tick().await;
        }
    };
    assert!(timeout(LIMIT, looking).await.is_ok(), "never: {what}");
}

/// Bounds whatever is awaited.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    let Ok(output) = timeout(LIMIT, future).await else { panic!("not in time: {what}") };
    output
}

/// An APIService of group `<name>.example.com` that names the service `<name>`.
pub(crate) fn api_service(name: &str) -> String {
    api_service_with(name, &BASE64_STANDARD.encode(PKI.authority.certificate()))
}

pub(crate) fn api_service_with(name: &str, ca_bundle: &str) -> String {
    format!(
        "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\n\
         metadata:\n  name: v1.{name}.example.com\n  annotations: {{portico.dev/legacy-discovery: proxy}}\n\
         spec:\n  group: {name}.example.com\n  version: v1\n  groupPriorityMinimum: 1000\n  \
         versionPriority: 10\n  caBundle: {ca_bundle}\n  \
         service: {{namespace: {NAMESPACE}, name: {name}}}\n---\n"
    )
}

pub(crate) fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {NAMESPACE}, name: {name}}}\n\
         spec: {{ports: [{{name: https, port: 443}}]}}\n---\n"
    )
}

/// One EndpointSlice an address, since each has a port of its own.
pub(crate) fn slices(name: &str, endpoints: &[SocketAddr]) -> String {
    let slice = |(at, address): (usize, &SocketAddr)| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata:\n  namespace: {NAMESPACE}\n  name: {name}-{at}\n  \
             labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\n\
             ports: [{{name: https, port: {}}}]\nendpoints: [{{addresses: [\"{}\"]}}]\n---\n",
            address.port(),
            address.ip(),
        )
    };
    endpoints.iter().enumerate().map(slice).collect()
}

/// A resource path of a service's group.
pub(crate) fn path(name: &str, rest: &str) -> String {
    format!("/apis/{name}.example.com/v1/{rest}")
}
