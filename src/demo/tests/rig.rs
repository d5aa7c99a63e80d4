//! A toy with its PKI and a client: what the tests stand on.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::demo::{Toy, ToyConfig, ToyKind, start};
use crate::runtime::tasks;

pub(super) type Sent = UnsyncBoxBody<Bytes, Infallible>;

/// One authority for the serving pair and the front proxy's certificate.
pub(super) struct Pki {
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { authority: CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    fn sign(
        &self,
        common_name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (vec![certificate.der().clone()], key.into())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        Arc::new(roots)
    }

    fn server(&self) -> Arc<ServerConfig> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots(), provider()).build().unwrap();
        let (chain, key) = self.sign("toy", ExtendedKeyUsagePurpose::ServerAuth);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    pub(super) fn client(&self, common_name: Option<&str>, protocol: &str) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match common_name {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let (chain, key) = self.sign(name, ExtendedKeyUsagePurpose::ClientAuth);
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Arc::new(config)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(super) async fn tls(toy: &Toy, config: Arc<ClientConfig>) -> TokioIo<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(toy.address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    TokioIo::new(connector.connect(name, stream).await.unwrap())
}

/// A toy with one HTTP/2 connection to it.
pub(super) struct Rig {
    pub(super) pki: Pki,
    pub(super) toy: Toy,
    sender: http2::SendRequest<Sent>,
}

pub(super) async fn rig(kind: ToyKind) -> Rig {
    let pki = Pki::new();
    let config = ToyConfig {
        server: pki.server(),
        requestheader_allowed_names: vec!["front-proxy-client".to_owned()],
        kind,
        bind: (Ipv4Addr::LOCALHOST, 0).into(),
    };
    let toy = start(config).await.unwrap();
    let sender = http2_to(&toy, pki.client(Some("front-proxy-client"), "h2")).await;
    Rig { pki, toy, sender }
}

pub(super) async fn http2_to(toy: &Toy, config: Arc<ClientConfig>) -> http2::SendRequest<Sent> {
    let stream = tls(toy, config).await;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tasks::spawn("test-connection", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
        }
    });
    sender
}

pub(super) fn request(
    method: &str,
    path: &str,
    headers: &[(&'static str, &'static str)],
    body: impl Into<Bytes>,
) -> Request<Sent> {
    let mut request = Request::builder().method(method).uri(format!("https://localhost{path}"));
    if !headers.iter().any(|(name, _)| *name == "x-remote-user") {
        request = request.header("x-remote-user", "alice");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into()).boxed_unsync()).unwrap()
}

impl Rig {
    pub(super) async fn send(&self, request: Request<Sent>) -> Response<Incoming> {
        self.sender.clone().send_request(request).await.unwrap()
    }

    pub(super) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&'static str, &'static str)],
        body: Value,
    ) -> (u16, HeaderMap, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = self.send(request(method, path, headers, body)).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
        (parts.status.as_u16(), parts.headers, value)
    }

    pub(super) async fn json(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let (code, _, value) = self.ask(method, path, &[], body).await;
        (code, value)
    }

    pub(super) async fn patch(&self, path: &str, kind: &'static str, body: Value) -> (u16, Value) {
        let (code, _, value) = self.ask("PATCH", path, &[("content-type", kind)], body).await;
        (code, value)
    }

    pub(super) async fn watch(
        &self,
        path: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Watcher {
        let response = self.send(request("GET", path, headers, "")).await;
        assert_eq!(response.status(), 200);
        Watcher::new(response.into_body())
    }
}

/// The events of a watch.
pub(super) struct Watcher {
    body: Incoming,
    read: Vec<u8>,
}

impl Watcher {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, read: Vec::new() }
    }

    /// The next event; `None` at the stream's clean end.
    pub(super) async fn next(&mut self) -> Option<Result<Value, hyper::Error>> {
        loop {
            if let Some(end) = self.read.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Some(Ok(serde_json::from_slice(&line).unwrap()));
            }
            match self.body.frame().await? {
                Ok(frame) => self.read.extend_from_slice(&frame.into_data().unwrap()),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    pub(super) async fn event(&mut self) -> (String, Value) {
        let mut event = self.next().await.unwrap().unwrap();
        (event["type"].as_str().unwrap().to_owned(), event["object"].take())
    }

    pub(super) async fn named(&mut self) -> String {
        let (kind, object) = self.event().await;
        format!("{kind} {}", object["metadata"]["name"].as_str().unwrap_or_default())
    }
}
