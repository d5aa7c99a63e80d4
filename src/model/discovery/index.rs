//! Which source's account of a group-version is shown, and where: an ordered index that changes with
//! what changes.

/// Who says that a group-version is there; of several the first one is believed (upstream's 0, 100 and
/// 200 of `endpoints/discovery/aggregated`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// An extension API server.
    Remote,
    /// What is served here.
    Builtin,
    /// A custom resource definition.
    Crd,
}
