//! The APIService itself, and what the aggregator says about it.

use crate::cli::doctor::facts::Facts;
use crate::cli::doctor::finding::{Finding, Step};
use crate::model::api_service::validate;

const STEP: Step = Step::Object;

pub(super) fn decide(facts: &Facts) -> Finding {
    let Some(object) = &facts.object else { return missing(facts) };
    let faults: Vec<String> = validate(object).iter().map(ToString::to_string).collect();
    if !faults.is_empty() {
        return Finding::failed(STEP, "InvalidAPIService", "the APIService is not valid")
            .details(faults)
            .change("Correct the fields that are named; portico leaves such an object out.");
    }
    let (group, version) = (facts.group(), facts.version());
    let group = if group.is_empty() { "the core group" } else { &format!("group {group}") };
    let what = format!("{group}, version {version}");
    match facts.available() {
        None => Finding::well(STEP, format!("{what}; nobody has written a condition yet")),
        Some(("True", reason, _)) => Finding::well(STEP, format!("{what}; Available ({reason})")),
        Some((status, reason, message)) => {
            let cause = if reason.is_empty() { "Unavailable" } else { reason };
            Finding::failed(STEP, cause, format!("{what}; Available is {status}"))
                .why(format!("The aggregator says: {message}"))
                .change(
                    "Look at the hops below. If all are well, what is wrong lies between the \
                     aggregator and the backend: run the doctor where the aggregator runs.",
                )
        }
    }
}

fn missing(facts: &Facts) -> Finding {
    let text = format!("there is no APIService \"{}\" in {}", facts.name, facts.source);
    let finding = Finding::failed(STEP, "APIServiceNotFound", text)
        .change("Create it, or correct the name: it is `<version>.<group>`.");
    if facts.similar.is_empty() {
        finding
    } else {
        finding.why(format!("There is {}.", facts.similar.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{condition, facts};
    use crate::cli::doctor::facts::Facts;
    use crate::cli::doctor::finding::Outcome;

    #[track_caller]
    fn check(facts: &Facts, outcome: Outcome, cause: Option<&str>, words: &str) {
        let finding = super::decide(facts);
        assert_eq!((finding.outcome, finding.cause.as_deref()), (outcome, cause), "{finding:?}");
        assert!(format!("{finding:?}").contains(words), "{finding:?}");
        assert_eq!(finding.change.is_some(), outcome == Outcome::Failed);
    }

    #[test]
    fn an_object_is_there_valid_and_not_known_to_be_unavailable() {
        check(&facts(), Outcome::Well, None, "nobody has written a condition");
        let mut known = facts();
        condition(&mut known, "True", "Passed", "all checks passed");
        check(&known, Outcome::Well, None, "Available (Passed)");
        condition(&mut known, "False", "MissingEndpoints", "none there");
        check(&known, Outcome::Failed, Some("MissingEndpoints"), "The aggregator says: none there");
        let mut gone = facts();
        gone.object = None;
        gone.similar = vec!["v1.things.example.org".to_owned()];
        check(&gone, Outcome::Failed, Some("APIServiceNotFound"), "v1.things.example.org");
        let mut misnamed = facts();
        misnamed.object.as_mut().unwrap().metadata.name = Some("v2.things.example.com".to_owned());
        check(&misnamed, Outcome::Failed, Some("InvalidAPIService"), "metadata.name");
    }
}
