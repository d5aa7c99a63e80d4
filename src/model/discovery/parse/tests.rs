//! What is read of the documents of extension API servers, and what is refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::discovery::aggregated::{Scope, Subresource};
use crate::model::discovery::convert::to_aggregated;

fn list(items: &Value) -> Vec<u8> {
    let kind = ["APIGroupDiscoveryList", "apidiscovery.k8s.io/v2"];
    json!({ "kind": kind[0], "apiVersion": kind[1], "metadata": {}, "items": items })
        .to_string()
        .into_bytes()
}

fn found(text: &str) -> Vec<String> {
    let found = aggregated(text.as_bytes()).unwrap();
    let line = |found: Found| {
        let names = found.resources.iter().map(|resource| &*resource.resource);
        format!("{}/{}: {}", found.group, found.version, names.collect::<Vec<_>>().join(" "))
    };
    found.into_iter().map(line).collect()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, ParseError>, text: &str) {
    assert_eq!(result.unwrap_err().to_string(), text);
}

/// As in upstream's `TestBasic`.
#[test]
fn missing_response_kinds_are_filled_with_empty_ones() {
    let body = list(&json!([{
        "metadata": { "name": "stable.example.com" },
        "versions": [{
            "version": "v1",
            "resources": [{
                "resource": "jobs", "verbs": ["create", "list", "watch", "delete"],
                "shortNames": ["jz"], "categories": ["all"],
                "subresources": [{ "subresource": "status", "verbs": null }],
            }],
            "freshness": "Current",
        }],
    }]));
    let found = aggregated(&body).unwrap();
    let written = serde_json::to_string(&found[0].resources).unwrap();
    assert_eq!(
        written,
        concat!(
            r#"[{"resource":"jobs","responseKind":{"group":"","version":"","kind":""},"#,
            r#""scope":"Cluster","singularResource":"","verbs":["create","list","watch","delete"],"#,
            r#""shortNames":["jz"],"categories":["all"],"subresources":[{"subresource":"status","#,
            r#""responseKind":{"group":"","version":"","kind":""},"verbs":null}]}]"#,
        )
    );
}

#[test]
fn versions_keep_their_order_and_the_last_of_two_counts() {
    let version = |version: &str, resource: &str| json!({ "version": version, "resources": [{ "resource": resource }] });
    let body = list(&json!([
        { "metadata": { "name": "b" }, "versions": [version("v2", "x"), version("v1", "y")] },
        { "metadata": {}, "versions": [version("v1", "pods")] },
        { "metadata": { "name": "b" }, "versions": [version("v2", "z")] },
    ]));
    let text = String::from_utf8(body).unwrap();
    assert_eq!(found(&text), ["b/v2: z", "b/v1: y", "/v1: pods"]);
}

#[test]
fn what_is_missing_null_or_unknown_is_no_fault() {
    assert_eq!(found("{}"), [""; 0]);
    assert_eq!(found(r#"{"kind":null,"apiVersion":null,"metadata":null,"items":null}"#), [""; 0]);
    assert_eq!(found(r#"{"items":[{"metadata":null,"versions":null},{}]}"#), [""; 0]);
    let full = r#"{"items":[{"metadata":{"name":"g","creationTimestamp":null},"new":[{}],"versions":
        [{"version":"v1","freshness":"Stale","resources":null},{"version":"v2","resources":[{
        "resource":"a","responseKind":null,"scope":null,"singularResource":null,"verbs":null,
        "shortNames":null,"categories":null,"subresources":null,"new":1}]}]}]}"#;
    assert_eq!(found(full), ["g/v1: ", "g/v2: a"]);
    let none = br#"{"kind":null,"groupVersion":"g/v1","resources":null}"#;
    assert_eq!(legacy(none, "g", "v1").unwrap(), []);
    let none = br#"{"kind":"APIResourceList","groupVersion":null,"resources":null}"#;
    assert_eq!(legacy(none, "g", "v1").unwrap(), []);
}

#[test]
fn what_is_not_the_document_is_refused_with_its_cause() {
    refused(aggregated(b""), "the document is cut short at line 1, column 0");
    refused(aggregated(br#"{"items":[{"#), "the document is cut short at line 1, column 11");
    refused(
        aggregated(b"<html>"),
        "the document cannot be read at line 1, column 1: expected value",
    );
    refused(
        aggregated(b"{} {}"),
        "the document cannot be read at line 1, column 4: trailing characters",
    );
    refused(
        aggregated(br#"{"items":{}}"#),
        "the document cannot be read at line 1, column 9: invalid type: map, expected a sequence",
    );
    refused(
        aggregated(
            br#"{"kind":"APIGroupDiscoveryList","apiVersion":"apidiscovery.k8s.io/v2beta1"}"#,
        ),
        "the document is a APIGroupDiscoveryList of apidiscovery.k8s.io/v2beta1, \
         not a APIGroupDiscoveryList of apidiscovery.k8s.io/v2",
    );
    refused(
        legacy(br#"{"kind":"Status","apiVersion":"v1","status":"Failure"}"#, "g", "v1"),
        "the document is a Status of v1, not a APIResourceList of v1",
    );
    for any in [&b"{}"[..], br#"{"resources":[]}"#, br#"{"message":"hello"}"#] {
        refused(
            legacy(any, "g", "v1"),
            "the document is a document without kind and resources, not a APIResourceList of v1",
        );
    }
}

#[test]
fn a_servers_words_are_cited_short_and_on_one_line() {
    let scope = format!("x\n{}", "y".repeat(1 << 20));
    let body = list(&json!([{ "versions": [{ "resources": [{ "scope": scope }] }] }]));
    let error = aggregated(&body).unwrap_err();
    let ParseError::Unreadable { problem, .. } = &error else { panic!("{error}") };
    assert!(problem.starts_with("unknown variant `x\u{fffd}yyy") && problem.ends_with("yy…"));
    assert_eq!(problem.chars().count(), CITED_CHARS_MAX + 1);
}

#[test]
fn a_legacy_list_must_be_that_of_the_version() {
    let body = |version: &str| format!(r#"{{"groupVersion":"{version}","resources":[]}}"#);
    assert_eq!(legacy(body("g/v1").as_bytes(), "g", "v1"), Ok(Vec::new()));
    assert_eq!(legacy(body("v1").as_bytes(), "", "v1"), Ok(Vec::new()));
    refused(
        legacy(body("g/v2").as_bytes(), "g", "v1"),
        "the document is that of g/v2, not of g/v1",
    );
    refused(legacy(body("v1").as_bytes(), "g", "v1"), "the document is that of v1, not of g/v1");
}

/// The minimal document of upstream's `TestLegacyFallbackNoCache`.
#[test]
fn a_legacy_list_without_kinds_still_becomes_resources() {
    let body = br#"{"resources":[{"name":"parent-without-kind"},{"name":"missing-parent/sub"}]}"#;
    let resources = to_aggregated(&legacy(body, "stable.example.com", "v1").unwrap()).unwrap();
    let none = GroupVersionKind::default;
    let sub = Subresource {
        subresource: "sub".to_owned(),
        response_kind: Some(none()),
        ..Subresource::default()
    };
    let resource = |name: &str, subresources| Resource {
        resource: name.to_owned(),
        response_kind: Some(none()),
        scope: Scope::Cluster,
        subresources,
        ..Resource::default()
    };
    assert_eq!(
        resources,
        [resource("parent-without-kind", vec![]), resource("missing-parent", vec![sub])]
    );
}

#[test]
fn documents_at_the_limits_are_read_and_past_them_refused() {
    // The document's own object is one of them.
    let objects = |count: usize| format!("{{\"new\":[{}{{}}]}}", "{},".repeat(count - 2));
    assert_eq!(aggregated(objects(OBJECTS_MAX).as_bytes()), Ok(vec![]));
    refused(
        aggregated(objects(OBJECTS_MAX + 1).as_bytes()),
        "the document has 200001 objects, more than 200000",
    );
    let commas = |count: usize| format!("{{\"new\":[{}1]}}", "1,".repeat(count));
    assert_eq!(aggregated(commas(COMMAS_MAX).as_bytes()), Ok(vec![]));
    refused(
        legacy(commas(LEGACY_BYTES_MAX / 2 - 10).as_bytes(), "g", "v1"),
        "the document has 2097142 list entries, more than 2000000",
    );
    let depth =
        |levels: usize| format!("{{\"new\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
    assert_eq!(aggregated(depth(DEPTH_MAX).as_bytes()), Ok(vec![]));
    let too_deep = "the document is nested more than 64 levels deep";
    refused(aggregated(depth(DEPTH_MAX + 1).as_bytes()), too_deep);
    refused(aggregated("[".repeat(1 << 20).as_bytes()), too_deep);
    let spaces =
        |bytes: usize| format!("{{\"kind\":\"APIResourceList\"{}}}", " ".repeat(bytes - 26));
    assert_eq!(legacy(spaces(LEGACY_BYTES_MAX).as_bytes(), "g", "v1"), Ok(vec![]));
    refused(
        legacy(spaces(LEGACY_BYTES_MAX + 1).as_bytes(), "g", "v1"),
        "the document has 4194305 bytes, more than 4194304",
    );
    refused(
        aggregated(&vec![b' '; AGGREGATED_BYTES_MAX + 1]),
        "the document has 16777217 bytes, more than 16777216",
    );
}

#[test]
fn brackets_and_commas_within_strings_do_not_count() {
    let text = format!("{{\"new\":\"\\\\\\\"{}\"}}", "[{,".repeat(OBJECTS_MAX + 1));
    assert_eq!(aggregated(text.as_bytes()), Ok(vec![]));
}

#[test]
fn names_that_no_request_can_have_are_refused() {
    let body = |name: &str, version: &str, resource: &str| {
        list(&json!([{
            "metadata": { "name": name },
            "versions": [{ "version": version, "resources": [{ "resource": resource }] }],
        }]))
    };
    let (longest, long) = ("x".repeat(NAME_BYTES_MAX), "x".repeat(NAME_BYTES_MAX + 1));
    assert_eq!(aggregated(&body(&longest, &longest, &longest)).unwrap().len(), 1);
    let text = |what: &str| format!("the name of a {what} has 254 bytes, more than 253");
    refused(aggregated(&body(&long, "v1", "a")), &text("group"));
    refused(aggregated(&body("g", &long, "a")), &text("version"));
    refused(aggregated(&body("g", "v1", &long)), &text("resource"));
    for name in [format!("{long}/status"), format!("a/{long}")] {
        let body = json!({ "resources": [{ "name": name }] }).to_string();
        refused(legacy(body.as_bytes(), "g", "v1"), &text("resource"));
    }
}

fn words() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec("\\PC{0,3}", 0..3)
}

prop_compose! {
    fn a_kind()(group in "[a-z.]{0,9}", version in "(v1)?", kind in "\\PC{0,5}") -> GroupVersionKind {
        GroupVersionKind { group, version, kind }
    }
}

prop_compose! {
    fn a_subresource()(
        subresource in "[a-z]{1,4}",
        response_kind in a_kind(),
        accepted_types in prop::collection::vec(a_kind(), 0..2),
        verbs in prop::option::of(words()),
    ) -> Subresource {
        Subresource { subresource, response_kind: Some(response_kind), accepted_types, verbs }
    }
}

prop_compose! {
    fn a_resource()(
        resource in "\\PC{0,5}",
        response_kind in a_kind(),
        is_namespaced in any::<bool>(),
        singular_resource in "[a-z]{0,4}",
        verbs in prop::option::of(words()),
        (short_names, categories) in (words(), words()),
        subresources in prop::collection::vec(a_subresource(), 0..3),
    ) -> Resource {
        Resource {
            resource,
            response_kind: Some(response_kind),
            scope: if is_namespaced { Scope::Namespaced } else { Scope::Cluster },
            singular_resource,
            verbs,
            short_names,
            categories,
            subresources,
        }
    }
}

fn documents() -> impl Strategy<Value = Vec<Found>> {
    let resources = prop::collection::vec(a_resource(), 0..3);
    let versions = prop::collection::btree_map(("[a-c]?", "v[1-3]"), resources, 0..5);
    versions.prop_map(|versions| {
        let found = |((group, version), resources)| Found { group, version, resources };
        versions.into_iter().map(found).collect()
    })
}

fn written(found: &[Found]) -> Vec<u8> {
    let item = |found: &Found| {
        json!({
            "metadata": { "name": found.group },
            "versions": [{ "version": found.version, "resources": found.resources }],
        })
    };
    list(&found.iter().map(item).collect())
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(document in documents()) {
        prop_assert_eq!(aggregated(&written(&document)).unwrap(), document);
    }

    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(aggregated(&body));
        drop(legacy(&body, "g", "v1"));
    }

    #[test]
    fn no_damage_makes_it_panic(
        document in documents(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        end in any::<prop::sample::Index>(),
    ) {
        let mut body = written(&document);
        let whole = body.len();
        for (place, byte) in damage {
            let place = place.index(whole);
            body[place] = byte;
        }
        drop(aggregated(&body));
        drop(legacy(&body, "g", "v1"));
        body = written(&document);
        body.truncate(end.index(whole));
        let is_cut = matches!(aggregated(&body), Err(ParseError::CutShort { .. }));
        prop_assert!(is_cut);
    }
}
