//! The `APIServices` as an API: get, list, watch, as Tables and in YAML, read-only.

use serde_json::Value;

use crate::availability::await_condition;
use crate::client::{Ask, BOTH, Incoming, Protocol};
use crate::proxying::Pair;
use crate::rig::{Setup, api_service, probing};

const APISERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";

/// Both backends, one of which is known to be available.
async fn available() -> Pair {
    let pair = Pair::start_with(Setup::new().edit(probing)).await;
    await_condition(&pair.rig, "v1.two.example.com", "True", "Passed").await;
    pair
}

#[tokio::test]
async fn objects_are_read_one_by_one_and_as_a_list() {
    let pair = available().await;
    for protocol in BOTH {
        let mut client = pair.rig.alice(protocol).await;
        let one = client.get(&format!("{APISERVICES}/v1.two.example.com")).await.json();
        assert_eq!(
            (&one["kind"], &one["spec"]["service"]["name"]),
            (&"APIService".into(), &"two".into())
        );
        let available = &one["status"]["conditions"][0];
        assert_eq!(
            (&available["type"], &available["status"]),
            (&"Available".into(), &"True".into())
        );
        let list = client.get(APISERVICES).await.json();
        assert_eq!(list["kind"], "APIServiceList");
        let names: Vec<&Value> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| &item["metadata"]["name"])
            .collect();
        assert!(names.contains(&&"v1.one.example.com".into()), "{names:?}");
        assert_eq!(client.get(&format!("{APISERVICES}/v1.nobody")).await.status, 404);
    }
}

#[tokio::test]
async fn objects_come_as_tables_and_in_yaml() {
    let pair = available().await;
    let mut client = pair.rig.alice(Protocol::Http2).await;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let answer = client.send(&Ask::get(APISERVICES).header("accept", table)).await.json();
    assert_eq!(answer["kind"], "Table");
    let row = answer["rows"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["cells"][0] == "v1.two.example.com")
        .unwrap()
        .clone();
    assert_eq!((&row["cells"][1], &row["cells"][2]), (&"e2e/two".into(), &"True".into()));
    let yaml =
        Ask::get(format!("{APISERVICES}/v1.two.example.com")).header("accept", "application/yaml");
    let answer = client.send(&yaml).await;
    assert_eq!(answer.header("content-type"), "application/yaml");
    assert!(answer.text().contains("kind: APIService\n"), "{}", answer.text());
}

#[tokio::test]
async fn objects_cannot_be_written() {
    let pair = Pair::start().await;
    let mut client = pair.rig.alice(Protocol::Http2).await;
    let one = format!("{APISERVICES}/v1.two.example.com");
    for (method, target) in [
        ("POST", APISERVICES),
        ("DELETE", APISERVICES),
        ("PUT", &one),
        ("PATCH", &one),
        ("DELETE", &one),
    ] {
        let answer = client.send(&Ask::new(method, target).body("{}")).await;
        assert_eq!(answer.status, 405, "{method} {target}");
    }
}

/// The next event of a watch.
async fn event(body: &mut Incoming<'_>, rest: &mut Vec<u8>) -> (String, Value) {
    loop {
        if let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let mut event: Value = serde_json::from_slice(&line).unwrap();
            return (event["type"].as_str().unwrap().to_owned(), event["object"].take());
        }
        rest.extend_from_slice(&body.next().await.unwrap().unwrap());
    }
}

#[tokio::test]
async fn a_watch_tells_what_is_there_then_the_bookmark_then_what_changes() {
    let pair = Pair::start().await;
    for (round, protocol) in BOTH.into_iter().enumerate() {
        let mut client = pair.rig.alice(protocol).await;
        let target = format!(
            "{APISERVICES}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true\
             &resourceVersionMatch=NotOlderThan"
        );
        let mut opened = client.open(&Ask::get(target)).await;
        assert_eq!(opened.status, 200);
        let mut rest = Vec::new();
        let mut initial = Vec::new();
        let bookmark = loop {
            match event(&mut opened.body, &mut rest).await {
                (kind, object) if kind == "ADDED" => {
                    initial.push(object["metadata"]["name"].as_str().unwrap().to_owned());
                }
                (kind, object) => {
                    assert_eq!(kind, "BOOKMARK");
                    break object;
                }
            }
        };
        assert!(initial.contains(&"v1.two.example.com".to_owned()), "{initial:?}");
        assert_eq!(bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
        let name = format!("late{round}");
        pair.rig.write(&format!("{name}.yaml"), &api_service(&name));
        let (kind, object) = event(&mut opened.body, &mut rest).await;
        assert_eq!(
            (kind.as_str(), &object["metadata"]["name"]),
            ("ADDED", &format!("v1.{name}.example.com").into())
        );
        // The control loop's verdict follows.
        let (kind, object) = event(&mut opened.body, &mut rest).await;
        assert_eq!(
            (kind.as_str(), &object["status"]["conditions"][0]["reason"]),
            ("MODIFIED", &"ServiceNotFound".into())
        );
        pair.rig.remove(&format!("{name}.yaml"));
        loop {
            let (kind, object) = event(&mut opened.body, &mut rest).await;
            if kind == "DELETED" {
                assert_eq!(object["metadata"]["name"], format!("v1.{name}.example.com"));
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_watch_ends_cleanly_at_its_own_timeout() {
    let rig = Setup::new().start().await;
    let target = format!("{APISERVICES}?watch=true&timeoutSeconds=1");
    let (mut one, mut two) = (rig.alice(Protocol::Http1).await, rig.alice(Protocol::Http2).await);
    let (one, two) = tokio::join!(one.get(&target), two.get(&target));
    assert_eq!((one.status, two.status), (200, 200));
}
