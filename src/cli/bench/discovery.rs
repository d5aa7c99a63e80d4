//! `portico bench discovery` from its targets to its results.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::answers::{Answers, Document, JSON};
use super::client::{Ask, Caller, Connection};
use super::load::{Plan, Subject, measure};
use super::process::Process;
use super::progress::Progress;
use super::reads::Kind;
use super::results::{About, Reads, Results, TargetResults};
use super::target::Target;
use super::{Discovery, ROUNDS_WITH_VS, ReadFlags};

/// A target that has answered.
struct Reached {
    target: Target,
    subject: Subject,
    results: TargetResults,
}

/// Runs it. An error means that there is nothing to show; what was registered is removed anyway.
pub(super) async fn run(flags: &Discovery, stop: &CancellationToken) -> anyhow::Result<Results> {
    let first = flags.target.target().await?;
    let second = flags.vs.target(&first).await?;
    let rounds = flags.reads.rounds.unwrap_or(if second.is_some() { ROUNDS_WITH_VS } else { 1 });
    let targets: Vec<Target> = [Some(first), second].into_iter().flatten().collect();
    let about = about(&flags.reads, rounds);
    let one = flags.reads.duration + flags.reads.warm_up;
    let steps = u32::try_from(targets.len() * flags.reads.reads.len()).unwrap_or(u32::MAX);
    let progress = Progress::new(one * steps.saturating_mul(rounds));
    let mut reached = Vec::new();
    for target in targets {
        progress.say(&format!("connecting to {}", target.url));
        reached.push(reach(target).await?);
    }
    let measured = measure_all(&flags.reads, rounds, &mut reached, &progress, stop).await;
    progress.finish();
    measured?;
    let targets = reached.into_iter().map(Reached::into_results).collect();
    Ok(Results { about, targets, interrupted: stop.is_cancelled() })
}

fn about(flags: &ReadFlags, rounds: u32) -> About {
    About {
        command: masked(std::env::args()),
        started: jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_default().to_string(),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        clients: flags.clients,
        rate: flags.rate,
        duration: flags.duration,
        warm_up: flags.warm_up,
        rounds,
    }
}

/// What stands for a secret.
const MASK: &str = "***";

/// The command line without the tokens in it.
fn masked(line: impl Iterator<Item = String>) -> Vec<String> {
    let mut secret_follows = false;
    let mut masked = Vec::new();
    for word in line {
        let is_secret = std::mem::take(&mut secret_follows);
        let flag = word.split_once('=').map_or(word.as_str(), |(flag, _)| flag);
        let takes_secret = flag == "--token" || flag == "--vs-token";
        secret_follows = takes_secret && flag == word;
        masked.push(match (is_secret, takes_secret && flag != word) {
            (true, _) => MASK.to_owned(),
            (_, true) => format!("{flag}={MASK}"),
            _ => word,
        });
    }
    masked
}

/// Connects, and asks who is there.
async fn reach(target: Target) -> anyhow::Result<Reached> {
    let process = target.pid.map(Process::new).transpose()?;
    let caller = Caller { endpoint: target.endpoint()?, headers: target.headers().await? };
    let caller = Arc::new(caller);
    let opened = Connection::open(Arc::clone(&caller)).await;
    let connection = opened.with_context(|| target.url.clone())?;
    let results = TargetResults {
        url: target.url.clone(),
        protocol: connection.protocol(),
        version: version(&connection).await,
        pid: target.pid,
        contents: None,
        reads: Vec::new(),
        findings: Vec::new(),
        timeline: None,
        notes: Vec::new(),
    };
    let subject = Subject { caller, answers: Arc::new(Answers::default()), process };
    Ok(Reached { target, subject, results })
}

/// How long `/version` is waited for.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// `gitVersion`, where the target tells it to this caller.
async fn version(connection: &Connection) -> Option<String> {
    let ask = Ask { path: "/version", accept: JSON, gzip: false, if_none_match: None };
    let answer = timeout(VERSION_TIMEOUT, connection.get(&ask, |_| true)).await;
    let (_, body) = answer.ok()?.ok()?;
    let version: serde_json::Value = serde_json::from_slice(&body.kept?).ok()?;
    Some(version.get("gitVersion")?.as_str()?.to_owned())
}

/// All kinds at all targets, round by round.
async fn measure_all(
    flags: &ReadFlags,
    rounds: u32,
    reached: &mut [Reached],
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    for one in &mut *reached {
        for &kind in &flags.reads {
            let skipped = tokio::select! {
                skipped = one.first_read(kind, flags) => skipped,
                () = stop.cancelled() => return Ok(()),
            };
            one.results.reads.push(Reads { kind, skipped, rounds: Vec::new() });
        }
    }
    for round in 0..rounds {
        for at in 0..flags.reads.len() {
            let mut order: Vec<&mut Reached> = reached.iter_mut().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for one in order {
                if stop.is_cancelled() {
                    return Ok(());
                }
                one.measure(at, (round, rounds), flags, progress, stop).await?;
            }
        }
    }
    Ok(())
}

impl Reached {
    /// One read of this kind, outside of what is measured; why there is none to measure, if so.
    async fn first_read(&mut self, kind: Kind, flags: &ReadFlags) -> Option<String> {
        let subject = &self.subject;
        let reading = async {
            let connection = Connection::open(Arc::clone(&subject.caller)).await?;
            kind.read(&connection, &subject.answers).await
        };
        match timeout(flags.read_timeout, reading).await {
            Ok(Ok(_)) => {}
            Ok(Err(fault)) => return Some(fault.0),
            Err(_) => return Some(format!("no answer in {:?}", flags.read_timeout)),
        }
        if kind == Kind::Gzip && subject.answers.gzip_is_missing(Document::Aggregated, "/apis") {
            self.results.notes.push("gzip was asked for, and the answer came plain".to_owned());
        }
        None
    }

    async fn measure(
        &mut self,
        at: usize,
        (round, rounds): (u32, u32),
        flags: &ReadFlags,
        progress: &Progress,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let Some(reads) = self.results.reads.get_mut(at) else { return Ok(()) };
        let length = flags.duration + flags.warm_up;
        let of_rounds =
            if rounds > 1 { format!("round {}/{rounds}, ", round + 1) } else { String::new() };
        let what = format!("{of_rounds}{} from {}", reads.kind.name(), self.results.url);
        if reads.skipped.is_some() {
            progress.step(&what, length, async {}).await;
            return Ok(());
        }
        // Tokens end.
        let headers = self.target.headers().await?;
        let endpoint = self.subject.caller.endpoint.clone();
        self.subject.caller = Arc::new(Caller { endpoint, headers });
        let plan = Plan {
            kind: reads.kind,
            clients: flags.clients,
            rate: flags.rate,
            duration: flags.duration,
            warm_up: flags.warm_up,
            read_timeout: flags.read_timeout,
        };
        let measuring = measure(plan, &self.subject, stop, &progress.reads);
        let tally = progress.step(&what, length, measuring).await?;
        // A round that was ended before anything was counted is none.
        if tally.ended() > 0 || tally.unsent > 0 || !stop.is_cancelled() {
            reads.rounds.push(tally);
        }
        Ok(())
    }

    fn into_results(self) -> TargetResults {
        let Self { subject, mut results, .. } = self;
        let answers = &subject.answers;
        let aggregated = answers.contents(Document::Aggregated, "/apis");
        results.contents = aggregated.or_else(|| answers.contents(Document::Groups, "/apis"));
        results
    }
}

/// An error if nothing was measured, which says why.
pub(super) fn anything(results: &Results) -> anyhow::Result<()> {
    match results.nothing() {
        Some(_) if results.interrupted => bail!("ended before anything was measured"),
        Some(reasons) => bail!("nothing could be measured:\n  {reasons}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_masked_in_the_command_line() {
        let line =
            "portico bench discovery --token=a --server=https://h --vs-token b --token-file c";
        let masked = masked(line.split(' ').map(str::to_owned)).join(" ");
        assert_eq!(
            masked,
            "portico bench discovery --token=*** --server=https://h --vs-token *** --token-file c"
        );
    }
}
