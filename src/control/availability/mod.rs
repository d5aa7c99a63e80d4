//! `--write-availability`: portico's verdicts on APIServices are written into the cluster, by one of
//! its replicas.

mod conditions;
mod lease;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::conditions::Conditions;
use self::lease::Leadership;
use super::watch::{Seen, Servers};
use crate::runtime::lifecycle::Drain;
use crate::runtime::tasks::{self, AbortOnDrop};
use crate::store::Store;

/// Starts both tasks: who leads, which ends with the program and gives up the Lease before, and what
/// the leader writes. The Lease is in `namespace`.
pub fn start(
    servers: &Servers,
    namespace: &str,
    store: Store,
    seen: &Seen,
    drain: Drain,
) -> (JoinHandle<()>, AbortOnDrop) {
    let (sender, leading) = watch::channel(false);
    let leadership = Leadership::new(servers, namespace, sender);
    let conditions = Conditions::new(servers, store, seen.reported.clone(), leading);
    (
        tasks::spawn("lease", leadership.run(drain)),
        tasks::spawn_owned("conditions", conditions.run()),
    )
}
