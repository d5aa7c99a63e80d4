//! The command line.

pub mod demo;
mod log;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{self, Running, Tuning};
use crate::config::Flags;

/// An aggregation layer for Kubernetes APIs.
#[derive(Debug, Parser)]
#[command(name = "portico", version, args_override_self = true, arg_required_else_help = true)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the APIs that the manifests register.
    #[command(args_override_self = true)]
    Run(Box<Flags>),
    /// Serve two toy extension API servers, with a tour to paste; needs no configuration.
    #[command(args_override_self = true)]
    Demo(demo::Flags),
}

/// Runs the program; the exit status is 0 after an ending that was asked for.
pub fn main() -> ExitCode {
    let line = Line::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::from(error)),
    };
    let outcome = runtime.block_on(async {
        match line.command {
            Command::Run(flags) => run(&flags).await,
            Command::Demo(flags) => demo::run(&flags).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    // Nothing can be said when standard error is gone.
    drop(writeln!(std::io::stderr(), "Error: {error:#}"));
    ExitCode::FAILURE
}

async fn run(flags: &Flags) -> anyhow::Result<()> {
    let config = flags.config().map_err(|faults| {
        let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", lines.join("\nError: "))
    })?;
    log::init(&config.log, Vec::new());
    let mut signals = Signals::new()?;
    let running = app::start(&config, Tuning::default())?;
    tracing::info!(address = %running.address, "serving");
    signals.wait_and_stop(running).await;
    Ok(())
}

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

    /// The first signal begins the ending, a second one ends at once.
    async fn wait_and_stop(&mut self, running: Running) {
        self.next().await;
        tracing::info!("shutting down");
        tokio::select! {
            () = running.stop() => {}
            () = self.next() => tracing::warn!("second signal, ending at once"),
        }
    }
}
