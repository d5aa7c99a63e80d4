package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// comparison collects what differs between two servers. Each difference has a key, `what: where`, that the list of allowed
// ones speaks of.
type comparison struct {
	a, b    *target
	allowed []*allowance
	rows    int
	found   int
}

// allowance is a line of the list: a pattern for keys, and why that may differ.
type allowance struct {
	pattern *regexp.Regexp
	reason  string
	used    bool
}

// compare is `discovery compare ALLOWED SERVER CERTS SERVER CERTS`: the same fleet, asked for through two servers. ALLOWED is
// a file with a line for each difference that there may be: `PATTERN | REASON`, PATTERN a regular expression for whole keys. A line that matches
// nothing is a failure too, so that the list never says more than what is so.
func compare(allowed, aURL, aCertificates, bURL, bCertificates string) error {
	c := &comparison{}
	var err error
	if c.allowed, err = readAllowed(allowed); err != nil {
		return err
	}
	if c.a, err = newTarget(aURL, aCertificates); err != nil {
		return err
	}
	if c.b, err = newTarget(bURL, bCertificates); err != nil {
		return err
	}
	for _, target := range []*target{c.a, c.b} {
		if err := target.settle(); err != nil {
			return fmt.Errorf("%s: %w", target.url, err)
		}
	}
	for _, step := range []func() error{
		func() error { return c.lists("aggregated", aggregatedType, "items") },
		func() error { return c.lists("APIGroupList", jsonType, "groups") },
		c.groups, c.versions, c.negotiation, c.walks,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	for _, allowance := range c.allowed {
		if !allowance.used {
			c.found++
			fmt.Fprintf(os.Stderr, "no difference: %s (allowed because: %s)\n", allowance.pattern, allowance.reason)
		}
	}
	if c.found > 0 {
		return fmt.Errorf("%d differences in %d comparisons", c.found, c.rows)
	}
	fmt.Printf("%d comparisons, no difference but the allowed ones\n", c.rows)
	return nil
}

func readAllowed(file string) (all []*allowance, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for number, line := range strings.Split(string(text), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		pattern, reason, found := strings.Cut(line, " | ")
		if !found || strings.TrimSpace(reason) == "" {
			return nil, fmt.Errorf("%s:%d: no ` | ` and reason after the pattern", file, number+1)
		}
		compiled, err := regexp.Compile("^(?:" + strings.TrimSpace(pattern) + ")$")
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, number+1, err)
		}
		all = append(all, &allowance{pattern: compiled, reason: strings.TrimSpace(reason)})
	}
	return all, nil
}

// same counts a comparison; where it fails, `detail` says what is there instead.
func (c *comparison) same(key string, equal bool, detail func() string) {
	c.rows++
	if equal {
		return
	}
	for _, allowance := range c.allowed {
		if allowance.pattern.MatchString(key) {
			allowance.used = true
			return
		}
	}
	c.found++
	fmt.Fprintf(os.Stderr, "%s\n        %s\n", key, detail())
}

func (c *comparison) bytes(key string, a, b []byte) {
	c.same(key, bytes.Equal(a, b), func() string { return firstDifference(a, b) })
}

func (c *comparison) values(key string, a, b any) {
	c.same(key, a == b, func() string { return fmt.Sprintf("%q against %q", fmt.Sprint(a), fmt.Sprint(b)) })
}

// lists compares a list of groups: their order, and each one's bytes.
func (c *comparison) lists(what, accept, list string) error {
	var both [2][]item
	for index, target := range []*target{c.a, c.b} {
		document, err := target.get("/apis", accept)
		if err != nil {
			return err
		}
		if both[index], err = items(document, list); err != nil {
			return err
		}
	}
	names := func(items []item) string {
		var names []string
		for _, item := range items {
			names = append(names, strings.TrimSuffix(item.name, fleetDomain))
		}
		return strings.Join(names, " ")
	}
	c.values(what+": order", names(both[0]), names(both[1]))
	for _, a := range both[0] {
		at := slices.IndexFunc(both[1], func(b item) bool { return a.name == b.name })
		if at >= 0 {
			c.bytes(what+": "+a.name, a.raw, both[1][at].raw)
		}
	}
	return nil
}

// groups compares the APIGroup of each of the fleet's groups in every form, whole.
func (c *comparison) groups() error {
	names := []string{ownGroup}
	for _, server := range fleet() {
		for _, api := range server.apis {
			if !slices.Contains(names, api.group) {
				names = append(names, api.group)
			}
		}
	}
	for _, name := range names {
		for _, form := range forms("") {
			path := "/apis/" + name + form.query
			if err := c.answers("APIGroup: "+path+" as "+form.accept, http.MethodGet, path, "Accept: "+form.accept); err != nil {
				return err
			}
		}
	}
	return nil
}

// versions compares what the APIResourceLists say, for upstream passes on what its backend wrote, and portico encodes it anew.
func (c *comparison) versions() error {
	all := []string{ownGroup + "/v1"}
	for _, server := range fleet() {
		// Upstream asks the hung one itself, and would have us wait.
		if server.mode == modeHang {
			continue
		}
		for _, api := range server.apis {
			all = append(all, api.group+"/"+api.version)
		}
	}
	for _, groupVersion := range all {
		key, path := "APIResourceList: "+groupVersion, "/apis/"+groupVersion
		a, err := c.a.ask(http.MethodGet, path, "Accept: "+jsonType)
		if err != nil {
			return err
		}
		b, err := c.b.ask(http.MethodGet, path, "Accept: "+jsonType)
		if err != nil {
			return err
		}
		c.values(key+": status", a.code, b.code)
		if a.code != http.StatusOK || b.code != http.StatusOK {
			continue
		}
		c.bytes(key+": content", canonical(a.body), canonical(b.body))
	}
	return nil
}

// canonical is an APIResourceList in the bytes of upstream's encoder.
func canonical(document []byte) []byte {
	var list metav1.APIResourceList
	if err := json.Unmarshal(document, &list); err != nil {
		return fmt.Appendf(nil, "%v in %s", err, document)
	}
	return []byte(text(list))
}

// answers compares two whole answers.
func (c *comparison) answers(key, method, path string, headers ...string) error {
	a, err := c.a.ask(method, path, headers...)
	if err != nil {
		return err
	}
	b, err := c.b.ask(method, path, headers...)
	if err != nil {
		return err
	}
	c.head(key, a, b)
	c.bytes(key+": body", a.body, b.body)
	return nil
}

// head compares what the answers say before their bodies.
func (c *comparison) head(key string, a, b *response) {
	c.values(key+": status", a.code, b.code)
	for _, name := range []string{"Content-Type", "Vary", "Cache-Control", "Content-Encoding", "Retry-After", "Allow"} {
		// Lines of one header are one list.
		c.values(key+": "+name, strings.Join(a.header.Values(name), ", "), strings.Join(b.header.Values(name), ", "))
	}
	c.values(key+": has an ETag", a.header.Get("ETag") != "", b.header.Get("ETag") != "")
}

// walks compares what client-go makes of both.
func (c *comparison) walks() error {
	for _, form := range []string{"aggregated", "legacy"} {
		for _, wire := range []string{"json", "protobuf"} {
			var a, b bytes.Buffer
			if err := c.a.walk(&a, form, wire); err != nil {
				return err
			}
			if err := c.b.walk(&b, form, wire); err != nil {
				return err
			}
			c.lines("client-go "+form+" "+wire, a.String(), b.String())
		}
	}
	return nil
}

// lines compares texts line by line, so that a difference in one version says nothing about the others: the lines that only one has, and the order of
// those that both have.
func (c *comparison) lines(key, a, b string) {
	aBlocks, bBlocks := blocks(a), blocks(b)
	only := func(what string, some, others []string) (common []string) {
		for _, block := range some {
			if slices.Contains(others, block) {
				common = append(common, block)
				continue
			}
			title, _, _ := strings.Cut(block, "\n")
			c.same(key+": only "+what+": "+title, false, func() string { return block })
		}
		return common
	}
	aCommon, bCommon := only("the first has", aBlocks, bBlocks), only("the second has", bBlocks, aBlocks)
	c.values(key+": order", strings.Join(aCommon, "\n"), strings.Join(bCommon, "\n"))
}

// blocks are lines with the indented ones after them.
func blocks(text string) (all []string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, " ") && len(all) > 0 {
			all[len(all)-1] += "\n" + line
		} else {
			all = append(all, line)
		}
	}
	return all
}
