//! Gathers the facts: everything that waits for the network.

mod exchange;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use rustls::pki_types::{ServerName, UnixTime};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::api::Api;
use super::certificate::{Certificate, distinguished_name};
use super::facts::{
    AGGREGATOR_USER, Answer, AsProxy, Asked, Disbelief, EndpointFacts, Facts, Forgery, Handshake,
    Identity, MARKER_GROUP, MARKER_USER, MASTERS, PROBE_PATH, Proxied, Reply, Sought, TlsFacts,
    TrustFacts,
};
use super::source::Source;
use crate::model::accept::DISCOVERY_JSON;
use crate::model::api_service::service_of;
use crate::model::discovery::parse;
use crate::model::endpoints::{EndpointRouting, Targets, resolve};
use crate::model::fault::{Fault, Hop, ServicePort};
use crate::tls::backend::Trust;
use crate::tls::examine::{self, Shown};
use crate::tls::{self, KeyPair};
use crate::upstream::{connect_hop, hop_of_tls, tls_hop};

/// Endpoints of one service that are tried.
const ENDPOINTS_MAX: usize = 16;
/// What a server may agree on.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What all probes work with.
pub(super) struct Prober<'a> {
    /// Where objects are from.
    pub(super) source: Source<'a>,
    /// Through whom reads go, too.
    pub(super) api: Option<&'a Api>,
    /// The proxy-client pair.
    pub(super) pair: Option<KeyPair>,
    /// What is to be said of it.
    pub(super) identity: Option<Identity>,
    /// Whom extension servers believe.
    pub(super) trust: Sought<TrustFacts>,
    /// How services are reached.
    pub(super) routing: EndpointRouting,
    /// How long each hop may take.
    pub(super) timeout: Duration,
}

/// A version that is asked for.
struct Wanted<'a> {
    path: String,
    group: &'a str,
    version: &'a str,
}

impl<'a> Wanted<'a> {
    fn of(facts: &'a Facts) -> Self {
        Self { path: facts.path(), group: facts.group(), version: facts.version() }
    }
}

impl Prober<'_> {
    /// Everything about one APIService.
    pub(super) async fn facts(
        &self,
        name: &str,
        object: Option<APIService>,
        similar: Vec<String>,
    ) -> Facts {
        let spec = object.as_ref().and_then(|object| object.spec.clone()).unwrap_or_default();
        let mut facts = Facts {
            name: name.to_owned(),
            source: self.source.name().to_owned(),
            similar,
            service_ref: service_of(&spec),
            service: Sought::Missing,
            slices: Sought::Missing,
            routing: self.routing,
            resolved: None,
            endpoints: Vec::new(),
            left_out: 0,
            identity: self.identity.clone(),
            trust: self.trust.clone(),
            proxied: None,
            now: tls::expiry::now(),
            object,
        };
        if facts.object.is_none() {
            return facts;
        }
        // First, since what it lists is asked of the endpoints, too.
        let proxied = self.proxied(&Wanted::of(&facts)).await;
        let list = proxied.as_ref().and_then(|proxied| proxied.list.as_ref());
        let list = list.map(|(path, _)| path.clone());
        if let Some(service_ref) = &facts.service_ref {
            facts.service = self.source.service(service_ref).await;
            facts.slices = self.source.slices(service_ref).await;
            let (addresses, resolved) = self.addresses(&facts, service_ref).await;
            let tried = addresses.iter().take(ENDPOINTS_MAX);
            let probes =
                tried.map(|&address| self.endpoint(&facts, service_ref, address, list.clone()));
            let endpoints = join_all(probes).await;
            facts.left_out = addresses.len().saturating_sub(endpoints.len());
            (facts.endpoints, facts.resolved) = (endpoints, resolved);
        }
        facts.proxied = proxied;
        facts
    }

    /// Where connections go, and what became of an external name.
    async fn addresses(
        &self,
        facts: &Facts,
        service_ref: &ServicePort,
    ) -> (Vec<SocketAddr>, Option<Result<Vec<SocketAddr>, String>>) {
        let none = Vec::new();
        let slices: Vec<_> = facts.slices.found().unwrap_or(&none).iter().collect();
        match resolve(service_ref, facts.service.found(), &slices, self.routing) {
            Ok(Targets::Addresses(addresses)) => (addresses, None),
            Ok(Targets::Name { host, port }) => {
                let resolved = match timeout(self.timeout, lookup_host((host.as_str(), port))).await
                {
                    Ok(Ok(addresses)) => Ok(addresses.collect::<Vec<_>>()),
                    Ok(Err(error)) => Err(format!("{host}: {error}")),
                    Err(_) => Err(format!("{host}: the DNS does not answer")),
                };
                (resolved.clone().unwrap_or_default(), Some(resolved))
            }
            // Services resolve to no list of hosts, which is what API servers are.
            Ok(Targets::Hosts(_)) | Err(_) => (Vec::new(), None),
        }
    }

    async fn proxied(&self, wanted: &Wanted<'_>) -> Option<Proxied> {
        let api = self.api?;
        let discovery = api.get(&wanted.path).await;
        let path = discovery.as_ref().ok().and_then(|reply| list_path(wanted, reply));
        let list = match path {
            Some(path) => {
                let answer = api.get(&path).await;
                Some((path, answer))
            }
            None => None,
        };
        Some(Proxied { server: api.url.clone(), discovery, list })
    }

    async fn endpoint(
        &self,
        facts: &Facts,
        service: &ServicePort,
        address: SocketAddr,
        list: Option<String>,
    ) -> EndpointFacts {
        let begun = Instant::now();
        let connected = connect(address, self.timeout).await;
        let mut found = EndpointFacts { address, tcp: Ok(begun.elapsed()), tls: None, asked: None };
        let stream = match connected {
            Ok(stream) => stream,
            Err(fault) => return EndpointFacts { tcp: Err(fault), ..found },
        };
        let begun = Instant::now();
        let (made, shown) = self.handshake(stream, service, self.pair.as_ref()).await;
        let trust = match (facts.skips_verification(), facts.ca_bundle()) {
            (true, _) => Trust::Anybody,
            (false, []) => Trust::System,
            (false, pem) => Trust::CaBundle(pem),
        };
        let handshake = made.as_ref().map(|stream| agreed(stream, begun.elapsed()));
        let usable =
            handshake.as_ref().err().is_none_or(|f| f.hop == Hop::ClientCertificateRefused);
        found.tls = Some(TlsFacts {
            handshake: handshake.map_err(Clone::clone),
            chain: Certificate::read_all(shown.chain()),
            verdict: verdict(trust, &shown, service),
            wanted: shown
                .wanted()
                .map(|all| all.iter().map(|der| distinguished_name(der)).collect()),
        });
        drop(made);
        if usable {
            let call = Call { prober: self, service, address };
            found.asked = Some(call.ask_all(&Wanted::of(facts), list).await);
        }
        found
    }

    /// A handshake with whoever answers.
    async fn handshake(
        &self,
        stream: TcpStream,
        service: &ServicePort,
        pair: Option<&KeyPair>,
    ) -> (Result<TlsStream<TcpStream>, Fault>, Arc<Shown>) {
        let broken = |text: String| (Err(Fault::new(Hop::HandshakeFailed, text)), Arc::default());
        let (config, shown) = match examine::client_config(pair, &PROTOCOLS) {
            Ok(made) => made,
            Err(error) => return broken(error.to_string()),
        };
        let name = match ServerName::try_from(service.server_name()) {
            Ok(name) => name,
            Err(error) => return broken(format!("{}: {error}", service.server_name())),
        };
        let handshake = TlsConnector::from(config).connect(name, stream);
        let made = match timeout(self.timeout, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => {
                let hop = tls_hop(&error).unwrap_or(Hop::HandshakeFailed);
                Err(Fault::new(hop, error.to_string()))
            }
            Err(_) => {
                let text = format!("nothing came for {:?} (--timeout)", self.timeout);
                Err(Fault::new(Hop::HandshakeTimeout, text))
            }
        };
        (made, shown)
    }
}

async fn connect(address: SocketAddr, limit: Duration) -> Result<TcpStream, Fault> {
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(Fault::new(connect_hop(&error), error.to_string())),
        Err(_) => {
            let text = format!("no answer within {limit:?} (--timeout)");
            Err(Fault::new(Hop::ConnectTimeout, text))
        }
    }
}

fn agreed(stream: &TlsStream<TcpStream>, took: Duration) -> Handshake {
    let (_, connection) = stream.get_ref();
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
        _ => "TLS 1.2",
    };
    let is_http2 = connection.alpn_protocol() == Some(b"h2");
    Handshake { version, protocol: if is_http2 { "HTTP/2" } else { "HTTP/1.1" }, took }
}

fn verdict(
    trust: Trust<'_>,
    shown: &Shown,
    service: &ServicePort,
) -> Option<Result<(), Disbelief>> {
    if shown.chain().is_empty() {
        return None;
    }
    let name = ServerName::try_from(service.server_name()).ok()?;
    let judged = examine::judge(trust, shown.chain(), &name, UnixTime::now());
    Some(judged.map_err(|error| {
        let hop = match &error {
            examine::Disbelief::Certificate(error) => hop_of_tls(error),
            examine::Disbelief::Roots(tls::TlsError::SystemRoots(_)) => Hop::NoSystemRoots,
            examine::Disbelief::Roots(_) => Hop::InvalidCaBundle,
        };
        Disbelief { hop, detail: error.to_string() }
    }))
}

/// A list that the version's document says there is: one object of the first resource.
fn list_path(wanted: &Wanted<'_>, reply: &Reply) -> Option<String> {
    let resources = parse::legacy(&reply.body, wanted.group, wanted.version).ok()?;
    let listable = resources.iter().find(|resource| {
        let verbs = resource.verbs.iter().flatten();
        !resource.name.contains('/') && verbs.into_iter().any(|verb| verb == "list")
    })?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let name = &listable.name;
    name.bytes().all(is_plain).then(|| format!("{}/{name}?limit=1", wanted.path))
}

/// Questions to one endpoint, each on a connection of its own: what one answer does to a connection
/// must not touch the next.
struct Call<'a> {
    prober: &'a Prober<'a>,
    service: &'a ServicePort,
    address: SocketAddr,
}

/// Who asks.
#[derive(Clone, Copy)]
struct Claim<'a> {
    user: &'a str,
    group: &'a str,
}

const MARKER: Claim<'_> = Claim { user: MARKER_USER, group: MARKER_GROUP };
const MASTER: Claim<'_> = Claim { user: MARKER_USER, group: MASTERS };
const AGGREGATOR: Claim<'_> = Claim { user: AGGREGATOR_USER, group: MASTERS };
const JSON: &str = "application/json";

impl Call<'_> {
    async fn ask_all(&self, wanted: &Wanted<'_>, mut list: Option<String>) -> Asked {
        let mut asked = Asked::default();
        if let Some(pair) = &self.prober.pair {
            let by_proxy = |path, claim| self.get(path, JSON, Some(claim), Some(pair));
            let legacy = by_proxy(&wanted.path, AGGREGATOR).await;
            let found = legacy.as_ref().ok().and_then(|reply| list_path(wanted, reply));
            list = found.or(list);
            let answer = match &list {
                Some(path) => Some((path.clone(), by_proxy(path, MASTER).await)),
                None => None,
            };
            asked.as_proxy = Some(AsProxy {
                marker: by_proxy(PROBE_PATH, MARKER).await,
                master: by_proxy(PROBE_PATH, MASTER).await,
                legacy,
                aggregated: self.get("/apis", DISCOVERY_JSON, Some(AGGREGATOR), Some(pair)).await,
                list: answer,
            });
        }
        asked.forgery = Some(self.forgery(wanted, list.as_deref()).await);
        asked
    }

    /// Looks for a path where nobody is let in, and goes there as somebody.
    async fn forgery(&self, wanted: &Wanted<'_>, list: Option<&str>) -> Forgery {
        let list = list.map(|path| (path, true));
        let paths = [Some((PROBE_PATH, false)), Some((wanted.path.as_str(), false)), list];
        let mut tried = None;
        for (path, is_list) in paths.into_iter().flatten() {
            let anonymous = self.get(path, JSON, None, None).await;
            let goes_on = anonymous.as_ref().is_ok_and(|reply| !reply.is_refusal());
            let forged = match &anonymous {
                Ok(reply) if reply.is_refusal() => {
                    Some(self.get(path, JSON, Some(MASTER), None).await)
                }
                _ => None,
            };
            tried = Some(Forgery { path: path.to_owned(), is_list, anonymous, forged });
            if !goes_on {
                break;
            }
        }
        // There is always the first path.
        tried.unwrap_or_else(|| Forgery {
            path: PROBE_PATH.to_owned(),
            is_list: false,
            anonymous: Ok(Reply::default()),
            forged: None,
        })
    }

    async fn get(
        &self,
        path: &str,
        accept: &'static str,
        claim: Option<Claim<'_>>,
        pair: Option<&KeyPair>,
    ) -> Answer {
        let begun = Instant::now();
        let stream = connect(self.address, self.prober.timeout).await?;
        let (made, _) = self.prober.handshake(stream, self.service, pair).await;
        let authority = format!("{}:{}", self.service.server_name(), self.service.port);
        let asking =
            exchange::get(made?, &authority, path, accept, claim.map(|it| [it.user, it.group]));
        let limit = self.prober.timeout;
        let text = || format!("no answer within {limit:?} (--timeout)");
        let answer = timeout(limit, asking).await;
        let answer = answer.map_err(|_elapsed| Fault::new(Hop::Deadline, text()))?;
        answer.map(|reply| Reply { took: begun.elapsed(), ..reply })
    }
}
