//! Each way in which a backend can fail has its code, its word and its sentence, and tells nothing
//! about addresses.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::Response;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::backend::{Backend, HTTP1, HTTP2, Listener};
use crate::client::{Answer, Ask, BOTH, Protocol};
use crate::pki::{Leaf, PKI, backend_tls, backend_tls_of, backend_tls_with, host, only_tls12};
use crate::rig::{Setup, api_service, api_service_with, path, service, slices};

/// An answer of portico's own about a backend.
#[track_caller]
fn check(name: &str, answer: &Answer, code: u16, cause: &str, words: &str) {
    let status = answer.json();
    let context = format!("{name}: {status}");
    assert_eq!((answer.status, answer.cause().as_str()), (code, cause), "{context}");
    assert_eq!(status["kind"], "Status", "{context}");
    assert_eq!(status["code"], code, "{context}");
    assert_eq!(status["details"]["name"], format!("v1.{name}.example.com"), "{context}");
    assert!(status["message"].as_str().unwrap().contains(words), "{context}");
    assert!(!answer.headers.contains_key("retry-after"), "{context}");
    assert_eq!(answer.header("content-type"), "application/json", "{context}");
    assert!(!answer.text().contains("127.0.0.1"), "{context}");
}

/// Asks for a resource, a watch and the version's discovery over both protocols.
async fn check_all(setup: Setup, cases: &[(&str, u16, &str, &str)]) {
    let rig = setup.start().await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        for (name, code, cause, words) in cases {
            let version = path(name, "");
            for target in [
                &path(name, "things"),
                &path(name, "things?watch=1"),
                version.trim_end_matches('/'),
            ] {
                check(name, &client.get(target).await, *code, cause, words);
            }
            let post = Ask::new("POST", path(name, "things")).body("{}");
            check(name, &client.send(&post).await, *code, cause, words);
        }
    }
}

#[tokio::test]
async fn services_that_cannot_be_resolved_are_named() {
    let no_port = service("no-port").replace("443", "80");
    let not_ready = slices("not-ready", &["127.0.0.1:9".parse().unwrap()])
        .replace("{addresses", "{conditions: {ready: false}, addresses");
    let external = "spec: {type: ExternalName, externalName: ".to_owned();
    let unresolvable = format!("{external}{}.invalid}}", "a".repeat(70));
    let unresolvable =
        service("unresolvable").replace("spec: {ports: [{name: https, port: 443}]}", &unresolvable);
    let garbage =
        BASE64_STANDARD.encode("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let setup = Setup::new()
        .manifest("1.yaml", &api_service("no-service"))
        .manifest("2.yaml", &(api_service("no-port") + &no_port))
        .manifest("3.yaml", &(api_service("no-slices") + &service("no-slices")))
        .manifest("4.yaml", &(api_service("not-ready") + &service("not-ready") + &not_ready))
        .manifest("5.yaml", &(api_service("unresolvable") + &unresolvable))
        .manifest(
            "6.yaml",
            &(api_service_with("bad-bundle", &garbage)
                + &service("bad-bundle")
                + &slices("bad-bundle", &["127.0.0.1:9".parse().unwrap()])),
        );
    check_all(
        setup,
        &[
            ("no-service", 503, "ServiceNotFound", "service/no-service in \"e2e\" is not present"),
            ("no-port", 503, "ServicePortNotFound", "is not listening on port 443"),
            ("no-slices", 503, "EndpointsNotFound", "cannot find endpointslices"),
            ("not-ready", 503, "NoEndpoints", "no endpoints available"),
            ("unresolvable", 503, "NameNotResolved", "external name"),
            ("bad-bundle", 500, "InvalidCABundle", "caBundle"),
        ],
    )
    .await;
}

/// An address at which nobody listens.
pub(crate) fn nobody() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A backend whose TLS is this; what comes after the handshake is read and ignored.
fn silent(config: ServerConfig) -> Listener {
    Listener::tls(config, |mut stream, _| async move {
        let mut sink = [0; 1024];
        while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    })
}

#[tokio::test]
async fn faults_of_connecting_and_of_certificates_are_told_apart() {
    let sign = |leaf: Leaf| PKI.authority.sign(&leaf);
    let stranger = PKI.stranger.sign(&Leaf::server(&[&host("unknown")]));
    let unknown = silent(backend_tls_with(&stranger, HTTP2));
    let other = silent(backend_tls("some-other", HTTP2));
    let expired =
        silent(backend_tls_with(&sign(Leaf::server(&[&host("expired")]).expired()), HTTP2));
    let early = Leaf::server(&[&host("early")]).not_yet_valid();
    let early = silent(backend_tls_with(&sign(early), HTTP2));
    let plain = Listener::tcp(|mut stream, _| async move {
        let mut sink = [0; 1024];
        if stream.read(&mut sink).await.is_ok() {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.ok();
        }
    });
    let setup = Setup::new()
        .service("refused", &[nobody()])
        .service("unknown", &[unknown.address])
        .service("other", &[other.address])
        .service("expired", &[expired.address])
        .service("early", &[early.address])
        .service("plain", &[plain.address]);
    check_all(
        setup,
        &[
            ("refused", 503, "ConnectRefused", "connecting to e2e/refused:443: connection refused"),
            ("unknown", 503, "UnknownAuthority", "signed by unknown authority"),
            ("other", 503, "NameMismatch", "not valid for other.e2e.svc"),
            ("expired", 503, "CertificateExpired", "has expired"),
            ("early", 503, "CertificateNotYetValid", "not valid yet"),
            ("plain", 503, "NotTLS", "does not look like a TLS handshake"),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_backend_that_refuses_our_certificate_is_told_apart() {
    let tls = |name: &str, protocols| {
        let pair = PKI.authority.sign(&Leaf::server(&[&host(name)]));
        backend_tls_of(&pair, protocols, &PKI.stranger)
    };
    let old = |name: &str, protocols| {
        only_tls12(&PKI.authority.sign(&Leaf::server(&[&host(name)])), protocols, &PKI.stranger)
    };
    let listeners = [
        ("new-two", silent(tls("new-two", HTTP2))),
        ("new-one", silent(tls("new-one", HTTP1))),
        ("old-two", silent(old("old-two", HTTP2))),
        ("old-one", silent(old("old-one", HTTP1))),
    ];
    let mut setup = Setup::new();
    for (name, listener) in &listeners {
        setup = setup.service(name, &[listener.address]);
    }
    let case =
        |name| (name, 503, "ClientCertificateRefused", "refused the proxy-client certificate");
    check_all(setup, &listeners.each_ref().map(|(name, _)| case(*name))).await;
}

#[tokio::test]
async fn a_backend_that_breaks_off_before_its_answer_is_told_apart() {
    let closing = |name: &str, protocols| {
        Listener::tls(backend_tls(name, protocols), |mut stream, _| async move {
            let read = stream.read(&mut [0; 4096]).await;
            drop((read, stream));
        })
    };
    let reset =
        Listener::http2("reset", h2::server::Builder::new(), |mut connection, _| async move {
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
            }
        });
    let (close_two, close_one) = (closing("close-two", HTTP2), closing("close-one", HTTP1));
    let babble = Listener::tls(backend_tls("babble", HTTP2), |mut stream, _| async move {
        stream.write_all(&[0xff; 64]).await.ok();
        while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
    });
    let setup = Setup::new()
        .service("close-two", &[close_two.address])
        .service("close-one", &[close_one.address])
        .service("reset", &[reset.address])
        .service("babble", &[babble.address]);
    check_all(
        setup,
        &[
            ("close-two", 503, "BackendReset", "closed the connection before it answered"),
            ("close-one", 503, "BackendReset", "closed the connection before it answered"),
            ("reset", 503, "BackendReset", "closed the connection before it answered"),
            ("babble", 503, "ProtocolError", "broke the HTTP protocol"),
        ],
    )
    .await;
}

#[tokio::test]
async fn redirects_are_refused_and_redirections_without_location_pass() {
    let listener =
        Listener::http2("moved", h2::server::Builder::new(), |mut connection, _| async move {
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let code = if request.method() == "POST" { 307 } else { 301 };
                let answer =
                    Response::builder().status(code).header("location", "https://127.0.0.1/");
                let mut stream = respond.send_response(answer.body(()).unwrap(), false).unwrap();
                stream.send_data(Bytes::from_static(b"127.0.0.1"), true).unwrap();
            }
        });
    let backend = Backend::start("passes", HTTP2);
    let setup =
        Setup::new().service("moved", &[listener.address]).service("passes", &[backend.address()]);
    check_all(setup, &[("moved", 502, "Redirect", "attempted to redirect")]).await;
    let rig = Setup::new().service("passes", &[backend.address()]).start().await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        for code in [301, 304, 307] {
            let answer = client.get(&path("passes", &format!("code-{code}"))).await;
            assert_eq!(answer.status, code);
        }
    }
}

#[tokio::test]
async fn a_local_apiservice_has_nobody_to_be_delegated_to() {
    let local = "apiVersion: apiregistration.k8s.io/v1\nkind: APIService\n\
                 metadata: {name: v1.local.example.com}\n\
                 spec: {group: local.example.com, version: v1, groupPriorityMinimum: 1, versionPriority: 1}\n";
    let rig = Setup::new().manifest("local.yaml", local).start().await;
    let answer = rig.alice(Protocol::Http2).await.get(&path("local", "things")).await;
    assert_eq!(answer.status, 404);
    assert!(answer.json()["message"].as_str().unwrap().contains("local"));
}

#[tokio::test]
async fn one_dead_backend_does_not_touch_another() {
    let backend = Backend::start("alive", HTTP2);
    let hanging = silent(backend_tls("dead", HTTP2));
    let setup =
        Setup::new().service("dead", &[hanging.address]).service("alive", &[backend.address()]);
    let rig = setup.start().await;
    let dead = rig.alice(Protocol::Http2).await.http2();
    let ask = Ask::get(path("dead", "things"));
    let waiting = dead.ask(&ask);
    let mut client = rig.alice(Protocol::Http2).await;
    let targets = ["/apis", "/apis/dead.example.com", "/readyz", &path("alive", "things")];
    let others = async {
        for target in targets {
            assert_eq!(client.get(target).await.status, 200, "{target}");
        }
    };
    tokio::select! {
        biased;
        _ = waiting => panic!("the dead backend answered"),
        () = others => {}
    }
}

#[tokio::test]
async fn a_backend_that_refuses_and_ends_what_it_is_sent_is_not_dialled_for_every_request() {
    let listener =
        Listener::http2("refusing", h2::server::Builder::new(), |mut connection, _| async move {
            if let Some(Ok((_, mut answer))) = connection.accept().await {
                answer.send_reset(h2::Reason::REFUSED_STREAM);
                connection.abrupt_shutdown(h2::Reason::NO_ERROR);
                while connection.accept().await.is_some() {}
            }
        });
    let rig = Setup::new().service("refusing", &[listener.address]).start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    for _ in 0..10 {
        let answer = client.get(&path("refusing", "things")).await;
        assert_eq!(answer.cause(), "BackendReset", "{}", answer.text());
    }
    // Three tries a request, if none learnt from those before.
    assert!(listener.accepted() <= 20, "{}", listener.accepted());
}

#[tokio::test]
async fn a_backend_that_closes_each_connection_at_once_is_not_dialled_without_end() {
    let two =
        Listener::http2("gone-two", h2::server::Builder::new(), |mut connection, _| async move {
            connection.abrupt_shutdown(h2::Reason::NO_ERROR);
            while connection.accept().await.is_some() {}
        });
    let one =
        Listener::tls(backend_tls("gone-one", HTTP1), |stream, _| async move { drop(stream) });
    let setup =
        Setup::new().service("gone-two", &[two.address]).service("gone-one", &[one.address]);
    let rig = setup.start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    for (name, listener) in [("gone-two", &two), ("gone-one", &one)] {
        for target in ["things", "things?watch=1"] {
            for _ in 0..5 {
                assert_eq!(client.get(&path(name, target)).await.cause(), "BackendReset", "{name}");
            }
        }
        assert!(listener.accepted() <= 30, "{name}: {}", listener.accepted());
    }
}
