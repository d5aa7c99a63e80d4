//! `portico doctor`: walks the way of a request to an extension API server, hop by hop, and says
//! which hop fails, why, and what to change.
//!
//! `probe` gathers facts, `decide` makes findings of them without waiting for anything, `text` and
//! `json` tell them.

mod api;
mod certificate;
mod decide;
mod facts;
mod finding;
mod front;
mod json;
mod probe;
mod source;
mod text;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgAction, Args, ValueEnum, ValueHint};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;

use super::{log, target};
use crate::config;
use crate::model::api_service::available_cell;
use crate::model::endpoints::EndpointRouting;
use crate::tls;
use api::Api;
use certificate::Certificate;
use facts::Identity;
use finding::{Kind, Outcome, Report};
use probe::Prober;
use source::Source;

/// The exit status when a hop fails.
const FAILED: u8 = 1;
/// The exit status when nothing could be examined.
const NOT_EXAMINED: u8 = 2;
/// Names that are nearly the one that was looked for.
const SIMILAR_MAX: usize = 5;

/// `portico doctor`'s flags.
#[derive(Args, Clone, Debug)]
#[group(id = "doctor-source", required = true, multiple = true, args = ["kubeconfig", "server", "manifests"])]
pub(super) struct Flags {
    /// The APIServices to examine, each VERSION.GROUP; those that are not available, when
    /// none is named.
    #[arg(value_name = "APISERVICE")]
    names: Vec<String>,
    /// Examine all APIServices, also those that are available.
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Take APIServices, Services and endpoints from this directory, as portico run --manifests does;
    /// a server that is named too is then only read through.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    manifests: Option<PathBuf>,
    /// Client certificate that proves the aggregator's identity to extension API servers; without it
    /// the hops that need it are left out.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "proxy_client_key_file")]
    proxy_client_cert_file: Option<PathBuf>,
    /// Private key matching --proxy-client-cert-file.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "proxy_client_cert_file")]
    proxy_client_key_file: Option<PathBuf>,
    /// Whether requests go to endpoint addresses rather than cluster IPs.
    #[arg(long, num_args = 0..=1, default_value = "true", default_missing_value = "true", require_equals = true, action = ArgAction::Set, value_parser = config::boolean, value_name = "BOOL")]
    enable_aggregator_routing: bool,
    /// How long each hop may take.
    #[arg(long, default_value = "5s", value_parser = config::timeout, value_name = "DURATION")]
    timeout: Duration,
    /// What to print: lines for people, or one JSON object.
    #[arg(long, short, value_enum, default_value_t = Output::Text, value_name = "FORMAT")]
    output: Output,
    #[command(flatten)]
    target: target::Flags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Examines what the flags name.
pub(super) async fn run(flags: &Flags) -> ExitCode {
    log::init_errors();
    match examine(flags).await {
        Ok(Outcome::Failed) => ExitCode::from(FAILED),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            super::failed(&error);
            ExitCode::from(NOT_EXAMINED)
        }
    }
}

async fn examine(flags: &Flags) -> anyhow::Result<Outcome> {
    let target = if flags.target.is_given() { Some(flags.target.target().await?) } else { None };
    let api = target.as_ref().map(|target| Api::new(target, flags.timeout)).transpose()?;
    let files = flags.proxy_client_cert_file.as_ref().zip(flags.proxy_client_key_file.as_ref());
    let pair = files.map(|(cert, key)| tls::read_key_pair(cert, key)).transpose()?;
    let by_pair = match (&target, files) {
        (Some(target), Some((cert, key))) => {
            Some(Api::new(&target.with_pair(cert, key)?, flags.timeout)?)
        }
        _ => None,
    };
    let source = match (&flags.manifests, &api) {
        (Some(directory), _) => source::manifests(directory).await?,
        (None, Some(api)) => Source::Api(api),
        (None, None) => anyhow::bail!("--kubeconfig, --server or --manifests is needed"),
    };
    let trust = source::cluster_trust(api.as_ref(), pair.as_ref()).await;
    let identity = pair.as_ref().zip(files).map(|(pair, (cert, _))| Identity {
        file: cert.display().to_string(),
        chain: Certificate::read_all(&pair.chain),
    });
    let objects = source.api_services().await.context("APIServices cannot be read")?;
    let routing = if flags.enable_aggregator_routing {
        EndpointRouting::Endpoints
    } else {
        EndpointRouting::ClusterIp
    };
    let mut reports = Vec::new();
    if let Some(api) = &api {
        let facts = front::facts(api, by_pair.as_ref(), identity.clone(), trust.clone()).await;
        let findings = decide::front::decide(&facts);
        reports.push(Report { subject: api.url.clone(), kind: Kind::Server, findings });
    }
    let prober = Prober {
        source,
        api: api.as_ref(),
        pair,
        identity,
        trust,
        routing,
        timeout: flags.timeout,
    };
    let names = wanted(flags, &objects);
    for name in &names {
        let object = objects.iter().find(|one| one.metadata.name.as_ref() == Some(name)).cloned();
        let similar = if object.is_none() { similar(name, &objects) } else { Vec::new() };
        let facts = prober.facts(name, object, similar).await;
        let findings = decide::decide(&facts);
        reports.push(Report { subject: name.clone(), kind: Kind::ApiService, findings });
    }
    let rest = if flags.names.is_empty() { objects.len() - names.len() } else { 0 };
    let out = match flags.output {
        Output::Text => text::text(&reports, rest, colours()),
        Output::Json => json::text(&reports, rest)?,
    };
    super::print(out.as_bytes())?;
    Ok(reports.iter().map(Report::outcome).max().unwrap_or(Outcome::Well))
}

/// On a terminal, unless <https://no-color.org> is followed.
fn colours() -> bool {
    let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !forbidden && std::io::stdout().is_terminal()
}

/// The names to examine.
fn wanted(flags: &Flags, objects: &[APIService]) -> Vec<String> {
    if !flags.names.is_empty() {
        return flags.names.clone();
    }
    // Objects of a directory have no condition that says more.
    let all = flags.all || flags.manifests.is_some();
    let wanted = objects.iter().filter(|object| all || available_cell(object) != "True");
    wanted.filter_map(|object| object.metadata.name.clone()).collect()
}

/// Names of the same group, or of one that begins so, whether or not a version was named.
fn similar(name: &str, objects: &[APIService]) -> Vec<String> {
    let after_version = name.split_once('.').map_or(name, |(_, group)| group);
    let alike = objects.iter().filter_map(|object| {
        let group = object.spec.as_ref()?.group.as_deref()?;
        let begins = |wanted: &str| {
            group.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if begins(name) || begins(after_version) { object.metadata.name.clone() } else { None }
    });
    alike.take(SIMILAR_MAX).collect()
}
