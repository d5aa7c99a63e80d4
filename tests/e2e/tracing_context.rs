//! W3C trace context on its way through.

use crate::backend::told;
use crate::client::{Ask, BOTH};
use crate::proxying::Pair;
use crate::rig::path;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn traced(target: &str) -> Ask {
    Ask::get(target)
        .header("traceparent", PARENT)
        .header("tracestate", "a=1,b=2")
        .header("tracestate", "c=3")
        .header("baggage", "user=x;p=1")
}

#[tokio::test]
async fn trace_context_passes_as_it_came() {
    let pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        let got = client.send(&traced(&path(name, "things"))).await.json();
        assert_eq!(told(&got, "headers", "traceparent"), [PARENT], "{protocol:?} {name}");
        assert_eq!(told(&got, "headers", "tracestate"), ["a=1,b=2", "c=3"], "{protocol:?} {name}");
        assert_eq!(told(&got, "headers", "baggage"), ["user=x;p=1"], "{protocol:?} {name}");
    }
}

#[tokio::test]
async fn broken_trace_context_breaks_no_request_and_passes_too() {
    let pair = Pair::start().await;
    for (protocol, name) in Pair::ways() {
        let mut client = pair.rig.alice(protocol).await;
        for broken in ["", "00-zz", "00-0-0-01", "ff-é"] {
            let ask = Ask::get(path(name, "things")).header("traceparent", broken);
            let got = client.send(&ask).await.json();
            assert_eq!(told(&got, "headers", "traceparent"), [broken], "{protocol:?} {name}");
        }
    }
}

#[tokio::test]
async fn answers_of_portico_itself_are_the_same_with_trace_context() {
    let pair = Pair::start().await;
    for protocol in BOTH {
        for (target, status) in
            [("/apis", 200), ("/none", 404), ("/apis/two.example.com/v2/x", 404)]
        {
            let mut client = pair.rig.alice(protocol).await;
            let answer = client.send(&traced(target)).await;
            assert_eq!(answer.status, status, "{protocol:?} {target}");
            assert!(answer.headers.get("traceparent").is_none());
        }
        let mut stranger = pair.rig.connect(protocol, None).await;
        assert_eq!(stranger.send(&traced("/apis")).await.status, 401, "{protocol:?}");
    }
}
