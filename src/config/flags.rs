//! `portico run`'s flags: the one definition of every setting, read from the file too.
//!
//! Names, meanings and defaults are kube-apiserver's where it has the flag; a flag of portico's own
//! says so by not being there. What a single value may be is its value parser's to say.

#![expect(clippy::doc_markdown, reason = "help texts are read in a terminal, without backticks")]

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{ArgAction, Args, ValueHint};
use http::Uri;
use rustls::SupportedCipherSuite;

use super::token_flags::TokenFlags;
use super::values::{self, PartLevel};
use super::{LogConfig, LogFormat};
use crate::auth::AuthorizationMode;
use crate::model::review::ReviewVersion;
use crate::proxy::{AccessLogFormat, RemoteRoute, UpstreamIdentity};
use crate::tls::server::{MinVersion, SniPair, cipher_suite};

/// The groups of `--help`, named and ordered as kube-apiserver's.
const GENERIC: &str = "Generic flags";
const SECURE_SERVING: &str = "Secure serving flags";
const AUTHENTICATION: &str = "Authentication flags";
const AUTHORIZATION: &str = "Authorization flags";
const AGGREGATION: &str = "Aggregation flags";
const FRONT: &str = "Front mode flags";
const TRACES: &str = "Traces flags";
const LOGS: &str = "Logs flags";

/// `portico run`'s flags: the file, and the settings.
#[derive(Args, Clone, Debug)]
pub struct RunFlags {
    /// YAML file with settings: the names of the flags below as keys, without dashes in front, and
    /// lists as YAML lists. Flags win over it. Relative paths in it are relative to its directory.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = GENERIC)]
    pub config: Option<PathBuf>,
    /// The settings.
    #[command(flatten)]
    pub settings: Flags,
}

/// The settings, each of which may be in the file as well.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// How long a request may take that is not long-running, such as 60s or 1m30s. It is ended with
    /// a 504 after that.
    #[arg(long, default_value = "1m0s", value_parser = values::timeout, allow_negative_numbers = true, value_name = "DURATION", help_heading = GENERIC)]
    pub request_timeout: Duration,
    /// The least number of seconds that a watch stays open when its client does not say how long.
    /// Each gets a random time between this and twice as much, to spread the load.
    #[arg(long, default_value = "1800", value_parser = values::seconds, allow_negative_numbers = true, value_name = "SECONDS", help_heading = GENERIC)]
    pub min_request_timeout: Duration,
    /// How many requests that only read may be under way at a time; further ones are answered 429.
    /// Long-running ones do not count. 0 for no limit.
    #[arg(long, default_value = "400", value_parser = values::number::<usize>, allow_negative_numbers = true, value_name = "REQUESTS", help_heading = GENERIC)]
    pub max_requests_inflight: usize,
    /// How many requests that change something may be under way at a time; further ones are answered
    /// 429. Long-running ones do not count. 0 for no limit.
    #[arg(long, default_value = "200", value_parser = values::number::<usize>, allow_negative_numbers = true, value_name = "REQUESTS", help_heading = GENERIC)]
    pub max_mutating_requests_inflight: usize,
    /// The chance that an HTTP/2 client is sent a GOAWAY after a request, so that it connects anew,
    /// perhaps to another server behind the load balancer. From 0 (off) to 0.02; with a single
    /// server leave it off.
    #[arg(long, default_value = "0", value_parser = values::goaway_chance, allow_negative_numbers = true, value_name = "FRACTION", help_heading = GENERIC)]
    pub goaway_chance: f64,
    /// How many client connections may be open at a time; one more is closed at once.
    #[arg(long, default_value = "16384", value_parser = values::at_least_one, allow_negative_numbers = true, value_name = "CONNECTIONS", help_heading = GENERIC)]
    pub max_connections: usize,
    /// How many TLS handshakes with clients may be under way at a time on one data-plane thread;
    /// further connections wait. One that waits for its client counts for half a second only
    #[arg(long, default_value = "256", value_parser = values::at_least_one, allow_negative_numbers = true, value_name = "HANDSHAKES", help_heading = GENERIC)]
    pub max_handshakes: usize,
    /// How long portico goes on as ever once it is told to end, but for /readyz, which fails at once:
    /// time for load balancers to learn of it.
    #[arg(long, default_value = "0s", value_parser = values::span, allow_negative_numbers = true, value_name = "DURATION", help_heading = GENERIC)]
    pub shutdown_delay_duration: Duration,
    /// How long watches may take to be ended in an orderly way when portico ends, one after the other,
    /// so that their clients do not all come back at once; 200 a second at least. 0 to cut them.
    #[arg(long, default_value = "0s", value_parser = values::span, allow_negative_numbers = true, value_name = "DURATION", help_heading = GENERIC)]
    pub shutdown_watch_termination_grace_period: Duration,
    /// Threads that serve clients; the number of cores when not given.
    #[arg(long, value_parser = values::at_least_one, allow_negative_numbers = true, value_name = "THREADS", help_heading = GENERIC)]
    pub data_plane_threads: Option<usize>,

    /// The IP address on which to listen for the --secure-port port; :: for all of IPv6 and IPv4.
    #[arg(long, default_value = "0.0.0.0", value_name = "IP", help_heading = SECURE_SERVING)]
    pub bind_address: IpAddr,
    /// The port on which to serve HTTPS; 0 takes a free one and says which.
    #[arg(long, default_value = "6443", value_parser = values::number::<u16>, allow_negative_numbers = true, value_name = "PORT", help_heading = SECURE_SERVING)]
    pub secure_port: u16,
    /// The directory where the TLS certs are located, and where a missing one is made. Not looked at
    /// when --tls-cert-file and --tls-private-key-file are given.
    #[arg(long, default_value = "apiserver.local.config/certificates", value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = SECURE_SERVING)]
    pub cert_dir: PathBuf,
    /// File with the x509 certificate for HTTPS, intermediates after it. Certificate and key are read
    /// again when they change.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = SECURE_SERVING)]
    pub tls_cert_file: Option<PathBuf>,
    /// File with the x509 private key matching --tls-cert-file.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = SECURE_SERVING)]
    pub tls_private_key_file: Option<PathBuf>,
    /// A certificate and its key for clients that ask for certain names, which may follow, also as
    /// wildcards: foo.crt,foo.key:*.foo.com,foo.com. Without names those in the certificate count.
    /// Given several times for several pairs; earlier ones win. They are read again when they change.
    #[arg(long, action = ArgAction::Append, value_name = "CERT,KEY[:NAMES]", value_hint = ValueHint::FilePath, help_heading = SECURE_SERVING)]
    pub tls_sni_cert_key: Vec<SniPair>,
    /// The oldest version of TLS that clients may speak: VersionTLS12 or VersionTLS13.
    #[arg(long, default_value = "VersionTLS12", value_name = "VERSION", help_heading = SECURE_SERVING)]
    pub tls_min_version: MinVersion,
    /// Cipher suites that clients may use, under Go's names; all there are when not given. Without
    /// effect on TLS 1.3, whose suites are always on.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, value_parser = suite, value_name = "SUITES", help_heading = SECURE_SERVING)]
    pub tls_cipher_suites: Vec<Option<SupportedCipherSuite>>,
    /// How many requests a client may have open on one HTTP/2 connection; 0 for portico's own
    /// number, which is 100.
    #[arg(long, default_value = "0", value_parser = values::number::<u32>, allow_negative_numbers = true, value_name = "STREAMS", help_heading = SECURE_SERVING)]
    pub http2_max_streams_per_connection: u32,

    /// Whether callers without credentials are the anonymous user. Unset, they reach the
    /// always-allow paths only, and in front mode kube-apiserver, which decides about them itself;
    /// false refuses them everywhere.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = values::boolean, value_name = "BOOL", help_heading = AUTHENTICATION)]
    pub anonymous_auth: Option<bool>,
    /// Requests with a client certificate signed by one of these authorities are authenticated with
    /// its common name. The file is read again when it changes.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = AUTHENTICATION)]
    pub client_ca_file: Option<PathBuf>,
    /// Authorities of front proxies: whom they vouch for is believed about the user name headers. The
    /// file is read again when it changes.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = AUTHENTICATION)]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of front proxies; empty for any that the authorities vouch for.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, value_name = "NAMES", help_heading = AUTHENTICATION)]
    pub requestheader_allowed_names: Vec<String>,
    /// Request headers to inspect for usernames.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, default_value = "x-remote-user", value_name = "HEADERS", help_heading = AUTHENTICATION)]
    pub requestheader_username_headers: Vec<String>,
    /// Request headers to inspect for groups.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, default_value = "x-remote-group", value_name = "HEADERS", help_heading = AUTHENTICATION)]
    pub requestheader_group_headers: Vec<String>,
    /// Request headers to inspect for the uid.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, value_name = "HEADERS", help_heading = AUTHENTICATION)]
    pub requestheader_uid_headers: Vec<String>,
    /// Request header prefixes to inspect for extra keys.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, default_value = "x-remote-extra-", value_name = "PREFIXES", help_heading = AUTHENTICATION)]
    pub requestheader_extra_headers_prefix: Vec<String>,
    /// CSV file with static tokens: token,user,uid,"group1,group2". It is read again when it changes.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = AUTHENTICATION)]
    pub token_auth_file: Option<PathBuf>,
    /// Tokens that are verified here.
    #[command(flatten)]
    pub tokens: TokenFlags,

    /// File in kubeconfig format that names a webhook which is sent a TokenReview for each bearer token
    /// that no other authenticator knows. Its server's URL is where reviews are posted. It and the files
    /// that it names are read again when they change. Without it kube-apiserver is asked in front mode.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = AUTHENTICATION)]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// How long an answer about a token is good; 2m for a webhook when not given, 10s for
    /// kube-apiserver. A refusal is good for 10s at most.
    #[arg(long, value_parser = values::ttl, allow_negative_numbers = true, value_name = "DURATION", help_heading = AUTHENTICATION)]
    pub authentication_token_webhook_cache_ttl: Option<Duration>,
    /// The version of the TokenReviews that the webhook is sent: v1 or v1beta1.
    #[arg(long, default_value = "v1beta1", value_parser = values::review_version, value_name = "VERSION", help_heading = AUTHENTICATION)]
    pub authentication_token_webhook_version: ReviewVersion,
    /// What tokens must be good for; when not given, it is the reviewer's to say, and the service
    /// account issuers for tokens that are verified here.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, value_name = "AUDIENCES", help_heading = AUTHENTICATION)]
    pub api_audiences: Vec<String>,
    /// How long answers about tokens and authorization outlive their time while the reviewer cannot be
    /// reached or answers with a server error; one that is slow or answers 429 can be reached.
    #[arg(long, default_value = "0s", value_parser = values::ttl, allow_negative_numbers = true, value_name = "DURATION", help_heading = AUTHENTICATION)]
    pub review_cache_outage_ttl: Duration,

    /// How requests are authorized: AlwaysAllow, AlwaysDeny or Webhook, or several of them, of which
    /// the first counts that allows or denies. When not given it is AlwaysAllow, and in front mode
    /// Webhook, which then asks kube-apiserver.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, value_parser = values::authorization_mode, value_name = "MODES", help_heading = AUTHORIZATION)]
    pub authorization_mode: Vec<AuthorizationMode>,
    /// File in kubeconfig format that names the webhook of --authorization-mode=Webhook. Its server's
    /// URL is where SubjectAccessReviews are posted. It and the files that it names are read again when
    /// they change. Without it kube-apiserver is asked in front mode.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = AUTHORIZATION)]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// How long a decision is good that allowed something; 5m for a webhook when not given, 10s for
    /// kube-apiserver.
    #[arg(long, value_parser = values::ttl, allow_negative_numbers = true, value_name = "DURATION", help_heading = AUTHORIZATION)]
    pub authorization_webhook_cache_authorized_ttl: Option<Duration>,
    /// How long a decision is good that did not allow something; 30s for a webhook when not given, 10s
    /// for kube-apiserver.
    #[arg(long, value_parser = values::ttl, allow_negative_numbers = true, value_name = "DURATION", help_heading = AUTHORIZATION)]
    pub authorization_webhook_cache_unauthorized_ttl: Option<Duration>,
    /// The version of the SubjectAccessReviews that the webhook is sent: v1 or v1beta1.
    #[arg(long, default_value = "v1beta1", value_parser = values::review_version, value_name = "VERSION", help_heading = AUTHORIZATION)]
    pub authorization_webhook_version: ReviewVersion,
    /// Paths that are allowed without asking the authorizer; a trailing * makes a prefix.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, default_values = ["/healthz", "/readyz", "/livez"], value_name = "PATHS", help_heading = AUTHORIZATION)]
    pub authorization_always_allow_paths: Vec<String>,

    /// Client certificate that proves portico's identity to extension API servers. Certificate and
    /// key are read again when they change.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = AGGREGATION)]
    pub proxy_client_cert_file: Option<PathBuf>,
    /// Private key matching --proxy-client-cert-file.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = AGGREGATION)]
    pub proxy_client_key_file: Option<PathBuf>,
    /// Whether requests go to endpoint addresses rather than cluster IPs.
    #[arg(long, num_args = 0..=1, default_value = "true", default_missing_value = "true", require_equals = true, action = ArgAction::Set, value_parser = values::boolean, value_name = "BOOL", help_heading = AGGREGATION)]
    pub enable_aggregator_routing: bool,
    /// Directory of APIService, Service, EndpointSlice and Endpoints objects as YAML or JSON files,
    /// followed as they change.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = AGGREGATION)]
    pub manifests: Option<PathBuf>,
    /// Directory where portico keeps what should outlive a restart: what extension API servers
    /// answered to discovery last, and in front of a kube-apiserver the objects that it routes by.
    /// Nothing is kept when not given.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = AGGREGATION)]
    pub data_dir: Option<PathBuf>,

    /// The kubeconfig of a kube-apiserver that portico is in front of: what no extension API server
    /// serves is passed on to it. Its user is who portico is there; plugins that fetch a token are
    /// run. It and the files that it names are read again when they change; only another server or
    /// plugin takes a restart.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = FRONT)]
    pub kubeconfig: Option<PathBuf>,
    /// Be in front of the kube-apiserver of the cluster that portico runs in, with the service
    /// account of its pod, whose files are read again when they change.
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", require_equals = true, action = ArgAction::Set, value_parser = values::boolean, value_name = "BOOL", help_heading = FRONT)]
    pub in_cluster: bool,
    /// A further kube-apiserver of the same cluster, such as https://10.0.0.2:6443, known by the
    /// same authority. Given several times for several; one that is gone is left out.
    #[arg(long, action = ArgAction::Append, value_parser = values::server, value_name = "URL", value_hint = ValueHint::Url, help_heading = FRONT)]
    pub core_server: Vec<Uri>,
    /// How kube-apiserver is told who calls: front-proxy, by X-Remote-* headers and the
    /// --proxy-client-cert-file; impersonate, by Impersonate-* headers and the credentials of the
    /// kubeconfig; auto, by the former when kube-apiserver believes it.
    #[arg(long, default_value = "auto", value_parser = PossibleValuesParser::new(["auto", "front-proxy", "impersonate"]).map(|text| upstream_identity(&text)), value_name = "HOW", help_heading = FRONT)]
    pub upstream_identity: UpstreamIdentity,
    /// How requests reach extension API servers in front mode: direct; core, through kube-apiserver,
    /// when extension API servers do not trust the --proxy-client-cert-file; auto, direct when
    /// kube-apiserver believes that certificate.
    #[arg(long, default_value = "auto", value_parser = PossibleValuesParser::new(["auto", "direct", "core"]).map(|text| remote_route(&text)), value_name = "HOW", help_heading = FRONT)]
    pub remote_route: RemoteRoute,
    /// File with the authority of the --proxy-client-cert-file, which extension API servers are told
    /// to believe: it is added to those in the cluster's ConfigMap
    /// extension-apiserver-authentication, and again when somebody takes it out.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = FRONT)]
    pub publish_front_proxy_ca: Option<PathBuf>,
    /// Write portico's verdicts on APIServices into the cluster, where kube-apiserver does not. Of
    /// several replicas one does it, which is who holds the Lease portico.
    #[arg(long, num_args = 0..=1, default_value = "false", default_missing_value = "true", require_equals = true, action = ArgAction::Set, value_parser = values::boolean, value_name = "BOOL", help_heading = FRONT)]
    pub write_availability: bool,
    /// The namespace of the Lease for --write-availability.
    #[arg(long, default_value = "kube-system", value_name = "NAMESPACE", help_heading = FRONT)]
    pub leader_elect_resource_namespace: String,

    /// File with an apiserver.config.k8s.io TracingConfiguration: where spans are sent by OTLP, and
    /// of how many requests. Needs a build with the feature otlp.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = TRACES)]
    pub tracing_config_file: Option<PathBuf>,

    /// The log on standard error.
    #[command(flatten)]
    pub log: LogFlags,
    /// Where one line is written for each request when it ends: a file, which is appended to, or -
    /// for standard output. None is written when not given.
    #[arg(long, value_name = "FILE|-", value_hint = ValueHint::FilePath, help_heading = LOGS)]
    pub access_log: Option<PathBuf>,
    /// The form of the access log's lines.
    #[arg(long, default_value = "json", value_parser = PossibleValuesParser::new(["json", "text"]).map(|text| access_log_format(&text)), value_name = "FORMAT", help_heading = LOGS)]
    pub access_log_format: AccessLogFormat,
}

/// The flags of the log on standard error; `portico demo` has them too.
#[derive(Args, Clone, Debug)]
pub struct LogFlags {
    /// Log level verbosity: 0 to 2 say what matters, 3 to 5 each request and what portico does, 6 to
    /// 10 the libraries' steps too
    #[arg(short, long = "v", default_value = "0", value_parser = values::level, allow_negative_numbers = true, value_name = "LEVEL", help_heading = LOGS)]
    pub v: u8,
    /// Log level verbosity of single parts instead of -v's, such as proxy=4,upstream=3. The parts
    /// are portico's modules: admin, aggregate, app, auth, body, cli, config, control, demo,
    /// frontend, model, proxy, runtime, store, tls, upstream.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, value_parser = values::part_level, value_name = "PART=LEVEL,...", help_heading = LOGS)]
    pub vmodule: Vec<Option<PartLevel>>,
    /// The form of the log on standard error.
    #[arg(long, visible_alias = "logging-format", default_value = "text", value_parser = PossibleValuesParser::new(["text", "json"]).map(|text| log_format(&text)), value_name = "FORMAT", help_heading = LOGS)]
    pub log_format: LogFormat,
}

impl LogFlags {
    /// What they mean for the log's set-up.
    pub fn config(&self) -> LogConfig {
        LogConfig {
            format: self.log_format,
            verbosity: self.v,
            parts: self.vmodule.iter().flatten().copied().collect(),
        }
    }
}

/// A cipher suite; nothing for the empty text, by which a flag's list is emptied.
fn suite(text: &str) -> Result<Option<SupportedCipherSuite>, String> {
    if text.is_empty() { Ok(None) } else { cipher_suite(text.trim()).map(Some) }
}

fn upstream_identity(text: &str) -> UpstreamIdentity {
    match text {
        "front-proxy" => UpstreamIdentity::FrontProxy,
        "impersonate" => UpstreamIdentity::Impersonate,
        _ => UpstreamIdentity::Auto,
    }
}

fn remote_route(text: &str) -> RemoteRoute {
    match text {
        "direct" => RemoteRoute::Direct,
        "core" => RemoteRoute::Core,
        _ => RemoteRoute::Auto,
    }
}

fn log_format(text: &str) -> LogFormat {
    if text == "json" { LogFormat::Json } else { LogFormat::Text }
}

fn access_log_format(text: &str) -> AccessLogFormat {
    if text == "text" { AccessLogFormat::Text } else { AccessLogFormat::Json }
}
