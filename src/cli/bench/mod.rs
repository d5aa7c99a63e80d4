//! `portico bench`: what an aggregator costs its callers and its machine, with any server as target.
//!
//! A run of `portico bench discovery`: the scenario registers its fleet at every target, reads are
//! measured, the scenario plays its course and looks at what becomes visible when, and the fleet is
//! removed again, whatever happened before.

mod answers;
mod client;
mod discovery;
pub mod fleet;
mod json;
mod load;
mod pace;
mod process;
mod progress;
mod reads;
pub mod register;
mod report;
mod results;
pub mod scenario;
mod table;
mod tally;
mod target;
mod timeline;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use reads::Kind;
use tokio_util::sync::CancellationToken;

use super::Signals;
use crate::model::duration::{self, Signed};

/// `portico bench`'s commands.
#[derive(Args, Clone, Debug)]
#[command(arg_required_else_help = true)]
pub(super) struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Measure reads of discovery documents, and how soon changes are visible in them.
    ///
    /// Reads go over HTTP/2 if the server speaks it, else over HTTP/1.1, with the Accept headers of
    /// client-go. Every answer is checked; one that is wrong, cut or late is counted by its cause,
    /// never as a fast one. Ctrl-C ends early: what was registered is removed, and what was
    /// measured is printed; the exit status is 130 then.
    #[command(
        args_override_self = true,
        override_usage = "portico bench discovery <--kubeconfig FILE|--server URL> [OPTIONS]"
    )]
    Discovery(Box<Discovery>),
}

/// `portico bench discovery`'s flags.
#[derive(Args, Clone, Debug)]
struct Discovery {
    #[command(flatten)]
    target: target::Flags,
    #[command(flatten)]
    vs: target::VsFlags,
    #[command(flatten)]
    reads: ReadFlags,
    #[command(flatten)]
    scenario: scenario::Flags,
    #[command(flatten)]
    output: OutputFlags,
}

/// What is read, by how many, for how long.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Reads")]
struct ReadFlags {
    /// The kinds of reads, measured one after the other.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "aggregated,gzip,not-modified,legacy,walk",
        value_name = "KIND,..."
    )]
    reads: Vec<Kind>,
    /// Clients, each with a connection of its own and at most one read under way.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=CLIENTS_MAX), value_name = "CLIENTS")]
    clients: u32,
    /// Reads a second, of all clients together; without it each client reads again as soon as it
    /// has its answer. A read that has to wait for a free client was due earlier, and its latency
    /// counts from then; reads still not sent at the end are counted as unsent.
    #[arg(long, value_parser = rate, value_name = "READS")]
    rate: Option<f64>,
    /// How long each kind of read is measured, at each target in each round.
    #[arg(long, default_value = "5s", value_parser = span, value_name = "DURATION")]
    duration: Duration,
    /// How long it is read before that, without being measured.
    #[arg(long, default_value = "500ms", value_parser = span_or_none, value_name = "DURATION")]
    warm_up: Duration,
    /// How often all that is repeated; two targets take turns, in alternating order. 3 with --vs,
    /// else 1, when not given.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=ROUNDS_MAX), value_name = "ROUNDS")]
    rounds: Option<u32>,
    /// After this long a read counts as failed.
    #[arg(long, default_value = "30s", value_parser = span, value_name = "DURATION")]
    read_timeout: Duration,
}

/// Clients that one run can have.
const CLIENTS_MAX: i64 = 10_000;
/// Rounds with two targets, when not given.
const ROUNDS_WITH_VS: u32 = 3;
/// Rounds that one run can have.
const ROUNDS_MAX: i64 = 1000;
/// Reads a second that can be asked for.
const RATE_MAX: f64 = 1e6;

/// What is printed and written.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
struct OutputFlags {
    /// What to print: a table, or one JSON object.
    #[arg(long, short, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    output: Output,
    /// Write a report with plots into this HTML file, which needs no other file.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    report: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// A duration as Go writes it, longer than nothing.
fn span(text: &str) -> Result<Duration, String> {
    match span_or_none(text)? {
        Duration::ZERO => Err("must be greater than 0".to_owned()),
        span => Ok(span),
    }
}

/// A duration as Go writes it.
fn span_or_none(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(Signed::Positive(span)) => Ok(span),
        Ok(Signed::Negative(_)) => Err("must not be negative".to_owned()),
        Err(_) => Err(format!("invalid duration \"{text}\", expected for instance 5s or 500ms")),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= RATE_MAX => Ok(rate),
        _ => Err(format!("expected reads a second, more than 0 and at most {RATE_MAX}")),
    }
}

/// Runs the benchmark that the flags name; 130 after a signal that ended it early.
pub(super) async fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    let Command::Discovery(flags) = &flags.command;
    let mut signals = Signals::new()?;
    let stop = CancellationToken::new();
    let running = discovery(flags, &stop);
    tokio::pin!(running);
    tokio::select! {
        outcome = &mut running => return outcome,
        () = signals.next() => stop.cancel(),
    }
    tokio::select! {
        outcome = running => outcome,
        () = signals.next_after_the_first() => {
            anyhow::bail!("ended at once by a second signal: what was registered may still be there")
        }
    }
}

async fn discovery(flags: &Discovery, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    if flags.scenario.clean_up() {
        super::print(discovery::clean_up(flags).await?.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = flags.output.report.as_deref().map(report::ReportFile::begin).transpose()?;
    let results = discovery::run(flags, stop).await?;
    let anything = discovery::anything(&results);
    if anything.is_ok() {
        let text = match flags.output.output {
            Output::Table => table::text(&results),
            Output::Json => json::text(&results)?,
        };
        super::print(text.as_bytes())?;
        if let Some(file) = file {
            file.finish(&report::page(&results))?;
        }
    }
    match anything {
        Ok(()) if results.interrupted => Ok(ExitCode::from(INTERRUPTED)),
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if results.interrupted => {
            super::failed(&error);
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error),
    }
}

/// The exit status after a signal, as shells give it for SIGINT.
const INTERRUPTED: u8 = 130;
