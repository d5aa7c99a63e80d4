//! Deadlines, and what is answered while the manifests have not been read.

use std::time::Duration;

use portico::app::Tuning;
use portico::config::Config;

use crate::backend::{Backend, HTTP1, HTTP2, Listener};
use crate::client::{Ask, BOTH, Protocol};
use crate::rig::{Setup, eventually, path};

const SHORT: Duration = Duration::from_millis(200);

fn short_discovery(config: &mut Config, _: &mut Tuning) {
    config.proxy.discovery_timeout = SHORT;
}

fn short_requests(config: &mut Config, _: &mut Tuning) {
    config.proxy.request_timeout = SHORT;
}

fn short_handshakes(_: &mut Config, tuning: &mut Tuning) {
    tuning.upstream.handshake_timeout = SHORT;
}

/// Accepts streams and never answers.
fn hanging(service: &str) -> Listener {
    Listener::http2(service, h2::server::Builder::new(), |mut connection, _| async move {
        let mut kept = Vec::new();
        while let Some(Ok(stream)) = connection.accept().await {
            kept.push(stream);
        }
    })
}

#[tokio::test]
async fn discovery_of_a_backend_that_hangs_is_503_and_its_resources_go_on_waiting() {
    let listener = hanging("hang");
    let setup = Setup::new().service("hang", &[listener.address]).edit(short_discovery);
    let rig = setup.start().await;
    let waiting = rig.alice(Protocol::Http2).await.http2();
    let ask = Ask::get(path("hang", "things"));
    let resource = waiting.ask(&ask);
    let discovery = async {
        for protocol in BOTH {
            let mut client = rig.alice(protocol).await;
            for target in ["/apis/hang.example.com/v1", "/apis/hang.example.com/v1/"] {
                let answer = client.get(target).await;
                assert_eq!((answer.status, answer.cause().as_str()), (503, "Deadline"));
                assert!(!answer.headers.contains_key("retry-after"));
            }
        }
    };
    tokio::select! {
        biased;
        _ = resource => panic!("a resource has the deadline of discovery"),
        () = discovery => {}
    }
}

#[tokio::test]
async fn a_resource_of_a_backend_that_hangs_is_504_with_a_full_status() {
    let (two, one) = (hanging("two"), Backend::start("one", HTTP1));
    let setup = Setup::new().service("two", &[two.address]).service("one", &[one.address()]);
    let rig = setup.edit(short_requests).start().await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        for ask in [
            Ask::get(path("two", "hang")),
            Ask::get(path("one", "hang")),
            Ask::new("POST", path("two", "hang")).body("body"),
        ] {
            let answer = client.send(&ask).await;
            assert_eq!((answer.status, answer.cause().as_str()), (504, "Deadline"));
            let status = answer.json();
            assert_eq!((&status["kind"], &status["apiVersion"]), (&"Status".into(), &"v1".into()));
            assert_eq!(
                (&status["reason"], &status["status"]),
                (&"Timeout".into(), &"Failure".into())
            );
            assert!(!answer.headers.contains_key("retry-after"));
        }
    }
    rig.await_metric("portico_endpoint_requests_in_flight", &[], 0.0).await;
}

#[tokio::test]
async fn the_timeout_in_the_url_shortens_a_requests_time() {
    let listener = hanging("hang");
    let rig = Setup::new().service("hang", &[listener.address]).start().await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        let answer = client.get(&path("hang", "things?timeout=200ms")).await;
        assert_eq!((answer.status, answer.cause().as_str()), (504, "Deadline"));
        for target in [path("hang", "things?timeout=soon"), "/apis?timeout=32".to_owned()] {
            let answer = client.get(&target).await;
            assert_eq!(answer.status, 400);
            let message = answer.json()["message"].as_str().unwrap().to_owned();
            assert!(
                message.starts_with("invalid timeout specified in the request URL - time: "),
                "{message}"
            );
        }
        assert_eq!(client.get("/apis?timeout=32s").await.status, 200);
    }
}

#[tokio::test]
async fn a_deadline_after_the_headers_is_an_abort() {
    for (name, protocols) in [("two", HTTP2), ("one", HTTP1)] {
        let mut backend = Backend::start(name, protocols);
        let setup = Setup::new().service(name, &[backend.address()]).edit(short_requests);
        let rig = setup.start().await;
        for protocol in BOTH {
            let mut client = rig.alice(protocol).await;
            let mut opened = client.open(&Ask::get(path(name, "events"))).await;
            assert_eq!(opened.status, 200);
            let held = backend.watch().await;
            opened.body.cut().await;
            crate::rig::within("the stream's end at the backend", held.closed()).await;
        }
    }
}

#[tokio::test]
async fn a_backend_that_never_finishes_the_handshake_is_told_apart() {
    let listener = Listener::tcp(|stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    let setup = Setup::new().service("mute", &[listener.address]).edit(short_handshakes);
    let rig = setup.start().await;
    for protocol in BOTH {
        let answer = rig.alice(protocol).await.get(&path("mute", "things?watch=1")).await;
        assert_eq!((answer.status, answer.cause().as_str()), (503, "HandshakeTimeout"));
    }
}

#[tokio::test]
async fn unknown_paths_are_not_ready_until_the_manifests_are_read_and_404_from_then_on() {
    let rig = Setup::new().file_flag("manifests", "later").launch();
    let unknown = ["/apis/a.example.com/v1/things", "/apis/a.example.com", "/api", "/nothing"];
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        for target in unknown {
            let answer = client.get(target).await;
            assert_eq!((answer.status, answer.header("retry-after")), (503, "5"), "{target}");
            assert_eq!(answer.json()["reason"], "ServiceUnavailable");
        }
        let ready = client.get("/readyz").await;
        assert_eq!(ready.status, 500);
        assert!(ready.text().contains("manifests"), "{}", ready.text());
        for target in ["/livez", "/healthz", "/version"] {
            assert_eq!(client.get(target).await.status, 200, "{target}");
        }
    }
    std::fs::create_dir(rig.path("later")).unwrap();
    let mut client = rig.alice(Protocol::Http2).await;
    eventually("404", async || client.get(unknown[0]).await.status == 404).await;
    for target in unknown {
        let answer = client.get(target).await;
        assert_eq!(answer.status, 404, "{target}");
        assert!(!answer.headers.contains_key("retry-after"));
        assert_eq!(answer.json()["reason"], "NotFound");
    }
    assert_eq!(client.get("/readyz").await.status, 200);
}
