//! Whom a cluster's servers believe about their callers: what kube-apiserver publishes in the
//! ConfigMap `kube-system/extension-apiserver-authentication`.
//!
//! Read as extension API servers read it (`apiserver/pkg/server/options/authentication.go`): a part
//! that is missing or broken leaves that part as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, UnixTime};

use super::client_chain::{ClientAuthority, leaf};
use super::expiry::{Kind, Watched};
use super::{TlsError, certificates, pem};

/// The namespace of the ConfigMap.
pub const NAMESPACE: &str = "kube-system";
/// The name of the ConfigMap.
pub const NAME: &str = "extension-apiserver-authentication";
/// The key with the authorities of front proxies.
pub const REQUEST_HEADER_CA: &str = "requestheader-client-ca-file";
/// The key with the authorities of clients.
const CLIENT_CA: &str = "client-ca-file";
const ALLOWED_NAMES: &str = "requestheader-allowed-names";
const USERNAME_HEADERS: &str = "requestheader-username-headers";
const UID_HEADERS: &str = "requestheader-uid-headers";
const GROUP_HEADERS: &str = "requestheader-group-headers";
const EXTRA_PREFIXES: &str = "requestheader-extra-headers-prefix";
/// They count together.
const LISTS: [&str; 5] =
    [ALLOWED_NAMES, USERNAME_HEADERS, UID_HEADERS, GROUP_HEADERS, EXTRA_PREFIXES];

/// Whom the cluster's servers believe.
#[derive(Clone, Debug, Default)]
pub struct ClusterTrust {
    /// True from the first look at the cluster on, or at what was kept of it.
    pub known: bool,
    /// Vouches for client certificates.
    pub client: Option<Authorities>,
    /// Vouches for front proxies.
    pub request_header: Option<Authorities>,
    /// Who may be a front proxy, and in which headers it says who is calling.
    pub front_proxies: FrontProxies,
    /// What counts of what was read, so that it can be kept and read again.
    pub data: BTreeMap<String, String>,
    /// Whether these servers believe portico's own certificate about callers.
    pub believes_portico: Belief,
}

/// Authorities that vouch for somebody.
#[derive(Clone, Debug)]
pub struct Authorities {
    /// As they were published.
    pub pem: Arc<str>,
    /// What verifies chains.
    pub authority: Arc<ClientAuthority>,
}

/// The `requestheader-*` lists: which front proxies are believed, and in which headers they say who
/// is calling. By default they are empty, as in a cluster that names none, and nobody is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrontProxies {
    /// Common names of front proxies; empty for any that the authorities vouch for.
    pub allowed_names: Vec<String>,
    /// Headers with the user name; the first that is not empty counts.
    pub username_headers: Vec<String>,
    /// Headers with the uid; the first that is not empty counts.
    pub uid_headers: Vec<String>,
    /// Headers with groups; all of them count.
    pub group_headers: Vec<String>,
    /// Prefixes of headers with extra keys.
    pub extra_prefixes: Vec<String>,
}

/// Whether a certificate lets its holder speak for callers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Belief {
    /// Nothing was read from the cluster so far.
    #[default]
    Unknown,
    /// It does.
    Believed,
    /// It does not, with the reason.
    Refused(String),
}

impl ClusterTrust {
    /// What the ConfigMap says, with `self` in place of what is missing or broken, and what is
    /// broken. `chain` is portico's own certificate.
    pub fn read(
        &self,
        data: &BTreeMap<String, String>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> (Self, Vec<TlsError>) {
        let mut faults = Vec::new();
        let mut next = Self { known: true, ..self.clone() };
        for (key, slot) in
            [(CLIENT_CA, &mut next.client), (REQUEST_HEADER_CA, &mut next.request_header)]
        {
            match authorities(key, data, slot.as_ref()) {
                Ok(Some(read)) => {
                    next.data.insert(key.to_owned(), read.pem.to_string());
                    *slot = Some(read);
                }
                Ok(None) => {}
                Err(fault) => faults.push(fault),
            }
        }
        match FrontProxies::read(data) {
            Ok(front_proxies) => {
                next.front_proxies = front_proxies;
                for key in LISTS {
                    next.data.remove(key);
                }
                let lists = data.iter().filter(|(key, _)| LISTS.contains(&key.as_str()));
                next.data.extend(lists.map(|(key, text)| (key.clone(), text.clone())));
            }
            Err(fault) => faults.push(fault),
        }
        next.believes_portico = next.belief(chain, now);
        (next, faults)
    }

    /// The same where there is no ConfigMap: what was read before stays.
    #[must_use]
    pub fn missing(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Self {
        let mut next = Self { known: true, ..self.clone() };
        next.believes_portico = next.belief(chain, now);
        next
    }

    /// The authorities, whose end is to be seen coming.
    pub fn watched(&self) -> impl Iterator<Item = Watched> {
        let published = [
            ("cluster-client-ca", CLIENT_CA, &self.client),
            ("cluster-requestheader-client-ca", REQUEST_HEADER_CA, &self.request_header),
        ];
        published.into_iter().filter_map(|(name, key, authorities)| {
            let read = authorities.as_ref()?.authority.certificates();
            Some(Watched::new(name, &place(key), Kind::Authorities, read))
        })
    }

    /// Whether the cluster's servers believe who shows this chain about callers.
    pub fn belief(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Belief {
        let refused = |reason: String| Belief::Refused(reason);
        let Some(first) = chain.first() else {
            return refused("there is no proxy-client certificate".to_owned());
        };
        let Some(authorities) = &self.request_header else {
            return refused("the cluster names no authority of front proxies".to_owned());
        };
        if let Err(error) = authorities.authority.verify(chain, now) {
            let text = format!("the cluster's authorities do not vouch for it: {error}");
            return refused(text);
        }
        let name = match leaf(first) {
            Ok(leaf) => leaf.common_name,
            Err(error) => return refused(error),
        };
        let allowed = &self.front_proxies.allowed_names;
        if allowed.is_empty() || allowed.contains(&name) {
            return Belief::Believed;
        }
        refused(format!("its name {name:?} is not among the allowed ones: {}", allowed.join(", ")))
    }
}

impl FrontProxies {
    /// What the flags say by default (`--requestheader-*`).
    pub fn of_flags() -> Self {
        let one = |name: &str| vec![name.to_owned()];
        Self {
            allowed_names: Vec::new(),
            username_headers: one("x-remote-user"),
            uid_headers: Vec::new(),
            group_headers: one("x-remote-group"),
            extra_prefixes: one("x-remote-extra-"),
        }
    }

    /// All five lists, or the fault of the first that is broken: they count together.
    fn read(data: &BTreeMap<String, String>) -> Result<Self, TlsError> {
        let list = |key: &str| match data.get(key).map(String::as_str) {
            None | Some("") => Ok(Vec::new()),
            // Go reads null as an empty list.
            Some(text) => match serde_json::from_str::<Option<Vec<String>>>(text) {
                Ok(values) => Ok(values.unwrap_or_default()),
                Err(error) => Err(TlsError::Pem {
                    place: place(key),
                    problem: format!("not a JSON list of texts: {error}"),
                }),
            },
        };
        Ok(Self {
            allowed_names: list(ALLOWED_NAMES)?,
            username_headers: list(USERNAME_HEADERS)?,
            uid_headers: list(UID_HEADERS)?,
            group_headers: list(GROUP_HEADERS)?,
            extra_prefixes: list(EXTRA_PREFIXES)?,
        })
    }
}

/// What a key says; none when it is not there. What did not change is not parsed again.
fn authorities(
    key: &str,
    data: &BTreeMap<String, String>,
    before: Option<&Authorities>,
) -> Result<Option<Authorities>, TlsError> {
    let Some(pem) = data.get(key).filter(|pem| !pem.is_empty()) else { return Ok(None) };
    if let Some(same) = before.filter(|before| *before.pem == **pem) {
        return Ok(Some(same.clone()));
    }
    let authority = ClientAuthority::new(&place(key), certificates(&place(key), pem.as_bytes())?)?;
    Ok(Some(Authorities { pem: pem.as_str().into(), authority: Arc::new(authority) }))
}

fn place(key: &str) -> String {
    format!("{NAMESPACE}/{NAME} {key}")
}

/// The published authorities with ours behind them, as upstream's controller merges
/// (`clusterauthenticationtrust`); none when ours are among them. What cannot be read is an error and
/// never replaced.
pub fn with_authorities(
    published: Option<&str>,
    ours: &[CertificateDer<'_>],
) -> Result<Option<String>, TlsError> {
    let published = published.unwrap_or_default();
    let mut known = BTreeSet::new();
    if !published.trim().is_empty() {
        let read = certificates(&place(REQUEST_HEADER_CA), published.as_bytes())?;
        known.extend(read.iter().map(|certificate| certificate.to_vec()));
    }
    let mut text = published.to_owned();
    let mut added = false;
    for certificate in ours {
        if known.insert(certificate.to_vec()) {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&pem(certificate));
            added = true;
        }
    }
    Ok(added.then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::pki::{Authority, Purpose};

    const NOT_LISTS: [&str; 3] = ["x", "{}", "[1]"];

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn read(last: &ClusterTrust, pairs: &[(&str, &str)]) -> (ClusterTrust, Vec<String>) {
        let (trust, faults) = last.read(&data(pairs), &[], UnixTime::now());
        (trust, faults.iter().map(ToString::to_string).collect())
    }

    /// After a restart the same is in force.
    #[track_caller]
    fn check_kept(trust: &ClusterTrust) {
        let (again, faults) = ClusterTrust::default().read(&trust.data, &[], UnixTime::now());
        assert!(faults.is_empty(), "{faults:?}");
        let pem = |it: &Option<Authorities>| it.as_ref().map(|it| Arc::clone(&it.pem));
        assert_eq!(pem(&again.client), pem(&trust.client));
        assert_eq!(pem(&again.request_header), pem(&trust.request_header));
        assert_eq!(again.front_proxies, trust.front_proxies);
    }

    #[test]
    fn the_lists_are_json_and_a_missing_one_is_empty() {
        let (trust, faults) = read(
            &ClusterTrust::default(),
            &[
                (ALLOWED_NAMES, "[\"a\",\"b\"]"),
                (USERNAME_HEADERS, "[\"X-Remote-User\"]"),
                (UID_HEADERS, "[]"),
                (GROUP_HEADERS, ""),
                (EXTRA_PREFIXES, "null"),
            ],
        );
        assert!(faults.is_empty() && trust.known);
        assert_eq!(trust.front_proxies.allowed_names, ["a", "b"]);
        assert_eq!(trust.front_proxies.username_headers, ["X-Remote-User"]);
        assert!(trust.front_proxies.uid_headers.is_empty());
        assert!(trust.client.is_none() && trust.request_header.is_none());
    }

    #[test]
    fn what_is_broken_or_missing_stays_as_it_was_and_is_named() {
        let pem = Authority::new("one").unwrap().certificate();
        let good = [
            (CLIENT_CA, pem.as_str()),
            (REQUEST_HEADER_CA, pem.as_str()),
            (ALLOWED_NAMES, "[\"a\"]"),
        ];
        let (first, faults) = read(&ClusterTrust::default(), &good);
        assert!(faults.is_empty());
        for text in NOT_LISTS {
            let (next, faults) = read(&first, &[(ALLOWED_NAMES, text)]);
            assert!(faults[0].contains(ALLOWED_NAMES), "{faults:?}");
            assert_eq!(next.front_proxies.allowed_names, ["a"]);
            assert!(next.client.is_some() && next.request_header.is_some());
            check_kept(&next);
        }
        for text in ["nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let (next, faults) = read(&first, &[(CLIENT_CA, text), (UID_HEADERS, "[\"u\"]")]);
            assert!(faults[0].contains(CLIENT_CA), "{faults:?}");
            assert_eq!(*next.client.as_ref().unwrap().pem, *pem);
            assert_eq!(next.front_proxies.uid_headers, ["u"]);
            assert!(next.front_proxies.allowed_names.is_empty());
            check_kept(&next);
        }
        check_kept(&read(&first, &[]).0);
    }

    #[test]
    fn portico_is_believed_when_its_chain_and_its_name_are() {
        let (ours, other) = (Authority::new("ours").unwrap(), Authority::new("other").unwrap());
        let chain = ours.sign("portico", Purpose::Client(&[])).unwrap().key_pair().unwrap().chain;
        let belief = |authority: &Authority, names: &str| {
            let pem = authority.certificate();
            let pairs = [(REQUEST_HEADER_CA, pem.as_str()), (ALLOWED_NAMES, names)];
            let trust = ClusterTrust::default().read(&data(&pairs), &chain, UnixTime::now()).0;
            assert_eq!(trust.belief(&[], UnixTime::now()), {
                Belief::Refused("there is no proxy-client certificate".to_owned())
            });
            match trust.believes_portico {
                Belief::Refused(reason) => reason,
                other => format!("{other:?}"),
            }
        };
        assert_eq!(belief(&ours, "[]"), "Believed");
        assert_eq!(belief(&ours, "[\"x\",\"portico\"]"), "Believed");
        assert!(belief(&ours, "[\"x\",\"y\"]").contains("\"portico\" is not among"));
        assert!(belief(&other, "[]").contains("do not vouch"));
        let none = ClusterTrust::default().missing(&chain, UnixTime::now());
        assert!(matches!(none.believes_portico, Belief::Refused(_)) && none.known);
    }

    #[test]
    fn our_authority_is_added_once_behind_what_others_wrote() {
        let (theirs, ours) = (Authority::new("theirs").unwrap(), Authority::new("ours").unwrap());
        let (theirs, ours) = (theirs.certificate(), ours.certificate());
        let der = certificates("ours", ours.as_bytes()).unwrap();
        let merged = with_authorities(Some(&theirs), &der).unwrap().unwrap();
        assert!(merged.starts_with(&theirs));
        assert_eq!(certificates("merged", merged.as_bytes()).unwrap().len(), 2);
        assert_eq!(with_authorities(Some(&merged), &der).unwrap(), None);
        // Without the line's end, and the same certificate twice.
        let twice = [der.as_slice(), &der].concat();
        let merged = with_authorities(Some(theirs.trim_end()), &twice).unwrap().unwrap();
        assert_eq!(certificates("merged", merged.as_bytes()).unwrap().len(), 2);
        let alone = with_authorities(None, &der).unwrap().unwrap();
        assert_eq!(certificates("alone", alone.as_bytes()).unwrap(), der);
        assert!(with_authorities(Some("broken"), &der).is_err());
    }
}
