//! What to do about each cause that answers and metrics name: the text of `docs/failures.md`.

use super::fault::{Fault, Hop, ServicePort};
use super::rejection::{BackendFault, Details, Rejection};

/// What whoever operates the API can do about a fault on the way to a backend.
pub fn of_hop(hop: Hop) -> &'static str {
    match hop {
        Hop::ServiceNotFound => {
            "Create the Service that `spec.service` names, or correct its namespace and name."
        }
        Hop::ServicePortNotFound => {
            "Add the port to the Service, or correct `spec.service.port` (443 when it is not given)."
        }
        Hop::ServiceNotRoutable => {
            "Give the Service a cluster IP, or let requests go to endpoints \
             (`--enable-aggregator-routing`)."
        }
        Hop::EndpointsNotFound => {
            "Give the Service an EndpointSlice with the label `kubernetes.io/service-name`; in a \
             cluster, see why its selector matches no pod."
        }
        Hop::NoEndpoints => {
            "Look at the backend's pods: none is ready. Or the EndpointSlice's port has another name \
             than the Service's."
        }
        Hop::NameNotResolved => {
            "Correct the Service's `externalName`, or see why portico's DNS does not know it."
        }
        Hop::InvalidCaBundle => {
            "Put PEM certificates, base64-encoded, into the APIService's `caBundle`."
        }
        Hop::NoSystemRoots => {
            "Give the APIService a `caBundle`, or portico's system its trusted certificates."
        }
        Hop::ConnectRefused => {
            "Nobody listens at the endpoint: the backend has stopped, or listens on another port."
        }
        Hop::ConnectTimeout => {
            "The endpoint does not answer: look at network policies, firewalls and the node."
        }
        Hop::ConnectFailed => {
            "The log line has the system's words: no route, reset, or no local port left."
        }
        Hop::HandshakeTimeout
        | Hop::NotTls
        | Hop::UnknownAuthority
        | Hop::NameMismatch
        | Hop::CertificateExpired
        | Hop::CertificateNotYetValid
        | Hop::CertificateInvalid
        | Hop::ClientCertificateRefused
        | Hop::HandshakeFailed => of_handshake(hop),
        Hop::ProtocolError | Hop::BackendReset | Hop::Deadline | Hop::Unresponsive => {
            of_exchange(hop)
        }
        Hop::Redirect => {
            "Configure the backend to answer itself: a redirect could lead callers' credentials astray."
        }
        Hop::InvalidUpgrade(_) => {
            "The backend does not know the protocol at this path; it should answer 101, or an error."
        }
        Hop::WrongUpgrade => "The backend breaks the protocol; see what stands between.",
        Hop::Overloaded => {
            "As many requests are open at this backend, or wait for it, as may: it is too slow, or has \
             too few endpoints."
        }
        Hop::DiscoveryRefused
        | Hop::InvalidDiscovery
        | Hop::DiscoveryNotFetched
        | Hop::ReviewRefused => of_answer(hop),
        Hop::ProbeUnauthorized | Hop::ProbeForbidden | Hop::ProbeRefused(_) | Hop::ProbeTimeout => {
            of_probe(hop)
        }
    }
}

fn of_exchange(hop: Hop) -> &'static str {
    match hop {
        Hop::ProtocolError => "The backend breaks HTTP; the log line says how.",
        Hop::BackendReset => {
            "The backend crashed, was restarted, or ended the connection: see its log."
        }
        Hop::Deadline => {
            "The backend is too slow: see its own metrics, then `--request-timeout` or the client's \
             `?timeout=`. Watches are not bounded."
        }
        _ => {
            "The backend's process, or its node, is frozen or cut off: look at its CPU limits, the node \
             and the network. It is dialled anew each second (less often while more than 200 are dead)."
        }
    }
}

fn of_probe(hop: Hop) -> &'static str {
    match hop {
        Hop::ProbeUnauthorized => {
            "The backend takes portico for nobody: put the authority of `--proxy-client-cert-file` into \
             its `--requestheader-client-ca-file` (it may have been rotated), and the certificate's name \
             into its `--requestheader-allowed-names`. `portico doctor` tries both."
        }
        Hop::ProbeForbidden => {
            "The backend refuses `system:kube-aggregator` of `system:masters`: look at its authorization, \
             which must let that group read `/apis`."
        }
        Hop::ProbeRefused(_) => {
            "See the backend's own log: it answers `/apis/<group>/<version>` with an error. It is asked \
             again after half a second, then after twice as long each time, up to 10 s."
        }
        _ => {
            "The backend answers connections and not its own discovery: it hangs, or is far too slow."
        }
    }
}

fn of_answer(hop: Hop) -> &'static str {
    match hop {
        Hop::DiscoveryRefused => {
            "See the backend's own log: it answers `/apis` and `/apis/<group>/<version>` with an \
             error. 403: it refuses `system:kube-aggregator` of `system:masters`."
        }
        Hop::InvalidDiscovery => {
            "The log line says what is wrong with the backend's `/apis` or \
             `/apis/<group>/<version>`."
        }
        Hop::ReviewRefused => {
            "See the log of kube-apiserver, or of the load balancer before it: the SelfSubjectReview by \
             which portico finds out how to tell it who calls is answered with the status that the log \
             line has. `--upstream-identity` says it without a question."
        }
        _ => {
            "The backend has not answered to discovery since it was registered: see its log and \
             portico's, which names what it was asked and what came back."
        }
    }
}

fn of_handshake(hop: Hop) -> &'static str {
    match hop {
        Hop::HandshakeTimeout => {
            "The backend accepts connections and says nothing: it hangs, or is frozen."
        }
        Hop::NotTls => "The backend serves plain HTTP; extension API servers must serve TLS.",
        Hop::UnknownAuthority => {
            "Put the authority that signed the backend's certificate into the `caBundle`; it may have \
             been rotated."
        }
        Hop::NameMismatch => {
            "Give the backend a certificate with the DNS name `<service>.<namespace>.svc`."
        }
        Hop::CertificateExpired => "Renew the backend's certificate.",
        Hop::CertificateNotYetValid => {
            "Set the clocks right, or wait until the certificate's `notBefore`."
        }
        Hop::CertificateInvalid => {
            "The log line says what is wrong with it: no subject alternative name, or a usage that does \
             not allow servers."
        }
        Hop::ClientCertificateRefused => {
            "Put the authority of `--proxy-client-cert-file` into the backend's \
             `--requestheader-client-ca-file`."
        }
        _ => "The log line has the TLS library's words; often no common version or cipher suite.",
    }
}

/// What a caller or an operator can do about an answer that did not come from a backend.
pub fn of_rejection(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::BadRequest(_) => "The message says what cannot be understood.",
        Rejection::Unauthorized(_) => {
            "Bring a certificate of `--client-ca-file`, a token of `--token-auth-file`, of an issuer \
             of `--authentication-config` or one that the reviewer knows, or come by a front proxy of \
             `--requestheader-client-ca-file`; the log says at `-v 3` what was wrong with what was \
             brought. While the reviewer cannot be reached, tokens that it would be asked about are \
             refused too: then the log says `reviews fail`."
        }
        Rejection::Forbidden(_) => "The message names user, verb and resource.",
        Rejection::PathNotFound => "No APIService has this group and version.",
        Rejection::NotFound(_) => "No such object, group or version is served here.",
        Rejection::LocalOnly => {
            "The APIService has no `spec.service`: give it one; nothing serves local APIs here."
        }
        Rejection::MethodNotAllowed => "Objects served here are read-only.",
        Rejection::NotAcceptable(_) => "Ask for one of the media types that the message lists.",
        Rejection::Expired(_) => "List again and watch from there, as client-go does.",
        Rejection::HeadersTooLarge => "Send fewer or smaller headers.",
        Rejection::TooLarge { .. } => "Send less; the message names the limit.",
        Rejection::Invalid(_) => "The message names each field.",
        Rejection::TooManyRequests => {
            "Come again after `Retry-After`; raise `--max-requests-inflight` or \
             `--max-mutating-requests-inflight` if portico has room for more."
        }
        Rejection::Internal(_) => "See portico's log.",
        Rejection::AuthorizerError(_) => {
            "The text says what failed on the way to whom `--authorization-webhook-config-file` or \
             `--kubeconfig` names; `--review-cache-outage-ttl` lets decisions outlive an outage."
        }
        Rejection::ReviewDeadline => {
            "The reviewer answers too slowly: look at \
             `apiserver_delegated_authn_request_duration_seconds` and \
             `apiserver_delegated_authz_request_duration_seconds`."
        }
        Rejection::NotImplemented(_) => "Send the body with a length, or chunked.",
        Rejection::NotReady => {
            "Come again after `Retry-After`: `/readyz?verbose` names what is still awaited."
        }
        Rejection::Backend(backend) => of_hop(backend.fault.hop),
    }
}

/// One of each kind of rejection but those by backends, for documents.
pub fn rejections() -> Vec<Rejection> {
    let details = Box::<Details>::default;
    vec![
        Rejection::BadRequest(String::new()),
        Rejection::Unauthorized(String::new()),
        Rejection::Forbidden(details()),
        Rejection::PathNotFound,
        Rejection::NotFound(details()),
        Rejection::LocalOnly,
        Rejection::MethodNotAllowed,
        Rejection::NotAcceptable(""),
        Rejection::Expired(String::new()),
        Rejection::TooLarge { limit_bytes: 0 },
        Rejection::Invalid(details()),
        Rejection::TooManyRequests,
        Rejection::HeadersTooLarge,
        Rejection::Internal(String::new()),
        Rejection::AuthorizerError(String::new()),
        Rejection::ReviewDeadline,
        Rejection::NotImplemented(""),
        Rejection::NotReady,
    ]
}

/// A fault of each hop, as a caller of the service `ns/svc` meets it.
pub fn backend_faults() -> Vec<Rejection> {
    let service = ServicePort { namespace: "ns".into(), name: "svc".into(), port: 443 };
    let fault = |hop: &Hop| {
        Rejection::Backend(Box::new(BackendFault {
            api_service: "v1.example.com".into(),
            service: service.clone(),
            fault: Fault::from(*hop),
            discovery: false,
        }))
    };
    Hop::ALL.iter().map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_listed_once_with_a_remedy() {
        let mut words = std::collections::BTreeSet::new();
        for rejection in rejections().iter().chain(&backend_faults()) {
            assert!(words.insert(rejection.cause()), "{}", rejection.cause());
            assert!(of_rejection(rejection).ends_with('.'), "{}", rejection.cause());
        }
    }
}
