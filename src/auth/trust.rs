//! Who vouches for callers, as the flags and the cluster say: one snapshot of all of it.
//!
//! What a flag says wins over the cluster, as with an extension API server's delegating options
//! (`apiserver/pkg/server/options/authentication.go:ApplyTo`): the authorities of clients by
//! themselves, and the authorities of front proxies together with their names and headers. Headers in
//! which either of them would look for an identity are passed on by nobody, whoever is believed here:
//! extension API servers read the cluster's.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Config, FrontProxies, IdentityHeaders};
use crate::runtime::files::Files;
use crate::runtime::snapshot::{Publisher, View, replaced};
use crate::tls::TlsError;
use crate::tls::client_chain::ClientAuthority;
use crate::tls::cluster_trust::{Authorities, Belief, ClusterTrust};

/// Who vouches for callers; replaced as a whole when something of it changes.
#[derive(Debug)]
pub struct Trust {
    /// Grows with every change; verdicts of an older generation are judged anew.
    pub generation: u64,
    /// True while the cluster has not said yet whom it believes: who is not known may be known then.
    pub is_pending: bool,
    /// True while the cluster has not said yet in which headers its servers look for an identity:
    /// until then nothing can be passed on to them, since a client's own would be among it.
    pub may_leak_identity: bool,
    /// Vouches for client certificates.
    pub client: Option<Arc<ClientAuthority>>,
    /// Vouches for front proxies.
    pub request_header: Option<Arc<ClientAuthority>>,
    /// Which front proxies are believed, and the headers by which they say who is calling.
    pub front_proxies: Arc<FrontProxies>,
    /// Which headers carry identity.
    pub identity_headers: IdentityHeaders,
    /// Whether extension API servers believe portico's own certificate about callers; none where the
    /// cluster does not say.
    pub believes_portico: Option<bool>,
}

impl Default for Trust {
    fn default() -> Self {
        let front_proxies = Arc::new(FrontProxies::of_flags());
        Self {
            generation: 0,
            is_pending: false,
            may_leak_identity: false,
            client: None,
            request_header: None,
            identity_headers: IdentityHeaders::new(&[&front_proxies]),
            front_proxies,
            believes_portico: None,
        }
    }
}

/// What the flags say, and the files that they name.
#[derive(Clone, Debug)]
pub struct GivenTrust {
    client: Option<View<ClientAuthority>>,
    request_header: Option<View<ClientAuthority>>,
    front_proxies: Arc<FrontProxies>,
}

impl GivenTrust {
    /// Reads the files that the flags name, which are followed with `files`.
    pub fn read(config: &Config, files: &mut Files) -> Result<Self, TlsError> {
        let mut authority = |what: &str, file: &Option<PathBuf>| {
            file.as_deref().map(|file| ClientAuthority::follow(files, what, file)).transpose()
        };
        let front_proxies = &config.requestheader_client_ca_file;
        Ok(Self {
            client: authority("authorities of clients", &config.client_ca_file)?,
            request_header: authority("authorities of front proxies", front_proxies)?,
            front_proxies: Arc::new(config.request_header.clone()),
        })
    }

    /// Who vouches for clients, when a flag says so.
    pub fn client(&self) -> Option<&View<ClientAuthority>> {
        self.client.as_ref()
    }

    /// Who vouches for front proxies, when a flag says so.
    pub fn request_header(&self) -> Option<&View<ClientAuthority>> {
        self.request_header.as_ref()
    }

    /// True when the cluster has nothing to add.
    fn is_all(&self) -> bool {
        self.client.is_some() && self.request_header.is_some()
    }

    /// What counts, with what the cluster says; none when there is no cluster.
    pub fn trust(&self, cluster: Option<&ClusterTrust>, generation: u64) -> Trust {
        let said = |authorities: &Authorities| Arc::clone(&authorities.authority);
        let client = self.client.as_ref().map(View::load);
        let request_header = self.request_header.as_ref().map(View::load);
        let is_awaited = cluster.is_some_and(|cluster| !cluster.known);
        let mut read = vec![&*self.front_proxies];
        read.extend(cluster.map(|cluster| &cluster.front_proxies));
        let identity_headers = IdentityHeaders::new(&read);
        let (request_header, front_proxies) = match (request_header, cluster) {
            (None, Some(ClusterTrust { request_header: Some(vouch), front_proxies, .. })) => {
                (Some(said(vouch)), Arc::new(front_proxies.clone()))
            }
            (given, _) => (given, Arc::clone(&self.front_proxies)),
        };
        Trust {
            generation,
            is_pending: !self.is_all() && is_awaited,
            may_leak_identity: is_awaited,
            client: client.or_else(|| cluster?.client.as_ref().map(said)),
            request_header,
            identity_headers,
            front_proxies,
            believes_portico: cluster.and_then(believes_portico),
        }
    }
}

fn believes_portico(cluster: &ClusterTrust) -> Option<bool> {
    match cluster.believes_portico {
        Belief::Believed => Some(true),
        Belief::Refused(_) if cluster.request_header.is_some() => Some(false),
        // It may have been read by nobody yet.
        Belief::Refused(_) | Belief::Unknown => None,
    }
}

/// Publishes a new generation whenever a file or the cluster says something else, for ever.
pub async fn follow(
    given: GivenTrust,
    mut cluster: Option<View<ClusterTrust>>,
    publisher: Publisher<Trust>,
) {
    let (mut client, mut request_header) = (given.client.clone(), given.request_header.clone());
    loop {
        let said = cluster.as_ref().map(View::load);
        let next = given.trust(said.as_deref(), publisher.current().generation + 1);
        if !is_same(&next, &publisher.current()) {
            publisher.publish(next);
        }
        tokio::select! {
            () = replaced(&mut cluster) => {}
            () = replaced(&mut client) => {}
            () = replaced(&mut request_header) => {}
        }
    }
}

/// Authorities are the same only when they are the very same: what is read again unchanged stays
/// what it was.
fn is_same(one: &Trust, other: &Trust) -> bool {
    let same = |one: &Option<Arc<ClientAuthority>>, other: &Option<Arc<ClientAuthority>>| {
        one.as_ref().map(Arc::as_ptr) == other.as_ref().map(Arc::as_ptr)
    };
    (one.is_pending, one.may_leak_identity) == (other.is_pending, other.may_leak_identity)
        && one.believes_portico == other.believes_portico
        && same(&one.client, &other.client)
        && same(&one.request_header, &other.request_header)
        && one.front_proxies == other.front_proxies
        && one.identity_headers == other.identity_headers
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::{HeaderMap, HeaderName, HeaderValue};
    use rustls_pki_types::UnixTime;

    use super::super::request_header;
    use super::*;
    use crate::runtime::tasks::spawn_owned;
    use crate::tls::certificates;
    use crate::tls::pki::Authority;

    fn authority(name: &str) -> (String, ClientAuthority) {
        let pem = Authority::new(name).unwrap().certificate();
        let roots = certificates(name, pem.as_bytes()).unwrap();
        (pem, ClientAuthority::new(name, roots).unwrap())
    }

    fn given(client: bool, request_header: bool) -> GivenTrust {
        let one = |is_given: bool| is_given.then(|| View::fixed(authority("given").1));
        GivenTrust {
            client: one(client),
            request_header: one(request_header),
            front_proxies: Arc::new(FrontProxies {
                username_headers: vec!["X-Given".to_owned()],
                ..FrontProxies::of_flags()
            }),
        }
    }

    fn said(client: &str, request_header: &str) -> ClusterTrust {
        let data = [
            ("client-ca-file", client),
            ("requestheader-client-ca-file", request_header),
            ("requestheader-allowed-names", "[\"front\"]"),
            ("requestheader-username-headers", "[\"X-Who\"]"),
        ];
        let data: BTreeMap<String, String> =
            data.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        ClusterTrust::default().read(&data, &[], UnixTime::now()).0
    }

    #[test]
    fn what_a_flag_says_wins_and_the_cluster_says_the_rest() {
        let (pem, _) = authority("cluster");
        let cluster = said(&pem, &pem);
        let is_given = |trust: &Option<Arc<ClientAuthority>>, given: &Option<View<_>>| {
            let given = given.as_ref().map(View::load);
            trust.as_ref().map(Arc::as_ptr) == given.as_ref().map(Arc::as_ptr)
        };
        for (client, request_header) in [(false, false), (true, false), (false, true), (true, true)]
        {
            let given = given(client, request_header);
            let trust = given.trust(Some(&cluster), 1);
            assert!(trust.client.is_some() && trust.request_header.is_some());
            assert_eq!(is_given(&trust.client, &given.client), client);
            assert_eq!(is_given(&trust.request_header, &given.request_header), request_header);
            assert_eq!(trust.front_proxies.allowed_names.is_empty(), request_header);
            assert!(trust.identity_headers.contains("x-who"));
            assert!(trust.identity_headers.contains("x-given"));
            assert!(!trust.is_pending);
            let waiting = given.trust(Some(&ClusterTrust::default()), 1);
            assert_eq!(waiting.is_pending, !(client && request_header));
            assert!(waiting.may_leak_identity && !trust.may_leak_identity);
        }
    }

    #[test]
    fn a_cluster_without_front_proxies_leaves_the_flags_headers() {
        let (pem, _) = authority("cluster");
        let given = given(false, false);
        let trust = given.trust(Some(&said(&pem, "")), 1);
        assert!(trust.request_header.is_none());
        assert_eq!(trust.front_proxies, given.front_proxies);
        assert!(trust.identity_headers.contains("x-who"));
    }

    #[test]
    fn a_cluster_that_names_no_headers_has_none_believed() {
        let data = [("requestheader-client-ca-file".to_owned(), authority("cluster").0)].into();
        let (cluster, faults) = ClusterTrust::default().read(&data, &[], UnixTime::now());
        assert!(faults.is_empty());
        let given =
            GivenTrust { front_proxies: Arc::new(FrontProxies::of_flags()), ..given(true, false) };
        let trust = given.trust(Some(&cluster), 1);
        assert!(trust.request_header.is_some());
        let headers = [(HeaderName::from_static("x-remote-user"), HeaderValue::from_static("a"))];
        let headers = HeaderMap::from_iter(headers);
        assert!(request_header::caller(&trust.front_proxies, &headers).is_none());
        assert!(request_header::caller(&given.front_proxies, &headers).is_some());
        assert!(trust.identity_headers.contains("x-remote-user"));
    }

    #[tokio::test]
    async fn only_what_changes_something_is_a_new_generation() {
        let (one, two) = (authority("one").0, authority("two").0);
        let given = given(false, false);
        let (cluster, view) = Publisher::new(said(&one, &one));
        let (publisher, mut trust) = Publisher::new(given.trust(Some(&view.load()), 0));
        let _task = spawn_owned("trust", follow(given, Some(view), publisher));
        let again = ClusterTrust { data: BTreeMap::new(), ..(*cluster.current()).clone() };
        cluster.publish(again);
        cluster.publish(said(&two, &one));
        assert!(trust.changed().await);
        assert_eq!(trust.load().generation, 1);
    }

    #[tokio::test]
    async fn an_authority_that_is_replaced_is_a_new_generation_without_a_cluster_too() {
        let (authorities, view) = Publisher::new(authority("one").1);
        let given = GivenTrust { client: Some(view), ..given(false, true) };
        let (publisher, mut trust) = Publisher::new(given.trust(None, 0));
        let _task = spawn_owned("trust", follow(given, None, publisher));
        authorities.publish(authority("two").1);
        assert!(trust.changed().await);
        let (now, replaced) = (trust.load(), authorities.current());
        assert_eq!((now.generation, now.is_pending), (1, false));
        assert!(Arc::ptr_eq(now.client.as_ref().unwrap(), &replaced));
    }
}
