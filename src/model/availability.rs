//! Whether an APIService is available: from facts to the condition that is written and to the fault
//! that its callers are answered with.
//!
//! Order of the checks, reasons and messages are upstream's
//! (`kube-aggregator/pkg/controllers/status/remote:sync`).

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIServiceCondition;

use super::endpoints::{EndpointRouting, ServiceType, Targets, find_port, resolve};
use super::fault::{Fault, Hop, ServicePort};
use super::probing::Probed;

/// The only type of condition an APIService has.
pub const AVAILABLE: &str = "Available";

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// `True`.
    True,
    /// `False`.
    False,
    /// `Unknown`.
    Unknown,
}

impl Status {
    /// As it is written in the object.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// The conditions that somebody else wrote, by the name of the APIService: shown, not obeyed.
pub type Reported = BTreeMap<Arc<str>, APIServiceCondition>;

/// A condition of type `Available`, without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Whether it holds.
    pub status: Status,
    /// The one word.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
}

impl Condition {
    /// What an APIService without a service always is.
    pub fn local() -> Self {
        Self {
            status: Status::True,
            reason: "Local",
            message: "Local APIServices are always available".to_owned(),
        }
    }

    /// Every check passed.
    pub fn passed() -> Self {
        Self { status: Status::True, reason: "Passed", message: "all checks passed".to_owned() }
    }

    /// The APIService cannot be reached.
    pub fn failed(reason: &'static str, message: String) -> Self {
        Self { status: Status::False, reason, message }
    }
}

/// What is known about one APIService.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The service it names; none for a local one.
    pub service_ref: Option<&'a ServicePort>,
    /// That service.
    pub service: Option<&'a Service>,
    /// All `EndpointSlices` of that service.
    pub slices: &'a [&'a EndpointSlice],
    /// How services are reached.
    pub routing: EndpointRouting,
}

/// The decision about one APIService.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What is written to the object's status; none until its backend has been asked.
    pub condition: Option<Condition>,
    /// Where its requests go: none for a local APIService, and where nobody can be asked.
    pub targets: Option<Targets>,
    /// What its callers are answered with; none when it can be reached.
    pub fault: Option<Fault>,
}

impl Verdict {
    /// With what its backend said when it was asked for `path`, where there is somebody to ask. Until
    /// then requests go there: what they find is as good.
    #[must_use]
    pub fn asked(self, probed: &Probed, service: &ServicePort, path: &str) -> Self {
        if self.targets.is_none() {
            return self;
        }
        match probed {
            Probed::Unasked | Probed::Passed => self,
            Probed::Awaited => Self { condition: None, ..self },
            Probed::Failed(failure) => {
                let message = failure.message(service, path);
                let condition = Condition::failed("FailedDiscoveryCheck", message);
                Self { condition: Some(condition), fault: Some(failure.fault()), ..self }
            }
        }
    }
}

/// Decides by the objects; first failing check wins.
pub fn decide(facts: &Facts<'_>) -> Verdict {
    let Some(service_ref) = facts.service_ref else {
        return Verdict { condition: Some(Condition::local()), targets: None, fault: None };
    };
    let by = |routing| resolve(service_ref, facts.service, facts.slices, routing);
    if needs_endpoints(facts)
        && let Err(fault) = by(EndpointRouting::Endpoints)
    {
        return unavailable(missing(service_ref, facts.service, &fault), fault);
    }
    match by(facts.routing) {
        Ok(targets) => {
            let condition = Some(Condition::passed());
            Verdict { condition, targets: Some(targets), fault: None }
        }
        // Upstream's probe fails with the resolver's own words.
        Err(fault) => {
            let condition = Condition::failed("FailedDiscoveryCheck", fault.detail.to_string());
            unavailable(condition, fault)
        }
    }
}

fn unavailable(condition: Condition, fault: Fault) -> Verdict {
    Verdict { condition: Some(condition), targets: None, fault: Some(fault) }
}

/// Upstream looks at endpoints for the type ClusterIP only; who routes to endpoints needs them for
/// every type that has them.
fn needs_endpoints(facts: &Facts<'_>) -> bool {
    match facts.service.map(ServiceType::of) {
        None | Some(ServiceType::ClusterIp) => true,
        Some(ServiceType::NodePort | ServiceType::LoadBalancer) => {
            facts.routing == EndpointRouting::Endpoints
        }
        Some(ServiceType::ExternalName | ServiceType::Unknown(_)) => false,
    }
}

fn missing(service_ref: &ServicePort, service: Option<&Service>, fault: &Fault) -> Condition {
    let reason = match fault.hop {
        Hop::ServicePortNotFound => "ServicePortError",
        Hop::NoEndpoints => {
            let port = service.and_then(|service| find_port(service_ref, service));
            let port_name = port.and_then(|port| port.name.as_deref()).unwrap_or_default();
            let ServicePort { namespace, name, .. } = service_ref;
            let message = format!(
                "endpointslices for service/{name} in \"{namespace}\" have no addresses with port \
                 name \"{port_name}\""
            );
            return Condition::failed("MissingEndpoints", message);
        }
        // `ServiceNotFound` and `EndpointsNotFound` are upstream's words too.
        other => other.word(),
    };
    Condition::failed(reason, fault.hop.sentence(service_ref))
}

/// Puts `new` in place of the condition of type `Available`; true when anything changed. The time
/// of the last transition changes with the status only; other types are left alone.
pub fn set_condition(
    conditions: &mut Vec<APIServiceCondition>,
    new: &Condition,
    now: Timestamp,
) -> bool {
    let changed = APIServiceCondition {
        last_transition_time: Some(Time(now)),
        message: Some(new.message.clone()),
        reason: Some(new.reason.to_owned()),
        status: new.status.as_str().to_owned(),
        type_: AVAILABLE.to_owned(),
    };
    let Some(existing) = conditions.iter_mut().find(|condition| condition.type_ == AVAILABLE)
    else {
        // Mostly the only one.
        conditions.reserve_exact(1);
        conditions.push(changed);
        return true;
    };
    let same_status = existing.status == changed.status;
    let time = if same_status { existing.last_transition_time.clone() } else { None };
    let changed = APIServiceCondition {
        last_transition_time: time.or(changed.last_transition_time),
        ..changed
    };
    let differs = *existing != changed;
    *existing = changed;
    differs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::probing::Failure;
    use serde_json::{Value, json};

    fn service(spec: &Value) -> Service {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Service", "spec": spec}))
            .unwrap()
    }

    fn cluster_ip(port: u16) -> Service {
        typed("ClusterIP", port)
    }

    fn typed(kind: &str, port: u16) -> Service {
        let port = json!({"name": "testPort", "port": port});
        service(&json!({"type": kind, "clusterIP": "10.0.0.9", "ports": [port]}))
    }

    fn slice(ready: bool, port_name: &str) -> EndpointSlice {
        let endpoint = json!({"addresses": ["127.0.0.1"], "conditions": {"ready": ready}});
        serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "endpoints": [endpoint], "ports": [{"name": port_name, "port": 6443}],
        }))
        .unwrap()
    }

    fn decided(
        service: Option<&Service>,
        slices: &[EndpointSlice],
        routing: EndpointRouting,
    ) -> Verdict {
        let service_ref = ServicePort { namespace: "foo".into(), name: "bar".into(), port: 1234 };
        let slices: Vec<&EndpointSlice> = slices.iter().collect();
        decide(&Facts { service_ref: Some(&service_ref), service, slices: &slices, routing })
    }

    #[track_caller]
    fn check(
        service: Option<&Service>,
        slices: &[EndpointSlice],
        routing: EndpointRouting,
        (status, reason, message): (Status, &str, &str),
    ) {
        let verdict = decided(service, slices, routing);
        let condition = verdict.condition.as_ref().unwrap();
        assert_eq!((condition.status, condition.reason), (status, reason));
        assert_eq!(condition.message, message);
        assert_eq!(verdict.fault.is_none(), status == Status::True);
        assert_eq!(verdict.targets.is_some(), status == Status::True);
    }

    const PASSED: (Status, &str, &str) = (Status::True, "Passed", "all checks passed");
    const MISSING: (Status, &str, &str) = (
        Status::False,
        "MissingEndpoints",
        "endpointslices for service/bar in \"foo\" have no addresses with port name \"testPort\"",
    );

    /// Upstream's `TestSync` without the probe.
    #[test]
    fn conditions_have_upstreams_reasons_and_messages() {
        let both = [EndpointRouting::Endpoints, EndpointRouting::ClusterIp];
        for routing in both {
            let not_found = "service/bar in \"foo\" is not present";
            check(None, &[], routing, (Status::False, "ServiceNotFound", not_found));
            let port = "service/bar in \"foo\" is not listening on port 1234";
            let bad_port = (Status::False, "ServicePortError", port);
            check(Some(&cluster_ip(6443)), &[slice(true, "testPort")], routing, bad_port);
            let none = "cannot find endpointslices for service/bar in \"foo\"";
            let service = cluster_ip(1234);
            check(Some(&service), &[], routing, (Status::False, "EndpointsNotFound", none));
            check(Some(&service), &[slice(false, "testPort")], routing, MISSING);
            check(Some(&service), &[slice(true, "wrongName")], routing, MISSING);
            check(Some(&service), &[slice(true, "testPort")], routing, PASSED);
        }
    }

    #[test]
    fn endpoints_of_other_types_count_only_when_they_are_routed_to() {
        for kind in ["NodePort", "LoadBalancer"] {
            let service = typed(kind, 1234);
            check(Some(&service), &[], EndpointRouting::ClusterIp, PASSED);
            check(Some(&service), &[slice(false, "testPort")], EndpointRouting::Endpoints, MISSING);
        }
        let name = service(&json!({"type": "ExternalName", "externalName": "example.com"}));
        check(Some(&name), &[], EndpointRouting::ClusterIp, PASSED);
        check(Some(&name), &[], EndpointRouting::Endpoints, PASSED);
    }

    #[test]
    fn a_service_that_cannot_be_routed_to_fails_as_upstreams_probe_does() {
        let port = json!({"name": "testPort", "port": 1234});
        let headless = service(&json!({"clusterIP": "None", "ports": [port]}));
        let message = "cannot route to service with ClusterIP \"None\"";
        let expected = (Status::False, "FailedDiscoveryCheck", message);
        let ready = [slice(true, "testPort")];
        check(Some(&headless), &ready, EndpointRouting::ClusterIp, expected);
        check(Some(&headless), &ready, EndpointRouting::Endpoints, PASSED);
    }

    #[test]
    fn a_local_api_service_is_always_available() {
        let facts = Facts {
            service_ref: None,
            service: None,
            slices: &[],
            routing: EndpointRouting::ClusterIp,
        };
        let verdict = decide(&facts);
        assert_eq!((verdict.condition, verdict.fault), (Some(Condition::local()), None));
    }

    #[test]
    fn the_backends_word_counts_where_it_can_be_asked() {
        let service_ref = ServicePort { namespace: "foo".into(), name: "bar".into(), port: 1234 };
        let (service, slice) = (cluster_ip(1234), slice(true, "testPort"));
        let decided = |probed: &Probed, slices: &[&EndpointSlice]| {
            let facts = Facts {
                service_ref: Some(&service_ref),
                service: Some(&service),
                slices,
                routing: EndpointRouting::Endpoints,
            };
            decide(&facts).asked(probed, &service_ref, "/apis/g/v1")
        };
        let awaited = decided(&Probed::Awaited, &[&slice]);
        assert_eq!((awaited.condition, awaited.fault), (None, None));
        assert_eq!(decided(&Probed::Unasked, &[&slice]).condition, Some(Condition::passed()));
        let failed = Probed::Failed(Failure::Status(403));
        let refused = decided(&failed, &[&slice]);
        let url = "https://bar.foo.svc:1234/apis/g/v1";
        let text = format!("failing or missing response from {url}: bad status from {url}: 403");
        assert_eq!(refused.condition, Some(Condition::failed("FailedDiscoveryCheck", text)));
        assert_eq!(refused.fault.map(|fault| fault.hop), Some(Hop::ProbeForbidden));
        // It is asked on there.
        assert!(refused.targets.is_some());
        let nowhere = decided(&failed, &[]);
        assert_eq!(nowhere.condition.unwrap().reason, "EndpointsNotFound");
    }

    #[test]
    fn the_transition_time_changes_with_the_status_only() {
        let at = |second| Timestamp::new(second, 0).unwrap();
        let failed = |message: &str| Condition::failed("ServiceNotFound", message.to_owned());
        let mut conditions =
            vec![APIServiceCondition { type_: "Other".into(), ..APIServiceCondition::default() }];
        assert!(set_condition(&mut conditions, &failed("a"), at(1)));
        assert!(set_condition(&mut conditions, &failed("b"), at(2)));
        assert!(!set_condition(&mut conditions, &failed("b"), at(3)));
        assert_eq!(conditions[1].last_transition_time, Some(Time(at(1))));
        assert_eq!(conditions[1].message.as_deref(), Some("b"));
        assert!(set_condition(&mut conditions, &Condition::passed(), at(4)));
        assert_eq!(conditions[1].last_transition_time, Some(Time(at(4))));
        assert_eq!((conditions.len(), conditions[0].type_.as_str()), (2, "Other"));
    }
}
