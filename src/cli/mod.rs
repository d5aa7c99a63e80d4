//! The command line.

pub mod bench;
pub mod demo;
mod doctor;
mod log;
pub mod pages;
pub mod reference;
mod target;

use std::error::Error;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use futures_util::FutureExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{self, Running, Tuning};
use crate::config::{Effective, Origin, RunFlags, Settings};

/// An aggregation layer for Kubernetes APIs.
#[derive(Debug, Parser)]
#[command(name = "portico", version, args_override_self = true, arg_required_else_help = true)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the APIs that manifests or a cluster register.
    #[command(args_override_self = true)]
    Run(Box<RunFlags>),
    /// Serve two toy extension API servers, with a tour to paste; needs no configuration.
    #[command(args_override_self = true)]
    Demo(demo::Flags),
    /// Measure an aggregator: portico, kube-apiserver, any server of the same APIs.
    Bench(bench::Flags),
    /// Walk the way to an extension API server hop by hop: which hop fails, why, what to change.
    ///
    /// Runs where portico or kube-apiserver runs, since that is from where backends must be reached.
    /// The exit status is 0 when nothing fails, 1 when a hop fails, and 2 when the flags are wrong or
    /// the objects cannot be read.
    #[command(
        args_override_self = true,
        override_usage = "portico doctor <--kubeconfig FILE|--server URL|--manifests DIR> [OPTIONS] [APISERVICE]..."
    )]
    Doctor(Box<doctor::Flags>),
    /// Print the script that completes portico's commands and flags in a shell.
    ///
    /// For bash: `source <(portico completion bash)`, or its output in a file
    /// `/etc/bash_completion.d/portico`.
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Print a manual page.
    ///
    /// `portico man run | man -l -` shows that of `portico run`, and `portico man bench-discovery`
    /// prints that of `portico bench discovery`.
    Man {
        /// The command whose page it is; portico itself when not given.
        #[arg(conflicts_with = "dir")]
        command: Option<String>,
        /// Write the pages of all commands into this directory instead, as portico.1,
        /// portico-run.1 and so on.
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: Option<PathBuf>,
    },
}

/// Runs the program; the exit status is 0 after an ending that was asked for.
pub fn main() -> ExitCode {
    let matches = Line::command().get_matches();
    let line = match Line::from_arg_matches(&matches) {
        Ok(line) => line,
        Err(error) => error.exit(),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::from(error)),
    };
    let outcome = runtime.block_on(async {
        match line.command {
            Command::Run(flags) => run(&flags, &matches).await,
            Command::Demo(flags) => demo::run(&flags).await,
            Command::Bench(flags) => return bench::run(&flags).await,
            Command::Doctor(flags) => return Ok(doctor::run(&flags).await),
            Command::Completion { shell } => print(&reference::completion(shell)),
            Command::Man { command, dir: None } => {
                print(&reference::manual_page(command.as_deref())?)
            }
            Command::Man { dir: Some(directory), .. } => reference::write_manual(&directory),
        }
        .map(|()| ExitCode::SUCCESS)
    });
    match outcome {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    // Nothing can be said when standard error is gone.
    drop(writeln!(std::io::stderr(), "Error: {error:#}"));
    ExitCode::FAILURE
}

/// The innermost cause: the libraries' layers say less than what is beneath them.
fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    anyhow::Chain::new(error).last().unwrap_or(error)
}

/// Prints to standard output; that nobody reads it to its end is no failure.
fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

async fn run(flags: &RunFlags, line: &ArgMatches) -> anyhow::Result<()> {
    let line = line.subcommand_matches("run").context("no flags of portico run")?;
    let Settings { config, effective } = Settings::load(line, flags.config.as_deref())
        .map_err(|faults| anyhow::anyhow!("{}", faults.join("\nError: ")))?;
    log::init(&config.log);
    for Effective { name, value, origin } in effective {
        if origin == Origin::Default {
            tracing::debug!(name, value, from = %origin, "setting");
        } else {
            tracing::info!(name, value, from = %origin, "setting");
        }
    }
    let mut signals = Signals::new()?;
    let running = app::start(&config, Tuning::default())?;
    tracing::info!(address = %running.address, "serving");
    signals.wait_and_stop(running).await;
    Ok(())
}

/// Signals that come so soon after the first one are that one.
const SAME_SIGNAL_MAX: Duration = Duration::from_millis(100);

/// The signals that end the program.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// A second signal, when the first has just come.
    async fn next_after_the_first(&mut self) {
        // Some send one signal twice, to the process and to its group.
        tokio::time::sleep(SAME_SIGNAL_MAX).await;
        while self.next().now_or_never().is_some() {}
        self.next().await;
    }

    /// The first signal begins the ending, a second one ends at once.
    async fn wait_and_stop(&mut self, running: Running) {
        self.next().await;
        tracing::info!("shutting down");
        tokio::select! {
            () = running.stop() => {}
            () = self.next_after_the_first() => tracing::warn!("second signal, ending at once"),
        }
    }
}
