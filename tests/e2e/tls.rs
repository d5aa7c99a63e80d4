//! TLS towards clients and backends: versions, suites, certificates by name, sessions that are
//! resumed, keys that a quantum computer would not find, and ends that are seen coming.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portico::app::Tuning;
use portico::config::Config;
use portico::tls::pki::PemPair;
use portico::tls::server::{MinVersion, SniPair, cipher_suite};
use portico::tls::{certificates, provider};
use rustls::crypto::CryptoProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CipherSuite, ClientConfig, HandshakeKind, NamedGroup, RootCertStore, ServerConfig,
    SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::backend::Listener;
use crate::client::{Ask, Protocol};
use crate::http1_client::Http1;
use crate::pki::{Leaf, PKI, backend_tls, host};
use crate::rig::{LIMIT, Setup, eventually, path, within};

/// A client's configuration, with a certificate or without.
pub(crate) fn client(
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
    pair: Option<&PemPair>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for root in certificates("ca", PKI.authority.certificate().as_bytes()).unwrap() {
        roots.add(root).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match pair.map(|pair| pair.key_pair().unwrap()) {
        None => builder.with_no_client_auth(),
        Some(pair) => builder.with_client_auth_cert(pair.chain, pair.key).unwrap(),
    })
}

pub(crate) fn ours() -> CryptoProvider {
    CryptoProvider::clone(&provider())
}

pub(crate) async fn connect(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::clone(config)).connect(name, stream).await
    };
    within("a TLS connection", connecting).await
}

/// The code of an answer to whoever is authenticated (404), or to whoever is not (401).
async fn who(stream: TlsStream<TcpStream>) -> u16 {
    let mut http = Http1::new(stream);
    let ask = Ask::get("/apis/nobody.example.com/v1");
    let mut opened = within("an answer", http.open(&ask)).await.unwrap();
    opened.body.collect().await.unwrap();
    opened.status
}

fn with_tls(change: impl FnOnce(&mut portico::tls::server::Settings) + 'static) -> Setup {
    Setup::new().edit(move |config: &mut Config, _: &mut Tuning| change(&mut config.tls))
}

#[tokio::test]
async fn older_versions_than_the_minimum_are_refused() {
    let rig = with_tls(|tls| tls.min_version = MinVersion::Tls13).start().await;
    assert!(connect(rig.address, &client(ours(), &[&TLS12], None), "localhost").await.is_err());
    assert!(connect(rig.address, &client(ours(), &[&TLS13], None), "localhost").await.is_ok());
}

#[tokio::test]
async fn suites_of_tls_1_2_are_those_that_are_set_and_those_of_1_3_stay() {
    let name = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305";
    let rig = with_tls(move |tls| tls.cipher_suites.push(cipher_suite(name).unwrap()));
    let rig = rig.start().await;
    let old = connect(rig.address, &client(ours(), &[&TLS12], None), "localhost").await.unwrap();
    let suite = old.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256);
    let mut other = ours();
    other.cipher_suites.retain(|offered| offered.suite() != suite);
    assert!(connect(rig.address, &client(other, &[&TLS12], None), "localhost").await.is_err());
    assert!(connect(rig.address, &client(ours(), &[&TLS13], None), "localhost").await.is_ok());
}

#[tokio::test]
async fn the_certificate_is_the_one_for_the_name_that_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let pair = |file: &str, own: &[&str], names: &[&str]| {
        let made = PKI.authority.sign(&Leaf::server(own));
        let at = |extension: &str| directory.path().join(format!("{file}.{extension}"));
        made.write(&at("crt"), &at("key")).unwrap();
        let names = names.iter().map(|&name| name.to_owned()).collect();
        (made, SniPair { certificate: at("crt"), key: at("key"), names })
    };
    let (own, own_setting) = pair("own", &["own.test", "both.test"], &[]);
    let (wild, wild_setting) =
        pair("wild", &["*.wild.test", "both.test"], &["*.wild.test", "both.test"]);
    let rig = with_tls(move |tls| tls.sni.extend([own_setting, wild_setting])).start().await;
    let leaf = |pair: &PemPair| pair.key_pair().unwrap().chain[0].clone();
    let shown = async |name: &str| -> CertificateDer<'static> {
        let stream = connect(rig.address, &client(ours(), &[&TLS13], None), name).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    assert_eq!(shown("own.test").await, leaf(&own));
    assert_eq!(shown("any.wild.test").await, leaf(&wild));
    assert_eq!(shown("both.test").await, leaf(&wild), "names that are given come first");
    assert_eq!(shown("localhost").await, leaf(&PKI.server));
}

#[tokio::test]
async fn a_resumed_session_is_still_its_clients() {
    let rig = Setup::new().start().await;
    for version in [&TLS13, &TLS12] {
        let alice = client(ours(), &[version], Some(&PKI.alice));
        let stranger = client(ours(), &[version], None);
        for (config, status) in [(alice, 404), (stranger, 401)] {
            for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
                let stream = connect(rig.address, &config, "localhost").await.unwrap();
                assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind));
                assert_eq!(who(stream).await, status, "{version:?} {kind:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_resumed_session_does_not_outlive_its_clients_certificate() {
    let rig = Setup::new().start().await;
    let brief = Leaf::client("brief", &[]).valid_for(Duration::from_secs(2));
    let config = client(ours(), &[&TLS13], Some(&PKI.authority.sign(&brief)));
    let first = connect(rig.address, &config, "localhost").await.unwrap();
    who(first).await;
    eventually("the expired certificate is refused", async || {
        let stream = connect(rig.address, &config, "localhost").await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
        who(stream).await == 401
    })
    .await;
}

fn classic() -> CryptoProvider {
    let mut provider = ours();
    provider.kx_groups.retain(|group| group.name() == NamedGroup::X25519);
    provider
}

#[tokio::test]
async fn keys_are_exchanged_post_quantum_with_clients_that_can_and_classically_with_others() {
    let rig = Setup::new().start().await;
    for (offered, group) in [(ours(), NamedGroup::X25519MLKEM768), (classic(), NamedGroup::X25519)]
    {
        let config = client(offered, &[&TLS13], Some(&PKI.alice));
        let stream = connect(rig.address, &config, "localhost").await.unwrap();
        let negotiated = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(negotiated, group);
        assert_eq!(who(stream).await, 404);
    }
}

/// A backend that only tells in which group keys were exchanged.
fn group_teller(config: ServerConfig) -> (Listener, mpsc::Receiver<NamedGroup>) {
    let (seen, groups) = mpsc::channel(16);
    let listener = Listener::tls(config, move |stream, _| {
        let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
        let seen = seen.clone();
        async move { seen.try_send(group).unwrap() }
    });
    (listener, groups)
}

#[tokio::test]
async fn keys_are_exchanged_post_quantum_with_backends_that_can_and_classically_with_others() {
    let (new, new_groups) = group_teller(backend_tls("new", &["http/1.1"]));
    let pair = PKI.authority.sign(&Leaf::server(&[&host("old")])).key_pair().unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(classic()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(pair.chain, pair.key)
        .unwrap();
    let (old, old_groups) = group_teller(config);
    let setup = Setup::new().service("new", &[new.address]).service("old", &[old.address]);
    let rig = setup.start().await;
    for (name, mut groups, group) in
        [("new", new_groups, NamedGroup::X25519MLKEM768), ("old", old_groups, NamedGroup::X25519)]
    {
        let mut alice = rig.alice(Protocol::Http1).await;
        // The backend answers nothing, which is no concern of this test.
        assert_eq!(alice.get(&path(name, "things")).await.status, 503);
        assert_eq!(within("a handshake", groups.recv()).await, Some(group));
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[tokio::test]
async fn the_end_of_every_certificate_in_use_is_in_the_metrics() {
    let name = "portico_certificate_expiration_timestamp_seconds";
    let rig = Setup::new().start().await;
    let (hour, day) = (3600.0, 24.0 * 3600.0);
    for own in ["serving", "proxy-client"] {
        let label = format!("certificate=\"{own}\"");
        rig.await_some(name, &[&label]).await;
        let end = rig.metric(name, &[&label]).await.unwrap();
        assert!((end - seconds(SystemTime::now()) - day).abs() < hour, "{own} {end}");
    }
    for own in ["client-ca", "requestheader-client-ca"] {
        rig.await_some(name, &[&format!("certificate=\"{own}\"")]).await;
    }
    // The rig's own client shows a certificate with every request.
    let left = "apiserver_client_certificate_expiration_seconds_bucket";
    let within_two_days = rig.metric(left, &["le=\"172800\""]).await.unwrap();
    let within_half_a_day = rig.metric(left, &["le=\"43200\""]).await.unwrap();
    assert!(within_two_days > 0.0);
    assert!(within_half_a_day < 0.5, "{within_half_a_day}");
}

#[tokio::test]
async fn the_end_of_a_ca_bundle_is_in_the_metrics_as_long_as_its_api_service_is_there() {
    let name = "portico_apiservice_ca_bundle_expiration_timestamp_seconds";
    let label = "apiservice=\"v1.one.example.com\"";
    let rig = Setup::new().service("one", &[]).service("two", &[]).start().await;
    rig.await_some(name, &[label]).await;
    rig.remove("one.yaml");
    eventually("the series is gone", async || rig.metric(name, &[label]).await.is_none()).await;
    assert!(rig.metric(name, &["apiservice=\"v1.two.example.com\""]).await.is_some());
}

fn one_handshake_at_a_time(timeout: Duration, turn: Duration) -> Setup {
    Setup::new().edit(move |config: &mut Config, _: &mut Tuning| {
        config.frontend.limits.handshakes_max = 1;
        config.frontend.limits.handshake_timeout = timeout;
        config.frontend.limits.handshake_turn = turn;
    })
}

#[tokio::test]
async fn handshakes_past_the_limit_wait_their_turn() {
    let setup = one_handshake_at_a_time(Duration::from_secs(2), LIMIT);
    let rig = setup.start().await;
    // One that begins and does not go on has the only turn until its time is over.
    let mut slow = TcpStream::connect(rig.address).await.unwrap();
    slow.write_all(&[22]).await.unwrap();
    let errors = rig.metric("apiserver_tls_handshake_errors_total", &[]).await.unwrap();
    assert!(errors > 0.5, "who asks for the metric did not wait");
}

#[tokio::test]
async fn who_says_nothing_takes_nobodys_turn_to_shake_hands() {
    let rig = one_handshake_at_a_time(LIMIT, LIMIT).start().await;
    let _silent = TcpStream::connect(rig.address).await.unwrap();
    let mut alice = rig.alice(Protocol::Http1).await;
    assert_eq!(alice.get("/livez").await.status, 200);
}

#[tokio::test]
async fn who_begins_a_handshake_and_stops_keeps_the_turn_for_a_moment_only() {
    let moment = Duration::from_millis(50);
    let rig = one_handshake_at_a_time(LIMIT, moment).start().await;
    let mut slow = TcpStream::connect(rig.address).await.unwrap();
    slow.write_all(&[22]).await.unwrap();
    let errors = rig.metric("apiserver_tls_handshake_errors_total", &[]).await.unwrap();
    assert!(errors < 0.5, "the slow one is given up only at the end of its time");
}
