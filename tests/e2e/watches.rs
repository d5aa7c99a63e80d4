//! Watches: everything at once, an end that is an end only when the backend ended it, and nobody
//! left behind when one side goes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response};
use hyper::body::Frame;
use portico::app::Tuning;
use portico::config::Config;
use portico::runtime::tasks;
use tokio::sync::Notify;

use crate::backend::{Backend, HTTP1, HTTP2, Listener, Watch};
use crate::client::{Ask, BOTH, Client, Protocol};
use crate::proxying::Pair;
use crate::rig::{Setup, path, within};

/// Shorter than any of these tests may take, were it to count for watches.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(200);

fn short_requests(config: &mut Config, _: &mut Tuning) {
    config.proxy.request_timeout = REQUEST_TIMEOUT;
}

async fn emit(watch: &Watch, event: &str) {
    let event = Bytes::from(format!("{event}\n"));
    within("room for an event", watch.send(Ok(Frame::data(event)))).await.unwrap();
}

fn backend(name: &str) -> Backend {
    Backend::start(name, if name == "two" { HTTP2 } else { HTTP1 })
}

fn ask(name: &str) -> Ask {
    Ask::get(path(name, "events?watch=true"))
}

#[tokio::test]
async fn headers_come_before_any_event_and_each_event_at_once() {
    let mut pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let mut opened = client.open(&ask(name)).await;
        assert_eq!(opened.status, 200);
        let watch = if name == "two" { pair.two.watch().await } else { pair.one.watch().await };
        // Small ones, and those that fill frames of 16 KiB to the last byte and beyond.
        for length in [1, 8191, 8192, 16_384, 16_385, 65_536, 131_072, 300_000] {
            let event = "e".repeat(length - 1);
            emit(&watch, &event).await;
            assert_eq!(opened.body.read(length).await, format!("{event}\n").as_bytes());
        }
        drop(watch);
        assert_eq!(opened.body.collect().await.unwrap().0, Bytes::new(), "{protocol:?} {name}");
    }
}

#[tokio::test]
async fn a_killed_backend_ends_its_watches_with_an_error() {
    for (protocol, name) in Pair::ways() {
        let mut backend = backend(name);
        let rig = Setup::new().service(name, &[backend.address()]).start().await;
        let mut client = rig.alice(protocol).await;
        let mut opened = client.open(&ask(name)).await;
        let watch = backend.watch().await;
        emit(&watch, "event").await;
        opened.body.read(6).await;
        drop(backend);
        let error = opened.body.cut().await;
        let expected = match protocol {
            Protocol::Http1 => "connection closed",
            Protocol::Http2 => "stream error received",
        };
        assert!(error.contains(expected), "{protocol:?} {name} {error}");
        if protocol == Protocol::Http2 {
            assert_eq!(client.get("/version").await.status, 200, "other streams go on");
        }
    }
}

#[tokio::test]
async fn a_watch_that_its_backend_breaks_off_is_cut_for_the_client() {
    let mut pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let mut opened = client.open(&ask(name)).await;
        let watch = if name == "two" { pair.two.watch().await } else { pair.one.watch().await };
        emit(&watch, "event").await;
        opened.body.read(6).await;
        watch.send(Err(std::io::Error::other("broken"))).await.unwrap();
        opened.body.cut().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_backends_stream() {
    let mut pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let opened = client.open(&ask(name)).await;
        let watch = if name == "two" { pair.two.watch().await } else { pair.one.watch().await };
        drop(opened);
        drop(client);
        within("the watch's end at the backend", watch.closed()).await;
    }
    pair.rig.await_metric("apiserver_longrunning_requests", &[], 0.0).await;
}

#[tokio::test]
async fn a_client_that_resets_one_stream_keeps_its_others() {
    let mut pair = Pair::start().await;
    let Client::Http2(client) = pair.rig.alice(Protocol::Http2).await else { unreachable!() };
    let ask = ask("two");
    let first = client.ask(&ask).await.unwrap();
    let one = pair.two.watch().await;
    let mut second = client.ask(&ask).await.unwrap();
    let two = pair.two.watch().await;
    drop(first);
    within("the first watch's end", one.closed()).await;
    emit(&two, "event").await;
    let data = within("an event", second.body_mut().data()).await.unwrap().unwrap();
    assert_eq!(&data[..], b"event\n");
}

#[tokio::test]
async fn long_running_requests_have_no_deadline() {
    let mut pair = Pair::start_with(Setup::new().edit(short_requests)).await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let mut opened = client.open(&ask(name)).await;
        let watch = if name == "two" { pair.two.watch().await } else { pair.one.watch().await };
        // A request that began later and has a deadline meets it: more time than that has passed.
        let mut other = pair.rig.alice(Protocol::Http2).await;
        assert_eq!(other.get(&path(name, "hang")).await.status, 504);
        emit(&watch, "event").await;
        assert_eq!(opened.body.read(6).await, b"event\n", "{protocol:?} {name}");
    }
}

#[tokio::test]
async fn a_log_that_has_no_deadline_may_be_silent_before_its_headers() {
    let pair = Pair::start_with(Setup::new().edit(short_requests)).await;
    let Client::Http2(client) = pair.rig.alice(Protocol::Http2).await else { unreachable!() };
    let log = Ask::get(path("two", "namespaces/n/things/a/log/hang"));
    let waiting = client.ask(&log);
    let mut other = pair.rig.alice(Protocol::Http2).await;
    let hang = path("two", "hang");
    tokio::select! {
        biased;
        _ = waiting => panic!("a request without deadline was answered"),
        answer = other.get(&hang) => assert_eq!(answer.status, 504),
    }
}

/// Serves HTTP/2 streams that send a part of a body and, when told to, reset with this reason.
fn resetting(service: &str, reason: h2::Reason, reset: Arc<Notify>) -> Listener {
    Listener::http2(service, h2::server::Builder::new(), move |mut connection, _| {
        let reset = Arc::clone(&reset);
        async move {
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                stream.send_data(Bytes::from_static(b"part"), false).unwrap();
                let reset = Arc::clone(&reset);
                drop(tasks::spawn("reset", async move {
                    reset.notified().await;
                    stream.send_reset(reason);
                }));
            }
        }
    })
}

#[tokio::test]
async fn a_backend_stream_reset_before_its_end_is_an_abort_whatever_the_reason() {
    for reason in [h2::Reason::NO_ERROR, h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR] {
        let reset = Arc::new(Notify::new());
        let listener = resetting("reset", reason, Arc::clone(&reset));
        let rig = Setup::new().service("reset", &[listener.address]).start().await;
        for protocol in BOTH {
            for target in ["things", "things?watch=true"] {
                let mut client = rig.alice(protocol).await;
                let mut opened = client.open(&Ask::get(path("reset", target))).await;
                assert_eq!(opened.body.read(4).await, b"part");
                reset.notify_one();
                let error = opened.body.cut().await;
                assert!(!error.contains("not a result of an error"), "{protocol:?} {error}");
            }
        }
    }
}

#[tokio::test]
async fn a_watch_may_end_with_trailers() {
    let mut pair = Pair::start().await;
    let mut client = pair.rig.alice(Protocol::Http2).await;
    let mut opened = client.open(&ask("two")).await;
    let watch = pair.two.watch().await;
    emit(&watch, "event").await;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    watch.send(Ok(Frame::trailers(trailers))).await.unwrap();
    drop(watch);
    let (body, trailers) = opened.body.collect().await.unwrap();
    assert_eq!(&body[..], b"event\n");
    assert_eq!(trailers.get("grpc-status").unwrap(), "0");
}

#[tokio::test]
async fn tens_of_thousands_of_small_events_pass_on_one_connection() {
    let mut pair = Pair::start().await;
    let mut client = pair.rig.alice(Protocol::Http2).await;
    let mut opened = client.open(&ask("two")).await;
    let watch = pair.two.watch().await;
    let sending = async {
        for _ in 0..20_000 {
            emit(&watch, "0123456789").await;
        }
    };
    let receiving = async { opened.body.read(20_000 * 11).await.len() };
    let (received, ()) = tokio::join!(receiving, sending);
    assert_eq!(received, 20_000 * 11);
}

#[tokio::test]
async fn clients_that_do_not_read_do_not_stop_the_others() {
    let mut pair = Pair::start().await;
    let Client::Http2(stalled) = pair.rig.alice(Protocol::Http2).await else { unreachable!() };
    let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
    let mut unread = Vec::new();
    for _ in 0..6 {
        let answer = stalled.ask(&ask("two")).await.unwrap();
        let watch = pair.two.watch().await;
        // As much as fits into all windows on the way.
        for _ in 0..32 {
            let frame = Ok(Frame::data(chunk.clone()));
            within("room for a chunk", watch.send(frame)).await.unwrap();
        }
        unread.push((answer, watch));
    }
    let mut client = pair.rig.alice(Protocol::Http2).await;
    let mut opened = client.open(&ask("two")).await;
    let watch = pair.two.watch().await;
    emit(&watch, "event").await;
    assert_eq!(opened.body.read(6).await, b"event\n");
}
