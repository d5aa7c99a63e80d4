//! Endpoints and connections that fall silent: who is told what, and when they are used again.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use portico::app::Tuning;
use portico::config::Config;
use serde_json::Value;

use crate::backend::{Backend, HTTP1, HTTP2};
use crate::client::{Answer, Ask, Protocol};
use crate::relay::Relay;
use crate::rig::{Rig, Setup, eventually, path};

fn quick(_: &mut Config, tuning: &mut Tuning) {
    tuning.upstream.verdict_after = Duration::from_millis(200);
    tuning.upstream.revival_interval = Duration::from_millis(50);
    tuning.upstream.slow_start = Duration::ZERO;
}

/// Asks for the same many times at once, each time over a connection of its own.
async fn ask_often(rig: &Rig, ask: &Ask, times: usize) -> Vec<Answer> {
    join_all((0..times).map(|_| async {
        let mut client = rig.alice(Protocol::Http2).await;
        client.send(ask).await
    }))
    .await
}

async fn is_dead(rig: &Rig, endpoint: SocketAddr) -> bool {
    let endpoint = endpoint.to_string();
    rig.metric("portico_endpoint_dead", &[&endpoint]).await == Some(1.0)
}

async fn becomes(rig: &Rig, endpoint: SocketAddr, dead: bool) {
    eventually("dead, or back", async || is_dead(rig, endpoint).await == dead).await;
}

fn ids(seen: &[Value], method: &str) -> Vec<String> {
    let of_method = seen.iter().filter(|told| told["method"] == method);
    of_method.map(|told| told["target"].to_string()).collect()
}

#[track_caller]
fn is_told_to_be_unresponsive(answer: &Answer) {
    assert_eq!((answer.status, answer.cause().as_str()), (504, "Unresponsive"));
    assert_eq!(answer.json()["reason"], "Timeout");
    assert_eq!(answer.header("retry-after"), "");
}

/// Two endpoints, of which one is behind a relay.
async fn of_two(protocols: &[&str]) -> (Backend, Backend, Relay, Rig) {
    let (frozen, well) = (Backend::start("two", protocols), Backend::start("two", protocols));
    let relay = Relay::new(frozen.address());
    let setup = Setup::new().service("two", &[relay.address(), well.address()]);
    let rig = setup.edit(quick).start().await;
    (frozen, well, relay, rig)
}

async fn one_of_two_freezes(protocols: &[&str]) {
    let (frozen, well, relay, rig) = of_two(protocols).await;
    let get = Ask::get(path("two", "things"));
    eventually("both are used", async || {
        assert!(ask_often(&rig, &get, 8).await.iter().all(|answer| answer.status == 200));
        !frozen.seen().is_empty() && !well.seen().is_empty()
    })
    .await;
    relay.freeze();
    // Readers are served by the other one.
    assert!(ask_often(&rig, &get, 30).await.iter().all(|answer| answer.status == 200));
    becomes(&rig, relay.address(), true).await;
    let post = Ask::new("POST", path("two", "things")).body("{}");
    assert!(ask_often(&rig, &post, 30).await.iter().all(|answer| answer.status == 200));
    relay.thaw();
    becomes(&rig, relay.address(), false).await;
    let before = frozen.seen().len();
    eventually("it is used again", async || {
        assert!(ask_often(&rig, &get, 8).await.iter().all(|answer| answer.status == 200));
        frozen.seen().len() > before
    })
    .await;
}

#[tokio::test]
async fn readers_notice_nothing_of_an_endpoint_that_freezes() {
    one_of_two_freezes(HTTP2).await;
}

#[tokio::test]
async fn readers_notice_nothing_of_an_endpoint_that_freezes_and_speaks_http1() {
    one_of_two_freezes(HTTP1).await;
}

#[tokio::test]
async fn what_was_open_for_writing_is_told_to_be_lost_and_done_at_most_once() {
    let (frozen, well, relay, rig) = of_two(HTTP2).await;
    relay.freeze();
    let posts = (0..30).map(|id| {
        let ask = Ask::new("POST", path("two", &format!("things?id={id}"))).body("{}");
        let rig = &rig;
        async move { rig.alice(Protocol::Http2).await.send(&ask).await }
    });
    let answers = join_all(posts).await;
    let lost: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    for answer in lost {
        is_told_to_be_unresponsive(answer);
    }
    relay.thaw();
    becomes(&rig, relay.address(), false).await;
    let mut done = ids(&frozen.seen(), "POST");
    done.append(&mut ids(&well.seen(), "POST"));
    let times = done.len();
    done.sort_unstable();
    done.dedup();
    assert_eq!(done.len(), times);
}

#[tokio::test]
async fn callers_of_an_only_endpoint_that_freezes_are_told_soon_and_then_at_once() {
    let backend = Backend::start("only", HTTP2);
    let relay = Relay::new(backend.address());
    let rig = Setup::new().service("only", &[relay.address()]).edit(quick).start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    let get = path("only", "things");
    assert_eq!(client.get(&get).await.status, 200);
    relay.freeze();
    is_told_to_be_unresponsive(&client.get(&get).await);
    assert!(is_dead(&rig, relay.address()).await);
    let accepted = client.get(&get).await;
    assert_eq!((accepted.status, accepted.cause().as_str()), (503, "HandshakeTimeout"));
    assert_eq!(accepted.header("retry-after"), "");
    relay.thaw();
    rig.await_status(&get, 200).await;
    assert!(!is_dead(&rig, relay.address()).await);
}

#[tokio::test]
async fn a_connection_that_is_cut_off_is_given_up_and_its_endpoint_is_not() {
    let mut backend = Backend::start("cut", HTTP2);
    let relay = Relay::new(backend.address());
    let setup = Setup::new().service("cut", &[relay.address()]).edit(|config, tuning| {
        quick(config, tuning);
        tuning.upstream.ping_interval = Duration::from_millis(100);
        tuning.upstream.ping_timeout = Duration::from_millis(300);
    });
    let rig = setup.start().await;
    let mut watching = rig.alice(Protocol::Http2).await;
    let mut events = watching.open(&Ask::get(path("cut", "things/events?watch=1"))).await;
    let _watch = backend.watch().await;
    let mut client = rig.alice(Protocol::Http2).await;
    assert_eq!(client.get(&path("cut", "things")).await.status, 200);
    relay.freeze_open_ones();
    assert_eq!(client.get(&path("cut", "things")).await.status, 200);
    assert!(!is_dead(&rig, relay.address()).await);
    // A watch must not look as if it had ended.
    events.body.cut().await;
    relay.thaw();
    assert!(!is_dead(&rig, relay.address()).await);
}

#[tokio::test]
async fn a_handler_that_takes_its_time_is_its_requests_own_matter() {
    for protocols in [HTTP2, HTTP1] {
        let backend = Backend::start("slow", protocols);
        let rig = Setup::new().service("slow", &[backend.address()]).edit(quick).start().await;
        let mut client = rig.alice(Protocol::Http2).await;
        let answer = client.get(&path("slow", "things/hang?timeout=2s")).await;
        assert_eq!((answer.status, answer.cause().as_str()), (504, "Deadline"));
        assert!(!is_dead(&rig, backend.address()).await);
        assert_eq!(client.get(&path("slow", "things")).await.status, 200);
    }
}

#[tokio::test]
async fn an_endpoint_at_which_nobody_listens_is_dialled_by_nobody_but_for_its_revival() {
    let well = Backend::start("half", HTTP2);
    let nobody = crate::faults::nobody();
    let setup = Setup::new().service("half", &[nobody, well.address()]).edit(quick);
    let rig = setup.start().await;
    let get = Ask::get(path("half", "things"));
    eventually("it was tried", async || {
        assert!(ask_often(&rig, &get, 4).await.iter().all(|answer| answer.status == 200));
        is_dead(&rig, nobody).await
    })
    .await;
    let address = nobody.to_string();
    let refused =
        async || rig.metric("portico_endpoint_requests_total", &[&address, "ConnectRefused"]).await;
    let before = refused().await;
    assert!(ask_often(&rig, &get, 30).await.iter().all(|answer| answer.status == 200));
    assert_eq!(refused().await, before);
}
