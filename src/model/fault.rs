//! What can go wrong on the way from the routing table to a backend, hop by hop.
//!
//! Every fault has one word, used alike in `details.causes[].reason`, in metrics and in the log, and
//! one sentence for the caller. The private detail (addresses, library texts) goes to the log only.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// Where requests go: the service that an APIService names, or a server that a kubeconfig names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePort {
    /// The service's namespace; empty for a server that is no Service.
    pub namespace: Arc<str>,
    /// The service's name, or what the server is for.
    pub name: Arc<str>,
    /// The service's port, 443 unless the APIService says otherwise.
    pub port: u16,
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_service() {
            write!(f, "{}/{}:{}", self.namespace, self.name, self.port)
        } else {
            f.write_str(&self.name)
        }
    }
}

impl ServicePort {
    /// A server that is no Service, by what it is for.
    pub fn of_server(name: &str, port: u16) -> Self {
        Self { namespace: "".into(), name: name.into(), port }
    }

    /// False for a server that a kubeconfig names.
    pub fn is_service(&self) -> bool {
        !self.namespace.is_empty()
    }

    /// The name in SNI, in the certificate check and in `:authority`: `<svc>.<ns>.svc`.
    pub fn server_name(&self) -> String {
        if self.is_service() {
            format!("{}.{}.svc", self.name, self.namespace)
        } else {
            self.name.to_string()
        }
    }
}

/// The hop that failed and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hop {
    /// The APIService names a Service that does not exist.
    ServiceNotFound,
    /// The Service has no such port.
    ServicePortNotFound,
    /// The Service cannot be routed to (headless by ClusterIP, unknown type).
    ServiceNotRoutable,
    /// The Service has no EndpointSlice at all.
    EndpointsNotFound,
    /// No EndpointSlice of the Service has a ready address for the port.
    NoEndpoints,
    /// The ExternalName could not be resolved.
    NameNotResolved,
    /// The APIService's caBundle holds no usable certificate.
    InvalidCaBundle,
    /// The APIService has no caBundle, and the system has no trusted certificates.
    NoSystemRoots,
    /// Nobody listens on the endpoint.
    ConnectRefused,
    /// The endpoint did not answer to a connection attempt in time.
    ConnectTimeout,
    /// The connection failed in another way (unreachable, reset, no local port).
    ConnectFailed,
    /// The endpoint accepted the connection but did not finish the TLS handshake in time.
    HandshakeTimeout,
    /// The endpoint does not speak TLS.
    NotTls,
    /// The endpoint's certificate comes from an authority that is not trusted.
    UnknownAuthority,
    /// The endpoint's certificate is for other names.
    NameMismatch,
    /// The endpoint's certificate has expired.
    CertificateExpired,
    /// The endpoint's certificate is not valid yet.
    CertificateNotYetValid,
    /// The endpoint's certificate is unusable in another way.
    CertificateInvalid,
    /// The endpoint refuses the proxy-client certificate.
    ClientCertificateRefused,
    /// The TLS handshake failed in another way.
    HandshakeFailed,
    /// The endpoint broke the HTTP protocol.
    ProtocolError,
    /// The endpoint closed or reset the connection or the stream before it answered.
    BackendReset,
    /// The endpoint did not answer within the request's deadline.
    Deadline,
    /// The endpoint, or the connection to it, answered nothing any more, not even a ping.
    Unresponsive,
    /// The endpoint answered with a redirect.
    Redirect,
    /// The endpoint answered a request to switch protocols with this status, which is neither the
    /// switch nor an error.
    InvalidUpgrade(u16),
    /// The endpoint switched to a protocol that the client did not ask for.
    WrongUpgrade,
    /// The backend's limit for open or waiting requests is reached.
    Overloaded,
    /// The backend's discovery was answered with an error.
    DiscoveryRefused,
    /// The backend's discovery cannot be read: too long, cut short, of another kind.
    InvalidDiscovery,
    /// The backend has not told its resources yet.
    DiscoveryNotFetched,
    /// The probe whether the APIService is available was answered with 401.
    ProbeUnauthorized,
    /// That probe was answered with 403.
    ProbeForbidden,
    /// That probe was answered with this status, which is none of the 2xx.
    ProbeRefused(u16),
    /// That probe was not answered in time.
    ProbeTimeout,
    /// kube-apiserver, or what stands before it, did not answer the question as whom it takes callers.
    ReviewRefused,
}

impl Hop {
    /// Every fault there is, for documents and their tests.
    pub const ALL: [Self; 36] = [
        Self::ServiceNotFound,
        Self::ServicePortNotFound,
        Self::ServiceNotRoutable,
        Self::EndpointsNotFound,
        Self::NoEndpoints,
        Self::NameNotResolved,
        Self::InvalidCaBundle,
        Self::NoSystemRoots,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::ConnectFailed,
        Self::HandshakeTimeout,
        Self::NotTls,
        Self::UnknownAuthority,
        Self::NameMismatch,
        Self::CertificateExpired,
        Self::CertificateNotYetValid,
        Self::CertificateInvalid,
        Self::ClientCertificateRefused,
        Self::HandshakeFailed,
        Self::ProtocolError,
        Self::BackendReset,
        Self::Deadline,
        Self::Unresponsive,
        Self::Redirect,
        Self::InvalidUpgrade(200),
        Self::WrongUpgrade,
        Self::Overloaded,
        Self::DiscoveryRefused,
        Self::InvalidDiscovery,
        Self::DiscoveryNotFetched,
        Self::ProbeUnauthorized,
        Self::ProbeForbidden,
        Self::ProbeRefused(500),
        Self::ProbeTimeout,
        Self::ReviewRefused,
    ];

    /// The fault's one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::ServiceNotFound => "ServiceNotFound",
            Self::ServicePortNotFound => "ServicePortNotFound",
            Self::ServiceNotRoutable => "ServiceNotRoutable",
            Self::EndpointsNotFound => "EndpointsNotFound",
            Self::NoEndpoints => "NoEndpoints",
            Self::NameNotResolved => "NameNotResolved",
            Self::InvalidCaBundle => "InvalidCABundle",
            Self::NoSystemRoots => "NoSystemRoots",
            Self::ConnectRefused => "ConnectRefused",
            Self::ConnectTimeout => "ConnectTimeout",
            Self::ConnectFailed => "ConnectFailed",
            Self::HandshakeTimeout => "HandshakeTimeout",
            Self::NotTls => "NotTLS",
            Self::UnknownAuthority => "UnknownAuthority",
            Self::NameMismatch => "NameMismatch",
            Self::CertificateExpired => "CertificateExpired",
            Self::CertificateNotYetValid => "CertificateNotYetValid",
            Self::CertificateInvalid => "CertificateInvalid",
            Self::ClientCertificateRefused => "ClientCertificateRefused",
            Self::HandshakeFailed => "HandshakeFailed",
            Self::ProtocolError => "ProtocolError",
            Self::BackendReset => "BackendReset",
            Self::Deadline => "Deadline",
            Self::Unresponsive => "Unresponsive",
            Self::Redirect => "Redirect",
            Self::InvalidUpgrade(_) => "InvalidUpgrade",
            Self::WrongUpgrade => "WrongUpgrade",
            Self::Overloaded => "Overloaded",
            Self::DiscoveryRefused => "DiscoveryRefused",
            Self::InvalidDiscovery => "InvalidDiscovery",
            Self::DiscoveryNotFetched => "DiscoveryNotFetched",
            Self::ProbeUnauthorized => "ProbeUnauthorized",
            Self::ProbeForbidden => "ProbeForbidden",
            Self::ProbeRefused(_) => "ProbeRefused",
            Self::ProbeTimeout => "ProbeTimeout",
            Self::ReviewRefused => "ReviewRefused",
        }
    }

    /// The sentence for the caller; `service` is what the APIService names.
    pub fn sentence(self, service: &ServicePort) -> String {
        let ServicePort { namespace, name, port } = service;
        if !service.is_service() && self.names_api_service() {
            return self.sentence_of_server(name);
        }
        match self {
            Self::ServiceNotFound => format!("service/{name} in \"{namespace}\" is not present"),
            Self::ServicePortNotFound => {
                format!("service/{name} in \"{namespace}\" is not listening on port {port}")
            }
            Self::ServiceNotRoutable => {
                format!("service/{name} in \"{namespace}\" has no address that can be routed to")
            }
            Self::EndpointsNotFound => {
                format!("cannot find endpointslices for service/{name} in \"{namespace}\"")
            }
            Self::NoEndpoints => {
                format!("no endpoints available for service/{name} in \"{namespace}\"")
            }
            Self::NameNotResolved => {
                format!("the external name of service/{name} in \"{namespace}\" cannot be resolved")
            }
            Self::InvalidCaBundle => {
                "the caBundle of the APIService holds no usable certificate".to_owned()
            }
            Self::NoSystemRoots => "the APIService has no caBundle, and portico's system has no \
                                    trusted certificates"
                .to_owned(),
            Self::ConnectRefused => format!("connecting to {service}: connection refused"),
            Self::ConnectTimeout => format!("connecting to {service}: timed out"),
            Self::ConnectFailed => format!("connecting to {service}: connection failed"),
            Self::HandshakeTimeout => format!("TLS handshake with {service}: timed out"),
            Self::NotTls => format!(
                "TLS handshake with {service}: the first record does not look like a TLS handshake"
            ),
            Self::UnknownAuthority => format!(
                "TLS handshake with {service}: certificate signed by unknown authority \
                 (check the caBundle of the APIService)"
            ),
            Self::NameMismatch => format!(
                "TLS handshake with {service}: certificate is not valid for {}",
                service.server_name()
            ),
            Self::CertificateExpired | Self::CertificateNotYetValid | Self::CertificateInvalid => {
                self.sentence_of_certificate(service)
            }
            Self::ClientCertificateRefused => format!(
                "TLS handshake with {service}: the backend refused the proxy-client certificate \
                 (check its requestheader-client-ca)"
            ),
            Self::HandshakeFailed => format!("TLS handshake with {service}: failed"),
            Self::Redirect => {
                "the backend attempted to redirect this request, which is not permitted".to_owned()
            }
            Self::InvalidUpgrade(_)
            | Self::WrongUpgrade
            | Self::ProtocolError
            | Self::BackendReset
            | Self::Deadline
            | Self::Unresponsive
            | Self::Overloaded => self.sentence_of_exchange(service),
            Self::DiscoveryRefused
            | Self::InvalidDiscovery
            | Self::DiscoveryNotFetched
            | Self::ReviewRefused => self.sentence_of_answer(service),
            Self::ProbeUnauthorized
            | Self::ProbeForbidden
            | Self::ProbeRefused(_)
            | Self::ProbeTimeout => self.sentence_of_probe(service),
        }
    }

    fn sentence_of_certificate(self, service: &ServicePort) -> String {
        let what = match self {
            Self::CertificateExpired => "certificate has expired",
            Self::CertificateNotYetValid => "certificate is not valid yet",
            _ => "certificate cannot be used",
        };
        format!("TLS handshake with {service}: {what}")
    }

    fn sentence_of_exchange(self, service: &ServicePort) -> String {
        match self {
            // Upstream's words (`upgradeaware.go`).
            Self::InvalidUpgrade(status) => {
                format!("invalid upgrade response: status code {status}")
            }
            Self::WrongUpgrade => {
                format!("{service} switched to a protocol that was not asked for")
            }
            Self::ProtocolError => format!("{service} broke the HTTP protocol"),
            Self::BackendReset => format!("{service} closed the connection before it answered"),
            Self::Deadline => format!("{service} did not answer within the deadline"),
            Self::Unresponsive => {
                format!("{service} stopped answering: neither the request nor a ping")
            }
            _ => format!("too many requests are open at {service}, or wait for it"),
        }
    }

    /// True for sentences that speak of a Service or an APIService, which not every server has.
    fn names_api_service(self) -> bool {
        matches!(
            self,
            Self::NoEndpoints
                | Self::NameNotResolved
                | Self::InvalidCaBundle
                | Self::NoSystemRoots
                | Self::UnknownAuthority
                | Self::NameMismatch
                | Self::ClientCertificateRefused
        )
    }

    fn sentence_of_server(self, name: &str) -> String {
        match self {
            Self::NameNotResolved => format!("the host name of {name} cannot be resolved"),
            Self::InvalidCaBundle => {
                format!("the certificate authority of {name} cannot be used")
            }
            Self::NoSystemRoots => format!(
                "no certificate authority is given for {name}, and portico's system has no trusted \
                 certificates"
            ),
            Self::UnknownAuthority => format!(
                "TLS handshake with {name}: certificate signed by unknown authority (check the \
                 certificate-authority in portico's kubeconfig)"
            ),
            Self::NameMismatch => format!(
                "TLS handshake with {name}: certificate is not valid for the host in portico's \
                 kubeconfig"
            ),
            Self::ClientCertificateRefused => {
                format!("TLS handshake with {name}: portico's certificate was refused")
            }
            _ => format!("no endpoints available for {name}"),
        }
    }

    fn sentence_of_probe(self, service: &ServicePort) -> String {
        let asked = format!("{service} was asked whether it is available");
        match self {
            Self::ProbeUnauthorized => format!(
                "{asked}, and answered 401: it does not take the proxy-client certificate for a front \
                 proxy's (check its requestheader-client-ca-file and requestheader-allowed-names)"
            ),
            Self::ProbeForbidden => format!(
                "{asked}, and answered 403: it does not let system:kube-aggregator of system:masters \
                 read its discovery"
            ),
            Self::ProbeRefused(status) => format!("{asked}, and answered {status}"),
            _ => format!("{asked}, and did not answer in time"),
        }
    }

    fn sentence_of_answer(self, service: &ServicePort) -> String {
        match self {
            Self::ReviewRefused => format!("{service} does not say as whom it takes callers"),
            Self::DiscoveryRefused => format!("{service} answered its discovery with an error"),
            Self::InvalidDiscovery => format!("the discovery of {service} cannot be read"),
            _ => format!("the resources of {service} are not known yet"),
        }
    }
}

/// A fault with its private detail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which hop failed and how.
    pub hop: Hop,
    /// What only the log shows: addresses and the library's own words.
    pub detail: Arc<str>,
}

impl Fault {
    /// A fault with the text for the log.
    pub fn new(hop: Hop, detail: impl Into<Arc<str>>) -> Self {
        Self { hop, detail: detail.into() }
    }
}

impl Fault {
    /// The same fault with the endpoint's address in its detail.
    #[must_use]
    pub fn at(self, endpoint: Option<SocketAddr>) -> Self {
        match endpoint {
            Some(address) if self.detail.is_empty() => Self::new(self.hop, address.to_string()),
            Some(address) => Self::new(self.hop, format!("{address}: {}", self.detail)),
            None => self,
        }
    }
}

impl From<Hop> for Fault {
    fn from(hop: Hop) -> Self {
        Self { hop, detail: Arc::from("") }
    }
}
