//! kube-apiserver's flags, the file with the same settings, and what they mean for each part.
//!
//! `flags` is the one definition of every setting; `values` says how single values are written,
//! `file` reads them from a file, `settings` puts both together. The rules that look at several
//! settings are here; what is wrong is reported all at once.

mod file;
mod flags;
mod settings;
mod values;
mod yaml;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use flags::{Flags, LogFlags, RunFlags};
pub use settings::{Effective, Origin, Settings};
pub use values::{LOG_LEVEL_MAX, PARTS, PartLevel, boolean, timeout};

use crate::auth::{self, Anonymous, AuthorizationMode, RequestHeaderConfig};
use crate::model::endpoints::EndpointRouting;
use crate::proxy::{AccessLogConfig, CoreConfig, RemoteRoute, UpstreamIdentity};
use crate::upstream::Source;
use crate::{control, frontend, proxy, tls};

/// All that a running portico needs to know, parsed and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The listener.
    pub frontend: frontend::Config,
    /// Who is believed and who may do what.
    pub auth: auth::Config,
    /// How long requests may take, how many may, and what is written of them.
    pub proxy: proxy::Config,
    /// Versions, cipher suites and certificates by name towards clients.
    pub tls: tls::server::Settings,
    /// The serving pair, when given.
    pub serving_pair: Option<(PathBuf, PathBuf)>,
    /// Where the serving pair is made when none is given.
    pub cert_dir: PathBuf,
    /// The proxy-client pair, when given.
    pub proxy_client_pair: Option<(PathBuf, PathBuf)>,
    /// The kube-apiserver that portico is in front of, if it is.
    pub core: Option<CoreConfig>,
    /// What is done in the cluster of the kube-apiserver that portico is in front of.
    pub cluster: control::watch::Config,
    /// Endpoints or cluster IPs.
    pub routing: EndpointRouting,
    /// The objects' directory.
    pub manifests: Option<PathBuf>,
    /// Directory of what outlives a restart.
    pub data_dir: Option<PathBuf>,
    /// The log on standard error.
    pub log: LogConfig,
    /// The file that says where spans go (`--tracing-config-file`); only with the feature `otlp`.
    pub tracing_config_file: Option<PathBuf>,
}

/// The log on standard error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// The form of its lines.
    pub format: LogFormat,
    /// From 0 to [`LOG_LEVEL_MAX`], as klog counts: up to 2 what matters, from 3 on every request.
    pub verbosity: u8,
    /// What is logged more or less than the rest; the last of a part counts.
    pub parts: Vec<PartLevel>,
}

/// The form of the log's lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is wrong with a setting beside the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its name, without dashes in front.
    pub setting: &'static str,
    /// The setting that it would need or that it does not go with.
    pub other: Option<&'static str>,
    /// What is wrong.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "--{}: {}", self.setting, self.text)
    }
}

impl Flags {
    /// Checks the settings as a whole; every fault is named.
    pub fn config(&self) -> Result<Config, Vec<Fault>> {
        let mut faults = Vec::new();
        let serving_pair = pair(
            ("tls-cert-file", self.tls_cert_file.as_deref()),
            ("tls-private-key-file", self.tls_private_key_file.as_deref()),
            &mut faults,
        );
        let proxy_client_pair = pair(
            ("proxy-client-cert-file", self.proxy_client_cert_file.as_deref()),
            ("proxy-client-key-file", self.proxy_client_key_file.as_deref()),
            &mut faults,
        );
        if self.tracing_config_file.is_some() && !cfg!(feature = "otlp") {
            faults.push(Fault {
                setting: "tracing-config-file",
                other: None,
                text: "this portico was built without the feature otlp, it can send no spans"
                    .to_owned(),
            });
        }
        let config = Config {
            frontend: self.frontend(),
            auth: self.auth(&mut faults),
            proxy: self.proxy(),
            tls: tls::server::Settings {
                min_version: self.tls_min_version,
                cipher_suites: self.tls_cipher_suites.iter().flatten().copied().collect(),
                sni: self.tls_sni_cert_key.clone(),
            },
            serving_pair,
            cert_dir: self.cert_dir.clone(),
            core: self.core(proxy_client_pair.is_some(), &mut faults),
            cluster: control::watch::Config {
                published_authority: self.publish_front_proxy_ca.clone(),
                lease_namespace: self
                    .write_availability
                    .then(|| self.leader_elect_resource_namespace.clone()),
            },
            proxy_client_pair,
            routing: if self.enable_aggregator_routing {
                EndpointRouting::Endpoints
            } else {
                EndpointRouting::ClusterIp
            },
            manifests: self.manifests.clone(),
            data_dir: self.data_dir.clone(),
            log: self.log.config(),
            tracing_config_file: self.tracing_config_file.clone(),
        };
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }

    fn frontend(&self) -> frontend::Config {
        let mut limits = frontend::Limits {
            connections_max: self.max_connections,
            handshakes_max: self.max_handshakes,
            ..frontend::Limits::default()
        };
        if self.http2_max_streams_per_connection > 0 {
            limits.streams_max = self.http2_max_streams_per_connection;
        }
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        frontend::Config {
            bind: SocketAddr::new(self.bind_address, self.secure_port),
            threads: self.data_plane_threads.unwrap_or_else(cores),
            limits,
        }
    }

    fn core(&self, has_pair: bool, faults: &mut Vec<Fault>) -> Option<CoreConfig> {
        let mut fault = |setting, other, text: &str| {
            faults.push(Fault { setting, other: Some(other), text: text.to_owned() });
        };
        let source = match (&self.kubeconfig, self.in_cluster) {
            (Some(file), false) => Source::Kubeconfig(file.clone()),
            (None, true) => Source::InCluster,
            (Some(_), true) => {
                fault("in-cluster", "kubeconfig", "kubeconfig names another kube-apiserver");
                return None;
            }
            (None, false) => {
                let needs = "needs kubeconfig or in-cluster beside it";
                if !self.core_server.is_empty() {
                    fault("core-server", "kubeconfig", needs);
                }
                if self.upstream_identity != UpstreamIdentity::Auto {
                    fault("upstream-identity", "kubeconfig", needs);
                }
                if self.remote_route != RemoteRoute::Auto {
                    fault("remote-route", "kubeconfig", needs);
                }
                if self.write_availability {
                    fault("write-availability", "kubeconfig", needs);
                }
                if self.publish_front_proxy_ca.is_some() {
                    fault("publish-front-proxy-ca", "kubeconfig", needs);
                }
                return None;
            }
        };
        if self.upstream_identity == UpstreamIdentity::FrontProxy && !has_pair {
            let text = "front-proxy needs proxy-client-cert-file beside it";
            fault("upstream-identity", "proxy-client-cert-file", text);
        }
        Some(CoreConfig {
            source,
            servers: self.core_server.clone(),
            identity: self.upstream_identity,
            remote_route: self.remote_route,
        })
    }

    fn proxy(&self) -> proxy::Config {
        proxy::Config {
            request_timeout: self.request_timeout,
            min_request_timeout: self.min_request_timeout,
            requests_max: self.max_requests_inflight,
            mutating_requests_max: self.max_mutating_requests_inflight,
            goaway_chance: self.goaway_chance,
            access_log: self.access_log.as_ref().map(|place| AccessLogConfig {
                file: (place.as_path() != Path::new("-")).then(|| place.clone()),
                format: self.access_log_format,
            }),
            ..proxy::Config::default()
        }
    }

    fn auth(&self, faults: &mut Vec<Fault>) -> auth::Config {
        for (setting, values) in [
            ("requestheader-allowed-names", &self.requestheader_allowed_names),
            ("requestheader-username-headers", &self.requestheader_username_headers),
            ("requestheader-group-headers", &self.requestheader_group_headers),
            ("requestheader-uid-headers", &self.requestheader_uid_headers),
            ("requestheader-extra-headers-prefix", &self.requestheader_extra_headers_prefix),
        ] {
            if values.len() > 1 && values.iter().any(|value| value.trim().is_empty()) {
                let text = "one of the values is empty".to_owned();
                faults.push(Fault { setting, other: None, text });
            }
        }
        let anonymous = match self.anonymous_auth {
            None => Anonymous::AlwaysAllowPaths,
            Some(false) => Anonymous::Refused,
            Some(true) if !self.always_allows() => Anonymous::Accepted,
            Some(true) => {
                faults.push(Fault {
                    setting: "anonymous-auth",
                    other: Some("authorization-mode"),
                    text: "true together with the authorization mode AlwaysAllow would let \
                           everybody do everything"
                        .to_owned(),
                });
                Anonymous::Refused
            }
        };
        auth::Config {
            client_ca_file: self.client_ca_file.clone(),
            requestheader_client_ca_file: self.requestheader_client_ca_file.clone(),
            request_header: RequestHeaderConfig {
                allowed_names: list(&self.requestheader_allowed_names),
                username_headers: list(&self.requestheader_username_headers),
                uid_headers: list(&self.requestheader_uid_headers),
                group_headers: list(&self.requestheader_group_headers),
                extra_prefixes: list(&self.requestheader_extra_headers_prefix),
            },
            token_file: self.token_auth_file.clone(),
            anonymous,
            authorization_modes: self.authorization_mode.clone(),
            reviews: self.reviews(faults),
            always_allow_paths: list(&self.authorization_always_allow_paths),
        }
    }
}

impl Flags {
    /// True when everybody who is known may do everything.
    fn always_allows(&self) -> bool {
        let in_front = self.kubeconfig.is_some() || self.in_cluster;
        (self.authorization_mode.is_empty() && !in_front)
            || self.authorization_mode.contains(&AuthorizationMode::AlwaysAllow)
    }

    fn reviews(&self, faults: &mut Vec<Fault>) -> auth::ReviewConfig {
        let (setting, modes) = ("authorization-mode", &self.authorization_mode);
        let twice = modes
            .iter()
            .enumerate()
            .any(|(at, mode)| modes.iter().skip(at + 1).any(|it| it == mode));
        if twice {
            let text = "one of the modes is given twice".to_owned();
            faults.push(Fault { setting, other: None, text });
        }
        if self.authorization_webhook_config_file.is_some()
            && !modes.contains(&AuthorizationMode::Webhook)
        {
            faults.push(Fault {
                setting: "authorization-webhook-config-file",
                other: Some(setting),
                text: "needs Webhook among the modes of authorization-mode".to_owned(),
            });
        }
        let webhook = |file: &Option<PathBuf>, version| {
            file.clone().map(|kubeconfig| auth::Webhook { kubeconfig, version })
        };
        auth::ReviewConfig {
            tokens: webhook(
                &self.authentication_token_webhook_config_file,
                self.authentication_token_webhook_version,
            ),
            token_ttl: self.authentication_token_webhook_cache_ttl,
            audiences: list(&self.api_audiences),
            access: webhook(
                &self.authorization_webhook_config_file,
                self.authorization_webhook_version,
            ),
            authorized_ttl: self.authorization_webhook_cache_authorized_ttl,
            unauthorized_ttl: self.authorization_webhook_cache_unauthorized_ttl,
            outage_ttl: self.review_cache_outage_ttl,
        }
    }
}

fn pair(
    (certificate_setting, certificate): (&'static str, Option<&Path>),
    (key_setting, key): (&'static str, Option<&Path>),
    faults: &mut Vec<Fault>,
) -> Option<(PathBuf, PathBuf)> {
    let (setting, other) = match (certificate, key) {
        (Some(certificate), Some(key)) => return Some((certificate.to_owned(), key.to_owned())),
        (None, None) => return None,
        (Some(_), None) => (certificate_setting, key_setting),
        (None, Some(_)) => (key_setting, certificate_setting),
    };
    faults.push(Fault { setting, other: Some(other), text: format!("needs {other} beside it") });
    None
}

/// A list as pflag reads it: `--flag=` is the empty one.
fn list(values: &[String]) -> Vec<String> {
    if values == [""] { Vec::new() } else { values.to_vec() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::model::review::ReviewVersion;
    use crate::proxy::AccessLogFormat;
    use crate::tls::server::MinVersion;

    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn flags(line: &[&str]) -> Flags {
        Line::try_parse_from([&["portico"], line].concat()).map(|line| line.flags).unwrap()
    }

    fn config(line: &[&str]) -> Config {
        flags(line).config().unwrap()
    }

    #[track_caller]
    fn check_fault(line: &[&str], expected: &str) {
        let faults = flags(line).config().unwrap_err();
        let shown: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert!(shown.iter().any(|fault| fault.contains(expected)), "{shown:?}");
    }

    #[track_caller]
    fn check_refused(line: &[&str], expected: &str) {
        let line = [&["portico"], line].concat();
        let refused = Line::try_parse_from(&line).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains(expected), "{line:?}: {refused}");
    }

    #[test]
    fn a_flag_given_twice_takes_its_last_value_and_booleans_go_with_and_without_value() {
        assert_eq!(flags(&["--secure-port=1", "--secure-port", "2"]).secure_port, 2);
        assert!(flags(&["--enable-aggregator-routing"]).enable_aggregator_routing);
        assert!(!flags(&["--enable-aggregator-routing=false"]).enable_aggregator_routing);
        assert_eq!(flags(&["--anonymous-auth=0"]).anonymous_auth, Some(false));
        assert_eq!(flags(&["-v", "4"]).log.v, 4);
        assert_eq!(flags(&["-v=3"]).log.v, 3);
        assert_eq!(flags(&["--logging-format=json"]).log.log_format, LogFormat::Json);
        let names = flags(&["--requestheader-allowed-names=a,b"]).requestheader_allowed_names;
        assert_eq!(names, ["a", "b"]);
        let paths = config(&["--authorization-always-allow-paths="]).auth.always_allow_paths;
        assert!(paths.is_empty());
    }

    #[test]
    fn all_faults_are_named_at_once() {
        let line = ["--tls-cert-file=x", "--anonymous-auth", "--requestheader-uid-headers=a,"];
        check_fault(&line, "--tls-cert-file: needs tls-private-key-file");
        check_fault(&line, "would let everybody do everything");
        check_fault(&line, "--requestheader-uid-headers: one of the values is empty");
        check_fault(&["--proxy-client-key-file=x"], "needs proxy-client-cert-file beside it");
    }

    #[test]
    fn spans_need_a_build_that_can_send_them() {
        let flags = flags(&["--tracing-config-file=tracing.yaml"]);
        if cfg!(feature = "otlp") {
            let file = flags.config().unwrap().tracing_config_file;
            assert_eq!(file.as_deref(), Some(Path::new("tracing.yaml")));
        } else {
            check_fault(&["--tracing-config-file=tracing.yaml"], "without the feature otlp");
        }
    }

    #[test]
    fn front_mode_is_on_when_a_kube_apiserver_is_named() {
        assert_eq!(config(&[]).core, None);
        let core = config(&["--in-cluster"]).core.unwrap();
        assert_eq!((core.source, core.remote_route), (Source::InCluster, RemoteRoute::Auto));
        let cluster = |line: &[&str]| config(&[&["--in-cluster"], line].concat()).cluster;
        assert_eq!(cluster(&[]), control::watch::Config::default());
        let lease = cluster(&["--write-availability"]).lease_namespace;
        assert_eq!(lease.as_deref(), Some("kube-system"));
        let line = ["--kubeconfig=k", "--core-server=https://a", "--core-server=https://b"];
        let core = config(&[&line[..], &["--upstream-identity=impersonate"]].concat()).core;
        let core = core.unwrap();
        assert_eq!(core.source, Source::Kubeconfig("k".into()));
        assert_eq!((core.servers.len(), core.identity), (2, UpstreamIdentity::Impersonate));
        check_fault(&["--kubeconfig=k", "--in-cluster"], "kubeconfig names another");
        check_fault(&["--core-server=https://a"], "--core-server: needs kubeconfig");
        check_fault(&["--remote-route=core"], "--remote-route: needs kubeconfig");
        check_fault(&["--publish-front-proxy-ca=f"], "--publish-front-proxy-ca: needs kubeconfig");
        check_fault(&["--write-availability"], "--write-availability: needs kubeconfig");
        check_fault(&["--upstream-identity=impersonate"], "needs kubeconfig or in-cluster");
        let line = ["--kubeconfig=k", "--upstream-identity=front-proxy"];
        check_fault(&line, "front-proxy needs proxy-client-cert-file");
        check_refused(&["--core-server=h"], "expected a server's URL");
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_reason() {
        for flag in [
            "--max-requests-inflight",
            "--max-mutating-requests-inflight",
            "--min-request-timeout",
            "--http2-max-streams-per-connection",
        ] {
            check_refused(&[flag, "-1"], "must not be negative");
            check_refused(&[flag, "some"], "expected a whole number");
        }
        check_refused(&["--request-timeout=-1s"], "must not be negative");
        check_refused(&["--request-timeout=0s"], "must be greater than 0");
        check_refused(&["--goaway-chance=0.03"], "must be from 0 to 0.02");
        check_refused(&["--goaway-chance", "-0.01"], "must be from 0 to 0.02");
        check_refused(&["--max-connections=0"], "must be at least 1");
        check_refused(&["--max-handshakes=0"], "must be at least 1");
        check_refused(&["--data-plane-threads=0"], "must be at least 1");
        check_refused(&["--secure-port=70000"], "too large");
        check_refused(&["-v", "11"], "must be from 0 to 10");
        check_refused(&["--vmodule=proxy=4,poxy=4"], "unknown part \"poxy\"");
        check_refused(&["--log-format=xml"], "[possible values: text, json]");
        check_refused(&["--access-log-format=xml"], "[possible values: json, text]");
        check_refused(&["--authorization-mode=RBAC"], "\"RBAC\" is not supported");
        check_refused(&["--tls-min-version=VersionTLS11"], "TLS 1.2 is the oldest");
        check_refused(&["--tls-cipher-suites=ROT13"], "ROT13");
        check_refused(&["--tls-sni-cert-key=foo.crt"], "certificate and key");
    }

    #[test]
    fn defaults_are_upstreams() {
        let config = config(&[]);
        let proxy = proxy::Config::default();
        assert_eq!(config.proxy.request_timeout, proxy.request_timeout);
        assert_eq!(config.proxy.min_request_timeout, proxy.min_request_timeout);
        assert_eq!(config.proxy.requests_max, 400);
        assert_eq!(config.proxy.mutating_requests_max, 200);
        assert!(config.proxy.goaway_chance.abs() < f64::EPSILON);
        assert_eq!(config.proxy.access_log, None);
        let limits = frontend::Limits::default();
        assert_eq!(config.frontend.limits.connections_max, limits.connections_max);
        assert_eq!(config.frontend.limits.handshakes_max, limits.handshakes_max);
        assert_eq!(config.frontend.limits.streams_max, limits.streams_max);
        assert_eq!(config.tls.min_version, MinVersion::Tls12);
        assert!(config.tls.cipher_suites.is_empty() && config.tls.sni.is_empty());
        assert_eq!(config.log, LogConfig::default());
    }

    #[test]
    fn flags_reach_the_parts_that_they_are_for() {
        let config = config(&[
            "--min-request-timeout=60",
            "--max-requests-inflight=0",
            "--max-mutating-requests-inflight=7",
            "--goaway-chance=0.001",
            "--http2-max-streams-per-connection=250",
            "--max-connections=9",
            "--max-handshakes=3",
            "--access-log=/var/log/portico.log",
            "--access-log-format=text",
            "--tls-min-version=VersionTLS13",
            "--tls-cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "--tls-sni-cert-key=a.crt,a.key:*.foo.com,foo.com",
            "--tls-sni-cert-key=b.crt,b.key",
            "-v=2",
            "--vmodule=proxy=4,auth=3",
            "--log-format=json",
        ]);
        assert_eq!(config.proxy.min_request_timeout, Duration::from_secs(60));
        assert_eq!((config.proxy.requests_max, config.proxy.mutating_requests_max), (0, 7));
        assert!((config.proxy.goaway_chance - 0.001).abs() < f64::EPSILON);
        let limits = &config.frontend.limits;
        assert_eq!((limits.streams_max, limits.connections_max), (250, 9));
        assert_eq!(limits.handshakes_max, 3);
        let log = AccessLogConfig {
            file: Some("/var/log/portico.log".into()),
            format: AccessLogFormat::Text,
        };
        assert_eq!(config.proxy.access_log, Some(log));
        assert_eq!(config.tls.min_version, MinVersion::Tls13);
        assert_eq!(config.tls.cipher_suites.len(), 1);
        let names: Vec<_> = config.tls.sni.iter().map(|pair| pair.names.len()).collect();
        assert_eq!(names, [2, 0]);
        let parts = [("proxy", 4), ("auth", 3)].map(|(part, level)| PartLevel { part, level });
        let log = LogConfig { format: LogFormat::Json, verbosity: 2, parts: parts.to_vec() };
        assert_eq!(config.log, log);
    }

    #[test]
    fn the_access_log_goes_to_standard_output_for_a_dash() {
        let log = config(&["--access-log=-"]).proxy.access_log.unwrap();
        assert_eq!(log, AccessLogConfig { file: None, format: AccessLogFormat::Json });
    }

    #[test]
    fn reviews_have_upstreams_flags_and_defaults() {
        let reviews = config(&[]).auth.reviews;
        assert_eq!(reviews, auth::ReviewConfig::default());
        let line = [
            "--authentication-token-webhook-config-file=t",
            "--authentication-token-webhook-version=v1",
            "--authentication-token-webhook-cache-ttl=1s",
            "--api-audiences=a,b",
            "--authorization-mode=AlwaysDeny,Webhook",
            "--authorization-webhook-config-file=w",
            "--authorization-webhook-cache-authorized-ttl=2s",
            "--authorization-webhook-cache-unauthorized-ttl=0s",
            "--review-cache-outage-ttl=1h",
            "--anonymous-auth",
        ];
        let auth = config(&line).auth;
        let webhook = |file: &str, version| auth::Webhook { kubeconfig: file.into(), version };
        let expected = auth::ReviewConfig {
            tokens: Some(webhook("t", ReviewVersion::V1)),
            token_ttl: Some(Duration::from_secs(1)),
            audiences: vec!["a".to_owned(), "b".to_owned()],
            access: Some(webhook("w", ReviewVersion::V1Beta1)),
            authorized_ttl: Some(Duration::from_secs(2)),
            unauthorized_ttl: Some(Duration::ZERO),
            outage_ttl: Duration::from_secs(3600),
        };
        assert_eq!(auth.reviews, expected);
        let modes = [AuthorizationMode::AlwaysDeny, AuthorizationMode::Webhook];
        assert_eq!(auth.authorization_modes, modes);
        assert_eq!(auth.anonymous, Anonymous::Accepted);
    }

    #[test]
    fn modes_that_do_not_fit_are_faults() {
        let file = "--authorization-webhook-config-file=w";
        check_fault(&[file], "needs Webhook among the modes of authorization-mode");
        let twice = "--authorization-mode=Webhook,AlwaysDeny,Webhook";
        check_fault(&[file, twice], "--authorization-mode: one of the modes is given twice");
        let line = ["--anonymous-auth", "--authorization-mode=Webhook,AlwaysAllow", file];
        check_fault(&line, "would let everybody do everything");
        check_refused(&["--authorization-webhook-version=v2"], "supported: v1, v1beta1");
        check_refused(&["--review-cache-outage-ttl=-1s"], "must not be negative");
    }

    #[test]
    fn lists_are_emptied_by_an_empty_value() {
        let config = config(&["--tls-cipher-suites=", "--vmodule="]);
        assert!(config.tls.cipher_suites.is_empty() && config.log.parts.is_empty());
    }

    #[test]
    fn every_part_is_named_in_the_help_text() {
        let command = <Line as clap::CommandFactory>::command();
        let vmodule = command.get_arguments().find(|arg| arg.get_long() == Some("vmodule"));
        let help = vmodule.and_then(clap::Arg::get_help).unwrap().to_string();
        assert!(help.contains(&PARTS.join(", ")), "{help}");
    }
}
