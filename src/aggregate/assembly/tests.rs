//! Upstream's tables as documents, and that equal content is equal bytes whatever came before.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const OWN_AGGREGATED: &str = AGGREGATED_OWN;

/// A list with one resource of that name.
fn resources(name: &str) -> Bytes {
    format!(
        "[{{\"resource\":\"{name}\",\"responseKind\":{{\"group\":\"\",\"version\":\"\",\
         \"kind\":\"K\"}},\"scope\":\"Cluster\",\"singularResource\":\"\",\"verbs\":null}}]"
    )
    .into()
}

fn shown(priorities: (i32, i32), freshness: Freshness, resources: Bytes) -> Shown {
    let (group_priority, version_priority) = priorities;
    let entry = Some(Entry { freshness, resources });
    Shown { group_priority, version_priority, listed: true, entry, legacy: None, fault: None }
}

fn current(priorities: (i32, i32)) -> Shown {
    shown(priorities, Freshness::Current, resources("things"))
}

fn set(assembly: &mut Assembly, group: &str, version: &str, shown: Shown) {
    assembly.set(Source::Remote, &group.into(), &version.into(), shown);
}

fn text(document: &Document) -> String {
    String::from_utf8(document.json()).unwrap()
}

fn value(document: &Document) -> Value {
    serde_json::from_str(&text(document)).unwrap()
}

/// `group: version version` of each item but the own group, which is asserted to be the first.
fn aggregated_lines(published: &Published) -> Vec<String> {
    let document = value(published.aggregated());
    let line = |item: &Value| {
        let versions = item["versions"].as_array().unwrap().iter();
        let versions: Vec<&str> = versions.map(|one| one["version"].as_str().unwrap()).collect();
        format!("{}: {}", item["metadata"]["name"].as_str().unwrap(), versions.join(" "))
    };
    let mut lines: Vec<String> = document["items"].as_array().unwrap().iter().map(line).collect();
    assert_eq!(lines.remove(0), "apiregistration.k8s.io: v1");
    lines
}

fn listed_lines(published: &Published) -> Vec<String> {
    let document = value(published.listed());
    let line = |group: &Value| {
        assert_eq!(group["preferredVersion"], group["versions"][0]);
        let versions = group["versions"].as_array().unwrap().iter();
        let versions: Vec<&str> = versions.map(|one| one["version"].as_str().unwrap()).collect();
        format!("{}: {}", group["name"].as_str().unwrap(), versions.join(" "))
    };
    let mut lines: Vec<String> = document["groups"].as_array().unwrap().iter().map(line).collect();
    assert_eq!(lines.remove(0), "apiregistration.k8s.io: v1");
    lines
}

/// `TestAPIs/empty` and `TestRemoveAPIService`.
#[test]
fn the_own_group_is_always_there_and_first() {
    let mut assembly = Assembly::new();
    let empty = assembly.publish();
    assert_eq!(
        text(empty.aggregated()),
        format!(
            "{{\"kind\":\"APIGroupDiscoveryList\",\"apiVersion\":\"apidiscovery.k8s.io/v2\",\
             \"metadata\":{{}},\"items\":[{OWN_AGGREGATED}]}}\n"
        )
    );
    assert_eq!(
        text(empty.listed()),
        "{\"kind\":\"APIGroupList\",\"apiVersion\":\"v1\",\"groups\":[{\"name\":\
         \"apiregistration.k8s.io\",\"versions\":[{\"groupVersion\":\"apiregistration.k8s.io/v1\",\
         \"version\":\"v1\"}],\"preferredVersion\":{\"groupVersion\":\"apiregistration.k8s.io/v1\",\
         \"version\":\"v1\"}}]}\n"
    );
    for name in ["a", "b", "c"] {
        set(&mut assembly, name, "v1", current((20_000, 1)));
    }
    assert_eq!(aggregated_lines(&assembly.publish()), ["a: v1", "b: v1", "c: v1"]);
    set(&mut assembly, OWN_GROUP, "v1", current((1, 1)));
    for name in ["a", "b", "c"] {
        assembly.remove(Source::Remote, &name.into(), "v1");
    }
    let again = assembly.publish();
    assert_eq!(text(again.aggregated()), text(empty.aggregated()));
    assert_eq!(again.aggregated().etag(), empty.aggregated().etag());
    assert_eq!(text(again.listed()), text(empty.listed()));
    assert!(again.group("a").is_none() && again.resources("a", "v1").is_err());
}

/// `TestAPIs/simple add`, `/sorting`, `/unavailable service`; `TestAPIGroup/sorting`.
#[test]
fn both_lists_and_each_group_are_in_upstreams_order() {
    let mut assembly = Assembly::new();
    set(&mut assembly, "foo", "v1", current((1, 10)));
    set(&mut assembly, "bar", "v1", current((11, 5)));
    set(&mut assembly, "foo", "v2", current((20, 15)));
    let missing = Shown { entry: None, ..current((10, 5)) };
    set(&mut assembly, "bar", "v2", missing);
    let published = assembly.publish();
    assert_eq!(listed_lines(&published), ["foo: v2 v1", "bar: v2 v1"]);
    assert_eq!(aggregated_lines(&published), ["foo: v2 v1", "bar: v1"]);
    assert_eq!(
        text(published.group("foo").unwrap()),
        "{\"kind\":\"APIGroup\",\"apiVersion\":\"v1\",\"name\":\"foo\",\"versions\":[\
         {\"groupVersion\":\"foo/v2\",\"version\":\"v2\"},\
         {\"groupVersion\":\"foo/v1\",\"version\":\"v1\"}],\
         \"preferredVersion\":{\"groupVersion\":\"foo/v2\",\"version\":\"v2\"}}\n"
    );
    set(&mut assembly, "zoo", "v1", current((11, 5)));
    set(&mut assembly, "ant", "v1alpha1", current((11, 5)));
    let published = assembly.publish();
    let ties = ["foo: v2 v1", "bar: v2 v1", "zoo: v1", "ant: v1alpha1"];
    assert_eq!(listed_lines(&published), ties);
    let ties = ["foo: v2 v1", "ant: v1alpha1", "bar: v1", "zoo: v1"];
    assert_eq!(aggregated_lines(&published), ties);
}

#[test]
fn a_version_is_written_as_upstream_writes_it() {
    let mut assembly = Assembly::new();
    set(&mut assembly, "g", "v1", current((1, 4)));
    set(&mut assembly, "g", "v2", shown((1, 3), Freshness::Stale, "[]".into()));
    set(&mut assembly, "g", "v3", shown((1, 2), Freshness::Stale, resources("old")));
    set(&mut assembly, "g", "v4", shown((1, 1), Freshness::Current, "[]".into()));
    let things = String::from_utf8(resources("things").to_vec()).unwrap();
    let old = String::from_utf8(resources("old").to_vec()).unwrap();
    let expected = format!(
        ",{{\"metadata\":{{\"name\":\"g\"}},\"versions\":[\
         {{\"version\":\"v1\",\"resources\":{things},\"freshness\":\"Current\"}},\
         {{\"version\":\"v2\",\"freshness\":\"Stale\"}},\
         {{\"version\":\"v3\",\"resources\":{old},\"freshness\":\"Stale\"}}]}}]}}\n"
    );
    let published = assembly.publish();
    let text = text(published.aggregated());
    assert!(text.ends_with(&expected), "{text}");
    // What is Current and empty defeats kubectl's cache, so it is not there; but it is listed.
    assert_eq!(listed_lines(&published), ["g: v1 v2 v3 v4"]);
    set(&mut assembly, "h", "v1", shown((1, 1), Freshness::Current, "[]".into()));
    assert_eq!(aggregated_lines(&assembly.publish()), ["g: v1 v2 v3"]);
}

#[test]
fn the_core_has_documents_of_its_own_and_is_in_no_list() {
    let mut assembly = Assembly::new();
    assembly.serve_at("10.0.0.1:6443");
    let empty = assembly.publish();
    assert_eq!(value(empty.core())["items"], json!([]));
    let legacy = Some(Bytes::from("{\"kind\":\"APIResourceList\"}\n"));
    set(&mut assembly, "", "v1", Shown { legacy, ..current((18_000, 1)) });
    let published = assembly.publish();
    let core = value(published.core());
    assert_eq!(core["items"][0]["metadata"], json!({}));
    assert_eq!(core["items"][0]["versions"][0]["version"], "v1");
    assert!(published.core().etag().is_some());
    assert_ne!(published.core().etag(), empty.core().etag());
    assert_eq!(
        text(published.core_versions()),
        "{\"kind\":\"APIVersions\",\"versions\":[\"v1\"],\"serverAddressByClientCIDRs\":[\
         {\"clientCIDR\":\"0.0.0.0/0\",\"serverAddress\":\"10.0.0.1:6443\"}]}\n"
    );
    assert!(published.resources("", "v1").is_ok() && published.group("").is_none());
    assert!(aggregated_lines(&published).is_empty() && listed_lines(&published).is_empty());
}

/// `TestEtagConsistent`, and `TestUpdateService`'s equal content.
#[test]
fn equal_content_has_an_equal_tag_and_added_content_takes_it_with_it() {
    let (mut one, mut two) = (Assembly::new(), Assembly::new());
    for assembly in [&mut one, &mut two] {
        set(assembly, "g", "v1", current((1, 1)));
        set(assembly, "h", "v1", current((1, 1)));
    }
    let first = one.publish();
    assert_eq!(first.aggregated().etag(), two.publish().aggregated().etag());
    set(&mut one, "i", "v1", current((1, 1)));
    assert_ne!(one.publish().aggregated().etag(), first.aggregated().etag());
    one.remove(Source::Remote, &"i".into(), "v1");
    assert_eq!(one.publish().aggregated().etag(), first.aggregated().etag());
    set(&mut one, "g", "v1", current((1, 1)));
    assert!(!one.is_changed());
    set(&mut one, "g", "v1", shown((1, 1), Freshness::Stale, resources("things")));
    assert_ne!(one.publish().aggregated().etag(), first.aggregated().etag());
}

#[test]
fn documents_that_stay_as_they_are_are_the_same_documents() {
    let mut assembly = Assembly::new();
    let legacy = Some(Bytes::from("{}\n"));
    set(&mut assembly, "g", "v1", Shown { legacy: legacy.clone(), ..current((1, 1)) });
    let before = assembly.publish();
    let stale = shown((1, 1), Freshness::Stale, resources("things"));
    set(&mut assembly, "g", "v1", Shown { legacy, ..stale });
    let after = assembly.publish();
    assert!(!Arc::ptr_eq(&before.aggregated, &after.aggregated));
    assert!(Arc::ptr_eq(&before.listed, &after.listed));
    assert!(std::ptr::eq(before.group("g").unwrap(), after.group("g").unwrap()));
    assert!(std::ptr::eq(
        before.resources("g", "v1").unwrap(),
        after.resources("g", "v1").unwrap()
    ));
    set(&mut assembly, "g", "v1", Shown { legacy: None, ..current((1, 1)) });
    assert!(assembly.publish().resources("g", "v1").is_err());
}

#[test]
fn resources_are_held_once() {
    let mut assembly = Assembly::new();
    for name in ["g", "h"] {
        set(&mut assembly, name, "v1", current((1, 1)));
        set(&mut assembly, name, "v2", shown((1, 1), Freshness::Stale, "[]".into()));
    }
    let published = assembly.publish();
    let parts = published.aggregated().parts();
    for name in ["g", "h"] {
        let version = &assembly.index.group(name).unwrap().versions[1];
        let held = version.winner.value.entry.as_ref().unwrap().resources.as_ptr_range();
        assert_eq!(
            (&*version.name, held.end as usize - held.start as usize),
            ("v1", resources("things").len())
        );
        let within = |part: &Bytes| {
            let part = part.as_ptr_range();
            part.start <= held.start && held.end <= part.end
        };
        assert!(parts.iter().any(within));
    }
    assert_eq!(aggregated_lines(&assembly.publish()), ["g: v2 v1", "h: v2 v1"]);
    set(&mut assembly, "g", "v3", current((1, 1)));
    let things = text(assembly.publish().aggregated()).matches("\"things\"").count();
    assert_eq!(things, 3, "what is read back from a block is the same");
}

type Key = (Source, u8, &'static str);

/// Both priorities, and what everything else follows from.
type Account = (i32, i32, u16);

fn changes() -> impl Strategy<Value = Vec<(Key, Option<Account>)>> {
    let source = prop::sample::select(vec![Source::Remote, Source::Builtin, Source::Crd]);
    let version = prop::sample::select(vec!["v1", "v2", "v1beta1"]);
    let account = (0..3i32, 0..3i32, 0..400u16);
    prop::collection::vec(((source, 0..30u8, version), prop::option::of(account)), 0..80)
}

fn apply(assembly: &mut Assembly, (source, group, version): Key, to: Option<Account>) {
    let group: Arc<str> = if group == 0 { "".into() } else { format!("group{group}").into() };
    let Some((group_priority, version_priority, length)) = to else {
        return assembly.remove(source, &group, version);
    };
    let name = "x".repeat(usize::from(length) * 100);
    let mut shown = current((group_priority, version_priority));
    shown.entry = (length % 7 != 0).then(|| Entry {
        freshness: if length % 5 == 0 { Freshness::Stale } else { Freshness::Current },
        resources: if length % 3 == 0 { "[]".into() } else { resources(&name) },
    });
    shown.listed = length % 4 != 0;
    shown.legacy = (length % 2 == 0).then(|| format!("{{\"of\":\"{name}\"}}\n").into());
    assembly.set(source, &group, &version.into(), shown);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn replicas_with_the_same_inputs_have_the_same_documents(changes in changes()) {
        let mut one = Assembly::new();
        let mut state: BTreeMap<Key, Account> = BTreeMap::new();
        for (at, (key, to)) in changes.into_iter().enumerate() {
            apply(&mut one, key, to);
            match to {
                Some(to) => state.insert(key, to),
                None => state.remove(&key),
            };
            if at % 5 == 0 {
                one.publish();
            }
        }
        let mut two = Assembly::new();
        for (key, to) in state.into_iter().rev() {
            apply(&mut two, key, Some(to));
        }
        let (one, two) = (one.publish(), two.publish());
        prop_assert_eq!(one.aggregated().etag(), two.aggregated().etag());
        prop_assert_eq!(text(one.aggregated()), text(two.aggregated()));
        prop_assert_eq!(one.core().etag(), two.core().etag());
        prop_assert_eq!(text(one.listed()), text(two.listed()));
        for group in 1..30 {
            let name = format!("group{group}");
            prop_assert_eq!(one.group(&name).map(text), two.group(&name).map(text));
            for version in ["v1", "v2", "v1beta1"] {
                let of = |published: &Published| published.resources(&name, version).map(text).ok();
                prop_assert_eq!(of(&one), of(&two));
            }
        }
    }
}

#[test]
fn in_front_of_kube_apiserver_the_own_group_has_its_verbs() {
    let own = |assembly: &mut Assembly| {
        let document: Value =
            serde_json::from_slice(&assembly.publish().aggregated().json()).unwrap();
        let resource = &document["items"][0]["versions"][0]["resources"][0];
        let status = &resource["subresources"][0]["verbs"];
        (resource["verbs"].as_array().unwrap().len(), status.as_array().unwrap().len())
    };
    assert_eq!(own(&mut Assembly::new()), (3, 1));
    assert_eq!(own(&mut Assembly::in_front()), (8, 3));
}
