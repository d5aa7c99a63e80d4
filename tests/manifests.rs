//! What is laid down in `config/` for clusters and their monitoring fits the program: it takes the
//! arguments in the manifests, and has the metrics of the dashboard and the alerts.
//!
//! That a kube-apiserver takes the manifests is shown by `tests/real/deploying`, and that Prometheus
//! takes the queries by `tests/real/monitoring`.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "what a test relies on it may take for granted, and to panic is how it fails"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use portico::config::{Config, RunFlags, Settings};
use portico::proxy::{RemoteRoute, UpstreamIdentity};
use portico::upstream::Source;
use serde_json::Value;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

fn text(file: &str) -> String {
    let path = directory().join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(file: &str) -> Value {
    serde_saphyr::from_str(&text(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

// --- manifests ----------------------------------------------------------------------------------

/// The spec of the pods of `config/in-cluster` with some of its components.
fn in_cluster(components: &[&str]) -> Value {
    let mut deployment = yaml("in-cluster/deployment.yaml");
    for component in components {
        let patch = yaml(&format!("in-cluster/{component}/deployment.yaml"));
        let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
        json_patch::patch(&mut deployment, &patch).unwrap();
    }
    deployment["spec"]["template"]["spec"].take()
}

fn static_pod() -> Value {
    yaml("static-pod/portico.yaml")["spec"].take()
}

fn arguments(pod: &Value) -> Vec<String> {
    serde_json::from_value(pod["containers"][0]["args"].clone()).unwrap()
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    _flags: RunFlags,
}

/// What portico makes of the arguments of a pod.
fn config(pod: &Value) -> Config {
    let mut arguments = arguments(pod);
    assert_eq!(arguments[0], "run");
    "portico run".clone_into(&mut arguments[0]);
    let line = Line::command().try_get_matches_from(arguments);
    Settings::load(&line.unwrap(), None).unwrap().config
}

const COMPONENTS: [&[&str]; 6] = [
    &[],
    &["impersonate"],
    &["publish-front-proxy-ca"],
    &["write-availability"],
    &["impersonate", "write-availability"],
    &["publish-front-proxy-ca", "write-availability"],
];

#[test]
fn the_program_takes_the_arguments_of_every_manifest() {
    for components in COMPONENTS {
        let core = config(&in_cluster(components)).core.unwrap();
        assert_eq!(core.source, Source::InCluster);
        let expected = match components.first() {
            Some(&"impersonate") => (UpstreamIdentity::Impersonate, RemoteRoute::Core),
            Some(&"publish-front-proxy-ca") => (UpstreamIdentity::Impersonate, RemoteRoute::Direct),
            _ => (UpstreamIdentity::Auto, RemoteRoute::Auto),
        };
        assert_eq!((core.identity, core.remote_route), expected, "{components:?}");
    }
    let core = config(&static_pod()).core.unwrap();
    assert!(matches!(core.source, Source::Kubeconfig(_)), "{core:?}");
}

#[test]
fn the_lease_is_where_the_role_for_it_is_bound() {
    let cluster = config(&in_cluster(&["write-availability"])).cluster;
    let bindings = text("in-cluster/write-availability/bindings.yaml");
    let bindings: Vec<Value> = serde_saphyr::from_multiple(&bindings).unwrap();
    let binding = bindings.iter().find(|binding| binding["roleRef"]["name"] == "portico-lease");
    let namespace = binding.unwrap()["metadata"]["namespace"].as_str();
    assert_eq!(cluster.lease_namespace.as_deref(), namespace);
    assert!(namespace.is_some());
}

/// True when a path lies in a volume of the container, which has to be one that can be written to.
fn is_mounted(pod: &Value, path: &str, writable: bool) -> bool {
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    mounts.iter().any(|mount| {
        let volumes = pod["volumes"].as_array().unwrap();
        Path::new(path).starts_with(mount["mountPath"].as_str().unwrap())
            && (!writable || mount["readOnly"] != true)
            && volumes.iter().any(|volume| volume["name"] == mount["name"])
    })
}

#[test]
fn every_file_of_the_arguments_is_in_a_volume_and_data_can_be_written() {
    let mut pods: Vec<Value> = COMPONENTS.into_iter().map(in_cluster).collect();
    pods.push(static_pod());
    for pod in pods {
        let mut files = 0;
        for argument in arguments(&pod) {
            let Some((flag, path)) = argument.split_once("=/") else { continue };
            files += 1;
            let is_data = flag == "--data-dir";
            assert!(is_mounted(&pod, &format!("/{path}"), is_data), "{argument} in {pod:#}");
        }
        assert!(files >= 3, "{pod:#}");
        // Everything else is read only, hence a data directory.
        assert!(pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] == true);
    }
}

#[test]
fn probes_and_services_go_to_the_port_that_is_served() {
    let pod = in_cluster(&[]);
    let served = config(&pod).frontend.bind.port();
    let port = &pod["containers"][0]["ports"][0];
    assert_eq!(port["containerPort"], served);
    assert_eq!(yaml("in-cluster/service.yaml")["spec"]["ports"][0]["targetPort"], port["name"]);
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(pod["containers"][0][probe]["httpGet"]["port"], port["name"]);
        let on_host = static_pod();
        let served = config(&on_host).frontend.bind.port();
        assert_eq!(on_host["containers"][0][probe]["httpGet"]["port"], served);
    }
}

// --- monitoring ---------------------------------------------------------------------------------

/// The metrics of `docs/metrics.md`, which are the program's (`tests/docs.rs`), with their labels;
/// the series of a histogram each by its own name.
fn metrics() -> BTreeMap<String, BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let mut metrics = BTreeMap::new();
    for row in fs::read_to_string(path).unwrap().lines() {
        let cells: Vec<&str> = row.split(" | ").map(|cell| cell.trim_matches('|').trim()).collect();
        let [name, kind, labels, _] = cells[..] else { continue };
        let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) else {
            continue;
        };
        let labels = labels.split(", ").map(|label| label.trim_matches('`').to_owned());
        // The scraper's, and the histogram's.
        let labels: BTreeSet<String> =
            labels.chain(["job", "instance", "le"].map(str::to_owned)).collect();
        let suffixes: &[&str] = match kind {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        for suffix in suffixes {
            metrics.insert(format!("{name}{suffix}"), labels.clone());
        }
    }
    assert!(metrics.len() > 20, "{metrics:?}");
    metrics
}

/// Every name in a text that looks like a metric's, with the labels in the braces behind it.
fn named(text: &str) -> Vec<(String, Vec<String>)> {
    const PREFIXES: [&str; 6] =
        ["aggregator_", "apiserver_", "authentication_", "authorization_", "portico_", "process_"];
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_word) {
        let (_, word) = rest.split_at(start);
        let end = word.find(|letter| !is_word(letter)).unwrap_or(word.len());
        let (name, behind) = word.split_at(end);
        rest = behind;
        if PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
            let matchers = behind.strip_prefix('{').and_then(|matchers| matchers.split_once('}'));
            let matchers = matchers.map(|(matchers, _)| matchers).unwrap_or_default();
            let labels = matchers.split(',').filter_map(|matcher| {
                let label = matcher.split(['=', '!', '~']).next()?;
                Some(label.to_owned()).filter(|label| !label.is_empty())
            });
            found.push((name.to_owned(), labels.collect()));
        }
    }
    found
}

#[test]
fn names_of_metrics_are_found_with_their_labels() {
    let found =
        named("sum(rate(portico_a{job=~\"$job\",code!=\"2\"}[5m])) / portico_b > up{a=\"\"}");
    let labels = ["job", "code"].map(str::to_owned).to_vec();
    assert_eq!(found, [("portico_a".to_owned(), labels), ("portico_b".to_owned(), Vec::new())]);
}

#[test]
fn the_program_has_the_metrics_of_the_dashboard_and_the_alerts() {
    let metrics = metrics();
    for (file, least) in [("monitoring/dashboard.json", 25), ("monitoring/rules.yaml", 10)] {
        let found = named(&text(file));
        assert!(found.len() >= least, "{file} names {} metrics", found.len());
        for (name, labels) in found {
            // In a sentence a histogram goes by its own name.
            let known = metrics.get(&name).or_else(|| metrics.get(&format!("{name}_count")));
            let Some(known) = known else { panic!("{file}: there is no metric {name}") };
            for label in labels {
                assert!(known.contains(&label), "{file}: {name} has no label {label}");
            }
        }
    }
}

#[test]
fn the_alerts_for_the_prometheus_operator_are_those_for_prometheus() {
    let rule = yaml("monitoring/prometheus-rule.yaml");
    assert_eq!(rule["spec"], yaml("monitoring/rules.yaml"));
}

#[test]
fn the_dashboard_has_a_query_in_each_panel_and_no_two_of_the_same_number() {
    let dashboard: Value = serde_json::from_str(&text("monitoring/dashboard.json")).unwrap();
    let mut numbers = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(numbers.insert(panel["id"].as_u64().unwrap()), "{panel:#}");
        let has_query = panel["targets"].as_array().is_some_and(|targets| !targets.is_empty());
        assert_eq!(has_query, panel["type"] != "row", "{panel:#}");
    }
}
