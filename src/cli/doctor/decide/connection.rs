//! TCP and TLS: whether the endpoint can be reached, and whether it is believed.

use std::net::{IpAddr, SocketAddr};

use crate::cli::doctor::certificate::Certificate;
use crate::cli::doctor::facts::{EndpointFacts, Facts, Reply, TlsFacts};
use crate::cli::doctor::finding::{Finding, Step};
use crate::model::expiry::nearness;
use crate::model::fault::{Fault, Hop, ServicePort};
use crate::model::remedy;
use crate::tls;

/// Authorities that are named.
const AUTHORITIES_MAX: usize = 4;

pub(super) fn tcp(facts: &Facts, service: &ServicePort, endpoint: &EndpointFacts) -> Finding {
    let fault = match &endpoint.tcp {
        Ok(took) => return Finding::well(Step::Tcp, "connected").took(*took),
        Err(fault) => fault,
    };
    if let Some(who) = reached_from_elsewhere(facts, fault.hop) {
        let text = format!("{}, but {who}", fault.hop.sentence(service));
        return Finding::warning(Step::Tcp, fault.hop.word(), text).why(&*fault.detail).change(
            "Nothing at the backend: run the doctor where the aggregator runs, in a pod of the \
             cluster for instance, to have this endpoint examined.",
        );
    }
    let finding = Finding::fault(Step::Tcp, fault.hop, service);
    // Somebody was there to refuse; silence may also mean that there is no way from here.
    if fault.hop == Hop::ConnectRefused {
        return finding.why(&*fault.detail);
    }
    let mut why = fault.detail.to_string();
    if is_internal(endpoint.address) {
        why += ". The address is a private one: unless the doctor runs where the aggregator runs, \
                this may say nothing about the backend";
    }
    finding.why(why)
}

/// What shows that the aggregator gets through where the doctor does not.
fn reached_from_elsewhere(facts: &Facts, hop: Hop) -> Option<&'static str> {
    // With a working endpoint beside it, an answer says nothing about this one.
    if facts.endpoints.iter().any(|endpoint| endpoint.tcp.is_ok()) {
        return None;
    }
    let read = facts.proxied.as_ref().and_then(|proxied| proxied.discovery.as_ref().ok());
    if read.is_some_and(Reply::is_success) {
        return Some("the aggregator is answered");
    }
    // A condition may be some time old; a refusal is of now.
    let available = facts.available().is_some_and(|(status, ..)| status == "True");
    (available && hop != Hop::ConnectRefused).then_some("the aggregator says it is available")
}

/// Addresses that are no good outside of a network of one's own.
fn is_internal(address: SocketAddr) -> bool {
    match address.ip() {
        // With 100.64.0.0/10 (RFC 6598), which clouds use for pods.
        IpAddr::V4(ip) => ip.is_private() || (ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

pub(super) fn tls(facts: &Facts, service: &ServicePort, endpoint: &EndpointFacts) -> Finding {
    let Some(seen) = &endpoint.tls else { return super::not_reached(Step::Tls, endpoint) };
    let bundle = bundle(facts);
    if let Some(Err(disbelief)) = &seen.verdict {
        return disbelieved(facts, service, seen, disbelief.hop, &disbelief.detail);
    }
    let finding = match &seen.handshake {
        Ok(done) => {
            let text = format!("{}, {}", done.version, done.protocol);
            judged(facts, seen, &bundle, &text).took(done.took)
        }
        // The next hop tells it.
        Err(Fault { hop: Hop::ClientCertificateRefused, .. }) if seen.verdict.is_some() => {
            judged(facts, seen, &bundle, "TLS")
        }
        Err(fault) => Finding::fault(Step::Tls, fault.hop, service).why(&*fault.detail),
    };
    finding.details(compared(facts, seen, &bundle))
}

/// A server that is believed, and what will go wrong one day.
fn judged(facts: &Facts, seen: &TlsFacts, bundle: &[Certificate], how: &str) -> Finding {
    if facts.skips_verification() {
        return Finding::warning(Step::Tls, "NotVerified", format!("{how}; nobody is disbelieved"))
            .why("insecureSkipTLSVerify is set: whoever answers at this address gets the requests.")
            .change(
                "Put the authority that signed the backend's certificate into `caBundle`, and \
                 leave `insecureSkipTLSVerify` out.",
            );
    }
    if let Some(ended) = bundle.iter().find(|one| one.not_after < facts.now)
        && bundle.iter().all(|one| one.not_after < facts.now)
    {
        let text = format!("{how}; the caBundle's authority has expired");
        return Finding::warning(Step::Tls, "AuthorityExpired", text)
            .why(format!(
                "{}: kube-apiserver refuses it, portico does not.",
                ended.as_authority(facts.now)
            ))
            .change("Renew the authority, then the backend's certificate and the `caBundle`.");
    }
    let soonest = seen.chain.iter().chain(bundle).min_by_key(|one| one.not_after);
    if let Some(soonest) = soonest.filter(|one| nearness(one.not_after, facts.now).is_some()) {
        let text = format!("{how}; a certificate ends soon");
        return Finding::warning(Step::Tls, "EndsSoon", text)
            .why(format!("\"{}\": {}.", soonest.subject, soonest.validity(facts.now)))
            .change(remedy::of_hop(Hop::CertificateExpired));
    }
    Finding::well(Step::Tls, format!("{how}; the certificate is believed"))
}

fn disbelieved(
    facts: &Facts,
    service: &ServicePort,
    seen: &TlsFacts,
    hop: Hop,
    detail: &str,
) -> Finding {
    let bundle = bundle(facts);
    let why = match hop {
        Hop::UnknownAuthority => why_unknown(facts, seen, &bundle),
        Hop::NameMismatch => why_named(service, seen),
        Hop::CertificateExpired | Hop::CertificateNotYetValid => {
            let leaf = seen.chain.first();
            leaf.map_or_else(
                || detail.to_owned(),
                |leaf| format!("It is {}.", leaf.validity(facts.now)),
            )
        }
        _ => detail.to_owned(),
    };
    let finding = Finding::fault(Step::Tls, hop, service).why(why);
    finding.details(compared(facts, seen, &bundle))
}

/// The caBundle's certificates; empty when it holds none that can be read.
fn bundle(facts: &Facts) -> Vec<Certificate> {
    let found = tls::certificates("caBundle", facts.ca_bundle());
    found.map(|all| Certificate::read_all(&all)).unwrap_or_default()
}

/// Whom the aggregator would believe, and who answered.
fn compared(facts: &Facts, seen: &TlsFacts, bundle: &[Certificate]) -> Vec<String> {
    let mut lines = Vec::new();
    if facts.skips_verification() {
        lines.push("expected: anybody".to_owned());
    } else if facts.ca_bundle().is_empty() {
        lines.push(
            "expected: an authority that this system trusts, for want of a caBundle".to_owned(),
        );
    } else if bundle.is_empty() {
        let begin: Vec<u8> = facts.ca_bundle().iter().copied().take(24).collect();
        let begin = String::from_utf8_lossy(&begin).into_owned();
        lines.push(format!("expected: a caBundle that holds no PEM, it begins with {begin:?}"));
    }
    let authorities = bundle.iter().take(AUTHORITIES_MAX);
    lines.extend(authorities.map(|one| format!("expected: {}", one.as_authority(facts.now))));
    if bundle.len() > AUTHORITIES_MAX {
        lines.push(format!("expected: {} more", bundle.len() - AUTHORITIES_MAX));
    }
    let mut chain = seen.chain.iter();
    lines.extend(chain.next().map(|leaf| format!("offered: {}", leaf.as_leaf(facts.now))));
    lines.extend(
        chain
            .take(AUTHORITIES_MAX)
            .map(|one| format!("offered with: {}", one.as_authority(facts.now))),
    );
    lines
}

fn why_unknown(facts: &Facts, seen: &TlsFacts, bundle: &[Certificate]) -> String {
    let Some(leaf) = seen.chain.first() else { return String::new() };
    let issuers: Vec<&str> = seen.chain.iter().map(|one| one.issuer.as_str()).collect();
    if bundle.iter().any(|authority| issuers.contains(&authority.subject.as_str())) {
        return "The caBundle has an authority of the name that signed this certificate, but with \
                another key: it was made anew since, or there are two of one name."
            .to_owned();
    }
    if facts.ca_bundle().is_empty() {
        let issuer = &leaf.issuer;
        return format!("It was signed by \"{issuer}\"; the APIService has no caBundle to say so.");
    }
    if leaf.is_self_issued() {
        return "The server signed its certificate itself, and it is not in the caBundle."
            .to_owned();
    }
    let issuer = seen.chain.last().map_or("", |last| last.issuer.as_str());
    format!("It was signed by \"{issuer}\", which is not in the caBundle.")
}

fn why_named(service: &ServicePort, seen: &TlsFacts) -> String {
    let Some(leaf) = seen.chain.first() else { return String::new() };
    let name = service.server_name();
    if leaf.names.is_empty() {
        let common_name = &leaf.common_name;
        return format!(
            "It has no subject alternative names, and its common name \"{common_name}\" does not \
             count; wanted is {name}."
        );
    }
    format!("Its names are {}; wanted is {name}.", leaf.names_in_short())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use k8s_openapi::ByteString;

    use super::super::samples::{DAY, NOW, certificate, condition, facts, status};
    use super::*;
    use crate::cli::doctor::facts::Disbelief;
    use crate::cli::doctor::finding::Outcome;
    use crate::tls::pki::Authority;

    fn service() -> ServicePort {
        facts().service_ref.unwrap()
    }

    #[track_caller]
    fn check(finding: &Finding, outcome: Outcome, cause: &str, words: &str) {
        assert_eq!(finding.outcome, outcome, "{finding:?}");
        assert_eq!(finding.cause.as_deref(), Some(cause), "{finding:?}");
        assert!(format!("{finding:?}").contains(words), "{finding:?}");
        assert!(finding.change.is_some());
    }

    fn unreachable(hop: Hop) -> Facts {
        let mut facts = facts();
        facts.endpoints[0].tcp = Err(Fault::new(hop, "the system's words"));
        facts.proxied = None;
        facts
    }

    #[test]
    fn a_dead_endpoint_is_told_from_one_that_cannot_be_reached_from_here() {
        let tcp = |facts: &Facts| tcp(facts, &service(), &facts.endpoints[0]);
        let mut refused = unreachable(Hop::ConnectRefused);
        check(&tcp(&refused), Outcome::Failed, "ConnectRefused", "the system's words");
        condition(&mut refused, "True", "Passed", "");
        check(&tcp(&refused), Outcome::Failed, "ConnectRefused", "connection refused");
        let mut timeout = unreachable(Hop::ConnectTimeout);
        check(&tcp(&timeout), Outcome::Failed, "ConnectTimeout", "a private one");
        condition(&mut timeout, "True", "Passed", "");
        check(&tcp(&timeout), Outcome::Warning, "ConnectTimeout", "says it is available");
        let mut answered = unreachable(Hop::ConnectFailed);
        answered.proxied = facts().proxied;
        check(&tcp(&answered), Outcome::Warning, "ConnectFailed", "aggregator is answered");
        if let Some(proxied) = &mut answered.proxied {
            proxied.discovery = Ok(status(503, "no"));
        }
        check(&tcp(&answered), Outcome::Failed, "ConnectFailed", "");
        let mut one_of_two = unreachable(Hop::ConnectTimeout);
        condition(&mut one_of_two, "True", "Passed", "");
        one_of_two.endpoints.extend(facts().endpoints);
        check(&tcp(&one_of_two), Outcome::Failed, "ConnectTimeout", "");
    }

    fn shown(hop: Hop, chain: Vec<Certificate>, bundle: &[u8]) -> Finding {
        let mut facts = facts();
        let spec = facts.object.as_mut().unwrap().spec.as_mut().unwrap();
        spec.ca_bundle = Some(ByteString(bundle.to_vec()));
        let seen = facts.endpoints[0].tls.as_mut().unwrap();
        seen.chain = chain;
        seen.verdict = Some(Err(Disbelief { hop, detail: "the library's words".to_owned() }));
        tls(&facts, &service(), &facts.endpoints[0])
    }

    #[test]
    fn who_was_expected_and_who_came_is_said() {
        let bundle = Authority::new("ca").unwrap().certificate();
        let bundle = bundle.as_bytes();
        let of = |issuer, names: &[&str]| vec![certificate("server", issuer, names)];
        let failed = Outcome::Failed;
        let unknown = |issuer, bundle| shown(Hop::UnknownAuthority, of(issuer, &["a"]), bundle);
        let word = "UnknownAuthority";
        check(
            &unknown("other", bundle),
            failed,
            word,
            "CN=other\\\", which is not in the caBundle",
        );
        check(&unknown("other", bundle), failed, word, "expected: \\\"CN=ca\\\", sha256 ");
        check(&unknown("ca", bundle), failed, word, "with another key");
        check(&unknown("server", bundle), failed, word, "signed its certificate itself");
        check(&unknown("other", b""), failed, word, "no caBundle to say so");
        let named = |names: &[&str]| shown(Hop::NameMismatch, of("ca", names), bundle);
        check(&named(&["a.svc"]), failed, "NameMismatch", "are a.svc; wanted is things.ns.svc");
        check(&named(&[]), failed, "NameMismatch", "no subject alternative names");
        let mut old = of("ca", &["a"]);
        old[0].not_after = NOW - DAY;
        check(
            &shown(Hop::CertificateExpired, old, bundle),
            failed,
            "CertificateExpired",
            "expired 2027",
        );
        let garbage = shown(Hop::InvalidCaBundle, of("ca", &[]), b"MIIB");
        check(&garbage, failed, "InvalidCABundle", "begins with \\\"MIIB");
        let invalid = shown(Hop::CertificateInvalid, of("ca", &["a"]), bundle);
        check(&invalid, failed, "CertificateInvalid", "the library's words");
    }

    #[test]
    fn a_server_that_is_believed_may_deserve_a_warning() {
        let tls = |facts: &Facts| tls(facts, &service(), &facts.endpoints[0]);
        let mut soon = facts();
        soon.endpoints[0].tls.as_mut().unwrap().chain[0].not_after = NOW + 3 * DAY + 1;
        check(&tls(&soon), Outcome::Warning, "EndsSoon", "3 days");
        let mut skipping = facts();
        let spec = skipping.object.as_mut().unwrap().spec.as_mut().unwrap();
        spec.insecure_skip_tls_verify = Some(true);
        check(&tls(&skipping), Outcome::Warning, "NotVerified", "whoever answers");
        let mut frozen = facts();
        let seen = frozen.endpoints[0].tls.as_mut().unwrap();
        (seen.chain, seen.verdict) = (Vec::new(), None);
        seen.handshake = Err(Fault::new(Hop::HandshakeTimeout, "nothing for 5s"));
        check(&tls(&frozen), Outcome::Failed, "HandshakeTimeout", "nothing for 5s");
        let mut refusing = facts();
        let seen = refusing.endpoints[0].tls.as_mut().unwrap();
        seen.handshake = Err(Fault::new(Hop::ClientCertificateRefused, "alert"));
        assert_eq!(tls(&refusing).outcome, Outcome::Well);
        let mut plain = facts();
        (plain.endpoints[0].tcp, plain.endpoints[0].tls) =
            (Err(Fault::new(Hop::ConnectRefused, "")), None);
        assert_eq!(tls(&plain).outcome, Outcome::Skipped);
        assert!(tls(&facts()).took > Some(Duration::ZERO));
    }
}
