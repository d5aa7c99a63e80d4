//! Clients that misbehave get nothing for it: what ends them, that others are served meanwhile, and
//! that nothing of theirs is left.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use portico::app::Tuning;
use portico::body::Stalls;
use portico::config::Config;
use portico::frontend::Limits;
use socket2::{SockFilter, SockRef};

use crate::backend::{Backend, HTTP2};
use crate::client::{Ask, BOTH, Client, Opened, Protocol, tls};
use crate::http1_client::Http1;
use crate::pki::PKI;
use crate::proxying::Pair;
use crate::raw_http2::{
    ACK, CALM, CONTINUATION, DATA, END_STREAM, Frame, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM,
    RawHttp2, SETTINGS, WINDOW_UPDATE, block,
};
use crate::rig::{Rig, Setup, path, within};

const SHORT: Duration = Duration::from_millis(200);
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3600);

fn limited(change: impl Fn(&mut Limits) + 'static) -> Setup {
    Setup::new()
        .edit(move |config: &mut Config, _: &mut Tuning| change(&mut config.frontend.limits))
}

/// The one that behaves, whose connection was there before and goes on.
struct Other(Client);

impl Other {
    async fn new(rig: &Rig) -> Self {
        let mut other = Self(rig.alice(Protocol::Http2).await);
        other.is_served().await;
        other
    }

    async fn is_served(&mut self) {
        let answer = within("an answer", self.0.get(&path("two", "things"))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// Nothing is left but this one's connection, and that which asks.
    async fn finds_nothing_left(self, rig: &Rig) {
        for gauge in [
            "portico_apiservice_requests_in_flight",
            "portico_endpoint_requests_in_flight",
            "apiserver_longrunning_requests",
        ] {
            rig.await_metric(gauge, &[], 0.0).await;
        }
        rig.await_metric("apiserver_current_inflight_requests", &[], 1.0).await;
        rig.await_metric("portico_connections", &[], 2.0).await;
    }
}

async fn check_flood(
    what: &str,
    settings: &[(u16, u32)],
    first: &[Frame],
    batch: impl FnMut(u32) -> Vec<Frame>,
) {
    let pair = Pair::start_with(limited(|limits| limits.idle_frames_max = 100)).await;
    let mut other = Other::new(&pair.rig).await;
    let mut client = RawHttp2::connect(&pair.rig, settings).await;
    client.send(first).await.unwrap();
    let (code, ()) = tokio::join!(client.flood(batch), other.is_served());
    assert_eq!(code, Some(CALM), "{what}");
    other.is_served().await;
    other.finds_nothing_left(&pair.rig).await;
    let ended = pair.rig.metric("portico_rejected_connections_total", &["\"flood\""]).await;
    assert_eq!(ended, Some(1.0), "{what}");
}

#[tokio::test]
async fn frames_that_bring_nothing_end_their_connection_when_they_are_too_many() {
    let hanging = Frame::head(1, "GET", &path("two", "hang"), END_STREAM);
    let uploading = Frame::head(1, "POST", &path("two", "mirror"), 0);
    let room = 1_u32.to_be_bytes();
    let cases: [(&str, &Frame, Frame); 6] = [
        ("pings", &hanging, Frame::new(PING, 0, 0, &[1; 8])),
        ("settings", &hanging, Frame::new(SETTINGS, 0, 0, &[0, 4, 0, 0, 1, 0])),
        ("priorities", &hanging, Frame::new(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("room for a byte", &hanging, Frame::new(WINDOW_UPDATE, 0, 0, &room)),
        ("bytes", &uploading, Frame::new(DATA, 0, 1, b"x")),
        ("frames that nobody knows", &hanging, Frame::new(99, 0, 0, b"")),
    ];
    for (what, first, frame) in cases {
        check_flood(what, &[], std::slice::from_ref(first), |_| vec![frame.clone(); 20]).await;
    }
}

#[tokio::test]
async fn a_large_answer_that_is_let_in_byte_by_byte_ends_its_connection() {
    let large = Frame::head(1, "GET", &path("two", "large-1000000"), END_STREAM);
    let byte = Frame::new(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes());
    check_flood("windows of a byte", &[(4, 1)], &[large], |_| vec![byte.clone(); 20]).await;
}

#[tokio::test]
async fn streams_that_are_reset_at_once_end_their_connection() {
    let pair = Pair::start_with(limited(|limits| limits.idle_frames_max = 100)).await;
    let mut other = Other::new(&pair.rig).await;
    let mut client = RawHttp2::connect(&pair.rig, &[]).await;
    let cancel = 8_u32.to_be_bytes();
    let ended = async {
        for number in 0.. {
            // Let in before the next ones come, or the library's own limit would be met first.
            let mut frames = vec![Frame::new(PING, 0, 0, &[1; 8])];
            for stream in (0..5).map(|at| 2 * (5 * number + at) + 1) {
                frames.push(Frame::head(stream, "GET", &path("two", "hang"), END_STREAM));
                frames.push(Frame::new(RST_STREAM, 0, stream, &cancel));
            }
            // Why it cannot be written to is still to be read.
            client.send(&frames).await.ok();
            let answer = client.until(&[PING, GOAWAY]).await;
            if answer.kind == GOAWAY {
                return answer.code();
            }
        }
        0
    };
    assert_eq!(within("the end", ended).await, CALM);
    other.is_served().await;
    other.finds_nothing_left(&pair.rig).await;
    pair.rig.await_metric("portico_rejected_connections_total", &["\"flood\""], 1.0).await;
}

/// What h2 itself does not take from a client.
async fn check_library(what: &str, first: &[Frame], batch: impl FnMut(u32) -> Vec<Frame>) {
    let pair = Pair::start().await;
    let mut other = Other::new(&pair.rig).await;
    let mut client = RawHttp2::connect(&pair.rig, &[]).await;
    client.send(first).await.unwrap();
    let (code, ()) = tokio::join!(client.flood(batch), other.is_served());
    assert_eq!(code, Some(CALM), "{what}");
    other.finds_nothing_left(&pair.rig).await;
}

#[tokio::test]
async fn a_head_that_never_ends_ends_its_connection() {
    let head = Frame::new(HEADERS, END_STREAM, 1, &block("GET", "/version"));
    // A field that is not indexed: a: b.
    let more = Frame::new(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b']);
    check_library("CONTINUATION", &[head], |_| vec![more.clone(); 20]).await;
}

#[tokio::test]
async fn data_without_bytes_ends_its_connection() {
    let head = Frame::head(1, "POST", &path("two", "mirror"), 0);
    let empty = Frame::new(DATA, 0, 1, b"");
    check_library("empty DATA", &[head], |_| vec![empty.clone(); 20]).await;
}

#[tokio::test]
async fn streams_that_a_client_has_the_server_reset_end_its_connection() {
    // A window that overflows is the stream's own fault.
    let overflow = 0x7fff_ffff_u32.to_be_bytes();
    let reset = |number: u32| {
        let stream = 2 * number + 1;
        let head = Frame::head(stream, "GET", &path("two", "hang"), END_STREAM);
        vec![head, Frame::new(WINDOW_UPDATE, 0, stream, &overflow)]
    };
    check_library("resets by the server", &[], reset).await;
}

#[tokio::test]
async fn an_http2_client_that_is_slow_with_its_headers_is_closed() {
    let setup = limited(|limits| {
        limits.first_request_timeout = SHORT;
        limits.ping_timeout = SHORT;
    });
    let pair = Pair::start_with(setup).await;
    let mut client = RawHttp2::connect(&pair.rig, &[]).await;
    let unfinished = Frame::new(HEADERS, END_STREAM, 1, &block("GET", "/version"));
    client.send(&[unfinished]).await.unwrap();
    within("the connection's end", async { while client.next().await.is_some() {} }).await;
}

#[tokio::test]
async fn a_body_that_never_comes_holds_its_request_no_longer_than_its_time() {
    let setup = Setup::new().edit(|config: &mut Config, _: &mut Tuning| {
        config.proxy.request_timeout = Duration::from_millis(500);
    });
    let pair = Pair::start_with(setup).await;
    let other = Other::new(&pair.rig).await;
    let target = path("two", "mirror");
    let mut client = Http1::new(tls(pair.rig.address, "http/1.1", Some(&PKI.alice)).await);
    client
        .write(format!("POST {target} HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nslow"))
        .await;
    assert_eq!(within("an answer", client.head(false)).await.unwrap().0, 504);
    within("the connection's end", client.closed()).await;
    let mut client = RawHttp2::connect(&pair.rig, &[]).await;
    let body = Frame::new(DATA, 0, 1, b"slow");
    client.send(&[Frame::head(1, "POST", &target, 0), body]).await.unwrap();
    client.until(&[HEADERS]).await;
    client.until(&[DATA]).await;
    drop(client);
    other.finds_nothing_left(&pair.rig).await;
}

/// A watch of more than any buffer takes, which its client does not read.
async fn unread<'a>(client: &'a mut Client, backend: &mut Backend) -> Opened<'a> {
    let opened = client.open(&Ask::get(path("two", "events?watch=1"))).await;
    assert_eq!(opened.status, 200);
    let watch = backend.watch().await;
    let event = Bytes::from(vec![b'x'; 64 << 20]);
    watch.send(Ok(hyper::body::Frame::data(event))).await.unwrap();
    opened
}

#[tokio::test]
async fn a_watch_whose_client_does_not_read_is_cut_and_others_are_served_meanwhile() {
    for protocol in BOTH {
        let stalls = || Arc::new(Stalls::new(SHORT, usize::MAX));
        let mut pair = Pair::start_with(limited(move |limits| limits.stalls = stalls())).await;
        let mut other = Other::new(&pair.rig).await;
        let mut client = pair.rig.alice(protocol).await;
        let opened = unread(&mut client, &mut pair.two).await;
        other.is_served().await;
        let stalled = ["verb=\"WATCH\"", "cause=\"ClientStalled\""];
        pair.rig.await_metric("apiserver_request_aborts_total", &stalled, 1.0).await;
        pair.rig.await_metric("portico_endpoint_requests_in_flight", &[], 0.0).await;
        drop(opened);
        drop(client);
        other.is_served().await;
        other.finds_nothing_left(&pair.rig).await;
    }
}

#[tokio::test]
async fn watches_that_are_not_read_keep_no_more_than_so_many_bytes_between_them() {
    // Room for one stream's window, and not for two.
    let stalls = || Arc::new(Stalls::new(LONG, 300 * 1024));
    let mut pair = Pair::start_with(limited(move |limits| limits.stalls = stalls())).await;
    let other = Other::new(&pair.rig).await;
    let stalled = ["cause=\"ClientStalled\""];
    let mut one = pair.rig.alice(Protocol::Http2).await;
    let first_unread = unread(&mut one, &mut pair.two).await;
    let mut second = pair.rig.alice(Protocol::Http2).await;
    let second_unread = unread(&mut second, &mut pair.two).await;
    pair.rig.await_metric("apiserver_request_aborts_total", &stalled, 1.0).await;
    pair.rig.await_metric("portico_endpoint_requests_in_flight", &[], 1.0).await;
    drop((first_unread, second_unread));
    drop((one, second));
    other.finds_nothing_left(&pair.rig).await;
}

#[tokio::test]
async fn a_peer_that_vanished_without_a_word_is_given_up() {
    let setup = limited(|limits| {
        (limits.idle_timeout, limits.ping_interval, limits.ping_timeout) = (SHORT, SHORT, SHORT);
    });
    let mut pair = Pair::start_with(setup).await;
    let mut client = RawHttp2::connect(&pair.rig, &[]).await;
    let watch = Frame::head(1, "GET", &path("two", "events?watch=1"), END_STREAM);
    client.send(&[Frame::new(SETTINGS, ACK, 0, b""), watch]).await.unwrap();
    let watch = pair.two.watch().await;
    let stream = client.into_inner();
    // From here on its kernel drops all that comes: nothing is acknowledged, and nothing refused.
    let drop_all = [SockFilter::new(0x06, 0, 0, 0)];
    SockRef::from(stream.get_ref().0).attach_filter(&drop_all).unwrap();
    within("the watch's end at the backend", watch.closed()).await;
    pair.rig.await_metric("portico_connections", &[], 1.0).await;
}

#[tokio::test]
async fn idle_connections_keep_nobody_from_being_served() {
    let backend = Backend::start("two", HTTP2);
    let rig = Setup::new().service("two", &[backend.address()]).start().await;
    let mut idle = Vec::new();
    for _ in 0..50 {
        for protocol in ["h2", "http/1.1"] {
            idle.push(tls(rig.address, protocol, Some(&PKI.alice)).await);
        }
    }
    let mut other = Other::new(&rig).await;
    other.is_served().await;
    drop(idle);
    other.finds_nothing_left(&rig).await;
}

#[tokio::test]
async fn large_answers_that_are_given_up_cost_other_callers_nothing() {
    let mut pair = Pair::start().await;
    let mut other = pair.rig.alice(Protocol::Http2).await;
    let mut waiting = other.open(&Ask::get(path("two", "events"))).await;
    let watch = pair.two.watch().await;
    // Each time a hundred answers are given up while they are on their way.
    for round in 1..=20 {
        let mut client = RawHttp2::connect(&pair.rig, &[(4, 0)]).await;
        let large = path("two", "large-1000000");
        let head = |at: u32| Frame::head(2 * at + 1, "GET", &large, END_STREAM);
        client.send(&(0..100).map(head).collect::<Vec<_>>()).await.unwrap();
        client.until(&[HEADERS]).await;
        drop(client);
        pair.rig.await_metric("portico_endpoint_requests_in_flight", &[], 1.0).await;
        watch.send(Ok(hyper::body::Frame::data("x".into()))).await.unwrap();
        assert_eq!(waiting.body.read(1).await, b"x", "round {round}");
    }
    drop(watch);
    waiting.body.collect().await.unwrap();
    assert_eq!(pair.two.listener.accepted(), 1);
}

#[tokio::test]
async fn bodies_that_come_after_their_answers_are_no_misbehaviour() {
    let rig = Setup::new().start().await;
    let mut client = RawHttp2::connect(&rig, &[]).await;
    let room = Frame::new(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    client.send(&[room]).await.unwrap();
    for round in 0..30 {
        let streams: Vec<u32> = (0..100).map(|at| 2 * (100 * round + at) + 1).collect();
        let head =
            |stream: &u32| Frame::head(*stream, "POST", "/apis/nobody.example.com/v1/things", 0);
        client.send(&streams.iter().map(head).collect::<Vec<_>>()).await.unwrap();
        for _ in &streams {
            client.until(&[HEADERS]).await;
        }
        // As of one who had begun to send.
        let late = |stream: &u32| Frame::new(DATA, END_STREAM, *stream, b"late");
        client.send(&streams.iter().map(late).collect::<Vec<_>>()).await.unwrap();
    }
    client.send(&[Frame::head(6001, "GET", "/version", END_STREAM)]).await.unwrap();
    loop {
        let frame = client.until(&[HEADERS, GOAWAY]).await;
        assert_ne!(frame.kind, GOAWAY, "{}", frame.code());
        if frame.stream == 6001 {
            return;
        }
    }
}
