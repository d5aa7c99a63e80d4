//! From facts to findings: pure, hop by hop.

mod certificate;
mod connection;
mod discovery;
pub(super) mod front;
mod identity;
mod object;
mod proxied;
#[cfg(test)]
mod samples;
mod service;

use super::facts::{EndpointFacts, Facts};
use super::finding::{Finding, Step, merge};
use crate::model::fault::ServicePort;

/// The hops behind the Service.
const OF_ENDPOINTS: [Step; 6] = [
    Step::Tcp,
    Step::Tls,
    Step::ClientCertificate,
    Step::Identity,
    Step::ForgedIdentity,
    Step::Discovery,
];

/// All hops of one APIService.
pub(super) fn decide(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![object::decide(facts)];
    if facts.object.is_none() {
        return findings;
    }
    if let Some(service) = &facts.service_ref {
        findings.extend(service::decide(facts, service));
        findings.extend(behind(facts, service));
    } else {
        let hops = [Step::Service, Step::Port, Step::Endpoints].into_iter().chain(OF_ENDPOINTS);
        let why = "local: the API server serves this group itself";
        findings.extend(hops.map(|step| Finding::skipped(step, why)));
    }
    findings.push(proxied::decide(facts));
    findings
}

/// What each endpoint has to say, hop by hop.
fn behind(facts: &Facts, service: &ServicePort) -> Vec<Finding> {
    if facts.endpoints.is_empty() {
        let why = "not tried: there is no endpoint to connect to";
        return OF_ENDPOINTS.map(|step| Finding::skipped(step, why)).into();
    }
    let of_step = |step: Step| {
        let at = |endpoint: &EndpointFacts| {
            let finding = match step {
                Step::Tcp => connection::tcp(facts, service, endpoint),
                Step::Tls => connection::tls(facts, service, endpoint),
                Step::ClientCertificate => certificate::decide(facts, endpoint),
                Step::Identity => identity::honoured(facts, endpoint),
                Step::ForgedIdentity => identity::forged(endpoint),
                _ => discovery::decide(facts, service, endpoint),
            };
            finding.at(endpoint.address)
        };
        merge(facts.endpoints.iter().map(at).collect())
    };
    OF_ENDPOINTS.into_iter().flat_map(of_step).collect()
}

/// Why a hop behind the handshake was not tried.
fn not_reached(step: Step, endpoint: &EndpointFacts) -> Finding {
    let hop = if endpoint.tcp.is_err() { "no connection" } else { "no TLS" };
    Finding::skipped(step, format!("not tried: there is {hop}"))
}
