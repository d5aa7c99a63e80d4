//! What was learnt of one version, to be kept across restarts.

use bytes::Bytes;

use crate::upstream::BackendSpec;

/// One version's last good answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    spec: BackendSpec,
    pub(super) fetched: u64,
    pub(super) resources: Bytes,
    pub(super) legacy: Option<Bytes>,
}

impl Record {
    pub(super) fn new(
        spec: &BackendSpec,
        fetched: u64,
        resources: Bytes,
        legacy: Option<Bytes>,
    ) -> Self {
        Self { spec: spec.clone(), fetched, resources, legacy }
    }

    pub(super) fn is_of(&self, spec: &BackendSpec) -> bool {
        self.spec == *spec
    }
}
