//! What is sent arrives as it was sent, over each protocol on both sides.

use bytes::Bytes;
use serde_json::Value;

use crate::backend::{Backend, HTTP1, HTTP2, MIRRORED, told};
use crate::client::{Ask, BOTH, Client, Protocol};
use crate::rig::{Rig, Setup, path};

/// Larger than every window and buffer on the way.
const LARGE: usize = 5 * 1024 * 1024;

/// Behind one portico: `two` speaks HTTP/2, `one` HTTP/1.1 only.
pub(crate) struct Pair {
    pub(crate) rig: Rig,
    pub(crate) two: Backend,
    pub(crate) one: Backend,
}

impl Pair {
    pub(crate) async fn start() -> Self {
        Self::start_with(Setup::new()).await
    }

    pub(crate) async fn start_with(setup: Setup) -> Self {
        let (two, one) = (Backend::start("two", HTTP2), Backend::start("one", HTTP1));
        let setup = setup.service("two", &[two.address()]).service("one", &[one.address()]);
        Self { rig: setup.start().await, two, one }
    }

    /// Every way through: the client's protocol and the backend's name.
    pub(crate) fn ways() -> impl Iterator<Item = (Protocol, &'static str)> {
        BOTH.into_iter().flat_map(|protocol| ["two", "one"].map(|name| (protocol, name)))
    }
}

#[tokio::test]
async fn every_method_reaches_the_backend_over_each_pair_of_protocols() {
    let pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let answer = client.send(&Ask::new(method, path(name, "things/a"))).await;
            assert_eq!(answer.status, 200, "{protocol:?} {name} {method}");
            let got = answer.json();
            assert_eq!(got["method"], method);
            let version = if name == "two" { "HTTP/2.0" } else { "HTTP/1.1" };
            assert_eq!(got["version"], version);
        }
    }
}

#[tokio::test]
async fn path_and_query_go_byte_for_byte() {
    let pair = Pair::start().await;
    let targets = [
        "things/a%2Fb",
        "things/a%3Ab",
        "things/a:b",
        "things/%7E~%41",
        "things/a;x=1;y",
        "things/a+b",
        "things/a//b/",
        "things/trailing/",
        "things?z=1&a=2&m=3",
        "things?fieldSelector=metadata.name%3Da&labelSelector=a%20in+(b,c)",
        "things?flag&empty=&semi=a;b&bad=%zz",
        "things?q=a%2Fb%26c&q=second",
        "things?",
        "things/a%e2%82%ac",
    ];
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        for target in targets {
            let target = path(name, target);
            let answer = client.get(&target).await;
            assert_eq!(answer.status, 200, "{protocol:?} {target} {}", answer.text());
            assert_eq!(answer.json()["target"], target, "{protocol:?}");
        }
    }
}

#[tokio::test]
async fn the_backend_sees_its_own_authority_and_the_clients_host_in_x_forwarded_host() {
    let pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let ask = Ask::get(path(name, "things//a/?x=1"))
            .header("x-forwarded-for", "10.9.8.7")
            .header("x-forwarded-host", "evil")
            .header("x-forwarded-proto", "http")
            .header("x-forwarded-uri", "/evil")
            .header("audit-id", "mine");
        let answer = client.send(&ask).await;
        assert_eq!(answer.header("audit-id"), "mine");
        let got = answer.json();
        let authority = format!("{name}.e2e.svc:443");
        if name == "two" {
            assert_eq!(got["authority"], authority.as_str());
        } else {
            assert_eq!(told(&got, "headers", "host"), [authority.as_str()]);
        }
        assert_eq!(told(&got, "headers", "x-forwarded-for"), ["10.9.8.7, 127.0.0.1"]);
        assert_eq!(told(&got, "headers", "x-forwarded-host"), ["localhost"]);
        assert_eq!(told(&got, "headers", "x-forwarded-proto"), ["https"]);
        assert_eq!(told(&got, "headers", "x-forwarded-uri"), [path(name, "things/a/").as_str()]);
        assert_eq!(told(&got, "headers", "audit-id"), ["mine"]);
    }
}

#[tokio::test]
async fn large_bodies_pass_whole_in_both_directions() {
    let pair = Pair::start().await;
    let body: Bytes =
        (0..LARGE).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<_>>().into();
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let ask = Ask::new("POST", path(name, "mirror")).body(body.clone());
        let answer = client.send(&ask).await;
        assert_eq!(answer.status, 200);
        assert!(answer.body == body, "{protocol:?} {name} mirrored another body");
    }
}

#[tokio::test]
async fn an_upload_without_length_passes_whole() {
    let pair = Pair::start().await;
    let body = Bytes::from(vec![b'y'; 300 * 1024]);
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let ask = Ask::new("POST", path(name, "mirror")).body(body.clone()).chunked();
        assert!(client.send(&ask).await.body == body, "{protocol:?} {name}");
    }
}

#[tokio::test]
async fn a_get_may_have_a_body() {
    let pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        for ask in [Ask::get(path(name, "things")), Ask::get(path(name, "things")).chunked()] {
            let answer = client.send(&ask.body("with a body")).await;
            assert_eq!(answer.json()["bytes"], 11, "{protocol:?} {name}");
        }
    }
}

#[tokio::test]
async fn answers_without_body_pass_and_the_connection_goes_on() {
    let pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        for code in [204, 304, 404, 500, 503] {
            let answer = client.get(&path(name, &format!("code-{code}"))).await;
            assert_eq!(answer.status, code, "{protocol:?} {name}");
            assert!(answer.body.is_empty());
        }
        let head = client.send(&Ask::new("HEAD", path(name, "things"))).await;
        assert_eq!((head.status, head.header("content-length")), (200, "7"), "{protocol:?} {name}");
        assert!(head.body.is_empty());
        assert_eq!(client.get(&path(name, "things")).await.status, 200);
    }
}

#[tokio::test]
async fn response_trailers_pass_on_http2_and_on_http1_when_announced() {
    let pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        for what in ["announced", "trailers"] {
            let ask = Ask::get(path(name, what)).header("te", "trailers");
            let answer = client.send(&ask).await;
            assert_eq!(&answer.body[..], MIRRORED);
            // hyper's HTTP/1.1 server sends announced trailers only, at the backend as at portico.
            if what == "announced" || (protocol, name) == (Protocol::Http2, "two") {
                let checksum = answer.trailers.get("x-checksum");
                assert_eq!(checksum.unwrap(), "abc", "{protocol:?} {name} {what}");
            }
        }
    }
}

#[tokio::test]
async fn request_trailers_pass() {
    let pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let ask = Ask::new("POST", path(name, "things"))
            .header("trailer", "x-checksum")
            .header("te", "trailers")
            .body("data")
            .trailer("x-checksum", "abc");
        let got: Value = client.send(&ask).await.json();
        assert_eq!(got["bytes"], 4);
        assert_eq!(told(&got, "trailers", "x-checksum"), ["abc"], "{protocol:?} {name}");
    }
}

#[tokio::test]
async fn an_expectation_of_100_continue_is_answered_by_the_front_end() {
    let pair = Pair::start().await;
    let Client::Http1(mut client) = pair.rig.alice(Protocol::Http1).await else { unreachable!() };
    let target = path("two", "mirror");
    client
        .write(format!(
            "POST {target} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        ))
        .await;
    let mut first = Vec::new();
    while !first.ends_with(b"\r\n\r\n") {
        first.push(client.byte().await);
    }
    assert!(first.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&first));
    client.write("data").await;
    assert_eq!(client.head(false).await.unwrap().0, 200);
    assert_eq!(&client.next_chunk().await.unwrap().unwrap()[..], b"data");
}

#[tokio::test]
async fn a_response_with_a_length_keeps_it() {
    let pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let answer = client.get(&path(name, "large-70000")).await;
        assert_eq!(answer.header("content-length"), "70000", "{protocol:?} {name}");
        assert_eq!(answer.body.len(), 70_000);
        assert_eq!(answer.headers.get_all("cache-control").iter().count(), 1);
        assert_eq!(answer.headers.get_all("audit-id").iter().count(), 1);
        assert_eq!(answer.headers.get_all("date").iter().count(), 1);
    }
}
