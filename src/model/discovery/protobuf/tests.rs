//! Byte for byte what `k8s.io/apimachinery` 0.37.1 writes for the same documents.

use super::*;

#[track_caller]
fn check(json: &str, protobuf: &[u8]) {
    let encoded = encode(json.as_bytes()).unwrap();
    assert_eq!(encoded.escape_ascii().to_string(), protobuf.escape_ascii().to_string());
}

#[test]
fn versions_of_the_core() {
    check(
        "{\"kind\":\"APIVersions\",\"versions\":[\"v1\"],\"serverAddressByClientCIDRs\":[{\"c\
         lientCIDR\":\"0.0.0.0/0\",\"serverAddress\":\"10.0.0.1:443\"}]}",
        b"k8s\0\n\x0f\n\0\x12\x0bAPIVersions\x12\x1f\n\x02v1\x12\x19\n\x090.0.0.0/0\x12\x0c10.\
          0.0.1:443\x1a\0\"\0",
    );
}

#[test]
fn a_group() {
    check(
        "{\"kind\":\"APIGroup\",\"apiVersion\":\"v1\",\"name\":\"g.example.com\",\"versions\"\
         :[{\"groupVersion\":\"g.example.com/v2\",\"version\":\"v2\"},{\"groupVersion\":\"g.e\
         xample.com/v1\",\"version\":\"v1\"}],\"preferredVersion\":{\"groupVersion\":\"g.exam\
         ple.com/v2\",\"version\":\"v2\"}}",
        b"k8s\0\n\x0e\n\x02v1\x12\x08APIGroup\x12W\n\x0dg.example.com\x12\x16\n\x10g.example.c\
          om/v2\x12\x02v2\x12\x16\n\x10g.example.com/v1\x12\x02v1\x1a\x16\n\x10g.example.com/v\
          2\x12\x02v2\x1a\0\"\0",
    );
}

#[test]
fn groups_with_and_without_versions() {
    check(
        "{\"kind\":\"APIGroupList\",\"apiVersion\":\"v1\",\"groups\":[{\"name\":\"g.example.c\
         om\",\"versions\":[{\"groupVersion\":\"g.example.com/v2\",\"version\":\"v2\"},{\"gro\
         upVersion\":\"g.example.com/v1\",\"version\":\"v1\"}],\"preferredVersion\":{\"groupV\
         ersion\":\"g.example.com/v2\",\"version\":\"v2\"}},{\"name\":\"empty\",\"versions\":\
         null,\"preferredVersion\":{\"groupVersion\":\"\",\"version\":\"\"},\"serverAddressBy\
         ClientCIDRs\":[{\"clientCIDR\":\"0.0.0.0/0\",\"serverAddress\":\"10.0.0.1:443\"}]}]}",
        b"k8s\0\n\x12\n\x02v1\x12\x0cAPIGroupList\x12\x83\x01\nW\n\x0dg.example.com\x12\x16\n\
          \x10g.example.com/v2\x12\x02v2\x12\x16\n\x10g.example.com/v1\x12\x02v1\x1a\x16\n\x10\
          g.example.com/v2\x12\x02v2\n(\n\x05empty\x1a\x04\n\0\x12\0\"\x19\n\x090.0.0.0/0\x12\
          \x0c10.0.0.1:443\x1a\0\"\0",
    );
}

#[test]
fn no_groups() {
    check(
        "{\"kind\":\"APIGroupList\",\"apiVersion\":\"v1\",\"groups\":[]}",
        b"k8s\0\n\x12\n\x02v1\x12\x0cAPIGroupList\x12\0\x1a\0\"\0",
    );
}

#[test]
fn resources_with_no_and_missing_verbs() {
    check(
        "{\"kind\":\"APIResourceList\",\"apiVersion\":\"v1\",\"groupVersion\":\"g.example.com\
         /v1\",\"resources\":[{\"name\":\"things\",\"singularName\":\"thing\",\"namespaced\":\
         true,\"group\":\"autoscaling\",\"version\":\"v2\",\"kind\":\"Thing\",\"verbs\":[\"ge\
         t\",\"list\"],\"shortNames\":[\"th\"],\"categories\":[\"all\",\"my\"],\"storageVersi\
         onHash\":\"abc=\"},{\"name\":\"things/status\",\"singularName\":\"\",\"namespaced\":\
         false,\"kind\":\"Thing\",\"verbs\":[]},{\"name\":\"things/scale\",\"singularName\":\
         \"\",\"namespaced\":false,\"kind\":\"\",\"verbs\":null}]}",
        b"k8s\0\n\x15\n\x02v1\x12\x0fAPIResourceList\x12\x9d\x01\n\x10g.example.com/v1\x12I\n\
          \x06things\x10\x01\x1a\x05Thing\"\x0b\n\x03get\n\x04list*\x02th2\x05thing:\x03all:\
          \x02myB\x0bautoscalingJ\x02v2R\x04abc=\x12\"\n\x0dthings/status\x10\0\x1a\x05Thing\"\
          \x002\0B\0J\0R\0\x12\x1a\n\x0cthings/scale\x10\0\x1a\x002\0B\0J\0R\0\x1a\0\"\0",
    );
}

#[test]
fn no_resources() {
    check(
        "{\"kind\":\"APIResourceList\",\"apiVersion\":\"v1\",\"groupVersion\":\"v1\",\"resour\
         ces\":null}",
        b"k8s\0\n\x15\n\x02v1\x12\x0fAPIResourceList\x12\x04\n\x02v1\x1a\0\"\0",
    );
}

#[test]
fn aggregated_groups_with_all_that_can_be_missing() {
    check(
        "{\"kind\":\"APIGroupDiscoveryList\",\"apiVersion\":\"apidiscovery.k8s.io/v2\",\"meta\
         data\":{},\"items\":[{\"metadata\":{\"name\":\"g.example.com\"},\"versions\":[{\"ver\
         sion\":\"v2\",\"resources\":[{\"resource\":\"things\",\"responseKind\":{\"group\":\"\
         \",\"version\":\"\",\"kind\":\"Thing\"},\"scope\":\"Namespaced\",\"singularResource\
         \":\"thing\",\"verbs\":[\"get\",\"list\"],\"shortNames\":[\"th\"],\"categories\":[\"\
         all\"],\"subresources\":[{\"subresource\":\"scale\",\"responseKind\":{\"group\":\"au\
         toscaling\",\"version\":\"v1\",\"kind\":\"Scale\"},\"acceptedTypes\":[{\"group\":\"a\
         \",\"version\":\"b\",\"kind\":\"C\"},{\"group\":\"\",\"version\":\"\",\"kind\":\"\"}\
         ],\"verbs\":[\"patch\"]},{\"subresource\":\"bare\",\"verbs\":null}]},{\"resource\":\
         \"bare\",\"scope\":\"Cluster\",\"singularResource\":\"\",\"verbs\":null},{\"resource\
         \":\"none\",\"responseKind\":{\"group\":\"\",\"version\":\"\",\"kind\":\"\"},\"scope\
         \":\"Cluster\",\"singularResource\":\"\",\"verbs\":[]}],\"freshness\":\"Current\"},{\
         \"version\":\"v1\",\"freshness\":\"Stale\"}]},{\"metadata\":{},\"versions\":[{\"vers\
         ion\":\"v1\"}]},{\"metadata\":{\"name\":\"versionless\"}}]}",
        b"k8s\0\n/\n\x16apidiscovery.k8s.io/v2\x12\x15APIGroupDiscoveryList\x12\xb4\x02\n\x06\
          \n\0\x12\0\x1a\0\x12\xee\x01\n\x1d\n\x0dg.example.com\x12\0\x1a\0\"\0*\x002\x008\0B\0\
          \x12\xbf\x01\n\x02v2\x12\x81\x01\n\x06things\x12\x0b\n\0\x12\0\x1a\x05Thing\x1a\nNam\
          espaced\"\x05thing*\x03get*\x04list2\x02th:\x03allB;\n\x05scale\x12\x18\n\x0bautosca\
          ling\x12\x02v1\x1a\x05Scale\x1a\x09\n\x01a\x12\x01b\x1a\x01C\x1a\x06\n\0\x12\0\x1a\0\
          \"\x05patchB\x06\n\x04bare\x12\x11\n\x04bare\x1a\x07Cluster\"\0\x12\x19\n\x04none\
          \x12\x06\n\0\x12\0\x1a\0\x1a\x07Cluster\"\0\x1a\x07Current\x12\x0b\n\x02v1\x1a\x05St\
          ale\x12\x1a\n\x10\n\0\x12\0\x1a\0\"\0*\x002\x008\0B\0\x12\x06\n\x02v1\x1a\0\x12\x1d\n\
          \x1b\n\x0bversionless\x12\0\x1a\0\"\0*\x002\x008\0B\0\x1a\0\"\0",
    );
}

#[test]
fn no_aggregated_groups() {
    check(
        "{\"kind\":\"APIGroupDiscoveryList\",\"apiVersion\":\"apidiscovery.k8s.io/v2\",\"meta\
         data\":{},\"items\":[]}",
        b"k8s\0\n/\n\x16apidiscovery.k8s.io/v2\x12\x15APIGroupDiscoveryList\x12\x08\n\x06\n\0\
          \x12\0\x1a\0\x1a\0\"\0",
    );
}

#[test]
fn what_is_no_discovery_document_is_refused() {
    let refused = |json: &str| encode(json.as_bytes()).unwrap_err().to_string();
    assert_eq!(
        refused(r#"{"kind":"Status","apiVersion":"v1"}"#),
        r#"there is no protobuf encoding of Status of "v1" here"#
    );
    assert_eq!(
        refused(r#"{"kind":"APIGroupDiscoveryList","apiVersion":"apidiscovery.k8s.io/v2beta1"}"#),
        "there is no protobuf encoding of APIGroupDiscoveryList of \
         \"apidiscovery.k8s.io/v2beta1\" here"
    );
    assert_eq!(
        refused("{}"),
        "the document cannot be read: missing field `kind` at line 1 column 2"
    );
    assert_eq!(
        refused(r#"{"kind":"APIGroup","apiVersion":"v1"}"#),
        "the document cannot be read: missing field `name` at line 1 column 37"
    );
}
