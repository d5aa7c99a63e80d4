//! kube-apiserver's flags, and what they mean for each part.
//!
//! Names, meanings and defaults are upstream's; what is wrong is reported all at once.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use crate::auth::{self, Anonymous, AuthorizationMode, RequestHeaderConfig};
use crate::frontend;
use crate::model::endpoints::EndpointRouting;
use crate::proxy;

/// `portico run`'s flags.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// The IP address on which to listen for the --secure-port port.
    #[arg(long, default_value = "0.0.0.0", help_heading = "Secure serving")]
    pub bind_address: IpAddr,
    /// The port on which to serve HTTPS; 0 takes a free one and says which.
    #[arg(long, default_value_t = 6443, help_heading = "Secure serving")]
    pub secure_port: u16,
    /// The directory where the TLS certs are located, and where a missing one is made.
    #[arg(
        long,
        default_value = "apiserver.local.config/certificates",
        help_heading = "Secure serving"
    )]
    pub cert_dir: PathBuf,
    /// File with the x509 certificate for HTTPS, intermediates after it.
    #[arg(long, help_heading = "Secure serving")]
    pub tls_cert_file: Option<PathBuf>,
    /// File with the x509 private key matching --tls-cert-file.
    #[arg(long, help_heading = "Secure serving")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Threads that serve clients; the number of cores when not given.
    #[arg(long, help_heading = "Secure serving")]
    pub data_plane_threads: Option<usize>,

    /// Requests with a client certificate signed by one of these authorities are authenticated with
    /// its common name.
    #[arg(long, help_heading = "Authentication")]
    pub client_ca_file: Option<PathBuf>,
    /// Authorities of front proxies: whom they vouch for is believed about the user name headers.
    #[arg(long, help_heading = "Authentication")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of front proxies; empty for any that the authorities vouch for.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, help_heading = "Authentication")]
    pub requestheader_allowed_names: Vec<String>,
    /// Request headers to inspect for usernames.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, default_value = "x-remote-user", help_heading = "Authentication")]
    pub requestheader_username_headers: Vec<String>,
    /// Request headers to inspect for groups.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, default_value = "x-remote-group", help_heading = "Authentication")]
    pub requestheader_group_headers: Vec<String>,
    /// Request headers to inspect for the uid.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, help_heading = "Authentication")]
    pub requestheader_uid_headers: Vec<String>,
    /// Request header prefixes to inspect for extra keys.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, default_value = "x-remote-extra-", help_heading = "Authentication")]
    pub requestheader_extra_headers_prefix: Vec<String>,
    /// CSV file with static tokens: token,user,uid,"group1,group2".
    #[arg(long, help_heading = "Authentication")]
    pub token_auth_file: Option<PathBuf>,
    /// Whether callers without credentials are the anonymous user. Unset, they reach the
    /// always-allow paths only; false refuses them everywhere.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = parse_bool, value_name = "BOOL", help_heading = "Authentication")]
    pub anonymous_auth: Option<bool>,

    /// How requests are authorized; the default is the one there is.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, default_value = "AlwaysAllow", help_heading = "Authorization")]
    pub authorization_mode: Vec<String>,
    /// Paths that are allowed without asking the authorizer; a trailing * makes a prefix.
    #[arg(long, value_delimiter = ',', action = ArgAction::Append, default_values = ["/healthz", "/readyz", "/livez"], help_heading = "Authorization")]
    pub authorization_always_allow_paths: Vec<String>,

    /// Client certificate that proves portico's identity to extension API servers.
    #[arg(long, help_heading = "Aggregation")]
    pub proxy_client_cert_file: Option<PathBuf>,
    /// Private key matching --proxy-client-cert-file.
    #[arg(long, help_heading = "Aggregation")]
    pub proxy_client_key_file: Option<PathBuf>,
    /// Whether requests go to endpoint addresses rather than cluster IPs.
    #[arg(long, num_args = 0..=1, default_value = "true", default_missing_value = "true", require_equals = true, action = ArgAction::Set, value_parser = parse_bool, value_name = "BOOL", help_heading = "Aggregation")]
    pub enable_aggregator_routing: bool,
    /// Directory of APIService, Service, EndpointSlice and Endpoints objects as YAML or JSON files,
    /// followed as they change.
    #[arg(long, value_name = "DIR", help_heading = "Aggregation")]
    pub manifests: Option<PathBuf>,

    /// How long a request may take that is not long-running, such as 60s or 1m30s.
    #[arg(long, default_value = "1m0s", value_parser = parse_duration, value_name = "DURATION", help_heading = "Generic")]
    pub request_timeout: Duration,
    /// Log level verbosity: 0 says what matters, 4 every step.
    #[arg(short, long = "v", default_value_t = 0, value_name = "LEVEL", help_heading = "Generic")]
    pub v: u8,
}

/// All that a running portico needs to know, parsed and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The listener.
    pub frontend: frontend::Config,
    /// Who is believed and who may do what.
    pub auth: auth::Config,
    /// How long requests may take.
    pub proxy: proxy::Config,
    /// The serving pair, when given.
    pub serving_pair: Option<(PathBuf, PathBuf)>,
    /// Where the serving pair is made when none is given.
    pub cert_dir: PathBuf,
    /// The proxy-client pair, when given.
    pub proxy_client_pair: Option<(PathBuf, PathBuf)>,
    /// Endpoints or cluster IPs.
    pub routing: EndpointRouting,
    /// The objects' directory.
    pub manifests: Option<PathBuf>,
    /// The file that says where spans go (`--tracing-config-file`); only with the feature `otlp`.
    pub tracing_config_file: Option<PathBuf>,
}

impl Flags {
    /// Checks the flags; every fault is named, each in a line of its own.
    pub fn config(&self) -> Result<Config, Vec<String>> {
        let mut faults = Vec::new();
        let serving_pair = pair(
            ("tls-cert-file", &self.tls_cert_file),
            ("tls-private-key-file", &self.tls_private_key_file),
            &mut faults,
        );
        let proxy_client_pair = pair(
            ("proxy-client-cert-file", &self.proxy_client_cert_file),
            ("proxy-client-key-file", &self.proxy_client_key_file),
            &mut faults,
        );
        if self.request_timeout.is_zero() {
            faults.push("--request-timeout must be greater than 0".to_owned());
        }
        let config = Config {
            frontend: frontend::Config {
                bind: SocketAddr::new(self.bind_address, self.secure_port),
                threads: self.threads(&mut faults),
                limits: frontend::Limits::default(),
            },
            auth: self.auth(&mut faults),
            proxy: proxy::Config {
                request_timeout: self.request_timeout,
                ..proxy::Config::default()
            },
            serving_pair,
            cert_dir: self.cert_dir.clone(),
            proxy_client_pair,
            routing: if self.enable_aggregator_routing {
                EndpointRouting::Endpoints
            } else {
                EndpointRouting::ClusterIp
            },
            manifests: self.manifests.clone(),
            tracing_config_file: None,
        };
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }

    fn threads(&self, faults: &mut Vec<String>) -> usize {
        match self.data_plane_threads {
            Some(0) => {
                faults.push("--data-plane-threads must be at least 1".to_owned());
                1
            }
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    fn auth(&self, faults: &mut Vec<String>) -> auth::Config {
        for (flag, values) in [
            ("requestheader-allowed-names", &self.requestheader_allowed_names),
            ("requestheader-username-headers", &self.requestheader_username_headers),
            ("requestheader-group-headers", &self.requestheader_group_headers),
            ("requestheader-uid-headers", &self.requestheader_uid_headers),
            ("requestheader-extra-headers-prefix", &self.requestheader_extra_headers_prefix),
        ] {
            if values.len() > 1 && values.iter().any(|value| value.trim().is_empty()) {
                faults.push(format!("empty value in \"--{flag}\""));
            }
        }
        for mode in self.authorization_mode.iter().filter(|mode| *mode != "AlwaysAllow") {
            faults.push(format!(
                "--authorization-mode \"{mode}\" is not supported; supported: AlwaysAllow"
            ));
        }
        let anonymous = match self.anonymous_auth {
            None => Anonymous::AlwaysAllowPaths,
            Some(false) => Anonymous::Refused,
            Some(true) => {
                faults.push(
                    "--anonymous-auth=true together with --authorization-mode=AlwaysAllow would \
                     let everybody do everything"
                        .to_owned(),
                );
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
            authorization_mode: AuthorizationMode::AlwaysAllow,
            always_allow_paths: list(&self.authorization_always_allow_paths),
        }
    }
}

fn pair(
    (certificate_flag, certificate): (&str, &Option<PathBuf>),
    (key_flag, key): (&str, &Option<PathBuf>),
    faults: &mut Vec<String>,
) -> Option<(PathBuf, PathBuf)> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
        (None, None) => None,
        (Some(_), None) => {
            faults.push(format!("--{certificate_flag} needs --{key_flag} beside it"));
            None
        }
        (None, Some(_)) => {
            faults.push(format!("--{key_flag} needs --{certificate_flag} beside it"));
            None
        }
    }
}

/// A list as pflag reads it: `--flag=` is the empty one.
fn list(values: &[String]) -> Vec<String> {
    if values == [""] { Vec::new() } else { values.to_vec() }
}

/// Go's `strconv.ParseBool`.
fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// Go's `time.ParseDuration`, without signs: `60s`, `1m0s`, `1.5h`, `500ms`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("invalid duration \"{text}\", expected for instance 60s or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().ok().ok_or_else(wrong)?;
        let part = Duration::try_from_secs_f64(number * seconds).ok();
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = tail;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    #[command(args_override_self = true)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn flags(line: &[&str]) -> Flags {
        Line::try_parse_from([&["portico"], line].concat()).unwrap().flags
    }

    #[track_caller]
    fn check_fault(line: &[&str], expected: &str) {
        let faults = flags(line).config().unwrap_err();
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{faults:?}");
    }

    #[test]
    fn a_flag_given_twice_takes_its_last_value_and_booleans_go_with_and_without_value() {
        assert_eq!(flags(&["--secure-port=1", "--secure-port", "2"]).secure_port, 2);
        assert!(flags(&["--enable-aggregator-routing"]).enable_aggregator_routing);
        assert!(!flags(&["--enable-aggregator-routing=false"]).enable_aggregator_routing);
        assert_eq!(flags(&["--anonymous-auth=0"]).anonymous_auth, Some(false));
        assert_eq!(flags(&["-v", "4"]).v, 4);
        assert_eq!(flags(&["-v=3"]).v, 3);
        let names = flags(&["--requestheader-allowed-names=a,b"]).requestheader_allowed_names;
        assert_eq!(names, ["a", "b"]);
        let config = flags(&["--authorization-always-allow-paths="]).config().unwrap();
        assert!(config.auth.always_allow_paths.is_empty());
    }

    #[test]
    fn all_faults_are_named_at_once() {
        let line = ["--tls-cert-file=x", "--anonymous-auth", "--authorization-mode=RBAC"];
        check_fault(&line, "--tls-cert-file needs --tls-private-key-file");
        check_fault(&line, "would let everybody do everything");
        check_fault(&line, "\"RBAC\" is not supported");
        check_fault(&["--requestheader-uid-headers=a,"], "empty value in");
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert!(parse_duration("60").is_err() && parse_duration("").is_err());
        assert!(parse_duration("1e400h").is_err() && parse_duration("s").is_err());
    }
}
