//! The front end against clients that are careless, slow, greedy or hostile.

use std::net::SocketAddr;
use std::time::Duration;

use portico::app::Tuning;
use portico::config::Config;
use portico::frontend::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::client::{Ask, BOTH, Client, Protocol, tls};
use crate::http1_client::Http1;
use crate::http2_client::Http2;
use crate::pki::PKI;
use crate::proxying::Pair;
use crate::rig::{Rig, Setup, eventually, path, within};

const SHORT: Duration = Duration::from_millis(200);

fn limited(change: impl Fn(&mut Limits) + 'static) -> Setup {
    Setup::new()
        .edit(move |config: &mut Config, _: &mut Tuning| change(&mut config.frontend.limits))
}

async fn raw(rig: &Rig) -> Http1 {
    Http1::new(tls(rig.address, "http/1.1", Some(&PKI.alice)).await)
}

#[tokio::test]
async fn requests_that_servers_may_understand_differently_are_refused() {
    let pair = Pair::start().await;
    let target = path("one", "mirror");
    let host = "Host: localhost\r\n";
    let cases = [
        (format!("GET {target} HTTP/1.1\r\n\r\n"), 400),
        (format!("GET {target} HTTP/1.1\r\n{host}{host}\r\n"), 400),
        (format!("GET {target} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), 400),
        (format!("GET {target} HTTP/1.1\r\nHost: a b\r\n\r\n"), 400),
        (format!("GET {target} HTTP/1.1\r\nHost:\r\n folded\r\n\r\n"), 400),
        (format!("GET {target} HTTP/1.1\r\n{host}X-A: b\r\n folded\r\n\r\n"), 400),
        (format!("GET {target} HTTP/1.1\r\n{host}X-A : b\r\n\r\n"), 400),
        (format!("GET {target} HTTP/1.1\r\n{host}X A: b\r\n\r\n"), 400),
        (format!("GET {target} HTTP/1.1\r\n{host}: b\r\n\r\n"), 400),
        (format!("POST {target} HTTP/1.1\r\n{host}Content-Length: 3, 3\r\n\r\nabc"), 400),
        (format!("POST {target} HTTP/1.1\r\n{host}Content-Length: +3\r\n\r\nabc"), 400),
        (format!("POST {target} HTTP/1.1\r\n{host}Content-Length: -3\r\n\r\nabc"), 400),
        (
            format!(
                "POST {target} HTTP/1.1\r\n{host}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"
            ),
            400,
        ),
        (
            format!("POST {target} HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            format!(
                "POST {target} HTTP/1.1\r\n{host}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"
            ),
            400,
        ),
        (
            format!(
                "POST {target} HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
            ),
            501,
        ),
        (
            format!(
                "POST {target} HTTP/1.1\r\n{host}Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n"
            ),
            501,
        ),
        (
            format!(
                "POST {target} HTTP/1.1\r\n{host}Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            501,
        ),
        (format!("GET {target}\u{7f} HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("GET  {target} HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("GET {target} HTTP/3.0\r\n{host}\r\n"), 400),
        (format!("OPTIONS * HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("CONNECT localhost:443 HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("GET {target}%zz HTTP/1.1\r\n{host}\r\n"), 400),
    ];
    for (request, code) in cases {
        let mut client = raw(&pair.rig).await;
        client.write(&request).await;
        let (status, _) = within(&request, client.head(false)).await.unwrap();
        assert_eq!(status, code, "{request}");
    }
    assert_eq!(pair.one.seen().len(), 0);
}

#[tokio::test]
async fn a_request_with_length_and_chunks_is_read_as_chunks_and_its_connection_closed() {
    let pair = Pair::start().await;
    let mut client = raw(&pair.rig).await;
    let target = path("one", "things");
    let smuggled = format!("GET {target}/smuggled HTTP/1.1\r\nHost: h\r\n\r\n");
    let request = format!(
        "POST {target} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\n{smuggled}",
        smuggled.len() + 5
    );
    client.write(request).await;
    let (status, _) = within("the answer", client.head(false)).await.unwrap();
    assert!(status == 200 || status == 400, "{status}");
    while client.next_chunk().await.is_some() {}
    assert_eq!(within("the connection's end", client.closed()).await, 0);
    assert!(pair.one.seen().iter().all(|told| told["target"] == target.as_str()));
}

#[tokio::test]
async fn a_header_block_over_the_limit_is_refused() {
    let rig = limited(|limits| limits.header_bytes_max = 16 * 1024).start().await;
    let large = "x".repeat(20 * 1024);
    let mut client = raw(&rig).await;
    client.write(format!("GET /version HTTP/1.1\r\nHost: h\r\nX-Large: {large}\r\n\r\n")).await;
    assert_eq!(within("an answer", client.head(false)).await.unwrap().0, 431);
    let mut client = rig.alice(Protocol::Http2).await;
    match client.try_send(&Ask::get("/version").header("x-large", &large)).await {
        Ok(answer) => assert_eq!(answer.status, 431),
        Err(error) => assert!(error.contains("stream error"), "{error}"),
    }
    for protocol in BOTH {
        let small = Ask::get("/version").header("x-small", &"x".repeat(8 * 1024));
        assert_eq!(rig.alice(protocol).await.send(&small).await.status, 200);
    }
}

#[tokio::test]
async fn headers_of_a_megabyte_less_a_little_pass_by_default() {
    let pair = Pair::start().await;
    for protocol in BOTH {
        let large = "x".repeat(200 * 1024);
        let ask = Ask::get(path("one", "things")).header("x-large", &large);
        let answer = pair.rig.alice(protocol).await.send(&ask).await;
        assert_eq!(answer.status, 200, "{protocol:?}");
        assert!(answer.text().contains(&large));
    }
}

#[tokio::test]
async fn an_http1_client_that_is_slow_with_its_headers_is_closed() {
    let rig = limited(|limits| limits.first_request_timeout = SHORT).start().await;
    for part in ["", "GET /vers", "GET /version HTTP/1.1\r\nHost: h\r\nX-Slow: "] {
        let mut client = raw(&rig).await;
        client.write(part).await;
        within("the connection's end", client.closed()).await;
    }
}

#[tokio::test]
async fn an_http2_connection_without_a_request_is_closed() {
    let rig = limited(|limits| {
        limits.first_request_timeout = SHORT;
        limits.ping_timeout = SHORT;
    });
    let rig = rig.start().await;
    let mut silent = tls(rig.address, "h2", Some(&PKI.alice)).await;
    let mut sink = Vec::new();
    within("the end of a silent connection", silent.read_to_end(&mut sink)).await.ok();
    let Client::Http2(mut idle) = rig.alice(Protocol::Http2).await else { unreachable!() };
    assert_eq!(idle.goaway().await, h2::Reason::NO_ERROR);
}

/// Anonymous requests one after the other on one connection, whose pings stay unanswered; how many
/// were answered until it ended.
async fn anonymous_flood(rig: &Rig, most: u32) -> u32 {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // GET, https, /, and the authority, as HPACK has them.
    const FIELDS: &[u8] = b"\x82\x87\x84\x41\x09localhost";
    let (mut reader, mut writer) = tokio::io::split(tls(rig.address, "h2", None).await);
    writer.write_all(PREFACE).await.unwrap();
    for answered in 0..most {
        let stream = (2 * answered + 1).to_be_bytes();
        let mut frame = vec![0, 0, u8::try_from(FIELDS.len()).unwrap(), 1, 5];
        frame.extend(stream.iter().chain(FIELDS));
        if writer.write_all(&frame).await.is_err() {
            return answered;
        }
        loop {
            let mut head = [0; 9];
            if reader.read_exact(&mut head).await.is_err() {
                return answered;
            }
            let length =
                usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            reader.read_exact(&mut vec![0; length]).await.unwrap();
            if head[3] == 1 && head[5..] == stream {
                break;
            }
        }
    }
    most
}

#[tokio::test]
async fn an_anonymous_client_that_does_not_heed_goaway_is_cut_off() {
    let rig = limited(|limits| limits.streams_max = 10).start().await;
    let answered = within("the end of a flood", anonymous_flood(&rig, 1000)).await;
    // Those before GOAWAY (one, or a few more by chance), and as many as may be on their way then.
    assert!((11..20).contains(&answered), "{answered}");
}

#[tokio::test]
async fn an_http2_connection_that_is_idle_is_closed() {
    let rig = limited(|limits| limits.idle_timeout = SHORT).start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    assert_eq!(client.get("/version").await.status, 200);
    assert_eq!(client.http2().goaway().await, h2::Reason::NO_ERROR);
}

#[tokio::test]
async fn a_watch_without_events_is_not_idle() {
    let setup = limited(|limits| limits.idle_timeout = SHORT);
    let mut pair = Pair::start_with(setup).await;
    let client = pair.rig.alice(Protocol::Http2).await.http2();
    let ask = Ask::get(path("two", "events?watch=1"));
    let mut response = client.ask(&ask).await.unwrap();
    let watch = pair.two.watch().await;
    // Another connection that became idle later is closed first.
    let mut other = pair.rig.alice(Protocol::Http2).await;
    assert_eq!(other.get("/version").await.status, 200);
    other.http2().closed().await;
    watch.send(Ok(hyper::body::Frame::data("event".into()))).await.unwrap();
    let event = within("an event", response.body_mut().data()).await.unwrap().unwrap();
    assert_eq!(&event[..], b"event");
}

async fn closed(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut sink = Vec::new();
    // A reset is a way to close, too.
    within("the connection's end", stream.read_to_end(&mut sink)).await.ok();
    assert!(sink.is_empty());
}

#[tokio::test]
async fn a_peer_that_never_handshakes_is_closed() {
    let rig = limited(|limits| limits.handshake_timeout = SHORT).start().await;
    closed(rig.address).await;
    rig.await_metric("apiserver_tls_handshake_errors_total", &[], 1.0).await;
}

#[tokio::test]
async fn a_connection_above_the_limit_is_closed_and_room_is_given_back() {
    let rig = limited(|limits| limits.connections_max = 3).start().await;
    let mut first = rig.alice(Protocol::Http2).await;
    assert_eq!(first.get("/version").await.status, 200);
    eventually("the rig's own connection is gone", async || {
        first.get("/metrics").await.text().contains("portico_connections 1")
    })
    .await;
    let second = rig.alice(Protocol::Http1).await;
    let third = rig.alice(Protocol::Http1).await;
    closed(rig.address).await;
    let rejected = "portico_rejected_connections_total{reason=\"limit\"} 1";
    assert!(first.get("/metrics").await.text().contains(rejected));
    drop((second, third));
    eventually("room", async || {
        first.get("/metrics").await.text().contains("portico_connections 1")
    })
    .await;
    assert_eq!(rig.alice(Protocol::Http1).await.get("/version").await.status, 200);
}

#[tokio::test]
async fn an_http2_client_may_have_as_many_requests_open_as_it_was_told() {
    let setup = limited(|limits| limits.streams_max = 7);
    let mut pair = Pair::start_with(setup).await;
    let mut client: Http2 = pair.rig.alice(Protocol::Http2).await.http2();
    let ask = Ask::get(path("two", "events?watch=1"));
    let mut open = Vec::new();
    for _ in 0..7 {
        open.push((client.ask(&ask).await.unwrap(), pair.two.watch().await));
    }
    assert_eq!(client.sender.current_max_send_streams(), 7);
    drop(open.pop());
    let other = client.open(&Ask::get("/version")).await.unwrap();
    assert_eq!(other.status, 200);
}

#[tokio::test]
async fn http_1_0_without_host_is_served() {
    let pair = Pair::start().await;
    let mut client = raw(&pair.rig).await;
    client.write("GET /version HTTP/1.0\r\n\r\n").await;
    assert_eq!(within("an answer", client.head(false)).await.unwrap().0, 200);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let pair = Pair::start().await;
    let mut client = raw(&pair.rig).await;
    let request = |at: usize| {
        let body = format!("body {at}");
        let target = path("two", "mirror");
        format!("POST {target} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    client.write((0..10).map(request).collect::<String>()).await;
    for at in 0..10 {
        let (status, _) = within("an answer", client.head(false)).await.unwrap();
        assert_eq!(status, 200);
        let body = client.next_chunk().await.unwrap().unwrap();
        assert_eq!(&body[..], format!("body {at}").as_bytes());
        assert!(client.next_chunk().await.is_none());
    }
}

#[tokio::test]
async fn more_header_lines_than_are_taken_are_refused_on_both_protocols() {
    let pair = Pair::start().await;
    for protocol in BOTH {
        let mut ask = Ask::get(path("one", "mirror"));
        for line in 0..300 {
            ask = ask.header(&format!("x-line-{line}"), "1");
        }
        let answer = pair.rig.alice(protocol).await.send(&ask).await;
        assert_eq!(answer.status, 431, "{protocol:?}");
    }
}

#[tokio::test]
async fn a_connection_header_without_measure_is_refused() {
    let pair = Pair::start().await;
    let listed = "a,".repeat(2000);
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: a\r\nConnection: {listed}b\r\n\r\n",
        path("one", "mirror")
    );
    let mut client = raw(&pair.rig).await;
    client.write(request.as_bytes()).await;
    assert_eq!(client.head(false).await.unwrap().0, 431);
}

#[tokio::test]
async fn a_client_without_tls_is_told_so() {
    let rig = Setup::new().start().await;
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(b"GET /apis HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    within("an answer", stream.read_to_end(&mut answer)).await.unwrap();
    let text = String::from_utf8(answer).unwrap();
    assert!(text.starts_with("HTTP/1.0 400 Bad Request\r\n"), "{text}");
    assert!(text.ends_with("Client sent an HTTP request to an HTTPS server.\n"), "{text}");
}
