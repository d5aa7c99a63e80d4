//! A scripted issuer of tokens: its discovery document and its keys over TLS, and tokens that it signs.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use portico::tls::provider;
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::backend::Listener;
use crate::pki::PKI;

/// A P-256 key that signs tokens.
pub(crate) struct SigningKey {
    kid: String,
    pair: KeyPair,
}

impl SigningKey {
    pub(crate) fn new(kid: &str) -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Self { kid: kid.to_owned(), pair }
    }

    /// The public half as PEM.
    pub(crate) fn pem(&self) -> String {
        self.pair.public_key_pem()
    }

    pub(crate) fn jwk(&self) -> Value {
        let (x, y) = self.pair.der_bytes()[1..].split_at(32);
        json!({"kty": "EC", "crv": "P-256", "kid": self.kid, "x": base64(x), "y": base64(y)})
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({"alg": "ES256", "kid": self.kid}), claims)
    }

    /// Signed as it is, whatever the header says.
    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| base64(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(header), part(claims));
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &self.pair.serialize_der()).unwrap();
        let signature = pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", base64(signature.as_ref()))
    }
}

fn base64(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

struct State {
    keys: Mutex<Vec<Value>>,
    is_down: AtomicBool,
    is_held: watch::Sender<bool>,
    fetched: AtomicUsize,
}

/// The issuer.
pub(crate) struct Issuer {
    pub(crate) url: String,
    state: Arc<State>,
    _listener: Listener,
}

impl Issuer {
    pub(crate) fn start(keys: &[&SigningKey]) -> Self {
        let state = Arc::new(State {
            keys: Mutex::default(),
            is_down: AtomicBool::new(false),
            is_held: watch::Sender::new(false),
            fetched: AtomicUsize::new(0),
        });
        let served = Arc::clone(&state);
        let listener = Listener::tls(tls(), move |stream, _| {
            let state = Arc::clone(&served);
            async move {
                let address = stream.get_ref().0.local_addr().unwrap();
                let url = format!("https://localhost:{}", address.port());
                let service = service_fn(move |request| {
                    let (state, url) = (Arc::clone(&state), url.clone());
                    async move { Ok::<_, Infallible>(answer(&request, &url, &state).await) }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                // How portico leaves is not what tests are about.
                drop(serving.await);
            }
        });
        let url = format!("https://localhost:{}", listener.address.port());
        let issuer = Self { url, state, _listener: listener };
        issuer.publish(keys);
        issuer
    }

    /// Replaces the keys.
    pub(crate) fn publish(&self, keys: &[&SigningKey]) {
        *self.state.keys.lock().unwrap() = keys.iter().map(|key| key.jwk()).collect();
    }

    /// While it is down it answers 503.
    pub(crate) fn set_down(&self, is_down: bool) {
        self.state.is_down.store(is_down, Ordering::SeqCst);
    }

    /// From now on it answers nobody.
    pub(crate) fn hold(&self) {
        self.state.is_held.send_replace(true);
    }

    /// How often its keys were asked for, with whatever result.
    pub(crate) fn asked(&self) -> usize {
        self.state.fetched.load(Ordering::SeqCst)
    }

    /// Claims that are in order, for the audience `me`.
    pub(crate) fn claims(&self, subject: &str) -> Value {
        json!({"iss": self.url, "aud": "me", "sub": subject, "exp": now() + 600})
    }
}

async fn answer(request: &Request<Incoming>, url: &str, state: &State) -> Response<Full<Bytes>> {
    state.fetched.fetch_add(1, Ordering::SeqCst);
    // Its sender is here.
    state.is_held.subscribe().wait_for(|is_held| !is_held).await.ok();
    let (status, body) = match request.uri().path() {
        _ if state.is_down.load(Ordering::SeqCst) => (503, json!("down")),
        "/.well-known/openid-configuration" => {
            (200, json!({"issuer": url, "jwks_uri": format!("{url}/keys")}))
        }
        "/keys" => (200, json!({"keys": *state.keys.lock().unwrap()})),
        _ => (404, json!("nothing here")),
    };
    let body = Full::new(Bytes::from(body.to_string()));
    Response::builder().status(status).body(body).unwrap()
}

/// Nobody is asked for a certificate.
fn tls() -> ServerConfig {
    let pair = PKI.server.key_pair().unwrap();
    ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(pair.chain, pair.key)
        .unwrap()
}
