//! What was found at one hop: whether it is well, why not, and what to change.

use std::net::SocketAddr;
use std::time::Duration;

use crate::model::fault::{Hop, ServicePort};
use crate::model::remedy;

/// The hops, in the order of a request's way; their words are part of the JSON output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// The APIService.
    Object,
    /// The Service it names.
    Service,
    /// The Service's port.
    Port,
    /// The addresses behind it.
    Endpoints,
    /// A TCP connection to each.
    Tcp,
    /// TLS, and the server's certificate.
    Tls,
    /// The proxy-client certificate.
    ClientCertificate,
    /// X-Remote-* with the certificate.
    Identity,
    /// X-Remote-* without it.
    ForgedIdentity,
    /// What the server says it serves.
    Discovery,
    /// The same through the aggregator.
    ProxiedRead,
    /// Who answers reviews: the API server before which portico would stand.
    Core,
    /// Whether it takes X-Remote-* from portico.
    FrontProxy,
    /// Whether it takes the uid so, too.
    Uid,
    /// Whether portico may impersonate instead.
    Impersonation,
    /// Whether extension servers take X-Remote-* from portico.
    ExtensionServers,
}

impl Step {
    /// The word.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Service => "service",
            Self::Port => "port",
            Self::Endpoints => "endpoints",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::ClientCertificate => "client-certificate",
            Self::Identity => "identity",
            Self::ForgedIdentity => "forged-identity",
            Self::Discovery => "discovery",
            Self::ProxiedRead => "proxied-read",
            Self::Core => "core",
            Self::FrontProxy => "front-proxy",
            Self::Uid => "uid",
            Self::Impersonation => "impersonation",
            Self::ExtensionServers => "extension-servers",
        }
    }
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// As it should.
    Well,
    /// It was not tried, and why is said.
    Skipped,
    /// It works, with something to be put right.
    Warning,
    /// Requests fail here, or it is not safe.
    Failed,
}

impl Outcome {
    /// The word in JSON.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Well => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// What was found at a hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// Where.
    pub(super) step: Step,
    /// How it went.
    pub(super) outcome: Outcome,
    /// What was found, in a line.
    pub(super) summary: String,
    /// More of it.
    pub(super) details: Vec<String>,
    /// One word for the fault: one of `docs/failures.md`, or of `docs/doctor.md`.
    pub(super) cause: Option<String>,
    /// Why, in a sentence or two.
    pub(super) why: Option<String>,
    /// What to do.
    pub(super) change: Option<String>,
    /// The endpoints it is about; empty where it is about none in particular.
    pub(super) endpoints: Vec<SocketAddr>,
    /// How long it took, at the slowest endpoint.
    pub(super) took: Option<Duration>,
}

impl Finding {
    fn new(step: Step, outcome: Outcome, summary: impl Into<String>) -> Self {
        Self {
            step,
            outcome,
            summary: summary.into(),
            details: Vec::new(),
            cause: None,
            why: None,
            change: None,
            endpoints: Vec::new(),
            took: None,
        }
    }

    /// All is well.
    pub(super) fn well(step: Step, summary: impl Into<String>) -> Self {
        Self::new(step, Outcome::Well, summary)
    }

    /// Not tried; the summary says why.
    pub(super) fn skipped(step: Step, summary: impl Into<String>) -> Self {
        Self::new(step, Outcome::Skipped, summary)
    }

    /// It works, but.
    pub(super) fn warning(step: Step, cause: &str, summary: impl Into<String>) -> Self {
        Self { cause: Some(cause.to_owned()), ..Self::new(step, Outcome::Warning, summary) }
    }

    /// It does not work.
    pub(super) fn failed(step: Step, cause: &str, summary: impl Into<String>) -> Self {
        Self { cause: Some(cause.to_owned()), ..Self::new(step, Outcome::Failed, summary) }
    }

    /// A fault as portico's 503 tells it, with the remedy of `docs/failures.md`.
    pub(super) fn fault(step: Step, hop: Hop, service: &ServicePort) -> Self {
        Self::failed(step, hop.word(), hop.sentence(service)).change(remedy::of_hop(hop))
    }

    pub(super) fn why(mut self, why: impl Into<String>) -> Self {
        let why = why.into();
        self.why = (!why.is_empty()).then_some(why);
        self
    }

    pub(super) fn change(mut self, change: impl Into<String>) -> Self {
        self.change = Some(change.into());
        self
    }

    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.details.push(detail.into());
        self
    }

    pub(super) fn details(mut self, details: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(details);
        self
    }

    pub(super) fn took(mut self, took: Duration) -> Self {
        self.took = Some(took);
        self
    }

    pub(super) fn at(mut self, endpoint: SocketAddr) -> Self {
        self.endpoints = vec![endpoint];
        self
    }

    /// The same but for where and how long.
    fn is_like(&self, other: &Self) -> bool {
        let bare = |it: &Self| Self { endpoints: Vec::new(), took: None, ..it.clone() };
        bare(self) == bare(other)
    }
}

/// Findings of one hop at several endpoints, each told once.
pub(super) fn merge(findings: Vec<Finding>) -> Vec<Finding> {
    let mut merged: Vec<Finding> = Vec::new();
    for finding in findings {
        match merged.iter_mut().find(|other| other.is_like(&finding)) {
            Some(same) => {
                same.endpoints.extend(finding.endpoints);
                same.took = same.took.max(finding.took);
            }
            None => merged.push(finding),
        }
    }
    merged
}

/// What a report is about; the words are part of the JSON output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An API server.
    Server,
    /// An APIService.
    ApiService,
}

impl Kind {
    /// The word.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Server => "Server",
            Self::ApiService => "APIService",
        }
    }
}

/// What is said about one subject: an APIService, or the API server itself.
#[derive(Debug)]
pub(super) struct Report {
    /// The APIService's name, or the server's URL.
    pub(super) subject: String,
    /// Which of the two.
    pub(super) kind: Kind,
    /// In the order of the hops.
    pub(super) findings: Vec<Finding>,
}

impl Report {
    /// The worst outcome; well when there is none.
    pub(super) fn outcome(&self) -> Outcome {
        let worst = self.findings.iter().map(|finding| finding.outcome).max();
        match worst {
            Some(Outcome::Skipped) | None => Outcome::Well,
            Some(worst) => worst,
        }
    }

    /// The first hop that fails.
    pub(super) fn first_failure(&self) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.outcome == Outcome::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_same_at_several_endpoints_is_told_once() {
        let at = |port: u16, text: &str, millis| {
            Finding::well(Step::Tcp, text)
                .at(SocketAddr::from(([127, 0, 0, 1], port)))
                .took(Duration::from_millis(millis))
        };
        let merged = merge(vec![at(1, "a", 2), at(2, "b", 1), at(3, "a", 9)]);
        assert_eq!(merged.len(), 2);
        assert_eq!(merged[0].endpoints.len(), 2);
        assert_eq!(merged[0].took, Some(Duration::from_millis(9)));
    }

    #[test]
    fn what_was_not_tried_is_no_failure() {
        let report = |findings| Report { subject: String::new(), kind: Kind::ApiService, findings };
        let skipped = || Finding::skipped(Step::Tcp, "");
        assert_eq!(report(vec![skipped()]).outcome(), Outcome::Well);
        let warning = Finding::warning(Step::Tls, "W", "");
        assert_eq!(report(vec![skipped(), warning.clone()]).outcome(), Outcome::Warning);
        let failed = report(vec![warning, Finding::failed(Step::Tls, "F", ""), skipped()]);
        assert_eq!(failed.outcome(), Outcome::Failed);
        assert_eq!(failed.first_failure().unwrap().cause.as_deref(), Some("F"));
    }
}
