//! kube-apiserver's `TracingConfiguration` (`component-base/tracing/api/v1`).

use std::path::Path;

use http::Uri;
use serde::Deserialize;

use super::{MILLION, SpansError};
use crate::runtime::configuration_file;

const API_VERSIONS: [&str; 3] = [
    "apiserver.config.k8s.io/v1",
    "apiserver.config.k8s.io/v1beta1",
    "apiserver.config.k8s.io/v1alpha1",
];
const KIND: &str = "TracingConfiguration";
/// The collector of who names none (gRPC's port of OTLP).
const DEFAULT_ENDPOINT: &str = "localhost:4317";
/// The port of an endpoint that names none, as gRPC has it.
const DEFAULT_PORT: u16 = 443;

/// Where spans go, and of how many requests that begin a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// The collector's URI, `http:` or `unix:`.
    pub(super) endpoint: String,
    /// From 0 to a million.
    pub(super) rate_per_million: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TracingConfiguration {
    api_version: String,
    kind: String,
    endpoint: Option<String>,
    sampling_rate_per_million: Option<i64>,
}

impl Settings {
    /// Reads the file; all faults are named at once.
    pub(super) fn read(path: &Path) -> Result<Self, SpansError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| SpansError::Read { path: path.to_owned(), error })?;
        Self::parse(&text).map_err(|faults| SpansError::Invalid {
            path: path.to_owned(),
            faults: faults.join("\n"),
        })
    }

    fn parse(text: &str) -> Result<Self, Vec<String>> {
        let file: TracingConfiguration = configuration_file::parse(text)?;
        let found = (&*file.api_version, &*file.kind);
        let mut faults = configuration_file::faults_of_type(found, (&API_VERSIONS, KIND));
        let rate = file.sampling_rate_per_million.unwrap_or_default();
        let rate_per_million = u32::try_from(rate).ok().filter(|&rate| rate <= MILLION);
        if rate_per_million.is_none() {
            faults.push(format!("samplingRatePerMillion: {rate} is not between 0 and {MILLION}"));
        }
        let endpoint = match uri(file.endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT)) {
            Ok(endpoint) => endpoint,
            Err(fault) => {
                faults.push(format!("endpoint: {fault}"));
                String::new()
            }
        };
        match rate_per_million {
            Some(rate_per_million) if faults.is_empty() => Ok(Self { endpoint, rate_per_million }),
            _ => Err(faults),
        }
    }
}

/// gRPC's name of a server (`host:port`, `dns://…`, `unix://…`) as a URI; the transport is plain, as
/// upstream's.
fn uri(endpoint: &str) -> Result<String, String> {
    let host = match endpoint.split_once("://") {
        None => endpoint.strip_prefix("dns:").unwrap_or(endpoint),
        // What stands before the next slash is a name server, which is the system's here.
        Some(("dns", rest)) => rest.split_once('/').map_or(rest, |(_, host)| host),
        Some(("unix", path)) if path.starts_with('/') => return Ok(endpoint.to_owned()),
        Some(("unix", _)) => return Err(format!("\"{endpoint}\" has no absolute path")),
        Some((scheme, _)) => {
            let fault = format!(
                "unsupported scheme \"{scheme}\", supported are dns and unix, and none at all"
            );
            return Err(fault);
        }
    };
    let malformed = |why: &str| format!("\"{endpoint}\" is not a host and a port: {why}");
    let uri: Uri =
        format!("http://{host}").parse().map_err(|error| malformed(&format!("{error}")))?;
    let authority = uri.authority().filter(|authority| !authority.host().is_empty());
    let authority = authority.ok_or_else(|| malformed("no host"))?;
    if uri.path() != "/" || uri.query().is_some() || authority.as_str().contains('@') {
        return Err(malformed("more than that"));
    }
    match authority.port_u16() {
        Some(_) => Ok(format!("http://{authority}")),
        None => Ok(format!("http://{}:{DEFAULT_PORT}", authority.host())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1beta1\nkind: TracingConfiguration\n";

    #[track_caller]
    fn check(rest: &str, endpoint: &str, rate_per_million: u32) {
        let expected = Settings { endpoint: endpoint.to_owned(), rate_per_million };
        assert_eq!(Settings::parse(&format!("{HEAD}{rest}")), Ok(expected), "{rest}");
    }

    #[track_caller]
    fn check_faults(text: &str, expected: &[&str]) {
        let faults = Settings::parse(text).unwrap_err();
        assert_eq!(faults.len(), expected.len(), "{faults:?}");
        for (fault, expected) in faults.iter().zip(expected) {
            assert!(fault.contains(expected), "{fault}");
        }
    }

    #[test]
    fn endpoints_are_named_as_grpc_names_them() {
        check("", "http://localhost:4317", 0);
        check("samplingRatePerMillion: 1000000", "http://localhost:4317", 1_000_000);
        check("endpoint: otel.example.com:1234", "http://otel.example.com:1234", 0);
        check("endpoint: otel.example.com", "http://otel.example.com:443", 0);
        check("endpoint: \"dns:collector:1\"", "http://collector:1", 0);
        check("endpoint: dns:///collector:1", "http://collector:1", 0);
        check("endpoint: dns://8.8.8.8/collector:1", "http://collector:1", 0);
        check("endpoint: \"[::1]:4317\"", "http://[::1]:4317", 0);
        check("endpoint: unix:///run/otel.sock", "unix:///run/otel.sock", 0);
    }

    #[test]
    fn all_faults_are_named_at_once() {
        check_faults(
            "apiVersion: v1\nkind: Tracing\nendpoint: https://x:1\nsamplingRatePerMillion: -1\n",
            &[
                "apiVersion: \"v1\"",
                "kind: \"Tracing\"",
                "samplingRate",
                "unsupported scheme \"https\"",
            ],
        );
        check_faults(&format!("{HEAD}samplingRatePerMillion: 1000001"), &["between 0 and 1000000"]);
        check_faults(&format!("{HEAD}endpoint: \"a b:1\""), &["is not a host and a port"]);
        check_faults(&format!("{HEAD}endpoint: \"x:1/path\""), &["more than that"]);
        check_faults(&format!("{HEAD}endpoint: \"\""), &["is not a host and a port"]);
        check_faults(&format!("{HEAD}sampling: 1"), &["sampling"]);
        check_faults("kind: TracingConfiguration\n", &["apiVersion"]);
        check_faults("[", &[""]);
    }
}
