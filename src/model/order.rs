//! The order in which groups and versions are listed.
//!
//! Rules are upstream's (`kube-aggregator/pkg/apis/apiregistration/v1/helper`,
//! `apimachinery/pkg/version`).

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;

use foldhash::fast::FixedState;

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

/// What the order of groups and versions depends on.
#[derive(Clone, Copy, Debug)]
pub struct Rank<'a> {
    /// The group.
    pub group: &'a str,
    /// The version.
    pub version: &'a str,
    /// `spec.groupPriorityMinimum`.
    pub group_priority: i32,
    /// `spec.versionPriority`.
    pub version_priority: i32,
}

impl Rank<'_> {
    /// The APIService's name.
    fn name(&self) -> impl Iterator<Item = u8> {
        self.version.bytes().chain(*b".").chain(self.group.bytes())
    }

    fn compare_groups(&self, other: &Self) -> Ordering {
        let by_priority = other.group_priority.cmp(&self.group_priority);
        by_priority.then_with(|| self.name().cmp(other.name()))
    }

    fn compare_in_group(&self, other: &Self) -> Ordering {
        let by_priority = other.version_priority.cmp(&self.version_priority);
        by_priority.then_with(|| compare_versions(self.version, other.version))
    }
}

/// Sorts `APIServices` as legacy discovery lists them: the groups by the largest priority in them,
/// ties by the name of the APIService, and in each group the preferred version first.
pub fn sort<T>(mut items: Vec<T>, rank: impl for<'a> Fn(&'a T) -> Rank<'a>) -> Vec<Vec<T>> {
    items.sort_by(|left, right| rank(left).compare_groups(&rank(right)));
    let mut places: HashMap<String, usize, FixedState> = HashMap::default();
    let mut groups: Vec<Vec<T>> = Vec::new();
    for item in items {
        let next = groups.len();
        let place = *places.entry(rank(&item).group.to_owned()).or_insert(next);
        match groups.get_mut(place) {
            Some(group) => group.push(item),
            None => groups.push(vec![item]),
        }
    }
    for group in &mut groups {
        group.sort_by(|left, right| rank(left).compare_in_group(&rank(right)));
    }
    groups
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

    #[track_caller]
    fn check_order(items: &[(&'static str, &'static str, i32, i32)], expected: &[&[&str]]) {
        let sorted = sort(items.to_vec(), |&(group, version, group_priority, version_priority)| {
            Rank { group, version, group_priority, version_priority }
        });
        let names: Vec<Vec<&str>> = sorted
            .iter()
            .map(|group| group.iter().map(|&(_, version, ..)| version).collect())
            .collect();
        assert_eq!(names, expected);
    }

    /// Upstream's `TestSortedAPIServicesByVersion` and the sorting cases of `TestAPIs`.
    #[test]
    fn groups_and_versions_are_listed_as_upstream_lists_them() {
        let same = |versions: &[&'static str]| -> Vec<(&str, &str, i32, i32)> {
            versions.iter().map(|&version| ("g", version, 1, 1)).collect()
        };
        check_order(
            &same(&["v2", "v2beta1", "v10beta2", "v10beta1", "v10alpha1", "v1"]),
            &[&["v2", "v1", "v10beta2", "v10beta1", "v2beta1", "v10alpha1"]],
        );
        check_order(&same(&["foo1", "v1", "bar"]), &[&["v1", "bar", "foo1"]]);
        check_order(&[("g", "v1", 1, 5), ("g", "v2", 1, 4)], &[&["v1", "v2"]]);
        // A group ranks by its largest priority; ties go by the object's name, version first.
        check_order(
            &[("foo", "v1", 11, 1), ("bar", "v1a", 10, 1), ("bar", "v2", 20, 1)],
            &[&["v2", "v1a"], &["v1"]],
        );
        check_order(&[("a", "v2", 5, 1), ("b", "v1", 5, 1)], &[&["v1"], &["v2"]]);
    }
}
