//! In front of kube-apiserver: by which way portico would tell it the user, and whether extension
//! servers would believe portico.

use super::certificate::{NO_PAIR, REPAIR, allowed, broken, why_of};
use crate::cli::doctor::facts::{Identity, Sought, TrustFacts};
use crate::cli::doctor::finding::{Finding, Step};
use crate::model::fault::Hop;
use crate::model::remedy;
use crate::model::review::front_proxy::{Disbelief, Verdict};

/// The remedy when kube-apiserver does not know the certificate as a front proxy's.
const PAIR: &str = "Use a pair whose authority is in kube-apiserver's \
    `--requestheader-client-ca-file`, and whose common name is in `--requestheader-allowed-names`.";
/// What there is while kube-apiserver has not answered the question of `--upstream-identity=auto`.
const UNDECIDED: &str = "kube-apiserver does not say whether it believes our certificate: \
    --upstream-identity=auto serves nobody until it does";

/// A review that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The code; none when there was no answer.
    pub(crate) status: Option<u16>,
    /// What was said.
    pub(crate) message: String,
}

/// What is known of the API server.
#[derive(Clone, Debug)]
pub(crate) struct FrontFacts {
    /// Its version; empty when it is not told.
    pub(crate) version: String,
    /// The user of the kubeconfig.
    pub(crate) own: Result<String, Refusal>,
    /// Whether headers are believed from who shows the proxy-client pair, or why there is no answer;
    /// none without a pair.
    pub(crate) as_proxy: Option<Result<Verdict, String>>,
    /// What the kubeconfig's user may impersonate.
    pub(crate) rights: Vec<(&'static str, Result<bool, String>)>,
    /// The pair.
    pub(crate) identity: Option<Identity>,
    /// Whom extension servers believe.
    pub(crate) trust: Sought<TrustFacts>,
    /// Unix seconds.
    pub(crate) now: i64,
}

impl FrontFacts {
    fn missing(&self) -> Vec<&'static str> {
        let lacking = self.rights.iter().filter(|(_, right)| *right != Ok(true));
        lacking.map(|(what, _)| *what).collect()
    }

    fn may_impersonate(&self) -> bool {
        !self.rights.is_empty() && self.missing().is_empty()
    }

    fn verdict(&self) -> Option<&Verdict> {
        self.as_proxy.as_ref()?.as_ref().ok()
    }
}

pub(crate) fn decide(facts: &FrontFacts) -> Vec<Finding> {
    let own = match &facts.own {
        Ok(own) => own,
        Err(refusal) => return vec![no_review(refusal)],
    };
    let version = if facts.version.is_empty() { "version not told" } else { &facts.version };
    let core = Finding::well(Step::Core, format!("{version}, asked as \"{own}\""));
    let mut findings = vec![core, front_proxy(facts)];
    findings.extend(uid(facts));
    findings.push(impersonation(facts, own));
    findings.push(extension_servers(facts));
    findings
}

fn no_review(refusal: &Refusal) -> Finding {
    match refusal.status {
        Some(404 | 405) => Finding::skipped(
            Step::Core,
            "no kube-apiserver (it has no SelfSubjectReview): nothing to stand in front of",
        ),
        _ => Finding::skipped(Step::Core, format!("cannot be known: {}", refusal.message)),
    }
}

fn front_proxy(facts: &FrontFacts) -> Finding {
    const STEP: Step = Step::FrontProxy;
    let disbelief = match &facts.as_proxy {
        None => return Finding::skipped(STEP, NO_PAIR),
        Some(Ok(Verdict::Believed { .. })) => {
            let text = "our certificate is taken: --upstream-identity=auto is front-proxy";
            return Finding::well(STEP, text);
        }
        Some(Ok(Verdict::Refused(disbelief))) => disbelief,
        Some(Ok(Verdict::Unclear(answer))) => {
            return Finding::failed(STEP, Hop::ReviewRefused.word(), UNDECIDED)
                .why(format!("To a SelfSubjectReview {answer}."))
                .change(remedy::of_hop(Hop::ReviewRefused));
        }
        Some(Err(silence)) => {
            return Finding::failed(STEP, "NoAnswer", UNDECIDED).why(silence.as_str()).change(
                "See what kube-apiserver, or the load balancer before it, does with connections \
                 that show the certificate of `--proxy-client-cert-file`.",
            );
        }
    };
    let (cause, text, why, change) = disbelieved(facts, disbelief);
    if facts.may_impersonate() {
        return Finding::warning(STEP, cause, text).why(why).change(format!(
            "Nothing must be: --upstream-identity=auto is impersonate. For less work in each \
             request: {change}"
        ));
    }
    Finding::failed(STEP, cause, text).why(why).change(change)
}

/// The word, what is the matter, why, and what to change.
fn disbelieved(
    facts: &FrontFacts,
    disbelief: &Disbelief,
) -> (&'static str, String, String, &'static str) {
    let by_trust = || why_of(facts.identity.as_ref(), &facts.trust, facts.now);
    match disbelief {
        Disbelief::Certificate => {
            let text = "kube-apiserver refuses our certificate in the handshake".to_owned();
            ("FrontProxyNotTrusted", text, by_trust(), PAIR)
        }
        Disbelief::Unknown => {
            let text = "kube-apiserver does not take our certificate (401)".to_owned();
            ("FrontProxyNotTrusted", text, by_trust(), PAIR)
        }
        Disbelief::Owner(name) => {
            let text = format!("kube-apiserver takes our certificate for the user \"{name}\"");
            let why = "It knows it as a client's, but not as a front proxy's.".to_owned();
            ("FrontProxyNotTrusted", text, why, PAIR)
        }
        Disbelief::Groups => (
            "GroupsIgnored",
            "kube-apiserver takes our certificate, but does not believe X-Remote-Group".to_owned(),
            "It reads groups from headers of another name.".to_owned(),
            "Give kube-apiserver `--requestheader-group-headers=X-Remote-Group`.",
        ),
        Disbelief::Extra => (
            "ExtraIgnored",
            "kube-apiserver takes our certificate, but does not believe X-Remote-Extra-*"
                .to_owned(),
            "It reads extras from headers of another prefix.".to_owned(),
            "Give kube-apiserver `--requestheader-extra-headers-prefix=X-Remote-Extra-`.",
        ),
    }
}

/// Nothing where no header is believed.
fn uid(facts: &FrontFacts) -> Option<Finding> {
    const STEP: Step = Step::Uid;
    let Verdict::Believed { uid } = facts.verdict()? else { return None };
    Some(match uid {
        Some(true) => Finding::well(STEP, "uid and extra are believed, too"),
        Some(false) => Finding::warning(STEP, "UidIgnored", "X-Remote-Uid is not believed")
            .why("kube-apiserver reads no uid from a front proxy unless it is told the header.")
            .change("Give kube-apiserver `--requestheader-uid-headers=X-Remote-Uid`."),
        None => {
            Finding::skipped(STEP, "cannot be told: kube-apiserver lets nobody ask who they are")
        }
    })
}

fn impersonation(facts: &FrontFacts, own: &str) -> Finding {
    const STEP: Step = Step::Impersonation;
    if facts.may_impersonate() {
        return Finding::well(STEP, format!("\"{own}\" may impersonate everybody"));
    }
    let missing = facts.missing().join(", ");
    let text = format!("\"{own}\" may not impersonate: {missing}");
    let verdict = facts.verdict();
    if matches!(verdict, Some(Verdict::Believed { .. })) {
        return Finding::skipped(STEP, format!("{text} (not needed)"));
    }
    let finding = if matches!(verdict, Some(Verdict::Refused(_))) {
        Finding::failed(STEP, "ImpersonationForbidden", text)
    } else {
        Finding::warning(STEP, "ImpersonationForbidden", text)
    };
    let errors = facts.rights.iter().find_map(|(_, right)| right.as_ref().err());
    finding.why(errors.map_or_else(String::new, Clone::clone)).change(
        "Where no front-proxy pair is taken, bind portico's account to a ClusterRole with the verb \
         impersonate on users, groups and serviceaccounts, and on resources [\"*\"] of \
         authentication.k8s.io.",
    )
}

fn extension_servers(facts: &FrontFacts) -> Finding {
    const STEP: Step = Step::ExtensionServers;
    let trust = match &facts.trust {
        Sought::Found(trust) => trust,
        Sought::Missing => {
            return Finding::skipped(
                STEP,
                "there is no ConfigMap kube-system/extension-apiserver-authentication",
            );
        }
        Sought::Unknown(why) => return Finding::skipped(STEP, format!("cannot be known: {why}")),
    };
    let Some(identity) = &facts.identity else { return Finding::skipped(STEP, NO_PAIR) };
    let name = identity.chain.first().map_or("", |leaf| leaf.common_name.as_str());
    let authorities = trust
        .authorities
        .iter()
        .map(|one| format!("in the ConfigMap: {}", one.as_authority(facts.now)));
    let through = "Send their requests through kube-apiserver (`--remote-route=core`), or have \
        portico add its authority to the ConfigMap (`--publish-front-proxy-ca`).";
    if !trust.faults.is_empty() {
        let text = "extension servers cannot read all of the ConfigMap";
        let kept = "A server that read it before goes by that; one that starts now has nothing in \
            its place.";
        return Finding::warning(STEP, "InvalidConfigMap", text)
            .why(format!("{} {kept}", broken(trust)))
            .change(REPAIR)
            .details(authorities);
    }
    if !matches!(trust.vouched, Some(Ok(()))) || !allowed(trust, name) {
        let text = "extension servers would not believe portico";
        return Finding::warning(STEP, "NotVouchedFor", text)
            .why(why_of(Some(identity), &facts.trust, facts.now))
            .change(through)
            .details(authorities);
    }
    let is_named =
        |names: &[String], name: &str| names.iter().any(|it| it.eq_ignore_ascii_case(name));
    let headers = &trust.front_proxies;
    if !is_named(&headers.username_headers, "X-Remote-User")
        || !is_named(&headers.group_headers, "X-Remote-Group")
    {
        let text = "extension servers read the user from other headers";
        return Finding::warning(STEP, "OtherHeaders", text)
            .why("The ConfigMap's requestheader-username-headers or -group-headers lack X-Remote-User or X-Remote-Group.")
            .change(through);
    }
    let uid = if is_named(&headers.uid_headers, "X-Remote-Uid") { "" } else { ", but for uids" };
    let text = format!("they would believe portico{uid}: --remote-route=direct works");
    Finding::well(STEP, text).details(authorities)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{NOW, certificate};
    use super::*;
    use crate::cli::doctor::finding::Outcome;
    use crate::tls::cluster_trust::FrontProxies;

    fn trust(facts: &mut FrontFacts) -> &mut TrustFacts {
        match &mut facts.trust {
            Sought::Found(trust) => trust,
            other => panic!("{other:?}"),
        }
    }

    fn facts() -> FrontFacts {
        FrontFacts {
            version: "v1.37.1".to_owned(),
            own: Ok("admin".to_owned()),
            as_proxy: Some(Ok(Verdict::Believed { uid: Some(true) })),
            rights: vec![("users", Ok(true)), ("uids", Ok(true))],
            identity: Some(Identity {
                file: "front-proxy.crt".to_owned(),
                chain: vec![certificate("front-proxy", "ca", &[])],
            }),
            trust: Sought::Found(TrustFacts {
                authorities: vec![certificate("ca", "ca", &[])],
                vouched: Some(Ok(())),
                front_proxies: FrontProxies {
                    username_headers: vec!["X-Remote-User".to_owned()],
                    group_headers: vec!["X-Remote-Group".to_owned()],
                    ..FrontProxies::default()
                },
                faults: Vec::new(),
            }),
            now: NOW,
        }
    }

    #[track_caller]
    fn check(facts: &FrontFacts, step: Step, outcome: Outcome, cause: Option<&str>, words: &str) {
        let findings = decide(facts);
        let finding = findings.iter().find(|finding| finding.step == step).unwrap();
        assert_eq!((finding.outcome, finding.cause.as_deref()), (outcome, cause), "{finding:?}");
        assert!(format!("{finding:?}").contains(words), "{finding:?}");
        assert_eq!(finding.change.is_some(), cause.is_some());
    }

    #[test]
    fn the_way_in_force_is_said_with_what_it_needs() {
        let (well, warning, failed) = (Outcome::Well, Outcome::Warning, Outcome::Failed);
        check(&facts(), Step::Core, well, None, "v1.37.1, asked as \\\"admin");
        check(&facts(), Step::FrontProxy, well, None, "auto is front-proxy");
        check(&facts(), Step::Uid, well, None, "believed");
        check(&facts(), Step::ExtensionServers, well, None, "but for uids");
        let mut broken = facts();
        trust(&mut broken).faults.push("requestheader-allowed-names: no list".to_owned());
        let cause = Some("InvalidConfigMap");
        check(&broken, Step::ExtensionServers, warning, cause, "allowed-names: no list. A server");
        let mut old = facts();
        old.as_proxy = Some(Ok(Verdict::Believed { uid: Some(false) }));
        check(&old, Step::Uid, warning, Some("UidIgnored"), "--requestheader-uid-headers");
        let mut unknown = facts();
        unknown.as_proxy = Some(Ok(Verdict::Refused(Disbelief::Unknown)));
        let cause = Some("FrontProxyNotTrusted");
        check(&unknown, Step::FrontProxy, warning, cause, "auto is impersonate");
        unknown.rights[1].1 = Ok(false);
        trust(&mut unknown).vouched = Some(Err("UnknownIssuer".to_owned()));
        check(&unknown, Step::FrontProxy, failed, cause, "UnknownIssuer");
        let cause = Some("ImpersonationForbidden");
        check(&unknown, Step::Impersonation, failed, cause, "may not impersonate: uids");
        check(
            &unknown,
            Step::ExtensionServers,
            warning,
            Some("NotVouchedFor"),
            "--remote-route=core",
        );
        unknown.as_proxy = None;
        check(&unknown, Step::FrontProxy, Outcome::Skipped, None, "--proxy-client-cert-file");
        check(&unknown, Step::Impersonation, warning, cause, "");
        let mut standalone = facts();
        standalone.own = Err(Refusal { status: Some(404), message: String::new() });
        check(&standalone, Step::Core, Outcome::Skipped, None, "nothing to stand in front of");
    }

    /// Whether `auto` is front-proxy, what impersonation has to say, and the cause at the first.
    #[track_caller]
    fn agrees(
        answer: Result<Verdict, String>,
        may: bool,
        expected: (Outcome, Outcome),
        words: &str,
    ) {
        let mut facts = facts();
        facts.as_proxy = Some(answer);
        facts.rights[0].1 = Ok(may);
        let findings = decide(&facts);
        let of = |step| findings.iter().find(|finding| finding.step == step).unwrap();
        let (front_proxy, impersonation) = (of(Step::FrontProxy), of(Step::Impersonation));
        assert_eq!((front_proxy.outcome, impersonation.outcome), expected, "{findings:?}");
        assert!(format!("{front_proxy:?}").contains(words), "{front_proxy:?}");
        let is_chosen = format!("{front_proxy:?}").contains("auto is front-proxy");
        assert_eq!(is_chosen, matches!(facts.verdict(), Some(Verdict::Believed { .. })));
        assert_eq!(findings.iter().any(|finding| finding.step == Step::Uid), is_chosen);
    }

    #[test]
    fn what_portico_would_do_by_the_answer_is_what_is_said() {
        let (well, skipped) = (Outcome::Well, Outcome::Skipped);
        let (warning, failed) = (Outcome::Warning, Outcome::Failed);
        // A 403 to the marker, who is believed to be it.
        let forbidden = || Ok(Verdict::Believed { uid: None });
        agrees(forbidden(), false, (well, skipped), "auto is front-proxy");
        for (disbelief, words) in [
            (Disbelief::Certificate, "FrontProxyNotTrusted"),
            (Disbelief::Owner("proxy".to_owned()), "the user \\\"proxy"),
            (Disbelief::Groups, "GroupsIgnored"),
            (Disbelief::Groups, "--requestheader-group-headers=X-Remote-Group"),
            (Disbelief::Extra, "ExtraIgnored"),
            (Disbelief::Extra, "--requestheader-extra-headers-prefix=X-Remote-Extra-"),
        ] {
            let refused = || Ok(Verdict::Refused(disbelief.clone()));
            agrees(refused(), false, (failed, failed), words);
            agrees(refused(), true, (warning, well), words);
            agrees(refused(), true, (warning, well), "auto is impersonate");
        }
        let unclear = || Ok(Verdict::Unclear("it answered with status 503".to_owned()));
        agrees(unclear(), false, (failed, warning), "ReviewRefused");
        agrees(
            unclear(),
            true,
            (failed, well),
            "To a SelfSubjectReview it answered with status 503.",
        );
        agrees(Err("connection reset".to_owned()), true, (failed, well), "connection reset");
    }
}
