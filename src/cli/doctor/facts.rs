//! What is known of one APIService: plain data that probing fills and `decide` judges.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;

use super::certificate::Certificate;
use crate::model::api_service::available;
use crate::model::endpoints::EndpointRouting;
use crate::model::fault::{Fault, Hop, ServicePort};
use crate::tls::cluster_trust::FrontProxies;

/// Who asks for what an ordinary caller may not have.
pub(super) const MARKER_USER: &str = "portico:doctor";
/// The only group of that caller.
pub(super) const MARKER_GROUP: &str = "portico:doctors";
/// A path that no server has, and that none but a master may ask for: servers built on Kubernetes'
/// library authorize before they look whether there is anything.
pub(super) const PROBE_PATH: &str = "/portico-doctor";
/// Who asks as the aggregator does.
pub(super) const AGGREGATOR_USER: &str = "system:kube-aggregator";
/// The group that may do everything.
pub(super) const MASTERS: &str = "system:masters";

/// Something that was looked for.
#[derive(Clone, Debug)]
pub(super) enum Sought<T> {
    /// It is there.
    Found(T),
    /// It is not.
    Missing,
    /// It cannot be known, and why.
    Unknown(String),
}

impl<T> Sought<T> {
    pub(super) fn found(&self) -> Option<&T> {
        match self {
            Self::Found(found) => Some(found),
            Self::Missing | Self::Unknown(_) => None,
        }
    }
}

/// One APIService and what stands behind it.
#[derive(Debug)]
pub(super) struct Facts {
    /// The APIService's name.
    pub(super) name: String,
    /// Where objects are from, as people know it: a URL or a directory.
    pub(super) source: String,
    /// The object.
    pub(super) object: Option<APIService>,
    /// Names of others that are nearly called so.
    pub(super) similar: Vec<String>,
    /// What its spec names; none for a local one.
    pub(super) service_ref: Option<ServicePort>,
    /// That Service.
    pub(super) service: Sought<Service>,
    /// Its `EndpointSlices`.
    pub(super) slices: Sought<Vec<EndpointSlice>>,
    /// How services are reached.
    pub(super) routing: EndpointRouting,
    /// What an ExternalName was resolved to; none for other services.
    pub(super) resolved: Option<Result<Vec<SocketAddr>, String>>,
    /// Each endpoint that was tried.
    pub(super) endpoints: Vec<EndpointFacts>,
    /// Endpoints that were not tried, since there are too many.
    pub(super) left_out: usize,
    /// By which extension servers know the aggregator; none when not given.
    pub(super) identity: Option<Identity>,
    /// Whom extension servers of this cluster let pass as front proxies.
    pub(super) trust: Sought<TrustFacts>,
    /// The same read through the aggregator; none without one.
    pub(super) proxied: Option<Proxied>,
    /// Unix seconds.
    pub(super) now: i64,
}

impl Facts {
    /// The group; empty for none.
    pub(super) fn group(&self) -> &str {
        self.object.as_ref().and_then(|it| it.spec.as_ref()?.group.as_deref()).unwrap_or_default()
    }

    /// The version; empty for none.
    pub(super) fn version(&self) -> &str {
        self.object.as_ref().and_then(|it| it.spec.as_ref()?.version.as_deref()).unwrap_or_default()
    }

    /// `/apis/<group>/<version>`.
    pub(super) fn path(&self) -> String {
        format!("/apis/{}/{}", self.group(), self.version())
    }

    /// The certificates of the caBundle as they were written; empty for none.
    pub(super) fn ca_bundle(&self) -> &[u8] {
        let spec = self.object.as_ref().and_then(|object| object.spec.as_ref());
        spec.and_then(|spec| spec.ca_bundle.as_ref())
            .map(|pem| pem.0.as_slice())
            .unwrap_or_default()
    }

    /// `spec.insecureSkipTLSVerify`.
    pub(super) fn skips_verification(&self) -> bool {
        let spec = self.object.as_ref().and_then(|object| object.spec.as_ref());
        spec.and_then(|spec| spec.insecure_skip_tls_verify).unwrap_or_default()
    }

    /// Status, reason and message of the condition `Available`.
    pub(super) fn available(&self) -> Option<(&str, &str, &str)> {
        let found = available(self.object.as_ref()?)?;
        let reason = found.reason.as_deref().unwrap_or_default();
        Some((&found.status, reason, found.message.as_deref().unwrap_or_default()))
    }
}

/// The proxy-client pair.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// The file of the certificate.
    pub(super) file: String,
    /// The leaf first.
    pub(super) chain: Vec<Certificate>,
}

/// The ConfigMap `kube-system/extension-apiserver-authentication`, as extension servers read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TrustFacts {
    /// The certificates of `requestheader-client-ca-file`.
    pub(super) authorities: Vec<Certificate>,
    /// Whether they vouch for the proxy-client pair; none where there is no pair.
    pub(super) vouched: Option<Result<(), String>>,
    /// The lists; empty when one of them is broken.
    pub(super) front_proxies: FrontProxies,
    /// What of it is broken.
    pub(super) faults: Vec<String>,
}

/// One address behind the Service.
#[derive(Debug)]
pub(super) struct EndpointFacts {
    /// Where.
    pub(super) address: SocketAddr,
    /// How long the connection took, or what it failed with.
    pub(super) tcp: Result<Duration, Fault>,
    /// The handshake; none without a connection.
    pub(super) tls: Option<TlsFacts>,
    /// Questions by HTTP; none when no handshake got through.
    pub(super) asked: Option<Asked>,
}

/// A handshake, as the aggregator makes it but for believing everybody.
#[derive(Clone, Debug)]
pub(super) struct TlsFacts {
    /// What was agreed on, or what it failed with.
    pub(super) handshake: Result<Handshake, Fault>,
    /// What the server showed, leaf first.
    pub(super) chain: Vec<Certificate>,
    /// What the aggregator thinks of it; none when nothing was shown.
    pub(super) verdict: Option<Result<(), Disbelief>>,
    /// The names of the authorities whose certificates the server says it takes; none when it does
    /// not ask for one.
    pub(super) wanted: Option<Vec<String>>,
}

/// What a handshake agreed on.
#[derive(Clone, Debug)]
pub(super) struct Handshake {
    /// Such as `TLS 1.3`.
    pub(super) version: &'static str,
    /// Such as `HTTP/2`.
    pub(super) protocol: &'static str,
    /// How long it took.
    pub(super) took: Duration,
}

/// Why a server is not believed.
#[derive(Clone, Debug)]
pub(super) struct Disbelief {
    /// The fault, as portico's 503 names it.
    pub(super) hop: Hop,
    /// The library's words.
    pub(super) detail: String,
}

/// What came back, or what went wrong on the way.
pub(super) type Answer = Result<Reply, Fault>;

/// An answer that was read whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Reply {
    /// The code.
    pub(super) status: u16,
    /// `Content-Type`.
    pub(super) content_type: String,
    /// The body.
    pub(super) body: Vec<u8>,
    /// From the first byte sent to the last one read, connecting included.
    pub(super) took: Duration,
}

impl Reply {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The server knows the caller too little, or lets it in nowhere.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.status, 401 | 403)
    }

    /// The message of a `metav1.Status`, or the beginning of another text.
    pub(super) fn message(&self) -> String {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Status {
            message: String,
        }
        let status: Status = serde_json::from_slice(&self.body).unwrap_or_default();
        if !status.message.is_empty() {
            return status.message;
        }
        let text = String::from_utf8_lossy(&self.body);
        let line = text.lines().next().unwrap_or_default().trim();
        line.chars().filter(|character| !character.is_control()).take(TEXT_CHARS_MAX).collect()
    }

    /// The word that portico's own errors have.
    pub(super) fn cause(&self) -> Option<String> {
        let status: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        let cause = status.pointer("/details/causes/0/reason")?.as_str()?;
        Some(cause.to_owned())
    }

    /// Whom a 403 of Kubernetes' library says it refuses: `User "…" cannot`.
    pub(super) fn refused_user(&self) -> Option<String> {
        if self.status != 403 {
            return None;
        }
        let message = self.message();
        let (_, rest) = message.split_once("User \"")?;
        rest.split_once("\" cannot ").map(|(user, _)| user.to_owned())
    }
}

/// How much of a text that is no Status is shown, in characters.
const TEXT_CHARS_MAX: usize = 160;

/// Questions to one endpoint.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// With the certificate; none when there is none to show.
    pub(super) as_proxy: Option<AsProxy>,
    /// Without it.
    pub(super) forgery: Option<Forgery>,
}

/// Questions asked as the aggregator would, with its certificate.
#[derive(Debug)]
pub(super) struct AsProxy {
    /// [`PROBE_PATH`] as the user [`MARKER_USER`], who may nothing.
    pub(super) marker: Answer,
    /// The same path as a master.
    pub(super) master: Answer,
    /// `/apis/<group>/<version>` as [`AGGREGATOR_USER`].
    pub(super) legacy: Answer,
    /// `/apis` as the same, for the aggregated document.
    pub(super) aggregated: Answer,
    /// One list, and its path; none when no resource can be listed.
    pub(super) list: Option<(String, Answer)>,
}

/// An identity claimed without the certificate that would allow it.
#[derive(Debug)]
pub(super) struct Forgery {
    /// The first path that anonymous callers are refused at, or the last one tried.
    pub(super) path: String,
    /// That path is a list of objects, which are nobody's business.
    pub(super) is_list: bool,
    /// As nobody.
    pub(super) anonymous: Answer,
    /// As a master, so the headers say; none when nobody is refused.
    pub(super) forged: Option<Answer>,
}

/// The same through the aggregator.
#[derive(Debug)]
pub(super) struct Proxied {
    /// The aggregator's URL.
    pub(super) server: String,
    /// `/apis/<group>/<version>`.
    pub(super) discovery: Result<Reply, String>,
    /// One list, and its path.
    pub(super) list: Option<(String, Result<Reply, String>)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_whom_it_is_for() {
        let reply = |status, message: &str| Reply {
            status,
            body: serde_json::json!({"kind": "Status", "message": message}).to_string().into(),
            ..Reply::default()
        };
        let forbidden = "forbidden: User \"portico:doctor\" cannot get path \"/portico-doctor\"";
        assert_eq!(reply(403, forbidden).refused_user().as_deref(), Some("portico:doctor"));
        assert_eq!(reply(401, "Unauthorized").refused_user(), None);
        assert_eq!(reply(403, "go away").refused_user(), None);
        let text = Reply { body: b"<html>\nno\n".to_vec(), ..Reply::default() };
        assert_eq!(text.message(), "<html>");
    }
}
