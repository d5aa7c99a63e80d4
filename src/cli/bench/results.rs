//! What a run has found: figures of each kind of read at each target, and ratios between two.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::answers::Contents;
use super::process::Memory;
use super::reads::Kind;
use super::scenario::Outcome;
use super::tally::Tally;
use super::words::counted;

/// A whole run.
#[derive(Clone, Debug)]
pub(super) struct Results {
    /// What was run, and where.
    pub(super) about: About,
    /// The first target, then the second.
    pub(super) targets: Vec<TargetResults>,
    /// Whether it was ended early.
    pub(super) interrupted: bool,
}

/// What was run, and where.
#[derive(Clone, Debug)]
pub(super) struct About {
    /// The command line, secrets masked.
    pub(super) command: Vec<String>,
    /// When it began, RFC 3339.
    pub(super) started: String,
    /// This machine's cores.
    pub(super) cores: usize,
    /// This machine's system and architecture.
    pub(super) system: String,
    /// Connections.
    pub(super) clients: u32,
    /// Reads a second; none: closed loop.
    pub(super) rate: Option<f64>,
    /// How long each kind is measured at each target in each round.
    pub(super) duration: Duration,
    /// How long before that.
    pub(super) warm_up: Duration,
    /// Rounds that were asked for.
    pub(super) rounds: u32,
}

/// One target's part.
#[derive(Clone, Debug)]
pub(super) struct TargetResults {
    /// Its URL.
    pub(super) url: String,
    /// `HTTP/2` or `HTTP/1.1`.
    pub(super) protocol: &'static str,
    /// `gitVersion` of its `/version`.
    pub(super) version: Option<String>,
    /// Its process.
    pub(super) pid: Option<u32>,
    /// What its aggregated document, or else its list of groups, held when last read.
    pub(super) contents: Option<Arc<Contents>>,
    /// In the order of measuring.
    pub(super) reads: Vec<Reads>,
    /// What the scenario found.
    pub(super) scenario: Option<Outcome>,
    /// What a reader of the figures has to know.
    pub(super) notes: Vec<String>,
}

/// One kind of read at one target.
#[derive(Clone, Debug)]
pub(super) struct Reads {
    /// The kind.
    pub(super) kind: Kind,
    /// Why it was not measured.
    pub(super) skipped: Option<String>,
    /// What was counted, round by round.
    pub(super) rounds: Vec<Tally>,
}

/// What is shown of reads.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    /// Right answers.
    pub(super) count: u64,
    /// Failed reads by cause.
    pub(super) errors: BTreeMap<String, u64>,
    /// Reads due and never sent.
    pub(super) unsent: u64,
    /// Right answers a second.
    pub(super) per_second: Option<f64>,
    /// Of a right answer on the wire, on average.
    pub(super) bytes: Option<f64>,
    /// Latencies of right answers; each where there are reads enough to tell it.
    pub(super) quantiles: [Option<Duration>; QUANTILES.len()],
    /// By how much this program sent reads late itself, 99th percentile; at a rate only.
    pub(super) late: Option<Duration>,
    /// CPU time of the server's process, per read that ended.
    pub(super) cpu: Option<Cpu>,
    /// Memory of the server's process at its highest.
    pub(super) memory: Option<Memory>,
}

/// CPU time per read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cpu {
    /// µs.
    Micros(f64),
    /// Less than one tick of the clock in all; µs per read at most.
    Below(f64),
}

/// The quantiles shown: name, share, and of how many reads one exceeds it.
pub(super) const QUANTILES: [(&str, f64, u64); 5] = [
    ("p50", 0.5, 1),
    ("p90", 0.9, 10),
    ("p99", 0.99, 100),
    ("p99.9", 0.999, 1000),
    ("max", 1.0, 1),
];

/// The least that CPU time can grow by, in µs.
const CPU_STEP_MICROS: f64 = 10_000.0;

impl Reads {
    /// All rounds together.
    pub(super) fn total(&self) -> Option<Tally> {
        let (first, rest) = self.rounds.split_first()?;
        let mut total = first.clone();
        for round in rest {
            total.after(round);
        }
        Some(total)
    }

    /// Why no right answer was counted; at least one reason.
    fn why_nothing(&self, rate: Option<f64>) -> Vec<String> {
        if let Some(reason) = &self.skipped {
            return vec![reason.clone()];
        }
        let total = self.total();
        let mut reasons: Vec<String> =
            total.iter().flat_map(|total| total.errors.keys().cloned()).collect();
        match (total.map_or(0, |total| total.unsent), rate) {
            (0, _) if !reasons.is_empty() => {}
            (0, Some(rate)) => reasons.push(format!(
                "no read was due in the time: {rate} a second are less than one in --duration"
            )),
            (0, None) => reasons.push("no read ended in the time".to_owned()),
            (unsent, _) => {
                let unsent = counted(unsent, "read");
                reasons.push(format!("{unsent} due and not sent: the target fell behind"));
            }
        }
        reasons
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of reads and bytes")]
impl Figures {
    /// The figures of what was counted.
    pub(super) fn of(tally: &Tally) -> Self {
        let count = tally.latencies.count();
        let per_read = |sum: f64| (count > 0).then(|| sum / count as f64);
        let seconds = tally.time.as_secs_f64();
        let ended = tally.ended() as f64;
        let cpu = tally.cpu.filter(|_| ended > 0.0).map(|cpu| {
            let micros = cpu.as_secs_f64() * 1e6;
            if micros < CPU_STEP_MICROS {
                Cpu::Below(CPU_STEP_MICROS / ended)
            } else {
                Cpu::Micros(micros / ended)
            }
        });
        Self {
            count,
            errors: tally.errors.clone(),
            unsent: tally.unsent,
            per_second: (seconds > 0.0).then(|| count as f64 / seconds),
            bytes: per_read(tally.bytes as f64),
            quantiles: QUANTILES.map(|(_, share, least)| {
                tally.latencies.quantile(share).filter(|_| count >= least)
            }),
            late: tally.late.quantile(0.99),
            cpu,
            memory: tally.memory,
        }
    }

    /// Failed reads.
    pub(super) fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    fn quantile(&self, name: &str) -> Option<f64> {
        let at = QUANTILES.iter().position(|quantile| quantile.0 == name)?;
        self.quantiles.get(at).copied().flatten().map(|latency| latency.as_secs_f64())
    }
}

/// First target to second, over the rounds that both have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ratio {
    /// The kind of reads.
    pub(super) kind: Kind,
    /// A stable name: `p50`, `reads_per_second`.
    pub(super) figure: &'static str,
    /// The same as shown.
    pub(super) title: &'static str,
    /// Of the rounds' ratios.
    pub(super) spread: Spread,
}

/// Median, extremes and number of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub(super) median: f64,
    /// The smallest.
    pub(super) min: f64,
    /// The largest.
    pub(super) max: f64,
    /// How many.
    pub(super) count: usize,
}

impl Spread {
    /// Of these values; none without any.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let count = values.len();
        let lower = values.get((count - 1) / 2)?;
        let upper = values.get(count / 2)?;
        Some(Self { median: f64::midpoint(*lower, *upper), min, max, count })
    }
}

type FigureOf = fn(&Figures) -> Option<f64>;

/// The figures that are compared: stable name, title, and where it stands.
const COMPARED: [(&str, &str, FigureOf); 5] = [
    ("p50", "p50", |figures| figures.quantile("p50")),
    ("p99", "p99", |figures| figures.quantile("p99")),
    ("reads_per_second", "reads/s", |figures| figures.per_second),
    ("bytes_per_read", "bytes", |figures| figures.bytes),
    ("cpu_us_per_read", "CPU", |figures| match figures.cpu {
        Some(Cpu::Micros(micros)) => Some(micros),
        _ => None,
    }),
];

impl Results {
    /// The first target's figures to the second's, round by round.
    pub(super) fn ratios(&self) -> Vec<Ratio> {
        let [first, second] = self.targets.as_slice() else { return Vec::new() };
        let mut ratios = Vec::new();
        for (one, other) in first.reads.iter().zip(&second.reads) {
            for (figure, title, value) in COMPARED {
                let of_rounds = one.rounds.iter().zip(&other.rounds).filter_map(|(one, other)| {
                    let ratio = value(&Figures::of(one))? / value(&Figures::of(other))?;
                    ratio.is_finite().then_some(ratio)
                });
                if let Some(spread) = Spread::of(of_rounds.collect()) {
                    ratios.push(Ratio { kind: one.kind, figure, title, spread });
                }
            }
        }
        ratios
    }

    /// Why nothing at all was measured, if so.
    pub(super) fn nothing(&self) -> Option<String> {
        let reads = || self.targets.iter().flat_map(|target| &target.reads);
        let any = reads().any(|reads| reads.rounds.iter().any(|round| round.latencies.count() > 0));
        let found = self.targets.iter().any(|target| target.scenario.is_some());
        if any || found {
            return None;
        }
        let mut reasons: Vec<String> = Vec::new();
        for target in &self.targets {
            for reads in &target.reads {
                for cause in reads.why_nothing(self.about.rate) {
                    let reason = format!("{}: {}: {cause}", target.url, reads.kind.name());
                    if !reasons.contains(&reason) {
                        reasons.push(reason);
                    }
                }
            }
        }
        Some(reasons.join("\n  "))
    }
}

/// The results of a target for each of these lists of latencies, in ms.
#[cfg(test)]
pub(super) fn sample(targets: &[&[u64]]) -> Results {
    let target = |millis: &&[u64]| TargetResults {
        url: "https://127.0.0.1:1".to_owned(),
        protocol: "HTTP/2",
        version: Some("v1.37.0".to_owned()),
        pid: None,
        contents: Some(Arc::new(Contents {
            groups: 1,
            group_versions: vec!["g/v1".to_owned()],
            stale: 1,
            resources: 2,
            bytes: 120,
        })),
        reads: vec![
            Reads { kind: Kind::Legacy, skipped: None, rounds: vec![tests::tally(millis)] },
            Reads {
                kind: Kind::Walk,
                skipped: Some("answered 403 Forbidden".to_owned()),
                rounds: Vec::new(),
            },
        ],
        scenario: None,
        notes: Vec::new(),
    };
    Results {
        about: About {
            command: vec!["portico".to_owned()],
            started: "2026-01-01T00:00:00Z".to_owned(),
            cores: 2,
            system: "linux x86_64".to_owned(),
            clients: 4,
            rate: None,
            duration: Duration::from_secs(1),
            warm_up: Duration::ZERO,
            rounds: 1,
        },
        targets: targets.iter().map(target).collect(),
        interrupted: false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::Fault;
    use super::*;

    pub(super) fn tally(millis: &[u64]) -> Tally {
        let mut tally = Tally::new();
        for &millis in millis {
            tally.record(Duration::from_millis(millis), Duration::from_millis(millis), Ok(100));
        }
        tally
    }

    #[track_caller]
    fn check_nothing(reads: Reads, rate: Option<f64>, expected: &str) {
        let mut results = sample(&[&[]]);
        results.about.rate = rate;
        results.targets[0].reads = vec![reads];
        let expected = format!("https://127.0.0.1:1: legacy: {expected}");
        assert_eq!(results.nothing().as_deref(), Some(expected.as_str()));
    }

    #[test]
    fn why_nothing_was_measured_is_always_said() {
        let round = tally(&[]);
        let reads = Reads { kind: Kind::Legacy, skipped: None, rounds: vec![round.clone()] };
        check_nothing(
            reads.clone(),
            Some(0.1),
            "no read was due in the time: 0.1 a second are less than one in --duration",
        );
        check_nothing(reads.clone(), None, "no read ended in the time");
        let behind = Tally { unsent: 7, ..round.clone() };
        let behind = Reads { rounds: vec![behind], ..reads.clone() };
        check_nothing(behind, Some(100.0), "7 reads due and not sent: the target fell behind");
        let mut failed = round;
        failed.record(Duration::ZERO, Duration::ZERO, Err(Fault("answered 503".to_owned())));
        check_nothing(Reads { rounds: vec![failed], ..reads.clone() }, None, "answered 503");
        let skipped = Reads { skipped: Some("answered 401".to_owned()), rounds: vec![], ..reads };
        check_nothing(skipped, None, "answered 401");
    }

    #[track_caller]
    fn check_spread(values: &[f64], expected: Option<(f64, f64, f64)>) {
        let spread = Spread::of(values.to_vec());
        let found = spread.map(|spread| (spread.median, spread.min, spread.max));
        assert_eq!(found, expected, "{values:?}");
    }

    #[test]
    fn a_median_is_the_middle_or_the_mean_of_the_middle_two() {
        check_spread(&[], None);
        check_spread(&[2.0], Some((2.0, 2.0, 2.0)));
        check_spread(&[3.0, 1.0], Some((2.0, 1.0, 3.0)));
        check_spread(&[9.0, 1.0, 2.0], Some((2.0, 1.0, 9.0)));
        check_spread(&[9.0, 1.0, 2.0, 4.0], Some((3.0, 1.0, 9.0)));
    }

    #[test]
    fn a_quantile_that_the_reads_cannot_tell_is_not_told() {
        let one = Figures::of(&tally(&[10]));
        let told: Vec<bool> = one.quantiles.iter().map(Option::is_some).collect();
        assert_eq!(told, [true, false, false, false, true]);
        let many = Figures::of(&tally(&[1; 1000]));
        assert!(many.quantiles.iter().all(Option::is_some));
        let none = Figures::of(&tally(&[]));
        assert!(none.quantiles.iter().all(Option::is_none));
        assert_eq!((none.per_second, none.bytes, none.count), (None, None, 0));
    }

    #[test]
    fn cpu_time_below_a_tick_is_a_bound() {
        let mut counted = tally(&[1; 100]);
        counted.cpu = Some(Duration::ZERO);
        assert_eq!(Figures::of(&counted).cpu, Some(Cpu::Below(100.0)));
        counted.cpu = Some(Duration::from_millis(50));
        assert_eq!(Figures::of(&counted).cpu, Some(Cpu::Micros(500.0)));
        counted.record(Duration::ZERO, Duration::ZERO, Err(Fault("answered 503".to_owned())));
        let Some(Cpu::Micros(micros)) = Figures::of(&counted).cpu else { panic!("no CPU time") };
        assert!((micros - 50_000.0 / 101.0).abs() < 1e-9, "failed reads cost, too");
    }
}
