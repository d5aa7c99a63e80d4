//! The real program under load, while its backends freeze, are killed, started again and send their
//! connections away, certificates are replaced, the table changes and callers give up: a seed decides
//! in which order. Whatever happens, no answer is another caller's, no POST is executed twice, whoever
//! is not answered by a backend is told a cause that is known, the healthy API always answers, and at
//! the end nothing is held that was not held before.
//!
//! `PORTICO_CHAOS_SECS=300 PORTICO_CHAOS_SEED=7 cargo test --test chaos -- --nocapture` runs for
//! minutes. What a seed repeats are the requests of each caller and the order of the faults; how they
//! meet is the machine's.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "what a test relies on it may take for granted, and to panic is how it fails"
)]

#[path = "e2e/client.rs"]
#[expect(dead_code, reason = "the tests in e2e use all of it")]
mod client;
#[path = "e2e/http1_client.rs"]
#[expect(dead_code, reason = "the tests in e2e use all of it")]
mod http1_client;
#[path = "e2e/http2_client.rs"]
#[expect(dead_code, reason = "the tests in e2e use all of it")]
mod http2_client;
#[path = "e2e/pki.rs"]
#[expect(dead_code, reason = "the tests in e2e use all of it")]
mod pki;
#[path = "e2e/rig.rs"]
#[expect(dead_code, reason = "the tests in e2e use all of it")]
mod rig;

#[path = "chaos/caller.rs"]
mod caller;
#[path = "chaos/endpoint.rs"]
mod endpoint;
#[path = "chaos/handler.rs"]
mod handler;
#[path = "chaos/ledger.rs"]
mod ledger;
#[path = "chaos/plan.rs"]
mod plan;
#[path = "chaos/world.rs"]
mod world;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until, timeout};

use caller::{Caller, callers};
use client::{BOTH, Protocol};
use ledger::Ledger;
use plan::Kind;
use rig::{LIMIT, eventually};
use world::{Held, World};

/// How long the faults go on, unless `PORTICO_CHAOS_SECS` says otherwise.
const SECONDS: u64 = 4;
/// The order of things, unless `PORTICO_CHAOS_SEED` says otherwise.
const SEED: u64 = 1;
/// Consecutive looks in which what is held has to be the same, to be what is held at rest.
const CALM_LOOKS: usize = 5;

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

#[expect(clippy::print_stdout, reason = "the seed and the summary are what it is run for")]
fn say(text: &str) {
    println!("{text}");
}

#[tokio::test]
async fn whatever_happens_nothing_is_mixed_up_executed_twice_unexplained_or_left_behind() {
    let (seed, seconds) =
        (setting("PORTICO_CHAOS_SEED", SEED), setting("PORTICO_CHAOS_SECS", SECONDS));
    say(&format!("PORTICO_CHAOS_SEED={seed} PORTICO_CHAOS_SECS={seconds}"));
    let ledger = Arc::new(Ledger::new());
    note_panics(&ledger);
    let mut world = World::start(&ledger).await;
    let at_rest = at_rest(&world).await;
    say(&format!("at rest: {at_rest:?}"));

    shake(&mut world, seed, Duration::from_secs(seconds)).await;
    say(&ledger.summary());
    check(&ledger, seed);
    for kind in [Kind::Get, Kind::Post, Kind::Watch] {
        assert!(ledger.answered(kind) > 0, "PORTICO_CHAOS_SEED={seed}: no {kind:?} was answered");
    }

    let mut client = world.rig.alice(Protocol::Http2).await;
    eventually("both APIs serve", async || world.serves(&mut client).await).await;
    drop(client);
    let left = let_go(&world, &at_rest).await;
    assert!(left.is_empty(), "PORTICO_CHAOS_SEED={seed}: held before and after: {left:?}");
    let World { rig, .. } = world;
    Rc::into_inner(rig).unwrap().stop().await;
    check(&ledger, seed);
}

/// Nothing happened that must never be.
fn check(ledger: &Ledger, seed: u64) {
    if let Some(verdict) = ledger.verdict() {
        panic!("PORTICO_CHAOS_SEED={seed}: {verdict}");
    }
}

/// A task that panics ends alone, and nobody may notice; here it counts.
fn note_panics(ledger: &Arc<Ledger>) {
    let (ledger, before) = (Arc::clone(ledger), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        ledger.broken(&format!("{panic}"));
    }));
}

/// The load, and the faults.
async fn shake(world: &mut World, seed: u64, time: Duration) {
    let (over, ledger) = (Cell::new(false), Arc::clone(&world.ledger));
    let (rig, end) = (Rc::clone(&world.rig), Instant::now() + time);
    let calling = callers(&rig, &ledger, seed, &over);
    let calling = join_all(calling.into_iter().map(Caller::run));
    let ending = async {
        sleep_until(end).await;
        over.set(true);
    };
    tokio::join!(calling, world.run(seed, &over), ending);
}

/// What is held when nothing is asked, after each way has been used once.
async fn at_rest(world: &World) -> Held {
    for protocol in BOTH {
        let mut client = world.rig.alice(protocol).await;
        eventually("both APIs serve", async || world.serves(&mut client).await).await;
    }
    let mut looks = Vec::new();
    eventually("the same is held for a while", async || {
        looks.push(world.held().await);
        let idle = looks.last().is_some_and(|held| held["portico_endpoint_connections"] < 0.5);
        let last = looks.iter().rev().take(CALM_LOOKS);
        idle && looks.len() >= CALM_LOOKS && last.clone().all(|held| Some(held) == looks.last())
    })
    .await;
    looks.pop().unwrap()
}

/// Waits until no more is held than at rest; what is held still when that never comes: the name, then
/// and now.
async fn let_go(world: &World, at_rest: &Held) -> Vec<(&'static str, f64, f64)> {
    let mut more = Vec::new();
    let waiting = async {
        loop {
            let held = world.held().await;
            let than_then = at_rest.iter().map(|(name, then)| (*name, *then, held[name]));
            more = than_then.filter(|(_, then, now)| now > then).collect();
            if more.is_empty() {
                return;
            }
        }
    };
    timeout(LIMIT, waiting).await.ok();
    more
}
