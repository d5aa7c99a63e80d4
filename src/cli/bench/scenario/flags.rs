//! The flags of a scenario, and the plan that they make.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueHint};
use http::StatusCode;

use super::Plan;
use crate::cli::bench::fleet::{Behaviour, FLAP_PERIOD_MIN, Fault, Latency, Size, Spec, span};
use crate::tls;

/// Servers that one run can have.
const SERVERS_MAX: i64 = 10_000;
const VERSIONS_MAX: i64 = 100;
const RESOURCES_MAX: i64 = 1000;
/// What a failing server answers when no code is given.
const ERROR_CODE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
/// The shortest time between two changes.
const CHANGE_EVERY_MIN: Duration = Duration::from_millis(10);
const FLAP_PERIOD: Duration = Duration::from_secs(10);
/// The part of a flapping server's period that it is down.
const FLAP_DOWN: f64 = 0.5;

/// The flags of the scenario: a fleet of simulated servers, and what happens to it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Scenario")]
pub(in crate::cli::bench) struct Flags {
    /// Simulate this many extension API servers, each with a group of its own, register them with
    /// the target and remove them at the end.
    #[arg(long, value_name = "SERVERS", value_parser = clap::value_parser!(u32).range(1..=SERVERS_MAX))]
    servers: Option<u32>,
    /// The versions of each server's group.
    #[arg(long, default_value_t = 3, value_name = "VERSIONS", value_parser = clap::value_parser!(u32).range(1..=VERSIONS_MAX))]
    versions: u32,
    /// The resources of each version.
    #[arg(long, default_value_t = 20, value_name = "RESOURCES", value_parser = clap::value_parser!(u32).range(1..=RESOURCES_MAX))]
    resources: u32,
    /// How long each answer of a server takes: 100ms, or a range as uniform:50ms-150ms, or
    /// lognormal:100ms,400ms by its median and 99th percentile.
    #[arg(long, default_value = "0s", value_name = "LATENCY")]
    latency: Latency,
    /// This many of the servers accept connections and never answer.
    #[arg(long, default_value_t = 0, value_name = "SERVERS", requires = "servers")]
    hang: u32,
    /// This many fail every request, with 503 or the given code.
    #[arg(long, value_name = "SERVERS[:CODE]", value_parser = failing, requires = "servers")]
    error: Option<(u32, StatusCode)>,
    /// The ports of this many are closed.
    #[arg(long, default_value_t = 0, value_name = "SERVERS", requires = "servers")]
    refuse: u32,
    /// This many come and go: their ports are closed for half of each period (10s), or for the
    /// given part of it, as in 5:2s:25%.
    #[arg(long, value_name = "SERVERS[:PERIOD[:DOWN]]", value_parser = flapping, requires = "servers")]
    flap: Option<Flapping>,
    /// The faults begin this long after the first complete document; from the start when not given.
    #[arg(long, value_name = "DURATION", value_parser = span, requires = "servers")]
    fault_after: Option<Duration>,
    /// One server changes a resource this often, from the first complete document to the end, each
    /// one in its turn; targets that ask their servers once a minute need a --course as long.
    #[arg(long, value_name = "DURATION", value_parser = interval, requires = "servers")]
    change_every: Option<Duration>,
    /// How long the fleet is watched after the reads, while one more server is registered and
    /// removed again.
    #[arg(long, default_value = "10s", value_name = "DURATION", value_parser = span)]
    course: Duration,
    /// How long the first complete document is awaited at most.
    #[arg(long, default_value = "60s", value_name = "DURATION", value_parser = span)]
    complete_within: Duration,
    /// Register by a file in this directory, which the target follows with its own --manifests; by
    /// the target's API when not given.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    manifests: Option<PathBuf>,
    /// The same for the second target.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, requires = "vs")]
    vs_manifests: Option<PathBuf>,
    /// The namespace of the servers' Services; made, and removed again, when there is none.
    #[arg(long, default_value = "default", value_name = "NAMESPACE")]
    fleet_namespace: String,
    /// A file with the authority of the certificate that the target shows to its backends; without
    /// it a certificate is asked for and not judged.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    proxy_client_ca: Option<PathBuf>,
    /// Remove what killed runs have left at the target, and end.
    #[arg(long, conflicts_with = "servers")]
    clean_up: bool,
}

/// Servers that come and go.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Flapping {
    servers: u32,
    period: Duration,
    down: f64,
}

impl Flags {
    /// Whether only the leftovers of killed runs are to be removed.
    pub(in crate::cli::bench) fn clean_up(&self) -> bool {
        self.clean_up
    }

    /// The directory of manifests of the first or the second target; none: register by API.
    pub(in crate::cli::bench) fn manifests(&self, second: bool) -> Option<PathBuf> {
        if second { self.vs_manifests.clone() } else { self.manifests.clone() }
    }

    /// What is to be done, if there are to be servers.
    pub(in crate::cli::bench) fn plan(&self) -> anyhow::Result<Option<Plan>> {
        let Some(servers) = self.servers else { return Ok(None) };
        if let (Some(first), Some(second)) = (&self.manifests, &self.vs_manifests) {
            let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
            if real(first) == real(second) {
                bail!(
                    "--manifests and --vs-manifests must be two directories, one for each target"
                );
            }
        }
        let well = Behaviour::well(self.latency);
        let faults = self.faults(servers)?.into_iter();
        let mut behaviours: Vec<Behaviour> = faults.map(|fault| well.with(fault)).collect();
        behaviours.resize(usize::try_from(servers)?, well);
        let callers = self.proxy_client_ca.as_deref().map(tls::read_certificates).transpose()?;
        Ok(Some(Plan {
            fleet: Spec {
                servers: behaviours,
                size: Size { versions: self.versions, resources: self.resources },
                namespace: self.fleet_namespace.clone(),
                proxy_client_ca: callers,
            },
            fault_after: self.fault_after,
            change_every: self.change_every,
            course: self.course,
            complete_within: self.complete_within,
        }))
    }
}

impl Flags {
    /// One fault a faulty server; the others are well.
    fn faults(&self, servers: u32) -> anyhow::Result<Vec<Fault>> {
        let mut faults = Vec::new();
        let mut some = |count: u32, fault: Fault| -> anyhow::Result<()> {
            faults.resize(faults.len() + usize::try_from(count)?, fault);
            Ok(())
        };
        some(self.hang, Fault::Hang)?;
        if let Some((count, code)) = self.error {
            some(count, Fault::Status(code))?;
        }
        some(self.refuse, Fault::Refuse)?;
        if let Some(Flapping { servers, period, down }) = self.flap {
            some(servers, Fault::Flap { period, down })?;
        }
        if faults.len() > usize::try_from(servers)? {
            bail!("{} faulty servers are more than --servers {servers}", faults.len());
        }
        if self.change_every.is_some() && faults.len() == usize::try_from(servers)? {
            bail!("--change-every needs a server without a fault");
        }
        Ok(faults)
    }
}

/// `N` or `N:CODE`.
fn failing(text: &str) -> Result<(u32, StatusCode), String> {
    let (servers, code) = match text.split_once(':') {
        None => (text, ERROR_CODE),
        Some((servers, code)) => {
            let code: Option<StatusCode> = code.parse().ok();
            let failure = |code: &StatusCode| code.is_client_error() || code.is_server_error();
            (servers, code.filter(failure).ok_or("the code must be between 400 and 599")?)
        }
    };
    Ok((count(servers)?, code))
}

/// `N`, `N:PERIOD` or `N:PERIOD:DOWN%`.
fn flapping(text: &str) -> Result<Flapping, String> {
    let mut parts = text.splitn(3, ':');
    let servers = count(parts.next().unwrap_or_default())?;
    let period = parts.next().map_or(Ok(FLAP_PERIOD), span)?;
    if period < FLAP_PERIOD_MIN {
        return Err(format!("the period must be at least {FLAP_PERIOD_MIN:?}"));
    }
    let down = match parts.next() {
        None => FLAP_DOWN,
        Some(share) => {
            let percent = share.strip_suffix('%').and_then(|share| share.parse::<f64>().ok());
            let within = |percent: &f64| *percent > 0.0 && *percent < 100.0;
            percent.filter(within).ok_or("the part must be between 0% and 100%")? / 100.0
        }
    };
    Ok(Flapping { servers, period, down })
}

fn count(text: &str) -> Result<u32, String> {
    text.parse().map_err(|error| format!("{text:?} is no number of servers: {error}"))
}

/// A time between two changes, which cannot be none.
fn interval(text: &str) -> Result<Duration, String> {
    let interval = span(text)?;
    if interval < CHANGE_EVERY_MIN {
        return Err(format!("must be at least {CHANGE_EVERY_MIN:?}"));
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        scenario: Flags,
        #[arg(long)]
        vs: Option<String>,
    }

    fn plan(flags: &str) -> Result<Option<Plan>, String> {
        let line = Line::try_parse_from(std::iter::once("bench").chain(flags.split_whitespace()))
            .map_err(|error| error.to_string())?;
        line.scenario.plan().map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn faulty_servers_come_first_and_the_rest_is_well() {
        let flags = "--servers 7 --latency uniform:5ms-9ms --hang 1 --error 1 --refuse 1 \
                     --flap 2:2s:25% --change-every 1s";
        let plan = plan(flags).unwrap().unwrap();
        let faults: Vec<Fault> = plan.fleet.servers.iter().map(|server| server.fault).collect();
        let flap = Fault::Flap { period: Duration::from_secs(2), down: 0.25 };
        let failing = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);
        let expected = [Fault::Hang, failing, Fault::Refuse, flap, flap, Fault::None, Fault::None];
        assert_eq!(faults, expected);
        let latency: Latency = "uniform:5ms-9ms".parse().unwrap();
        assert!(plan.fleet.servers.iter().all(|server| server.latency == latency));
        assert_eq!(plan.fleet.size, Size { versions: 3, resources: 20 });
        assert_eq!(plan.change_every, Some(Duration::from_secs(1)));
    }

    #[test]
    fn without_servers_there_is_no_scenario() {
        assert!(plan("--latency 5ms").unwrap().is_none());
    }

    #[track_caller]
    fn check_refused(flags: &str, why: &str) {
        let error = plan(flags).err().unwrap_or_default();
        assert!(error.contains(why), "{flags}: {error}");
    }

    #[test]
    fn a_flag_that_makes_no_sense_is_refused_with_the_reason() {
        check_refused("--servers 0", "0 is not in 1..=10000");
        check_refused("--servers 2 --hang 3", "3 faulty servers are more than --servers 2");
        check_refused("--servers 2 --hang 2 --change-every 1s", "a server without a fault");
        check_refused("--hang 1", "--servers");
        check_refused("--servers 2 --error 1:200", "between 400 and 599");
        check_refused("--servers 2 --error x", "\"x\" is no number of servers");
        check_refused("--servers 2 --flap 1:50ms", "at least 100ms");
        check_refused("--servers 2 --flap 1:5s:100%", "between 0% and 100%");
        check_refused("--servers 2 --flap 1:5s:0.5", "between 0% and 100%");
        check_refused("--servers 2 --latency 5", "missing unit");
        check_refused("--servers 2 --change-every 0s", "at least 10ms");
        check_refused("--servers 2 --clean-up", "--clean-up");
        check_refused("--servers 2 --vs-manifests /tmp", "--vs");
        check_refused("--servers 2 --proxy-client-ca /nowhere/ca.crt", "/nowhere/ca.crt");
    }
}
