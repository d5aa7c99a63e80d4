//! `portico bench discovery` against portico itself, as a user runs it: what it prints, and how it
//! ends.

use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::pki::PKI;
use crate::rig::{BOBS_TOKEN, Rig, Setup, eventually, within};

/// A benchmark of this portico that takes a fraction of a second for each kind of reads.
fn bench(rig: &Rig, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portico"));
    command
        .args(["bench", "discovery", "--warm-up=10ms", "--clients=2", "--token", BOBS_TOKEN])
        .arg(format!("--server=https://localhost:{}", rig.address.port()))
        .arg("--certificate-authority")
        .arg(rig.path("ca.crt"))
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

struct Ended {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

async fn ended(child: Child) -> Ended {
    let waiting = tokio::task::spawn_blocking(|| child.wait_with_output());
    let output = within("the benchmark's end", waiting).await.unwrap().unwrap();
    Ended {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn run(rig: &Rig, flags: &[&str]) -> Ended {
    ended(bench(rig, flags).spawn().unwrap()).await
}

#[track_caller]
fn json(ended: &Ended) -> Value {
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

#[tokio::test]
async fn every_kind_of_read_is_measured_and_told_as_json_and_as_a_page() {
    let rig = Setup::new().start().await;
    let report = rig.path("report.html");
    let page = format!("--report={}", report.display());
    let pid = format!("--pid={}", std::process::id());
    let reads = "--reads=aggregated,gzip,not-modified,legacy,walk";
    let flags = ["--duration=100ms", "--output=json", reads, &page, &pid];
    let found = json(&run(&rig, &flags).await);
    let target = &found["targets"][0];
    assert_eq!(
        (&target["protocol"], &target["not_measured"]),
        (&"HTTP/2".into(), &Value::from(serde_json::Map::new()))
    );
    for (at, kind) in ["aggregated", "gzip", "not-modified", "legacy", "walk"].iter().enumerate() {
        let reads = &target["reads"][at];
        assert_eq!((&reads["kind"], &reads["failed"]), (&Value::from(*kind), &Value::from(0)));
        assert!(reads["count"].as_u64().unwrap() > 0, "{reads}");
        assert!(reads["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{reads}");
        assert!(reads["rss_bytes_max"].as_u64().unwrap() > 0, "{reads}");
        let bytes = reads["bytes_per_read"].as_f64().unwrap();
        assert_eq!(bytes > 0.0, *kind != "not-modified", "{reads}");
    }
    // The own group.
    assert_eq!(target["document"]["groups"], 1);
    assert!(!found.to_string().contains(BOBS_TOKEN));
    let page = std::fs::read_to_string(report).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("not-modified"));
    assert!(!page.contains(BOBS_TOKEN));
}

#[tokio::test]
async fn two_targets_take_turns_at_a_rate_and_are_compared() {
    let rig = Setup::new().start().await;
    let vs = format!("--vs=https://127.0.0.1:{}", rig.address.port());
    let flags =
        ["--duration=200ms", "--output=json", "--reads=legacy", "--rate=100", "--rounds=2", &vs];
    // The certificate is for `localhost` alone.
    let refused = run(&rig, &flags).await;
    assert_eq!(refused.status, Some(1));
    assert!(refused.stderr.contains("TLS handshake"), "{}", refused.stderr);
    let vs = format!("--vs=https://localhost:{}", rig.address.port());
    let flags = [&flags[..5], &[vs.as_str()]].concat();
    let found = json(&run(&rig, &flags).await);
    for target in found["targets"].as_array().unwrap() {
        let reads = &target["reads"][0];
        assert_eq!(reads["rounds"], 2);
        let begun = reads["count"].as_u64().unwrap() + reads["unsent"].as_u64().unwrap();
        assert!((36..=44).contains(&begun), "a hundred a second in twice 200 ms: {reads}");
    }
    let ratio = &found["ratios"][0];
    assert_eq!((&ratio["figure"], &ratio["rounds"]), (&"p50".into(), &2.into()));
}

#[tokio::test]
async fn when_nothing_can_be_measured_the_hop_is_named() {
    let rig = Setup::new().start().await;
    // The last one wins.
    let nobody = ["--token=nobodys", "--duration=50ms"];
    let refused = run(&rig, &nobody).await;
    assert_eq!((refused.status, refused.stdout.as_str()), (Some(1), ""));
    assert!(refused.stderr.contains("nothing could be measured"), "{}", refused.stderr);
    assert!(refused.stderr.contains("aggregated: answered 401"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("nobodys"));

    std::fs::write(rig.path("ca.crt"), PKI.stranger.certificate()).unwrap();
    let stranger = run(&rig, &[]).await;
    assert_eq!(stranger.status, Some(1));
    assert!(stranger.stderr.contains("TLS handshake"), "{}", stranger.stderr);

    let closed = run(&rig, &["--server=https://127.0.0.1:1"]).await;
    assert_eq!(closed.status, Some(1));
    let hop = "TCP connection to 127.0.0.1:1: Connection refused";
    assert!(closed.stderr.contains(hop), "{}", closed.stderr);
}

#[tokio::test]
async fn a_fleet_of_which_nothing_becomes_visible_fails_the_run() {
    let rig = Setup::new().start().await;
    let elsewhere = rig.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let manifests = format!("--manifests={}", elsewhere.display());
    let flags = [manifests.as_str(), "--servers=2", "--complete-within=200ms", "--duration=50ms"];
    let ended = run(&rig, &flags).await;
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(1), ""));
    let why = "nothing of 2 servers became visible within 200ms: does the target follow";
    assert!(ended.stderr.contains(why), "{}", ended.stderr);
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0, "what was registered is gone");
}

#[tokio::test]
async fn a_signal_ends_it_early_with_what_there_is() {
    let rig = Setup::new().start().await;
    let child = bench(&rig, &["--duration=1h", "--reads=legacy,walk", "--output=json"]).spawn();
    let child = child.unwrap();
    eventually("reads arrive", async || {
        let labels = ["resource=\"\"", "code=\"200\""];
        rig.metric("apiserver_request_total", &labels).await.is_some_and(|count| count > 200.0)
    })
    .await;
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let ended = ended(child).await;
    assert_eq!(ended.status, Some(130), "{}", ended.stderr);
    let found: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(found["interrupted"], true);
    let reads = found["targets"][0]["reads"].as_array().unwrap();
    assert_eq!(reads.len(), 1, "the walk had not begun");
    assert!(reads[0]["count"].as_u64().unwrap() > 0);
}
