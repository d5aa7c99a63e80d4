//! The order in which groups and versions are listed.
//!
//! Rules are upstream's (`kube-aggregator/pkg/apis/apiregistration/v1/helper`,
//! `apimachinery/pkg/version`).

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use super::api_service;

/// How far a version has come; the better one is the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Stable,
    Beta,
    Alpha,
}

/// Compares two versions as Kubernetes does; the preferred one is `Less`: stable before beta before
/// alpha, then the larger number, and what is not of that form last, in order of its text.
pub fn compare_versions(left: &str, right: &str) -> Ordering {
    match (parse_version(left), parse_version(right)) {
        (Some(left), Some(right)) => left.cmp(&right),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => left.cmp(right),
    }
}

/// `v<major>`, `v<major>beta<minor>` or `v<major>alpha<minor>`.
fn parse_version(text: &str) -> Option<(Stage, Reverse<u64>, Reverse<u64>)> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse().ok().map(Reverse) } else { None }
    };
    let rest = text.strip_prefix('v')?;
    let words = [("alpha", Stage::Alpha), ("beta", Stage::Beta)];
    let staged = words.into_iter().find_map(|(word, stage)| Some((rest.split_once(word)?, stage)));
    match staged {
        Some(((major, minor), stage)) => Some((stage, number(major)?, number(minor)?)),
        None => Some((Stage::Stable, number(rest)?, Reverse(0))),
    }
}

/// Compares two versions of one group by `versionPriority`, then as Kubernetes does; the preferred one is
/// `Less`.
pub fn compare_in_group(left: (i32, &str), right: (i32, &str)) -> Ordering {
    right.0.cmp(&left.0).then_with(|| compare_versions(left.1, right.1))
}

/// A group's place in the aggregated document: by the largest `groupPriorityMinimum` of what is shown of
/// it, ties by the group's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AggregatedPlace {
    priority: Reverse<i32>,
    group: Arc<str>,
}

impl AggregatedPlace {
    /// The place of a group with that priority.
    pub fn new(priority: i32, group: &Arc<str>) -> Self {
        Self { priority: Reverse(priority), group: Arc::clone(group) }
    }
}

/// The group's name.
impl AsRef<str> for AggregatedPlace {
    fn as_ref(&self) -> &str {
        &self.group
    }
}

/// A group's place in the APIGroupList: that of the first of its `APIServices`, which are ordered by
/// `groupPriorityMinimum` and then by name, the version before the group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListedPlace {
    priority: Reverse<i32>,
    /// `<version>.<group>`
    api_service: Arc<str>,
    group: Arc<str>,
}

impl ListedPlace {
    /// The place that one APIService would give its group.
    pub fn new(priority: i32, group: &Arc<str>, version: &str) -> Self {
        let api_service = api_service::name(group, version).into();
        Self { priority: Reverse(priority), api_service, group: Arc::clone(group) }
    }
}

/// The group's name.
impl AsRef<str> for ListedPlace {
    fn as_ref(&self) -> &str {
        &self.group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list in the API's own documentation.
    #[test]
    fn versions_are_compared_as_kubernetes_does() {
        let sorted = [
            "v10",
            "v2",
            "v1",
            "v11beta2",
            "v10beta3",
            "v3beta1",
            "v12alpha1",
            "v11alpha2",
            "foo1",
            "foo10",
            "v1alpha",
            "v1beta1x",
            "vx",
        ];
        let mut versions = sorted;
        versions.reverse();
        versions.sort_by(|left, right| compare_versions(left, right));
        assert_eq!(versions, sorted);
    }

    #[test]
    fn places_tie_by_group_in_one_list_and_by_version_first_in_the_other() {
        let (ant, zoo): (Arc<str>, Arc<str>) = ("ant".into(), "zoo".into());
        assert!(AggregatedPlace::new(5, &ant) < AggregatedPlace::new(5, &zoo));
        assert!(ListedPlace::new(5, &zoo, "v1") < ListedPlace::new(5, &ant, "v1alpha1"));
        assert!(AggregatedPlace::new(6, &zoo) < AggregatedPlace::new(5, &ant));
        assert!(ListedPlace::new(6, &zoo, "v2") < ListedPlace::new(5, &ant, "v1"));
    }

    #[test]
    fn a_versions_priority_counts_before_its_name() {
        assert_eq!(compare_in_group((5, "v1"), (4, "v2")), Ordering::Less);
        assert_eq!(compare_in_group((5, "v1"), (5, "v2")), Ordering::Greater);
    }
}
