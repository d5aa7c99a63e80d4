//! APIServices of whose service's namespace nothing was seen yet. They wait until it was: routed by
//! too early, they would be without their service for a moment. Until then kube-apiserver, which
//! knows the way, gets their requests.

use std::collections::BTreeMap;

use crate::store::{Change, Key, Object};

/// The APIServices that wait, as they are to be.
#[derive(Debug, Default)]
pub(super) struct Held {
    objects: BTreeMap<Key, Object>,
}

impl Held {
    /// True when none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Of these changes and of what waits, what is to happen now, in an order that works.
    pub(super) fn release(
        &mut self,
        changes: Vec<Change>,
        is_seen: impl Fn(&str) -> bool,
    ) -> Vec<Change> {
        let mut now = Vec::with_capacity(changes.len());
        for change in changes {
            match change {
                Change::Put(object) if namespace(&object).is_some_and(|it| !is_seen(it)) => {
                    self.objects.insert(object.key(), object);
                }
                Change::Put(object) => {
                    self.objects.remove(&object.key());
                    now.push(Change::Put(object));
                }
                Change::Delete(key) => {
                    self.objects.remove(&key);
                    now.push(Change::Delete(key));
                }
            }
        }
        // Behind the service, which may be among these changes.
        let all = std::mem::take(&mut self.objects);
        let (seen, waiting): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, object)| namespace(object).is_none_or(&is_seen));
        self.objects = waiting.into_iter().collect();
        now.extend(seen.into_iter().map(|(_, object)| Change::Put(object)));
        now
    }
}

/// The namespace of the service that an APIService names.
pub(super) fn namespace(object: &Object) -> Option<&str> {
    object.as_api_service()?.spec.as_ref()?.service.as_ref()?.namespace.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api_service(name: &str, namespace: &str) -> Change {
        let service = serde_json::json!({"namespace": namespace, "name": "s"});
        let spec = serde_json::json!({"service": service, "groupPriorityMinimum": 1,
                                      "versionPriority": 1});
        let object = serde_json::json!({"metadata": {"name": name}, "spec": spec});
        Change::Put(Object::ApiService(serde_json::from_value(object).unwrap()))
    }

    #[track_caller]
    fn check(held: &mut Held, changes: Vec<Change>, seen: &[&str], expected: &[&str]) {
        let now = held.release(changes, |namespace| seen.contains(&namespace));
        let text = |change: &Change| match change {
            Change::Put(object) => {
                format!("{} {}", object.key().name, namespace(object).unwrap_or_default())
            }
            Change::Delete(key) => format!("-{}", key.name),
        };
        assert_eq!(now.iter().map(text).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_api_service_waits_for_its_services_namespace() {
        let mut held = Held::default();
        let both = vec![api_service("a", "n"), api_service("b", "m")];
        check(&mut held, both, &["m"], &["b m"]);
        check(&mut held, Vec::new(), &["m"], &[]);
        check(&mut held, Vec::new(), &["m", "n"], &["a n"]);
        assert!(held.is_empty());
    }

    #[test]
    fn what_became_of_it_meanwhile_counts() {
        let mut held = Held::default();
        let (a, b, c) = (api_service("a", "n"), api_service("b", "n"), api_service("c", "n"));
        check(&mut held, vec![a, b, c], &[], &[]);
        let gone = Change::Delete(Key::api_service("a"));
        check(&mut held, vec![gone, api_service("b", "m")], &["m"], &["-a", "b m"]);
        check(&mut held, vec![api_service("c", "o")], &["m"], &[]);
        check(&mut held, Vec::new(), &["n"], &[]);
        check(&mut held, Vec::new(), &["o"], &["c o"]);
    }
}
