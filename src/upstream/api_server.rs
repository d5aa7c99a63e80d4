//! An API server beside which portico runs: where it is, and who portico is there.
//!
//! Requests go over the threads' own pools like those to any backend. What is sent as portico itself
//! carries the credentials of the kubeconfig as it is now: its certificate, or its token; a task keeps
//! fresh what a plugin gives.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::{Body as KubeBody, ConfigExt as _};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tower::{BoxError, Layer as _, ServiceExt as _, service_fn};

use super::exchange::{Outgoing, Progress};
use super::kubeconfig::{Access, Credentials, KubeconfigError};
use super::pool::Pool;
use super::server_upstream::{Server, ServerUpstream, Shows};
use super::slot::Class;
use super::{Config, Upstream};
use crate::body::Body;
use crate::model::fault::{Fault, Hop, ServicePort};
use crate::runtime::snapshot::{Publisher, View};
use crate::runtime::tasks::{self, AbortOnDrop};
use crate::runtime::telemetry::{Metrics, RouteMetrics};
use crate::tls::KeyPair;

/// How often is looked whether a plugin's token is to be had anew: it is asked again a minute before
/// its token ends.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes of an answer that is read whole.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Times that a request is sent when its connection ends before the answer: neither reviews nor reads
/// change anything.
const TRIES_MAX: usize = 2;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("portico/", env!("CARGO_PKG_VERSION")));

/// An API server, or a webhook that is named like one.
#[derive(Debug)]
pub struct ApiServer {
    server: Arc<Server>,
    own: ServerUpstream,
    plugin: Option<Plugin>,
}

/// What a plugin gives as the Authorization header.
#[derive(Debug)]
struct Plugin {
    authorization: View<Option<HeaderValue>>,
    _refresh: AbortOnDrop,
}

impl ApiServer {
    /// The server that `access` names; `name` is what it is called in messages and metrics. Must be
    /// called on the runtime that is to keep a plugin's token fresh.
    pub fn new(
        access: View<Access>,
        name: &str,
        config: &Config,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, KubeconfigError> {
        let now = access.load();
        let plugin = plugin(&now)?;
        let server = Arc::new(Server {
            service: ServicePort::of_server(name, now.port()),
            config: config.clone(),
            metrics: Arc::clone(metrics),
            route: Arc::new(RouteMetrics::of_server(metrics, name)),
            access,
        });
        Ok(Self { own: ServerUpstream::new(&server, Shows::Own)?, server, plugin })
    }

    /// The server as it knows portico itself, by its certificate; a token is for the caller to add.
    pub fn upstream(&self) -> Arc<Upstream> {
        self.own.now()
    }

    /// The same server over connections that show `identity`, or no certificate at all.
    pub fn upstream_as(
        &self,
        identity: Option<View<KeyPair>>,
    ) -> Result<ServerUpstream, KubeconfigError> {
        ServerUpstream::new(&self.server, Shows::Pair(identity))
    }

    /// How it is reached.
    pub fn access(&self) -> Arc<Access> {
        self.server.access.load()
    }

    /// The same, as it becomes.
    pub fn follow_access(&self) -> View<Access> {
        self.server.access.clone()
    }

    /// What it is called.
    pub fn service(&self) -> &ServicePort {
        &self.server.service
    }

    /// The counters of requests that go there.
    pub fn metrics(&self) -> &Arc<RouteMetrics> {
        &self.server.route
    }

    /// The certificate that is shown on portico's own connections.
    pub fn identity(&self) -> Option<Arc<KeyPair>> {
        self.access().identity().map(|pair| pair.load())
    }

    /// The Authorization header by which portico is known; none with a certificate alone.
    pub fn authorization(&self) -> Option<HeaderValue> {
        match (self.access().credentials(), &self.plugin) {
            (Credentials::Given(header), _) => header.clone(),
            (Credentials::Plugin(_), plugin) => {
                Option::clone(&*plugin.as_ref()?.authorization.load())
            }
        }
    }

    /// Sends a request as portico itself, over `pool`, which must be of the calling thread, and reads
    /// the whole answer; `path` comes behind the path of the server's URL.
    pub async fn post(
        &self,
        pool: &Arc<Pool>,
        path: &str,
        json: Bytes,
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), Fault> {
        let headers = || self.own_headers();
        self.post_over(pool, &self.upstream(), path, json, (&headers, timeout)).await
    }

    /// Reads a document of this media type as portico itself, in the same way.
    pub async fn get(
        &self,
        pool: &Arc<Pool>,
        (path, media_type): (&str, &HeaderValue),
        timeout: Duration,
    ) -> Result<(StatusCode, Bytes), Fault> {
        let headers = || {
            let mut headers = self.own_headers();
            headers.insert(ACCEPT, media_type.clone());
            headers
        };
        let rest = (&headers as &(dyn Fn() -> HeaderMap + Sync), timeout);
        self.send(pool, &self.upstream(), (Method::GET, path), Bytes::new(), rest).await
    }

    fn own_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(4);
        if let Some(authorization) = self.authorization() {
            headers.insert(AUTHORIZATION, authorization);
        }
        headers
    }

    /// The same over other connections, with other headers.
    pub async fn post_over(
        &self,
        pool: &Arc<Pool>,
        upstream: &Upstream,
        path: &str,
        json: Bytes,
        rest: (&(dyn Fn() -> HeaderMap + Sync), Duration),
    ) -> Result<(StatusCode, Bytes), Fault> {
        self.send(pool, upstream, (Method::POST, path), json, rest).await
    }

    async fn send(
        &self,
        pool: &Arc<Pool>,
        upstream: &Upstream,
        (method, path): (Method, &str),
        json: Bytes,
        (headers, timeout): (&(dyn Fn() -> HeaderMap + Sync), Duration),
    ) -> Result<(StatusCode, Bytes), Fault> {
        let path = format!("{}{path}", self.access().prefix());
        let path = if path.is_empty() { "/" } else { &path };
        let no_path = |_| Fault::new(Hop::ProtocolError, format!("{path:?} is no path"));
        let path: PathAndQuery = path.parse().map_err(no_path)?;
        let headers = || {
            let mut headers = headers();
            if !json.is_empty() {
                headers.insert(CONTENT_TYPE, JSON);
                headers.insert(ACCEPT, JSON);
            }
            headers.insert(USER_AGENT, AGENT);
            headers
        };
        let progress = Progress::default();
        let request =
            Outgoing { method: &method, path: &path, headers: &headers, progress: &progress };
        let exchange = async {
            let mut sent = 1;
            loop {
                let answer = exchange(pool, upstream, &request, json.clone()).await;
                match answer {
                    Err(fault) if fault.hop == Hop::BackendReset && sent < TRIES_MAX => sent += 1,
                    answer => return answer,
                }
            }
        };
        let answer = match timeout_at(Instant::now() + timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(progress.deadline()),
        };
        answer.map_err(|fault| fault.at(progress.endpoint()))
    }
}

async fn exchange(
    pool: &Arc<Pool>,
    upstream: &Upstream,
    request: &Outgoing<'_>,
    json: Bytes,
) -> Result<(StatusCode, Bytes), Fault> {
    let answer = pool.call(&upstream.backend, Class::Short, request, json.into()).await?;
    if let Some(encoding) = answer.head.headers.get(CONTENT_ENCODING) {
        let text = format!("content encoding {encoding:?} was not asked for");
        return Err(Fault::new(Hop::ProtocolError, text));
    }
    // Kept until the body is read: the connection is busy so long.
    let _lease = answer.lease;
    Ok((answer.head.status, whole(answer.body).await?))
}

async fn whole(mut body: Body) -> Result<Bytes, Fault> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Fault::new(Hop::BackendReset, error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > ANSWER_BYTES_MAX {
            let text = format!("the answer is longer than {ANSWER_BYTES_MAX} bytes");
            return Err(Fault::new(Hop::ProtocolError, text));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// Gives the Authorization header of now.
type Ask = Box<dyn Fn() -> BoxFuture<'static, Result<Option<HeaderValue>, BoxError>> + Send + Sync>;

/// What a plugin gives, where one is to be asked, and the task that keeps that fresh.
fn plugin(access: &Access) -> Result<Option<Plugin>, KubeconfigError> {
    let Credentials::Plugin(user) = access.credentials() else { return Ok(None) };
    let failed = |error: BoxError| access.error(&format!("credentials: {error}"));
    let mut kube = access.kube();
    kube.auth_info.clone_from(user);
    let ask = ask_kube(&kube).map_err(failed)?;
    // What is fresh is there at once.
    let first = ask().now_or_never().transpose().map_err(failed)?;
    let (publisher, authorization) = Publisher::new(first.flatten().map(sensitive));
    let refresh = refresh(access.place().to_owned(), ask, publisher);
    Ok(Some(Plugin { authorization, _refresh: tasks::spawn_owned("token", refresh) }))
}

/// What `kube` makes of the user.
fn ask_kube(kube: &kube::Config) -> Result<Ask, BoxError> {
    let Some(layer) = kube.auth_layer()? else {
        return Err("plugins that give no token are not supported".into());
    };
    Ok(Box::new(move || {
        // An echo, since the header is set on the way to a server.
        let echo = service_fn(|request: Request<KubeBody>| async move {
            let authorization = request.headers().get(AUTHORIZATION).cloned();
            Ok::<_, BoxError>(Response::new(authorization))
        });
        let asking = layer.layer(echo).oneshot(Request::new(KubeBody::empty()));
        asking.map(|answer| answer.map(Response::into_body)).boxed()
    }))
}

async fn refresh(place: String, ask: Ask, publisher: Publisher<Option<HeaderValue>>) {
    let mut look = interval(REFRESH_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failure: Option<String> = None;
    loop {
        look.tick().await;
        match ask().await {
            Ok(header) => {
                failure = None;
                let header = header.map(sensitive);
                if *publisher.current() != header {
                    publisher.publish(header);
                }
            }
            Err(error) => {
                // Told once, and not at every look.
                let error = error.to_string();
                if failure.as_ref() != Some(&error) {
                    tracing::warn!(from = place, error, "token not had anew, the last one is kept");
                }
                failure = Some(error);
            }
        }
    }
}

fn sensitive(mut header: HeaderValue) -> HeaderValue {
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests {
    use super::super::kubeconfig::Source;
    use super::*;
    use crate::runtime::files::Files;

    fn server(user: &str) -> Result<ApiServer, KubeconfigError> {
        let text = format!(
            "clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1', \
             insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let source = Source::Kubeconfig(file.path().to_owned());
        let access = Access::follow(&source, &[], &mut Files::default())?;
        let metrics = Arc::new(Metrics::new().unwrap());
        ApiServer::new(access, "kube-apiserver", &Config::default(), &metrics)
    }

    #[track_caller]
    fn check(user: &str, expected: Option<&str>) {
        let authorization = server(user).unwrap().authorization();
        assert_eq!(authorization.as_ref().map(|it| it.to_str().unwrap()), expected, "{user}");
    }

    #[tokio::test]
    async fn portico_is_known_by_a_token_from_the_kubeconfig_a_file_or_a_plugin() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        check("", None);
        check("token: abc", Some("Bearer abc"));
        check("username: a, password: b", Some("Basic YTpi"));
        let token = file("token", "from-file\n");
        check(&format!("tokenFile: '{token}'"), Some("Bearer from-file"));
        let credential = "{\"apiVersion\":\"client.authentication.k8s.io/v1\",\
                          \"kind\":\"ExecCredential\",\"status\":{\"token\":\"fetched\"}}";
        let answer = file("credential.json", credential);
        let plugin = format!(
            "exec: {{apiVersion: client.authentication.k8s.io/v1, command: cat, args: ['{answer}']}}"
        );
        check(&plugin, Some("Bearer fetched"));
        let empty = file("empty", "\n");
        let error = server(&format!("tokenFile: '{empty}'")).unwrap_err().to_string();
        assert!(error.contains("holds no token"), "{error}");
    }
}
