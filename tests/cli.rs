//! The program itself, started as a user starts it: what it prints, and how it ends.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what a test relies on it may take for granted, and to panic is how it fails"
)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

fn portico(directory: &Path, line: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portico"));
    command.args(line).current_dir(directory).stdin(Stdio::null());
    command
}

fn output(line: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    portico(directory.path(), line).output().unwrap()
}

#[track_caller]
fn printed(line: &[&str]) -> String {
    let output = output(line);
    assert!(output.status.success(), "{line:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(line: &[&str], status: i32) -> String {
    let output = output(line);
    assert_eq!(output.status.code(), Some(status), "{line:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{line:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn directory_with(name: &str, text: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(name), text).unwrap();
    directory
}

#[test]
fn a_file_with_five_faults_prints_five_lines_each_with_its_place() {
    let directory = directory_with(
        "portico.yaml",
        "apiVersion: portico.dev/v1alpha1\n\
         kind: PorticoConfiguration\n\
         tls-cert-file: server.crt\n\
         request-timeout: 60\n\
         max-requests-inflight: -1\n\
         tls-cipher-suites: TLS_AES_128_GCM_SHA256\n\
         secure-prot: 6443\n",
    );
    let line = ["run", "--config=portico.yaml"];
    let output = portico(directory.path(), &line).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "Error: portico.yaml:3:1: tls-cert-file: needs tls-private-key-file beside it\n\
         Error: portico.yaml:4:18: request-timeout: invalid duration \"60\", expected for instance \
         60s or 1m30s\n\
         Error: portico.yaml:5:24: max-requests-inflight: must not be negative\n\
         Error: portico.yaml:6:20: tls-cipher-suites: expected a list, found a single value\n\
         Error: portico.yaml:7:1: secure-prot: unknown setting, did you mean secure-port?\n"
    );
}

#[test]
fn faults_of_flags_name_the_flag() {
    let unknown = refused(&["run", "--secure-prot=1"], 2);
    assert!(unknown.contains("unexpected argument '--secure-prot'"), "{unknown}");
    assert!(unknown.contains("'--secure-port'"), "{unknown}");
    let negative = refused(&["run", "--max-requests-inflight", "-1"], 2);
    assert!(negative.contains("'--max-requests-inflight <REQUESTS>': must not be negative"));
    let alone = refused(&["run", "--tls-cert-file=x", "--proxy-client-key-file=y"], 1);
    assert_eq!(
        alone,
        "Error: --tls-cert-file: needs tls-private-key-file beside it\n\
         Error: --proxy-client-key-file: needs proxy-client-cert-file beside it\n"
    );
    let missing = refused(&["run", "--config=nowhere.yaml"], 1);
    assert!(missing.starts_with("Error: nowhere.yaml: cannot be read: No such file"), "{missing}");
}

#[test]
fn help_has_kube_apiservers_groups_in_its_order() {
    let help = printed(&["run", "--help"]);
    let groups: Vec<&str> = help.lines().filter(|line| line.ends_with(" flags:")).collect();
    let expected = [
        "Generic flags:",
        "Secure serving flags:",
        "Authentication flags:",
        "Authorization flags:",
        "Aggregation flags:",
        "Front mode flags:",
        "Traces flags:",
        "Logs flags:",
    ];
    assert_eq!(groups, expected);
    let commands = printed(&["--help"]);
    for command in ["run", "demo", "bench", "doctor", "completion", "man"] {
        assert!(commands.contains(&format!("\n  {command} ")), "{commands}");
    }
}

#[test]
fn every_shell_gets_a_completion_script_that_knows_the_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completion", shell]);
        let known = script.contains("max-requests-inflight") && script.contains("logging-format");
        assert!(known && script.contains("completion"), "{shell}: {script}");
    }
    assert!(refused(&["completion", "tcsh"], 2).contains("possible values: bash"));
}

#[test]
fn bash_reads_its_completion_script() {
    let directory = directory_with("completion.bash", &printed(&["completion", "bash"]));
    // What bash would offer after `portico run --max-c`.
    let ask = "source ./completion.bash; COMP_WORDS=(portico run --max-c); COMP_CWORD=2; \
               _portico portico --max-c run; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["--norc", "--noprofile", "-c", ask])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "--max-connections");
}

#[test]
fn manual_pages_are_printed_singly_or_written_all_at_once() {
    assert!(printed(&["man"]).contains(".TH portico 1"));
    let page = printed(&["man", "run"]);
    assert!(page.contains(concat!("\"portico ", env!("CARGO_PKG_VERSION"), "\"")), "{page}");
    assert!(page.contains(".TH portico-run 1") && page.contains("\\-\\-secure\\-port"), "{page}");
    assert_eq!(refused(&["man", "fly"], 1), "Error: portico has no command \"fly\"\n");

    let directory = tempfile::tempdir().unwrap();
    let output = portico(directory.path(), &["man", "--dir=pages"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut names: Vec<String> = fs::read_dir(directory.path().join("pages"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let commands = ["bench-discovery", "bench", "completion", "demo", "doctor", "man", "run"];
    let expected = commands.map(|command| format!("portico-{command}.1"));
    assert_eq!(names, [&expected[..], &["portico.1".to_owned()]].concat());
}

/// The log's lines up to the one that says `serving`.
fn log_until_serving(directory: &Path, line: &[&str]) -> Vec<Value> {
    let mut child = portico(directory, line).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let mut lines = Vec::new();
    for line in stderr.lines() {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let is_serving = line["fields"]["message"] == "serving";
        lines.push(line);
        if is_serving {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    lines
}

#[test]
fn the_settings_in_effect_are_logged_once_with_where_they_are_from() {
    let directory = directory_with(
        "portico.yaml",
        "# The port is the command line's.\n\
         secure-port: 1\n\
         log-format: json\n\
         token-auth-file: tokens.csv\n",
    );
    fs::write(directory.path().join("tokens.csv"), "topsecret,bob,1000\n").unwrap();
    let line = ["run", "--config=portico.yaml", "--secure-port=0", "--bind-address=127.0.0.1"];
    let log = log_until_serving(directory.path(), &line);
    let settings: Vec<String> = log
        .iter()
        .filter(|line| line["fields"]["message"] == "setting")
        .map(|line| {
            let field = |name: &str| line["fields"][name].as_str().unwrap().to_owned();
            format!("{}={} ({})", field("name"), field("value"), field("from"))
        })
        .collect();
    let expected = [
        "bind-address=127.0.0.1 (flag)",
        "secure-port=0 (flag)",
        "token-auth-file=tokens.csv (portico.yaml:4)",
        "log-format=json (portico.yaml:3)",
    ];
    assert_eq!(settings, expected);
    assert_eq!(log.last().unwrap()["fields"]["message"], "serving");
    assert!(!format!("{log:?}").contains("topsecret"));
}

#[test]
fn defaults_are_logged_too_at_level_three() {
    let directory = tempfile::tempdir().unwrap();
    let line = ["run", "--secure-port=0", "--bind-address=127.0.0.1", "-v3", "--log-format=json"];
    let log = log_until_serving(directory.path(), &line);
    let requests = log.iter().find(|line| line["fields"]["name"] == "max-requests-inflight");
    let fields = &requests.unwrap()["fields"];
    assert_eq!((&fields["value"], &fields["from"]), (&Value::from("400"), &Value::from("default")));
}
