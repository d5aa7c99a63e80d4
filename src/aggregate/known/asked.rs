//! One server that is asked: its versions, and what is done with its answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use super::Question;
use super::version::Version;
use crate::aggregate::assembly::{Assembly, Source};
use crate::aggregate::fetch::{Answer, GroupVersion};
use crate::model::fault::{Fault, Hop};
use crate::runtime::lifecycle::ReadyGuard;
use crate::upstream::Backend;

/// How often versions' own documents are asked for when the aggregated one does not change.
const OWN_DOCUMENTS_INTERVAL: Duration = Duration::from_secs(600);

/// One server.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) backend: Arc<Backend>,
    pub(super) versions: BTreeMap<GroupVersion, Version>,
    pub(super) etag: Option<HeaderValue>,
    pub(super) failures: u32,
    /// When it is to be asked; none while an answer is waited for that counts.
    pub(super) due: Option<Instant>,
    /// When it was asked last.
    pub(super) begun: Option<Instant>,
    /// The question whose answer is waited for: since when, and its number.
    pub(super) waiting: Option<(Instant, u64)>,
    /// To be asked again after the answer that is waited for, not before this time.
    pub(super) again: Option<Instant>,
    /// When the versions' own documents were asked for last.
    pub(super) own_documents: Option<Instant>,
    pub(super) has_answered: bool,
    /// True once it was said that it fails, until it is well again.
    pub(super) is_reported: bool,
    /// True while readiness waits for its first answer.
    pub(super) is_awaited: bool,
    /// Its name there, when it has one.
    pub(super) awaited: Option<ReadyGuard>,
}

impl Asked {
    pub(super) fn new(backend: Arc<Backend>) -> Self {
        Self {
            backend,
            versions: BTreeMap::new(),
            etag: None,
            failures: 0,
            due: None,
            begun: None,
            waiting: None,
            again: None,
            own_documents: None,
            has_answered: false,
            is_reported: false,
            is_awaited: false,
            awaited: None,
        }
    }

    /// What its versions have; a fault if one of them is not known now.
    pub(super) fn take_in(
        &mut self,
        question: &Question,
        answer: Result<Answer, Fault>,
        unix_ms: u64,
        assembly: &Assembly,
    ) -> Option<Fault> {
        self.has_answered = true;
        let (etag, from_legacy, learnt) = match answer {
            Ok(Answer::Versions { etag, from_legacy, versions }) => (etag, from_legacy, versions),
            Ok(Answer::NotModified) => {
                // Not one that came while it was asked: that is in no document yet.
                for wanted in &question.versions {
                    if let Some(version) = self.versions.get_mut(wanted) {
                        version.confirm(unix_ms);
                    }
                }
                return None;
            }
            Err(fault) => {
                for version in self.versions.values_mut() {
                    version.fail(&fault);
                    // The versions' own documents may be well.
                    version.wants_own = fault.hop == Hop::InvalidDiscovery;
                }
                return Some(fault);
            }
        };
        let mut failed = None;
        for (wanted, learnt) in question.versions.iter().zip(learnt) {
            let Some(version) = self.versions.get_mut(wanted) else { continue };
            match learnt {
                Ok(learnt) => {
                    let shown =
                        || assembly.resources(Source::Remote, &wanted.group, &wanted.version);
                    failed = version.learn(learnt, from_legacy, shown, unix_ms).or(failed);
                }
                Err(fault) => {
                    version.fail(&fault);
                    failed = Some(fault);
                }
            }
        }
        // One that came or went while it was asked, or that failed, is not in the document.
        let complete = failed.is_none() && self.versions.keys().eq(&question.versions);
        self.etag = etag.filter(|_| complete);
        failed
    }

    /// Says when it begins to fail, and when it is well again.
    pub(super) fn report(&mut self, failed: Option<&Fault>) {
        let was_reported = std::mem::replace(&mut self.is_reported, failed.is_some());
        let service = &self.backend.spec().service;
        let first = self.versions.values().next();
        let apiservice = first.map(|version| &*version.name);
        match failed {
            Some(fault) if !was_reported => {
                // What the routing table says is nearer to the cause than that nobody could be asked.
                let fault = first.and_then(|version| version.table_fault.as_ref()).unwrap_or(fault);
                tracing::warn!(
                    %service, apiservice, apiservices = self.versions.len(),
                    cause = fault.hop.word(), detail = ?fault.detail, "discovery failed"
                );
            }
            None if was_reported => {
                tracing::info!(%service, apiservice, "discovery works again");
            }
            _ => {}
        }
    }

    /// The versions whose own documents are to be asked for now; with `from_legacy` those have just
    /// been answered.
    pub(super) fn own_documents(&mut self, now: Instant, from_legacy: bool) -> Vec<GroupVersion> {
        let lapsed = self.own_documents.is_none_or(|at| now - at >= OWN_DOCUMENTS_INTERVAL);
        let again = |version: &Version| lapsed && !from_legacy && !version.failing;
        let wanted: Vec<GroupVersion> = self
            .versions
            .iter()
            .filter(|(_, version)| !version.policy.legacy_from_backend)
            .filter(|(_, version)| version.wants_own || again(version))
            .map(|(wanted, _)| wanted.clone())
            .collect();
        if lapsed {
            self.own_documents = Some(now);
        }
        for version in self.versions.values_mut() {
            version.wants_own = false;
        }
        wanted
    }
}
