//! Upstream's tables of order and precedence, and that order of arrival never counts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn standing(group_priority: i32, version_priority: i32) -> Standing {
    Standing::new(group_priority, version_priority, true, true)
}

fn set(index: &mut Index<u32>, group: &str, version: &str, standing: Standing) {
    let changed = index.set(Source::Remote, (&group.into(), &version.into()), standing, 0);
    assert!(changed.is_some());
}

/// `group: version version` of each group in one of the two orders.
fn lines<P: AsRef<str>>(index: &Index<u32>, places: &BTreeSet<P>) -> Vec<String> {
    let line = |place: &P| {
        let versions = &index.group(place.as_ref()).unwrap().versions;
        let names: Vec<&str> = versions.iter().map(|version| &*version.name).collect();
        format!("{}: {}", place.as_ref(), names.join(" "))
    };
    places.iter().map(line).collect()
}

/// Each group-version with its two priorities, put in forwards and backwards.
#[track_caller]
fn check(items: &[(&str, &str, i32, i32)], aggregated: &[&str], listed: &[&str]) {
    for backwards in [false, true] {
        let mut index = Index::default();
        let mut items = items.to_vec();
        if backwards {
            items.reverse();
        }
        for (group, version, group_priority, version_priority) in items {
            set(&mut index, group, version, standing(group_priority, version_priority));
        }
        assert_eq!(lines(&index, index.aggregated()), aggregated);
        assert_eq!(lines(&index, index.listed()), listed);
    }
}

/// `TestAPIs/simple add`, `TestAPIs/sorting` and `TestAPIGroup/sorting`.
#[test]
fn groups_are_listed_as_upstream_lists_them() {
    let simple = ["foo: v1", "bar: v1"];
    check(&[("foo", "v1", 11, 15), ("bar", "v1", 10, 15)], &simple, &simple);
    let sorted = ["foo: v2 v1", "bar: v2 v1"];
    check(
        &[("foo", "v1", 1, 10), ("bar", "v1", 11, 5), ("foo", "v2", 20, 15), ("bar", "v2", 10, 5)],
        &sorted,
        &sorted,
    );
}

/// `TestSortedAPIServicesByVersion`.
#[test]
fn versions_of_equal_priority_are_compared_as_kubernetes_does() {
    let versions = |versions: &[&'static str]| -> Vec<(&str, &str, i32, i32)> {
        versions.iter().map(|&version| ("g", version, 1, 1)).collect()
    };
    let one = ["g: v2 v1 v10beta2 v10beta1 v2beta1 v10alpha1"];
    check(&versions(&["v2", "v10beta2", "v2beta1", "v10beta1", "v10alpha1", "v1"]), &one, &one);
    let two = ["g: v2 v1 final foo1 foo10 foo2 test"];
    check(&versions(&["v1", "v2", "test", "foo2", "foo10", "final", "foo1"]), &two, &two);
}

/// `TestVersionSortingNoPriority` and `TestVersionSortingWithPriority`.
#[test]
fn a_versions_priority_counts_first() {
    let plain: Vec<(&str, &str, i32, i32)> = ["v1alpha1", "v1beta1", "v1", "v2beta1", "v2"]
        .iter()
        .map(|&version| ("default", version, 0, 0))
        .collect();
    let expected = ["default: v2 v1 v2beta1 v1beta1 v1alpha1"];
    check(&plain, &expected, &expected);
    let expected = ["default: v1alpha1 v1"];
    check(
        &[("default", "v1", 1000, 100), ("default", "v1alpha1", 1000, 200)],
        &expected,
        &expected,
    );
}

/// `TestGroupVersionSortingConflictingPriority`.
#[test]
fn a_group_ranks_by_the_largest_priority_of_its_versions() {
    let expected = ["three: v1", "one: v1 v1beta1", "two: v1"];
    check(
        &[
            ("one", "v1", 1000, 100),
            ("two", "v1", 500, 100),
            ("three", "v1", 3000, 100),
            ("one", "v1beta1", 2000, 50),
        ],
        &expected,
        &expected,
    );
}

/// `TestStatelessGroupPriorityMinimum`.
#[test]
fn a_priority_goes_with_the_version_that_gave_it() {
    let mut index = Index::default();
    set(&mut index, "stable", "v1", standing(1000, 15));
    set(&mut index, "experimental", "v1", standing(900, 15));
    assert_eq!(lines(&index, index.aggregated()), ["stable: v1", "experimental: v1"]);
    set(&mut index, "experimental", "v2", standing(2000, 15));
    assert_eq!(lines(&index, index.aggregated()), ["experimental: v2 v1", "stable: v1"]);
    assert!(index.remove(Source::Remote, "experimental", "v2").is_some());
    assert_eq!(lines(&index, index.aggregated()), ["stable: v1", "experimental: v1"]);
}

#[test]
fn ties_go_by_group_in_the_aggregated_document_and_by_api_service_in_the_list() {
    check(
        &[("zoo", "v1", 5, 1), ("ant", "v1alpha1", 5, 1)],
        &["ant: v1alpha1", "zoo: v1"],
        &["zoo: v1", "ant: v1alpha1"],
    );
}

/// `TestMultipleSources`.
#[test]
fn versions_of_several_sources_are_united_in_one_group() {
    let mut index: Index<u32> = Index::default();
    let group: Arc<str> = "g".into();
    for (source, version) in
        [(Source::Crd, "v1"), (Source::Builtin, "v2"), (Source::Remote, "v1beta1")]
    {
        index.set(source, (&group, &version.into()), standing(0, 0), 0);
    }
    assert_eq!(lines(&index, index.aggregated()), ["g: v2 v1 v1beta1"]);
}

/// `TestSourcePrecedence`.
#[test]
fn of_several_sources_the_lowest_is_believed_and_the_next_when_it_goes() {
    let mut index = Index::default();
    let (group, version): (Arc<str>, Arc<str>) = ("g".into(), "v1".into());
    let put = |index: &mut Index<u32>, source, priority, value| {
        index.set(source, (&group, &version), standing(priority, 1), value).is_some()
    };
    let seen = |index: &Index<u32>| {
        index.group("g").map(|group| group.versions.first().unwrap().winner.value)
    };
    assert!(put(&mut index, Source::Crd, 1, 3));
    assert!(put(&mut index, Source::Remote, 2, 1));
    assert!(!put(&mut index, Source::Builtin, 3, 2));
    assert!(!put(&mut index, Source::Builtin, 4, 2), "a hidden one cannot be seen to change");
    assert_eq!(seen(&index), Some(1));
    let change = index.remove(Source::Remote, "g", "v1").unwrap();
    assert_eq!(change.before.aggregated, Some(AggregatedPlace::new(2, &group)));
    assert_eq!(change.after.aggregated, Some(AggregatedPlace::new(4, &group)));
    assert_eq!(seen(&index), Some(2));
    assert!(index.remove(Source::Crd, "g", "v1").is_none());
    assert!(index.remove(Source::Builtin, "g", "v1").is_some());
    assert_eq!(seen(&index), None);
    assert!(index.aggregated().is_empty() && index.listed().is_empty());
}

#[test]
fn what_is_set_again_as_it_was_changes_nothing() {
    let mut index = Index::default();
    set(&mut index, "g", "v1", standing(1, 1));
    let again = index.set(Source::Remote, (&"g".into(), &"v1".into()), standing(1, 1), 0);
    assert_eq!(again, None);
    assert_eq!(index.remove(Source::Remote, "g", "v2"), None);
    assert_eq!(index.remove(Source::Remote, "h", "v1"), None);
}

#[test]
fn versions_that_are_not_shown_give_their_group_no_place() {
    let mut index: Index<u32> = Index::default();
    let group: Arc<str> = "g".into();
    let hidden = |listed, aggregated| Standing::new(5, 5, listed, aggregated);
    index.set(Source::Remote, (&group, &"v1".into()), hidden(true, false), 0);
    assert!(index.aggregated().is_empty());
    assert_eq!(index.listed().len(), 1);
    index.set(Source::Remote, (&group, &"v1".into()), hidden(false, true), 0);
    assert_eq!(index.aggregated().len(), 1);
    assert!(index.listed().is_empty());
    index.set(Source::Remote, (&"".into(), &"v1".into()), hidden(true, true), 0);
    assert_eq!((index.aggregated().len(), index.listed().len()), (1, 0), "the core has no place");
}

type Key = (Source, &'static str, &'static str);

/// A change: what is set, or taken out when there is nothing to set.
fn changes() -> impl Strategy<Value = Vec<(Key, Option<(Standing, u32)>)>> {
    let source = prop::sample::select(vec![Source::Remote, Source::Builtin, Source::Crd]);
    let group = prop::sample::select(vec!["", "ant", "bee", "cow"]);
    let version = prop::sample::select(vec!["v1", "v2", "v1beta1"]);
    let account = (0..3i32, 0..3i32, any::<bool>(), any::<bool>(), 0..2u32);
    let account = account.prop_map(|(group, version, listed, aggregated, value)| {
        (Standing::new(group, version, listed, aggregated), value)
    });
    prop::collection::vec(((source, group, version), prop::option::of(account)), 0..60)
}

fn apply(index: &mut Index<u32>, (source, group, version): Key, to: Option<(Standing, u32)>) {
    match to {
        Some((standing, value)) => {
            index.set(source, (&group.into(), &version.into()), standing, value);
        }
        None => {
            index.remove(source, group, version);
        }
    }
}

proptest! {
    #[test]
    fn the_order_of_arrival_does_not_count(changes in changes()) {
        let mut index = Index::default();
        let mut state: BTreeMap<Key, (Standing, u32)> = BTreeMap::new();
        for (key, to) in changes {
            apply(&mut index, key, to);
            match to {
                Some(to) => state.insert(key, to),
                None => state.remove(&key),
            };
        }
        let mut other = Index::default();
        for (key, to) in state.into_iter().rev() {
            apply(&mut other, key, Some(to));
        }
        prop_assert_eq!(lines(&index, index.aggregated()), lines(&other, other.aggregated()));
        prop_assert_eq!(lines(&index, index.listed()), lines(&other, other.listed()));
        let winners = |index: &Index<u32>, group: &str| -> Vec<Account<u32>> {
            let versions = index.group(group).map(|group| group.versions.clone());
            versions.unwrap_or_default().into_iter().map(|version| version.winner).collect()
        };
        for group in ["", "ant", "bee", "cow"] {
            prop_assert_eq!(winners(&index, group), winners(&other, group));
        }
    }
}
