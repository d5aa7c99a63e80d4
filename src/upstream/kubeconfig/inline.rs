//! What a kubeconfig says of its cluster and its user, with what its files hold in the place of their
//! names.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use kube::config::{AuthInfo, Cluster, Kubeconfig};
use serde_json::Value;

use super::{Credentials, KubeconfigError, Source};
use crate::runtime::files::Reading;
use crate::tls::{self, KeyPair};

/// Puts what files hold in the place of their names.
pub(super) struct Inline<'a> {
    pub(super) source: &'a Source,
    /// Where names begin that are relative.
    pub(super) base: &'a Path,
    pub(super) reading: &'a mut Reading,
}

impl Inline<'_> {
    /// Gives the authorities in PEM.
    pub(super) fn authority(&mut self, cluster: &mut Cluster) -> Result<Vec<u8>, KubeconfigError> {
        let file = cluster.certificate_authority.take();
        let data = cluster.certificate_authority_data.take();
        let found = self.bytes("certificate-authority-data", data.as_deref(), file.as_deref())?;
        let Some(pem) = found else { return Ok(Vec::new()) };
        // None at all would be taken for the system's.
        tls::certificates("certificate authority", &pem)
            .map_err(|error| self.source.error(&error.to_string()))?;
        cluster.certificate_authority_data = Some(STANDARD.encode(&pem));
        Ok(pem)
    }

    pub(super) fn user(&mut self, user: &mut AuthInfo) -> Result<(), KubeconfigError> {
        let (file, data) = (user.client_certificate.take(), user.client_certificate_data.take());
        let certificate =
            self.bytes("client-certificate-data", data.as_deref(), file.as_deref())?;
        let (file, data) = (user.client_key.take(), secret(user, "client-key-data"));
        let key = self.bytes("client-key-data", data.as_deref(), file.as_deref())?;
        let token = match (secret(user, "token"), user.token_file.take()) {
            (None, Some(file)) => {
                let file = self.base.join(file);
                Some(token_of(&file, &self.read(&file)?).map_err(|text| self.source.error(&text))?)
            }
            (token, _) => token,
        };
        let encoded = |bytes: Option<Vec<u8>>| bytes.map(|bytes| STANDARD.encode(bytes));
        user.client_certificate_data = encoded(certificate);
        let secrets = auth_info(&[("client-key-data", encoded(key)), ("token", token)])
            .map_err(|problem| self.source.error(&problem))?;
        (user.client_key_data, user.token) = (secrets.client_key_data, secrets.token);
        // One with a slash in it is a file's, others are looked for.
        if let Some(command) = user.exec.as_mut().and_then(|exec| exec.command.as_mut())
            && command.contains('/')
        {
            *command = self.base.join(&*command).display().to_string();
        }
        Ok(())
    }

    /// What stands in the kubeconfig in base64, or else in the file that it names.
    fn bytes(
        &mut self,
        key: &str,
        data: Option<&str>,
        file: Option<&str>,
    ) -> Result<Option<Vec<u8>>, KubeconfigError> {
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            let decoded = STANDARD.decode(data.trim()).map(Some);
            return decoded.map_err(|error| self.source.error(&format!("{key}: {error}")));
        }
        let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(None) };
        self.read(&self.base.join(file)).map(Some)
    }

    fn read(&mut self, file: &Path) -> Result<Vec<u8>, KubeconfigError> {
        self.reading.read(file).map_err(|error| self.source.error(&error.to_string()))
    }
}

/// The cluster and the user of the current context.
pub(super) fn current(
    kubeconfig: &mut Kubeconfig,
) -> (Option<&mut Cluster>, Option<&mut AuthInfo>) {
    let Kubeconfig { contexts, clusters, auth_infos, current_context, .. } = kubeconfig;
    let context = contexts.iter().find(|named| Some(&named.name) == current_context.as_ref());
    let Some(context) = context.and_then(|named| named.context.as_ref()) else {
        return (None, None);
    };
    let cluster = clusters.iter_mut().find(|named| named.name == context.cluster);
    let user = auth_infos.iter_mut().find(|named| Some(&named.name) == context.user.as_ref());
    (
        cluster.and_then(|named| named.cluster.as_mut()),
        user.and_then(|named| named.auth_info.as_mut()),
    )
}

/// The certificate that portico shows.
pub(super) fn identity(user: &AuthInfo) -> Result<Option<KeyPair>, String> {
    let decoded = |data: Option<String>| data.map(|data| STANDARD.decode(data)).transpose();
    let both = decoded(user.client_certificate_data.clone())
        .and_then(|certificate| Ok((certificate, decoded(secret(user, "client-key-data"))?)));
    match both.map_err(|error| error.to_string())? {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => {
            let pair =
                (("client certificate of user", &*certificate), ("client key of user", &*key));
            tls::key_pair(pair.0, pair.1).map(Some).map_err(|error| error.to_string())
        }
        _ => Err("a client certificate needs a client key, and a key a certificate".to_owned()),
    }
}

/// In the order in which Kubernetes' clients look.
pub(super) fn credentials(user: &AuthInfo) -> Result<Credentials, String> {
    if user.auth_provider.is_some() {
        return Ok(Credentials::Plugin(Box::new(user.clone())));
    }
    let header = match (&user.username, secret(user, "password"), secret(user, "token")) {
        (Some(name), Some(password), _) => {
            format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
        }
        (_, _, Some(token)) => format!("Bearer {token}"),
        _ if user.exec.is_some() => return Ok(Credentials::Plugin(Box::new(user.clone()))),
        _ => return Ok(Credentials::Given(None)),
    };
    let mut header = HeaderValue::try_from(header)
        .map_err(|error| format!("what stands there as token or password is none: {error}"))?;
    header.set_sensitive(true);
    Ok(Credentials::Given(Some(header)))
}

/// The token in a file, whose end of line is not part of it.
pub(super) fn token_of(file: &Path, text: &[u8]) -> Result<String, String> {
    let text = str::from_utf8(text).map(str::trim).unwrap_or_default();
    if text.is_empty() || HeaderValue::try_from(text).is_err() {
        return Err(format!("{} holds no token", file.display()));
    }
    Ok(text.to_owned())
}

/// A secret. `kube` hides them behind a type of a crate that only it needs; written out, they can be
/// read.
pub(super) fn secret(user: &AuthInfo, name: &str) -> Option<String> {
    let written = serde_json::to_value(user).ok()?;
    let secret = written.get(name)?.as_str()?;
    (!secret.is_empty()).then(|| secret.to_owned())
}

/// A user with these secrets, which `kube` alone can put in their places.
pub(super) fn auth_info(secrets: &[(&str, Option<String>)]) -> Result<AuthInfo, String> {
    let given = secrets
        .iter()
        .filter_map(|(name, secret)| Some(((*name).to_owned(), Value::String(secret.clone()?))));
    serde_json::from_value(Value::Object(given.collect())).map_err(|error| error.to_string())
}
