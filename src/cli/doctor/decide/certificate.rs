//! The proxy-client certificate: whether the backend takes it from the aggregator.

use crate::cli::doctor::certificate::Certificate;
use crate::cli::doctor::facts::{
    Answer, AsProxy, EndpointFacts, Facts, Identity, Sought, TlsFacts, TrustFacts,
};
use crate::cli::doctor::finding::{Finding, Outcome, Step};
use crate::model::expiry::nearness;
use crate::model::fault::{Fault, Hop};
use crate::model::remedy;

const STEP: Step = Step::ClientCertificate;
/// Authorities that are named.
const AUTHORITIES_MAX: usize = 4;

/// What there is when no pair was named.
pub(super) const NO_PAIR: &str =
    "not tried: name the pair with --proxy-client-cert-file and --proxy-client-key-file";

/// The remedy when a backend does not know the authority.
const AUTHORITY: &str = "Put the authority of `--proxy-client-cert-file` into the backend's \
    `--requestheader-client-ca-file`, or, where the backend reads it there, into the ConfigMap \
    kube-system/extension-apiserver-authentication.";
/// The remedy when a backend has loaded none.
const READER: &str = "Let the backend read the ConfigMap kube-system/\
    extension-apiserver-authentication: bind its service account to the Role \
    extension-apiserver-authentication-reader in kube-system; or give it \
    `--requestheader-client-ca-file`.";

/// The remedy when the ConfigMap is broken: kube-apiserver leaves such a one alone.
pub(super) const REPAIR: &str = "Correct the ConfigMap kube-system/\
    extension-apiserver-authentication, or delete it: kube-apiserver then writes it anew.";

pub(super) fn decide(facts: &Facts, endpoint: &EndpointFacts) -> Finding {
    let (Some(identity), Some(leaf)) = (&facts.identity, leaf(facts)) else {
        return Finding::skipped(STEP, NO_PAIR);
    };
    let Some(seen) = &endpoint.tls else { return super::not_reached(STEP, endpoint) };
    let shown = format!("shown: {} ({})", leaf.as_leaf(facts.now), identity.file);
    let finding =
        of_the_pair(facts, leaf).unwrap_or_else(|| judged(facts, identity, endpoint, seen));
    finding.detail(shown).details(wanted(seen))
}

/// What was asked with the certificate; where nothing of use was, why the `step` is left out.
pub(super) fn asked_with_it<'a>(
    step: Step,
    facts: &Facts,
    endpoint: &'a EndpointFacts,
) -> Result<&'a AsProxy, Box<Finding>> {
    if facts.identity.is_none() {
        return Err(Box::new(Finding::skipped(step, NO_PAIR)));
    }
    let asked = endpoint.asked.as_ref().and_then(|asked| asked.as_proxy.as_ref());
    let Some(asked) = asked else { return Err(Box::new(super::not_reached(step, endpoint))) };
    if decide(facts, endpoint).outcome == Outcome::Failed {
        let why = "not tried: the proxy-client certificate is not accepted";
        return Err(Box::new(Finding::skipped(step, why)));
    }
    Ok(asked)
}

fn leaf(facts: &Facts) -> Option<&Certificate> {
    facts.identity.as_ref()?.chain.first()
}

/// What is wrong with the pair, whoever looks at it.
fn of_the_pair(facts: &Facts, leaf: &Certificate) -> Option<Finding> {
    let over = leaf.not_after < facts.now;
    if !over && leaf.not_before <= facts.now {
        return None;
    }
    let cause = if over { Hop::CertificateExpired } else { Hop::CertificateNotYetValid };
    let finding =
        Finding::failed(STEP, cause.word(), "the proxy-client certificate is not valid now");
    let change = if over {
        "Renew the certificate of `--proxy-client-cert-file`."
    } else {
        remedy::of_hop(cause)
    };
    Some(finding.why(format!("It is {}.", leaf.validity(facts.now))).change(change))
}

fn judged(
    facts: &Facts,
    identity: &Identity,
    endpoint: &EndpointFacts,
    seen: &TlsFacts,
) -> Finding {
    if let Err(fault) = &seen.handshake {
        return if fault.hop == Hop::ClientCertificateRefused {
            refused(facts, fault, "the backend refuses the certificate in the handshake")
        } else {
            super::not_reached(STEP, endpoint)
        };
    }
    let Some(asked) = endpoint.asked.as_ref().and_then(|asked| asked.as_proxy.as_ref()) else {
        return super::not_reached(STEP, endpoint);
    };
    by_answers(facts, asked, seen).unwrap_or_else(|| accepted(facts, identity))
}

/// What the answers say against it.
fn by_answers(facts: &Facts, asked: &AsProxy, seen: &TlsFacts) -> Option<Finding> {
    let answers = [&asked.master, &asked.marker, &asked.legacy];
    let fault = answers.into_iter().find_map(|answer| answer.as_ref().err());
    if let Some(fault) = fault.filter(|fault| fault.hop == Hop::ClientCertificateRefused) {
        return Some(refused(facts, fault, "the backend refuses the certificate"));
    }
    if let Some(user) = refused_user(answers)
        && user == "system:anonymous"
    {
        let text = "the backend takes the caller for anonymous";
        return Some(
            Finding::failed(STEP, "ClientCertificateIgnored", text)
                .why(
                    "It has loaded no authority for front proxies, so it does not look at the \
                     certificate.",
                )
                .change(READER),
        );
    }
    if answers.iter().all(|answer| answer.as_ref().is_ok_and(|reply| reply.status == 401)) {
        let text = "the backend answers 401: it does not take the certificate";
        return Some(
            Finding::failed(STEP, Hop::ClientCertificateRefused.word(), text)
                .why(why_refused(facts))
                .change(change_refused(facts)),
        );
    }
    if seen.wanted.is_none() {
        let text = "the backend does not ask for a certificate";
        return Some(
            Finding::warning(STEP, "ClientCertificateIgnored", text)
                .why("So it cannot know that it is the aggregator who tells it the user.")
                .change(READER),
        );
    }
    None
}

fn refused_user(answers: [&Answer; 3]) -> Option<String> {
    answers.into_iter().find_map(|answer| answer.as_ref().ok()?.refused_user())
}

fn refused(facts: &Facts, fault: &Fault, text: &str) -> Finding {
    let why = format!("{}. {}", fault.detail, why_refused(facts));
    Finding::failed(STEP, fault.hop.word(), text).why(why.trim()).change(change_refused(facts))
}

/// What the cluster's own list of front proxies says about it.
fn why_refused(facts: &Facts) -> String {
    why_of(facts.identity.as_ref(), &facts.trust, facts.now)
}

/// The same of any pair.
pub(super) fn why_of(identity: Option<&Identity>, trust: &Sought<TrustFacts>, now: i64) -> String {
    let Some(identity) = identity else { return String::new() };
    let name = identity.chain.first().map_or("", |leaf| leaf.common_name.as_str());
    let Some(trust) = trust.found() else {
        return format!(
            "It has another authority for front proxies, or its allowed names lack \"{name}\"."
        );
    };
    let why = why_listed(name, trust, now);
    if trust.faults.is_empty() { why } else { format!("{why} {}", broken(trust)) }
}

/// What of the ConfigMap is broken, in a sentence.
pub(super) fn broken(trust: &TrustFacts) -> String {
    format!("Broken in the ConfigMap: {}.", trust.faults.join("; "))
}

fn why_listed(name: &str, trust: &TrustFacts, now: i64) -> String {
    if let Some(Err(error)) = &trust.vouched {
        let authorities: Vec<String> = trust
            .authorities
            .iter()
            .take(AUTHORITIES_MAX)
            .map(|one| one.as_authority(now))
            .collect();
        if authorities.is_empty() {
            return "The ConfigMap extension-apiserver-authentication names no authority of front \
                    proxies."
                .to_owned();
        }
        return format!(
            "No authority in the ConfigMap extension-apiserver-authentication vouches for it \
             ({error}); there are: {}.",
            authorities.join("; ")
        );
    }
    if !allowed(trust, name) {
        let names = trust.front_proxies.allowed_names.join(", ");
        return format!(
            "Its common name \"{name}\" is not among requestheader-allowed-names: {names}."
        );
    }
    "The ConfigMap extension-apiserver-authentication vouches for it: who refuses it has another \
     authority, or has not read the ConfigMap's newest state."
        .to_owned()
}

/// The remedy that fits.
fn change_refused(facts: &Facts) -> &'static str {
    let name = leaf(facts).map_or("", |leaf| leaf.common_name.as_str());
    match facts.trust.found() {
        Some(trust) if !trust.faults.is_empty() => REPAIR,
        Some(trust) if matches!(trust.vouched, Some(Ok(()))) && !allowed(trust, name) => {
            "Use a certificate of an allowed common name, or add this one to \
             `--requestheader-allowed-names`."
        }
        Some(_) => AUTHORITY,
        None => remedy::of_hop(Hop::ClientCertificateRefused),
    }
}

/// Whether a front proxy may be called so; an empty list lets everybody pass.
pub(super) fn allowed(trust: &TrustFacts, common_name: &str) -> bool {
    let names = &trust.front_proxies.allowed_names;
    names.is_empty() || names.iter().any(|name| name == common_name)
}

fn accepted(facts: &Facts, identity: &Identity) -> Finding {
    let soonest = identity.chain.iter().min_by_key(|one| one.not_after);
    if let Some(soonest) = soonest.filter(|one| nearness(one.not_after, facts.now).is_some()) {
        return Finding::warning(STEP, "EndsSoon", "accepted, but it ends soon")
            .why(format!("\"{}\": {}.", soonest.subject, soonest.validity(facts.now)))
            .change("Renew the certificate of `--proxy-client-cert-file`.");
    }
    Finding::well(STEP, "accepted")
}

/// Which authorities the backend says it takes certificates of.
fn wanted(seen: &TlsFacts) -> Option<String> {
    let names = seen.wanted.as_ref().filter(|names| !names.is_empty())?;
    let shown: Vec<String> =
        names.iter().take(AUTHORITIES_MAX).map(|name| format!("\"{name}\"")).collect();
    Some(format!("the backend takes certificates of: {}", shown.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::samples::{
        DAY, NOW, certificate, facts, forbidden, not_found, status, unauthorized,
    };
    use super::*;
    use crate::cli::doctor::finding::Outcome;
    use crate::tls::cluster_trust::FrontProxies;

    #[track_caller]
    fn check(facts: &Facts, outcome: Outcome, cause: Option<&str>, words: &str) {
        let finding = decide(facts, &facts.endpoints[0]);
        assert_eq!((finding.outcome, finding.cause.as_deref()), (outcome, cause), "{finding:?}");
        assert!(format!("{finding:?}").contains(words), "{finding:?}");
        assert_eq!(finding.change.is_some(), cause.is_some());
    }

    fn answered(answer: impl Fn() -> Answer) -> Facts {
        let mut facts = facts();
        let asked = facts.endpoints[0].asked.as_mut().unwrap().as_proxy.as_mut().unwrap();
        (asked.marker, asked.master, asked.legacy) = (answer(), answer(), answer());
        facts
    }

    fn trusting(vouched: Result<(), String>, names: &[&str]) -> Facts {
        let mut facts = answered(unauthorized);
        let allowed_names = names.iter().map(|&name| name.to_owned()).collect();
        facts.trust = Sought::Found(TrustFacts {
            authorities: vec![certificate("cluster-ca", "cluster-ca", &[])],
            vouched: Some(vouched),
            front_proxies: FrontProxies { allowed_names, ..FrontProxies::default() },
            faults: Vec::new(),
        });
        facts
    }

    #[test]
    fn a_certificate_is_accepted_refused_or_ignored() {
        let (failed, warning) = (Outcome::Failed, Outcome::Warning);
        check(&facts(), Outcome::Well, None, "front-proxy-ca");
        let refused = Some("ClientCertificateRefused");
        check(&answered(unauthorized), failed, refused, "401");
        let anonymous = answered(|| forbidden("system:anonymous"));
        check(&anonymous, failed, Some("ClientCertificateIgnored"), "authentication-reader");
        let alert = || Fault::new(Hop::ClientCertificateRefused, "alert unknown_ca");
        check(&answered(|| Err(alert())), failed, refused, "alert unknown_ca");
        let mut early = facts();
        early.endpoints[0].tls.as_mut().unwrap().handshake = Err(alert());
        check(&early, failed, refused, "in the handshake");
        let mut unasked = facts();
        unasked.endpoints[0].tls.as_mut().unwrap().wanted = None;
        check(&unasked, warning, Some("ClientCertificateIgnored"), "does not ask");
        // One who lets anybody do anything is the next hops' business.
        check(&answered(not_found), Outcome::Well, None, "accepted");
        check(&answered(|| Ok(status(500, "x"))), Outcome::Well, None, "accepted");
    }

    #[test]
    fn the_clusters_own_list_explains_a_refusal() {
        let refused = Some("ClientCertificateRefused");
        let unknown = trusting(Err("UnknownIssuer".to_owned()), &[]);
        check(&unknown, Outcome::Failed, refused, "there are: \\\"CN=cluster-ca");
        let misnamed = trusting(Ok(()), &["aggregator"]);
        check(&misnamed, Outcome::Failed, refused, "allowed-names: aggregator");
        check(&misnamed, Outcome::Failed, refused, "add this one to");
        let mut elsewhere = trusting(Ok(()), &["front-proxy"]);
        check(&elsewhere, Outcome::Failed, refused, "has another authority");
        let Sought::Found(trust) = &mut elsewhere.trust else { panic!("{:?}", elsewhere.trust) };
        trust.faults.push("names: no list".to_owned());
        check(&elsewhere, Outcome::Failed, refused, "Broken in the ConfigMap: names: no list.");
        check(&elsewhere, Outcome::Failed, refused, "or delete it");
    }

    #[test]
    fn the_pair_itself_may_be_over_or_near_its_end() {
        let until = |end| {
            let mut facts = facts();
            facts.identity.as_mut().unwrap().chain[0].not_after = end;
            facts
        };
        check(&until(NOW - DAY), Outcome::Failed, Some("CertificateExpired"), "expired 2027");
        check(&until(NOW + DAY), Outcome::Warning, Some("EndsSoon"), "1 day");
        let mut early = facts();
        early.identity.as_mut().unwrap().chain[0].not_before = NOW + DAY;
        check(&early, Outcome::Failed, Some("CertificateNotYetValid"), "not valid before");
        let mut none = facts();
        none.identity = None;
        check(&none, Outcome::Skipped, None, "--proxy-client-cert-file");
    }
}
