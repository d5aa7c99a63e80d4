//! kube-apiserver's flags, the file with the same settings, and what they mean for each part.
//!
//! `flags` is the one definition of every setting; `values` says how single values are written,
//! `file` reads them from a file, `settings` puts both together. The rules that look at several
//! settings are here; what is wrong is reported all at once.

mod file;
mod flags;
mod settings;
mod token_flags;
mod values;
mod yaml;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use flags::{Flags, LogFlags, RunFlags};
pub use settings::{Effective, Origin, Settings};
pub use token_flags::{RequiredClaim, TokenFlags};
pub use values::{LOG_LEVEL_MAX, PARTS, PartLevel, boolean, timeout};

use crate::auth::{self, Anonymous, AuthorizationMode, FrontProxies};
use crate::model::endpoints::EndpointRouting;
use crate::proxy::{AccessLogConfig, CoreConfig, RemoteRoute, UpstreamIdentity};
use crate::runtime::lifecycle::Graces;
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
    /// How much time the ending gives to others.
    pub graces: Graces,
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
            graces: Graces {
                delay: self.shutdown_delay_duration,
                watches: self.shutdown_watch_termination_grace_period,
            },
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
                    text: format!("true {}", auth::OPEN_TO_EVERYBODY),
                });
                Anonymous::Refused
            }
        };
        auth::Config {
            client_ca_file: self.client_ca_file.clone(),
            requestheader_client_ca_file: self.requestheader_client_ca_file.clone(),
            request_header: FrontProxies {
                allowed_names: list(&self.requestheader_allowed_names),
                username_headers: list(&self.requestheader_username_headers),
                uid_headers: list(&self.requestheader_uid_headers),
                group_headers: list(&self.requestheader_group_headers),
                extra_prefixes: list(&self.requestheader_extra_headers_prefix),
            },
            token_file: self.token_auth_file.clone(),
            jwt: self.tokens.jwt(faults),
            service_accounts: self
                .tokens
                .service_accounts((self.in_front(), list(&self.api_audiences)), faults),
            anonymous,
            authorization_modes: self.authorization_mode.clone(),
            reviews: self.reviews(faults),
            always_allow_paths: list(&self.authorization_always_allow_paths),
        }
    }
}

impl Flags {
    /// True in front of a kube-apiserver.
    fn in_front(&self) -> bool {
        self.kubeconfig.is_some() || self.in_cluster
    }

    /// True when everybody who is known may do everything.
    fn always_allows(&self) -> bool {
        AuthorizationMode::in_force(&self.authorization_mode, self.in_front())
            .contains(&AuthorizationMode::AlwaysAllow)
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
mod tests;
