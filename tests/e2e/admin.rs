//! Portico's own pages: health, the index, metrics, and what `/debug/portico` shows to whom.

use crate::client::{Answer, Ask, BOTH, Protocol};
use crate::rig::{Rig, Setup};

const ROOTS: [&str; 3] = ["livez", "readyz", "healthz"];
const AWAITED: &str = "poststarthook/manifests";

fn checks(root: &str) -> &'static [&'static str] {
    if root == "readyz" { &["ping", "log", AWAITED, "shutdown"] } else { &["ping", "log"] }
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
            "[-]poststarthook/manifests failed: reason withheld\n",
            "[+]shutdown ok\n",
            "readyz check failed\n",
        ];
        let ready = client.get("/readyz").await;
        check_text(&ready, 500, &failed);
        assert_eq!(ready.header("x-content-type-options"), "nosniff");
        let own = client.get("/readyz/poststarthook/manifests").await;
        check_text(&own, 500, &["internal server error: not finished\n"]);
        let without = format!("/readyz?exclude={AWAITED}");
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
