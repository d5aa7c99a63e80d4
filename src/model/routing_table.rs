//! Which path belongs to whom: an immutable table, looked up at the same cost however many groups
//! there are, and changed by copying only the shard that changes.
//!
//! Paths are upstream's (`kube-aggregator/pkg/apiserver`): `/apis/<g>/<v>` and everything under it
//! belongs to the APIService `<v>.<g>`, `/api` to `v1.`, `/apis` and `/apis/<g>` to discovery. The
//! table is generic in the backend handle `B`, so that rules need not know how bytes are carried.

use std::sync::Arc;

use super::discovery::policy::Policy;
use super::fault::{Fault, ServicePort};
use super::health::Probe;
use super::request_info::RequestInfo;
use super::shards::Shards;

/// The group whose objects portico itself serves.
pub const OWN_GROUP: &str = "apiregistration.k8s.io";
/// The only version of the own group.
pub const OWN_VERSION: &str = "v1";

/// Where a request goes.
#[derive(Debug, PartialEq)]
pub enum Route<B> {
    /// A discovery document, ready to be served.
    Documents(Document),
    /// The objects portico stores.
    Objects,
    /// An extension API server.
    Remote(Remote<B>),
    /// An APIService without a service; nothing is delegated to in standalone mode.
    Local,
    /// kube-apiserver, which portico is in front of.
    Core,
    /// A page of portico's own.
    Own(Page),
    /// Nothing serves this path.
    NotFound,
    /// Nothing serves this path yet: the objects have not been read once.
    NotReady,
}

/// Which discovery document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// `/apis`: every group.
    Groups,
    /// `/api`: the core, whose group is empty.
    Core,
    /// `/apis/<group>`.
    Group(Arc<str>),
    /// `/apis/apiregistration.k8s.io/v1`: the resources of the own group.
    OwnResources,
}

impl Document {
    /// True for the documents of go-restful's services upstream, which take no other method; the
    /// others answer every method alike.
    pub fn is_read_only(&self) -> bool {
        match self {
            Self::Groups => false,
            Self::Core | Self::OwnResources => true,
            Self::Group(name) => **name == *OWN_GROUP,
        }
    }
}

/// A page of portico's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// `/livez`, `/readyz` or `/healthz`, and the path of each of their checks.
    Health(Probe),
    /// `/version`.
    Version,
    /// `/metrics`.
    Metrics,
    /// `/openapi/v2`: an empty document until `OpenAPI` is merged.
    OpenApiV2,
    /// `/` and `/index.html`: the list of paths.
    Index,
    /// `/debug/portico`: what portico holds and knows.
    Debug,
}

impl Page {
    /// True for pages that are answered whatever the load: who asks them decides whether the
    /// process lives on.
    pub fn is_health(self) -> bool {
        matches!(self, Self::Health(_))
    }
}

/// An extension API server as one APIService sees it.
#[derive(Debug, PartialEq)]
pub struct Remote<B> {
    /// The APIService's name, `<version>.<group>`.
    pub name: Arc<str>,
    /// The service it names.
    pub service: ServicePort,
    /// How to reach it.
    pub backend: B,
    /// Set while the APIService is not available: its callers are answered with it at once.
    pub fault: Option<Fault>,
    /// What is shown of it while its server fails, and who answers for its resources.
    pub discovery: Policy,
}

/// What one APIService contributes to the table.
#[derive(Debug, PartialEq)]
pub struct Entry<B> {
    /// The API group, empty for the legacy core.
    pub group: Arc<str>,
    /// The version.
    pub version: Arc<str>,
    /// `spec.groupPriorityMinimum`.
    pub group_priority: i32,
    /// `spec.versionPriority`.
    pub version_priority: i32,
    /// [`Route::Remote`] or [`Route::Local`].
    pub route: Arc<Route<B>>,
}

/// All that is registered for one group.
#[derive(Debug)]
pub struct Group<B> {
    /// The group's name.
    pub name: Arc<str>,
    /// Its APIServices, in no particular order.
    pub entries: Vec<Arc<Entry<B>>>,
    document: Arc<Route<B>>,
}

/// The table. Cloning copies pointers; [`RoutingTable::with`] copies one shard.
#[derive(Debug)]
pub struct RoutingTable<B> {
    groups: Shards<Arc<Group<B>>>,
    fixed: Arc<Fixed<B>>,
    complete: bool,
    in_front: bool,
}

/// Routes that are there whatever is registered.
#[derive(Debug)]
struct Fixed<B> {
    groups: Arc<Route<B>>,
    core: Arc<Route<B>>,
    own_group: Arc<Route<B>>,
    own_resources: Arc<Route<B>>,
    objects: Arc<Route<B>>,
    to_core: Arc<Route<B>>,
    not_found: Arc<Route<B>>,
    not_ready: Arc<Route<B>>,
    livez: Arc<Route<B>>,
    readyz: Arc<Route<B>>,
    healthz: Arc<Route<B>>,
    version: Arc<Route<B>>,
    metrics: Arc<Route<B>>,
    openapi_v2: Arc<Route<B>>,
    index: Arc<Route<B>>,
    debug: Arc<Route<B>>,
}

impl<B> Default for RoutingTable<B> {
    fn default() -> Self {
        let document = |document| Arc::new(Route::Documents(document));
        let own = |page| Arc::new(Route::Own(page));
        let fixed = Fixed {
            groups: document(Document::Groups),
            core: document(Document::Core),
            own_group: document(Document::Group(OWN_GROUP.into())),
            own_resources: document(Document::OwnResources),
            objects: Arc::new(Route::Objects),
            to_core: Arc::new(Route::Core),
            not_found: Arc::new(Route::NotFound),
            not_ready: Arc::new(Route::NotReady),
            livez: own(Page::Health(Probe::Livez)),
            readyz: own(Page::Health(Probe::Readyz)),
            healthz: own(Page::Health(Probe::Healthz)),
            version: own(Page::Version),
            metrics: own(Page::Metrics),
            openapi_v2: own(Page::OpenApiV2),
            index: own(Page::Index),
            debug: own(Page::Debug),
        };
        let fixed = Arc::new(fixed);
        Self { groups: Shards::default(), fixed, complete: false, in_front: false }
    }
}

impl<B> Clone for RoutingTable<B> {
    fn clone(&self) -> Self {
        Self {
            groups: self.groups.clone(),
            fixed: Arc::clone(&self.fixed),
            complete: self.complete,
            in_front: self.in_front,
        }
    }
}

impl<B> RoutingTable<B> {
    /// Finds the route of a request; [`Route::NotFound`] and [`Route::NotReady`] are routes too.
    pub fn lookup(&self, info: &RequestInfo<'_>) -> Arc<Route<B>> {
        let found = self.find(info);
        let is_the_cores = self.in_front && self.is_the_cores(found);
        Arc::clone(if is_the_cores { &self.fixed.to_core } else { found })
    }

    /// In front of kube-apiserver, everything is its own that no extension API server serves, but for
    /// the pages that tell about portico. What is not known to be an extension API server's yet goes
    /// there too, and who asks for all groups then: kube-apiserver knows the way.
    fn is_the_cores(&self, route: &Route<B>) -> bool {
        match route {
            Route::Remote(_) => false,
            Route::Documents(Document::Groups) => !self.complete,
            Route::Documents(Document::Group(name)) => !self.has_remote(name),
            Route::Documents(Document::Core) => !self.has_remote(""),
            Route::Own(page) => matches!(page, Page::Version | Page::OpenApiV2),
            Route::Documents(Document::OwnResources)
            | Route::Objects
            | Route::Local
            | Route::Core
            | Route::NotFound
            | Route::NotReady => true,
        }
    }

    fn has_remote(&self, group: &str) -> bool {
        let entries = self.group(group).into_iter().flat_map(|group| &group.entries);
        entries.into_iter().any(|entry| matches!(&*entry.route, Route::Remote(_)))
    }

    fn find(&self, info: &RequestInfo<'_>) -> &Arc<Route<B>> {
        match info.prefix {
            "apis" => self.lookup_group_path(info),
            "api" => match self.version("", "v1") {
                Some(_) if info.segments == 1 => &self.fixed.core,
                Some(route) => route,
                None => self.missing(),
            },
            _ => match info.path {
                "/version" | "/version/" => &self.fixed.version,
                "/metrics" => &self.fixed.metrics,
                "/openapi/v2" => &self.fixed.openapi_v2,
                "/" | "/index.html" => &self.fixed.index,
                "/debug/portico" => &self.fixed.debug,
                path => self.health(path).unwrap_or_else(|| self.missing()),
            },
        }
    }

    fn lookup_group_path(&self, info: &RequestInfo<'_>) -> &Arc<Route<B>> {
        match (info.group, info.version) {
            ("", "") if matches!(info.path, "/apis" | "/apis/") => &self.fixed.groups,
            ("", _) => self.missing(),
            (OWN_GROUP, "") => &self.fixed.own_group,
            (OWN_GROUP, OWN_VERSION) if info.is_resource => &self.fixed.objects,
            (OWN_GROUP, OWN_VERSION) => &self.fixed.own_resources,
            (OWN_GROUP, _) => &self.fixed.not_found,
            (group, "") if info.segments == 2 => {
                self.group(group).map_or_else(|| self.missing(), |group| &group.document)
            }
            (group, version) => self.version(group, version).unwrap_or_else(|| self.missing()),
        }
    }

    fn health(&self, path: &str) -> Option<&Arc<Route<B>>> {
        Some(match Probe::of_path(path)?.0 {
            Probe::Livez => &self.fixed.livez,
            Probe::Readyz => &self.fixed.readyz,
            Probe::Healthz => &self.fixed.healthz,
        })
    }

    fn missing(&self) -> &Arc<Route<B>> {
        if self.complete { &self.fixed.not_found } else { &self.fixed.not_ready }
    }

    /// The group of that name.
    pub fn group(&self, name: &str) -> Option<&Arc<Group<B>>> {
        self.groups.get(name)
    }

    fn version(&self, group: &str, version: &str) -> Option<&Arc<Route<B>>> {
        let group = self.group(group)?;
        Some(&group.entries.iter().find(|entry| &*entry.version == version)?.route)
    }

    /// Every group, in no particular order.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group<B>>> {
        self.groups.values()
    }

    /// The names of groups that are other than in `before`, which costs what has changed.
    pub fn groups_changed_since(&self, before: &Self) -> Vec<Arc<str>> {
        self.groups.changed_since(&before.groups, Arc::ptr_eq)
    }

    /// True once the objects have been read: only then is an unknown path 404.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The same table, from now on with kube-apiserver behind it.
    #[must_use]
    pub fn in_front(mut self) -> Self {
        self.in_front = true;
        self
    }

    /// The same table, from now on sure of what is missing.
    #[must_use]
    pub fn completed(mut self) -> Self {
        self.complete = true;
        self
    }

    /// Adds or replaces one APIService's entry.
    #[must_use]
    pub fn with(mut self, entry: Entry<B>) -> Self {
        let name = Arc::clone(&entry.group);
        self.change(&name, |entries| {
            entries.retain(|other| other.version != entry.version);
            entries.push(Arc::new(entry));
        });
        self
    }

    /// Takes one APIService's entry out; unknown ones are no error.
    #[must_use]
    pub fn without(mut self, group: &str, version: &str) -> Self {
        self.change(&group.into(), |entries| entries.retain(|entry| &*entry.version != version));
        self
    }

    fn change(&mut self, name: &Arc<str>, edit: impl FnOnce(&mut Vec<Arc<Entry<B>>>)) {
        let mut entries = self.group(name).map(|group| group.entries.clone()).unwrap_or_default();
        edit(&mut entries);
        let group = (!entries.is_empty()).then(|| {
            let document = Arc::new(Route::Documents(Document::Group(Arc::clone(name))));
            Arc::new(Group { name: Arc::clone(name), entries, document })
        });
        self.groups.set(name, group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn entry(group: &str, version: &str) -> Entry<u32> {
        Entry {
            group: group.into(),
            version: version.into(),
            group_priority: 1,
            version_priority: 1,
            route: Arc::new(Route::Remote(Remote {
                name: format!("{version}.{group}").into(),
                service: ServicePort { namespace: "n".into(), name: "s".into(), port: 443 },
                backend: 7,
                fault: None,
                discovery: Policy::default(),
            })),
        }
    }

    fn table() -> RoutingTable<u32> {
        RoutingTable::default().with(entry("g", "v1")).with(entry("g", "v2")).with(entry("", "v1"))
    }

    #[track_caller]
    fn check(table: &RoutingTable<u32>, path: &str, expected: &str) {
        let info = RequestInfo::parse(&Method::GET, path, None).unwrap();
        let got = match &*table.lookup(&info) {
            Route::Remote(remote) => remote.name.to_string(),
            other => format!("{other:?}"),
        };
        assert_eq!(got, expected, "{path}");
    }

    #[test]
    fn each_path_has_its_route() {
        let table = table().completed();
        check(&table, "/apis/g/v1", "v1.g");
        check(&table, "/apis/g/v1/", "v1.g");
        check(&table, "/apis/g/v2/things/a", "v2.g");
        check(&table, "/apis/g/v3", "NotFound");
        check(&table, "/apis/h/v1", "NotFound");
        check(&table, "/api", "Documents(Core)");
        check(&table, "/api/", "Documents(Core)");
        check(&table, "/api/v1", "v1.");
        check(&table, "/api/v1/pods", "v1.");
        check(&table, "/apis", "Documents(Groups)");
        check(&table, "/apis/", "Documents(Groups)");
        check(&table, "/apis//", "NotFound");
        check(&table, "/apis/g", "Documents(Group(\"g\"))");
        check(&table, "/apis/h", "NotFound");
        check(&table, "/apis//v1", "NotFound");
        check(
            &table,
            "/apis/apiregistration.k8s.io",
            "Documents(Group(\"apiregistration.k8s.io\"))",
        );
        check(&table, "/apis/apiregistration.k8s.io/v1", "Documents(OwnResources)");
        check(&table, "/apis/apiregistration.k8s.io/v1/apiservices", "Objects");
        check(&table, "/apis/apiregistration.k8s.io/v2", "NotFound");
        check(&table, "/readyz", "Own(Health(Readyz))");
        check(&table, "/livez/ping", "Own(Health(Livez))");
        check(&table, "/livezz", "NotFound");
        check(&table, "/index.html", "Own(Index)");
        check(&table, "/debug/portico", "Own(Debug)");
        check(&table, "/debug/portico/", "NotFound");
        check(&table, "/nothing", "NotFound");
    }

    #[test]
    fn in_front_of_the_core_all_is_its_own_but_extension_servers_and_porticos_pages() {
        let local = Entry { route: Arc::new(Route::Local), ..entry("local", "v1") };
        let mixed = Entry { route: Arc::new(Route::Local), ..entry("g", "v3") };
        let table = RoutingTable::default().with(entry("g", "v1")).with(local).with(mixed);
        for table in [table.clone().in_front(), table.in_front().completed()] {
            for path in [
                "/api",
                "/api/v1/pods",
                "/apis/local",
                "/apis/local/v1/things",
                "/apis/g/v3/things",
                "/apis/nobody/v1",
                "/apis//v1",
                "/apis/apiregistration.k8s.io/v1/apiservices",
                "/apis/apiregistration.k8s.io",
                "/version",
                "/openapi/v2",
                "/openapi/v3",
                "/.well-known/openid-configuration",
                "/debug/pprof",
            ] {
                check(&table, path, "Core");
            }
            check(&table, "/apis/g/v1/things", "v1.g");
            check(&table, "/apis/g", "Documents(Group(\"g\"))");
            let groups = if table.is_complete() { "Documents(Groups)" } else { "Core" };
            check(&table, "/apis", groups);
            check(&table, "/readyz/x", "Own(Health(Readyz))");
            check(&table, "/metrics", "Own(Metrics)");
            check(&table, "/debug/portico", "Own(Debug)");
            check(&table, "/", "Own(Index)");
        }
    }

    #[test]
    fn the_legacy_core_is_not_reached_through_apis() {
        check(&table().completed(), "/apis//v1/pods", "NotFound");
    }

    #[test]
    fn unknown_paths_are_not_ready_until_the_table_is_complete() {
        check(&table(), "/apis/h/v1", "NotReady");
        check(&table(), "/apis/g/v1", "v1.g");
        check(&table(), "/readyz", "Own(Health(Readyz))");
    }

    #[test]
    fn a_group_goes_with_its_last_version_and_older_tables_keep_it() {
        let before = table();
        let after = before.clone().without("g", "v1").without("g", "v2").completed();
        check(&before.completed(), "/apis/g/v1", "v1.g");
        check(&after, "/apis/g", "NotFound");
    }

    #[test]
    fn groups_that_came_went_or_changed_are_named() {
        let before = table();
        let after = before.clone().without("g", "v2").with(entry("h", "v1")).without("", "v1");
        let mut changed = after.groups_changed_since(&before);
        changed.sort();
        assert_eq!(changed, ["", "g", "h"].map(Arc::from));
        assert!(after.groups_changed_since(&after.clone()).is_empty());
    }
}
