//! What is measured: one API server, or two that are compared, and their processes.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::{Args, ValueHint};

use crate::cli::target::{self, Overrides, from_kubeconfig, server_url};

/// The flags that name the measured server.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Target")]
#[group(id = "target", required = true, multiple = true, args = ["kubeconfig", "server"])]
pub(super) struct Flags {
    #[command(flatten)]
    api: target::Flags,
    /// The server's process, if it runs on this machine: its CPU time and memory are measured too.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
}

/// The flags of the second target, which is compared with the first.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Second target")]
pub(super) struct VsFlags {
    /// Compare with a second target: a URL, or a kubeconfig file. A URL is asked with the first
    /// target's credentials where the flags below give none.
    #[arg(long, value_name = "URL|FILE", value_hint = ValueHint::AnyPath)]
    vs: Option<String>,
    /// The second target's context.
    #[arg(long, value_name = "NAME", requires = "vs")]
    vs_context: Option<String>,
    /// A file with the authorities that signed the second target's certificate.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "vs")]
    vs_certificate_authority: Option<PathBuf>,
    /// Believe any certificate of the second target's.
    #[arg(long, requires = "vs")]
    vs_insecure_skip_tls_verify: bool,
    /// The certificate to show to the second target.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires_all = ["vs", "vs_client_key"])]
    vs_client_certificate: Option<PathBuf>,
    /// The certificate's key.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "vs_client_certificate")]
    vs_client_key: Option<PathBuf>,
    /// The bearer token for the second target.
    #[arg(long, value_name = "TOKEN", requires = "vs", conflicts_with = "vs_token_file")]
    vs_token: Option<String>,
    /// A file with the bearer token for the second target.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "vs")]
    vs_token_file: Option<PathBuf>,
    /// The second target's process, if it runs on this machine.
    #[arg(long, value_name = "PID", requires = "vs")]
    vs_pid: Option<u32>,
}

/// A server to be measured.
#[derive(Clone)]
pub(super) struct Target {
    /// The server.
    pub(super) api: target::Target,
    /// Its process.
    pub(super) pid: Option<u32>,
}

impl Flags {
    /// The target that the flags name.
    pub(super) async fn target(&self) -> anyhow::Result<Target> {
        Ok(Target { api: self.api.target().await?, pid: self.pid })
    }
}

impl VsFlags {
    /// The second target, if one is named.
    pub(super) async fn target(&self, first: &Target) -> anyhow::Result<Option<Target>> {
        let Some(vs) = &self.vs else { return Ok(None) };
        let mut config = if vs.contains("://") {
            if self.vs_context.is_some() {
                bail!("--vs-context: only a kubeconfig has contexts, and --vs is a URL");
            }
            let mut config = first.api.config();
            config.cluster_url = server_url(vs)?;
            config.tls_server_name = None;
            config
        } else {
            from_kubeconfig(Path::new(vs), self.vs_context.clone()).await?
        };
        let overrides = Overrides {
            certificate_authority: self.vs_certificate_authority.as_deref(),
            insecure_skip_tls_verify: self.vs_insecure_skip_tls_verify,
            pair: self.vs_client_certificate.as_deref().zip(self.vs_client_key.as_deref()),
            token: self.vs_token.as_deref(),
            token_file: self.vs_token_file.as_deref(),
        };
        overrides.apply(&mut config)?;
        Ok(Some(Target { api: target::Target::new(config)?, pid: self.vs_pid }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        first: Flags,
        #[command(flatten)]
        vs: VsFlags,
    }

    fn line(flags: &[&str]) -> Result<Line, String> {
        let flags = [&["bench"], flags].concat();
        Line::try_parse_from(flags).map_err(|error| error.to_string())
    }

    fn file(directory: &tempfile::TempDir, name: &str, text: &str) -> String {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    const KUBECONFIG: &str = "
clusters:
- {name: c, cluster: {server: 'https://one.example.com:6443/prefix/', insecure-skip-tls-verify: true}}
- {name: p, cluster: {server: 'https://two.example.com', proxy-url: 'http://proxy:3128'}}
users:
- {name: u, user: {token: from-the-file, as: someone}}
contexts:
- {name: c, context: {cluster: c, user: u, namespace: team}}
- {name: p, context: {cluster: p, user: u}}
current-context: c
";

    #[tokio::test]
    async fn a_kubeconfig_gives_server_and_credentials() {
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = file(&directory, "kubeconfig", KUBECONFIG);
        let line = line(&["--kubeconfig", &kubeconfig]).unwrap();
        let target = line.first.target().await.unwrap();
        assert_eq!(target.api.url, "https://one.example.com:6443/prefix");
        let endpoint = target.api.endpoint().unwrap();
        assert_eq!((endpoint.host.as_str(), endpoint.port), ("one.example.com", 6443));
        assert_eq!(endpoint.prefix, "/prefix");
        let headers = target.api.headers().await.unwrap();
        assert_eq!(headers["authorization"], "Bearer from-the-file");
        assert_eq!(headers["impersonate-user"], "someone");
        assert!(line.vs.target(&target).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn flags_win_over_the_kubeconfig_and_a_second_url_takes_the_first_ones_credentials() {
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = file(&directory, "kubeconfig", KUBECONFIG);
        let token = file(&directory, "token", "from-a-flag");
        let flags = ["--kubeconfig", &kubeconfig, "--token-file", &token, "--server=https://[::1]"];
        let line = line(&[&flags[..], &["--vs=http://127.0.0.1:8001", "--vs-pid=7"]].concat());
        let line = line.unwrap();
        let target = line.first.target().await.unwrap();
        let endpoint = target.api.endpoint().unwrap();
        assert_eq!((endpoint.host.as_str(), endpoint.port), ("::1", 443));
        assert_eq!(target.api.headers().await.unwrap()["authorization"], "Bearer from-a-flag");
        let second = line.vs.target(&target).await.unwrap().unwrap();
        assert_eq!((second.api.url.as_str(), second.pid), ("http://127.0.0.1:8001", Some(7)));
        assert!(second.api.endpoint().unwrap().tls.is_none());
        assert_eq!(second.api.headers().await.unwrap()["authorization"], "Bearer from-a-flag");
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_plugin_that_fetches_a_token_is_run() {
        let directory = tempfile::tempdir().unwrap();
        let credential = "{\"apiVersion\":\"client.authentication.k8s.io/v1\",\
                          \"kind\":\"ExecCredential\",\"status\":{\"token\":\"fetched\"}}";
        let answer = file(&directory, "credential.json", credential);
        let text = format!(
            "clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1'}}}}]\n\
             users: [{{name: u, user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, \
             command: cat, args: ['{answer}']}}}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\ncurrent-context: c\n"
        );
        let kubeconfig = file(&directory, "kubeconfig", &text);
        let target = line(&["--kubeconfig", &kubeconfig]).unwrap().first.target().await.unwrap();
        assert_eq!(target.api.headers().await.unwrap()["authorization"], "Bearer fetched");
    }

    #[tokio::test]
    async fn what_cannot_be_a_target_is_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = file(&directory, "kubeconfig", KUBECONFIG);
        for (flags, reason) in [
            (vec!["--server=127.0.0.1:6443"], "no URL of a server"),
            (vec!["--server=https://me:secret@host"], "credentials in the server's URL"),
            (vec!["--kubeconfig=/nowhere"], "kubeconfig /nowhere cannot be used"),
            (vec!["--kubeconfig", &kubeconfig, "--context=x"], "cannot be used"),
            (vec!["--kubeconfig", &kubeconfig, "--context=p"], "proxy-url"),
            (vec!["--server=https://h", "--certificate-authority=/nowhere"], "/nowhere"),
        ] {
            let error = match line(&flags).unwrap().first.target().await {
                Ok(_) => panic!("{flags:?} was taken"),
                Err(error) => format!("{error:#}"),
            };
            assert!(error.contains(reason) && !error.contains("secret"), "{flags:?}: {error}");
        }
        assert!(line(&[]).unwrap_err().contains("--kubeconfig"));
        assert!(line(&["--server=https://h", "--vs-pid=1"]).unwrap_err().contains("--vs"));
    }
}
