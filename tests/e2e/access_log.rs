//! The access log: a line for each request, also for those that nobody answered.

use std::path::{Path, PathBuf};

use portico::proxy::{AccessLogConfig, AccessLogFormat};
use serde_json::Value;

use crate::backend::{Backend, HTTP1, HTTP2};
use crate::client::{Ask, BOTH, Protocol};
use crate::http2_client::head;
use crate::rig::{BOBS_TOKEN, Rig, Setup, eventually, path};

/// A portico that writes its access log into this file.
fn logging(setup: Setup, file: &Path, format: AccessLogFormat) -> Setup {
    let config = AccessLogConfig { file: Some(file.to_owned()), format };
    setup.edit(|all, _| all.proxy.access_log = Some(config))
}

/// The lines of requests for this path, when there are as many.
async fn lines(file: &Path, uri: &str, count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    eventually(&format!("{count} lines of {uri}"), async || {
        let text = std::fs::read_to_string(file).unwrap();
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        found = all.filter(|line| line["uri"] == uri).collect();
        found.len() >= count
    })
    .await;
    found
}

async fn start(setup: Setup) -> (Rig, PathBuf) {
    let file = setup.path("access.log");
    (logging(setup, &file, AccessLogFormat::Json).start().await, file)
}

#[tokio::test]
async fn a_line_tells_who_asked_what_where_it_went_and_how_long_it_took() {
    for (name, protocols) in [("two", HTTP2), ("one", HTTP1)] {
        let backend = Backend::start(name, protocols);
        let (rig, file) = start(Setup::new().service(name, &[backend.address()])).await;
        let target = path(name, "things/mirror?x=%2F");
        let ask = Ask::new("PUT", &target).body("0123456789").bearer(BOBS_TOKEN);
        let ask = ask.header("user-agent", "tester \"1\"").header("audit-id", "audit-7");
        for protocol in BOTH {
            let mut client = rig.connect(protocol, None).await;
            assert_eq!(client.send(&ask).await.text(), "0123456789");
        }
        for line in lines(&file, &target, 2).await {
            assert_eq!((&line["verb"], &line["method"]), (&"PUT".into(), &"PUT".into()));
            assert_eq!((&line["user"], &line["srcIP"]), (&"bob".into(), &"127.0.0.1".into()));
            assert_eq!(line["userAgent"], "tester \"1\"");
            assert_eq!(line["auditID"], "audit-7");
            assert_eq!(line["apiService"], format!("v1.{name}.example.com"));
            assert_eq!(line["endpoint"], backend.address().to_string());
            assert_eq!(line["status"], 200);
            assert_eq!((&line["bytesReceived"], &line["bytesSent"]), (&10.into(), &10.into()));
            let seconds = |key: &str| line[key].as_f64().unwrap_or_default();
            let parts = ["queue", "connect", "tls", "firstByte", "body"];
            let sum: f64 = parts.iter().map(|part| seconds(&format!("{part}Seconds"))).sum();
            assert!((sum - seconds("latencySeconds")).abs() < 0.001, "{line}");
            assert!(line.get("cause").is_none(), "{line}");
        }
        let first = &lines(&file, &target, 2).await[0];
        assert!(first["tlsSeconds"].as_f64().unwrap() > 0.0, "the first one dials: {first}");
    }
}

#[tokio::test]
async fn who_acts_as_somebody_else_is_named_beside_whom() {
    let backend = Backend::start("two", HTTP2);
    let (rig, file) = start(Setup::new().service("two", &[backend.address()])).await;
    let target = path("two", "things");
    let ask = Ask::get(&target).header("Impersonate-User", "carol").bearer(BOBS_TOKEN);
    assert_eq!(rig.connect(Protocol::Http2, None).await.send(&ask).await.status, 200);
    let line = &lines(&file, &target, 1).await[0];
    assert_eq!((&line["user"], &line["impersonatedUser"]), (&"bob".into(), &"carol".into()));
}

#[tokio::test]
async fn what_nobody_answered_has_a_line_with_its_cause() {
    let mut backend = Backend::start("two", HTTP2);
    let nobody = crate::faults::nobody();
    let setup = Setup::new().service("two", &[backend.address()]).service("gone", &[nobody]);
    let (rig, file) = start(setup).await;
    let mut client = rig.alice(Protocol::Http2).await;
    let gone = path("gone", "things");
    assert_eq!(client.get(&gone).await.status, 503);
    let line = &lines(&file, &gone, 1).await[0];
    assert_eq!((&line["status"], &line["cause"]), (&503.into(), &"ConnectRefused".into()));
    assert_eq!(line["endpoint"], nobody.to_string());

    let hang = path("two", "hang");
    let client = client.http2();
    let held = client.start(head(&Ask::get(&hang)), true).await.unwrap();
    rig.await_metric("portico_endpoint_requests_in_flight", &[], 1.0).await;
    drop(held);
    let line = &lines(&file, &hang, 1).await[0];
    assert_eq!((&line["status"], &line["cause"]), (&499.into(), &"ClientGone".into()));

    let watch = path("two", "events?watch=1");
    let mut http1 = rig.alice(Protocol::Http1).await;
    let ask = Ask::get(&watch);
    let (opened, sender) = tokio::join!(http1.open(&ask), backend.watch());
    assert_eq!(opened.status, 200);
    drop(opened);
    drop(http1);
    let line = &lines(&file, &watch, 1).await[0];
    assert_eq!((&line["verb"], &line["cause"]), (&"WATCH".into(), &"ClientGone".into()));
    drop(sender);

    let mut anonymous = rig.connect(Protocol::Http1, None).await;
    assert_eq!(anonymous.get("/apis").await.status, 401);
    let line = &lines(&file, "/apis", 1).await[0];
    assert_eq!((&line["status"], &line["cause"]), (&401.into(), &"Unauthorized".into()));
    assert!(line.get("user").is_none());
}

#[tokio::test]
async fn an_answer_without_a_body_is_complete() {
    let backend = Backend::start("two", HTTP2);
    let (rig, file) = start(Setup::new().service("two", &[backend.address()])).await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        for (method, target) in [("HEAD", "things"), ("DELETE", "things/code-204")] {
            client.send(&Ask::new(method, path("two", target))).await;
        }
        client.send(&Ask::new("HEAD", "/livez")).await;
    }
    for target in [path("two", "things"), path("two", "things/code-204"), "/livez".to_owned()] {
        for line in lines(&file, &target, 2).await {
            assert!(line.get("cause").is_none(), "{line}");
        }
    }
}

#[tokio::test]
async fn lines_of_text_are_on_disk_when_portico_has_ended() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("access.log");
    let rig = logging(Setup::new(), &file, AccessLogFormat::Text).start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    assert_eq!(client.get("/version").await.status, 200);
    rig.stop().await;
    let text = std::fs::read_to_string(file).unwrap();
    let line = text.lines().find(|line| line.contains(" uri=/version ")).unwrap();
    assert!(line.contains(" user=alice ") && line.contains(" status=200 "), "{line}");
}
