//! The examples in `config/` are read as the program reads them.

#![expect(
    clippy::unwrap_used,
    reason = "what a test relies on it may take for granted, and to panic is how it fails"
)]

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use portico::config::{Config, Effective, Origin, RunFlags, Settings};
use portico::control::manifests::Manifests;
use portico::model::endpoints::{EndpointRouting, Targets, resolve};
use portico::model::fault::ServicePort;
use portico::store::{Key, Kind, Object, Store};

#[tokio::test]
async fn the_example_registers_an_api_service_with_an_endpoint() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/manifests");
    let store = Store::new();
    let _manifests = Manifests::load(directory, store.clone()).await.unwrap();
    assert!(store.get(&Key::api_service("v1beta1.metrics.k8s.io")).is_some());

    let service = store.get(&Key::new(Kind::Service, "kube-system", "metrics-server")).unwrap();
    let (slices, _) = store.list(Kind::EndpointSlice);
    let (Object::Service(service), [slice]) = (&service.object, &slices[..]) else {
        panic!("one Service and one EndpointSlice");
    };
    let Object::EndpointSlice(slice) = &slice.object else { panic!("an EndpointSlice") };
    let named =
        ServicePort { namespace: "kube-system".into(), name: "metrics-server".into(), port: 443 };
    let targets = resolve(&named, Some(service), &[slice], EndpointRouting::Endpoints).unwrap();
    assert_eq!(targets, Targets::Addresses(vec!["127.0.0.1:10250".parse().unwrap()]));
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    _flags: RunFlags,
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/portico.yaml")
}

fn load(file: Option<&Path>) -> Result<Settings, Vec<String>> {
    Settings::load(&Line::command().get_matches_from(["portico"]), file)
}

/// The example as it is with the settings that are commented out.
fn with_every_setting() -> String {
    let text = fs::read_to_string(example()).unwrap();
    let names: Vec<String> = names();
    text.lines()
        .map(|line| {
            let bare = line.strip_prefix("# ").unwrap_or(line);
            let name = bare.split(':').next().unwrap();
            let is_setting = names.iter().any(|known| known == name);
            if is_setting { format!("{bare}\n") } else { format!("{line}\n") }
        })
        .collect()
}

fn names() -> Vec<String> {
    load(None).unwrap().effective.into_iter().map(|setting| setting.name).collect()
}

#[test]
fn the_settings_file_is_read_without_a_fault_and_reaches_the_parts() {
    let Config { frontend, proxy, tls, log, manifests, .. } =
        load(Some(&example())).unwrap().config;
    assert_eq!(frontend.bind.port(), 6443);
    assert_eq!((proxy.requests_max, proxy.mutating_requests_max), (800, 400));
    assert_eq!((tls.sni.len(), tls.cipher_suites.len()), (1, 4));
    assert_eq!(log.parts.len(), 1);
    // That is where the example of the objects is.
    assert!(manifests.unwrap().is_dir());
}

#[test]
fn the_settings_file_names_every_setting_and_shows_the_defaults_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("portico.yaml");
    let mut text = with_every_setting();
    if !cfg!(feature = "otlp") {
        text = text.replace("\ntracing-config-file: ", "\n# tracing-config-file: ");
    }
    // It excludes the flags of one issuer, which are the more.
    let excluded = "authentication-config";
    assert!(text.contains(&format!("\n{excluded}: ")));
    text = text.replace(&format!("\n{excluded}: "), &format!("\n# {excluded}: "));
    fs::write(&file, text).unwrap();
    let defaults = load(None).unwrap().effective;
    let example = fs::read_to_string(example()).unwrap();
    for Effective { name, value, origin } in load(Some(&file)).unwrap().effective {
        let left_out = [excluded, "tracing-config-file"].contains(&&*name);
        let missing = origin == Origin::Default && !left_out;
        assert!(!missing, "config/portico.yaml does not name {name}");
        let default = &defaults.iter().find(|setting| setting.name == name).unwrap().value;
        let is_comment = example.contains(&format!("\n# {name}:"));
        // Paths became those of the file's directory.
        if is_comment && !default.is_empty() {
            assert!(value.ends_with(default), "{name} is {default} by default, not {value}");
        }
    }
}
