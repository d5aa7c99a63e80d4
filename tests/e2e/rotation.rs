//! Certificates, keys and tokens that are replaced on disk while requests and watches are open.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Frame;
use portico::tls::pki::PemPair;
use rustls::ClientConfig;
use rustls::version::TLS13;
use rustls_pki_types::CertificateDer;

use crate::backend::{Backend, HTTP1, HTTP2, Watch, serve, told};
use crate::client::{Answer, Ask, Protocol};
use crate::http2_client::Http2;
use crate::pki::{Authority, Leaf, PKI, backend_tls};
use crate::rig::{BOBS_TOKEN, Rig, Setup, eventually, path, within};
use crate::tls::{client, connect, ours};

/// A mounted Secret: each file is a link through one link to a directory, which is swapped.
struct Volume {
    directory: PathBuf,
    swaps: usize,
}

impl Volume {
    fn new(directory: PathBuf, pair: &PemPair) -> Self {
        fs::create_dir(&directory).unwrap();
        let mut volume = Self { directory, swaps: 0 };
        volume.swap(pair);
        for name in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(name), volume.directory.join(name)).unwrap();
        }
        volume
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// Puts this pair in the place of the last at once, and takes the old files away.
    fn swap(&mut self, pair: &PemPair) {
        let name = |swap: usize| format!("..swap-{swap}");
        let (old, new) = (name(self.swaps), name(self.swaps + 1));
        self.swaps += 1;
        let directory = self.directory.join(&new);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("tls.crt"), &pair.certificate).unwrap();
        fs::write(directory.join("tls.key"), &pair.key).unwrap();
        let link = self.directory.join("..data_tmp");
        symlink(&new, &link).unwrap();
        fs::rename(link, self.directory.join("..data")).unwrap();
        // There is none at first.
        fs::remove_dir_all(self.directory.join(old)).ok();
    }
}

/// A Secret with an authority in the place of a certificate.
fn bundle(authority: &Authority) -> PemPair {
    PemPair { certificate: authority.certificate(), key: String::new() }
}

/// Puts a file in the place of another.
pub(crate) fn rename_over(path: &Path, text: &str) {
    let partial = path.with_extension("partial");
    fs::write(&partial, text).unwrap();
    fs::rename(partial, path).unwrap();
}

fn leaf(pair: &PemPair) -> CertificateDer<'static> {
    pair.key_pair().unwrap().chain[0].clone()
}

/// What who asks for this name is shown, also when it had been here before.
async fn shown(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    name: &str,
) -> CertificateDer<'static> {
    let stream = connect(address, config, name).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

/// A connection of alice's on which a watch is open, and stays.
pub(crate) struct Open {
    base: String,
    client: Http2,
    watched: h2::RecvStream,
    watch: Watch,
}

impl Open {
    async fn new(rig: &Rig, backend: &mut Backend, name: &str) -> Self {
        Self::at(rig, backend, path(name, "")).await
    }

    /// A watch and requests below this path.
    pub(crate) async fn at(rig: &Rig, backend: &mut Backend, base: String) -> Self {
        let client = rig.alice(Protocol::Http2).await.http2();
        let ask = Ask::get(format!("{base}events?watch=true"));
        let (watching, watch) = tokio::join!(client.ask(&ask), backend.watch());
        let mut open = Self { base, client, watched: watching.unwrap().into_body(), watch };
        open.check().await;
        open
    }

    /// The watch goes on, and the connection's next request is answered.
    async fn check(&mut self) {
        self.check_watch().await;
        assert_eq!(self.ask("things").await, 200);
    }

    /// The watch goes on.
    pub(crate) async fn check_watch(&mut self) {
        let event = Bytes::from_static(b"event\n");
        within("room", self.watch.send(Ok(Frame::data(event.clone())))).await.unwrap();
        let read = within("an event", self.watched.data()).await.unwrap().unwrap();
        assert_eq!(read, event);
        self.watched.flow_control().release_capacity(read.len()).unwrap();
    }

    async fn ask(&self, rest: &str) -> u16 {
        let ask = Ask::get(format!("{}{rest}", self.base));
        within("an answer", self.client.ask(&ask)).await.unwrap().status().as_u16()
    }
}

#[tokio::test]
async fn new_connections_are_shown_replaced_serving_pairs_and_open_ones_go_on() {
    let mut backend = Backend::start("two", HTTP2);
    let sign = |name: &str| PKI.authority.sign(&Leaf::server(&[name]));
    let (first, second, serving) = (sign("sni.test"), sign("sni.test"), sign("localhost"));
    let setup = Setup::new().service("two", &[backend.address()]);
    let mut volume = Volume::new(setup.path("volume"), &first);
    let sni = format!("{},{}", volume.file("tls.crt"), volume.file("tls.key"));
    let rig = setup.flag(&format!("--tls-sni-cert-key={sni}")).start().await;
    let mut open = Open::new(&rig, &mut backend, "two").await;
    let config = client(ours(), &[&TLS13], None);
    assert_eq!(shown(rig.address, &config, "localhost").await, leaf(&PKI.server));
    assert_eq!(shown(rig.address, &config, "sni.test").await, leaf(&first));

    volume.swap(&second);
    eventually("the swapped pair", async || {
        shown(rig.address, &config, "sni.test").await == leaf(&second)
    })
    .await;
    open.check().await;
    // Half of a pair changes nothing.
    rename_over(&rig.path("server.crt"), &serving.certificate);
    volume.swap(&first);
    eventually("the other pair", async || {
        shown(rig.address, &config, "sni.test").await == leaf(&first)
    })
    .await;
    assert_eq!(shown(rig.address, &config, "localhost").await, leaf(&PKI.server));
    rename_over(&rig.path("server.key"), &serving.key);
    eventually("the pair that is whole again", async || {
        shown(rig.address, &config, "localhost").await == leaf(&serving)
    })
    .await;
    open.check().await;
}

#[tokio::test]
async fn the_metric_of_a_certificates_end_follows_its_file() {
    let name = "portico_certificate_expiration_timestamp_seconds";
    let rig = Setup::new().start().await;
    let end = async || rig.metric(name, &["certificate=\"serving\""]).await.unwrap();
    rig.await_some(name, &["certificate=\"serving\""]).await;
    let first = end().await;
    let brief = Leaf::server(&["localhost"]).valid_for(Duration::from_secs(3600));
    let serving = PKI.authority.sign(&brief);
    rename_over(&rig.path("server.crt"), &serving.certificate);
    rename_over(&rig.path("server.key"), &serving.key);
    eventually("an earlier end", async || end().await < first - 3600.0).await;
}

/// The certificates that a backend was shown, in the order of its connections.
type Seen = Arc<Mutex<Vec<CertificateDer<'static>>>>;

/// A backend that notes what it was shown.
fn noting(name: &str, protocols: &[&str]) -> (Backend, Seen) {
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let backend = Backend::start_with(backend_tls(name, protocols), move |stream, _, state| {
        let mut seen = noted.lock().unwrap();
        seen.push(stream.get_ref().1.peer_certificates().unwrap()[0].clone());
        serve(stream, seen.len() - 1, state)
    });
    (backend, seen)
}

#[tokio::test]
async fn backends_are_shown_a_replaced_pair_with_every_new_request_and_watches_go_on() {
    for (name, protocols) in [("one", HTTP1), ("two", HTTP2)] {
        let (mut backend, seen) = noting(name, protocols);
        let setup = Setup::new().service(name, &[backend.address()]);
        let mut volume = Volume::new(setup.path("volume"), &PKI.aggregator);
        let (certificate, key) = (volume.file("tls.crt"), volume.file("tls.key"));
        let setup = setup
            .flag(&format!("--proxy-client-cert-file={certificate}"))
            .flag(&format!("--proxy-client-key-file={key}"));
        let rig = setup.start().await;
        let mut open = Open::new(&rig, &mut backend, name).await;
        let mut alice = rig.alice(Protocol::Http2).await;
        let mut shown = async || {
            let told = alice.get(&path(name, "things")).await.json();
            let at = usize::try_from(told["connection"].as_u64().unwrap()).unwrap();
            seen.lock().unwrap()[at].clone()
        };
        assert_eq!(shown().await, leaf(&PKI.aggregator));
        let other = PKI.aggregators.sign(&Leaf::client("other-aggregator", &[]));
        volume.swap(&other);
        eventually("the other pair", async || shown().await == leaf(&other)).await;
        for _ in 0..10 {
            assert_eq!(shown().await, leaf(&other), "{name}");
        }
        open.check().await;
        let end = "portico_certificate_expiration_timestamp_seconds";
        rig.await_some(end, &["certificate=\"proxy-client\""]).await;
    }
}

/// The code of an answer to who shows this certificate on a new connection.
async fn answered(rig: &Rig, pair: &PemPair) -> u16 {
    rig.connect(Protocol::Http2, Some(pair)).await.get(&path("two", "things")).await.status
}

/// Waits until what was written before is known to have been looked at: another file is. Twice, since
/// one look goes over all files.
pub(crate) async fn looked_at(rig: &Rig) {
    for _ in 0..2 {
        let serving = PKI.authority.sign(&Leaf::server(&["localhost"]));
        rename_over(&rig.path("server.crt"), &serving.certificate);
        rename_over(&rig.path("server.key"), &serving.key);
        let config = client(ours(), &[&TLS13], None);
        eventually("another serving pair", async || {
            shown(rig.address, &config, "localhost").await == leaf(&serving)
        })
        .await;
    }
}

#[tokio::test]
async fn an_authority_of_clients_that_is_removed_counts_on_open_connections_and_a_new_one_does() {
    let mut backend = Backend::start("two", HTTP2);
    let rig = Setup::new().service("two", &[backend.address()]).start().await;
    let mut open = Open::new(&rig, &mut backend, "two").await;
    let stranger = PKI.stranger.sign(&Leaf::client("stranger", &[]));
    assert_eq!(answered(&rig, &stranger).await, 401);
    let (old, new) = (PKI.authority.certificate(), PKI.stranger.certificate());
    rename_over(&rig.path("ca.crt"), &(old + &new));
    eventually("the added authority", async || answered(&rig, &stranger).await == 200).await;
    open.check().await;
    rename_over(&rig.path("ca.crt"), &new);
    // Who is refused is told to go, and what is open goes on.
    eventually("the removed authority", async || open.ask("things").await == 401).await;
    open.check_watch().await;
    fs::write(rig.path("ca.crt"), "-----BEGIN CERTIFICATE-----\nhalf").unwrap();
    looked_at(&rig).await;
    assert_eq!(answered(&rig, &stranger).await, 200);
    assert_eq!(answered(&rig, &PKI.alice).await, 401);
    fs::remove_file(rig.path("ca.crt")).unwrap();
    looked_at(&rig).await;
    open.check_watch().await;
    assert_eq!(answered(&rig, &stranger).await, 200);
}

#[tokio::test]
async fn a_front_proxy_is_believed_for_as_long_as_its_authority_is_there() {
    let mut backend = Backend::start("two", HTTP2);
    let setup = Setup::new().service("two", &[backend.address()]);
    let mut volume = Volume::new(setup.path("volume"), &bundle(&PKI.front_proxies));
    let flag = format!("--requestheader-client-ca-file={}", volume.file("tls.crt"));
    let rig = setup.flag(&flag).start().await;
    let mut open = Open::new(&rig, &mut backend, "two").await;
    let ask = Ask::get(path("two", "things")).header("x-remote-user", "carol");
    let mut proxy = rig.connect(Protocol::Http2, Some(&PKI.front_proxy)).await;
    let name = |answer: &Answer| told(&answer.json(), "headers", "x-remote-user").join(",");
    assert_eq!(name(&proxy.send(&ask).await), "carol");
    volume.swap(&bundle(&PKI.stranger));
    eventually("the removed authority", async || proxy.send(&ask).await.status == 401).await;
    let other = PKI.stranger.sign(&Leaf::client("front-proxy", &[]));
    let mut other = rig.connect(Protocol::Http2, Some(&other)).await;
    assert_eq!(name(&other.send(&ask).await), "carol");
    open.check().await;
}

#[tokio::test]
async fn tokens_are_those_that_the_file_has_now() {
    let backend = Backend::start("two", HTTP2);
    let rig = Setup::new().service("two", &[backend.address()]).start().await;
    let mut bob = rig.connect(Protocol::Http2, None).await;
    let ask = |token: &str| Ask::get(path("two", "things")).bearer(token);
    assert_eq!(bob.send(&ask(BOBS_TOKEN)).await.status, 200);
    let carols = "carols-token";
    let carol = async || {
        let mut carol = rig.connect(Protocol::Http2, None).await;
        carol.send(&ask(carols)).await.status
    };
    rename_over(&rig.path("tokens.csv"), &format!("{carols},carol,uid-8\n"));
    eventually("a removed token", async || bob.send(&ask(BOBS_TOKEN)).await.status == 401).await;
    assert_eq!(carol().await, 200);
    fs::write(rig.path("tokens.csv"), "half,a").unwrap();
    looked_at(&rig).await;
    assert_eq!(carol().await, 200);
}
