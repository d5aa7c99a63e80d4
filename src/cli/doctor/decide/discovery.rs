//! What the backend says it serves, as portico asks it.

use std::time::Duration;

use http::HeaderValue;

use super::certificate;
use crate::cli::doctor::facts::{Answer, AsProxy, EndpointFacts, Facts, Reply};
use crate::cli::doctor::finding::{Finding, Step};
use crate::model::accept::is_aggregated;
use crate::model::discovery::legacy::ApiResource;
use crate::model::discovery::parse::{self, Found, ParseError};
use crate::model::fault::{Hop, ServicePort};

const STEP: Step = Step::Discovery;
/// Names that are shown; more are counted.
const NAMES_MAX: usize = 5;
/// An answer that takes longer is worth a word: upstream's probe gives up after five seconds.
const SLOW: Duration = Duration::from_secs(1);

pub(super) fn decide(facts: &Facts, service: &ServicePort, endpoint: &EndpointFacts) -> Finding {
    let asked = match certificate::asked_with_it(STEP, facts, endpoint) {
        Ok(asked) => asked,
        Err(finding) => return *finding,
    };
    let path = facts.path();
    let reply = match &asked.legacy {
        Ok(reply) => reply,
        Err(fault) => return Finding::fault(STEP, fault.hop, service).why(&*fault.detail),
    };
    let finding = match reply.status {
        404 => not_served(facts, asked, &format!("{path} is answered with 404")),
        _ if !reply.is_success() => Finding::fault(STEP, Hop::DiscoveryRefused, service)
            .why(format!("{path} is answered with {}: {}", reply.status, reply.message())),
        _ => match parse::legacy(&reply.body, facts.group(), facts.version()) {
            Ok(resources) => served(facts, asked, reply, &resources),
            Err(error @ ParseError::WrongVersion { .. }) => {
                not_served(facts, asked, &error.to_string())
            }
            Err(error) => {
                Finding::fault(STEP, Hop::InvalidDiscovery, service).why(error.to_string())
            }
        },
    };
    finding.took(reply.took)
}

fn not_served(facts: &Facts, asked: &AsProxy, why: &str) -> Finding {
    let (group, version) = (facts.group(), facts.version());
    let text = format!("the backend does not serve {group}/{version}");
    let listed: Vec<String> = aggregated(&asked.aggregated)
        .and_then(Result::ok)
        .iter()
        .flatten()
        .take(NAMES_MAX)
        .map(|found| format!("{}/{}", found.group, found.version))
        .collect();
    let why = if listed.is_empty() {
        format!("{why}.")
    } else {
        format!("{why}. It lists: {}.", listed.join(", "))
    };
    Finding::failed(STEP, "GroupVersionNotServed", text).why(why).change(
        "Correct the APIService's `spec.group`, `spec.version` or `spec.service`, or let the backend \
         serve the version; one that is not served any more needs no APIService.",
    )
}

/// The aggregated document; none where it is not offered.
fn aggregated(answer: &Answer) -> Option<Result<Vec<Found>, ParseError>> {
    let reply = answer.as_ref().ok().filter(|reply| reply.is_success())?;
    let content_type = HeaderValue::from_str(&reply.content_type).ok();
    is_aggregated(content_type.as_ref()).then(|| parse::aggregated(&reply.body))
}

fn served(facts: &Facts, asked: &AsProxy, reply: &Reply, resources: &[ApiResource]) -> Finding {
    let names: Vec<&str> = names(resources).collect();
    let shown = names.iter().take(NAMES_MAX).copied().collect::<Vec<_>>().join(", ");
    let more = if names.len() > NAMES_MAX { ", …" } else { "" };
    let text = format!("{} resources ({shown}{more}), {} bytes", names.len(), reply.body.len());
    let (group, version) = (facts.group(), facts.version());
    if names.is_empty() {
        return Finding::warning(STEP, "NoResources", "the version has no resources")
            .why("Clients find nothing of it, and kubectl asks for discovery on every command.")
            .change("Let the backend name its resources, or remove the APIService.");
    }
    let has = |found: &Found| found.group == group && found.version == version;
    match aggregated(&asked.aggregated) {
        Some(Ok(all)) if !all.iter().any(has) => {
            let text = format!("{text}; /apis does not list {group}/{version}");
            return Finding::warning(STEP, "GroupVersionNotListed", text)
                .why("The aggregated document of the backend lacks the version that it serves.")
                .change("Let the backend install the group before it serves `/apis`.");
        }
        Some(Err(error)) => {
            return Finding::warning(STEP, Hop::InvalidDiscovery.word(), text)
                .why(format!("The backend's `/apis`: {error}."))
                .change(crate::model::remedy::of_hop(Hop::InvalidDiscovery));
        }
        Some(Ok(_)) | None => {}
    }
    if reply.took > SLOW {
        return Finding::warning(STEP, "SlowDiscovery", text)
            .why("kube-apiserver's probe takes a backend for dead after five seconds.")
            .change("See what the backend waits for when it is asked for discovery.");
    }
    let finding = Finding::well(STEP, text);
    match &asked.aggregated {
        Ok(reply) if aggregated(&asked.aggregated).is_none() => finding.detail(format!(
            "aggregated discovery is not offered ({}): the version's own document is read",
            reply.status
        )),
        _ => finding,
    }
}

/// The resources without their subresources.
pub(super) fn names(resources: &[ApiResource]) -> impl Iterator<Item = &str> {
    resources.iter().map(|resource| resource.name.as_str()).filter(|name| !name.contains('/'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::samples::{facts, legacy, not_found, reply, status};
    use super::*;
    use crate::cli::doctor::finding::Outcome;
    use crate::model::fault::Fault;

    fn with(answer: Answer, aggregated: Answer) -> Finding {
        let mut facts = facts();
        let asked = facts.endpoints[0].asked.as_mut().unwrap().as_proxy.as_mut().unwrap();
        (asked.legacy, asked.aggregated) = (answer, aggregated);
        decide(&facts, &facts.service_ref.clone().unwrap(), &facts.endpoints[0])
    }

    #[track_caller]
    fn check(finding: &Finding, outcome: Outcome, cause: Option<&str>, words: &str) {
        assert_eq!((finding.outcome, finding.cause.as_deref()), (outcome, cause), "{finding:?}");
        assert!(format!("{finding:?}").contains(words), "{finding:?}");
        assert_eq!(finding.change.is_some(), cause.is_some());
    }

    #[expect(clippy::unnecessary_wraps, reason = "what is asked for may also fail")]
    fn listing(version: &str) -> Answer {
        let body = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2",
            "items": [{"metadata": {"name": "things.example.com"},
                       "versions": [{"version": version, "resources": []}]}]});
        let content_type =
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList".to_owned();
        Ok(Reply { content_type, ..reply(200, &body) })
    }

    #[test]
    fn the_version_is_there_with_its_resources() {
        let (well, warning, failed) = (Outcome::Well, Outcome::Warning, Outcome::Failed);
        let good = || Ok(legacy(&["things", "things/status"]));
        check(&with(good(), not_found()), well, None, "1 resources (things)");
        check(&with(good(), not_found()), well, None, "not offered (404)");
        check(&with(good(), listing("v1")), well, None, "1 resources");
        let cause = Some("GroupVersionNotListed");
        check(&with(good(), listing("v2")), warning, cause, "things.example.com/v1");
        let cause = Some("GroupVersionNotServed");
        check(&with(not_found(), listing("v2")), failed, cause, "lists: things.example.com/v2");
        let other = json!({"kind": "APIResourceList", "groupVersion": "other/v1", "resources": []});
        check(&with(Ok(reply(200, &other)), not_found()), failed, cause, "other/v1");
        check(&with(Ok(legacy(&[])), not_found()), warning, Some("NoResources"), "");
        let refused = with(Ok(status(403, "go away")), not_found());
        check(&refused, failed, Some("DiscoveryRefused"), "403: go away");
        let rubbish = with(Ok(reply(200, &json!([]))), not_found());
        check(&rubbish, failed, Some("InvalidDiscovery"), "");
        let hangs = with(Err(Fault::new(Hop::Deadline, "nothing for 5s")), not_found());
        check(&hangs, failed, Some("Deadline"), "nothing for 5s");
        let slow = Reply { took: SLOW * 2, ..legacy(&["things"]) };
        check(&with(Ok(slow), not_found()), warning, Some("SlowDiscovery"), "five seconds");
    }
}
