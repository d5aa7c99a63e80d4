//! Registration by a file in the directory of manifests that portico follows.
//!
//! One file a call, written whole, so that portico sees all of its servers at once; in JSON, since
//! reading it is no part of what is measured.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use serde::Serialize;

use super::{LABEL, SERVICE_PORT, api_services, metadata};
use crate::cli::bench::fleet::{Fleet, Server};
use crate::tls::pki::write_file;

/// What the names of our files begin with.
const PREFIX: &str = "portico-bench-";
const EXTENSION: &str = "json";
/// The label by which an EndpointSlice is found.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const PORT_NAME: &str = "https";

pub(super) fn check(directory: &Path) -> anyhow::Result<()> {
    let left = ours(directory)?;
    if let Some(file) = left.first() {
        bail!(
            "{} is there: another benchmark runs, or one was killed and --clean-up removes what it \
             left",
            file.display()
        );
    }
    Ok(())
}

pub(super) fn add(directory: &Path, fleet: &Fleet, servers: &[Arc<Server>]) -> anyhow::Result<()> {
    let text = text(fleet, servers)?;
    Ok(write_file(&file(directory, servers), text.as_bytes(), 0o644)?)
}

pub(super) fn remove(directory: &Path, servers: &[Arc<Server>]) -> anyhow::Result<()> {
    let file = file(directory, servers);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

pub(super) fn clean_up(directory: &Path) -> anyhow::Result<usize> {
    let files = ours(directory)?;
    for file in &files {
        fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(files.len())
}

/// The file of the servers that are registered together.
fn file(directory: &Path, servers: &[Arc<Server>]) -> PathBuf {
    let first = servers.first().map_or(0, |server| server.index());
    directory.join(format!("{PREFIX}{first:03}.{EXTENSION}"))
}

/// The files that benchmarks wrote: by name, and by the label in them.
fn ours(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let failed = || format!("cannot read the directory of manifests {}", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        let named = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
            name.starts_with(PREFIX)
                && Path::new(name).extension().is_some_and(|it| it == EXTENSION)
        });
        if named && fs::read_to_string(&path).is_ok_and(|text| text.contains(LABEL)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// One object a line.
fn text(fleet: &Fleet, servers: &[Arc<Server>]) -> anyhow::Result<String> {
    let mut text = String::new();
    for server in servers {
        line(&mut text, &service(fleet, server))?;
        line(&mut text, &endpoints(fleet, server))?;
        for api_service in api_services(fleet, server, SERVICE_PORT) {
            line(&mut text, &api_service)?;
        }
    }
    Ok(text)
}

fn line(text: &mut String, object: &impl Serialize) -> anyhow::Result<()> {
    text.push_str(&serde_json::to_string(object)?);
    text.push('\n');
    Ok(())
}

fn service(fleet: &Fleet, server: &Server) -> Service {
    let mut metadata = metadata(server.service());
    metadata.namespace = Some(fleet.namespace().to_owned());
    let port = ServicePort {
        name: Some(PORT_NAME.to_owned()),
        port: SERVICE_PORT,
        ..ServicePort::default()
    };
    let spec = ServiceSpec { ports: Some(vec![port]), ..ServiceSpec::default() };
    Service { metadata, spec: Some(spec), ..Service::default() }
}

fn endpoints(fleet: &Fleet, server: &Server) -> EndpointSlice {
    let mut metadata = metadata(server.service());
    metadata.namespace = Some(fleet.namespace().to_owned());
    metadata.labels.get_or_insert_default().insert(SERVICE_NAME.to_owned(), server.service());
    let address = server.address();
    EndpointSlice {
        metadata,
        address_type: "IPv4".to_owned(),
        ports: Some(vec![EndpointPort {
            name: Some(PORT_NAME.to_owned()),
            port: Some(i32::from(address.port())),
            ..EndpointPort::default()
        }]),
        endpoints: vec![Endpoint {
            addresses: vec![address.ip().to_string()],
            ..Endpoint::default()
        }],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::cli::bench::fleet::{Behaviour, Latency, Size, Spec};

    fn fleet() -> Fleet {
        Fleet::start(&Spec {
            servers: vec![Behaviour::well(Latency::NONE); 2],
            size: Size { versions: 2, resources: 1 },
            namespace: "team".to_owned(),
            proxy_client_ca: None,
        })
        .unwrap()
    }

    #[test]
    fn each_server_is_a_service_with_its_port_and_an_api_service_a_version() {
        let fleet = fleet();
        let text = text(&fleet, fleet.servers()).unwrap();
        let objects: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let names: Vec<String> = objects
            .iter()
            .map(|object| {
                assert_eq!(object["metadata"]["labels"][LABEL], "discovery");
                format!("{} {}", object["kind"], object["metadata"]["name"]).replace('"', "")
            })
            .collect();
        let of = |number: usize| {
            [
                format!("Service portico-bench-00{number}"),
                format!("EndpointSlice portico-bench-00{number}"),
                format!("APIService v2.g00{number}.bench.portico.dev"),
                format!("APIService v1.g00{number}.bench.portico.dev"),
            ]
        };
        assert_eq!(names, [of(0), of(1)].concat());
        let server = &fleet.servers()[1];
        assert_eq!(objects[5]["endpoints"][0]["addresses"][0], "127.0.0.1");
        assert_eq!(objects[5]["ports"][0]["port"], server.address().port());
        assert_eq!(objects[5]["metadata"]["labels"][SERVICE_NAME], server.service());
        let spec = &objects[6]["spec"];
        assert_eq!(spec["service"]["namespace"], "team");
        assert_eq!(spec["service"]["name"], server.service());
        assert!(spec["versionPriority"].as_i64() > objects[7]["spec"]["versionPriority"].as_i64());
    }

    #[test]
    fn what_a_killed_run_left_is_in_the_way_until_it_is_cleaned_up() {
        let fleet = fleet();
        let directory = tempfile::tempdir().unwrap();
        let foreign = directory.path().join("portico-bench-mine.json");
        fs::write(&foreign, "{}").unwrap();
        check(directory.path()).unwrap();
        add(directory.path(), &fleet, fleet.servers()).unwrap();
        let error = check(directory.path()).unwrap_err().to_string();
        assert!(error.contains("--clean-up"), "{error}");
        assert_eq!(clean_up(directory.path()).unwrap(), 1);
        check(directory.path()).unwrap();
        assert!(foreign.exists());
        add(directory.path(), &fleet, &fleet.servers()[1..]).unwrap();
        remove(directory.path(), &fleet.servers()[1..]).unwrap();
        remove(directory.path(), &fleet.servers()[1..]).unwrap();
        check(directory.path()).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_read_is_named() {
        let error = format!("{:#}", check(Path::new("/nowhere/manifests")).unwrap_err());
        assert!(error.contains("/nowhere/manifests"), "{error}");
    }
}
