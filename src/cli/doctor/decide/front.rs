//! In front of kube-apiserver: by which way portico would tell it the user, and whether extension
//! servers would believe portico.

use super::certificate::{NO_PAIR, REPAIR, allowed, broken, change_of, why_of};
use crate::cli::doctor::facts::{Identity, MARKER_USER, Sought, TrustFacts};
use crate::cli::doctor::finding::{Finding, Step};

/// The uid that is claimed.
pub(crate) const MARKER_UID: &str = "portico-doctor-uid";
/// The value of the extra that is claimed.
pub(crate) const MARKER_EXTRA: &str = "portico-doctor-extra";

/// Whom kube-apiserver takes a caller for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The name.
    pub(crate) name: String,
    /// The uid; empty for none.
    pub(crate) uid: String,
    /// All values of all extras.
    pub(crate) extra: Vec<String>,
}

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
    pub(crate) own: Result<Seen, Refusal>,
    /// The marker user, claimed by the proxy-client pair; none without a pair.
    pub(crate) as_proxy: Option<Result<Seen, Refusal>>,
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

    fn believed(&self) -> Option<&Seen> {
        let seen = self.as_proxy.as_ref()?.as_ref().ok()?;
        (seen.name == MARKER_USER).then_some(seen)
    }
}

pub(crate) fn decide(facts: &FrontFacts) -> Vec<Finding> {
    let own = match &facts.own {
        Ok(own) => own,
        Err(refusal) => return vec![no_review(refusal)],
    };
    let version = if facts.version.is_empty() { "version not told" } else { &facts.version };
    let core = Finding::well(Step::Core, format!("{version}, asked as \"{}\"", own.name));
    let mut findings = vec![core, front_proxy(facts)];
    findings.extend(facts.believed().map(uid));
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
    let Some(answer) = &facts.as_proxy else { return Finding::skipped(STEP, NO_PAIR) };
    let (text, why) = match answer {
        Ok(seen) if seen.name == MARKER_USER => {
            return Finding::well(
                STEP,
                "our certificate is taken: --upstream-identity=auto is front-proxy",
            );
        }
        Ok(seen) => (
            format!("kube-apiserver takes our certificate for the user \"{}\"", seen.name),
            "It knows it as a client's, but not as a front proxy's.".to_owned(),
        ),
        Err(refusal) => {
            let status = refusal.status.map_or_else(|| "no answer".to_owned(), |it| it.to_string());
            let text = format!("kube-apiserver does not take our certificate ({status})");
            let why = why_of(facts.identity.as_ref(), &facts.trust, facts.now);
            (text, if why.is_empty() { refusal.message.clone() } else { why })
        }
    };
    let cause = "FrontProxyNotTrusted";
    if facts.may_impersonate() {
        return Finding::warning(STEP, cause, text).why(why).change(
            "Nothing must be: --upstream-identity=auto is impersonate. For less work in each \
             request, use a pair that kube-apiserver's --requestheader-client-ca-file vouches for.",
        );
    }
    let change = if answer.is_ok() {
        "Use a pair whose authority is in kube-apiserver's `--requestheader-client-ca-file`, and \
         whose common name is in `--requestheader-allowed-names`."
    } else {
        change_of(facts.identity.as_ref(), &facts.trust)
    };
    Finding::failed(STEP, cause, text).why(why).change(change)
}

fn uid(seen: &Seen) -> Finding {
    let change = "Give kube-apiserver `--requestheader-uid-headers=X-Remote-Uid`.";
    if seen.uid != MARKER_UID {
        return Finding::warning(Step::Uid, "UidIgnored", "X-Remote-Uid is not believed")
            .why("kube-apiserver reads no uid from a front proxy unless it is told the header.")
            .change(change);
    }
    if !seen.extra.iter().any(|value| value == MARKER_EXTRA) {
        return Finding::warning(Step::Uid, "ExtraIgnored", "X-Remote-Extra-* is not believed")
            .why("kube-apiserver reads extras from headers of another prefix.")
            .change("Give kube-apiserver `--requestheader-extra-headers-prefix=X-Remote-Extra-`.");
    }
    Finding::well(Step::Uid, "uid and extra are believed, too")
}

fn impersonation(facts: &FrontFacts, own: &Seen) -> Finding {
    const STEP: Step = Step::Impersonation;
    if facts.may_impersonate() {
        let text = format!("\"{}\" may impersonate everybody", own.name);
        return Finding::well(STEP, text);
    }
    let missing = facts.missing().join(", ");
    let text = format!("\"{}\" may not impersonate: {missing}", own.name);
    if facts.believed().is_some() {
        return Finding::skipped(STEP, format!("{text} (not needed)"));
    }
    let change = "Where no front-proxy pair is taken, bind portico's account to a ClusterRole with \
        the verb impersonate on users, groups and serviceaccounts, and on resources [\"*\"] of \
        authentication.k8s.io.";
    let errors = facts.rights.iter().find_map(|(_, right)| right.as_ref().err());
    let why = errors.map_or_else(String::new, Clone::clone);
    if facts.as_proxy.is_none() {
        return Finding::warning(STEP, "ImpersonationForbidden", text).why(why).change(change);
    }
    Finding::failed(STEP, "ImpersonationForbidden", text).why(why).change(change)
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

    fn marker(uid: &str) -> Seen {
        Seen {
            name: MARKER_USER.to_owned(),
            uid: uid.to_owned(),
            extra: vec![MARKER_EXTRA.to_owned()],
        }
    }

    fn facts() -> FrontFacts {
        FrontFacts {
            version: "v1.37.1".to_owned(),
            own: Ok(Seen { name: "admin".to_owned(), ..Seen::default() }),
            as_proxy: Some(Ok(marker(MARKER_UID))),
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
        old.as_proxy = Some(Ok(marker("")));
        check(&old, Step::Uid, warning, Some("UidIgnored"), "--requestheader-uid-headers");
        let mut unknown = facts();
        let refusal = Refusal { status: Some(401), message: "Unauthorized".to_owned() };
        unknown.as_proxy = Some(Err(refusal));
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
}
