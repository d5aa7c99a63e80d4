//! `portico bench discovery` from its targets to its results.

use std::fmt::Write as _;
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
use super::register::Place;
use super::results::{About, Reads, Results, TargetResults};
use super::scenario::{self, Scenario};
use super::target::Target;
use super::words::counted;
use super::{Discovery, ROUNDS_WITH_VS, ReadFlags};

/// A target that has answered.
struct Reached {
    target: Target,
    subject: Subject,
    results: TargetResults,
    scenario: Option<Scenario>,
}

/// Runs it. An error means that there is nothing to show; what was registered is removed anyway.
pub(super) async fn run(flags: &Discovery, stop: &CancellationToken) -> anyhow::Result<Results> {
    let plan = flags.scenario.plan()?;
    let targets = targets(flags).await?;
    let with_vs = targets.len() > 1;
    let rounds = flags.reads.rounds.unwrap_or(if with_vs { ROUNDS_WITH_VS } else { 1 });
    let about = about(&flags.reads, rounds);
    let course = plan.as_ref().map_or(Duration::ZERO, |plan| plan.course);
    let one = (flags.reads.duration + flags.reads.warm_up) * rounds;
    let kinds = u32::try_from(flags.reads.reads.len()).unwrap_or(u32::MAX);
    let count = u32::try_from(targets.len()).unwrap_or(u32::MAX);
    let progress = Progress::new((one.saturating_mul(kinds) + course).saturating_mul(count));
    let mut reached = Vec::new();
    for target in targets {
        progress.say(&format!("connecting to {}", target.api.url));
        reached.push(reach(target).await?);
    }
    let mut done = Ok(());
    if let Some(plan) = &plan {
        done = register_all(flags, plan, &mut reached, &progress, stop).await;
    }
    if done.is_ok() {
        done = measure_all(&flags.reads, rounds, &mut reached, &progress, stop).await;
    }
    if done.is_ok() {
        done = play_all(course, &mut reached, &progress, stop).await;
    }
    // Whatever has happened.
    for one in &mut reached {
        progress.say(&format!("removing what was registered at {}", one.results.url));
        one.end_scenario().await;
    }
    progress.finish();
    done?;
    let targets = reached.into_iter().map(Reached::into_results).collect();
    Ok(Results { about, targets, interrupted: stop.is_cancelled() })
}

async fn targets(flags: &Discovery) -> anyhow::Result<Vec<Target>> {
    let first = flags.target.target().await?;
    let second = flags.vs.target(&first).await?;
    Ok([Some(first), second].into_iter().flatten().collect())
}

/// Removes what killed runs have left, and says how much that was.
pub(super) async fn clean_up(flags: &Discovery) -> anyhow::Result<String> {
    let mut text = String::new();
    for (at, target) in targets(flags).await?.iter().enumerate() {
        let removed = place(flags, at, target)?.clean_up().await;
        let removed = removed.with_context(|| format!("{}: cleaning up", target.api.url))?;
        // Writing to a string cannot fail.
        writeln!(text, "{}: {} removed", target.api.url, counted(removed as u64, "object")).ok();
    }
    Ok(text)
}

/// Where servers are registered with the first or second target.
fn place(flags: &Discovery, at: usize, target: &Target) -> anyhow::Result<Place> {
    match flags.scenario.manifests(at > 0) {
        Some(directory) => Ok(Place::Manifests(directory)),
        None => Ok(Place::Api(target.api.patient_client()?)),
    }
}

/// A fleet for each target, one after the other so that neither delays the other's start.
async fn register_all(
    flags: &Discovery,
    plan: &scenario::Plan,
    reached: &mut [Reached],
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    for (at, one) in reached.iter_mut().enumerate() {
        let url = one.results.url.clone();
        let place = place(flags, at, &one.target)?;
        progress.say(&format!(
            "starting {} for {url}",
            counted(plan.fleet.servers.len() as u64, "server")
        ));
        let starting = Scenario::start(plan.clone(), place, one.target.api.config());
        let Some(started) = stop.run_until_cancelled(starting).await else { return Ok(()) };
        let scenario = one.scenario.insert(started.with_context(|| url.clone())?);
        progress.say(&format!("registering servers at {url}"));
        let Some(registered) = stop.run_until_cancelled(scenario.register()).await else {
            return Ok(());
        };
        registered.with_context(|| format!("{url}: registering servers"))?;
        progress.say(&format!("waiting for a complete document of {url}"));
        let Some(complete) = stop.run_until_cancelled(scenario.complete()).await else {
            return Ok(());
        };
        if !complete.with_context(|| url.clone())? {
            if let Some(why) = scenario.unseen() {
                bail!("{url}: {why}");
            }
            let note = "the document was not complete in time; reads are of what there was";
            one.results.notes.push(note.to_owned());
            one.results.notes.extend(scenario.unavailable().await.with_context(|| url.clone())?);
        }
    }
    Ok(())
}

/// The course of each target's scenario, one after the other.
async fn play_all(
    course: Duration,
    reached: &mut [Reached],
    progress: &Progress,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    for one in reached {
        let what = format!("watching {}", one.results.url);
        let Some(scenario) = &mut one.scenario else { continue };
        let playing = stop.run_until_cancelled(scenario.play());
        if let Some(played) = progress.step(&what, course, playing).await {
            played.with_context(|| what)?;
        }
    }
    Ok(())
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
    let caller = Caller { endpoint: target.api.endpoint()?, headers: target.api.headers().await? };
    let caller = Arc::new(caller);
    let opened = Connection::open(Arc::clone(&caller)).await;
    let opened = opened.map_err(|fault| anyhow::anyhow!(with_hint(fault.0)));
    let connection = opened.with_context(|| target.api.url.clone())?;
    let results = TargetResults {
        url: target.api.url.clone(),
        protocol: connection.protocol(),
        version: version(&connection).await,
        pid: target.pid,
        contents: None,
        reads: Vec::new(),
        scenario: None,
        notes: Vec::new(),
    };
    let subject = Subject { caller, answers: Arc::new(Answers::default()), process };
    Ok(Reached { target, subject, results, scenario: None })
}

/// The cause with the flags that may help against it.
fn with_hint(cause: String) -> String {
    let hint = if cause.contains("answered 401") {
        "give --client-certificate or --token-file"
    } else if cause.contains("UnknownIssuer") {
        "give its authority with --certificate-authority"
    } else {
        return cause;
    };
    format!("{cause} ({hint})")
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
            Ok(Err(fault)) => return Some(with_hint(fault.0)),
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
        let headers = self.target.api.headers().await?;
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

    /// Removes what was registered, and keeps what was found.
    async fn end_scenario(&mut self) {
        let Some(scenario) = self.scenario.take() else { return };
        let outcome = scenario.end().await;
        if let Some(why) = &outcome.not_removed {
            let note = format!("servers are still registered, --clean-up removes them: {why}");
            self.results.notes.push(note);
        }
        let changes = &outcome.visible.changes;
        if changes.made > 0 && changes.seen == 0 {
            let note = "no change became visible: targets ask their servers once a minute, so \
                        --course must be longer";
            self.results.notes.push(note.to_owned());
        }
        self.results.scenario = Some(outcome);
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
    fn a_cause_that_a_flag_helps_against_names_it() {
        let hinted = |cause: &str| with_hint(cause.to_owned());
        assert!(hinted("answered 401 Unauthorized").ends_with("--token-file)"));
        assert!(hinted("TLS handshake: UnknownIssuer").ends_with("--certificate-authority)"));
        assert_eq!(hinted("answered 503"), "answered 503");
    }

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
