package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
)

// walk is `discovery walk SERVER CERTS FORM WIRE`: prints what client-go makes of a server's discovery: the groups in their
// order, the resources of each version, the preferred ones, and the versions that are in error. FORM is `aggregated` or
// `legacy` (client-go's WithLegacy), WIRE `json` or `protobuf` (the client's content type).
func walk(url, certificates, form, wire string) error {
	target, err := newTarget(url, certificates)
	if err != nil {
		return err
	}
	return target.walk(os.Stdout, form, wire)
}

func (t *target) walk(out io.Writer, form, wire string) error {
	config := *t.config
	switch wire {
	case "json":
	case "protobuf":
		config.ContentType = "application/vnd.kubernetes.protobuf"
		config.AcceptContentTypes = "application/vnd.kubernetes.protobuf"
	default:
		return fmt.Errorf("%q is neither json nor protobuf", wire)
	}
	built, err := discovery.NewDiscoveryClientForConfig(&config)
	if err != nil {
		return err
	}
	var client discovery.DiscoveryInterface = built
	switch form {
	case "aggregated":
	case "legacy":
		client = built.WithLegacy()
	default:
		return fmt.Errorf("%q is neither aggregated nor legacy", form)
	}
	groups, lists, err := client.ServerGroupsAndResources()
	failed, err := failures(err)
	if err != nil {
		return err
	}
	for _, group := range groups {
		if !ours(group.Name) {
			continue
		}
		var names []string
		for _, version := range group.Versions {
			names = append(names, version.Version)
		}
		fmt.Fprintf(out, "group %s: %s; preferred %s\n", group.Name, strings.Join(names, " "), group.PreferredVersion.Version)
	}
	printLists(out, "resources", lists)
	printFailed(out, "failed", failed)
	preferred, err := client.ServerPreferredResources()
	if failed, err = failures(err); err != nil {
		return err
	}
	for _, list := range preferred {
		slices.SortFunc(list.APIResources, func(a, b metav1.APIResource) int { return strings.Compare(a.Name, b.Name) })
	}
	printLists(out, "preferred", preferred)
	printFailed(out, "failed for the preferred", failed)
	return nil
}

// failures are the versions of which client-go says that they are in error; any other error is one.
func failures(err error) (map[schema.GroupVersion]error, error) {
	var partial *discovery.ErrGroupDiscoveryFailed
	if errors.As(err, &partial) {
		return partial.Groups, nil
	}
	return nil, err
}

// printLists prints what client-go has in the random order of its maps in that of names.
func printLists(out io.Writer, what string, lists []*metav1.APIResourceList) {
	slices.SortFunc(lists, func(a, b *metav1.APIResourceList) int { return strings.Compare(a.GroupVersion, b.GroupVersion) })
	for _, list := range lists {
		group, _, _ := strings.Cut(list.GroupVersion, "/")
		if !ours(group) {
			continue
		}
		fmt.Fprintf(out, "%s %s:\n", what, list.GroupVersion)
		for _, resource := range list.APIResources {
			fmt.Fprintf(out, "  %s kind=%s/%s/%s singular=%s namespaced=%t verbs=%s short=%s categories=%q\n", resource.Name, resource.Group, resource.Version, resource.Kind,
				resource.SingularName, resource.Namespaced, strings.Join(resource.Verbs, ","), strings.Join(resource.ShortNames, ","), resource.Categories)
		}
	}
}

func printFailed(out io.Writer, what string, failed map[schema.GroupVersion]error) {
	compare := func(a, b schema.GroupVersion) int { return strings.Compare(a.String(), b.String()) }
	for _, version := range slices.SortedFunc(maps.Keys(failed), compare) {
		if ours(version.Group) {
			fmt.Fprintf(out, "%s %s\n", what, version)
		}
	}
}
