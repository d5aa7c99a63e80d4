package main

import (
	"fmt"
	"strings"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fleetDomain ends the names of the fleet's groups, whereby they are told from those that a server brings itself.
const fleetDomain = ".example.com"

// How an extension API server answers. Anything but `hang` and `refuse` serves the legacy documents.
const (
	// The aggregated document, and 304 where it is known.
	modeAggregated = "aggregated"
	// 406 for the aggregated document, as servers before 1.26 do.
	modeLegacy = "legacy"
	// 404 for /apis altogether.
	modeBare = "bare"
	// Only the beta of the aggregated document, whatever is asked for.
	modeBeta = "beta"
	// 500 on /apis.
	modeBroken = "broken"
	// The aggregated content type, and something that is no JSON.
	modeGarbled = "garbled"
	// 503 on everything.
	modeBusy = "busy"
	// Takes connections and requests and never answers.
	modeHang = "hang"
	// The same for discovery; of anything else it says that there is no such resource.
	modeStuck = "stuck"
	// Takes no connections.
	modeRefuse = "refuse"
)

// server is one extension API server, and the APIServices that lead to it.
type server struct {
	name string
	mode string
	apis []api
	// Groups in its aggregated document that no APIService asks for.
	foreign []apidiscovery.APIGroupDiscovery
}

// api is one APIService and what its server says of it.
type api struct {
	group, version                 string
	groupPriority, versionPriority int
	annotations                    map[string]string
	// Absent from the aggregated document.
	absent bool
	// JSON arrays: what the aggregated document has, and the legacy one.
	aggregated, legacy string
}

func (a api) name() string { return a.version + "." + a.group }

func (a api) path() string {
	if a.group == "" {
		return "/api/" + a.version
	}
	return "/apis/" + a.group + "/" + a.version
}

func (a api) groupVersion() string { return strings.TrimPrefix(a.group+"/"+a.version, "/") }

// core is a server of the core API, without which the Python client finds nothing. kube-apiserver brings its own.
func core() server {
	return server{name: "core", mode: modeAggregated, apis: []api{{
		version: "v1", groupPriority: 18000, versionPriority: 1, aggregated: text(resources("core")), legacy: text(legacyResources("core")),
	}}}
}

// fleet is what the tests ask discovery of. Equal priorities, odd documents and dead servers are what it is about.
func fleet() []server {
	return []server{
		{name: "shop", mode: modeAggregated, apis: append(append(
			versions("shop", 1000, version{"v1beta1", 50}, version{"v1", 100}, version{"v2alpha1", 10}),
			// One version is above the others of its group, which takes the group there.
			usual("office", "v1", 2000, 10), usual("office", "v2", 1500, 10)),
			// Equal priorities: the names decide, as Kubernetes compares versions.
			small("names", 650, version{"foo10", 15}, version{"v1", 15}, version{"foo1", 15}, version{"v12alpha1", 15}, version{"v10beta3", 15},
				version{"v11beta2", 15}, version{"v2", 15}, version{"v10", 15}, version{"foo2", 15})...)},
		// Equal groupPriorityMinimum: the legacy list has zoo first (v1.zoo before v1alpha1.ant), the aggregated one ant.
		{name: "zoo", mode: modeAggregated, apis: []api{usual("zoo", "v1", 500, 15)}},
		{name: "ant", mode: modeAggregated, apis: []api{usual("ant", "v1alpha1", 500, 15)}},
		{name: "depot", mode: modeLegacy, apis: versions("depot", 800, version{"v1", 20}, version{"v2", 10})},
		{name: "attic", mode: modeBare, apis: []api{oddLegacy("attic", 700)}},
		{name: "deep", mode: modeBare, apis: []api{deepLegacy("deep", 690)}},
		{name: "odd", mode: modeAggregated, apis: []api{oddAggregated("odd", 600)}, foreign: []apidiscovery.APIGroupDiscovery{
			{ObjectMeta: metav1.ObjectMeta{Name: "nobody" + fleetDomain}, Versions: []apidiscovery.APIVersionDiscovery{{Version: "v1", Resources: resources("nobody")}}},
		}},
		{name: "mixed", mode: modeLegacy, apis: []api{mixedScopes("mixed", 550)}},
		{name: "beta", mode: modeBeta, apis: []api{usual("beta", "v1", 450, 15)}},
		{name: "broken", mode: modeBroken, apis: []api{usual("broken", "v1", 440, 15)}},
		{name: "garbled", mode: modeGarbled, apis: []api{usual("garbled", "v1", 430, 15)}},
		{name: "absent", mode: modeAggregated, apis: []api{without(usual("absent", "v1", 420, 15)), usual("absent", "v2", 420, 10)}},
		{name: "busy", mode: modeBusy, apis: []api{usual("busy", "v1", 410, 15)}},
		{name: "hung", mode: modeHang, apis: []api{usual("hung", "v1", 900, 15)}},
		{name: "refused", mode: modeRefuse, apis: []api{usual("refused", "v1", 850, 15)}},
		// Up at first; the tests make them hang, by their control.
		{name: "held", mode: modeAggregated, apis: []api{with(usual("held", "v1", 400, 15), "portico.dev/stale-discovery", "hold")}},
		{name: "stale", mode: modeAggregated, apis: []api{usual("stale", "v1", 390, 15)}},
		{name: "omitted", mode: modeAggregated, apis: []api{with(usual("omitted", "v1", 380, 15), "portico.dev/stale-discovery", "omit")}},
	}
}

type version struct {
	name     string
	priority int
}

func versions(name string, groupPriority int, versions ...version) (apis []api) {
	for _, version := range versions {
		apis = append(apis, usual(name, version.name, groupPriority, version.priority))
	}
	return apis
}

// small is `versions` with as little in each as there can be.
func small(name string, groupPriority int, versions ...version) (apis []api) {
	for _, version := range versions {
		a := usual(name, version.name, groupPriority, version.priority)
		a.aggregated = text([]apidiscovery.APIResourceDiscovery{{Resource: name, ResponseKind: &metav1.GroupVersionKind{Kind: "Name"}, Scope: apidiscovery.ScopeCluster, SingularResource: "name", Verbs: verbs}})
		a.legacy = text([]metav1.APIResource{{Name: name, SingularName: "name", Kind: "Name", Verbs: verbs}})
		apis = append(apis, a)
	}
	return apis
}

func with(a api, key, value string) api {
	a.annotations = map[string]string{key: value}
	return a
}

func without(a api) api {
	a.absent = true
	return a
}

// usual is what a server built on Kubernetes' library has: a namespaced resource with status and scale, and a cluster's.
func usual(name, version string, groupPriority, versionPriority int) api {
	return api{
		group: name + fleetDomain, version: version, groupPriority: groupPriority, versionPriority: versionPriority,
		aggregated: text(resources(name)), legacy: text(legacyResources(name)),
	}
}

// Few, for they are in every document that is kept.
var verbs, partVerbs = metav1.Verbs{"create", "get", "list"}, metav1.Verbs{"get", "update"}

func resources(name string) []apidiscovery.APIResourceDiscovery {
	// Their own group and version are left out by upstream's servers too.
	kind := func(kind string) *metav1.GroupVersionKind { return &metav1.GroupVersionKind{Kind: kind} }
	return []apidiscovery.APIResourceDiscovery{
		{
			Resource: name + "s", ResponseKind: kind("Thing"), Scope: apidiscovery.ScopeNamespace, SingularResource: name, Verbs: verbs,
			ShortNames: []string{name[:2]}, Categories: []string{"all", "fleet"},
			Subresources: []apidiscovery.APISubresourceDiscovery{
				{Subresource: "scale", ResponseKind: &metav1.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"}, Verbs: partVerbs},
				{Subresource: "status", ResponseKind: kind("Thing"), Verbs: partVerbs},
			},
		},
		{Resource: name + "classes", ResponseKind: kind("Class"), Scope: apidiscovery.ScopeCluster, SingularResource: name + "class", Verbs: verbs},
	}
}

func legacyResources(name string) []metav1.APIResource {
	return []metav1.APIResource{
		{Name: name + "classes", SingularName: name + "class", Kind: "Class", Verbs: verbs, StorageVersionHash: "c2Vjb25kPT0="},
		{Name: name + "s", SingularName: name, Namespaced: true, Kind: "Thing", Verbs: verbs, ShortNames: []string{name[:2]}, Categories: []string{"all", "fleet"}, StorageVersionHash: "Zmlyc3Q9PT0="},
		{Name: name + "s/scale", Namespaced: true, Group: "autoscaling", Version: "v1", Kind: "Scale", Verbs: partVerbs},
		{Name: name + "s/status", Namespaced: true, Kind: "Thing", Verbs: partVerbs},
	}
}

// oddAggregated has what the schema allows and no usual server sends: no kinds, no verbs, unknown fields, the enclosing group
// and version spelt out, characters that Go's encoder escapes, a resource twice, null where a list could be.
func oddAggregated(name string, priority int) api {
	group := name + fleetDomain
	return api{group: group, version: "v1", groupPriority: priority, versionPriority: 15, legacy: text(legacyResources(name)), aggregated: fmt.Sprintf(`[
		{"resource":"kindless","scope":"Namespaced","singularResource":"","verbs":["get"],"subresources":[{"subresource":"part","verbs":["get"]}]},
		{"scope":"Cluster","resource":"backwards","unknown":{"deep":[1,2,{"x":null}]},"verbs":["list","get"],"singularResource":"backward","responseKind":{"kind":"Backwards","version":"v1","group":%q}},
		{"resource":"verbless","responseKind":{"group":"","version":"","kind":"Verbless"},"scope":"Namespaced","singularResource":"verbless","shortNames":null,"categories":[]},
		{"resource":"noverbs","responseKind":{"group":"","version":"","kind":"NoVerbs"},"scope":"Namespaced","singularResource":"noverb","verbs":[]},
		{"resource":"escaped","responseKind":{"group":"","version":"","kind":"A<B>&C"},"scope":"Namespaced","singularResource":"escaped","verbs":["get"],"categories":["\u2028","\u2029","<>&","\"\\/\u0001\t\n","ü€😀"]},
		{"resource":"escaped","responseKind":{"group":"other.example.com","version":"v7","kind":"Twice"},"scope":"Cluster","singularResource":"escaped","verbs":["list"],"shortNames":["z","a"]},
		{"resource":"accepting","responseKind":{"kind":"Accepting"},"scope":"Namespaced","singularResource":"accepting","verbs":["get"],
			"subresources":[{"subresource":"bind","responseKind":null,"acceptedTypes":[{"group":"","version":"v1","kind":"Binding"}],"verbs":["create"]},{"subresource":"verbless","responseKind":{"kind":"None"}}]}
	]`, group)}
}

// oddLegacy has subresources before and without their parents, entries without kinds, and another group's kind.
func oddLegacy(name string, priority int) api {
	return api{group: name + fleetDomain, version: "v1", groupPriority: priority, versionPriority: 15, aggregated: "[]", legacy: `[
		{"name":"early/status","singularName":"","namespaced":true,"kind":"Early","verbs":["get"]},
		{"name":"early","singularName":"earl","namespaced":true,"kind":"Early","verbs":["get","list"],"shortNames":["ea"]},
		{"name":"orphan/status","singularName":"","namespaced":false,"kind":"Orphan","verbs":["get"]},
		{"name":"kindless","singularName":"","namespaced":true,"kind":"","verbs":["get"]},
		{"name":"kindless/part","singularName":"","namespaced":true,"kind":"","verbs":["get"]},
		{"name":"foreign","singularName":"foreign","namespaced":false,"group":"policy","version":"v1","kind":"Foreign","verbs":["get"],"categories":["all"]},
		{"name":"verbless","singularName":"","namespaced":true,"kind":"Verbless"}
	]`}
}

// deepLegacy has a subresource of a subresource, on which the Python client breaks.
func deepLegacy(name string, priority int) api {
	return api{group: name + fleetDomain, version: "v1", groupPriority: priority, versionPriority: 15, aggregated: "[]", legacy: `[
		{"name":"deep","singularName":"deep","namespaced":true,"kind":"Deep","verbs":["get"]},
		{"name":"deep/a/b","singularName":"","namespaced":true,"kind":"DeepAB","verbs":["create"]}
	]`}
}

// mixedScopes cannot be converted: a subresource's scope is not its parent's.
func mixedScopes(name string, priority int) api {
	return api{group: name + fleetDomain, version: "v1", groupPriority: priority, versionPriority: 15, aggregated: "[]", legacy: `[
		{"name":"things","singularName":"thing","namespaced":true,"kind":"Thing","verbs":["get","list"]},
		{"name":"things/status","singularName":"","namespaced":false,"kind":"Thing","verbs":["get"]}
	]`}
}
