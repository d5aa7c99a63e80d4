//! Connections to backends: how many, shared by whom, given up when, and what is tried again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::server::SendResponse;
use http::{Request, Response};
use portico::app::Tuning;
use portico::config::Config;
use portico::runtime::tasks::spawn;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::backend::{Backend, HTTP1, HTTP2, Listener};
use crate::client::{Ask, Protocol};
use crate::faults::nobody;
use crate::http2_client::Http2;
use crate::pki::PKI;
use crate::rig::{Rig, Setup, api_service, eventually, path, service, within};

/// What a frame-level backend does with one stream.
fn respond(
    request: &Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Option<h2::SendStream<Bytes>> {
    let watch = request.uri().query().is_some_and(|query| query.contains("watch"));
    let stream = respond.send_response(Response::new(()), !watch).unwrap();
    watch.then_some(stream)
}

/// Allows this many streams on a connection; watches stay open, everything else is answered.
fn limited(service: &str, streams: u32) -> Listener {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(streams);
    Listener::http2(service, builder, |mut connection, _| async move {
        let mut open = Vec::new();
        while let Some(Ok((request, answer))) = connection.accept().await {
            open.extend(respond(&request, answer));
        }
    })
}

async fn clients(rig: &Rig, count: usize) -> Vec<Http2> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(rig.alice(Protocol::Http2).await.http2());
    }
    clients
}

#[tokio::test]
async fn more_watches_than_a_connection_carries_all_open_and_short_requests_go_on() {
    let listener = limited("limited", 100);
    let rig = Setup::new().service("limited", &[listener.address]).start().await;
    let clients = clients(&rig, 4).await;
    let watch = Ask::get(path("limited", "things?watch=1"));
    let opening = clients.iter().flat_map(|client| (0..75).map(|_| client.ask(&watch)));
    let open = within("300 watches", join_all(opening)).await;
    assert!(open.iter().all(|answer| answer.as_ref().is_ok_and(|answer| answer.status() == 200)));
    assert!(listener.accepted() >= 3, "{}", listener.accepted());
    let mut other = rig.alice(Protocol::Http2).await;
    for _ in 0..20 {
        assert_eq!(other.get(&path("limited", "things")).await.status, 200);
    }
    rig.await_metric("apiserver_longrunning_requests", &[], 300.0).await;
    drop(open);
    rig.await_metric("apiserver_longrunning_requests", &[], 0.0).await;
}

#[tokio::test]
async fn a_tiny_stream_limit_is_no_limit_for_callers() {
    for streams in [1, 10] {
        let listener = limited("tiny", streams);
        let rig = Setup::new().service("tiny", &[listener.address]).start().await;
        let client = rig.alice(Protocol::Http2).await.http2();
        let watch = Ask::get(path("tiny", "things?watch=1"));
        let short = Ask::get(path("tiny", "things"));
        let watches = within("watches", join_all((0..30).map(|_| client.ask(&watch)))).await;
        assert!(watches.iter().all(Result::is_ok), "limit {streams}");
        let answers = within("answers", join_all((0..60).map(|_| client.ask(&short)))).await;
        let ok = |answer: &Result<Response<_>, _>| {
            answer.as_ref().is_ok_and(|answer| answer.status() == 200)
        };
        assert!(answers.iter().all(ok), "limit {streams}");
    }
}

#[tokio::test]
async fn requests_share_a_connection_and_watches_have_their_own() {
    let mut backend = Backend::start("shared", HTTP2);
    let rig = Setup::new().service("shared", &[backend.address()]).start().await;
    let client = rig.alice(Protocol::Http2).await.http2();
    let short = Ask::get(path("shared", "things"));
    let answers = within("answers", join_all((0..50).map(|_| client.ask(&short)))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(backend.listener.accepted(), 1);
    let watch = Ask::get(path("shared", "events?watch=1"));
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push((client.ask(&watch).await.unwrap(), backend.watch().await));
    }
    assert_eq!(backend.listener.accepted(), 2);
}

fn connections(seen: &[Value], anonymous: bool) -> HashSet<u64> {
    let of_anonymous = |told: &&Value| {
        let headers = told["headers"].as_array().unwrap();
        headers.iter().any(|pair| pair[1] == "system:anonymous") == anonymous
    };
    seen.iter().filter(of_anonymous).map(|told| told["connection"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn anonymous_requests_never_share_a_connection_with_others() {
    for protocols in [HTTP2, HTTP1] {
        let backend = Backend::start("apart", protocols);
        let rig = Setup::new().service("apart", &[backend.address()]).start().await;
        for _ in 0..3 {
            let things = Ask::get(path("apart", "things"));
            let anonymous = things.clone().header("x-remote-user", "system:anonymous");
            let named = things.header("x-remote-user", "carol");
            let mut asking = Vec::new();
            for ask in [&anonymous, &named, &anonymous, &named] {
                let client = rig.connect(Protocol::Http2, Some(&PKI.front_proxy)).await.http2();
                asking.push(async move {
                    let answer = client.ask(ask).await.unwrap();
                    // The connection of an anonymous caller ends; its body comes nevertheless.
                    let (head, mut body) = answer.into_parts();
                    while let Some(data) = body.data().await {
                        data.unwrap();
                    }
                    head.status
                });
            }
            let codes = within("answers", join_all(asking)).await;
            assert!(codes.iter().all(|code| *code == 200), "{codes:?}");
        }
        let seen = backend.seen();
        let (anonymous, named) = (connections(&seen, true), connections(&seen, false));
        assert!(anonymous.is_disjoint(&named), "{anonymous:?} {named:?}");
        assert!(!anonymous.is_empty() && !named.is_empty());
    }
}

#[tokio::test]
async fn load_spreads_over_the_endpoints_of_a_service() {
    for protocols in [HTTP2, HTTP1] {
        let backends = [Backend::start("several", protocols), Backend::start("several", protocols)];
        let addresses = backends.each_ref().map(Backend::address);
        let rig = Setup::new().service("several", &addresses).start().await;
        let mut client = rig.alice(Protocol::Http2).await;
        for _ in 0..60 {
            assert_eq!(client.get(&path("several", "things")).await.status, 200);
        }
        // All on one side has a probability of 2^-59.
        assert!(backends.iter().all(|backend| !backend.seen().is_empty()));
    }
}

#[tokio::test]
async fn an_endpoint_that_refuses_connections_is_covered_by_another() {
    let backend = Backend::start("half", HTTP2);
    let rig = Setup::new().service("half", &[nobody(), backend.address()]).start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    for _ in 0..40 {
        assert_eq!(client.get(&path("half", "things")).await.status, 200);
        let post = Ask::new("POST", path("half", "things")).body("once");
        assert_eq!(client.send(&post).await.status, 200);
    }
    assert_eq!(backend.seen().len(), 80, "each reached the living one, once");
}

#[tokio::test]
async fn no_request_is_lost_on_a_backend_that_sends_goaway_after_each_answer() {
    let listener =
        Listener::http2("parting", h2::server::Builder::new(), |mut connection, _| async move {
            while let Some(Ok((request, answer))) = connection.accept().await {
                respond(&request, answer);
                connection.graceful_shutdown();
            }
        });
    let rig = Setup::new().service("parting", &[listener.address]).start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    for at in 0..60 {
        let ask = if at % 2 == 0 {
            Ask::get(path("parting", "things"))
        } else {
            Ask::new("DELETE", path("parting", "things/a"))
        };
        let answer = client.send(&ask).await;
        assert_eq!(answer.status, 200, "request {at}: {}", answer.text());
    }
    assert!(listener.accepted() > 1);
}

fn brief(_: &mut Config, tuning: &mut Tuning) {
    tuning.upstream.idle_timeout = Duration::from_millis(200);
}

#[tokio::test]
async fn idle_connections_are_closed_and_busy_ones_are_not() {
    for protocols in [HTTP2, HTTP1] {
        let mut backend = Backend::start("idle", protocols);
        let rig = Setup::new().service("idle", &[backend.address()]).edit(brief).start().await;
        let mut client = rig.alice(Protocol::Http2).await;
        assert_eq!(client.get(&path("idle", "things")).await.status, 200);
        let mut watcher = rig.alice(Protocol::Http2).await;
        let mut opened = watcher.open(&Ask::get(path("idle", "events?watch=1"))).await;
        let watch = backend.watch().await;
        eventually("one connection is left", async || backend.listener.open() == 1).await;
        watch.send(Ok(hyper::body::Frame::data("event".into()))).await.unwrap();
        assert_eq!(opened.body.read(5).await, b"event");
        assert_eq!(client.get(&path("idle", "things")).await.status, 200);
    }
}

/// Refuses the first stream of all and takes every later one.
fn refusing_once(service: &str, seen: &Arc<AtomicUsize>) -> Listener {
    let seen = Arc::clone(seen);
    Listener::http2(service, h2::server::Builder::new(), move |mut connection, _| {
        let seen = Arc::clone(&seen);
        async move {
            while let Some(Ok((request, mut answer))) = connection.accept().await {
                if seen.fetch_add(1, Ordering::SeqCst) == 0 {
                    answer.send_reset(h2::Reason::REFUSED_STREAM);
                } else {
                    respond(&request, answer);
                }
            }
        }
    })
}

#[tokio::test]
async fn a_refused_stream_is_tried_again_and_an_aborted_one_is_not() {
    let seen = Arc::new(AtomicUsize::new(0));
    let listener = refusing_once("refusing", &seen);
    let rig = Setup::new().service("refusing", &[listener.address]).start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    let delete = Ask::new("DELETE", path("refusing", "things/a"));
    assert_eq!(client.send(&delete).await.status, 200);
    assert_eq!(seen.load(Ordering::SeqCst), 2);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let listener =
        Listener::http2("aborting", h2::server::Builder::new(), move |mut connection, _| {
            let count = Arc::clone(&counted);
            async move {
                while let Some(Ok((_, mut answer))) = connection.accept().await {
                    count.fetch_add(1, Ordering::SeqCst);
                    answer.send_reset(h2::Reason::CANCEL);
                }
            }
        });
    let rig = Setup::new().service("aborting", &[listener.address]).start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    let post = Ask::new("POST", path("aborting", "things"));
    assert_eq!(client.send(&post).await.status, 503);
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

/// Refuses the first stream of all after it has read it, and tells of every later one what it sent.
fn refusing_what_it_read(service: &str, read: &mpsc::Sender<usize>) -> Listener {
    let (seen, read) = (Arc::new(AtomicUsize::new(0)), read.clone());
    Listener::http2(service, h2::server::Builder::new(), move |mut connection, _| {
        let (seen, read) = (Arc::clone(&seen), read.clone());
        async move {
            while let Some(Ok((request, mut answer))) = connection.accept().await {
                let (seen, read) = (Arc::clone(&seen), read.clone());
                drop(spawn("stream", async move {
                    let mut body = request.into_body();
                    let mut bytes = 0;
                    while let Some(Ok(data)) = body.data().await {
                        bytes += data.len();
                        body.flow_control().release_capacity(data.len()).ok();
                    }
                    if seen.fetch_add(1, Ordering::SeqCst) == 0 {
                        answer.send_reset(h2::Reason::REFUSED_STREAM);
                    } else {
                        read.send(bytes).await.unwrap();
                        answer.send_response(Response::new(()), true).unwrap();
                    }
                }));
            }
        }
    })
}

#[tokio::test]
async fn a_refused_request_is_sent_again_with_its_body_unless_that_is_long() {
    for (bytes, status) in [(64 * 1024, 200), (64 * 1024 + 1, 503)] {
        let (told, mut read) = mpsc::channel(8);
        let listener = refusing_what_it_read("reading", &told);
        let rig = Setup::new().service("reading", &[listener.address]).start().await;
        let mut client = rig.alice(Protocol::Http2).await;
        let post = Ask::new("POST", path("reading", "things")).body(vec![b'x'; bytes]);
        assert_eq!(client.send(&post).await.status, status);
        assert_eq!(read.try_recv().ok(), (status == 200).then_some(bytes));
        if status == 200 {
            rig.await_metric("portico_retries_total", &["BackendReset"], 1.0).await;
        }
    }
}

#[tokio::test]
async fn an_external_name_is_resolved() {
    let backend = Backend::start("outside", HTTP2);
    let port = format!("name: outside, port: {}}}", backend.address().port());
    let api_service = api_service("outside").replace("name: outside}", &port);
    let service = service("outside").replace(
        "spec: {ports: [{name: https, port: 443}]}",
        "spec: {type: ExternalName, externalName: localhost}",
    );
    let rig = Setup::new().manifest("outside.yaml", &(api_service + &service)).start().await;
    let answer = rig.alice(Protocol::Http2).await.get(&path("outside", "things")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn two_hundred_requests_at_once_pass_to_a_backend_of_one_at_a_time() {
    let backend = Backend::start("serial", HTTP1);
    let rig = Setup::new().service("serial", &[backend.address()]).start().await;
    let clients = clients(&rig, 4).await;
    let ask = Ask::get(path("serial", "things"));
    let asking = clients.iter().flat_map(|client| (0..50).map(|_| client.ask(&ask)));
    let answers = within("answers", join_all(asking)).await;
    assert!(
        answers.iter().all(|answer| answer.as_ref().is_ok_and(|answer| answer.status() == 200))
    );
    assert_eq!(backend.seen().len(), 200);
}

#[tokio::test]
async fn http1_connections_are_used_again() {
    let backend = Backend::start("kept", HTTP1);
    let rig = Setup::new().service("kept", &[backend.address()]).start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    for at in 0..30 {
        // Between two requests the connection finds its way back.
        rig.await_metric("portico_endpoint_requests_in_flight", &[], 0.0).await;
        assert_eq!(client.get(&path("kept", "things")).await.status, 200, "{at}");
    }
    assert!(backend.listener.accepted() < 10, "{}", backend.listener.accepted());
}

#[tokio::test]
async fn a_connection_that_answers_no_pings_is_given_up() {
    let listener =
        Listener::http2("frozen", h2::server::Builder::new(), |mut connection, _| async move {
            let first = connection.accept().await;
            std::future::pending::<()>().await;
            drop((first, connection));
        });
    let setup = Setup::new().service("frozen", &[listener.address]).edit(|_, tuning| {
        tuning.upstream.ping_interval = Duration::from_millis(100);
        tuning.upstream.ping_timeout = Duration::from_millis(100);
    });
    let rig = setup.start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    let answer = client.get(&path("frozen", "things?watch=1")).await;
    assert_eq!((answer.status, answer.cause().as_str()), (504, "Unresponsive"));
}
