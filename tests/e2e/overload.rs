//! More requests than are served at a time: who is told to come later, and who is not.

use portico::app::Tuning;
use portico::config::Config;

use crate::backend::{Backend, HTTP2};
use crate::client::{Ask, BOTH, Protocol};
use crate::http2_client::head;
use crate::pki::PKI;
use crate::rig::{BOBS_TOKEN, Rig, Setup, eventually, path};

const READING: [&str; 1] = ["request_kind=\"readOnly\""];

fn two_and_one(config: &mut Config, _: &mut Tuning) {
    config.proxy.requests_max = 2;
    config.proxy.mutating_requests_max = 1;
}

/// A portico whose room for reading requests is taken by two that hang.
async fn full(backend: &Backend) -> (Rig, impl Sized + use<>) {
    let setup = Setup::new().service("busy", &[backend.address()]).edit(two_and_one);
    let rig = setup.start().await;
    let holding = rig.connect(Protocol::Http2, None).await.http2();
    let ask = head(&Ask::get(path("busy", "hang")).bearer(BOBS_TOKEN));
    let held =
        (holding.start(ask.clone(), true).await.unwrap(), holding.start(ask, true).await.unwrap());
    rig.await_metric("portico_endpoint_requests_in_flight", &[], 2.0).await;
    // The one that asks for metrics is a reading one too.
    rig.await_metric("apiserver_current_inflight_requests", &READING, 3.0).await;
    (rig, (holding, held))
}

#[tokio::test]
async fn one_request_too_many_is_told_to_come_later_and_health_is_answered() {
    let backend = Backend::start("busy", HTTP2);
    let (rig, held) = full(&backend).await;
    for protocol in BOTH {
        let mut client = rig.connect(protocol, None).await;
        let ask = Ask::get(path("busy", "things")).bearer(BOBS_TOKEN);
        let answer = client.send(&ask).await;
        assert_eq!((answer.status, answer.header("retry-after")), (429, "1"));
        let status = answer.json();
        assert_eq!(status["message"], "Too many requests, please try again later.");
        assert_eq!((&status["reason"], &status["code"]), (&"TooManyRequests".into(), &429.into()));
        for health in ["/livez", "/readyz", "/healthz"] {
            assert_eq!(client.send(&Ask::get(health).bearer(BOBS_TOKEN)).await.status, 200);
        }
    }
    let labels = ["cause=\"TooManyRequests\"", "code=\"429\"", "verb=\"LIST\""];
    rig.await_metric("apiserver_request_terminations_total", &labels, 2.0).await;
    drop(held);
    rig.await_metric("apiserver_current_inflight_requests", &READING, 1.0).await;
    let mut client = rig.connect(Protocol::Http1, None).await;
    let ask = Ask::get(path("busy", "things")).bearer(BOBS_TOKEN);
    assert_eq!(client.send(&ask).await.status, 200);
}

#[tokio::test]
async fn writes_watches_and_masters_are_let_in_where_reads_are_not() {
    let mut backend = Backend::start("busy", HTTP2);
    let (rig, _held) = full(&backend).await;
    let mut client = rig.connect(Protocol::Http2, None).await;
    let post = Ask::new("POST", path("busy", "things")).body("x").bearer(BOBS_TOKEN);
    assert_eq!(client.send(&post).await.status, 200);
    let watch = Ask::get(path("busy", "events?watch=1")).bearer(BOBS_TOKEN);
    let (opened, _watch) = tokio::join!(client.open(&watch), backend.watch());
    assert_eq!(opened.status, 200);
    let mut master = rig.connect(Protocol::Http1, Some(&PKI.master)).await;
    assert_eq!(master.get(&path("busy", "things")).await.status, 200);
}

#[tokio::test]
async fn an_http2_client_is_told_to_connect_anew_as_often_as_the_chance_says() {
    let backend = Backend::start("busy", HTTP2);
    let always = |config: &mut Config, _: &mut Tuning| config.proxy.goaway_chance = 1.0;
    let setup = Setup::new().service("busy", &[backend.address()]).edit(always);
    let rig = setup.start().await;
    let mut client = rig.alice(Protocol::Http2).await;
    assert_eq!(client.get(&path("busy", "things")).await.status, 200);
    client.http2().closed().await;
    let mut client = rig.alice(Protocol::Http1).await;
    for _ in 0..2 {
        assert_eq!(client.get(&path("busy", "things")).await.status, 200);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_keeps_its_place_no_longer_than_its_time() {
    let backend = Backend::start("busy", HTTP2);
    let short = |config: &mut Config, _: &mut Tuning| {
        config.proxy.request_timeout = std::time::Duration::from_millis(500);
    };
    let rig = Setup::new().service("busy", &[backend.address()]).edit(short).start().await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        let opened = client.open(&Ask::get(path("busy", "large-60000000"))).await;
        assert_eq!(opened.status, 200);
        // Nothing of the body is read; only who asks for metrics is left.
        rig.await_metric("apiserver_current_inflight_requests", &READING, 1.0).await;
        rig.await_metric("portico_endpoint_requests_in_flight", &[], 0.0).await;
    }
}

#[tokio::test]
async fn a_backend_that_answers_nothing_does_not_take_the_places_of_others() {
    let (hung, well) = (Backend::start("hung", HTTP2), Backend::start("well", HTTP2));
    let setup = Setup::new().service("hung", &[hung.address()]).service("well", &[well.address()]);
    let rig = setup.edit(|config, _| config.proxy.requests_max = 20).start().await;
    let client = rig.alice(Protocol::Http2).await.http2();
    let ask = Ask::get(path("hung", "things/hang"));
    let mut open = Vec::new();
    for at in 0..30 {
        let mut asking = Box::pin(client.ask(&ask));
        let refused = tokio::select! {
            answer = &mut asking => Some(answer.unwrap()),
            () = eventually("it hangs", async || hung.seen().len() > open.len()) => None,
        };
        match refused {
            None => open.push(asking),
            Some(answer) => {
                assert_eq!((answer.status().as_u16(), at), (503, open.len()));
                assert_eq!(answer.headers()["retry-after"], "1");
                break;
            }
        }
    }
    assert_eq!(open.len(), 17);
    let mut other = rig.alice(Protocol::Http2).await;
    assert_eq!(other.get(&path("well", "things")).await.status, 200);
    let mut another = rig.alice(Protocol::Http2).await;
    let refused = another.get(&path("hung", "things")).await;
    assert_eq!((refused.status, refused.cause().as_str()), (503, "Overloaded"));
}

#[tokio::test]
async fn bodies_that_wait_for_one_backend_are_bounded() {
    let (hung, well) = (Backend::start("hung", HTTP2), Backend::start("well", HTTP2));
    let setup = Setup::new().service("hung", &[hung.address()]).service("well", &[well.address()]);
    let rig = setup.edit(|config, _| config.proxy.mutating_requests_max = 0).start().await;
    // 64 MiB in windows of 256 KiB; the bodies themselves never come.
    let ask = Ask::new("POST", path("hung", "things")).header("content-length", "1000000");
    let (mut clients, mut held) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let client = rig.alice(Protocol::Http2).await.http2();
        for _ in 0..64 {
            held.push(client.start(head(&ask), false).await.unwrap());
        }
        clients.push(client);
    }
    rig.await_metric("apiserver_current_inflight_requests", &["request_kind=\"mutating\""], 256.0)
        .await;
    let mut other = rig.alice(Protocol::Http2).await;
    let small = |name| Ask::new("POST", path(name, "things")).body("x");
    let refused = other.send(&small("hung")).await;
    assert_eq!((refused.status, refused.cause().as_str()), (503, "Overloaded"));
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(other.send(&small("well")).await.status, 200);
    assert_eq!(other.get(&path("hung", "things")).await.status, 200);
    drop(held);
    eventually("there is room again", async || other.send(&small("hung")).await.status == 200)
        .await;
}
