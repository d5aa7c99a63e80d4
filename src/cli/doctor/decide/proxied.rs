//! The same read through the aggregator, compared with what the backend itself answered.

use std::collections::BTreeSet;

use super::discovery::names;
use crate::cli::doctor::facts::{Facts, Proxied, Reply};
use crate::cli::doctor::finding::{Finding, Outcome, Step};
use crate::model::discovery::legacy::ApiResource;
use crate::model::discovery::parse;
use crate::model::fault::Hop;
use crate::model::remedy;

const STEP: Step = Step::ProxiedRead;

pub(super) fn decide(facts: &Facts) -> Finding {
    let Some(proxied) = &facts.proxied else {
        let text = "not tried: name the aggregator with --kubeconfig or --server";
        return Finding::skipped(STEP, text);
    };
    let path = facts.path();
    let reply = match answered(proxied, &path, &proxied.discovery) {
        Ok(reply) => reply,
        Err(finding) => return *finding,
    };
    let Ok(resources) = parse::legacy(&reply.body, facts.group(), facts.version()) else {
        let text = format!("{path} of {} cannot be read", proxied.server);
        return Finding::failed(STEP, Hop::InvalidDiscovery.word(), text)
            .change(remedy::of_hop(Hop::InvalidDiscovery));
    };
    let mut finding = match differences(facts, &resources) {
        Some(why) => Finding::warning(
            STEP,
            "DiscoveryDiffers",
            "the aggregator shows other resources than the backend",
        )
        .why(why)
        .change(
            "It shows what it asked for last: wait a minute, and ask again. If it stays, the \
             endpoints do not serve the same.",
        ),
        None => Finding::well(STEP, format!("{} answers {path}", proxied.server)),
    }
    .took(reply.took);
    if let Some((path, list)) = &proxied.list {
        match answered(proxied, path, list) {
            Ok(list) => {
                let direct = directly(facts).map(|direct| format!(", itself {}", told(direct)));
                finding =
                    finding.detail(format!("{path}: {}{}", told(list), direct.unwrap_or_default()));
            }
            Err(worse) if worse.outcome == Outcome::Failed => return *worse,
            Err(skipped) => finding = finding.detail(skipped.summary),
        }
    }
    finding
}

fn told(reply: &Reply) -> String {
    format!("{} in {:.1} ms", reply.status, reply.took.as_secs_f64() * 1e3)
}

/// The list as the backend itself answered it.
fn directly(facts: &Facts) -> Option<&Reply> {
    facts.endpoints.iter().find_map(|endpoint| {
        let asked = endpoint.asked.as_ref()?.as_proxy.as_ref()?;
        asked.list.as_ref()?.1.as_ref().ok()
    })
}

/// A good answer, or the finding about another.
fn answered<'a>(
    proxied: &Proxied,
    path: &str,
    answer: &'a Result<Reply, String>,
) -> Result<&'a Reply, Box<Finding>> {
    let server = &proxied.server;
    let reply = answer.as_ref().map_err(|error| {
        let finding = Finding::failed(STEP, "NoAnswer", format!("{server} does not answer {path}"))
            .why(error.as_str())
            .change("See the aggregator's log; --timeout lets the doctor wait for longer.");
        Box::new(finding)
    })?;
    match reply.status {
        200..300 => Ok(reply),
        status => Err(Box::new(refused(server, path, status, reply))),
    }
}

fn refused(server: &str, path: &str, status: u16, reply: &Reply) -> Finding {
    let text = format!("{server} answers {path} with {status}");
    if reply.is_refusal() {
        return Finding::skipped(STEP, format!("the user may not read it: {}", reply.message()));
    }
    if status == 404 {
        return Finding::failed(STEP, "NotRouted", text)
            .why(
                "It does not route this group and version: it has other APIServices, or has not \
                 seen this one yet.",
            )
            .change("Register the APIService with this aggregator, or name the one that has it.");
    }
    let cause = reply.cause();
    let is_word = |hop: &Hop| Some(hop.word()) == cause.as_deref();
    let change = Hop::ALL.into_iter().find(is_word).map_or(
        "The hops above say why. If all are well, the aggregator reaches the backend another way \
         than this machine: run the doctor where it runs.",
        remedy::of_hop,
    );
    let cause = cause.as_deref().unwrap_or("ProxiedReadFailed");
    Finding::failed(STEP, cause, text).why(reply.message()).change(change)
}

/// Names of resources that only one of the two has.
fn differences(facts: &Facts, shown: &[ApiResource]) -> Option<String> {
    let direct = facts.endpoints.iter().find_map(|endpoint| {
        let reply = endpoint.asked.as_ref()?.as_proxy.as_ref()?.legacy.as_ref().ok()?;
        parse::legacy(&reply.body, facts.group(), facts.version()).ok()
    })?;
    let (direct, shown): (BTreeSet<&str>, BTreeSet<&str>) =
        (names(&direct).collect(), names(shown).collect());
    let only = |one: &BTreeSet<&str>, other: &BTreeSet<&str>| -> Vec<String> {
        one.difference(other).map(|name| (*name).to_owned()).collect()
    };
    let (missing, extra) = (only(&direct, &shown), only(&shown, &direct));
    let part = |what: &str, names: &[String]| {
        (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
    };
    let parts = [part("only the backend has", &missing), part("only the aggregator has", &extra)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("{}.", parts.join("; ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::samples::{facts, legacy, reply, status};
    use super::*;

    #[track_caller]
    fn check(
        discovery: Result<Reply, String>,
        list: Result<Reply, String>,
        outcome: Outcome,
        cause: Option<&str>,
        words: &str,
    ) {
        let mut facts = facts();
        let proxied = facts.proxied.as_mut().unwrap();
        proxied.discovery = discovery;
        proxied.list.as_mut().unwrap().1 = list;
        let finding = decide(&facts);
        assert_eq!((finding.outcome, finding.cause.as_deref()), (outcome, cause), "{finding:?}");
        assert!(format!("{finding:?}").contains(words), "{finding:?}");
        assert_eq!(finding.change.is_some(), cause.is_some());
    }

    #[test]
    fn what_the_aggregator_answers_is_compared() {
        let good = || Ok(legacy(&["things"]));
        let list = || Ok(reply(200, &json!({"items": []})));
        let (well, failed) = (Outcome::Well, Outcome::Failed);
        check(good(), list(), well, None, "things?limit=1: 200 in 3.0 ms");
        let differs = Some("DiscoveryDiffers");
        let others = Ok(legacy(&["others"]));
        check(others, list(), Outcome::Warning, differs, "only the backend has: things");
        let portico = json!({"kind": "Status", "message": "connecting to ns/things:443: timed out",
                             "details": {"causes": [{"reason": "ConnectTimeout"}]}});
        let timeout = || Ok(reply(503, &portico));
        check(timeout(), list(), failed, Some("ConnectTimeout"), "network policies");
        check(good(), timeout(), failed, Some("ConnectTimeout"), "things?limit=1 with 503");
        let upstream =
            Ok(Reply { status: 503, body: b"service unavailable\n".to_vec(), ..Reply::default() });
        check(upstream, list(), failed, Some("ProxiedReadFailed"), "service unavailable");
        check(Ok(status(404, "no")), list(), failed, Some("NotRouted"), "404");
        check(Ok(status(403, "not you")), list(), Outcome::Skipped, None, "not you");
        check(good(), Ok(status(403, "not you")), well, None, "not you");
        check(Err("timed out".to_owned()), list(), failed, Some("NoAnswer"), "timed out");
    }
}
