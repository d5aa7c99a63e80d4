//! The settings in effect: what the command line says, else the file, else the default.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args as _, FromArgMatches as _};

use super::file::{self, File, FileFault};
use super::yaml::Place;
use super::{Config, Fault, Flags};

/// The settings in effect, and where each is from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What they mean.
    pub config: Config,
    /// Every setting in the order of `--help`. Secrets are in files, never in a setting, so all of
    /// them may be shown.
    pub effective: Vec<Effective>,
}

/// A setting in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// Its name.
    pub name: String,
    /// Its value, of a list all values with commas between them; empty when it is not set.
    pub value: String,
    /// Where it is from.
    pub origin: Origin,
}

/// Where a setting is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the file.
    File(String),
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File(place) => formatter.write_str(place),
            Self::Flag => formatter.write_str("flag"),
        }
    }
}

impl Settings {
    /// Puts together what the command line, whose matches hold [`Flags`], and the file say. Every
    /// fault is a line that names its place.
    pub fn load(line: &ArgMatches, path: Option<&Path>) -> Result<Self, Vec<String>> {
        let command = definition();
        let file = match path {
            Some(path) => file::read(path, &command).map_err(|fault| vec![fault])?,
            None => File::default(),
        };
        let shown = path.map_or(Cow::Borrowed(""), Path::to_string_lossy);
        let (flags, effective) =
            merged(&command, line, &file, &shown).map_err(|error| vec![error.to_string()])?;
        match flags.config() {
            Ok(config) if file.faults.is_empty() => Ok(Self { config, effective }),
            config => Err(all_faults(line, file, config.err().unwrap_or_default(), &shown)),
        }
    }
}

/// The definition of every setting.
pub(super) fn definition() -> clap::Command {
    Flags::augment_args(clap::Command::new("portico"))
        .args_override_self(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
}

fn is_given(line: &ArgMatches, argument: &Arg) -> bool {
    line.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine)
}

/// The command line as it would be if the file's settings had been given on it.
fn merged(
    command: &clap::Command,
    line: &ArgMatches,
    file: &File,
    shown: &str,
) -> Result<(Flags, Vec<Effective>), clap::Error> {
    let mut arguments = vec![OsString::from("portico")];
    let mut origins = Vec::new();
    for argument in command.get_arguments() {
        let Some(name) = argument.get_long() else { continue };
        let origin = if is_given(line, argument) {
            for value in line.get_raw(argument.get_id().as_str()).into_iter().flatten() {
                let mut given = OsString::from(format!("--{name}="));
                given.push(value);
                arguments.push(given);
            }
            Origin::Flag
        } else if let Some((place, from_file)) = file.settings.get(name) {
            arguments.extend_from_slice(from_file);
            Origin::File(format!("{shown}:{}", place.line))
        } else {
            Origin::Default
        };
        origins.push((argument, name, origin));
    }
    let matches = command.clone().try_get_matches_from(arguments)?;
    let effective = origins.into_iter().map(|(argument, name, origin)| {
        let values = matches.get_raw(argument.get_id().as_str()).into_iter().flatten();
        let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
        Effective { name: name.to_owned(), value: values.join(","), origin }
    });
    Ok((Flags::from_arg_matches(&matches)?, effective.collect()))
}

/// The file's faults in its order, and those between settings; those of the file have their place.
fn all_faults(line: &ArgMatches, file: File, between: Vec<Fault>, shown: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut in_file = file.faults;
    let wrong: Vec<String> = in_file.iter().map(|fault| fault.key.clone()).collect();
    let command = definition();
    for fault in between {
        // What is wrong by itself may be what the other one lacks.
        if [Some(fault.setting), fault.other]
            .iter()
            .flatten()
            .any(|name| wrong.iter().any(|key| key == name))
        {
            continue;
        }
        let is_flag = command
            .get_arguments()
            .any(|argument| argument.get_long() == Some(fault.setting) && is_given(line, argument));
        match file.settings.get(fault.setting) {
            Some((place, _)) if !is_flag => {
                let key = fault.setting.to_owned();
                in_file.push(FileFault { place: *place, key, text: fault.text });
            }
            _ => lines.push(fault.to_string()),
        }
    }
    in_file.sort();
    let of_file =
        in_file.into_iter().map(|FileFault { place: Place { line, column }, key, text }| {
            format!("{shown}:{line}:{column}: {key}: {text}")
        });
    of_file.chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use tempfile::TempDir;

    use super::*;
    use crate::config::RunFlags;

    #[derive(clap::Parser)]
    #[command(args_override_self = true)]
    struct Line {
        #[command(flatten)]
        flags: RunFlags,
    }

    /// What is loaded from a file `portico.yaml` and a command line; the directory's path is left
    /// out of faults.
    fn load(text: &str, line: &[&str]) -> (Result<Settings, String>, TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("portico.yaml");
        std::fs::write(&path, text).unwrap();
        let line = Line::command().get_matches_from([&["portico"], line].concat());
        let prefix = format!("{}/", directory.path().display());
        let settings = Settings::load(&line, Some(&path))
            .map_err(|faults| faults.join("\n").replace(&prefix, ""));
        (settings, directory)
    }

    #[track_caller]
    fn check_faults(text: &str, line: &[&str], expected: &[&str]) {
        let faults = load(text, line).0.map(|_| ()).unwrap_err();
        assert_eq!(faults.lines().collect::<Vec<_>>(), expected);
    }

    #[track_caller]
    fn check_fault(text: &str, expected: &str) {
        check_faults(text, &[], &[expected]);
    }

    #[test]
    fn the_file_wins_over_defaults_and_flags_over_the_file() {
        let text = "secure-port: 7443\nmax-requests-inflight: 7\nmax-connections: 8\n";
        let settings = load(text, &["--secure-port=1", "--v=2"]).0.unwrap();
        assert_eq!(settings.config.frontend.bind.port(), 1);
        assert_eq!(settings.config.proxy.requests_max, 7);
        assert_eq!(settings.config.proxy.mutating_requests_max, 200);
        let shown = |name: &str| {
            let found = settings.effective.iter().find(|setting| setting.name == name).unwrap();
            let origin = found.origin.to_string();
            let origin = origin.rsplit('/').next().unwrap();
            format!("{} {origin}", found.value)
        };
        assert_eq!(shown("secure-port"), "1 flag");
        assert_eq!(shown("max-requests-inflight"), "7 portico.yaml:2");
        assert_eq!(shown("max-mutating-requests-inflight"), "200 default");
        assert_eq!(shown("v"), "2 flag");
        assert_eq!(shown("client-ca-file"), " default");
        assert_eq!(shown("authorization-always-allow-paths"), "/healthz,/readyz,/livez default");
        assert_eq!(settings.effective.len(), definition().get_arguments().count());
    }

    #[test]
    fn lists_are_taken_as_a_whole_from_one_place() {
        let text = "requestheader-allowed-names: [a, b]\nauthorization-always-allow-paths: []\n\
                    vmodule:\n- proxy=4\n- auth=3\ntls-cipher-suites: []\n";
        let (settings, _directory) = load(text, &[]);
        let config = settings.unwrap().config;
        assert_eq!(config.auth.request_header.allowed_names, ["a", "b"]);
        assert!(config.auth.always_allow_paths.is_empty());
        assert_eq!(config.log.parts.len(), 2);
        let (settings, _directory) = load(text, &["--requestheader-allowed-names=c,d"]);
        assert_eq!(settings.unwrap().config.auth.request_header.allowed_names, ["c", "d"]);
        let line = ["--requestheader-allowed-names=c", "--requestheader-allowed-names", "d"];
        let (settings, _directory) = load(text, &line);
        assert_eq!(settings.unwrap().config.auth.request_header.allowed_names, ["c", "d"]);
    }

    #[test]
    fn every_kind_of_flag_survives_the_way_through_the_merge() {
        let line = ["--anonymous-auth=f", "--enable-aggregator-routing", "-v", "3"];
        let config = load("", &line).0.unwrap().config;
        assert_eq!(config.auth.anonymous, crate::auth::Anonymous::Refused);
        assert_eq!(config.routing, crate::model::endpoints::EndpointRouting::Endpoints);
        assert_eq!(config.log.verbosity, 3);
        let line = ["--authorization-always-allow-paths=", "--tls-sni-cert-key=a,b:c,d"];
        let config = load("enable-aggregator-routing: false\n", &line).0.unwrap().config;
        assert!(config.auth.always_allow_paths.is_empty());
        assert_eq!(config.tls.sni[0].names, ["c", "d"]);
        assert_eq!(config.routing, crate::model::endpoints::EndpointRouting::ClusterIp);
    }

    #[test]
    fn paths_are_relative_to_the_file_and_those_of_flags_to_the_working_directory() {
        let text = "client-ca-file: pki/ca.crt\ntoken-auth-file: /etc/tokens.csv\n\
                    tls-sni-cert-key:\n- a.crt,/b.key:foo.com\naccess-log: '-'\n";
        let (settings, directory) = load(text, &["--manifests=manifests"]);
        let config = settings.unwrap().config;
        let here = directory.path();
        assert_eq!(config.auth.client_ca_file, Some(here.join("pki/ca.crt")));
        assert_eq!(config.auth.token_file, Some("/etc/tokens.csv".into()));
        assert_eq!(config.tls.sni[0].certificate, here.join("a.crt"));
        assert_eq!(config.tls.sni[0].key, Path::new("/b.key"));
        assert_eq!(config.tls.sni[0].names, ["foo.com"]);
        assert_eq!(config.proxy.access_log.unwrap().file, None);
        assert_eq!(config.manifests, Some("manifests".into()));
        let (settings, directory) = load("access-log: access.log\n", &[]);
        let log = settings.unwrap().config.proxy.access_log.unwrap();
        assert_eq!(log.file, Some(directory.path().join("access.log")));
    }

    #[test]
    fn every_fault_has_a_line_with_its_place_in_the_files_order() {
        check_faults(
            "kind: PorticoConfiguration\n\
             tls-cert-file: server.crt\n\
             secure-prot: 6443\n\
             request-timeout: soon\n\
             \n\
             requestheader-allowed-names:\n\
             - front-proxy\n\
             - [nested]\n\
             max-requests-inflight:   -1\n",
            &["--proxy-client-key-file=x"],
            &[
                "portico.yaml:2:1: tls-cert-file: needs tls-private-key-file beside it",
                "portico.yaml:3:1: secure-prot: unknown setting, did you mean secure-port?",
                "portico.yaml:4:18: request-timeout: invalid duration \"soon\", expected for \
                 instance 60s or 1m30s",
                "portico.yaml:8:3: requestheader-allowed-names: expected a single value, found a \
                 list",
                "portico.yaml:9:26: max-requests-inflight: must not be negative",
                "--proxy-client-key-file: needs proxy-client-cert-file beside it",
            ],
        );
    }

    #[test]
    fn unknown_names_are_refused_with_the_one_that_was_meant() {
        for (key, meant) in [
            ("secure-prot", "secure-port"),
            ("securePort", "secure-port"),
            ("--secure-port", "secure-port"),
            ("tls_cert_file", "tls-cert-file"),
            ("clientCaFile", "client-ca-file"),
        ] {
            let expected =
                format!("portico.yaml:1:1: {key}: unknown setting, did you mean {meant}?");
            check_fault(&format!("{key}: x\n"), &expected);
        }
        for key in ["config", "help", "x=y", "überholt", "\"\"", "\"a\\nb\""] {
            let (settings, _directory) = load(&format!("{key}: x\n"), &[]);
            let faults = settings.map(|_| ()).unwrap_err();
            assert!(faults.contains("unknown setting"), "{key}: {faults}");
        }
    }

    #[test]
    fn wrong_types_are_refused_where_the_value_is() {
        check_fault(
            "secure-port: [1]\n",
            "portico.yaml:1:14: secure-port: expected a single value, found a list",
        );
        check_fault(
            "tls-cert-file:\n  name: x\n",
            "portico.yaml:2:3: tls-cert-file: expected a single value, found a map",
        );
        check_fault(
            "tls-cipher-suites: x\n",
            "portico.yaml:1:20: tls-cipher-suites: expected a list, found a single value",
        );
        check_fault(
            "secure-port:\n",
            "portico.yaml:1:12: secure-port: expected a single value, found nothing",
        );
        check_fault(
            "requestheader-allowed-names: ['a,b']\n",
            "portico.yaml:1:31: requestheader-allowed-names: \"a,b\" holds a comma, write each \
             value as an item of its own",
        );
        check_fault(
            "v: !!int 3\n",
            "portico.yaml:1:10: v: expected a single value, found a value with a tag",
        );
        check_fault("[a, b]\n", "portico.yaml:1:1: expected a map of settings, found a list");
        check_fault(
            "? [a]\n: b\n",
            "portico.yaml:1:3: key: expected a setting's name, found a list",
        );
    }

    #[test]
    fn wrong_values_are_refused_in_the_flags_words() {
        check_fault(
            "anonymous-auth: yes\n",
            "portico.yaml:1:17: anonymous-auth: expected true or false",
        );
        check_fault(
            "log-format: xml\n",
            "portico.yaml:1:13: log-format: \"xml\" is not one of text, json",
        );
        check_fault("client-ca-file: ''\n", "portico.yaml:1:17: client-ca-file: must not be empty");
        check_fault(
            "bind-address: here\n",
            "portico.yaml:1:15: bind-address: invalid IP address syntax",
        );
        check_fault(
            "secure-port: 70000\n",
            "portico.yaml:1:14: secure-port: the number is too large",
        );
        check_fault(
            "goaway-chance: 0.5\n",
            "portico.yaml:1:16: goaway-chance: must be from 0 to 0.02",
        );
    }

    #[test]
    fn a_setting_is_there_once_under_whichever_name() {
        check_fault("v: 1\nv: 2\n", "portico.yaml:2:1: v: already set on line 1");
        check_fault(
            "log-format: json\nlogging-format: json\n",
            "portico.yaml:2:1: logging-format: already set as log-format on line 1",
        );
        let settings = load("logging-format: json\n", &[]).0.unwrap();
        assert_eq!(settings.config.log.format, crate::config::LogFormat::Json);
    }

    #[test]
    fn the_files_type_is_optional_but_has_to_be_right() {
        let text = "apiVersion: portico.dev/v1alpha1\nkind: PorticoConfiguration\nv: 1\n";
        assert_eq!(load(text, &[]).0.unwrap().config.log.verbosity, 1);
        check_fault(
            "apiVersion: v1\n",
            "portico.yaml:1:13: apiVersion: expected portico.dev/v1alpha1",
        );
        check_fault("kind: [x]\n", "portico.yaml:1:7: kind: expected PorticoConfiguration");
    }

    #[test]
    fn a_fault_by_itself_is_not_reported_as_a_missing_companion_too() {
        check_fault(
            "tls-cert-file: [a]\ntls-private-key-file: b\n",
            "portico.yaml:1:16: tls-cert-file: expected a single value, found a list",
        );
    }

    #[test]
    fn a_flag_does_not_hide_what_is_wrong_in_the_file() {
        check_faults(
            "secure-port: x\n",
            &["--secure-port=1"],
            &["portico.yaml:1:14: secure-port: expected a whole number"],
        );
        // The file's pair is whole with the flag's help.
        let (settings, _directory) = load("tls-cert-file: a\n", &["--tls-private-key-file=b"]);
        assert!(settings.unwrap().config.serving_pair.is_some());
    }

    #[test]
    fn files_that_cannot_be_read_are_faults() {
        check_fault("a: 'x\n", "portico.yaml:1:4: unclosed quote");
        check_fault(
            "v: 1\n---\nv: 2\n",
            "portico.yaml:2:1: a second document begins here, one is expected",
        );
        let large = format!("# {}\n", "x".repeat(1024 * 1024));
        check_fault(&large, "portico.yaml: is larger than 1048576 bytes");
        let line = Line::command().get_matches_from(["portico"]);
        let missing = Settings::load(&line, Some(Path::new("/nowhere/portico.yaml")));
        let faults = missing.map(|_| ()).unwrap_err();
        assert!(faults[0].starts_with("/nowhere/portico.yaml: cannot be read: "), "{faults:?}");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("portico.yaml");
        std::fs::write(&path, b"v: 1\n# \xff\n").unwrap();
        let faults = Settings::load(&line, Some(&path)).map(|_| ()).unwrap_err();
        assert!(faults[0].ends_with("portico.yaml:2: is not UTF-8"), "{faults:?}");
    }

    #[test]
    fn an_empty_file_leaves_every_default() {
        for text in ["", "---\n", "# nothing yet\n"] {
            let settings = load(text, &[]).0.unwrap();
            assert!(settings.effective.iter().all(|setting| setting.origin == Origin::Default));
        }
    }
}
