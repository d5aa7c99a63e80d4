//! THE PIPELINE: a request's whole way is one function, `Connection::try_handle`.
//!
//! Any step may end in a [`Rejection`]; each request leaves one record behind (`outcome`).

mod access_log;
mod admission;
mod core;
mod forward;
mod headers;
mod outcome;
mod spans;
mod syntax;
mod upgrade;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use rustls_pki_types::CertificateDer;

pub use self::access_log::{ACCESS_LOG_FIELDS, AccessLog};
use self::admission::Admission;
pub use self::core::{Core, CoreConfig, Inquiry, RemoteRoute, UpstreamIdentity};
use self::forward::Destination;
use self::headers::{ClientAddress, audit_id};
use self::outcome::Outcome;
pub use self::syntax::check_syntax;
use crate::admin::Pages;
use crate::aggregate::{self, Documents};
use crate::auth::{Asker, Auth, Authenticated, Authorized, ConnectionAuth, Permit};
use crate::body::{Body, TrailerFilter, response};
use crate::model::accept::Offer;
use crate::model::negotiated::Negotiated;
use crate::model::query::Query;
use crate::model::rejection::Rejection;
use crate::model::request_info::{RequestInfo, decode_path};
use crate::model::routing_table::{OWN_GROUP, OWN_VERSION, Page, Remote, Route, RoutingTable};
use crate::runtime::lifecycle::Drain;
use crate::runtime::snapshot::View;
use crate::runtime::spans::Spans;
use crate::runtime::telemetry::{Metrics, RouteMetrics};
use crate::store::rest::ApiServices;
use crate::upstream::{Pool, Upstream};

/// Go's type of plain text.
const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// What requests may take, and what is written of them.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a request may take that is not long-running (`--request-timeout`).
    pub request_timeout: Duration,
    /// `/apis/<group>/<version>` (`aggregatedDiscoveryTimeout` upstream).
    pub discovery_timeout: Duration,
    /// Watches on objects served here last this long at least, and less than twice as long, when
    /// they do not say how long (`--min-request-timeout`).
    pub min_request_timeout: Duration,
    /// Requests that only read and are served at a time, 0 for any number
    /// (`--max-requests-inflight`).
    pub requests_max: usize,
    /// Requests that change something and are served at a time, 0 for any number
    /// (`--max-mutating-requests-inflight`).
    pub mutating_requests_max: usize,
    /// How likely an HTTP/2 client is told to connect anew after a request, from 0 to 0.02
    /// (`--goaway-chance`).
    pub goaway_chance: f64,
    /// The access log, when there is one (`--access-log`).
    pub access_log: Option<AccessLogConfig>,
}

/// Where the access log goes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// Appended to; `None` for standard output.
    pub file: Option<PathBuf>,
    /// The form of its lines.
    pub format: AccessLogFormat,
}

/// The form of a log's lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// `key=value` pairs.
    Text,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(60),
            discovery_timeout: Duration::from_secs(5),
            min_request_timeout: Duration::from_secs(1800),
            requests_max: 400,
            mutating_requests_max: 200,
            goaway_chance: 0.0,
            access_log: None,
        }
    }
}

/// Everything a request may need, shared by all threads.
#[derive(Debug)]
pub struct Proxy {
    config: Config,
    auth: Auth,
    table: View<RoutingTable<Upstream>>,
    core: Option<Core>,
    documents: Documents,
    objects: ApiServices,
    pages: Pages,
    counters: Counters,
    admission: Admission,
    drain: Drain,
    trailers: TrailerFilterHolder,
    spans: Spans,
}

/// The parts that serve requests.
#[derive(Debug)]
pub struct Services {
    /// Who is calling and whether they may.
    pub auth: Auth,
    /// Which path belongs to whom.
    pub table: View<RoutingTable<Upstream>>,
    /// kube-apiserver, where portico is in front of one.
    pub core: Option<Core>,
    /// The discovery documents.
    pub documents: Documents,
    /// The objects that are served here.
    pub objects: ApiServices,
    /// Portico's own pages.
    pub pages: Pages,
    /// Where spans of sampled requests go.
    pub spans: Spans,
}

/// Metric handles that are not a route's.
#[derive(Debug)]
struct Counters {
    documents: Arc<RouteMetrics>,
    objects: Arc<RouteMetrics>,
    pages: Arc<RouteMetrics>,
}

impl Counters {
    fn of<'a>(&'a self, route: &'a Route<Upstream>, asked: Asked<'_>) -> &'a Arc<RouteMetrics> {
        match route {
            Route::Documents(_) => &self.documents,
            Route::Objects => &self.objects,
            // Counted with the other documents: series of its own, for each of thousands of
            // versions that a client walks, would take more memory than all else about it.
            Route::Remote(remote) if is_told_here(remote, asked) => &self.documents,
            Route::Remote(remote) => &remote.backend.metrics,
            Route::Own(_) | Route::Local | Route::Core | Route::NotFound | Route::NotReady => {
                &self.pages
            }
        }
    }
}

/// What passes of a request's trailers.
struct TrailerFilterHolder(TrailerFilter);

impl std::fmt::Debug for TrailerFilterHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TrailerFilter")
    }
}

/// A request's head, as it came and as it was read.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    info: &'a RequestInfo<'a>,
    parts: &'a Parts,
    /// True when it asks for another protocol.
    upgrade: bool,
    /// When the answer must be complete; none for long-running requests.
    deadline: Option<Instant>,
}

/// One client connection as its requests see it.
#[derive(Debug)]
pub struct Connection {
    proxy: Arc<Proxy>,
    pool: Arc<Pool>,
    access_log: Option<Arc<AccessLog>>,
    auth: ConnectionAuth,
    client: ClientAddress,
}

impl Proxy {
    /// Puts the parts together.
    pub fn new(
        config: Config,
        services: Services,
        drain: Drain,
        metrics: &Arc<Metrics>,
    ) -> Arc<Self> {
        let Services { auth, table, core, documents, objects, pages, spans } = services;
        let own = |group, version, resource| {
            Arc::new(RouteMetrics::of_own(metrics, group, version, resource))
        };
        let counters = Counters {
            documents: own("", "", ""),
            objects: own(OWN_GROUP, OWN_VERSION, "apiservices"),
            pages: own("", "", ""),
        };
        let trust = auth.trust.clone();
        let filter: TrailerFilter = Arc::new(move |trailers| {
            headers::trailers_for_backend(&trailers, &trust.load().identity_headers)
        });
        Arc::new(Self {
            admission: Admission::new(&config, metrics),
            config,
            auth,
            table,
            core,
            documents,
            objects,
            pages,
            counters,
            drain,
            trailers: TrailerFilterHolder(filter),
            spans,
        })
    }

    /// A client connection on a data-plane thread; `chain` is what the client showed, unverified.
    pub fn connection(
        self: &Arc<Self>,
        pool: &Arc<Pool>,
        access_log: Option<&Arc<AccessLog>>,
        peer: SocketAddr,
        chain: Vec<CertificateDer<'static>>,
    ) -> Connection {
        Connection {
            proxy: Arc::clone(self),
            pool: Arc::clone(pool),
            access_log: access_log.map(Arc::clone),
            auth: ConnectionAuth::new(chain),
            client: ClientAddress::new(peer.ip()),
        }
    }
}

impl Proxy {
    /// True for the few requests after which an HTTP/2 client is told to connect anew
    /// (`filters/goaway.go`).
    fn sends_away(&self) -> bool {
        self.config.goaway_chance > 0.0 && fastrand::f64() < self.config.goaway_chance
    }
}

impl Connection {
    /// Answers one request; whatever happens, there is an answer and a record.
    pub async fn handle(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        let (parts, mut body) = request.into_parts();
        let audit_id = audit_id(&parts);
        let decoded = decode_path(parts.uri.path());
        let info = decoded
            .as_deref()
            .map_err(|error| *error)
            .and_then(|path| RequestInfo::parse(&parts.method, path, parts.uri.query()));
        let info = match info {
            Ok(info) => info,
            Err(error) => {
                let outcome = Outcome::new(&self, ("other", false), &parts, audit_id);
                let rejection = Rejection::BadRequest(error.to_string());
                return Self::rejected(&rejection, &parts, Box::new(outcome));
            }
        };
        let upgrade = upgrade::is_asked(&parts);
        let kind = (info.metrics_verb(), info.is_long_running());
        let mut outcome = Box::new(Outcome::new(&self, kind, &parts, audit_id));
        let most = self.proxy.config.request_timeout;
        let deadline = match info.timeout(parts.uri.query(), most) {
            Ok(timeout) => timeout.map(|timeout| outcome.begun() + timeout),
            Err(error) => {
                let rejection = Rejection::BadRequest(error.to_string());
                return Self::rejected(&rejection, &parts, outcome);
            }
        };
        let asked = Asked { info: &info, parts: &parts, upgrade, deadline };
        match self.try_handle(asked, &mut body, &mut outcome).await {
            Ok(mut answered) => {
                outcome.answered(answered.status());
                if let (Some(deadline), false) = (deadline, upgrade) {
                    // A client that does not read must not hold what is made here for ever.
                    answered.body_mut().limit(deadline.into());
                }
                self.ends_with_the_program(kind, &mut answered);
                if outcome.is_anonymous() || self.proxy.sends_away() {
                    close_http2(&parts, &mut answered);
                }
                with_observer(answered, outcome)
            }
            Err(rejection) => Self::rejected(&rejection, &parts, outcome),
        }
    }

    /// A watch's clean end when the program ends, in its turn. Only of events in lines it can be told
    /// here where one is over: others are cut.
    fn ends_with_the_program(&self, (verb, _): (&str, bool), answered: &mut Response<Body>) {
        let is_json = |value: &HeaderValue| value.as_bytes().starts_with(b"application/json");
        if verb == "WATCH"
            && answered.status() == StatusCode::OK
            && answered.headers().get(CONTENT_TYPE).is_some_and(is_json)
            && let Some(turn) = self.proxy.drain.turn()
        {
            answered.body_mut().end_lines(turn);
        }
    }

    /// A request's whole way. The body is lent: moved in, it would be in this future twice.
    async fn try_handle(
        &self,
        asked: Asked<'_>,
        body: &mut Body,
        outcome: &mut Outcome,
    ) -> Result<Response<Body>, Rejection> {
        let Asked { info, parts, upgrade, .. } = asked;
        let Auth { authenticator, authorizer, .. } = &self.proxy.auth;
        check_syntax(parts)?;
        let table = self.proxy.table.load();
        let route = table.lookup(info);
        let core = self.proxy.core.as_ref().filter(|core| core.takes(&route));
        let is_open = self.proxy.auth.is_open(info, core.is_some());
        let mut caller = match authenticator.authenticate(&self.auth, &parts.headers, is_open)? {
            Authenticated::Known(caller) => caller,
            Authenticated::Ask(unknown) => authenticator.ask(*unknown, self.asker(asked)).await?,
        };
        outcome.set_caller(&caller);
        outcome.sample(info, parts);
        if let Some(core) = core {
            // In a box, so that other requests' futures do not grow by it.
            return Box::pin(self.ask_core(core, caller, asked, take(body), outcome)).await;
        }
        outcome.set_route(self.proxy.counters.of(&route, asked));
        if let Some(other) = authorizer.impersonate(&caller, info, parts, self.asker(asked))? {
            caller = other.await?;
            outcome.set_caller(&caller);
        }
        if !matches!(&*route, Route::Own(page) if page.is_health()) {
            outcome.enter(info, &caller)?;
        }
        let permit = match authorizer.authorize(caller, info, parts.uri.query())? {
            Authorized::Permitted(permit) => permit,
            Authorized::Ask(caller) => {
                authorizer.ask(caller, info, parts, self.asker(asked)).await?
            }
        };
        if upgrade {
            upgrade::check(asked, &route, body)?;
        }
        match &*route {
            Route::Documents(document) => {
                let query = query(parts);
                let answer =
                    self.proxy.documents.serve(&table, document, document_asked(asked, &query));
                Ok(with_own_headers(answer.await?, outcome))
            }
            Route::Objects => {
                let answer = self.proxy.objects.serve(info, &parts.headers, &query(parts))?;
                Ok(with_own_headers(answer, outcome))
            }
            Route::Remote(remote) if is_told_here(remote, asked) => {
                let query = query(parts);
                let answer = self.proxy.documents.resources(remote, document_asked(asked, &query));
                // That it has none is to be seen under its own name.
                let failed = |_: &Rejection| outcome.set_route(&remote.backend.metrics);
                Ok(with_own_headers(answer.await.inspect_err(failed)?, outcome))
            }
            Route::Remote(remote) => {
                let trust = self.proxy.auth.trust.load();
                let to = Destination::remote(&permit, remote, &trust)?;
                drop(trust);
                if upgrade {
                    return Box::pin(self.switch(to, asked, outcome)).await;
                }
                self.forward(to, asked, take(body), outcome).await
            }
            Route::Own(page) => {
                // In a box, so that other requests' futures do not grow by the pages'.
                let page = Box::pin(self.page(*page, &table, asked, &permit));
                Ok(with_own_headers(page.await?, outcome))
            }
            Route::Local => Err(Rejection::LocalOnly),
            Route::NotFound => Err(Rejection::PathNotFound),
            Route::Core | Route::NotReady => Err(Rejection::NotReady),
        }
    }

    fn asker<'a>(&'a self, asked: Asked<'_>) -> Asker<'a> {
        Asker { pool: &self.pool, deadline: asked.deadline }
    }

    async fn page(
        &self,
        page: Page,
        table: &Arc<RoutingTable<Upstream>>,
        asked: Asked<'_>,
        permit: &Permit,
    ) -> Result<Response<Body>, Rejection> {
        let Asked { info, parts, .. } = asked;
        let (pages, query) = (&self.proxy.pages, query(parts));
        match page {
            Page::Health(probe) => pages.health(probe, info.path, &query),
            Page::Metrics => pages.metrics().await,
            Page::Version => {
                let negotiated = Negotiated::new(&parts.headers, &query, Offer::Plain)?;
                pages.version(&parts.method, negotiated)
            }
            Page::OpenApiV2 => Ok(pages.openapi_v2()),
            Page::Index => {
                let table = Arc::clone(table);
                pages.index(move || aggregate::paths(&table)).await
            }
            Page::Debug => {
                permit.masters_only(info)?;
                pages.debug(&parts.method, table, &query).await
            }
        }
    }

    /// The answer to a request that ended here.
    fn rejected(rejection: &Rejection, parts: &Parts, mut outcome: Box<Outcome>) -> Response<Body> {
        outcome.rejected(rejection);
        outcome.log(rejection, parts);
        let plain = rejection.plain_text(&parts.uri);
        let media = if plain.is_some() { PLAIN_TEXT } else { "application/json" };
        let text = plain.unwrap_or_else(|| rejection.status().to_string());
        let mut answer = response(rejection.code(), media, Bytes::from(text + "\n"));
        // As upstream (`responsewriters/errors.go`): these repeat what the client sent.
        if media == PLAIN_TEXT || matches!(rejection, Rejection::Forbidden(_)) {
            answer
                .headers_mut()
                .insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        if let Some(seconds) = rejection.retry_after_seconds() {
            answer.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        if matches!(rejection, Rejection::Unauthorized(_)) || outcome.is_anonymous() {
            close_http2(parts, &mut answer);
        }
        if upgrade::is_asked(parts) {
            upgrade::close(&mut answer);
        }
        with_observer(with_own_headers(answer, &outcome), outcome)
    }
}

/// True for what is asked of a version as such, which is answered without its backend.
fn is_told_here(remote: &Remote<Upstream>, asked: Asked<'_>) -> bool {
    let Asked { info, parts, .. } = asked;
    info.names_version()
        // Every version of the core belongs to its one APIService.
        && (info.prefix != "api" || info.version == "v1")
        && matches!(parts.method, Method::GET | Method::HEAD)
        && !remote.discovery.legacy_from_backend
}

fn document_asked<'a>(asked: Asked<'a>, query: &'a Query) -> aggregate::Asked<'a> {
    let Asked { info, parts, .. } = asked;
    aggregate::Asked { method: &parts.method, info, headers: &parts.headers, query }
}

fn take(body: &mut Body) -> Body {
    std::mem::replace(body, Body::empty())
}

fn query(parts: &Parts) -> Query {
    Query::parse(parts.uri.query())
}

fn with_own_headers(mut answer: Response<Body>, outcome: &Outcome) -> Response<Body> {
    headers::for_own(answer.headers_mut(), &outcome.audit_id);
    answer
}

fn with_observer(mut answer: Response<Body>, outcome: Box<Outcome>) -> Response<Body> {
    answer.body_mut().set_observer(outcome);
    answer
}

/// An anonymous or refused caller's HTTP/2 connection is ended
/// (`UnauthenticatedHTTP2DOSMitigation`); on HTTP/2 the frontend turns this into a GOAWAY.
fn close_http2(parts: &Parts, answer: &mut Response<Body>) {
    if parts.version == Version::HTTP_2 {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}
