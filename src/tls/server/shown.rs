//! The certificates that are shown to clients, as their files have them now.

use futures_util::future::select_all;
use rustls::ServerConfig;

use super::{Certificates, Settings, SniPair, server_config};
use crate::runtime::files::Files;
use crate::runtime::snapshot::{Publisher, View};
use crate::tls::{KeyPair, TlsError, follow_key_pair};

/// Where each pair is from, and what it is now.
#[derive(Clone, Debug)]
pub struct Shown {
    default: (View<KeyPair>, String),
    sni: Vec<(View<KeyPair>, SniPair)>,
}

impl Shown {
    /// Reads the pairs of `settings`, which are followed with `files`, and takes `default`, which is
    /// from `place`.
    pub fn read(
        default: View<KeyPair>,
        place: String,
        settings: &Settings,
        files: &mut Files,
    ) -> Result<Self, TlsError> {
        let mut read = |pair: &SniPair| {
            let followed = follow_key_pair(files, "sni certificate", &pair.certificate, &pair.key)?;
            Ok((followed, pair.clone()))
        };
        let sni = settings.sni.iter().map(&mut read).collect::<Result<_, TlsError>>()?;
        Ok(Self { default: (default, place), sni })
    }

    /// The pairs as they are now.
    pub fn now(&self) -> Certificates {
        let (pair, place) = &self.default;
        let sni = self.sni.iter().map(|(pair, setting)| (pair.load(), setting.clone()));
        Certificates { default: (pair.load(), place.clone()), sni: sni.collect() }
    }

    /// Waits until one of them is another.
    async fn changed(&mut self) {
        let views = self.sni.iter_mut().map(|(pair, _)| pair).chain([&mut self.default.0]);
        let waiting = views.map(|view| {
            Box::pin(async {
                if !view.changed().await {
                    std::future::pending::<()>().await;
                }
            })
        });
        select_all(waiting).await;
    }

    /// Publishes a configuration for the next handshakes whenever a pair is another, for ever.
    pub async fn follow(mut self, settings: Settings, publisher: Publisher<ServerConfig>) {
        loop {
            self.changed().await;
            match server_config(&settings, &self.now()) {
                Ok(config) => publisher.publish(config),
                Err(error) => {
                    tracing::error!(%error, "certificates cannot be shown, the last ones stay");
                }
            }
        }
    }
}
