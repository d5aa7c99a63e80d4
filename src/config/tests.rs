//! What flags and files say, and what is wrong with them.

use std::time::Duration;

use clap::Parser;

use super::*;
use crate::model::review::ReviewVersion;
use crate::proxy::AccessLogFormat;
use crate::runtime::lifecycle::Graces;
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
    check_refused(&["--shutdown-delay-duration=-1s"], "must not be negative");
    check_refused(&["--shutdown-watch-termination-grace-period=-1s"], "must not be negative");
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
    assert_eq!(config.graces, Graces::default());
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
        "--shutdown-delay-duration=1m",
        "--shutdown-watch-termination-grace-period=90s",
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
    let graces = Graces { delay: Duration::from_secs(60), watches: Duration::from_secs(90) };
    assert_eq!(config.graces, graces);
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
    // In front of a kube-apiserver it decides.
    let in_front = config(&["--anonymous-auth", "--kubeconfig=k"]).auth;
    assert_eq!(in_front.anonymous, Anonymous::Accepted);
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
