//! X-Remote-*: believed from the aggregator, and from nobody else.

use super::certificate;
use crate::cli::doctor::facts::{Answer, EndpointFacts, Facts, MARKER_USER};
use crate::cli::doctor::finding::{Finding, Step};
use crate::model::fault::Hop;

/// Whether the backend takes the user from the headers.
pub(super) fn honoured(facts: &Facts, endpoint: &EndpointFacts) -> Finding {
    const STEP: Step = Step::Identity;
    let asked = match certificate::asked_with_it(STEP, facts, endpoint) {
        Ok(asked) => asked,
        Err(finding) => return *finding,
    };
    let (marker, master) = match (&asked.marker, &asked.master) {
        (Ok(marker), Ok(master)) => (marker, master),
        (Err(fault), _) | (_, Err(fault)) => {
            return Finding::failed(STEP, fault.hop.word(), "the backend does not answer")
                .why(&*fault.detail)
                .change(crate::model::remedy::of_hop(fault.hop));
        }
    };
    match marker.refused_user() {
        Some(user) if user == MARKER_USER && master.status == 403 => {
            let text = "the user is believed, the group system:masters is not";
            Finding::failed(STEP, "GroupsIgnored", text).why(master.message()).change(HEADERS)
        }
        Some(user) if user == MARKER_USER => Finding::well(
            STEP,
            format!("X-Remote-User is believed: \"{user}\" is refused, a master is not"),
        ),
        Some(user) => {
            let text =
                format!("the backend takes the caller for \"{user}\", whatever X-Remote-User says");
            let why = "It knows the certificate as a client's, but not as a front proxy's, or reads \
                       the user from other headers.";
            Finding::failed(STEP, "IdentityIgnored", text).why(why).change(HEADERS)
        }
        None if marker.status >= 500 => {
            let text = format!("{} for a user who is no master", marker.status);
            Finding::warning(STEP, "AuthorizationFails", text).why(marker.message()).change(
                "The backend cannot ask kube-apiserver who may do what: look at its log, its \
                     kubeconfig, and its service account's ClusterRoleBinding to \
                     system:auth-delegator.",
            )
        }
        None => Finding::skipped(
            STEP,
            format!(
                "cannot be told: {} for a user without rights, {} for a master",
                marker.status, master.status
            ),
        ),
    }
}

const HEADERS: &str = "Compare the backend's `--requestheader-*` flags, or the ConfigMap \
    kube-system/extension-apiserver-authentication: client CA, allowed names, and the names of the \
    headers (X-Remote-User, X-Remote-Group).";

/// Whether the backend takes the user from the headers of anybody.
pub(super) fn forged(endpoint: &EndpointFacts) -> Finding {
    const STEP: Step = Step::ForgedIdentity;
    let Some(forgery) = endpoint.asked.as_ref().and_then(|asked| asked.forgery.as_ref()) else {
        return super::not_reached(STEP, endpoint);
    };
    let path = &forgery.path;
    let anonymous = match &forgery.anonymous {
        Ok(anonymous) => anonymous,
        Err(fault) => return no_answer(STEP, fault.hop, &fault.detail),
    };
    match &forgery.forged {
        Some(forged) => {
            match got_in(forged) {
                Some(true) => {
                    let status = forged.as_ref().map(|reply| reply.status).unwrap_or_default();
                    Finding::failed(
                    STEP,
                    "ForgedIdentity",
                    format!("ANYBODY CAN BE ANYBODY: without a certificate, {path} says {} to \
                             nobody and {status} to a self-named master", anonymous.status),
                )
                .why(
                    "The backend believes X-Remote-User and X-Remote-Group of everybody who can \
                     connect to it, so each pod of the cluster has every right there.",
                )
                .change(
                    "Let the backend believe these headers only after it has verified the client \
                     certificate against requestheader-client-ca-file; until then let a \
                     NetworkPolicy admit the aggregator alone.",
                )
                }
                Some(false) => Finding::well(
                    STEP,
                    "without the certificate, a self-named master is refused as anybody is",
                ),
                None => Finding::skipped(STEP, "cannot be told: the backend did not answer that"),
            }
        }
        // Discovery may be open to all; objects may not.
        None if anonymous.is_success() && forgery.is_list => {
            let text = format!("NOBODY IS REFUSED: {path} is answered to anonymous callers");
            Finding::failed(STEP, "NoAuthentication", text)
                .why("Who can connect to the backend needs no identity at all.")
                .change(
                    "Let the backend authenticate its callers (delegated authentication) and \
                     authorize them; see also RBAC for system:unauthenticated.",
                )
        }
        None => {
            let text = "cannot be told: no path was found that anonymous callers may not read";
            Finding::skipped(STEP, text)
        }
    }
}

fn no_answer(step: Step, hop: Hop, detail: &str) -> Finding {
    if hop == Hop::ClientCertificateRefused {
        Finding::well(step, "connections without a certificate are refused")
    } else {
        Finding::skipped(step, format!("cannot be told: {detail}"))
    }
}

/// None when the answer says nothing about rights.
fn got_in(answer: &Answer) -> Option<bool> {
    match answer {
        Ok(reply) if reply.is_refusal() => Some(false),
        Ok(reply) if reply.status == 429 || reply.status >= 500 => None,
        Ok(_) => Some(true),
        Err(fault) => (fault.hop == Hop::ClientCertificateRefused).then_some(false),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{facts, forbidden, not_found, status, unauthorized};
    use super::*;
    use crate::cli::doctor::facts::{Forgery, PROBE_PATH};
    use crate::cli::doctor::finding::Outcome;
    use crate::model::fault::Fault;

    #[track_caller]
    fn check(finding: &Finding, outcome: Outcome, cause: Option<&str>, words: &str) {
        assert_eq!((finding.outcome, finding.cause.as_deref()), (outcome, cause), "{finding:?}");
        assert!(format!("{finding:?}").contains(words), "{finding:?}");
        assert_eq!(finding.change.is_some(), cause.is_some());
    }

    fn with(marker: Answer, master: Answer) -> Finding {
        let mut facts = facts();
        let asked = facts.endpoints[0].asked.as_mut().unwrap().as_proxy.as_mut().unwrap();
        (asked.marker, asked.master) = (marker, master);
        honoured(&facts, &facts.endpoints[0])
    }

    #[test]
    fn a_refusal_names_the_user_that_was_believed() {
        let failed = Outcome::Failed;
        check(&with(forbidden(MARKER_USER), not_found()), Outcome::Well, None, "believed");
        let ignored = Some("IdentityIgnored");
        check(
            &with(forbidden("front-proxy"), forbidden("front-proxy")),
            failed,
            ignored,
            "front-proxy",
        );
        let groups = with(forbidden(MARKER_USER), forbidden(MARKER_USER));
        check(&groups, failed, Some("GroupsIgnored"), "system:masters");
        let down = with(Ok(status(500, "no")), not_found());
        check(&down, Outcome::Warning, Some("AuthorizationFails"), "auth-delegator");
        check(&with(not_found(), not_found()), Outcome::Skipped, None, "cannot be told: 404");
        let refused = with(Ok(status(403, "no")), Ok(status(403, "no")));
        check(&refused, Outcome::Skipped, None, "cannot be told: 403");
        let hang = with(Err(Fault::new(Hop::Deadline, "5s")), not_found());
        check(&hang, failed, Some("Deadline"), "5s");
        let mut none = facts();
        none.identity = None;
        check(&honoured(&none, &none.endpoints[0]), Outcome::Skipped, None, "--proxy-client");
    }

    const LIST: &str = "/apis/things.example.com/v1/things";

    fn without(path: &str, anonymous: Answer, forged: Option<Answer>) -> Finding {
        let mut endpoint = super::super::samples::endpoint();
        let is_list = path == LIST;
        let forgery = Forgery { path: path.to_owned(), is_list, anonymous, forged };
        endpoint.asked.as_mut().unwrap().forgery = Some(forgery);
        super::forged(&endpoint)
    }

    #[test]
    fn a_forged_identity_gets_in_nowhere() {
        let (failed, well, skipped) = (Outcome::Failed, Outcome::Well, Outcome::Skipped);
        check(&without(PROBE_PATH, unauthorized(), Some(unauthorized())), well, None, "refused");
        let anonymous = || forbidden("system:anonymous");
        check(&without(PROBE_PATH, anonymous(), Some(anonymous())), well, None, "refused");
        let forged = Some("ForgedIdentity");
        check(&without(PROBE_PATH, anonymous(), Some(not_found())), failed, forged, "ANYBODY");
        check(&without(LIST, unauthorized(), Some(Ok(status(200, "")))), failed, forged, LIST);
        let unclear = without(PROBE_PATH, anonymous(), Some(Ok(status(503, ""))));
        check(&unclear, skipped, None, "cannot be told");
        let open = |path| without(path, Ok(status(200, "")), None);
        check(&open(LIST), failed, Some("NoAuthentication"), "NOBODY IS REFUSED");
        check(&open("/apis/things.example.com/v1"), skipped, None, "no path was found");
        check(&without(PROBE_PATH, not_found(), None), skipped, None, "no path was found");
        let alert = || Fault::new(Hop::ClientCertificateRefused, "alert");
        check(&without(PROBE_PATH, Err(alert()), None), well, None, "without a certificate");
        check(&without(PROBE_PATH, unauthorized(), Some(Err(alert()))), well, None, "refused");
    }
}
