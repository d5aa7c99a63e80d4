//! A backend that plays kube-apiserver: it says whom it takes its callers for, switches protocols,
//! and tells what it received, with the certificate that was shown to it.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use portico::runtime::tasks::spawn;
use portico::tls::pki::PemPair;
use portico::tls::{certificates, provider};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::backend::{Backend, HTTP2, Sent, State, answer, full, told};
use crate::cluster::Cluster;
use crate::issuer::SigningKey;
use crate::pki::{Leaf, PKI};
use crate::rig::{Rig, Setup, eventually};

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
/// What portico asks about others, which the core answers whatever its manner.
const DELEGATED: [&str; 2] = [
    "/apis/authentication.k8s.io/v1/tokenreviews",
    "/apis/authorization.k8s.io/v1/subjectaccessreviews",
];
/// Where the keys are that verify its service accounts' tokens.
const KEYS: &str = "/openid/v1/jwks";
/// The token that the core knows as `erin`'s, who may do nothing.
pub(crate) const ERINS_TOKEN: &str = "erins-secret-token";

/// Added to what came, with the common name of the certificate that was shown.
const SHOWN: &str = "x-shown-certificate";

/// The token by which the core knows portico where that has no certificate.
pub(crate) const PORTICOS_TOKEN: &str = "porticos-secret-token";

/// What it makes of its callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It believes X-Remote-* from who shows the certificate of an aggregator.
    Believes,
    /// It believes nobody's X-Remote-*.
    Refuses,
    /// It believes the user, and reads groups from headers of another name.
    IgnoresGroups,
    /// It says nothing about anybody, as a load balancer does that has no server.
    Fails,
    /// It ends every connection before it answers.
    Hangs,
}

/// The core.
pub(crate) struct Core {
    pub(crate) backend: Backend,
    /// Its objects.
    pub(crate) cluster: Cluster,
    manner: Arc<Mutex<Manner>>,
    reviews: Reviews,
    keys: Keys,
}

type Keys = Arc<Mutex<Vec<Value>>>;

/// Each with the Authorization header that it came with.
type Reviews = Arc<Mutex<Vec<Value>>>;

/// What the core answers by.
#[derive(Clone)]
struct Scripted {
    manner: Arc<Mutex<Manner>>,
    cluster: Cluster,
    reviews: Reviews,
    keys: Keys,
}

impl Core {
    pub(crate) fn start(manner: Manner) -> Self {
        Self::start_as(manner, "127.0.0.1")
    }

    /// With a certificate for this name or address.
    pub(crate) fn start_as(manner: Manner, name: &str) -> Self {
        let manner = Arc::new(Mutex::new(manner));
        let scripted = Scripted {
            manner,
            cluster: Cluster::new(),
            reviews: Reviews::default(),
            keys: Keys::default(),
        };
        let serving = scripted.clone();
        let config = tls(&PKI.authority.sign(&Leaf::server(&[name])));
        let backend = Backend::start_with(config, move |stream, number, state| {
            let serving = serving.clone();
            async move { serve(stream, number, state, serving).await }
        });
        let Scripted { manner, cluster, reviews, keys } = scripted;
        Self { backend, cluster, manner, reviews, keys }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.backend.address()
    }

    pub(crate) fn set(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    /// A portico before it whose user in the kubeconfig is this one.
    pub(crate) fn setup(&self, user: &str) -> Setup {
        let setup = Setup::new();
        let text = kubeconfig(&format!("https://{}", self.address()), "", user);
        std::fs::write(setup.path("kubeconfig"), text).unwrap();
        setup.file_flag("kubeconfig", "kubeconfig")
    }

    /// Starts it and waits until requests reach the core.
    pub(crate) async fn portico(&self, setup: Setup) -> Rig {
        let rig = setup.launch();
        rig.await_status("/version", 200).await;
        rig
    }

    /// Replaces the keys of its service accounts' tokens.
    pub(crate) fn publish(&self, keys: &[&SigningKey]) {
        *self.keys.lock().unwrap() = keys.iter().map(|key| key.jwk()).collect();
    }

    /// The TokenReviews and SubjectAccessReviews that came.
    pub(crate) fn reviews(&self) -> Vec<Value> {
        self.reviews.lock().unwrap().clone()
    }

    /// What came beside portico's own questions and the waiting for it.
    pub(crate) fn seen(&self) -> Vec<Value> {
        let mut seen = self.backend.seen();
        seen.retain(|told| told["target"] != "/version");
        seen
    }
}

/// A portico's token as the user of a kubeconfig.
pub(crate) fn token() -> String {
    format!("token: {PORTICOS_TOKEN}")
}

pub(crate) fn kubeconfig(server: &str, more: &str, user: &str) -> String {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    let ca = BASE64_STANDARD.encode(PKI.authority.certificate());
    format!(
        "clusters: [{{name: c, cluster: {{server: '{server}', {more} \
         certificate-authority-data: {ca}}}}}]\n\
         users: [{{name: u, user: {{{user}}}}}]\n\
         contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
    )
}

/// The certificate that was shown with what the core told.
pub(crate) fn shown(told_by_core: &Value) -> String {
    told(told_by_core, "headers", SHOWN).concat()
}

/// Every header that says who calls, as the core got it.
pub(crate) fn claims(told: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pairs = told["headers"].as_array().unwrap().iter();
    pairs
        .map(|pair| (text(&pair[0]), text(&pair[1])))
        .filter(|(name, _)| {
            let folded = name.replace('_', "-");
            folded.starts_with("x-remote-")
                || folded.starts_with("impersonate")
                || folded == "authorization"
        })
        // A certificate's fingerprint is not the test's to know.
        .filter(|(name, _)| !name.ends_with("authentication.kubernetes.io%2fcredential-id"))
        .collect()
}

/// Waits until a service's backend is asked what goes to it directly.
pub(crate) async fn await_direct(rig: &Rig, target: &str, backend: &Backend) {
    let mut client = rig.alice(crate::client::Protocol::Http2).await;
    eventually("requests reach the extension API server", async || {
        client.get(target).await;
        !backend.seen().is_empty()
    })
    .await;
}

/// Asks for a certificate, and is content without one.
fn tls(pair: &PemPair) -> ServerConfig {
    let mut roots = RootCertStore::empty();
    for authority in [&PKI.aggregators, &PKI.authority] {
        for root in certificates("callers", authority.certificate().as_bytes()).unwrap() {
            roots.add(root).unwrap();
        }
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let pair = pair.key_pair().unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        .with_single_cert(pair.chain, pair.key)
        .unwrap();
    config.alpn_protocols = HTTP2.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

async fn serve(stream: TlsStream<TcpStream>, number: usize, state: Arc<State>, scripted: Scripted) {
    let certificate = common_name(&stream);
    let now = *scripted.manner.lock().unwrap();
    if now == Manner::Hangs {
        return;
    }
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (state, certificate) = (Arc::clone(&state), certificate.clone());
        let Scripted { manner, cluster, reviews, keys } = scripted.clone();
        let manner = *manner.lock().unwrap();
        async move {
            if manner == Manner::Hangs {
                // Ends connections that were open before, too.
                return Err(io::Error::from(io::ErrorKind::ConnectionAborted));
            }
            if request.uri().path() == REVIEWS {
                return Ok(review(manner, &certificate, request).await);
            }
            if request.uri().path() == KEYS {
                let keys = json!({ "keys": *keys.lock().unwrap() });
                // As kube-apiserver does.
                let is_wanted = request.headers()["accept"] == "application/jwk-set+json";
                let code = if is_wanted { StatusCode::OK } else { StatusCode::NOT_ACCEPTABLE };
                return Ok(response(code, &keys));
            }
            if Cluster::concerns(&request) {
                return Ok(cluster.answer(request).await);
            }
            if DELEGATED.contains(&request.uri().path()) {
                return Ok(delegated(&reviews, request).await);
            }
            let shown = HeaderValue::try_from(certificate).unwrap();
            request.headers_mut().insert(SHOWN, shown);
            if request.headers().contains_key("upgrade") {
                return Ok(switch(&state, number, request).await);
            }
            Ok::<_, io::Error>(answer(&state, number, request).await)
        }
    });
    let http = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = http.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(error, "connection to the core ended");
    }
}

fn common_name(stream: &TlsStream<TcpStream>) -> String {
    let Some([leaf, ..]) = stream.get_ref().1.peer_certificates() else { return String::new() };
    let (_, parsed) = X509Certificate::from_der(leaf).unwrap();
    let name = parsed.subject().iter_common_name().next().unwrap();
    name.as_str().unwrap().to_owned()
}

/// Says whom it takes the caller for.
async fn review(manner: Manner, certificate: &str, request: Request<Incoming>) -> Response<Sent> {
    let (parts, body) = request.into_parts();
    let body: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(body["kind"], "SelfSubjectReview");
    if manner == Manner::Fails {
        return response(StatusCode::SERVICE_UNAVAILABLE, &json!({}));
    }
    let by_token = parts.headers.get("authorization");
    if by_token.is_some_and(|value| value == &*format!("Bearer {PORTICOS_TOKEN}")) {
        let user = json!({ "username": "portico" });
        let told = json!({ "kind": body["kind"], "status": { "userInfo": user } });
        return response(StatusCode::CREATED, &told);
    }
    if manner == Manner::Refuses || certificate != "aggregator" {
        return response(StatusCode::UNAUTHORIZED, &json!({ "kind": "Status", "code": 401 }));
    }
    let text = |name: &str| {
        let value = parts.headers.get(name).map(|value| value.to_str().unwrap());
        value.unwrap_or_default().to_owned()
    };
    let groups = parts.headers.get_all("x-remote-group").iter();
    let groups = groups.filter(|_| manner != Manner::IgnoresGroups);
    let groups: Vec<_> = groups.map(|value| value.to_str().unwrap()).collect();
    let user = json!({
        "username": text("x-remote-user"),
        "uid": text("x-remote-uid"),
        "groups": groups,
        "extra": extra(&parts.headers),
    });
    response(StatusCode::CREATED, &json!({ "kind": body["kind"], "status": { "userInfo": user } }))
}

/// Knows one token, and allows everything but to its user.
async fn delegated(reviews: &Reviews, request: Request<Incoming>) -> Response<Sent> {
    let (parts, body) = request.into_parts();
    let mut review: Value =
        serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
    let by = parts.headers.get("authorization").map(|value| value.to_str().unwrap());
    review["by"] = by.unwrap_or_default().into();
    reviews.lock().unwrap().push(review.clone());
    let status = match review["kind"].as_str() {
        Some("TokenReview") if review["spec"]["token"] == ERINS_TOKEN => {
            json!({"authenticated": true, "user": {"username": "erin", "groups": ["guests"]}})
        }
        Some("TokenReview") => json!({"authenticated": false, "error": "invalid bearer token"}),
        _ => json!({"allowed": review["spec"]["user"] != "erin", "reason": "nothing for erin"}),
    };
    response(StatusCode::CREATED, &json!({ "status": status }))
}

fn extra(headers: &HeaderMap) -> Value {
    let mut extra = serde_json::Map::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix("x-remote-extra-") {
            let key = key.replace("%2f", "/");
            extra.insert(key, json!([value.to_str().unwrap()]));
        }
    }
    extra.into()
}

fn response(code: StatusCode, body: &Value) -> Response<Sent> {
    let mut response = Response::new(full(body.to_string().into()));
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

/// Switches to what was asked for and gives bytes back; `forbidden` and `unauthorized` are refused.
async fn switch(state: &State, number: usize, mut request: Request<Incoming>) -> Response<Sent> {
    let asked = request.headers()["upgrade"].clone();
    let refused = match request.uri().path().rsplit('/').next() {
        Some("forbidden") => Some(StatusCode::FORBIDDEN),
        Some("unauthorized") => Some(StatusCode::UNAUTHORIZED),
        _ => None,
    };
    let upgrading = hyper::upgrade::on(&mut request);
    let mut response = answer(state, number, request).await;
    if let Some(code) = refused {
        *response.status_mut() = code;
        return response;
    }
    drop(spawn("tunnel", async move {
        if let Ok(upgraded) = upgrading.await {
            let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
            if tokio::io::copy(&mut from, &mut to).await.is_ok() {
                to.shutdown().await.ok();
            }
        }
    }));
    let body = Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("connection", HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert("upgrade", asked);
    response
}
