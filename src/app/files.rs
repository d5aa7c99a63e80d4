//! What the flags name files for: read at the start, and followed while the program runs.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::ServerConfig;

use crate::auth::{self, GivenTrust, Tokens, Trust};
use crate::config::Config;
use crate::runtime::files::Files;
use crate::runtime::snapshot::{Publisher, View};
use crate::runtime::tasks::{AbortOnDrop, spawn_owned};
use crate::tls::client_chain::ClientAuthority;
use crate::tls::cluster_trust::ClusterTrust;
use crate::tls::expiry::{Kind, Watched};
use crate::tls::pki::serving_pair;
use crate::tls::server::{Shown, server_config};
use crate::tls::{KeyPair, follow_key_pair};
use crate::upstream::ApiServer;

/// What files say, each part as they have it now.
pub(super) struct FromFiles {
    /// Where others add theirs.
    pub(super) files: Files,
    /// What clients are shown.
    shown: Shown,
    /// By what extension API servers know portico.
    pub(super) proxy_client: Option<View<KeyPair>>,
    /// Who vouches for callers.
    trust: GivenTrust,
    /// The tokens of callers.
    tokens: View<Tokens>,
}

impl FromFiles {
    /// Reads them all.
    pub(super) fn read(config: &Config) -> anyhow::Result<Self> {
        let mut followed = Files::default();
        let files = &mut followed;
        let tokens = config.auth.token_file.as_deref().map(|file| Tokens::follow(files, file));
        Ok(Self {
            tokens: tokens.transpose()?.unwrap_or_else(|| View::fixed(Tokens::default())),
            shown: shown(config, files)?,
            proxy_client: proxy_client_pair(config, files)?,
            trust: GivenTrust::read(&config.auth, files)?,
            files: followed,
        })
    }

    /// What the program is to see of them, of the kubeconfig of `core`, and of what the `cluster` says,
    /// and the tasks that follow all that.
    pub(super) fn follow(
        self,
        config: &Config,
        core: Option<Arc<ApiServer>>,
        cluster: Option<View<ClusterTrust>>,
    ) -> anyhow::Result<(Followed, Vec<AbortOnDrop>)> {
        let certificates = InUse::new(config, &self, core);
        let (publisher, tls) = Publisher::new(server_config(&config.tls, &self.shown.now())?);
        let shown = self.shown.follow(config.tls.clone(), publisher);
        let (publisher, in_use) = Publisher::new(certificates.now());
        let certificates = certificates.publish(self.files.changes(), cluster.clone(), publisher);
        let said = cluster.as_ref().map(View::load);
        let (publisher, trust) = Publisher::new(self.trust.trust(said.as_deref(), 0));
        let trusted = auth::follow(self.trust, cluster, publisher);
        let tasks = vec![
            spawn_owned("serving-certificates", shown),
            spawn_owned("certificates-in-use", certificates),
            spawn_owned("trust", trusted),
            spawn_owned("files", self.files.follow()),
        ];
        Ok((Followed { tls, in_use, trust, tokens: self.tokens }, tasks))
    }
}

/// What changes with files and the cluster.
pub(super) struct Followed {
    /// The configuration for the next handshake with a client.
    pub(super) tls: View<ServerConfig>,
    /// The certificates whose end is to be seen coming.
    pub(super) in_use: View<Vec<Watched>>,
    /// Who vouches for callers.
    pub(super) trust: View<Trust>,
    /// The tokens of callers.
    pub(super) tokens: View<Tokens>,
}

fn shown(config: &Config, files: &mut Files) -> anyhow::Result<Shown> {
    let (what, (certificate, key)) = match &config.serving_pair {
        Some(pair) => ("serving certificate", pair.clone()),
        None => ("self-signed serving certificate", self_signed(config)?),
    };
    let pair = follow_key_pair(files, what, &certificate, &key).context(what)?;
    let place = certificate.display().to_string();
    Shown::read(pair, place, &config.tls, files).context("certificate for a server name")
}

fn proxy_client_pair(config: &Config, files: &mut Files) -> anyhow::Result<Option<View<KeyPair>>> {
    let Some((certificate, key)) = &config.proxy_client_pair else {
        tracing::warn!(
            "no proxy-client certificate given, extension API servers will not believe who is calling"
        );
        return Ok(None);
    };
    let what = "proxy-client certificate";
    Ok(Some(follow_key_pair(files, what, certificate, key).context(what)?))
}

fn self_signed(config: &Config) -> anyhow::Result<(PathBuf, PathBuf)> {
    let ip = config.frontend.bind.ip();
    let alternates = if ip.is_unspecified() { Vec::new() } else { vec![ip] };
    let pair = serving_pair(&config.cert_dir, &alternates)?;
    tracing::info!(directory = %config.cert_dir.display(), "using self-signed serving certificate");
    Ok(pair)
}

/// The certificates from files whose end is to be seen coming.
struct InUse {
    shown: Shown,
    /// With where it is from.
    proxy_client: Option<(View<KeyPair>, String)>,
    /// With their names and where they are from.
    authorities: Vec<(&'static str, View<ClientAuthority>, String)>,
    /// Where the kubeconfig's is shown.
    core: Option<Arc<ApiServer>>,
}

impl InUse {
    pub(super) fn new(config: &Config, read: &FromFiles, core: Option<Arc<ApiServer>>) -> Self {
        let place = |file: &PathBuf| file.display().to_string();
        let pair_place = config.proxy_client_pair.as_ref().map(|(file, _)| place(file));
        let (auth, trust) = (&config.auth, &read.trust);
        let given = [
            ("client-ca", trust.client(), &auth.client_ca_file),
            ("requestheader-client-ca", trust.request_header(), &auth.requestheader_client_ca_file),
        ];
        let authorities = given.into_iter().filter_map(|(name, authority, file)| {
            Some((name, authority?.clone(), place(file.as_ref()?)))
        });
        Self {
            shown: read.shown.clone(),
            proxy_client: read.proxy_client.clone().zip(pair_place),
            authorities: authorities.collect(),
            core,
        }
    }

    fn now(&self) -> Vec<Watched> {
        let mut all = self.shown.now().watched();
        if let Some((pair, place)) = &self.proxy_client {
            let chain = &pair.load().chain;
            all.push(Watched::new("proxy-client", place, Kind::Chain, chain));
        }
        for (name, authority, place) in &self.authorities {
            let authority = authority.load();
            all.push(Watched::new(name, place, Kind::Authorities, authority.certificates()));
        }
        let shown = |core: &Arc<ApiServer>| {
            let (access, pair) = (core.access(), core.identity()?);
            Some(Watched::new("kubeconfig-client", access.place(), Kind::Chain, &pair.chain))
        };
        all.extend(self.core.as_ref().and_then(shown));
        all
    }

    /// Publishes these with what the cluster publishes, whenever either changes.
    async fn publish(
        self,
        mut files: View<u64>,
        cluster: Option<View<ClusterTrust>>,
        publisher: Publisher<Vec<Watched>>,
    ) {
        let mut cluster = cluster.unwrap_or_else(|| View::fixed(ClusterTrust::default()));
        let (mut files_change, mut cluster_changes) = (true, true);
        while files_change || cluster_changes {
            publisher.publish(self.now().into_iter().chain(cluster.load().watched()).collect());
            tokio::select! {
                goes_on = files.changed(), if files_change => files_change = goes_on,
                goes_on = cluster.changed(), if cluster_changes => cluster_changes = goes_on,
            }
        }
    }
}
