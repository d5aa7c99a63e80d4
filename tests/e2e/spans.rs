//! Spans as a collector receives them.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Response};
use portico::tls::pki::PemPair;
use tokio::net::TcpStream;

use crate::backend::{Backend, HTTP1, HTTP2, Listener, told};
use crate::client::{Ask, Client, Protocol};
use crate::pki::{Leaf, PKI};
use crate::rig::{Rig, Setup, eventually, path};

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Takes whatever spans it is sent, as bytes.
struct Collector {
    listener: Listener,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Collector {
    fn start() -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&received);
        let listener = Listener::tcp(move |stream, _| serve(stream, Arc::clone(&into)));
        Self { listener, received }
    }

    /// The file that tells portico to send spans here.
    fn settings(&self, rate_per_million: u32) -> String {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1beta1\nkind: TracingConfiguration\n\
             endpoint: {}\nsamplingRatePerMillion: {rate_per_million}\n",
            self.listener.address
        )
    }

    fn has(&self, wanted: impl AsRef<[u8]>) -> bool {
        let (received, wanted) = (self.received.lock().unwrap(), wanted.as_ref());
        received.windows(wanted.len()).any(|window| window == wanted)
    }

    /// How often something stands in what came.
    fn count(&self, wanted: &str) -> usize {
        let received = self.received.lock().unwrap();
        received.windows(wanted.len()).filter(|window| *window == wanted.as_bytes()).count()
    }
}

async fn serve(stream: TcpStream, received: Arc<Mutex<Vec<u8>>>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.uri().path(), EXPORT);
        let received = Arc::clone(&received);
        // In a task of its own, since the connection must go on to be read.
        portico::runtime::tasks::spawn("collect", async move {
            let mut body = request.into_body();
            let mut bytes = Vec::new();
            while let Some(chunk) = body.data().await {
                let chunk = chunk.unwrap();
                body.flow_control().release_capacity(chunk.len()).unwrap();
                bytes.extend_from_slice(&chunk);
            }
            let answer = Response::builder().header("content-type", "application/grpc");
            let mut answer = respond.send_response(answer.body(()).unwrap(), false).unwrap();
            // An empty message: no compression, no bytes.
            answer.send_data(Bytes::from_static(&[0; 5]), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            answer.send_trailers(trailers).unwrap();
            received.lock().unwrap().extend(bytes);
        });
    }
}

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let digits = hexadecimal.as_bytes().chunks(2);
    digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

async fn start(collector: &Collector, rate_per_million: u32) -> (Rig, [Backend; 2]) {
    let backends = [Backend::start("two", HTTP2), Backend::start("one", HTTP1)];
    let setup = Setup::new();
    let file = setup.path("tracing.yaml");
    std::fs::write(&file, collector.settings(rate_per_million)).unwrap();
    let rig = setup
        .service("two", &[backends[0].address()])
        .service("one", &[backends[1].address()])
        .edit(|config, _| config.tracing_config_file = Some(file));
    (rig.start().await, backends)
}

fn master() -> PemPair {
    PKI.authority.sign(&Leaf::client("root", &["system:masters"]))
}

fn traced(name: &str, flags: &str) -> Ask {
    Ask::get(path(name, "namespaces/n/things/secret?x=1"))
        .header("traceparent", &format!("00-{TRACE}-{PARENT}-{flags}"))
        .header("tracestate", "vendor=value")
        .header("audit-id", "audit-7")
}

/// The trace context that the backend was told.
fn context(answer: &serde_json::Value) -> (String, Vec<&str>) {
    let parent = told(answer, "headers", "traceparent");
    assert_eq!(parent.len(), 1);
    (parent[0].to_owned(), told(answer, "headers", "tracestate"))
}

#[tokio::test]
async fn a_sampled_parent_of_an_administrator_gets_a_span_and_one_for_the_call() {
    for name in ["two", "one"] {
        let collector = Collector::start();
        let (rig, _backends) = start(&collector, 0).await;
        let mut client = rig.connect(Protocol::Http2, Some(&master())).await;
        let got = client.send(&traced(name, "01")).await.json();
        let (parent, state) = context(&got);
        let parts: Vec<&str> = parent.split('-').collect();
        assert_eq!((parts[0], parts[1], parts[3]), ("00", TRACE, "01"));
        assert_ne!(parts[2], PARENT);
        assert_eq!(state, ["vendor=value"]);
        drop(client);
        rig.stop().await;
        // The client's trace and span, and the call's span, which is the backend's parent.
        for id in [TRACE, PARENT, parts[2]] {
            assert!(collector.has(bytes(id)), "{id}");
        }
        for text in [
            &format!("GET /apis/{name}.example.com/v1/namespaces/{{:namespace}}/things/{{:name}}"),
            "HTTP GET",
            "audit-7",
            "vendor=value",
            &format!("{name}.e2e.svc"),
            "http.response.status_code",
            "portico.first_byte_seconds",
            "service.name",
        ] {
            assert!(collector.has(text), "{text}");
        }
    }
}

#[tokio::test]
async fn what_is_not_sampled_passes_as_it_came_and_sends_nothing() {
    let collector = Collector::start();
    let (rig, _backends) = start(&collector, 0).await;
    let (alice, root) = (&PKI.alice, &master());
    // Not everybody's wish to be sampled counts, and nobody's who has none.
    for (certificate, flags) in [(alice, "01"), (alice, "00"), (root, "00")] {
        let mut client = rig.connect(Protocol::Http1, Some(certificate)).await;
        let got = client.send(&traced("two", flags)).await.json();
        let (parent, state) = context(&got);
        assert_eq!(parent, format!("00-{TRACE}-{PARENT}-{flags}"));
        assert_eq!(state, ["vendor=value"]);
    }
    rig.stop().await;
    assert_eq!(collector.listener.accepted(), 0);
}

#[tokio::test]
async fn by_rate_a_trace_of_its_own_is_begun_that_is_linked_to_the_clients() {
    let collector = Collector::start();
    let (rig, _backends) = start(&collector, 1_000_000).await;
    let mut alice = rig.alice(Protocol::Http2).await;
    let got = alice.send(&traced("two", "00")).await.json();
    let (parent, state) = context(&got);
    assert!(!parent.contains(TRACE) && parent.ends_with("-01"), "{parent}");
    assert!(state.is_empty());
    // Without a wish, and without a backend.
    assert_eq!(alice.get("/nowhere").await.status, 404);
    rig.stop().await;
    let own = parent.split('-').nth(1).unwrap();
    assert!(collector.has(bytes(own)) && collector.has(bytes(TRACE)));
    assert!(collector.has("/nowhere") && collector.has("PathNotFound"));
}

#[tokio::test]
async fn spans_are_sent_while_the_program_runs_and_one_for_each_request() {
    let collector = Collector::start();
    let (rig, _backends) = start(&collector, 1_000_000).await;
    let mut client: Client = rig.alice(Protocol::Http2).await;
    for _ in 0..20 {
        client.get(&path("two", "counted")).await;
    }
    // `url.path` of the request's own span holds it; its name does too.
    let what = path("two", "counted");
    eventually("forty mentions", async || collector.count(&what) >= 40).await;
    assert_eq!(collector.count(&what), 40);
    assert_eq!(collector.count("HTTP GET"), 20);
}

#[tokio::test]
async fn a_collector_that_is_down_delays_no_answer() {
    let collector = Collector::start();
    let (rig, _backends) = start(&collector, 1_000_000).await;
    drop(collector);
    let mut client = rig.alice(Protocol::Http2).await;
    for _ in 0..20 {
        assert_eq!(client.get(&path("two", "things")).await.status, 200);
    }
}
