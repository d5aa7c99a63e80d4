//! `portico doctor` as a user runs it: each prepared fault is found at its hop, with its word and its
//! remedy, and nothing is found where all is well.

use std::convert::Infallible;
use std::process::{Command, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use portico::tls::pki::PemPair;
use portico::tls::{certificates, provider};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::backend::{Listener, told};
use crate::client::Protocol;
use crate::core_backend::{Core, Manner as CoreManner, token};
use crate::faults::nobody;
use crate::pki::{Leaf, PKI, host};
use crate::rig::{Rig, Setup, api_service, api_service_with, service, slices, within};

/// How a backend treats who comes.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// As servers on Kubernetes' library do.
    Well,
    /// Headers are believed whoever sends them.
    Gullible,
    /// Nobody is known.
    Knows401,
    /// Nobody may anything.
    Refuses403,
    /// The version is not served.
    NoVersion,
    /// Everybody may everything.
    Open,
    /// The same, and there is nothing but discovery.
    OpenDiscovery,
}

/// TLS that asks for a certificate of portico's and does without one.
fn asking(pair: &PemPair) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    for root in certificates("callers", PKI.aggregators.certificate().as_bytes()).unwrap() {
        roots.add(root).unwrap();
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let pair = pair.key_pair().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(pair.chain, pair.key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

fn backend_with(name: &'static str, manner: Manner, pair: &PemPair) -> Listener {
    Listener::tls(asking(pair), move |stream, _| serve(stream, name, manner))
}

fn backend(name: &'static str, manner: Manner) -> Listener {
    backend_with(name, manner, &PKI.authority.sign(&Leaf::server(&[&host(name)])))
}

async fn serve(stream: TlsStream<TcpStream>, name: &'static str, manner: Manner) {
    let known = stream.get_ref().1.peer_certificates().is_some();
    let service = service_fn(move |request: Request<Incoming>| async move {
        let (status, body) = answer(&request, name, manner, known);
        let body = Full::new(Bytes::from(body.to_string()));
        let response =
            Response::builder().status(status).header("content-type", "application/json");
        Ok::<_, Infallible>(response.body(body).unwrap())
    });
    let http = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error, "backend connection ended");
    }
}

fn answer(request: &Request<Incoming>, name: &str, manner: Manner, known: bool) -> (u16, Value) {
    let status = |code: u16, message: &str| (code, json!({"kind": "Status", "message": message}));
    let header = |name: &str| {
        let value = request.headers().get(name).filter(|_| known || manner == Manner::Gullible);
        value.map(|value| value.to_str().unwrap().to_owned())
    };
    let user = header("x-remote-user").unwrap_or_else(|| "system:anonymous".to_owned());
    let is_master = header("x-remote-group").is_some_and(|group| group == "system:masters");
    let path = request.uri().path();
    match manner {
        Manner::Knows401 => return status(401, "Unauthorized"),
        Manner::Refuses403 => return status(403, "go away"),
        Manner::Open | Manner::OpenDiscovery => {}
        _ if !is_master => {
            let text = format!("forbidden: User \"{user}\" cannot get path \"{path}\"");
            return status(403, &text);
        }
        _ => {}
    }
    let version = format!("/apis/{name}.example.com/v1");
    if path == version && manner != Manner::NoVersion {
        let verbs = if manner == Manner::OpenDiscovery { vec!["get"] } else { vec!["get", "list"] };
        let things = json!({"name": "things", "singularName": "thing", "namespaced": true,
                            "kind": "Thing", "verbs": verbs});
        let body = json!({"kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": format!("{name}.example.com/v1"), "resources": [things]});
        (200, body)
    } else if path == format!("{version}/things") {
        (200, json!({"kind": "ThingList", "items": []}))
    } else {
        status(404, "the server could not find the requested resource")
    }
}

struct Ended {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

/// A doctor that has portico's own pair and manifests, and reads as a master.
async fn doctor(rig: &Rig, arguments: &[&str]) -> Ended {
    std::fs::write(rig.path("master.crt"), &PKI.master.certificate).unwrap();
    std::fs::write(rig.path("master.key"), &PKI.master.key).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_portico"));
    command.arg("doctor").arg(format!("--server=https://localhost:{}", rig.address.port()));
    for (flag, file) in [
        ("--manifests", "manifests"),
        ("--certificate-authority", "ca.crt"),
        ("--client-certificate", "master.crt"),
        ("--client-key", "master.key"),
        ("--proxy-client-cert-file", "aggregator.crt"),
        ("--proxy-client-key-file", "aggregator.key"),
    ] {
        command.arg(flag).arg(rig.path(file));
    }
    command.args(arguments).stdin(Stdio::null());
    let running = tokio::task::spawn_blocking(move || command.output());
    let output = within("the doctor's end", running).await.unwrap().unwrap();
    Ended {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What is found about one APIService.
async fn examined(rig: &Rig, name: &str) -> (Option<i32>, Value) {
    let name = format!("v1.{name}.example.com");
    let ended = doctor(rig, &[&name, "--output=json", "--timeout=1s"]).await;
    (ended.status, subject(&ended, &name))
}

/// What is said about it, in JSON.
fn subject(ended: &Ended, name: &str) -> Value {
    let found: Value =
        serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr));
    let subjects = found["subjects"].as_array().unwrap();
    subjects.iter().find(|subject| subject["subject"] == name).unwrap().clone()
}

fn hop<'a>(subject: &'a Value, name: &str) -> &'a Value {
    let hops = subject["hops"].as_array().unwrap();
    hops.iter().find(|hop| hop["hop"] == name).unwrap()
}

/// The first hop that fails, its word, a part of its reason, and one of its remedy.
async fn check(rig: &Rig, name: &str, expected: [&str; 4]) {
    let [fails_at, cause, why, change] = expected;
    let (status, subject) = examined(rig, name).await;
    assert_eq!(status, Some(1), "{name}: {subject:#}");
    assert_eq!(
        (&subject["fails_at"], &subject["cause"]),
        (&json!(fails_at), &json!(cause)),
        "{name}: {subject:#}"
    );
    let hop = hop(&subject, fails_at);
    assert!(hop.to_string().contains(why), "{name}: {hop:#}");
    assert!(hop["change"].as_str().unwrap().contains(change), "{name}: {hop:#}");
}

#[tokio::test]
async fn a_chain_that_is_well_is_examined_to_its_end() {
    let backend = backend("well", Manner::Well);
    let rig = Setup::new().service("well", &[backend.address]).start().await;
    let (status, subject) = examined(&rig, "well").await;
    assert_eq!(status, Some(0), "{subject:#}");
    for hop in subject["hops"].as_array().unwrap() {
        // The certificates of these tests are valid for a day.
        let expected = match hop["hop"].as_str() {
            Some("tls" | "client-certificate") => ("warning", json!("EndsSoon")),
            _ => ("ok", Value::Null),
        };
        assert_eq!((hop["result"].as_str().unwrap(), hop["cause"].clone()), expected, "{hop:#}");
    }
    let list = hop(&subject, "proxied-read")["details"][0].as_str().unwrap();
    assert!(list.contains("/apis/well.example.com/v1/things?limit=1: 200 in "), "{list}");
    let text = doctor(&rig, &[]).await;
    assert_eq!(text.status, Some(0), "{}", text.stderr);
    assert!(text.stdout.contains("  ✓ forged-identity"), "{}", text.stdout);
    assert!(text.stdout.lines().all(|line| line.chars().count() <= 80), "{}", text.stdout);
    assert!(!text.stdout.contains('\u{1b}'));
}

#[tokio::test]
async fn what_is_wrong_with_objects_is_named_with_its_remedy() {
    let not_ready = slices("not-ready", &[nobody()])
        .replace("{addresses", "{conditions: {ready: false}, addresses");
    let rig = Setup::new()
        .manifest("1.yaml", &api_service("no-service"))
        .manifest("2.yaml", &(api_service("no-port") + &service("no-port").replace("443", "80")))
        .manifest("3.yaml", &(api_service("not-ready") + &service("not-ready") + &not_ready))
        .service("refused", &[nobody()])
        .start()
        .await;
    let absent = ["object", "APIServiceNotFound", "there is no APIService", "correct the name"];
    check(&rig, "absent", absent).await;
    check(&rig, "no-service", ["service", "ServiceNotFound", "not present", "Create the Service"])
        .await;
    check(&rig, "no-port", ["port", "ServicePortNotFound", "ports are: 80", "Add the port"]).await;
    let no_endpoints = ["endpoints", "NoEndpoints", "1 of them not ready", "none is ready"];
    check(&rig, "not-ready", no_endpoints).await;
    check(&rig, "refused", ["tcp", "ConnectRefused", "refused", "Nobody listens"]).await;
}

#[tokio::test]
async fn a_refusal_with_503_is_told_as_it_came() {
    let not_ready = slices("not-ready", &[nobody()])
        .replace("{addresses", "{conditions: {ready: false}, addresses");
    let manifest = api_service("not-ready") + &service("not-ready") + &not_ready;
    let rig = Setup::new().manifest("1.yaml", &manifest).start().await;
    let ended = doctor(&rig, &["v1.not-ready.example.com", "--output=json"]).await;
    let subject = subject(&ended, "v1.not-ready.example.com");
    let read = hop(&subject, "proxied-read");
    assert!(read.to_string().contains("with 503"), "{read:#}");
    assert_eq!(ended.stderr, "");
}

#[tokio::test]
async fn what_is_wrong_with_tls_is_named_with_who_was_expected_and_who_came() {
    let sign = |leaf: Leaf| PKI.authority.sign(&leaf);
    let stranger = PKI.stranger.sign(&Leaf::server(&[&host("unknown")]));
    let unknown = backend_with("unknown", Manner::Well, &stranger);
    let other = backend_with("other", Manner::Well, &sign(Leaf::server(&["some.other.svc"])));
    let expired = Leaf::server(&[&host("expired")]).expired();
    let expired = backend_with("expired", Manner::Well, &sign(expired));
    let frozen = Listener::tcp(|stream, _| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    let no_pem = BASE64_STANDARD.encode("MIIB, but no PEM");
    let no_pem = api_service_with("no-pem", &no_pem) + &service("no-pem");
    let believed = backend("no-pem", Manner::Well);
    let rig = Setup::new()
        .service("unknown", &[unknown.address])
        .service("other", &[other.address])
        .service("expired", &[expired.address])
        .service("frozen", &[frozen.address])
        .manifest("no-pem.yaml", &(no_pem + &slices("no-pem", &[believed.address])))
        .start()
        .await;
    let authority = "Put the authority that signed";
    check(&rig, "unknown", ["tls", "UnknownAuthority", "CN=e2e-stranger-ca", authority]).await;
    let (_, subject) = examined(&rig, "unknown").await;
    let details = hop(&subject, "tls")["details"].to_string();
    assert!(details.contains("expected: \\\"CN=e2e-ca\\\", sha256 "), "{details}");
    assert!(details.contains("offered: \\\"CN=server\\\" of \\\"CN=e2e-stranger-ca"), "{details}");
    check(
        &rig,
        "other",
        ["tls", "NameMismatch", "some.other.svc; wanted is other.e2e.svc", "Give"],
    )
    .await;
    check(&rig, "expired", ["tls", "CertificateExpired", "It is expired", "Renew"]).await;
    check(&rig, "frozen", ["tls", "HandshakeTimeout", "nothing came", "frozen"]).await;
    check(&rig, "no-pem", ["tls", "InvalidCABundle", "begins with \\\"MIIB", "Put PEM"]).await;
}

#[tokio::test]
async fn what_is_wrong_with_identities_is_named_with_its_remedy() {
    let unknown = backend("unauthorized", Manner::Knows401);
    let gullible = backend("gullible", Manner::Gullible);
    let refusing = backend("refusing", Manner::Refuses403);
    let versionless = backend("versionless", Manner::NoVersion);
    let rig = Setup::new()
        .service("unauthorized", &[unknown.address])
        .service("gullible", &[gullible.address])
        .service("refusing", &[refusing.address])
        .service("versionless", &[versionless.address])
        .start()
        .await;
    let refused =
        ["client-certificate", "ClientCertificateRefused", "401", "requestheader-client-ca"];
    check(&rig, "unauthorized", refused).await;
    let forged = ["forged-identity", "ForgedIdentity", "ANYBODY CAN BE ANYBODY", "NetworkPolicy"];
    check(&rig, "gullible", forged).await;
    check(&rig, "refusing", ["discovery", "DiscoveryRefused", "403: go away", "system:masters"])
        .await;
    let versionless = ["discovery", "GroupVersionNotServed", "with 404", "spec.version"];
    check(&rig, "versionless", versionless).await;
}

#[tokio::test]
async fn objects_that_anybody_may_list_are_a_fault_and_open_discovery_is_none() {
    let open = backend("open", Manner::Open);
    let discovery = backend("discovery", Manner::OpenDiscovery);
    let rig = Setup::new()
        .service("open", &[open.address])
        .service("discovery", &[discovery.address])
        .start()
        .await;
    let refuses_nobody = ["forged-identity", "NoAuthentication", "things?limit=1", "authenticate"];
    check(&rig, "open", refuses_nobody).await;
    let (status, subject) = examined(&rig, "discovery").await;
    let hop = hop(&subject, "forged-identity");
    assert_eq!((status, &hop["result"]), (Some(0), &json!("skipped")), "{subject:#}");
}

#[tokio::test]
async fn one_endpoint_of_several_is_told_from_the_others() {
    let backend = backend("halves", Manner::Well);
    let dead = nobody();
    let rig = Setup::new().service("halves", &[backend.address, dead]).start().await;
    let (status, subject) = examined(&rig, "halves").await;
    assert_eq!((status, &subject["cause"]), (Some(1), &json!("ConnectRefused")));
    let hops = subject["hops"].as_array().unwrap();
    let tcp: Vec<&Value> = hops.iter().filter(|hop| hop["hop"] == "tcp").collect();
    assert_eq!(tcp.len(), 2, "{subject:#}");
    let failed = tcp.iter().find(|hop| hop["result"] == "failed").unwrap();
    assert_eq!(failed["endpoints"], json!([dead.to_string()]));
}

/// The server that portico stands before, examined with portico's own credentials.
async fn core_examined(rig: &Rig) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portico"));
    command.args(["doctor", "--output=json", "--timeout=5s"]).stdin(Stdio::null());
    for (flag, file) in [
        ("--kubeconfig", "kubeconfig"),
        ("--proxy-client-cert-file", "aggregator.crt"),
        ("--proxy-client-key-file", "aggregator.key"),
    ] {
        command.arg(flag).arg(rig.path(file));
    }
    let running = tokio::task::spawn_blocking(move || command.output());
    let output = within("the doctor's end", running).await.unwrap().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let found: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{stderr}"));
    let subjects = found["subjects"].as_array().unwrap();
    subjects.iter().find(|subject| subject["kind"] == "Server").unwrap().clone()
}

#[tokio::test]
async fn the_way_to_the_core_is_said_as_portico_goes_it() {
    for (manner, as_front_proxy, expected) in [
        (CoreManner::Believes, true, ("ok", json!(null))),
        (CoreManner::Refuses, false, ("failed", json!("FrontProxyNotTrusted"))),
        (CoreManner::IgnoresGroups, false, ("failed", json!("GroupsIgnored"))),
    ] {
        let core = Core::start(manner);
        let rig = core.portico(core.setup(&token())).await;
        let mut client = rig.alice(Protocol::Http2).await;
        let got = client.get("/api/v1/pods").await.json();
        assert_eq!(told(&got, "headers", "x-remote-user") == ["alice"], as_front_proxy, "{got}");
        let subject = core_examined(&rig).await;
        let found = hop(&subject, "front-proxy");
        let found = (found["result"].as_str().unwrap(), found["cause"].clone());
        assert_eq!(found, expected, "{subject:#}");
    }
}

#[tokio::test]
async fn what_cannot_be_examined_at_all_has_a_status_of_its_own() {
    let rig = Setup::new().start().await;
    let nowhere = doctor(&rig, &["--manifests=/nowhere"]).await;
    assert_eq!((nowhere.status, nowhere.stdout.as_str()), (Some(2), ""));
    assert!(nowhere.stderr.contains("--manifests /nowhere"), "{}", nowhere.stderr);
    let unusable = doctor(&rig, &["--timeout=0s"]).await;
    assert_eq!(unusable.status, Some(2), "{}", unusable.stderr);
    let mut command = Command::new(env!("CARGO_BIN_EXE_portico"));
    command.args(["doctor", "--server=https://127.0.0.1:1"]).stdin(Stdio::null());
    let running = tokio::task::spawn_blocking(move || command.output());
    let output = within("the doctor's end", running).await.unwrap().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.contains("127.0.0.1:1") && stderr.contains("refused"), "{stderr}");
}
