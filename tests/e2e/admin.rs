//! Portico's own pages: health, the index, metrics, and what `/debug/portico` shows to whom.

use serde_json::{Value, json};

use crate::backend::{Backend, HTTP2};
use crate::client::{Answer, Ask, BOTH, Client, Protocol};
use crate::pki::{Leaf, PKI};
use crate::proxying::Pair;
use crate::rig::{Rig, Setup, api_service, eventually, path, service};

const ROOTS: [&str; 3] = ["livez", "readyz", "healthz"];
const AWAITED: &str = "poststarthook/manifests";
const DISCOVERY: &str = "poststarthook/apiservice-discovery-controller";

fn checks(root: &str) -> &'static [&'static str] {
    if root == "readyz" {
        &["ping", "log", DISCOVERY, AWAITED, "shutdown"]
    } else {
        &["ping", "log"]
    }
}

/// A portico that waits for a directory of manifests which is not there yet.
fn waiting() -> Rig {
    Setup::new().file_flag("manifests", "later").launch()
}

#[track_caller]
fn check_text(answer: &Answer, status: u16, lines: &[&str]) {
    assert_eq!((answer.status, answer.text()), (status, lines.concat()));
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(answer.header("cache-control"), "no-cache, private");
}

#[tokio::test]
async fn readiness_names_what_is_awaited_and_liveness_does_not_depend_on_it() {
    let rig = waiting();
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        let failed = [
            "[+]ping ok\n",
            "[+]log ok\n",
            "[-]poststarthook/apiservice-discovery-controller failed: reason withheld\n",
            "[-]poststarthook/manifests failed: reason withheld\n",
            "[+]shutdown ok\n",
            "readyz check failed\n",
        ];
        let ready = client.get("/readyz").await;
        check_text(&ready, 500, &failed);
        assert_eq!(ready.header("x-content-type-options"), "nosniff");
        let own = client.get("/readyz/poststarthook/manifests").await;
        check_text(&own, 500, &["internal server error: not finished\n"]);
        let without = format!("/readyz?exclude={AWAITED}&exclude={DISCOVERY}");
        check_text(&client.get(&without).await, 200, &["ok"]);
        for target in ["/livez", "/healthz"] {
            check_text(&client.get(target).await, 200, &["ok"]);
        }
    }
    std::fs::create_dir(rig.path("later")).unwrap();
    rig.await_status("/readyz", 200).await;
    let mut client = rig.alice(Protocol::Http2).await;
    check_text(&client.get("/readyz/poststarthook/manifests").await, 200, &["ok"]);
}

#[tokio::test]
async fn each_check_has_a_line_and_a_path() {
    let rig = Setup::new().start().await;
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        for root in ROOTS {
            let mut lines: Vec<String> =
                checks(root).iter().map(|name| format!("[+]{name} ok\n")).collect();
            lines.push(format!("{root} check passed\n"));
            let verbose = client.get(&format!("/{root}?verbose")).await;
            check_text(&verbose, 200, &[&lines.concat()]);
            assert_eq!(verbose.header("x-content-type-options"), "nosniff");
            for name in checks(root) {
                check_text(&client.get(&format!("/{root}/{name}")).await, 200, &["ok"]);
            }
            for unknown in ["", "pong", "ping/", "etcd"] {
                let answer = client.get(&format!("/{root}/{unknown}")).await;
                assert_eq!((answer.status, &answer.json()["kind"]), (404, &"Status".into()));
            }
        }
        let excluding = client.get("/livez?verbose&exclude=log&exclude=etcd&exclude=a").await;
        let warning =
            "warn: some health checks cannot be excluded: no matches for \"a\",\"etcd\"\n";
        let lines = ["[+]ping ok\n", "[+]log excluded: ok\n", warning, "livez check passed\n"];
        check_text(&excluding, 200, &lines);
    }
}

#[tokio::test]
async fn health_answers_every_method_and_head_without_a_body() {
    let rig = waiting();
    for protocol in BOTH {
        let mut client = rig.alice(protocol).await;
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            check_text(&client.send(&Ask::new(method, "/livez")).await, 200, &["ok"]);
        }
        for (target, status) in [("/livez", 200), ("/readyz", 500), ("/livez/ping", 200)] {
            check_text(&client.send(&Ask::new("HEAD", target)).await, status, &[]);
        }
        assert_eq!(client.get("/version").await.status, 200);
        assert_eq!(client.send(&Ask::new("POST", "/version")).await.status, 405);
    }
}

#[tokio::test]
async fn the_paths_of_checks_are_not_open_to_everybody() {
    let rig = Setup::new().start().await;
    for protocol in BOTH {
        for target in ["/readyz", "/livez?verbose"] {
            assert_eq!(rig.connect(protocol, None).await.get(target).await.status, 200);
        }
        for target in ["/readyz/ping", "/livez/ping", "/healthz/nothing", "/debug/portico"] {
            let answer = rig.connect(protocol, None).await.get(target).await;
            assert_eq!(answer.status, 401, "{target}");
        }
    }
}

#[tokio::test]
async fn the_index_lists_the_paths_of_apis_and_pages_in_order() {
    let backend = Backend::start("listed", HTTP2);
    let rig = Setup::new().service("listed", &[backend.address()]).start().await;
    let expected = [
        "/apis",
        "/apis/",
        "/apis/apiregistration.k8s.io",
        "/apis/apiregistration.k8s.io/v1",
        "/apis/listed.example.com",
        "/apis/listed.example.com/v1",
        "/debug/portico",
        "/healthz",
        "/healthz/log",
        "/healthz/ping",
        "/livez",
        "/livez/log",
        "/livez/ping",
        "/metrics",
        "/openapi/v2",
        "/readyz",
        "/readyz/log",
        "/readyz/ping",
        "/readyz/poststarthook/apiservice-discovery-controller",
        "/readyz/poststarthook/manifests",
        "/readyz/shutdown",
        "/version",
    ];
    for protocol in BOTH {
        let mut client = rig.connect(protocol, Some(&masters())).await;
        for ask in [
            Ask::get("/"),
            Ask::get("/index.html"),
            Ask::get("/").header("accept", "text/html"),
            Ask::new("POST", "/"),
        ] {
            let answer = client.send(&ask).await;
            assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
            assert_eq!(answer.json(), json!({ "paths": expected }));
            assert!(answer.text().starts_with("{\n  \"paths\": [\n    \"/apis\","));
        }
        for target in expected {
            assert_eq!(client.get(target).await.status, 200, "{target}");
        }
        for unknown in ["/index.htm", "/debug", "/debug/portico/x", "/metrics/x"] {
            let answer = client.get(unknown).await;
            assert_eq!((answer.status, &answer.json()["kind"]), (404, &"Status".into()));
        }
    }
}

fn masters() -> portico::tls::pki::PemPair {
    PKI.authority.sign(&Leaf::client("root", &["system:masters"]))
}

async fn debug(client: &mut Client, query: &str) -> Value {
    let answer = client.get(&format!("/debug/portico{query}")).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    answer.json()
}

#[tokio::test]
async fn what_is_inside_is_shown_to_masters_only() {
    let rig = Setup::new().start().await;
    for protocol in BOTH {
        let refused = rig.alice(protocol).await.get("/debug/portico").await;
        assert_eq!((refused.status, &refused.json()["reason"]), (403, &"Forbidden".into()));
        let sentence = "forbidden: User \"alice\" cannot get path \"/debug/portico\"";
        assert_eq!(refused.json()["message"], sentence);
        let as_master = Ask::get("/debug/portico")
            .header("impersonate-user", "root")
            .header("impersonate-group", "system:masters");
        assert_eq!(rig.alice(protocol).await.send(&as_master).await.status, 403);
        let mut client = rig.connect(protocol, Some(&masters())).await;
        debug(&mut client, "").await;
        assert_eq!(client.send(&Ask::new("HEAD", "/debug/portico")).await.text(), "");
        assert_eq!(client.send(&Ask::new("POST", "/debug/portico")).await.status, 405);
        assert_eq!(client.get("/debug/portico?limit=many").await.status, 400);
        assert_eq!(client.get("/debug/portico?apiservice=v1.none").await.status, 404);
    }
}

#[tokio::test]
async fn routes_connections_clients_and_certificates_are_shown_as_they_are() {
    let mut pair =
        Pair::start_with(Setup::new().manifest("lost.yaml", &(api_service("lost")))).await;
    let mut alice = pair.rig.alice(Protocol::Http2).await;
    assert_eq!(alice.get(&path("one", "things")).await.status, 200);
    let ask = Ask::get(path("two", "events?watch=1"));
    let (opened, watch) = tokio::join!(alice.open(&ask), pair.two.watch());
    let mut client = pair.rig.connect(Protocol::Http2, Some(&masters())).await;
    // An HTTP/1.1 connection is in its pool only some time after its answer.
    let mut shown = Value::Null;
    eventually("an idle connection to the HTTP/1.1 backend", async || {
        shown = debug(&mut client, "").await;
        endpoint(&shown, "one")["pools"][0]["connections"][0]["protocol"] == "http/1.1"
    })
    .await;

    let two = api(&shown, "v1.two.example.com");
    assert_eq!(
        (&two["route"], &two["available"], &two["fault"], &two["requestsInFlight"]),
        (&json!("Remote"), &json!(true), &Value::Null, &json!(1))
    );
    assert_eq!((&two["group"], &two["version"]), (&json!("two.example.com"), &json!("v1")));
    assert_eq!((&two["groupPriorityMinimum"], &two["versionPriority"]), (&json!(1000), &json!(10)));
    assert_eq!(two["service"], "e2e/two:443");
    let lost = api(&shown, "v1.lost.example.com");
    assert_eq!((&lost["available"], &lost["fault"]), (&json!(false), &json!("ServiceNotFound")));

    let at_two = endpoint(&shown, "two");
    assert_eq!(at_two["address"], pair.two.address().to_string());
    assert_eq!((&at_two["requestsInFlight"], &at_two["connections"]), (&json!(1), &json!(1)));
    let long = &at_two["pools"][0];
    assert_eq!((&long["thread"], &long["class"]), (&json!("data-plane-0"), &json!("long")));
    let connection = json!(
        { "protocol": "h2", "streams": 1, "streamsMax": 1000, "idleSeconds": null }
    );
    assert_eq!(long["connections"], json!([connection]));
    assert_eq!(endpoint(&shown, "one")["requestsInFlight"], 0);

    let threads =
        json!([{ "thread": "data-plane-0", "connections": shown["clients"]["connections"] }]);
    assert_eq!(shown["clients"]["threads"], threads);
    assert!(shown["clients"]["connections"].as_u64() >= Some(2));
    assert_eq!(shown["threadsWithoutAnswer"], json!([]));
    assert_eq!((&shown["awaited"], &shown["shuttingDown"]), (&json!([]), &json!(false)));
    check_certificates(&shown);
    drop((opened, watch));
}

fn check_certificates(shown: &Value) {
    let certificates = shown["certificates"].as_array().unwrap();
    let subjects: Vec<_> = certificates
        .iter()
        .map(|in_use| (&in_use["purpose"], &in_use["certificates"][0]["subject"]))
        .collect();
    let expected = [
        ("serving", "CN=server"),
        ("proxy-client", "CN=aggregator"),
        ("client-ca", "CN=e2e-ca"),
        ("requestheader-client-ca", "CN=e2e-front-proxy-ca"),
    ]
    .map(|(purpose, subject)| (json!(purpose), json!(subject)));
    assert_eq!(subjects, expected.each_ref().map(|(purpose, subject)| (purpose, subject)));
    assert_eq!(certificates[0]["certificates"][0]["subjectAltNames"], json!(["DNS:localhost"]));
    let text = shown.to_string();
    assert!(!text.contains("PRIVATE KEY") && !text.contains(crate::rig::BOBS_TOKEN));
}

#[track_caller]
fn api<'a>(shown: &'a Value, name: &str) -> &'a Value {
    let items = shown["apiServices"]["items"].as_array().unwrap();
    items.iter().find(|item| item["name"] == name).unwrap()
}

/// The only endpoint of a service.
#[track_caller]
fn endpoint<'a>(shown: &'a Value, name: &str) -> &'a Value {
    let place = &api(shown, &format!("v1.{name}.example.com"))["backend"];
    let backend = &shown["backends"][usize::try_from(place.as_u64().unwrap()).unwrap()];
    assert_eq!(backend["endpoints"].as_array().unwrap().len(), 1);
    &backend["endpoints"][0]
}

#[tokio::test]
async fn the_page_of_what_is_inside_is_bounded_and_can_be_narrowed() {
    let mut setup = Setup::new().manifest("service.yaml", &service("many"));
    let text: String = (0..600)
        .map(|at| api_service("many").replace("many.example.com", &format!("g{at:03}.example.com")))
        .collect();
    setup = setup.manifest("many.yaml", &text);
    let rig = setup.start().await;
    let mut client = rig.connect(Protocol::Http1, Some(&masters())).await;
    let names = |shown: &Value| -> Vec<String> {
        let items = shown["apiServices"]["items"].as_array().unwrap();
        items.iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    let shown = debug(&mut client, "").await;
    assert_eq!((names(&shown).len(), &shown["apiServices"]["leftOut"]), (500, &json!(100)));
    assert_eq!(shown["backends"].as_array().unwrap().len(), 1);
    let shown = debug(&mut client, "?limit=2").await;
    assert_eq!(names(&shown), ["v1.g000.example.com", "v1.g001.example.com"]);
    assert_eq!(shown["apiServices"]["leftOut"], 598);
    let shown = debug(&mut client, "?apiservice=v1.g599.example.com").await;
    assert_eq!(names(&shown), ["v1.g599.example.com"]);
    assert_eq!(shown["apiServices"]["leftOut"], 0);
}

#[tokio::test]
async fn metrics_are_served_while_many_requests_wait() {
    let backend = Backend::start("busy", HTTP2);
    let rig = Setup::new().service("busy", &[backend.address()]).start().await;
    let clients: Vec<_> = {
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(rig.alice(Protocol::Http2).await.http2());
        }
        clients
    };
    let hang = Ask::get(path("busy", "hang"));
    let asking = clients.iter().flat_map(|client| (0..90).map(|_| Box::pin(client.ask(&hang))));
    let mut waiting: Vec<_> = asking.collect();
    for answer in &mut waiting {
        assert!(futures_util::poll!(answer).is_pending());
    }
    let labels = ["apiservice=\"v1.busy.example.com\""];
    rig.await_metric("portico_apiservice_requests_in_flight", &labels, 270.0).await;
    let mut scrapers = Vec::new();
    for _ in 0..20 {
        scrapers.push(rig.alice(Protocol::Http2).await);
    }
    let asked = scrapers.iter_mut().map(|client| client.get("/metrics"));
    for scrape in futures_util::future::join_all(asked).await {
        assert_eq!(scrape.status, 200);
        assert_eq!(scrape.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
        assert!(scrape.text().contains("# TYPE portico_apiservice_requests_in_flight gauge"));
    }
}
