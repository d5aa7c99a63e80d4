//! WebSocket and SPDY through portico: what passes, for how long, and how a tunnel ends.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::{SinkExt as _, StreamExt as _};
use http::HeaderMap;
use portico::tls::pki::PemPair;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::backend::{Backend, HTTP2};
use crate::client::{Ask, Protocol, tls};
use crate::http1_client::Http1;
use crate::pki::PKI;
use crate::rig::{BOBS_TOKEN, Rig, Setup, eventually, path, within};
use crate::switch_backend::{Head, SwitchBackend};

pub(crate) const SPDY: &str = "SPDY/3.1";

/// Portico before one backend that switches protocols.
pub(crate) struct Tunnels {
    pub(crate) rig: Rig,
    pub(crate) backend: SwitchBackend,
}

impl Tunnels {
    pub(crate) async fn start() -> Self {
        let backend = SwitchBackend::start("up");
        let rig = Setup::new().service("up", &[backend.address()]).start().await;
        Self { rig, backend }
    }

    pub(crate) async fn client(&self, pair: Option<&PemPair>) -> Http1 {
        Http1::new(tls(self.rig.address, "http/1.1", pair).await)
    }

    /// The answer of what the path's last part names, to alice.
    async fn ask(&self, ask: &Ask) -> (u16, HeaderMap, Http1) {
        let mut client = self.client(Some(&PKI.alice)).await;
        client.send(ask).await;
        let (status, headers) = head(&mut client).await;
        (status, headers, client)
    }

    /// A tunnel of alice's, through which nothing has gone.
    async fn open(&self, last: &str) -> Http1 {
        let (status, headers, client) = self.ask(&upgrade("POST", &exec(last), SPDY)).await;
        assert_eq!(status, 101, "{headers:?}");
        client
    }

    /// The code and cause of an answer that is portico's own, after which the connection is closed.
    pub(crate) async fn refused(&self, ask: &Ask) -> (u16, String) {
        let mut client = self.client(Some(&PKI.alice)).await;
        let (status, cause, message) = rejection(&mut client, ask).await;
        assert_eq!(within("the end", client.closed()).await, 0);
        (status, if cause.is_empty() { message } else { cause })
    }

    fn last_seen(&self) -> Head {
        self.backend.seen().pop().unwrap()
    }
}

pub(crate) async fn head(client: &mut Http1) -> (u16, HeaderMap) {
    within("the head of an answer", client.any_head()).await.unwrap()
}

/// Code, cause and message of portico's own answer.
pub(crate) async fn rejection(client: &mut Http1, ask: &Ask) -> (u16, String, String) {
    let mut opened = within("an answer", client.open(ask)).await.unwrap();
    let (body, _) = opened.body.collect().await.unwrap();
    let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(opened.headers["connection"], "close", "{status}");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let cause = text(&status["details"]["causes"][0]["reason"]);
    (opened.status, cause, text(&status["message"]))
}

pub(crate) fn exec(last: &str) -> String {
    path("up", &format!("namespaces/n/things/a/{last}"))
}

pub(crate) fn upgrade(method: &str, target: &str, protocol: &str) -> Ask {
    let ask = Ask::new(method, target).header("Connection", "Upgrade").header("Upgrade", protocol);
    if method == "POST" { ask.header("Content-Length", "0") } else { ask }
}

pub(crate) fn websocket(last: &str) -> Ask {
    upgrade("GET", &exec(last), "websocket")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("Sec-WebSocket-Version", "13")
}

pub(crate) fn token(text: &str) -> String {
    format!("base64url.bearer.authorization.k8s.io.{}", BASE64_URL_SAFE_NO_PAD.encode(text))
}

pub(crate) type Socket = WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>;

/// A WebSocket as a client library opens it; `protocols` are the subprotocols it asks for.
pub(crate) async fn library(
    rig: &Rig,
    pair: Option<&PemPair>,
    last: &str,
    protocols: &str,
) -> Result<(Socket, HeaderMap), Error> {
    let stream = tls(rig.address, "http/1.1", pair).await;
    let uri = format!("wss://localhost{}", exec(last));
    let mut request = uri.into_client_request().unwrap();
    if !protocols.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocols.parse().unwrap());
    }
    let opening = Box::pin(client_async(request, stream));
    let (socket, response) = within("a WebSocket", opening).await?;
    Ok((socket, response.headers().clone()))
}

async fn echo_message(socket: &mut Socket, message: Message) {
    within("a message", socket.send(message.clone())).await.unwrap();
    assert_eq!(within("its echo", socket.next()).await.unwrap().unwrap(), message);
}

async fn echo(client: &mut Http1, bytes: &[u8]) {
    client.write(bytes).await;
    assert_eq!(within("an echo", client.bytes(bytes.len())).await.unwrap(), bytes);
}

#[tokio::test]
async fn websocket_messages_of_a_client_library_pass_both_ways() {
    let tunnels = Tunnels::start().await;
    let (mut socket, headers) =
        library(&tunnels.rig, Some(&PKI.alice), "messages", "v5.channel.k8s.io").await.unwrap();
    assert_eq!(headers["sec-websocket-protocol"], "v5.channel.k8s.io");
    assert!(headers.contains_key("audit-id"));
    echo_message(&mut socket, Message::text("hello")).await;
    echo_message(&mut socket, Message::binary(vec![7; 3_000_000])).await;
    within("the close", socket.close(None)).await.unwrap();
    while let Some(Ok(_)) = within("the end", socket.next()).await {}
    eventually("the backend's end", async || tunnels.backend.listener.open() == 0).await;
}

#[tokio::test]
async fn spdy_bytes_pass_both_ways_after_a_get_and_after_a_post() {
    let tunnels = Tunnels::start().await;
    for method in ["GET", "POST"] {
        let target = exec("echo?command=sh&command=%2Fbin&tty");
        let ask = upgrade(method, &target, "spdy/3.1")
            .header("X-Stream-Protocol-Version", "v4.channel.k8s.io");
        let (status, headers, mut client) = tunnels.ask(&ask).await;
        assert_eq!((status, &headers["x-told"]), (101, &"yes".parse().unwrap()));
        assert_eq!(headers["upgrade"], "spdy/3.1");
        assert_eq!(headers["connection"], "Upgrade");
        assert!(headers.contains_key("audit-id"));
        echo(&mut client, b"\x80\x03\x00\x01").await;
        echo(&mut client, &vec![9; 50_000]).await;
        let seen = tunnels.last_seen();
        assert_eq!(seen.line, format!("{method} {target} HTTP/1.1"));
        assert_eq!(seen.alpn, "http/1.1");
        assert_eq!(seen.values("host"), ["up.e2e.svc:443"]);
        assert_eq!(seen.values("connection"), ["Upgrade"]);
        assert_eq!(seen.values("upgrade"), ["spdy/3.1"]);
        assert_eq!(seen.values("x-stream-protocol-version"), ["v4.channel.k8s.io"]);
    }
    assert_eq!(tunnels.backend.listener.accepted(), 2);
}

#[tokio::test]
async fn bytes_right_behind_the_request_and_right_behind_the_101_are_carried() {
    let tunnels = Tunnels::start().await;
    let mut client = tunnels.client(Some(&PKI.alice)).await;
    let target = exec("greet");
    let request = format!(
        "POST {target} HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: {SPDY}\r\n\
         Content-Length: 0\r\n\r\nGET /early HTTP/1.1\r\n\r\n"
    );
    client.write(request).await;
    assert_eq!(head(&mut client).await.0, 101);
    let expected = b"helloGET /early HTTP/1.1\r\n\r\n";
    assert_eq!(within("both", client.bytes(expected.len())).await.unwrap(), &expected[..]);
    echo(&mut client, b"late").await;
}

#[tokio::test]
async fn the_backend_learns_who_is_calling_and_no_forged_identity_passes() {
    let tunnels = Tunnels::start().await;
    let ask = websocket("echo")
        .header("X-Remote-User", "evil")
        .header("X_Remote_Group", "system:masters")
        .header("X-Remote-Extra-Scopes", "evil")
        .header("Authorization", "Basic evil")
        .header("X-Forwarded-For", "1.2.3.4")
        .header("Connection", "X-Remote-User, X-Listed")
        .header("X-Listed", "dropped");
    let (status, headers, _client) = tunnels.ask(&ask).await;
    assert_eq!(status, 101);
    let seen = tunnels.last_seen();
    assert_eq!(seen.values("x-remote-user"), ["alice"]);
    assert_eq!(seen.values("x-remote-group"), ["dev", "system:authenticated"]);
    assert_eq!(seen.values("x-forwarded-for"), ["1.2.3.4, 127.0.0.1"]);
    assert_eq!(seen.values("connection"), ["Upgrade"]);
    assert_eq!(seen.values("sec-websocket-key"), ["dGhlIHNhbXBsZSBub25jZQ=="]);
    assert_eq!(seen.values("sec-websocket-version"), ["13"]);
    assert_eq!(seen.values("audit-id"), [headers["audit-id"].to_str().unwrap()]);
    let text = format!("{seen:?}").to_ascii_lowercase();
    assert!(
        !text.contains("evil") && !text.contains("masters") && !text.contains("listed"),
        "{text}"
    );
}

#[tokio::test]
async fn a_token_among_the_subprotocols_names_its_user_and_never_reaches_the_backend() {
    let tunnels = Tunnels::start().await;
    let good = token(BOBS_TOKEN);
    let protocols = format!("{good}, v5.channel.k8s.io, v4.channel.k8s.io");
    let (mut socket, headers) = library(&tunnels.rig, None, "messages", &protocols).await.unwrap();
    assert_eq!(headers["sec-websocket-protocol"], "v5.channel.k8s.io");
    echo_message(&mut socket, Message::text("hello")).await;
    let seen = tunnels.last_seen();
    assert_eq!(seen.values("x-remote-user"), ["bob"]);
    assert_eq!(seen.values("sec-websocket-protocol"), ["v5.channel.k8s.io, v4.channel.k8s.io"]);
    // Also where something else said who is calling.
    let opened = library(&tunnels.rig, Some(&PKI.alice), "messages", &protocols).await;
    assert!(opened.is_ok());
    let seen = tunnels.last_seen();
    assert_eq!(seen.values("x-remote-user"), ["alice"]);
    assert!(!format!("{seen:?}").contains("base64url.bearer"), "{seen:?}");
}

#[tokio::test]
async fn either_end_that_closes_closes_the_other() {
    let tunnels = Tunnels::start().await;
    let mut client = tunnels.open("leave").await;
    assert_eq!(within("the backend's last words", client.bytes(7)).await.unwrap(), "goodbye");
    assert_eq!(within("the end", client.closed()).await, 0);
    let mut client = tunnels.open("echo").await;
    echo(&mut client, b"hello").await;
    drop(client);
    eventually("the backend's end", async || tunnels.backend.listener.open() == 0).await;
    // The last words, however many, come before the end.
    let mut client = tunnels.open("large-5000000").await;
    within("all of it", client.bytes(5_000_000)).await.unwrap();
    assert_eq!(within("the end", client.closed()).await, 0);
}

#[tokio::test]
async fn large_copies_pass_whole_both_ways_at_once() {
    let tunnels = Tunnels::start().await;
    let mut uploading = tunnels.open("count").await;
    let mut downloading = tunnels.open("large-20000000").await;
    let upload = async {
        let part = vec![b'x'; 100_000];
        for _ in 0..200 {
            uploading.write(&part).await;
        }
        uploading.write("\n").await;
        assert_eq!(within("the count", uploading.bytes(9)).await.unwrap(), "20000001\n");
    };
    let download = async {
        for _ in 0..200 {
            within("a part", downloading.bytes(100_000)).await.unwrap();
        }
        assert_eq!(within("the end", downloading.closed()).await, 0);
    };
    tokio::join!(upload, download);
    let bytes = "portico_tunnel_bytes_total";
    for (direction, count) in [("to_backend", 20_000_001.0), ("to_client", 20_000_009.0)] {
        tunnels.rig.await_metric(bytes, &[&format!("direction=\"{direction}\"")], count).await;
    }
}

#[tokio::test]
async fn a_deadline_is_for_the_answer_and_not_for_the_tunnel() {
    let backend = SwitchBackend::start("up");
    let setup = Setup::new().service("up", &[backend.address()]);
    let short = Duration::from_millis(200);
    let rig = setup.edit(move |config, _| config.proxy.request_timeout = short).start().await;
    let tunnels = Tunnels { rig, backend };
    let mut open = tunnels.open("echo").await;
    // Where no request has a deadline, none has an upgrade.
    let mut waiting = tunnels.client(Some(&PKI.alice)).await;
    waiting.send(&upgrade("POST", &exec("exec/hang"), SPDY)).await;
    eventually("both at the backend", async || tunnels.backend.listener.open() == 2).await;
    let late = upgrade("POST", &exec("hang"), SPDY);
    for _ in 0..2 {
        assert_eq!(tunnels.refused(&late).await, (504, "Deadline".to_owned()));
    }
    eventually("the late ones' end", async || tunnels.backend.listener.open() == 2).await;
    echo(&mut open, b"still there").await;
    drop(waiting);
    eventually("the end of one that was left", async || tunnels.backend.listener.open() == 1).await;
}

#[tokio::test]
async fn tunnels_and_their_connections_are_counted_until_they_end() {
    let tunnels = Tunnels::start().await;
    let mut open = JoinSet::new();
    for _ in 0..100 {
        let address = tunnels.rig.address;
        open.spawn(async move {
            let mut client = Http1::new(tls(address, "http/1.1", Some(&PKI.alice)).await);
            client.send(&upgrade("POST", &exec("echo"), SPDY)).await;
            assert_eq!(head(&mut client).await.0, 101);
            echo(&mut client, &vec![3; 40_000]).await;
            client
        });
    }
    let clients = within("100 tunnels", open.join_all()).await;
    let gauges = [
        ("portico_tunnels", vec!["apiservice=\"v1.up.example.com\""]),
        ("portico_endpoint_connections", vec!["service=\"e2e/up\""]),
        ("portico_endpoint_requests_in_flight", vec!["service=\"e2e/up\""]),
        ("portico_apiservice_requests_in_flight", vec!["apiservice=\"v1.up.example.com\""]),
        ("apiserver_longrunning_requests", vec![]),
    ];
    for (gauge, labels) in &gauges {
        tunnels.rig.await_metric(gauge, labels, 100.0).await;
    }
    // The scrape's own.
    tunnels.rig.await_metric("portico_connections", &[], 101.0).await;
    drop(clients);
    for (gauge, labels) in &gauges {
        tunnels.rig.await_metric(gauge, labels, 0.0).await;
    }
    tunnels.rig.await_metric("portico_connections", &[], 1.0).await;
    let labels = ["group=\"up.example.com\"", "code=\"101\""];
    tunnels.rig.await_metric("apiserver_request_total", &labels, 100.0).await;
    eventually("the backend's end", async || tunnels.backend.listener.open() == 0).await;
}

#[tokio::test]
async fn a_tunnel_counts_against_the_limit_of_connections() {
    let backend = SwitchBackend::start("up");
    let setup = Setup::new().service("up", &[backend.address()]);
    let rig = setup.edit(|config, _| config.frontend.limits.connections_max = 3).start().await;
    let tunnels = Tunnels { rig, backend };
    let mut looking = tunnels.rig.alice(Protocol::Http1).await;
    eventually("no other connection", async || {
        looking.get("/metrics").await.text().contains("\nportico_connections 1\n")
    })
    .await;
    let mut first = tunnels.open("echo").await;
    let second = tunnels.open("echo").await;
    let mut fourth = TcpStream::connect(tunnels.rig.address).await.unwrap();
    let read = within("the end", fourth.read_u8()).await;
    assert!(read.is_err());
    echo(&mut first, b"still there").await;
    drop((first, second));
}

#[tokio::test]
async fn an_ending_lets_tunnels_go_on_while_others_finish_and_then_cuts_them() {
    let mut other = Backend::start("last", HTTP2);
    let backend = SwitchBackend::start("up");
    let rig = Setup::new()
        .service("last", &[other.address()])
        .service("up", &[backend.address()])
        .start()
        .await;
    let tunnels = Tunnels { rig, backend };
    let mut tunnel = tunnels.open("echo").await;
    let mut short = tunnels.rig.alice(Protocol::Http2).await;
    let mut answer = short.open(&Ask::get(path("last", "events"))).await;
    let held = other.watch().await;
    let Tunnels { rig, backend } = tunnels;
    let address = rig.address;
    let ending = rig.stop();
    tokio::pin!(ending);
    let mut refused = false;
    while !refused {
        tokio::select! {
            biased;
            () = &mut ending => panic!("a request is still under way"),
            connected = TcpStream::connect(address) => refused = connected.is_err(),
        }
    }
    let finishing = async {
        echo(&mut tunnel, b"during the drain").await;
        drop(held);
        answer.body.collect().await.unwrap();
        assert_eq!(within("the cut", tunnel.closed()).await, 0);
    };
    within("the ending", async { tokio::join!(&mut ending, finishing) }).await;
    eventually("the backend's end", async || backend.listener.open() == 0).await;
}
