//! An API server beside which portico runs: where it is, and who portico is there.
//!
//! Requests go over the threads' own pools like those to any backend. What is sent as portico itself
//! carries the credentials of the kubeconfig: its certificate, or its token, which a task keeps fresh.

use std::path::PathBuf;
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

use super::endpoint::Backend;
use super::exchange::{Outgoing, Progress};
use super::kubeconfig::{Access, KubeconfigError};
use super::pool::{Class, Pool};
use super::{BackendSpec, Config, Upstream};
use crate::body::Body;
use crate::model::fault::{Fault, Hop, ServicePort};
use crate::runtime::snapshot::{Publisher, View};
use crate::runtime::tasks::{self, AbortOnDrop};
use crate::runtime::telemetry::{Metrics, RouteMetrics};
use crate::tls::KeyPair;

/// How often is looked whether the token is to be had anew. A file is read again after a minute, and
/// a plugin is asked again a minute before its token ends.
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
    access: Access,
    name: Box<str>,
    config: Config,
    metrics: Arc<Metrics>,
    upstream: Upstream,
    authorization: View<Option<HeaderValue>>,
    _refresh: Option<AbortOnDrop>,
}

impl ApiServer {
    /// The server that `access` names; `name` is what it is called in messages and metrics. Must be
    /// called on the runtime that is to keep its token fresh.
    pub fn new(
        access: Access,
        name: &str,
        config: &Config,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, KubeconfigError> {
        let config = Config { identity: access.identity()?.map(View::fixed), ..config.clone() };
        let (authorization, refresh) = authorization(&access)?;
        let upstream = upstream(&access, name, config.clone(), metrics)?;
        let (config, metrics, name) = (config, Arc::clone(metrics), name.into());
        Ok(Self { access, name, config, metrics, upstream, authorization, _refresh: refresh })
    }

    /// The server as it knows portico itself, by its certificate; a token is for the caller to add.
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// The same server over connections that show `identity`, or no certificate at all.
    pub fn upstream_as(
        &self,
        identity: Option<View<KeyPair>>,
    ) -> Result<Upstream, KubeconfigError> {
        let config = Config { identity, ..self.config.clone() };
        let mut made = upstream(&self.access, &self.name, config, &self.metrics)?;
        made.metrics = Arc::clone(&self.upstream.metrics);
        Ok(made)
    }

    /// How it is reached.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The Authorization header by which portico is known; none with a certificate alone.
    pub fn authorization(&self) -> Option<HeaderValue> {
        Option::clone(&self.authorization.load())
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
        self.post_over(pool, &self.upstream, path, json, (&headers, timeout)).await
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
        self.send(pool, &self.upstream, (Method::GET, path), Bytes::new(), rest).await
    }

    fn own_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(4);
        if let Some(authorization) = &*self.authorization.load() {
            headers.insert(AUTHORIZATION, authorization.clone());
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
        let path = format!("{}{path}", self.access.prefix());
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

fn upstream(
    access: &Access,
    name: &str,
    config: Config,
    metrics: &Arc<Metrics>,
) -> Result<Upstream, KubeconfigError> {
    let spec = BackendSpec {
        service: ServicePort::of_server(name, access.port()),
        ca_bundle: access.ca_bundle().into(),
        insecure_skip_tls_verify: access.insecure_skip_tls_verify(),
    };
    let called = (access.authority(), access.server_name()?);
    let backend = Backend::of_server(called, access.hosts(), spec, config, metrics);
    // What is wrong with the authorities is said at start, not to the first caller.
    backend.tls_config().map_err(|fault| access.error(&fault.detail))?;
    let metrics = Arc::new(RouteMetrics::of_server(metrics, name));
    Ok(Upstream { backend: Arc::new(backend), metrics, ca_bundle: None })
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

/// The Authorization header, and the task that keeps it fresh where that is needed.
fn authorization(
    access: &Access,
) -> Result<(View<Option<HeaderValue>>, Option<AbortOnDrop>), KubeconfigError> {
    let failed = |error: BoxError| access.error(&format!("credentials: {error}"));
    let user = access.kube().auth_info;
    let ask = match access.token_file() {
        Some(file) => ask_file(file),
        None => match ask_kube(access).map_err(failed)? {
            Some(ask) => ask,
            None => return Ok((View::fixed(None), None)),
        },
    };
    // What is in the kubeconfig, in a file or fresh from a plugin is there at once.
    let first = ask().now_or_never().transpose().map_err(failed)?;
    let (publisher, view) = Publisher::new(first.flatten().map(sensitive));
    let changes =
        access.token_file().is_some() || user.exec.is_some() || user.auth_provider.is_some();
    let place = access.place().to_owned();
    let refresh = changes.then(|| tasks::spawn_owned("token", refresh(place, ask, publisher)));
    Ok((view, refresh))
}

/// A token from a file, whose end of line is not part of it.
fn ask_file(file: PathBuf) -> Ask {
    Box::new(move || {
        let place = file.display();
        let token = match std::fs::read_to_string(&file) {
            Ok(text) if text.trim().is_empty() => Err(format!("{place} holds no token").into()),
            Ok(text) => HeaderValue::try_from(format!("Bearer {}", text.trim()))
                .map(Some)
                .map_err(|error| format!("{place} holds no token: {error}").into()),
            Err(error) => Err(format!("cannot read {place}: {error}").into()),
        };
        std::future::ready(token).boxed()
    })
}

/// What `kube` makes of the user, none without credentials for a header.
fn ask_kube(access: &Access) -> Result<Option<Ask>, BoxError> {
    let kube = access.kube();
    let Some(layer) = kube.auth_layer()? else {
        if kube.auth_info.exec.is_some() {
            return Err("plugins that give no token are not supported".into());
        }
        return Ok(None);
    };
    Ok(Some(Box::new(move || {
        // An echo, since the header is set on the way to a server.
        let echo = service_fn(|request: Request<KubeBody>| async move {
            let authorization = request.headers().get(AUTHORIZATION).cloned();
            Ok::<_, BoxError>(Response::new(authorization))
        });
        let asking = layer.layer(echo).oneshot(Request::new(KubeBody::empty()));
        asking.map(|answer| answer.map(Response::into_body)).boxed()
    })))
}

async fn refresh(place: String, ask: Ask, publisher: Publisher<Option<HeaderValue>>) {
    let mut look = interval(REFRESH_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        if let Err(error) = ask_again(&ask, &publisher).await {
            tracing::warn!(from = place, %error, "token not had anew, the last one is kept");
        }
    }
}

async fn ask_again(ask: &Ask, publisher: &Publisher<Option<HeaderValue>>) -> Result<(), BoxError> {
    let header = ask().await?.map(sensitive);
    if *publisher.current() != header {
        publisher.publish(header);
    }
    Ok(())
}

fn sensitive(mut header: HeaderValue) -> HeaderValue {
    header.set_sensitive(true);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(user: &str) -> Result<ApiServer, KubeconfigError> {
        let text = format!(
            "clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1', \
             insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let access = Access::from_kubeconfig(file.path()).unwrap();
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

    #[tokio::test]
    async fn a_token_that_changed_in_its_file_is_taken_and_one_that_is_gone_is_kept() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "one").unwrap();
        let ask = ask_file(file.path().to_owned());
        let (publisher, view) = Publisher::new(None);
        ask_again(&ask, &publisher).await.unwrap();
        assert_eq!(view.load().as_ref().as_ref().unwrap(), "Bearer one");
        std::fs::write(file.path(), "two").unwrap();
        ask_again(&ask, &publisher).await.unwrap();
        std::fs::remove_file(file.path()).unwrap();
        ask_again(&ask, &publisher).await.unwrap_err();
        assert_eq!(view.load().as_ref().as_ref().unwrap(), "Bearer two");
    }
}
