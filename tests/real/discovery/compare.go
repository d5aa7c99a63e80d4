package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// allowance is a line of the list of differences that there may be: a pattern for keys, and why.
type allowance struct {
	pattern *regexp.Regexp
	reason  string
	used    bool
}

// comparison collects what differs between the facts about two servers.
type comparison struct {
	allowed []*allowance
	rows    int
	found   int
}

// compare is `discovery compare FACTS FACTS ALLOWED`: prints what differs between the facts about two servers. A difference has
// a key, the fact's and after `: ` the value's. ALLOWED is a file with lines `PATTERN | REASON`, PATTERN a regular expression
// for whole keys. A line that matches nothing is a failure too, so that the list never says more than what is so.
func compare(first, second, allowed string) error {
	a, errA := readFacts(first)
	b, errB := readFacts(second)
	list, errC := readAllowed(allowed)
	if err := errors.Join(errA, errB, errC); err != nil {
		return err
	}
	c := &comparison{allowed: list}
	index := func(all []fact) map[string]fact {
		indexed := map[string]fact{}
		for _, fact := range all {
			indexed[fact.Key] = fact
		}
		return indexed
	}
	inA, inB := index(a), index(b)
	for _, fact := range a {
		c.fact(fact.Key, fact.Values, inB[fact.Key].Values)
	}
	for _, fact := range b {
		if _, both := inA[fact.Key]; !both {
			c.fact(fact.Key, nil, fact.Values)
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
	fmt.Printf("%d comparisons, %d kinds of difference, all known\n", c.rows, len(c.allowed))
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

// fact compares all values of a fact, of which one side may know nothing.
func (c *comparison) fact(key string, a, b map[string]string) {
	if a == nil || b == nil {
		c.value(key+": there", fmt.Sprint(a != nil), fmt.Sprint(b != nil))
		return
	}
	names := slices.Collect(maps.Keys(a))
	for name := range b {
		if _, both := a[name]; !both {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		c.value(key+": "+name, a[name], b[name])
	}
}

func (c *comparison) value(key, a, b string) {
	c.rows++
	if a == b {
		return
	}
	for _, allowance := range c.allowed {
		if allowance.pattern.MatchString(key) {
			allowance.used = true
			return
		}
	}
	c.found++
	fmt.Fprintf(os.Stderr, "%s\n    %s\n", key, firstDifference(a, b))
}

// firstDifference shows two texts, from a little before where they part.
func firstDifference(a, b string) string {
	const short, before, after = 200, 60, 120
	if len(a) <= short && len(b) <= short {
		return fmt.Sprintf("%q\n    %q", a, b)
	}
	at := 0
	for at < len(a) && at < len(b) && a[at] == b[at] {
		at++
	}
	from := max(0, at-before)
	part := func(text string) string { return text[min(from, len(text)):min(at+after, len(text))] }
	return fmt.Sprintf("at byte %d of %d and %d:\n    %q\n    %q", at, len(a), len(b), part(a), part(b))
}
