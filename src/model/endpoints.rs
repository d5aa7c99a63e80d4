//! Where a service's requests are to be sent: from a Service and its `EndpointSlices` to addresses.
//!
//! The rules are upstream's (`apiserver/pkg/util/proxy`), with two differences: all ready endpoints
//! are returned (choosing one is the balancer's work), and an ExternalName works in both modes. The
//! detail of a fault is upstream's own sentence.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointSubset, Endpoints, Service, ServicePort as Port, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::fault::{Fault, Hop, ServicePort};

/// The label by which an EndpointSlice belongs to a Service of its namespace.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// What a service resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Addresses to connect to.
    Addresses(Vec<SocketAddr>),
    /// An external name, resolved by DNS when it is needed.
    Name {
        /// The host name.
        host: String,
        /// The port.
        port: u16,
    },
    /// Hosts of one server, each verified by its own name; those that are no addresses are resolved
    /// by DNS.
    Hosts(Vec<Host>),
}

/// A host of a server that is no Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// A host name, or an address without brackets.
    pub name: String,
    /// The port.
    pub port: u16,
}

impl Targets {
    /// The names that are to be resolved; none for addresses.
    pub fn names(&self) -> Vec<(&str, u16)> {
        match self {
            Self::Addresses(_) => Vec::new(),
            Self::Name { host, port } => vec![(host, *port)],
            Self::Hosts(hosts) => hosts.iter().map(|host| (&*host.name, host.port)).collect(),
        }
    }
}

/// Which addresses of a service are used (`--enable-aggregator-routing` of upstream).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointRouting {
    /// The endpoints themselves.
    #[default]
    Endpoints,
    /// The service's virtual address.
    ClusterIp,
}

/// A Service's `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType<'a> {
    /// `ClusterIP`, also when the field is not set; headless ones too.
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName`.
    ExternalName,
    /// Anything else.
    Unknown(&'a str),
}

impl<'a> ServiceType<'a> {
    /// The type of a Service with the API server's default.
    pub fn of(service: &'a Service) -> Self {
        match service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) {
            None | Some("" | "ClusterIP") => Self::ClusterIp,
            Some("NodePort") => Self::NodePort,
            Some("LoadBalancer") => Self::LoadBalancer,
            Some("ExternalName") => Self::ExternalName,
            Some(other) => Self::Unknown(other),
        }
    }
}

/// Finds where the requests for `service_ref` go; `slices` are all `EndpointSlices` of the service.
pub fn resolve(
    service_ref: &ServicePort,
    service: Option<&Service>,
    slices: &[&EndpointSlice],
    routing: EndpointRouting,
) -> Result<Targets, Fault> {
    let name = &service_ref.name;
    let Some(service) = service else {
        return Err(Fault::new(Hop::ServiceNotFound, format!("service \"{name}\" not found")));
    };
    let nothing = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&nothing);
    match (ServiceType::of(service), routing) {
        (ServiceType::ExternalName, _) => external_name(service_ref, spec),
        (ServiceType::Unknown(other), _) => {
            Err(not_routable(format!("unsupported service type \"{other}\"")))
        }
        (service_type, EndpointRouting::ClusterIp) => {
            cluster_ip(service_ref, spec, service_type == ServiceType::ClusterIp)
        }
        (_, EndpointRouting::Endpoints) => ready_endpoints(service_ref, spec, slices),
    }
}

/// The Service's port entry for the APIService's port number.
pub fn find_port<'a>(service_ref: &ServicePort, service: &'a Service) -> Option<&'a Port> {
    service.spec.as_ref().and_then(|spec| port_of(service_ref, spec))
}

fn port_of<'a>(service_ref: &ServicePort, spec: &'a ServiceSpec) -> Option<&'a Port> {
    spec.ports.iter().flatten().find(|port| port.port == i32::from(service_ref.port))
}

fn require_port<'a>(service_ref: &ServicePort, spec: &'a ServiceSpec) -> Result<&'a Port, Fault> {
    let ServicePort { name, port, .. } = service_ref;
    port_of(service_ref, spec).ok_or_else(|| {
        let detail = format!("no service port {port} found for service \"{name}\"");
        Fault::new(Hop::ServicePortNotFound, detail)
    })
}

fn not_routable(detail: String) -> Fault {
    Fault::new(Hop::ServiceNotRoutable, detail)
}

/// The port is the APIService's own: an ExternalName service need not list it.
fn external_name(service_ref: &ServicePort, spec: &ServiceSpec) -> Result<Targets, Fault> {
    match spec.external_name.as_deref() {
        Some(host) if !host.is_empty() => {
            Ok(Targets::Name { host: host.to_owned(), port: service_ref.port })
        }
        _ => Err(not_routable(format!("service \"{}\" has no externalName", service_ref.name))),
    }
}

fn cluster_ip(
    service_ref: &ServicePort,
    spec: &ServiceSpec,
    may_be_headless: bool,
) -> Result<Targets, Fault> {
    let address = spec.cluster_ip.as_deref().unwrap_or_default();
    let unusable = || not_routable(format!("cannot route to service with ClusterIP \"{address}\""));
    if may_be_headless && address == "None" {
        return Err(unusable());
    }
    require_port(service_ref, spec)?;
    let ip: IpAddr = address.parse().ok().ok_or_else(unusable)?;
    Ok(Targets::Addresses(vec![SocketAddr::new(ip, service_ref.port)]))
}

fn ready_endpoints(
    service_ref: &ServicePort,
    spec: &ServiceSpec,
    slices: &[&EndpointSlice],
) -> Result<Targets, Fault> {
    let port_name = require_port(service_ref, spec)?.name.as_deref().unwrap_or_default();
    if slices.is_empty() {
        let detail = format!("no endpointslices of service \"{}\"", service_ref.name);
        return Err(Fault::new(Hop::EndpointsNotFound, detail));
    }
    let mut addresses: Vec<SocketAddr> =
        slices.iter().flat_map(|slice| ready_addresses(slice, port_name)).collect();
    // Sorted, so that endpoints that only change places in their slices are no change.
    addresses.sort_unstable();
    addresses.dedup();
    if let Some(v6) = primary_is_v6(spec)
        && addresses.iter().any(|address| address.is_ipv6() == v6)
    {
        addresses.retain(|address| address.is_ipv6() == v6);
    }
    if addresses.is_empty() {
        let detail = format!("no endpoints available for service \"{}\"", service_ref.name);
        return Err(Fault::new(Hop::NoEndpoints, detail));
    }
    Ok(Targets::Addresses(addresses))
}

/// The service's primary family; services written by hand often name none.
fn primary_is_v6(spec: &ServiceSpec) -> Option<bool> {
    if let Some(family) = spec.ip_families.iter().flatten().next() {
        return Some(family == "IPv6");
    }
    let address: IpAddr = spec.cluster_ip.as_deref()?.parse().ok()?;
    Some(address.is_ipv6())
}

/// The ready endpoints of one slice at the port of that name; none for slices of host names.
fn ready_addresses(slice: &EndpointSlice, port_name: &str) -> impl Iterator<Item = SocketAddr> {
    // The API server fills a missing port name with "", so an absent one means the same.
    let port = slice
        .ports
        .iter()
        .flatten()
        .filter(|port| port.name.as_deref().unwrap_or_default() == port_name)
        .find_map(|port| u16::try_from(port.port?).ok().filter(|&number| number != 0));
    let usable = if slice.address_type == "FQDN" { None } else { port };
    usable.into_iter().flat_map(|port| {
        let ready = slice.endpoints.iter().filter(|endpoint| is_ready(endpoint));
        ready.filter_map(move |endpoint| {
            let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
            Some(SocketAddr::new(ip, port))
        })
    })
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

/// The name of the Service an EndpointSlice belongs to.
pub fn service_name_of(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL).map(String::as_str)
}

/// A legacy Endpoints object as `EndpointSlices`, one for each subset and address family.
pub fn slices_of(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let subsets = endpoints.subsets.iter().flatten();
    let slices = subsets.flat_map(|subset| {
        ["IPv4", "IPv6"].into_iter().map(|family| slice_of(&endpoints.metadata, subset, family))
    });
    let mut slices: Vec<EndpointSlice> = slices.collect();
    if slices.iter().any(|slice| !slice.endpoints.is_empty()) {
        slices.retain(|slice| !slice.endpoints.is_empty());
    }
    slices
}

fn slice_of(metadata: &ObjectMeta, subset: &EndpointSubset, family: &str) -> EndpointSlice {
    let endpoints = |addresses: &Option<Vec<EndpointAddress>>, ready| -> Vec<Endpoint> {
        let of_family = addresses.iter().flatten().filter(|address| {
            address.ip.parse().is_ok_and(|ip: IpAddr| ip.is_ipv6() == (family == "IPv6"))
        });
        of_family.map(|address| endpoint(address, ready)).collect()
    };
    let mut all = endpoints(&subset.addresses, true);
    all.extend(endpoints(&subset.not_ready_addresses, false));
    let ports = subset.ports.iter().flatten().map(|port| EndpointPort {
        app_protocol: port.app_protocol.clone(),
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: port.protocol.clone(),
    });
    let label = (SERVICE_NAME_LABEL.to_owned(), metadata.name.clone().unwrap_or_default());
    EndpointSlice {
        address_type: family.to_owned(),
        endpoints: all,
        metadata: ObjectMeta {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            labels: Some([label].into()),
            ..ObjectMeta::default()
        },
        ports: Some(ports.collect()),
    }
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service_ref() -> ServicePort {
        ServicePort { namespace: "one".into(), name: "alfa".into(), port: 443 }
    }

    fn service(spec: &Value) -> Service {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "one", "name": "alfa"}, "spec": spec,
        }))
        .unwrap()
    }

    fn slice(family: &str, endpoints: &Value, ports: &Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "one", "name": "alfa-1",
                         "labels": {"kubernetes.io/service-name": "alfa"}},
            "addressType": family, "endpoints": endpoints, "ports": ports,
        }))
        .unwrap()
    }

    fn https_slice(addresses: &[&str]) -> EndpointSlice {
        let endpoints: Vec<Value> =
            addresses.iter().map(|address| json!({"addresses": [address]})).collect();
        let family = if addresses.iter().any(|a| a.contains(':')) { "IPv6" } else { "IPv4" };
        slice(family, &json!(endpoints), &json!([{"name": "https", "port": 1443}]))
    }

    fn text(resolved: Result<Targets, Fault>) -> String {
        match resolved {
            Ok(Targets::Addresses(all)) => {
                all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            }
            Ok(other) => {
                let names = other.names().into_iter();
                names.map(|(host, port)| format!("{host}:{port}")).collect::<Vec<_>>().join(" ")
            }
            Err(fault) => format!("{}: {}", fault.hop.word(), fault.detail),
        }
    }

    #[track_caller]
    fn check(spec: &Value, slices: &[EndpointSlice], cluster_ip: &str, endpoints: &str) {
        let service = service(spec);
        let slices: Vec<&EndpointSlice> = slices.iter().collect();
        let by = |routing| text(resolve(&service_ref(), Some(&service), &slices, routing));
        assert_eq!(by(EndpointRouting::ClusterIp), cluster_ip, "cluster IP");
        assert_eq!(by(EndpointRouting::Endpoints), endpoints, "endpoints");
    }

    /// Upstream's `TestResolve`.
    #[test]
    fn services_resolve_as_upstream_resolves_them() {
        let https = json!([{"name": "https", "port": 443, "targetPort": 1443}]);
        let hit = |kind: &str| json!({"type": kind, "clusterIP": "10.0.0.9", "ports": https});
        let local = || [https_slice(&["127.0.0.1"])];
        let no_port = "ServicePortNotFound: no service port 443 found for service \"alfa\"";
        let none = "NoEndpoints: no endpoints available for service \"alfa\"";
        let no_slices = "EndpointsNotFound: no endpointslices of service \"alfa\"";
        let wrong = json!({"type": "ClusterIP", "clusterIP": "10.0.0.9",
                           "ports": [{"name": "https", "port": 1443}]});
        check(&wrong, &local(), no_port, no_port);
        for kind in ["ClusterIP", "LoadBalancer", "NodePort", ""] {
            check(&hit(kind), &local(), "10.0.0.9:443", "127.0.0.1:1443");
        }
        check(&hit("ClusterIP"), &[], "10.0.0.9:443", no_slices);
        let empty = [slice("IPv4", &json!([]), &json!([{"name": "https", "port": 1443}]))];
        check(&hit("ClusterIP"), &empty, "10.0.0.9:443", none);
        let headless = json!({"type": "ClusterIP", "clusterIP": "None", "ports": https});
        let refused = "ServiceNotRoutable: cannot route to service with ClusterIP \"None\"";
        check(&headless, &local(), refused, "127.0.0.1:1443");
        check(&headless, &[], refused, no_slices);
        let external = json!({"type": "ExternalName", "externalName": "foo.bar.com"});
        check(&external, &[], "foo.bar.com:443", "foo.bar.com:443");
        let unsupported = "ServiceNotRoutable: unsupported service type \"strange\"";
        check(&hit("strange"), &local(), unsupported, unsupported);
        let missing = resolve(&service_ref(), None, &[], EndpointRouting::Endpoints);
        assert_eq!(text(missing), "ServiceNotFound: service \"alfa\" not found");
    }

    /// Upstream's `TestResolveEndpointDistribution`.
    #[test]
    fn every_ready_endpoint_of_every_slice_is_a_target() {
        let spec = json!({"ports": [{"name": "https", "port": 443}], "clusterIP": "10.0.0.9"});
        let mixed = slice(
            "IPv4",
            &json!([
                {"addresses": ["127.0.0.3"], "conditions": {"ready": true}},
                {"addresses": ["127.0.0.2", "127.0.0.9"]},
                {"addresses": ["127.0.0.4"], "conditions": {"ready": false}},
                {"addresses": ["127.0.0.3"]},
            ]),
            &json!([{"name": "other", "port": 99}, {"name": "https", "port": 1443}]),
        );
        let wrong_port = slice(
            "IPv4",
            &json!([{"addresses": ["127.0.0.7"]}]),
            &json!([{"name": "http", "port": 80}, {"name": "https"}, {"port": 1}]),
        );
        let names = slice(
            "FQDN",
            &json!([{"addresses": ["10.0.0.1"]}]),
            &json!([{"name": "https", "port": 1443}]),
        );
        let slices = [wrong_port, mixed, https_slice(&["127.0.0.1"]), names];
        check(&spec, &slices, "10.0.0.9:443", "127.0.0.1:1443 127.0.0.2:1443 127.0.0.3:1443");
    }

    #[test]
    fn the_primary_family_is_preferred_while_it_has_a_ready_endpoint() {
        let spec = |families: Value| json!({"ports": [{"name": "https", "port": 443}], "clusterIP": "10.0.0.9", "ipFamilies": families});
        let both = [https_slice(&["fd00::1"]), https_slice(&["127.0.0.1"])];
        check(&spec(json!(["IPv4", "IPv6"])), &both, "10.0.0.9:443", "127.0.0.1:1443");
        check(&spec(json!(["IPv6", "IPv4"])), &both, "10.0.0.9:443", "[fd00::1]:1443");
        check(&spec(json!(["IPv4"])), &both[..1], "10.0.0.9:443", "[fd00::1]:1443");
        check(&spec(Value::Null), &both, "10.0.0.9:443", "127.0.0.1:1443");
    }

    #[test]
    fn an_unnamed_port_matches_an_unnamed_port_only() {
        let spec = json!({"ports": [{"port": 443}], "clusterIP": "10.0.0.9"});
        let endpoints = json!([{"addresses": ["127.0.0.1"]}]);
        let unnamed = slice("IPv4", &endpoints, &json!([{"port": 8443}]));
        let empty = slice("IPv4", &endpoints, &json!([{"name": "", "port": 8443}]));
        check(&spec, &[unnamed], "10.0.0.9:443", "127.0.0.1:8443");
        check(&spec, &[empty], "10.0.0.9:443", "127.0.0.1:8443");
        let named = [https_slice(&["127.0.0.1"])];
        let none = "NoEndpoints: no endpoints available for service \"alfa\"";
        check(&spec, &named, "10.0.0.9:443", none);
    }

    #[test]
    fn legacy_endpoints_become_slices() {
        let endpoints: Endpoints = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"namespace": "one", "name": "alfa"},
            "subsets": [{
                "addresses": [{"ip": "127.0.0.1"}, {"ip": "fd00::1"}],
                "notReadyAddresses": [{"ip": "127.0.0.2"}],
                "ports": [{"port": 8443}],
            }],
        }))
        .unwrap();
        let slices = slices_of(&endpoints);
        assert_eq!(slices.len(), 2);
        assert!(slices.iter().all(|slice| service_name_of(slice) == Some("alfa")));
        let spec = json!({"ports": [{"port": 443}], "clusterIP": "10.0.0.9"});
        check(&spec, &slices, "10.0.0.9:443", "127.0.0.1:8443");
        // Endpoints without addresses still say that somebody looks after the service.
        let bare = Endpoints { subsets: Some(vec![EndpointSubset::default()]), ..endpoints };
        assert!(!slices_of(&bare).is_empty());
    }
}
