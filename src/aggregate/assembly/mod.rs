//! What is shown of each group-version, made into ready documents.
//!
//! [`Assembly`] has one owner, who says what there is and publishes; what is published is an immutable
//! [`Published`]. A publication costs what has changed since the last: a block of the two long documents
//! (`rope`), the documents of the groups concerned, and one entry a block for putting together.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::FixedState;

use super::document::Document;
use super::rope::{Block, Rope, Written};
use super::written;
use crate::model::discovery::aggregated::Freshness;
pub use crate::model::discovery::index::Source;
use crate::model::discovery::index::{Change, Group, Index, Standing};
use crate::model::fault::Fault;
use crate::model::order::{AggregatedPlace, ListedPlace};
use crate::model::routing_table::{OWN_GROUP, OWN_VERSION};
use crate::model::shards::Shards;

/// What the aggregated document begins with; the own group, whose priority is above all others', follows.
const AGGREGATED_HEAD: &str = "{\"kind\":\"APIGroupDiscoveryList\",\
    \"apiVersion\":\"apidiscovery.k8s.io/v2\",\"metadata\":{},\"items\":[";
const AGGREGATED_OWN: &str = "{\"metadata\":{\"name\":\"apiregistration.k8s.io\"},\
    \"versions\":[{\"version\":\"v1\",\"resources\":[{\"resource\":\"apiservices\",\
    \"responseKind\":{\"group\":\"\",\"version\":\"\",\"kind\":\"APIService\"},\"scope\":\"Cluster\",\
    \"singularResource\":\"apiservice\",\"verbs\":[\"get\",\"list\",\"watch\"],\
    \"categories\":[\"api-extensions\"],\"subresources\":[{\"subresource\":\"status\",\
    \"responseKind\":{\"group\":\"\",\"version\":\"\",\"kind\":\"APIService\"},\
    \"verbs\":[\"get\"]}]}],\"freshness\":\"Current\"}]}";
/// Its verbs, and the status', as portico serves them, and as kube-apiserver does.
const OWN_VERBS: [(&str, &str); 2] = [
    (
        r#""verbs":["get","list","watch"]"#,
        r#""verbs":["create","delete","deletecollection","get","list","patch","update","watch"]"#,
    ),
    (r#""verbs":["get"]"#, r#""verbs":["get","patch","update"]"#),
];
/// What the APIGroupList begins with, before the own group.
const LISTED_HEAD: &str = "{\"kind\":\"APIGroupList\",\"apiVersion\":\"v1\",\"groups\":[";
/// The own group's resources.
const OWN_RESOURCES: &str = "{\"kind\":\"APIResourceList\",\"apiVersion\":\"v1\",\
    \"groupVersion\":\"apiregistration.k8s.io/v1\",\"resources\":[{\"name\":\"apiservices\",\
    \"singularName\":\"apiservice\",\"namespaced\":false,\"kind\":\"APIService\",\
    \"verbs\":[\"get\",\"list\",\"watch\"],\"categories\":[\"api-extensions\"]},\
    {\"name\":\"apiservices/status\",\"singularName\":\"\",\"namespaced\":false,\
    \"kind\":\"APIService\",\"verbs\":[\"get\"]}]}\n";
/// What both long documents end with.
const TAIL: &str = "]}\n";

/// What is shown of one group-version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// `groupPriorityMinimum`; 0 where none is given.
    pub group_priority: i32,
    /// `versionPriority`; 0 where none is given.
    pub version_priority: i32,
    /// Whether it is in the APIGroupList and in its APIGroup.
    pub listed: bool,
    /// What the aggregated document says of it; none to leave it out.
    pub entry: Option<Entry>,
    /// Its APIResourceList in compact JSON; none while there is none, which is a 503.
    pub legacy: Option<Bytes>,
    /// Why there is no `legacy`, when that is known.
    pub fault: Option<Fault>,
}

/// One version in the aggregated document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Whether its resources are as they are now.
    pub freshness: Freshness,
    /// The JSON array of its resources (`aggregated::Resource`), in Go's order and compact.
    pub resources: Bytes,
}

impl Shown {
    /// Never Current without resources: that defeats kubectl's cache (`measured-1.37.md` §6).
    fn standing(&self) -> Standing {
        let aggregated = self.entry.as_ref().is_some_and(|entry| {
            entry.freshness == Freshness::Stale || !written::is_empty(&entry.resources)
        });
        Standing::new(self.group_priority, self.version_priority, self.listed, aggregated)
    }
}

/// All that is shown; one owner sets it and publishes.
#[derive(Debug)]
pub struct Assembly {
    index: Index<Shown>,
    aggregated: Rope<AggregatedPlace>,
    listed: Rope<ListedPlace>,
    /// Groups of which something is shown differently since the last publication.
    changed: HashSet<Arc<str>, FixedState>,
    published: Published,
}

/// An immutable snapshot of all documents. Cloning copies pointers.
#[derive(Clone, Debug)]
pub struct Published {
    aggregated: Arc<Document>,
    listed: Arc<Document>,
    core: Arc<Document>,
    core_versions: Arc<Document>,
    groups: Shards<Arc<GroupDocuments>>,
}

type Own = Result<Arc<Document>, Option<Fault>>;

/// The documents of one group.
#[derive(Clone, Debug, Default)]
struct GroupDocuments {
    /// None when no version is listed.
    group: Option<Arc<Document>>,
    /// Each version and its APIResourceList, or why there is none as far as that is known.
    versions: Vec<(Arc<str>, Own)>,
}

impl Default for Assembly {
    fn default() -> Self {
        Self::new()
    }
}

impl Assembly {
    /// Knows nothing but the own group.
    pub fn new() -> Self {
        Self::with_own(AGGREGATED_OWN)
    }

    /// The own group is kube-apiserver's, which is asked for it.
    pub fn in_front() -> Self {
        let own = OWN_VERBS
            .iter()
            .fold(AGGREGATED_OWN.to_owned(), |own, (here, there)| own.replace(here, there));
        Self::with_own(&own)
    }

    fn with_own(aggregated_own: &str) -> Self {
        let own: Arc<str> = OWN_VERSION.into();
        let mut listed_head = LISTED_HEAD.as_bytes().to_vec();
        written::group(OWN_GROUP, std::iter::once(&own), &mut listed_head);
        let aggregated_head = [AGGREGATED_HEAD, aggregated_own].concat();
        let aggregated = Rope::new(aggregated_head.as_bytes(), TAIL.as_bytes());
        let listed = Rope::new(&listed_head, TAIL.as_bytes());
        let legacy = |json: Vec<u8>| Arc::new(Document::of_json(json.into()));
        let own_group = GroupDocuments {
            group: Some(legacy(written::api_group(OWN_GROUP, std::iter::once(&own)))),
            versions: vec![(Arc::clone(&own), Ok(legacy(OWN_RESOURCES.into())))],
        };
        let mut groups = Shards::default();
        groups.set(&OWN_GROUP.into(), Some(Arc::new(own_group)));
        let published = Published {
            aggregated: Arc::new(Document::of_blocks(&aggregated.blocks(), true)),
            listed: Arc::new(Document::of_blocks(&listed.blocks(), false)),
            core: Arc::new(core(None)),
            core_versions: legacy(written::core_versions("")),
            groups,
        };
        Self { index: Index::default(), aggregated, listed, changed: HashSet::default(), published }
    }

    /// From the next publication on, `/api` names this `host:port` as the server's address.
    pub fn serve_at(&mut self, address: &str) {
        let versions = Document::of_json(written::core_versions(address).into());
        self.published.core_versions = Arc::new(versions);
        // The core's documents are those of the group without a name.
        self.changed.insert(Arc::default());
    }

    /// Adds or replaces what one source says of a group-version. The own group is always as it is.
    pub fn set(&mut self, source: Source, group: &Arc<str>, version: &Arc<str>, shown: Shown) {
        if &**group == OWN_GROUP {
            return tracing::debug!(version = &**version, "own group not to be shown differently");
        }
        let change = self.index.set(source, (group, version), shown.standing(), shown);
        self.note(group, change);
    }

    /// Takes back what one source says of a group-version; unknown ones are no error.
    pub fn remove(&mut self, source: Source, group: &Arc<str>, version: &str) {
        let change = self.index.remove(source, group, version);
        self.note(group, change);
    }

    fn note(&mut self, group: &Arc<str>, change: Option<Change>) {
        let Some(Change { before, after }) = change else { return };
        for places in [before, after] {
            if let Some(place) = places.aggregated {
                self.aggregated.change(place);
            }
            if let Some(place) = places.listed {
                self.listed.change(place);
            }
        }
        self.changed.insert(Arc::clone(group));
    }

    /// True when something was set or removed since the last publication that can be seen.
    pub fn is_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// The list of resources that a source has set; a part of the document once that is made.
    pub fn resources(&self, source: Source, group: &str, version: &str) -> Option<Bytes> {
        let account = self.index.account(source, group, version)?;
        Some(account.value.entry.as_ref()?.resources.clone())
    }

    /// Makes what has changed since the last time.
    pub fn publish(&mut self) -> Published {
        if self.aggregated.is_changed() {
            self.write_aggregated();
        }
        if self.listed.is_changed() {
            self.write_listed();
        }
        for group in std::mem::take(&mut self.changed) {
            if group.is_empty() {
                self.published.core = Arc::new(core(self.index.group("")));
            }
            let documents = self.group_documents(&group);
            self.published.groups.set(&group, documents.map(Arc::new));
        }
        self.published.clone()
    }

    fn write_aggregated(&mut self) {
        let index = &self.index;
        let made = self.aggregated.update(index.aggregated(), |place, out| {
            let name = place.as_ref();
            out.push(b',');
            index.group(name).map(|group| written::aggregated(name, group, out)).unwrap_or_default()
        });
        for Written { block, groups } in made {
            for (name, ranges) in groups {
                if let Some(group) = self.index.group_mut(&name) {
                    let entries = written::shown_mut(group).map(|entry| &mut entry.resources);
                    let written = entries.zip(ranges).filter(|(_, range)| !range.is_empty());
                    for (resources, range) in written {
                        // The same bytes: what is in the document is not held twice.
                        *resources = block.json.slice(range);
                    }
                }
            }
        }
        let document = Document::of_blocks(&self.aggregated.blocks(), true);
        if document.etag() != self.published.aggregated.etag() {
            self.published.aggregated = Arc::new(document);
        }
    }

    fn write_listed(&mut self) {
        let index = &self.index;
        self.listed.update(index.listed(), |place, out| {
            let name = place.as_ref();
            if let Some(group) = index.group(name) {
                out.push(b',');
                written::group(name, listed(group), out);
            }
            super::rope::Ranges::new()
        });
        let document = Document::of_blocks(&self.listed.blocks(), false);
        if !document.shares(&self.published.listed) {
            self.published.listed = Arc::new(document);
        }
    }

    /// A group's own documents; those that stay as they are keep the forms that were made of them.
    fn group_documents(&self, name: &str) -> Option<GroupDocuments> {
        let group = self.index.group(name)?;
        let before = self.published.groups.get(name).cloned().unwrap_or_default();
        let document = |json: Bytes, old: Option<&Arc<Document>>| match old {
            Some(old) if old.is(&json) => Arc::clone(old),
            _ => Arc::new(Document::of_json(json)),
        };
        let api_group = (listed(group).next().is_some() && !name.is_empty()).then(|| {
            document(written::api_group(name, listed(group)).into(), before.group.as_ref())
        });
        let versions = group.versions.iter().map(|version| {
            let Shown { legacy, fault, .. } = &version.winner.value;
            let old = before.version(&version.name).and_then(|old| old.as_ref().ok());
            let own = match legacy {
                Some(json) => Ok(document(json.clone(), old)),
                None => Err(fault.clone()),
            };
            (Arc::clone(&version.name), own)
        });
        Some(GroupDocuments { group: api_group, versions: versions.collect() })
    }
}

impl GroupDocuments {
    fn version(&self, name: &str) -> Option<&Own> {
        Some(&self.versions.iter().find(|(version, _)| &**version == name)?.1)
    }
}

/// The listed versions of a group, the preferred one first.
fn listed(group: &Group<Shown>) -> impl Iterator<Item = &Arc<str>> {
    let versions = group.versions.iter().filter(|version| version.winner.standing.listed);
    versions.map(|version| &version.name)
}

/// The aggregated document of `/api`.
fn core(group: Option<&Group<Shown>>) -> Document {
    let mut out = AGGREGATED_HEAD.as_bytes().to_vec();
    if let Some(group) = group
        && group.versions.iter().any(|version| version.winner.standing.aggregated)
    {
        written::aggregated("", group, &mut out);
    }
    out.extend(TAIL.as_bytes());
    Document::of_blocks(&[Arc::new(Block::new(&out))], true)
}

impl Published {
    /// `/apis` as one aggregated document.
    pub fn aggregated(&self) -> &Document {
        &self.aggregated
    }

    /// `/apis` as APIGroupList.
    pub fn listed(&self) -> &Document {
        &self.listed
    }

    /// `/api` as aggregated document.
    pub fn core(&self) -> &Document {
        &self.core
    }

    /// `/api` as APIVersions.
    pub fn core_versions(&self) -> &Document {
        &self.core_versions
    }

    /// `/apis/<group>`.
    pub fn group(&self, group: &str) -> Option<&Document> {
        self.groups.get(group)?.group.as_deref()
    }

    /// True for a group that may be published, whether or not one of its versions is listed.
    pub fn knows(&self, group: &str) -> bool {
        self.groups.get(group).is_some()
    }

    /// `/apis/<group>/<version>`, or `/api/<version>` for the empty group; else why there is none, if
    /// that is known.
    pub fn resources(&self, group: &str, version: &str) -> Result<&Document, Option<&Fault>> {
        match self.groups.get(group).and_then(|group| group.version(version)) {
            Some(Ok(document)) => Ok(document),
            Some(Err(fault)) => Err(fault.as_ref()),
            None => Err(None),
        }
    }
}

#[cfg(test)]
mod tests;
