//! Everything that reads bytes from the network or from files, on its corpus and on as many inputs
//! made from that as are wanted: nothing panics, takes long, or breaks what has to hold for every input.
//!
//! `PORTICO_FUZZ_RUNS=1000000 PORTICO_FUZZ_SEED=7 cargo test --release --test fuzz -- --nocapture`
//! runs each target a million times; `fuzz/README.md` says how libFuzzer drives the same targets.

#![expect(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "to panic is how a target fails, and how a test does"
)]

#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/targets.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastrand::Rng;
use mutate::mutated;
use targets::{TARGETS, Target};

/// Inputs for each target, unless `PORTICO_FUZZ_RUNS` says otherwise.
const RUNS: u64 = 2_000;
/// Which ones, unless `PORTICO_FUZZ_SEED` says otherwise.
const SEED: u64 = 1;
/// What one input may take on a machine that has other work.
const TIME_MAX: Duration = Duration::from_secs(2);

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[expect(clippy::print_stdout, reason = "the counts are what it is run for")]
fn say(text: &str) {
    println!("{text}");
}

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target)
}

/// The target's inputs from the checkout, in the order of their names.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder(target)).expect("each target has a corpus");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("readable")).collect()
}

/// Runs one input; an error says how it failed, and shows the input.
fn attempt(target: &Target, input: &[u8]) -> Result<(), String> {
    let begun = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let (name, took, shown) = (target.name, begun.elapsed(), input.escape_ascii());
    match outcome {
        Err(_) => Err(format!("{name} fails on b\"{shown}\"")),
        Ok(()) if took > TIME_MAX => Err(format!("{name} takes {took:?} on b\"{shown}\"")),
        Ok(()) => Ok(()),
    }
}

#[test]
fn every_target_stands_its_corpus_and_what_is_made_of_it() {
    let (seed, runs) = (setting("PORTICO_FUZZ_SEED", SEED), setting("PORTICO_FUZZ_RUNS", RUNS));
    say(&format!("PORTICO_FUZZ_SEED={seed} PORTICO_FUZZ_RUNS={runs}"));
    let mut failures = Vec::new();
    for target in TARGETS {
        let corpus = corpus(target.name);
        assert!(!corpus.is_empty(), "{} has an empty corpus", target.name);
        let mut rng = Rng::with_seed(seed);
        let begun = Instant::now();
        let made = (0..runs).map(|_| mutated(&mut rng, &corpus));
        let failed =
            corpus.iter().cloned().chain(made).find_map(|input| attempt(target, &input).err());
        failures.extend(failed);
        let (name, kept, took) = (target.name, corpus.len(), begun.elapsed());
        say(&format!(
            "{name:<22} {kept:>4} of the corpus and {runs} inputs made of it, in {took:.1?}"
        ));
    }
    assert!(failures.is_empty(), "PORTICO_FUZZ_SEED={seed}:\n{}", failures.join("\n"));
}

#[test]
fn each_corpus_belongs_to_a_target() {
    let entries = fs::read_dir(folder("")).expect("the corpora are there");
    for entry in entries {
        let name = entry.expect("readable").file_name().into_string().expect("a name in text");
        assert!(TARGETS.iter().any(|target| target.name == name), "no target for {name}");
    }
}
