//! A scripted webhook for TokenReviews, posted to `/token`, and SubjectAccessReviews, posted to
//! `/access`: it keeps what it was asked and answers what the test says.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use portico::tls::pki::PemPair;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use crate::backend::{HTTP2, Listener};
use crate::pki::{Leaf, PKI, backend_tls_with};
use crate::rig::Setup;

/// What is answered: the status code and the body.
pub(crate) type Reply = (u16, Value);

type Script = Box<dyn Fn(&Value) -> Reply + Send + Sync>;

/// The webhook; dropping it closes it and cuts every connection.
pub(crate) struct ReviewServer {
    listener: Listener,
    state: Arc<State>,
    open: watch::Sender<bool>,
}

struct State {
    seen: Mutex<Vec<Value>>,
    script: Mutex<Script>,
    open: watch::Receiver<bool>,
}

impl ReviewServer {
    /// Answers every review, which has its path as `path`, by `script`.
    pub(crate) fn start(script: impl Fn(&Value) -> Reply + Send + Sync + 'static) -> Self {
        let (open, opened) = watch::channel(true);
        let state = Arc::new(State {
            seen: Mutex::default(),
            script: Mutex::new(Box::new(script)),
            open: opened,
        });
        let serving = Arc::clone(&state);
        let pair = PKI.authority.sign(&Leaf::server(&["localhost"]));
        let listener = Listener::tls(backend_tls_with(&pair, HTTP2), move |stream, _| {
            let state = Arc::clone(&serving);
            async move { serve(stream, state).await }
        });
        Self { listener, state, open }
    }

    /// From now on answers by this.
    pub(crate) fn answer(&self, script: impl Fn(&Value) -> Reply + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Box::new(script);
    }

    /// Reviews that come are held until they are released.
    pub(crate) fn hold(&self) {
        self.open.send_replace(false);
    }

    pub(crate) fn release(&self) {
        self.open.send_replace(true);
    }

    /// The specs of all TokenReviews of this token.
    pub(crate) fn tokens(&self, token: &str) -> Vec<Value> {
        self.seen(|review| review["spec"]["token"] == token)
    }

    /// The specs of all SubjectAccessReviews of this user.
    pub(crate) fn access(&self, user: &str) -> Vec<Value> {
        self.seen(|review| review["path"] == "/access" && review["spec"]["user"] == user)
    }

    fn seen(&self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let seen = self.state.seen.lock().unwrap();
        seen.iter().filter(|review| wanted(review)).map(|review| review["spec"].clone()).collect()
    }

    /// Everything that was asked, whole.
    pub(crate) fn reviews(&self) -> Vec<Value> {
        self.state.seen.lock().unwrap().clone()
    }

    /// A portico that asks about tokens.
    pub(crate) fn reviews_tokens(&self, setup: Setup) -> Setup {
        write_kubeconfig(&setup, "token-webhook", self.listener.address, "/token");
        setup.file_flag("authentication-token-webhook-config-file", "token-webhook")
    }

    /// A portico that asks what callers may do.
    pub(crate) fn reviews_access(&self, setup: Setup) -> Setup {
        self.reviews_access_among(setup, "Webhook")
    }

    /// The same with further modes.
    pub(crate) fn reviews_access_among(&self, setup: Setup, modes: &str) -> Setup {
        write_kubeconfig(&setup, "access-webhook", self.listener.address, "/access");
        let setup = setup.flag(&format!("--authorization-mode={modes}"));
        setup.file_flag("authorization-webhook-config-file", "access-webhook")
    }
}

fn write_kubeconfig(setup: &Setup, name: &str, address: SocketAddr, path: &str) {
    let PemPair { certificate, key } = &PKI.aggregator;
    let data = |text: &str| BASE64_STANDARD.encode(text);
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {
            "server": format!("https://{address}{path}"),
            "tls-server-name": "localhost",
            "certificate-authority-data": data(&PKI.authority.certificate()),
        }}],
        "users": [{"name": "u", "user": {
            "client-certificate-data": data(certificate),
            "client-key-data": data(key),
        }}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    });
    std::fs::write(setup.path(name), kubeconfig.to_string()).unwrap();
}

async fn serve(stream: TlsStream<TcpStream>, state: Arc<State>) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(&state, request).await) }
    });
    let http = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error, "review connection ended");
    }
}

async fn answer(state: &State, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut review: Value = serde_json::from_slice(&body).unwrap();
    review["path"] = parts.uri.path().into();
    state.seen.lock().unwrap().push(review.clone());
    let mut open = state.open.clone();
    // The test may be over.
    open.wait_for(|open| *open).await.ok();
    let (code, body) = (state.script.lock().unwrap())(&review);
    Response::builder().status(code).body(Full::new(body.to_string().into())).unwrap()
}

/// The token is this user's.
pub(crate) fn whose(user: &Value) -> Reply {
    (201, json!({"status": {"authenticated": true, "user": user}}))
}

/// The token is nobody's.
pub(crate) fn nobodys(error: &str) -> Reply {
    (201, json!({"status": {"authenticated": false, "error": error}}))
}

pub(crate) fn allowed() -> Reply {
    (201, json!({"status": {"allowed": true, "reason": "because"}}))
}

/// No opinion, with a reason.
pub(crate) fn not_allowed(reason: &str) -> Reply {
    (201, json!({"status": {"allowed": false, "reason": reason}}))
}
