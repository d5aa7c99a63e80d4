//! The ending in two steps, and what the metrics say when all is over.

use hyper::body::Frame;
use tokio::net::TcpStream;

use crate::backend::{Backend, HTTP2};
use crate::client::{Ask, Client, Protocol};
use crate::pki::PKI;
use crate::proxying::Pair;
use crate::rig::{Setup, eventually, path, within};

/// One request and one watch are open when the ending begins.
async fn end(protocol: Protocol) {
    let mut backend = Backend::start("last", HTTP2);
    let rig = Setup::new().service("last", &[backend.address()]).start().await;
    let (mut short, mut long) = (rig.alice(protocol).await, rig.alice(protocol).await);
    let mut answer = short.open(&Ask::get(path("last", "events"))).await;
    let held = backend.watch().await;
    let mut watching = long.open(&Ask::get(path("last", "events?watch=1"))).await;
    let watch = backend.watch().await;
    let address = rig.address;
    let mut refused = false;
    let ending = rig.stop();
    tokio::pin!(ending);
    while !refused {
        tokio::select! {
            biased;
            () = &mut ending => panic!("a request is still under way"),
            connected = TcpStream::connect(address) => refused = connected.is_err(),
        }
    }
    let finishing = async {
        held.send(Ok(Frame::data("late but whole".into()))).await.unwrap();
        drop(held);
        let (body, _) = answer.body.collect().await.unwrap();
        assert_eq!(&body[..], b"late but whole", "{protocol:?}");
        // The watch is open for as long as others may end by themselves.
        watching.body.cut().await;
        within("the watch's end at the backend", watch.closed()).await;
    };
    within("the ending", async { tokio::join!(&mut ending, finishing) }).await;
}

#[tokio::test]
async fn an_ending_answers_what_is_under_way_and_cuts_watches() {
    tokio::join!(end(Protocol::Http1), end(Protocol::Http2));
}

#[tokio::test]
async fn an_ending_without_traffic_waits_for_nobody() {
    let rig = Setup::new().start().await;
    within("the ending", rig.stop()).await;
}

/// Two watches, of which one is in the midst of an event when the ending begins.
async fn end_in_turn(protocol: Protocol) {
    let mut backend = Backend::start("last", HTTP2);
    let setup = Setup::new().flag("--shutdown-watch-termination-grace-period=1h");
    let rig = setup.service("last", &[backend.address()]).start().await;
    let (mut one, mut other) = (rig.alice(protocol).await, rig.alice(protocol).await);
    let mut whole = one.open(&Ask::get(path("last", "events?watch=1"))).await;
    let watch = backend.watch().await;
    watch.send(Ok(Frame::data("{}\n".into()))).await.unwrap();
    whole.body.read(3).await;
    let mut half = other.open(&Ask::get(path("last", "events?watch=1"))).await;
    let rest = backend.watch().await;
    rest.send(Ok(Frame::data("{".into()))).await.unwrap();
    half.body.read(1).await;
    let finishing = async {
        assert_eq!(whole.body.collect().await.unwrap().0.len(), 0, "{protocol:?}");
        within("the watch's end at the backend", watch.closed()).await;
        rest.send(Ok(Frame::data("}\n".into()))).await.unwrap();
        assert_eq!(&half.body.collect().await.unwrap().0[..], b"}\n", "{protocol:?}");
        within("the other watch's end at the backend", rest.closed()).await;
    };
    within("the ending", async { tokio::join!(rig.stop(), finishing) }).await;
}

#[tokio::test]
async fn watches_that_are_given_time_end_after_a_whole_event() {
    tokio::join!(end_in_turn(Protocol::Http1), end_in_turn(Protocol::Http2));
}

#[tokio::test]
async fn before_a_delayed_ending_readiness_fails_and_all_is_served() {
    let backend = Backend::start("last", HTTP2);
    let setup = Setup::new().flag("--shutdown-delay-duration=1h");
    let rig = setup.service("last", &[backend.address()]).start().await;
    let mut kept = rig.alice(Protocol::Http2).await;
    assert_eq!(kept.get("/readyz").await.status, 200);
    let address = rig.address;
    let serving = async {
        eventually("not ready", async || kept.get("/readyz").await.status == 500).await;
        assert_eq!(kept.get("/livez").await.status, 200);
        let mut fresh = Client::connect(address, Protocol::Http1, Some(&PKI.alice)).await;
        assert_eq!(fresh.get(&path("last", "things")).await.status, 200);
    };
    tokio::select! {
        () = rig.stop() => panic!("the ending does not wait"),
        () = serving => {}
    }
}

#[tokio::test]
async fn requests_are_counted_and_nothing_stays_in_flight() {
    let mut pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        assert_eq!(client.get(&path(name, "things/a")).await.status, 200);
        assert_eq!(client.send(&Ask::new("POST", path(name, "code-409"))).await.status, 409);
        assert_eq!(client.get(&path(name, "large-100000")).await.status, 200);
        // One that is left half-way, and a watch that is left.
        drop(client.open(&Ask::get(path(name, "large-3000000"))).await);
        drop(client);
        let mut client = pair.rig.alice(protocol).await;
        drop(client.open(&Ask::get(path(name, "events?watch=1"))).await);
        let watch = if name == "two" { pair.two.watch().await } else { pair.one.watch().await };
        drop(client);
        within("the watch's end at the backend", watch.closed()).await;
    }
    let mut refused = pair.rig.connect(Protocol::Http1, None).await;
    assert_eq!(refused.get("/apis").await.status, 401);
    drop(refused);
    let mut proxied = pair.rig.connect(Protocol::Http2, Some(&PKI.front_proxy)).await;
    let anonymous = Ask::get(path("two", "things")).header("x-remote-user", "system:anonymous");
    assert_eq!(proxied.send(&anonymous).await.status, 200);
    drop(proxied);
    for gauge in [
        "portico_apiservice_requests_in_flight",
        "portico_endpoint_requests_in_flight",
        "apiserver_longrunning_requests",
    ] {
        pair.rig.await_metric(gauge, &[], 0.0).await;
    }
    let mutating = ["request_kind=\"mutating\""];
    pair.rig.await_metric("apiserver_current_inflight_requests", &mutating, 0.0).await;
    // The scrape itself.
    let read_only = ["request_kind=\"readOnly\""];
    pair.rig.await_metric("apiserver_current_inflight_requests", &read_only, 1.0).await;
    pair.rig.await_metric("portico_connections", &[], 1.0).await;
    let rig = &pair.rig;
    for group in ["group=\"two.example.com\"", "group=\"one.example.com\""] {
        let count = async |verb, code| {
            rig.metric("apiserver_request_total", &[group, verb, code]).await.unwrap_or_default()
        };
        assert!(count("verb=\"POST\"", "code=\"409\"").await > 1.5, "{group}");
        assert!(count("verb=\"WATCH\"", "code=\"200\"").await > 1.5, "{group}");
        assert!(count("verb=\"GET\"", "code=\"200\"").await > 1.5, "{group}");
        assert!(count("verb=\"LIST\"", "code=\"200\"").await > 1.5, "{group}");
    }
    for service in ["service=\"e2e/two\"", "service=\"e2e/one\""] {
        let name = service.trim_start_matches("service=\"e2e/").trim_end_matches('"');
        let mut client = rig.alice(Protocol::Http2).await;
        assert_eq!(client.get(&path(name, "things")).await.status, 200);
        for result in ["2xx", "4xx"] {
            let result = format!("result=\"{result}\"");
            let total = rig.metric("portico_endpoint_requests_total", &[service, &result]).await;
            assert!(total.unwrap_or_default() > 1.5, "{service} {result}");
        }
        let open = rig.metric("portico_endpoint_connections", &[service]).await;
        assert!(open.unwrap_or_default() > 0.5, "{service}");
    }
}

#[tokio::test]
async fn failures_are_counted_by_cause() {
    let rig = Setup::new().service("gone", &[crate::faults::nobody()]).start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    assert_eq!(client.get(&path("gone", "things")).await.status, 503);
    let labels = ["group=\"gone.example.com\"", "cause=\"ConnectRefused\"", "code=\"503\""];
    rig.await_metric("apiserver_request_terminations_total", &labels, 1.0).await;
    rig.await_metric("portico_apiservice_requests_in_flight", &[], 0.0).await;
}
