//! How much of a cluster's Services and EndpointSlices is watched: the namespaces that APIServices
//! name, or everything when those are many.
//!
//! A cluster has tens of thousands of Services of which a handful matter, mostly in one namespace. A
//! watch sees a namespace without a gap, which a filter of names that change would not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Namespaces that are watched one by one: each costs two connections.
const NAMESPACES_MAX: usize = 8;

/// What one watch sees.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// The whole cluster.
    Cluster,
    /// One namespace.
    Namespace(Arc<str>),
}

/// The namespaces that APIServices name.
#[derive(Debug, Default)]
pub(super) struct Named {
    by_api_service: BTreeMap<Arc<str>, Arc<str>>,
    /// How many APIServices name each.
    namespaces: BTreeMap<Arc<str>, usize>,
    /// True once there were so many that everything is watched, and from then on.
    were_many: bool,
}

impl Named {
    /// The APIService names a service in this namespace, or none.
    pub(super) fn put(&mut self, api_service: &Arc<str>, namespace: Option<&str>) {
        self.remove(api_service);
        let Some(namespace) = namespace else { return };
        let namespace: Arc<str> = namespace.into();
        *self.namespaces.entry(Arc::clone(&namespace)).or_default() += 1;
        self.by_api_service.insert(Arc::clone(api_service), namespace);
        self.were_many |= self.namespaces.len() > NAMESPACES_MAX;
    }

    /// The APIService is gone.
    pub(super) fn remove(&mut self, api_service: &str) {
        let Some(namespace) = self.by_api_service.remove(api_service) else { return };
        let Some(count) = self.namespaces.get_mut(&namespace) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.namespaces.remove(&namespace);
        }
    }

    /// What is to be watched.
    pub(super) fn scopes(&self) -> BTreeSet<Scope> {
        if self.were_many {
            return [Scope::Cluster].into();
        }
        self.namespaces.keys().cloned().map(Scope::Namespace).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(named: &Named, expected: &[&str]) {
        let scopes = named.scopes().into_iter().map(|scope| match scope {
            Scope::Cluster => "*".to_owned(),
            Scope::Namespace(name) => name.to_string(),
        });
        assert_eq!(scopes.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_namespace_is_watched_while_an_api_service_names_it() {
        let mut named = Named::default();
        let (one, two): (Arc<str>, Arc<str>) = ("v1.a".into(), "v1.b".into());
        check(&named, &[]);
        named.put(&one, Some("n"));
        named.put(&two, Some("n"));
        check(&named, &["n"]);
        named.put(&one, Some("m"));
        check(&named, &["m", "n"]);
        named.put(&two, None);
        check(&named, &["m"]);
        named.remove(&one);
        named.remove(&one);
        check(&named, &[]);
    }

    #[test]
    fn with_many_namespaces_everything_is_watched_and_stays_so() {
        let mut named = Named::default();
        let all: Vec<Arc<str>> = (0..=NAMESPACES_MAX).map(|n| format!("v1.{n}").into()).collect();
        for name in &all[1..] {
            named.put(name, Some(name));
        }
        assert_eq!(named.scopes().len(), NAMESPACES_MAX);
        named.put(&all[0], Some("one more"));
        check(&named, &["*"]);
        for name in &all {
            named.remove(name);
        }
        check(&named, &["*"]);
    }
}
