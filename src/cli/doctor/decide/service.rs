//! Service, port and endpoints: where requests would go.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::cli::doctor::facts::{Facts, Sought};
use crate::cli::doctor::finding::{Finding, Outcome, Step};
use crate::model::endpoints::{EndpointRouting, ServiceType, find_port, resolve};
use crate::model::fault::{Fault, Hop, ServicePort};

/// Addresses that are named in a line.
const SHOWN_MAX: usize = 4;

pub(super) fn decide(facts: &Facts, service_ref: &ServicePort) -> [Finding; 3] {
    let skipped = |step, why: &str| Finding::skipped(step, why);
    let service = match &facts.service {
        Sought::Found(service) => service,
        Sought::Missing => {
            let failed = Finding::fault(Step::Service, Hop::ServiceNotFound, service_ref);
            let why = "not tried: there is no Service";
            return [failed, skipped(Step::Port, why), skipped(Step::Endpoints, why)];
        }
        Sought::Unknown(why) => {
            let why = format!("cannot be known: {why}");
            return [Step::Service, Step::Port, Step::Endpoints].map(|step| skipped(step, &why));
        }
    };
    let none = Vec::new();
    let slices = facts.slices.found().unwrap_or(&none);
    let refs: Vec<&EndpointSlice> = slices.iter().collect();
    let fault = resolve(service_ref, Some(service), &refs, facts.routing).err();
    let first = of_service(service_ref, service, fault.as_ref());
    if first.outcome == Outcome::Failed {
        let why = "not tried: the Service cannot be routed to";
        return [first, skipped(Step::Port, why), skipped(Step::Endpoints, why)];
    }
    let port = of_port(service_ref, service, fault.as_ref());
    let endpoints = if port.outcome == Outcome::Failed {
        skipped(Step::Endpoints, "not tried: the Service has no such port")
    } else {
        of_endpoints(facts, service_ref, service, fault.as_ref())
    };
    [first, port, endpoints]
}

fn type_word(service: &Service) -> String {
    let spec = service.spec.as_ref();
    let headless = spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
    match ServiceType::of(service) {
        ServiceType::ClusterIp if headless => "ClusterIP, headless".to_owned(),
        ServiceType::ClusterIp => "ClusterIP".to_owned(),
        ServiceType::NodePort => "NodePort".to_owned(),
        ServiceType::LoadBalancer => "LoadBalancer".to_owned(),
        ServiceType::ExternalName => {
            let host = spec.and_then(|spec| spec.external_name.as_deref()).unwrap_or_default();
            format!("ExternalName {host}")
        }
        ServiceType::Unknown(other) => format!("type {other:?}"),
    }
}

fn of_service(service_ref: &ServicePort, service: &Service, fault: Option<&Fault>) -> Finding {
    match fault {
        Some(fault) if fault.hop == Hop::ServiceNotRoutable => {
            Finding::fault(Step::Service, fault.hop, service_ref).why(&*fault.detail)
        }
        _ => {
            let ServicePort { namespace, name, .. } = service_ref;
            Finding::well(Step::Service, format!("{namespace}/{name}, {}", type_word(service)))
        }
    }
}

fn of_port(service_ref: &ServicePort, service: &Service, fault: Option<&Fault>) -> Finding {
    let port = service_ref.port;
    if fault.is_some_and(|fault| fault.hop == Hop::ServicePortNotFound) {
        let spec = service.spec.as_ref();
        let ports = spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let ports: Vec<String> = ports.map(|port| port.port.to_string()).collect();
        let why = if ports.is_empty() {
            "The Service has no port at all.".to_owned()
        } else {
            format!("The Service's ports are: {}.", ports.join(", "))
        };
        return Finding::fault(Step::Port, Hop::ServicePortNotFound, service_ref).why(why);
    }
    let Some(found) = find_port(service_ref, service) else {
        return Finding::well(Step::Port, format!("{port}, which the external name is asked at"));
    };
    let target = match &found.target_port {
        Some(IntOrString::Int(number)) => format!(", target port {number}"),
        Some(IntOrString::String(name)) => format!(", target port {name:?}"),
        None => String::new(),
    };
    let name = found.name.as_deref().unwrap_or_default();
    let name = if name.is_empty() { "without a name" } else { &format!("{name:?}") };
    Finding::well(Step::Port, format!("{port}, {name}{target}"))
}

fn of_endpoints(
    facts: &Facts,
    service_ref: &ServicePort,
    service: &Service,
    fault: Option<&Fault>,
) -> Finding {
    if let Some(resolved) = &facts.resolved {
        return match resolved {
            Ok(addresses) => {
                let addresses = addresses.iter().map(ToString::to_string).collect();
                Finding::well(Step::Endpoints, listed(addresses, "the name's address"))
            }
            Err(why) => {
                Finding::fault(Step::Endpoints, Hop::NameNotResolved, service_ref).why(why.as_str())
            }
        };
    }
    if let (Sought::Unknown(why), EndpointRouting::Endpoints) = (&facts.slices, facts.routing) {
        return Finding::skipped(Step::Endpoints, format!("cannot be known: {why}"));
    }
    if let Some(fault) = fault {
        let none = Vec::new();
        let slices = facts.slices.found().unwrap_or(&none);
        return Finding::fault(Step::Endpoints, fault.hop, service_ref).why(why_none(
            service_ref,
            service,
            slices,
        ));
    }
    let all = facts.endpoints.iter().map(|endpoint| endpoint.address.to_string());
    let what = match facts.routing {
        EndpointRouting::Endpoints => "ready",
        EndpointRouting::ClusterIp => "the cluster IP",
    };
    let finding = Finding::well(Step::Endpoints, listed(all.collect(), what));
    if facts.left_out == 0 {
        return finding;
    }
    finding.detail(format!("{} more are not tried here", facts.left_out))
}

fn listed(addresses: Vec<String>, what: &str) -> String {
    let count = addresses.len();
    let shown: Vec<String> = addresses.into_iter().take(SHOWN_MAX).collect();
    let more = if count > shown.len() { ", …" } else { "" };
    format!("{count} {what}: {}{more}", shown.join(", "))
}

/// What the slices hold instead of a ready address for the port.
fn why_none(service_ref: &ServicePort, service: &Service, slices: &[EndpointSlice]) -> String {
    if slices.is_empty() {
        let spec = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let selector = spec.filter(|selector| !selector.is_empty()).map(|selector| {
            let pairs: Vec<String> = selector.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("The Service's selector is {}.", pairs.join(","))
        });
        let none = "The Service has no selector, so nobody makes EndpointSlices for it.";
        return selector.unwrap_or_else(|| none.to_owned());
    }
    let all = || slices.iter().flat_map(|slice| &slice.endpoints);
    let ready = |ready: &Option<bool>| ready.unwrap_or(true);
    let not_ready =
        all().filter(|one| one.conditions.as_ref().is_some_and(|it| !ready(&it.ready))).count();
    let count = all().count();
    let wanted = find_port(service_ref, service).and_then(|port| port.name.as_deref());
    let wanted = wanted.unwrap_or_default();
    let names: BTreeSet<&str> = slices
        .iter()
        .flat_map(|slice| slice.ports.iter().flatten())
        .map(|port| port.name.as_deref().unwrap_or_default())
        .collect();
    let mut why =
        format!("{count} endpoints in {} slices, {not_ready} of them not ready.", slices.len());
    if !names.contains(wanted) {
        let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let text = format!(" The Service's port is named {wanted:?}, the slices' ports: {names}.");
        why.push_str(&text);
    }
    if slices.iter().all(|slice| slice.address_type == "FQDN") {
        why += " The slices hold host names (FQDN), which nobody routes to.";
    }
    why
}

#[cfg(test)]
mod tests {
    use super::super::samples::{facts, service_of, slices_of};
    use super::*;

    #[track_caller]
    fn check(facts: &Facts, step: Step, cause: Option<&str>, words: &str) {
        let service = facts.service_ref.clone().unwrap();
        let findings = decide(facts, &service);
        let finding = findings.iter().find(|finding| finding.step == step).unwrap();
        assert_eq!(finding.cause.as_deref(), cause, "{finding:?}");
        assert!(format!("{finding:?}").contains(words), "{finding:?}");
        assert_eq!(finding.change.is_some(), cause.is_some());
        let after = findings.iter().filter(|finding| finding.step > step);
        assert!(cause.is_none() || after.clone().all(|it| it.outcome == Outcome::Skipped));
    }

    #[test]
    fn each_hop_to_an_address_can_fail() {
        let case = |service: &str, slices: &str| {
            let mut facts = facts();
            facts.service = Sought::Found(service_of(service));
            facts.slices = Sought::Found(slices_of(slices));
            facts
        };
        let good = r#"{"ports": [{"name": "https", "port": 443, "targetPort": "tls"}]}"#;
        let ready = r#"[{"addresses": ["10.0.0.1"]}]"#;
        check(&case(good, ready), Step::Port, None, r#"target port \"tls\""#);
        check(&case(good, ready), Step::Endpoints, None, "ready");
        let mut gone = facts();
        gone.service = Sought::Missing;
        check(&gone, Step::Service, Some("ServiceNotFound"), "is not present");
        let strange = r#"{"type": "Magic"}"#;
        check(&case(strange, ready), Step::Service, Some("ServiceNotRoutable"), "Magic");
        let other = r#"{"ports": [{"port": 80}, {"port": 8443}]}"#;
        check(&case(other, ready), Step::Port, Some("ServicePortNotFound"), "are: 80, 8443");
        let none = case(r#"{"ports": [{"port": 443}], "selector": {"app": "x"}}"#, "null");
        check(&none, Step::Endpoints, Some("EndpointsNotFound"), "selector is app=x");
        let unready = r#"[{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}]"#;
        let unready = case(good, unready);
        check(&unready, Step::Endpoints, Some("NoEndpoints"), "1 of them not ready");
        let misnamed = r#"{"ports": [{"name": "web", "port": 443}]}"#;
        let words = r#"is named \"web\", the slices' ports: \"https\""#;
        check(&case(misnamed, ready), Step::Endpoints, Some("NoEndpoints"), words);
        let mut external = case(r#"{"type": "ExternalName", "externalName": "a.invalid"}"#, ready);
        external.resolved = Some(Err("no such host".to_owned()));
        check(&external, Step::Endpoints, Some("NameNotResolved"), "no such host");
    }

    #[test]
    fn what_cannot_be_read_is_no_failure() {
        let mut facts = facts();
        facts.service = Sought::Unknown("forbidden".to_owned());
        let findings = decide(&facts, &facts.service_ref.clone().unwrap());
        assert!(findings.iter().all(|finding| finding.outcome == Outcome::Skipped));
    }
}
