//! kube's clients of an API server, for what portico follows there: they too are made as its
//! kubeconfig says now, and carry the Authorization header of now.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{Request, Response, Uri};
use kube::Client;
use kube::client::Body;

use super::api_server::ApiServer;
use super::kubeconfig::Access;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of one server, made anew when the kubeconfig has other certificates.
struct Following {
    server: Arc<ApiServer>,
    url: Uri,
    made: Mutex<(Arc<Access>, Client)>,
}

impl fmt::Debug for Following {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Following({})", self.url)
    }
}

/// A client for each server of the cluster, that of the kubeconfig first; to be called on the runtime
/// that is to carry their requests.
pub fn kube_clients(server: &Arc<ApiServer>) -> Result<Vec<Client>, kube::Error> {
    server.access().urls().map(|url| client(server, url)).collect()
}

fn client(server: &Arc<ApiServer>, url: &Uri) -> Result<Client, kube::Error> {
    let access = server.access();
    let first = make(&access, url)?;
    let namespace = first.default_namespace().to_owned();
    let (server, url) = (Arc::clone(server), url.clone());
    let following = Arc::new(Following { server, url, made: Mutex::new((access, first)) });
    let service = tower::service_fn(move |request| {
        let following = Arc::clone(&following);
        async move { following.send(request).await }
    });
    Ok(Client::new(service, namespace))
}

fn make(access: &Access, url: &Uri) -> Result<Client, kube::Error> {
    let mut config = access.kube();
    config.cluster_url = url.clone();
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Whoever asks tries again itself, and says so.
    config.default_retry = false;
    Client::try_from(config)
}

impl Following {
    async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        if let Some(authorization) = self.server.authorization() {
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        self.now()?.send(request).await
    }

    /// What the one before has open goes on there, and nothing new goes over its connections.
    fn now(&self) -> Result<Client, kube::Error> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let access = self.server.access();
        if !Arc::ptr_eq(&made.0, &access) {
            if !access.connects_like(&made.0, true) {
                made.1 = make(&access, &self.url)?;
            }
            made.0 = access;
        }
        Ok(made.1.clone())
    }
}
