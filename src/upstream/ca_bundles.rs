//! The ends of the APIServices' caBundles: a gauge for each APIService, one word for each bundle.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Upstream;
use crate::model::expiry::end_of_authorities;
use crate::model::routing_table::{Route, RoutingTable};
use crate::runtime::snapshot::View;
use crate::tls::certificates;
use crate::tls::expiry::{LOOK_INTERVAL, Warnings, ends, now};

/// Between two looks at a table that changes all the time.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// One distinct caBundle.
#[derive(Debug)]
pub struct CaBundle {
    /// The end of each certificate in it, in Unix seconds; empty when it cannot be read.
    ends: Vec<i64>,
}

impl CaBundle {
    /// What there is to know of a bundle; one that cannot be read is reported where it is used.
    pub(super) fn new(pem: &[u8]) -> Self {
        let found = certificates("caBundle", pem);
        Self { ends: found.map(|all| ends(&all)).unwrap_or_default() }
    }

    /// The end that counts, in Unix seconds.
    pub fn end(&self, now: i64) -> Option<i64> {
        end_of_authorities(&self.ends, now)
    }
}

/// The APIServices of one bundle: the first by name, and how many.
#[derive(Debug)]
struct Users<'a> {
    first: &'a Arc<str>,
    count: usize,
    end: i64,
}

/// Looks at every caBundle when the table has changed and every [`LOOK_INTERVAL`], for ever.
pub async fn run(mut table: View<RoutingTable<Upstream>>) {
    let mut warnings = Warnings::default();
    let mut may_change = true;
    loop {
        look(&table.load(), &mut warnings, now());
        sleep(LOOK_PAUSE).await;
        tokio::select! {
            () = sleep(LOOK_INTERVAL) => {}
            changed = table.changed(), if may_change => may_change = changed,
        }
    }
}

fn look(table: &RoutingTable<Upstream>, warnings: &mut Warnings, now: i64) {
    let mut bundles: HashMap<*const CaBundle, Users<'_>> = HashMap::new();
    for entry in table.groups().flat_map(|group| &group.entries) {
        let Route::Remote(remote) = &*entry.route else { continue };
        let upstream = &remote.backend;
        let end = upstream.ca_bundle.as_ref().and_then(|bundle| bundle.end(now));
        upstream.metrics.ca_bundle_expires(end);
        let (Some(bundle), Some(end)) = (&upstream.ca_bundle, end) else { continue };
        let first = &remote.name;
        let users = bundles.entry(Arc::as_ptr(bundle)).or_insert(Users { first, count: 0, end });
        users.count += 1;
        users.first = users.first.min(first);
    }
    for Users { first, count, end } in bundles.values() {
        warnings.look(first, &format!("caBundle of {count} api services"), *end, now);
    }
    let names: HashSet<&str> = bundles.values().map(|users| &**users.first).collect();
    warnings.retain(|name| names.contains(name));
}
