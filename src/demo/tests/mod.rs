//! The toys, driven over TLS as the proxy drives them.

mod rig;

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http1;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use self::rig::{Sent, Watcher, http2_to, request, rig, tls};
use super::ToyKind;
use crate::model::accept::DISCOVERY_JSON;
use crate::runtime::tasks;

const CAKES: &str = "/apis/bakery.example.com/v1/namespaces/default/cakes";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
const MERGE: &str = "application/merge-patch+json";

fn cake(name: &str, flavour: &str) -> Value {
    json!({
        "apiVersion": "bakery.example.com/v1",
        "kind": "Cake",
        "metadata": {"name": name, "labels": {"flavour": flavour}},
        "spec": {"flavour": flavour},
    })
}

#[tokio::test]
async fn only_a_front_proxy_that_is_believed_is_served() {
    let rig = rig(ToyKind::Bakery).await;
    let nobody = rig.pki.client(None, "http/1.1");
    // With TLS 1.3 the client learns of the refusal with its first read.
    let answer = match http1::handshake::<_, Sent>(tls(&rig.toy, nobody).await).await {
        Err(error) => Err(error),
        Ok((mut sender, connection)) => {
            let answer = sender.send_request(request("GET", "/healthz", &[], ""));
            let (answer, _) = tokio::join!(answer, connection);
            answer
        }
    };
    assert!(answer.is_err());

    let mut other = http2_to(&rig.toy, rig.pki.client(Some("other"), "h2")).await;
    let answer = other.send_request(request("GET", "/apis", &[], "")).await.unwrap();
    assert_eq!(answer.status(), 401);
    let answer = rig.ask("GET", "/apis", &[("x-remote-user", "")], Value::Null).await;
    assert_eq!((answer.0, &answer.2["reason"]), (401, &json!("Unauthorized")));
    assert_eq!(rig.json("GET", "/apis", Value::Null).await.0, 200);
}

#[tokio::test]
async fn an_object_is_created_read_changed_and_deleted() {
    let rig = rig(ToyKind::Bakery).await;
    let path = format!("{CAKES}/lemon");
    let (code, made) = rig.json("POST", CAKES, cake("lemon", "lemon")).await;
    assert_eq!(
        (code, &made["spec"]["layers"], &made["status"]["baked"]),
        (201, &json!(1), &json!(false))
    );
    assert_eq!(rig.json("GET", &path, Value::Null).await, (200, made.clone()));
    let (code, again) = rig.json("POST", CAKES, cake("lemon", "lemon")).await;
    assert_eq!((code, &again["reason"]), (409, &json!("AlreadyExists")));
    assert_eq!(again["message"], "cakes.bakery.example.com \"lemon\" already exists");

    let mut changed = made.clone();
    changed["spec"]["layers"] = json!(2);
    let (code, updated) = rig.json("PUT", &path, changed.clone()).await;
    assert_eq!((code, &updated["metadata"]["generation"]), (200, &json!(2)));
    let (code, conflict) = rig.json("PUT", &path, changed).await;
    assert_eq!((code, &conflict["reason"]), (409, &json!("Conflict")));
    assert_eq!(rig.json("PUT", &path, updated.clone()).await, (200, updated.clone()));

    let wrong = json!({"preconditions": {"uid": "other"}});
    assert_eq!(rig.json("DELETE", &path, wrong).await.0, 409);
    let (code, gone) = rig.json("DELETE", &path, Value::Null).await;
    assert_eq!((code, &gone["status"]), (200, &json!("Success")));
    assert_eq!(gone["details"]["uid"], made["metadata"]["uid"]);
    let (code, missing) = rig.json("GET", &path, Value::Null).await;
    assert_eq!((code, &missing["details"]["kind"]), (404, &json!("cakes")));
    assert_eq!(missing["message"], "cakes.bakery.example.com \"lemon\" not found");
}

#[tokio::test]
async fn what_is_wrong_with_an_object_is_told() {
    let rig = rig(ToyKind::Bakery).await;
    let mut invalid = cake("tall", "lemon");
    invalid["spec"]["layers"] = json!(11);
    let (code, status) = rig.json("POST", CAKES, invalid).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")));
    assert_eq!(status["details"]["causes"][0]["field"], "spec.layers");

    let mut unknown = cake("odd", "lemon");
    unknown["spec"]["colour"] = json!("red");
    let dry = format!("{CAKES}?dryRun=All");
    let (code, headers, _) = rig.ask("POST", &dry, &[], unknown.clone()).await;
    assert_eq!(
        (code, headers["warning"].to_str().unwrap()),
        (201, "299 - \"unknown field \\\"spec.colour\\\"\"")
    );
    let strict = format!("{CAKES}?fieldValidation=Strict");
    let (code, status) = rig.json("POST", &strict, unknown).await;
    assert_eq!(
        (code, &status["message"]),
        (
            400,
            &json!(
                "Cake in version \"v1\" cannot be handled as a Cake: strict decoding error: \
                 unknown field \"spec.colour\""
            )
        )
    );
    let wrong = json!({"metadata": {"name": "a"}, "spec": {"flavour": 7}});
    assert_eq!(rig.json("POST", CAKES, wrong).await.0, 400);
    assert_eq!(rig.json("GET", &format!("{CAKES}/odd"), Value::Null).await.0, 404);
}

#[tokio::test]
async fn patches_change_objects_and_unknown_kinds_of_patch_are_refused() {
    let rig = rig(ToyKind::Bakery).await;
    let path = format!("{CAKES}/birthday");
    let (code, patched) = rig.patch(&path, MERGE, json!({"spec": {"layers": 4}})).await;
    assert_eq!((code, &patched["spec"]), (200, &json!({"flavour": "chocolate", "layers": 4})));
    let (_, same) = rig.patch(&path, MERGE, json!({"spec": {"layers": 4}})).await;
    assert_eq!(same, patched);
    let stale = json!({"metadata": {"resourceVersion": "1"}, "spec": {"layers": 5}});
    assert_eq!(rig.patch(&path, MERGE, stale).await.0, 409);

    let operations = json!([{"op": "replace", "path": "/spec/layers", "value": 6}]);
    let (code, patched) = rig.patch(&path, "application/json-patch+json", operations).await;
    assert_eq!((code, &patched["spec"]["layers"]), (200, &json!(6)));
    let operations = json!([{"op": "test", "path": "/spec/layers", "value": 1}]);
    let (code, status) = rig.patch(&path, "application/json-patch+json", operations).await;
    assert_eq!((code, &status["details"]), (422, &json!({})));

    let strategic = "application/strategic-merge-patch+json";
    let (code, status) = rig.patch(&path, strategic, json!({})).await;
    assert_eq!((code, &status["reason"]), (415, &json!("UnsupportedMediaType")));
    let (code, status) = rig.patch(&path, MERGE, json!({"spec": {"layers": "x"}})).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")));
}

#[tokio::test]
async fn lists_are_selected_by_label_and_field_in_one_namespace_or_all() {
    let rig = rig(ToyKind::Bakery).await;
    let other = "/apis/bakery.example.com/v1/namespaces/other/cakes";
    rig.json("POST", other, cake("lemon", "lemon")).await;
    for (path, expected) in [
        (CAKES.to_owned(), &["birthday", "wedding"][..]),
        (format!("{CAKES}?limit=1&fieldSelector=metadata.name%3Dwedding"), &["wedding"]),
        ("/apis/bakery.example.com/v1/cakes".to_owned(), &["birthday", "wedding", "lemon"]),
        ("/apis/bakery.example.com/v1/cakes?labelSelector=flavour".to_owned(), &["lemon"]),
        ("/apis/bakery.example.com/v1/ovens".to_owned(), &["large", "small"]),
    ] {
        let (code, list) = rig.json("GET", &path, Value::Null).await;
        let items = list["items"].as_array().unwrap();
        let names: Vec<_> =
            items.iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect();
        assert_eq!((code, names.as_slice()), (200, expected), "{path}");
    }
    let (code, gone) = rig.json("DELETE", CAKES, Value::Null).await;
    assert_eq!((code, gone["items"].as_array().unwrap().len()), (200, 2));
    let (_, rest) = rig.json("GET", CAKES, Value::Null).await;
    assert_eq!((&rest["kind"], &rest["items"]), (&json!("CakeList"), &json!([])));
}

#[tokio::test]
async fn a_watch_tells_changes_on_the_connection_on_which_they_are_made() {
    let rig = rig(ToyKind::Bakery).await;
    let (_, list) = rig.json("GET", CAKES, Value::Null).await;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!("{CAKES}?watch=true&resourceVersion={revision}");
    let mut watcher = rig.watch(&path, &[]).await;
    let mut lemons = rig.watch(&format!("{path}&labelSelector=flavour%3Dlemon"), &[]).await;
    rig.json("POST", CAKES, cake("lemon", "lemon")).await;
    assert_eq!(watcher.named().await, "ADDED lemon");
    assert_eq!(lemons.named().await, "ADDED lemon");
    let lemon = format!("{CAKES}/lemon");
    rig.patch(&lemon, MERGE, json!({"metadata": {"labels": {"flavour": "none"}}})).await;
    assert_eq!(watcher.named().await, "MODIFIED lemon");
    assert_eq!(lemons.named().await, "DELETED lemon");
    rig.json("DELETE", &lemon, Value::Null).await;
    assert_eq!(watcher.named().await, "DELETED lemon");
}

#[tokio::test]
async fn a_watch_can_begin_with_everything_and_ends_at_its_timeout() {
    let rig = rig(ToyKind::Bakery).await;
    let path = format!(
        "{CAKES}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
         &allowWatchBookmarks=true&timeoutSeconds=1"
    );
    let mut watcher = rig.watch(&path, &[]).await;
    assert_eq!(watcher.named().await, "ADDED birthday");
    assert_eq!(watcher.named().await, "ADDED wedding");
    let (kind, end) = watcher.event().await;
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(end["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(watcher.event().await.0, "BOOKMARK");
    assert!(watcher.next().await.is_none());
}

#[tokio::test]
async fn a_watch_from_a_revision_that_is_not_known_is_told_so_and_ends() {
    let rig = rig(ToyKind::Bakery).await;
    let mut watcher = rig.watch(&format!("{CAKES}?watch=1&resourceVersion=999"), &[]).await;
    let (kind, status) = watcher.event().await;
    assert_eq!((kind.as_str(), &status["code"]), ("ERROR", &json!(410)));
    assert!(watcher.next().await.is_none());
    let (code, _, status) =
        rig.ask("GET", &format!("{CAKES}?resourceVersion=999"), &[], Value::Null).await;
    assert_eq!((code, &status["details"]["retryAfterSeconds"]), (504, &json!(1)));
}

#[tokio::test]
async fn tables_are_made_for_lists_objects_and_watches() {
    let rig = rig(ToyKind::Bakery).await;
    let accept = [("accept", TABLE)];
    let (_, _, list) = rig.ask("GET", CAKES, &accept, Value::Null).await;
    assert_eq!(list["kind"], "Table");
    let cells = list["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..3], [json!("birthday"), json!("chocolate"), json!(3)]);
    assert!(cells[3].as_str().unwrap().ends_with('s'));
    let (_, _, one) = rig.ask("GET", &format!("{CAKES}/wedding"), &accept, Value::Null).await;
    assert_eq!(one["rows"][0]["object"]["metadata"]["name"], "wedding");

    let mut watcher = rig.watch(&format!("{CAKES}?watch=1"), &accept).await;
    let (first, second) = (watcher.event().await.1, watcher.event().await.1);
    assert_eq!(first["columnDefinitions"][1]["name"], "Flavour");
    assert_eq!(second["columnDefinitions"], json!([]));
    assert_eq!(second["rows"][0]["cells"][0], "wedding");
}

#[tokio::test]
async fn yaml_goes_in_and_comes_out() {
    let rig = rig(ToyKind::Library).await;
    let books = "/apis/library.example.com/v1beta1/namespaces/default/books";
    let headers = [("content-type", "application/yaml"), ("accept", "application/yaml")];
    let body = "kind: Book\nmetadata:\n  generateName: b-\nspec:\n  title: Dune\n  pages: 412\n";
    let response = rig.send(request("POST", books, &headers, body)).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (201, &HeaderValue::from_static("application/yaml"))
    );
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let made: Value = serde_saphyr::from_str(std::str::from_utf8(&bytes).unwrap()).unwrap();
    assert_eq!(made["apiVersion"], "library.example.com/v1beta1");
    assert_eq!(made["spec"], json!({"title": "Dune", "pages": 412}));
    let name = made["metadata"]["name"].as_str().unwrap();
    let path = format!("/apis/library.example.com/v1/namespaces/default/books/{name}");
    let (code, same) = rig.json("GET", &path, Value::Null).await;
    assert_eq!((code, &same["apiVersion"]), (200, &json!("library.example.com/v1")));
}

#[tokio::test]
async fn discovery_is_served_plain_and_aggregated() {
    let rig = rig(ToyKind::Library).await;
    assert_eq!(rig.toy.groups_versions().len(), 2);
    let (_, plain) = rig.json("GET", "/apis", Value::Null).await;
    assert_eq!(plain["groups"][0]["preferredVersion"]["version"], "v1");
    let accept = [("accept", DISCOVERY_JSON)];
    let (code, headers, document) = rig.ask("GET", "/apis", &accept, Value::Null).await;
    assert_eq!((code, headers["content-type"].to_str().unwrap()), (200, DISCOVERY_JSON));
    let resource = &document["items"][0]["versions"][1]["resources"][0];
    assert_eq!((&resource["resource"], &resource["shortNames"]), (&json!("books"), &json!(["bk"])));

    let mut known = request("GET", "/apis", &accept, "");
    known.headers_mut().insert("if-none-match", headers["etag"].clone());
    assert_eq!(rig.send(known).await.status(), 304);

    let (_, group) = rig.json("GET", "/apis/library.example.com", Value::Null).await;
    assert_eq!(group["kind"], "APIGroup");
    let (_, list) = rig.json("GET", "/apis/library.example.com/v1beta1", Value::Null).await;
    assert_eq!(
        (&list["kind"], &list["resources"][0]["name"]),
        (&json!("APIResourceList"), &json!("books"))
    );
    assert_eq!(rig.json("GET", "/apis/library.example.com/v2", Value::Null).await.0, 404);
    assert_eq!(rig.json("GET", "/openapi/v2", Value::Null).await.0, 404);

    let (_, index) = rig.json("GET", "/openapi/v3", Value::Null).await;
    let entry = &index["paths"]["apis/library.example.com/v1"]["serverRelativeURL"];
    let (code, headers, document) = rig.ask("GET", entry.as_str().unwrap(), &[], Value::Null).await;
    assert_eq!((code, headers["cache-control"].to_str().unwrap()), (200, "public, immutable"));
    assert_eq!(document["openapi"], "3.0.0");
}

#[tokio::test]
async fn whoami_tells_what_was_received() {
    let rig = rig(ToyKind::Bakery).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("7"));
    let frames = [Frame::data(Bytes::from("hello")), Frame::trailers(trailers)];
    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
    let headers = [("x-remote-group", "dev"), ("x-remote-extra-scopes", "a"), ("x-other", "one")];
    let mut sent = request("PROPFIND", "/apis/bakery.example.com/v1/whoami?a=b", &headers, "");
    sent.headers_mut().append(HeaderName::from_static("x-other"), HeaderValue::from_static("two"));
    let (parts, _) = sent.into_parts();
    let response = rig.send(Request::from_parts(parts, body.boxed_unsync())).await;
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let told: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((&told["method"], &told["query"]), (&json!("PROPFIND"), &json!("a=b")));
    assert_eq!((&told["httpVersion"], &told["bodyBytes"]), (&json!("HTTP/2.0"), &json!(5)));
    assert_eq!(told["trailers"], json!([["x-sum", "7"]]));
    let user = json!({"name": "alice", "uid": "", "groups": ["dev"], "extra": {"scopes": ["a"]}});
    assert_eq!(told["user"], user);
    let headers = told["headers"].as_array().unwrap();
    let others: Vec<_> = headers.iter().filter(|header| header[0] == "x-other").collect();
    assert_eq!(others, [&json!(["x-other", "one"]), &json!(["x-other", "two"])]);
}

#[tokio::test]
async fn http1_is_served_too() {
    let rig = rig(ToyKind::Bakery).await;
    let config = rig.pki.client(Some("front-proxy-client"), "http/1.1");
    let (mut sender, connection) = http1::handshake(tls(&rig.toy, config).await).await.unwrap();
    tasks::spawn("test-connection", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
        }
    });
    let answer = sender.send_request(request("GET", "/readyz", &[], "")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    let watch = request("GET", &format!("{CAKES}?watch=1"), &[], "");
    let answer = sender.send_request(watch).await.unwrap();
    let mut watcher = Watcher::new(answer.into_body());
    assert_eq!(watcher.named().await, "ADDED birthday");
}

#[tokio::test]
async fn what_is_too_large_or_not_there_is_refused() {
    let rig = rig(ToyKind::Bakery).await;
    let large = Value::from("x".repeat(3 * 1024 * 1024));
    assert_eq!(rig.json("POST", CAKES, large).await.0, 413);
    for (method, path, code) in [
        ("POST", "/apis/bakery.example.com/v1/cakes", 405),
        ("POST", "/apis/bakery.example.com/v1/namespaces/default/cakes/a", 405),
        ("HEAD", CAKES, 405),
        ("GET", "/apis/bakery.example.com/v1/cakes/a", 404),
        ("GET", "/apis/bakery.example.com/v1/namespaces/default/ovens", 404),
        ("GET", "/apis/bakery.example.com/v1/pies", 404),
        ("GET", "/apis/other.example.com/v1/cakes", 404),
        ("GET", "/", 404),
        ("POST", "/apis", 405),
    ] {
        assert_eq!(rig.json(method, path, Value::Null).await.0, code, "{method} {path}");
    }
    let html = [("accept", "text/html")];
    assert_eq!(rig.ask("GET", CAKES, &html, Value::Null).await.0, 406);
}

#[tokio::test]
async fn a_toy_that_stops_cuts_its_watches() {
    let rig = rig(ToyKind::Bakery).await;
    let mut watcher = rig.watch(&format!("{CAKES}?watch=1"), &[]).await;
    assert_eq!(watcher.named().await, "ADDED birthday");
    assert_eq!(watcher.named().await, "ADDED wedding");
    let address = rig.toy.address();
    rig.toy.stop();
    assert!(watcher.next().await.unwrap().is_err());
    assert!(TcpStream::connect(address).await.is_err());
}
