//! How documents and their parts are written: compact JSON in Go's order of fields, and what else is made
//! of it.

use std::ops::Range;
use std::sync::Arc;

use serde_json::json;

use super::assembly::{Entry, Shown};
use super::rope::Ranges;
use crate::model::discovery::aggregated::Freshness;
use crate::model::discovery::index::{Group, Version};

/// `{"name":…}` and so on: a group as the APIGroupList has it.
pub(super) fn group<'a>(
    name: &str,
    versions: impl Iterator<Item = &'a Arc<str>>,
    out: &mut Vec<u8>,
) {
    out.extend(b"{\"name\":");
    string(name, out);
    group_rest(name, versions, out);
}

/// The same as a document of its own.
pub(super) fn api_group<'a>(name: &str, versions: impl Iterator<Item = &'a Arc<str>>) -> Vec<u8> {
    let mut out = b"{\"kind\":\"APIGroup\",\"apiVersion\":\"v1\",\"name\":".to_vec();
    string(name, &mut out);
    group_rest(name, versions, &mut out);
    out.push(b'\n');
    out
}

fn group_rest<'a>(name: &str, versions: impl Iterator<Item = &'a Arc<str>>, out: &mut Vec<u8>) {
    out.extend(b",\"versions\":[");
    let mut preferred = Range::default();
    for (at, version) in versions.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        let begin = out.len();
        out.extend(b"{\"groupVersion\":");
        string(&format!("{name}/{version}"), out);
        out.extend(b",\"version\":");
        string(version, out);
        out.push(b'}');
        if at == 0 {
            preferred = begin..out.len();
        }
    }
    out.extend(b"],\"preferredVersion\":");
    out.extend_from_within(preferred);
    out.push(b'}');
}

/// A group as the aggregated document has it; gives the ranges of its versions' resources.
pub(super) fn aggregated(name: &str, group: &Group<Shown>, out: &mut Vec<u8>) -> Ranges {
    out.extend(b"{\"metadata\":{");
    // The core has no name.
    if !name.is_empty() {
        out.extend(b"\"name\":");
        string(name, out);
    }
    out.extend(b"},\"versions\":[");
    let mut ranges = Ranges::new();
    for (version, entry) in shown(group) {
        if !ranges.is_empty() {
            out.push(b',');
        }
        out.extend(b"{\"version\":");
        string(&version.name, out);
        let mut range = out.len()..out.len();
        if !is_empty(&entry.resources) {
            out.extend(b",\"resources\":");
            range = out.len()..out.len() + entry.resources.len();
            out.extend_from_slice(&entry.resources);
        }
        out.extend(match entry.freshness {
            Freshness::Current => &b",\"freshness\":\"Current\"}"[..],
            Freshness::Stale => &b",\"freshness\":\"Stale\"}"[..],
        });
        ranges.push(range);
    }
    out.extend(b"]}");
    ranges
}

/// The versions of a group that are in the aggregated document, the preferred one first.
fn shown(group: &Group<Shown>) -> impl Iterator<Item = (&Version<Shown>, &Entry)> {
    let versions = group.versions.iter().filter(|version| version.winner.standing.aggregated);
    versions.filter_map(|version| Some((version, version.winner.value.entry.as_ref()?)))
}

/// What the same versions say, in the same order.
pub(super) fn shown_mut(group: &mut Group<Shown>) -> impl Iterator<Item = &mut Entry> {
    let versions = group.versions.iter_mut().filter(|version| version.winner.standing.aggregated);
    versions.filter_map(|version| version.winner.value.entry.as_mut())
}

/// True for a list of resources without any.
pub(super) fn is_empty(resources: &[u8]) -> bool {
    matches!(resources, b"" | b"[]" | b"null")
}

/// A JSON string.
fn string(text: &str, out: &mut Vec<u8>) {
    // Writing into memory cannot fail, and a string is always valid JSON.
    out.extend(json!(text).to_string().into_bytes());
}

/// The APIVersions document of `/api`; it has no apiVersion, as upstream's.
pub(super) fn core_versions(address: &str) -> Vec<u8> {
    let mut out = b"{\"kind\":\"APIVersions\",\"versions\":[\"v1\"],\
        \"serverAddressByClientCIDRs\":[{\"clientCIDR\":\"0.0.0.0/0\",\"serverAddress\":"
        .to_vec();
    string(address, &mut out);
    out.extend(b"}]}\n");
    out
}

/// Compact JSON, known to be well-formed, with two spaces a level as Go indents it, without a newline at
/// its end.
pub(super) fn indented(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.extend(std::iter::repeat_n(b' ', 2 * depth));
    };
    let mut bytes = json.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if in_string {
            out.push(byte);
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'{' | b'[' => {
                out.push(byte);
                if let Some(end) = bytes.next_if(|next| matches!(next, b'}' | b']')) {
                    out.push(end);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                line(&mut out, depth);
            }
            b':' => out.extend(b": "),
            b'"' => {
                in_string = true;
                out.push(byte);
            }
            b' ' | b'\n' | b'\r' | b'\t' => {}
            _ => out.push(byte),
        }
    }
    out
}
