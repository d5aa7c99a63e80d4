//! Upgrades that end in an answer: the backend's own, a typed fault, or a refusal before it is asked.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Error;

use crate::backend::{HTTP2, Listener};
use crate::client::{Ask, Protocol, tls};
use crate::http1_client::Http1;
use crate::pki::{PKI, backend_tls};
use crate::rig::{BOBS_TOKEN, Setup, eventually, path, within};
use crate::switch_backend::SwitchBackend;
use crate::upgrades::{SPDY, Tunnels, exec, head, library, rejection, token, upgrade, websocket};

#[tokio::test]
async fn a_refusal_reaches_the_client_as_it_is_and_ends_both_connections() {
    let tunnels = Tunnels::start().await;
    for (last, code) in [("code-403", 403), ("code-500", 500), ("offer", 426)] {
        for ask in [upgrade("POST", &exec(last), SPDY), websocket(last)] {
            let mut client = tunnels.client(Some(&PKI.alice)).await;
            let mut opened = within("an answer", client.open(&ask)).await.unwrap();
            let (body, _) = opened.body.collect().await.unwrap();
            assert_eq!((opened.status, &body[..]), (code, &b"no tunnels today"[..]));
            assert!(opened.headers["connection"].to_str().unwrap().starts_with("close"));
            if last == "offer" {
                assert_eq!(opened.headers["upgrade"], SPDY);
            }
            assert_eq!(within("the end", client.closed()).await, 0);
        }
    }
    eventually("the backend's end", async || tunnels.backend.listener.open() == 0).await;
    assert_eq!(tunnels.backend.listener.accepted(), 6);
}

#[tokio::test]
async fn a_client_library_sees_the_backends_refusal() {
    let tunnels = Tunnels::start().await;
    let Err(Error::Http(response)) = library(&tunnels.rig, Some(&PKI.alice), "code-403", "").await
    else {
        panic!("no answer in HTTP");
    };
    assert_eq!(response.status(), 403);
}

#[tokio::test]
async fn an_answer_that_is_neither_the_switch_nor_an_error_is_a_typed_fault() {
    let tunnels = Tunnels::start().await;
    for (last, code, cause) in [
        ("code-200", 503, "InvalidUpgrade"),
        ("code-304", 503, "InvalidUpgrade"),
        ("moved", 502, "Redirect"),
        ("other", 502, "WrongUpgrade"),
        ("two", 502, "WrongUpgrade"),
        ("none", 502, "WrongUpgrade"),
        ("token", 502, "WrongUpgrade"),
    ] {
        for ask in [upgrade("POST", &exec(last), SPDY), websocket(last)] {
            assert_eq!(tunnels.refused(&ask).await, (code, cause.to_owned()), "{last}");
        }
    }
    let mut client = tunnels.client(Some(&PKI.alice)).await;
    let (_, _, message) = rejection(&mut client, &websocket("code-204")).await;
    assert!(message.ends_with("invalid upgrade response: status code 204"), "{message}");
    eventually("the backend's end", async || tunnels.backend.listener.open() == 0).await;
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_a_fault_of_the_backends() {
    let backend = Listener::tls(backend_tls("odd", &["http/1.1"]), |mut stream, _| async move {
        stream.read_u8().await.unwrap();
        let text =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
        stream.write_all(text.as_bytes()).await.unwrap();
        while stream.read_u8().await.is_ok() {}
    });
    let rig = Setup::new().service("odd", &[backend.address]).start().await;
    let mut client = rig.alice(Protocol::Http1).await;
    // Listed nowhere, so nothing is asked for.
    let ask = Ask::get(path("odd", "things")).header("Upgrade", "websocket");
    let answer = client.send(&ask).await;
    assert_eq!((answer.status, answer.cause().as_str()), (502, "WrongUpgrade"));
    assert_eq!(client.get("/livez").await.status, 200);
}

#[tokio::test]
async fn other_protocols_and_requests_with_a_body_are_refused_before_the_backend_is_asked() {
    let tunnels = Tunnels::start().await;
    let protocols = ["h2c", "TLS/1.0", "websocket, h2c", "HTTP/2.0", "SPDY", "", "connect-udp"];
    for protocol in protocols {
        let (code, message) = tunnels.refused(&upgrade("GET", &exec("echo"), protocol)).await;
        assert_eq!(code, 400, "{protocol}");
        assert_eq!(message, "only upgrades to websocket and SPDY are allowed");
    }
    let two = upgrade("GET", &exec("echo"), "websocket").header("Upgrade", "h2c");
    assert_eq!(tunnels.refused(&two).await.0, 400);
    let with_body = Ask::new("POST", exec("echo"))
        .header("Connection", "Upgrade")
        .header("Upgrade", SPDY)
        .body("x");
    for ask in [with_body.clone(), with_body.chunked()] {
        let (code, message) = tunnels.refused(&ask).await;
        assert_eq!(code, 400);
        assert_eq!(message, "a request for an upgrade may not have a body");
    }
    assert_eq!(tunnels.backend.listener.accepted(), 0);
}

#[tokio::test]
async fn a_path_that_is_no_resource_of_a_backend_takes_no_upgrade() {
    let tunnels = Tunnels::start().await;
    for target in [
        "/apis/up.example.com/v1",
        "/apis/up.example.com/v1/",
        "/apis/up.example.com",
        "/apis",
        "/apis/apiregistration.k8s.io/v1/apiservices",
        "/livez",
        "/healthz",
        "/readyz",
        "/metrics",
        "/version",
        "/openapi/v2",
        "/",
    ] {
        for protocol in ["websocket", SPDY] {
            let (code, message) = tunnels.refused(&upgrade("GET", target, protocol)).await;
            assert_eq!(code, 400, "{target}");
            assert_eq!(message, "this path does not take upgrades to another protocol", "{target}");
        }
    }
    // Where nobody serves anything, that is the answer.
    let nobody = upgrade("GET", "/apis/nobody.example.com/v1/things", "websocket");
    assert_eq!(tunnels.refused(&nobody).await.0, 404);
    let undecodable = upgrade("GET", "/apis/up.example.com/v1/things/%zz", "websocket");
    assert_eq!(tunnels.refused(&undecodable).await.0, 400);
    assert_eq!(tunnels.backend.listener.accepted(), 0);
}

#[tokio::test]
async fn a_wrong_token_among_the_subprotocols_is_refused_and_none_counts_elsewhere() {
    let tunnels = Tunnels::start().await;
    let good = token(BOBS_TOKEN);
    let refused = [
        format!("{}, v5", token("wrong")),
        good.clone(),
        format!("{good}, v5, {good}"),
        "base64url.bearer.authorization.k8s.io.!, v5".to_owned(),
        "v5".to_owned(),
    ];
    for protocols in refused {
        let ask = websocket("echo").header("Sec-WebSocket-Protocol", &protocols);
        let mut client = tunnels.client(None).await;
        assert_eq!(rejection(&mut client, &ask).await.0, 401, "{protocols}");
    }
    let both = format!("{good}, v5");
    let elsewhere = [
        upgrade("POST", &exec("echo"), SPDY).header("Sec-WebSocket-Protocol", &both),
        websocket("echo"),
    ];
    for ask in elsewhere {
        let mut client = tunnels.client(None).await;
        assert_eq!(rejection(&mut client, &ask).await.0, 401);
    }
    let plain = Ask::get(exec("echo")).header("Sec-WebSocket-Protocol", &both);
    let mut client = tunnels.rig.connect(Protocol::Http2, None).await;
    assert_eq!(client.send(&plain).await.status, 401);
    assert_eq!(tunnels.backend.listener.accepted(), 0);
}

#[tokio::test]
async fn endpoints_that_cannot_be_reached_are_named_and_others_are_tried() {
    let backend = SwitchBackend::start("two");
    let gone: SocketAddr = crate::faults::nobody();
    let http2 = Listener::tls(backend_tls("pure", &["h2"]), |_, _| async {});
    let silent = Listener::tls(backend_tls("silent", HTTP2), |_, _| async {});
    let rig = Setup::new()
        .service("two", &[gone, backend.address()])
        .service("gone", &[gone])
        .service("none", &[])
        .service("pure", &[http2.address])
        .service("silent", &[silent.address])
        .start()
        .await;
    for (name, cause) in [
        ("gone", "ConnectRefused"),
        ("none", "EndpointsNotFound"),
        ("pure", "HandshakeFailed"),
        ("silent", "BackendReset"),
    ] {
        let mut client = Http1::new(tls(rig.address, "http/1.1", Some(&PKI.alice)).await);
        let ask = upgrade("POST", &path(name, "things/a/exec"), SPDY);
        let (code, got, message) = rejection(&mut client, &ask).await;
        assert_eq!((code, got.as_str()), (503, cause), "{message}");
    }
    for _ in 0..10 {
        let mut client = Http1::new(tls(rig.address, "http/1.1", Some(&PKI.alice)).await);
        client.send(&upgrade("POST", &path("two", "things/a/echo"), SPDY)).await;
        assert_eq!(head(&mut client).await.0, 101);
    }
}

#[tokio::test]
async fn http2_offers_no_tunnel_and_takes_no_upgrade() {
    let tunnels = Tunnels::start().await;
    let client = tunnels.rig.alice(Protocol::Http2).await.http2();
    let request = http::Request::get(format!("https://localhost{}", exec("echo")));
    let request = request.header("upgrade", "websocket").body(()).unwrap();
    assert!(client.start(request, true).await.is_err());
    assert!(!client.sender.is_extended_connect_protocol_enabled());
    assert_eq!(tunnels.backend.listener.accepted(), 0);
}
