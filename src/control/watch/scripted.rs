//! API servers for tests, as far as a client sees them.

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::servers::{ClusterId, Servers};
use crate::runtime::snapshot::View;

/// A server that answers a method and a target with a code and JSON, or never. With a code above 399
/// it answers as Kubernetes does, whatever the JSON.
pub(in crate::control) fn client(
    answer: impl Fn(&Method, &str) -> Option<(u16, Value)> + Send + Sync + 'static,
) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let target = request.uri().path_and_query().map_or("", |target| target.as_str());
        let answer = answer(request.method(), target);
        async move {
            let Some((code, json)) = answer else { return std::future::pending().await };
            let json = if code < 400 { json } else { json!({"kind": "Status", "code": code}) };
            let body = Body::from(json.to_string().into_bytes());
            Response::builder().status(code).body(body)
        }
    });
    Client::new(service, "default")
}

/// A server that lists these objects, shows nothing in watches and answers nothing else.
pub(in crate::control) fn lists(kind: &str, items: &Value) -> Client {
    let list = json!({"apiVersion": "v1", "kind": format!("{kind}List"), "items": items,
                      "metadata": {"resourceVersion": "1"}});
    client(move |_, target| {
        if target.contains("sendInitialEvents") {
            return Some((422, Value::Null));
        }
        target.contains("limit=").then(|| (200, list.clone()))
    })
}

/// The servers behind these clients.
pub(in crate::control) fn servers(clients: Vec<Client>) -> Servers {
    let cluster = ClusterId::new("https://scripted".to_owned(), &[]);
    Servers::of(clients, View::fixed(cluster))
}
