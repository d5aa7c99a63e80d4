package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fact is something that was asked of a server, and what there was to see of the answer.
type fact struct {
	Key    string
	Values map[string]string
}

// asker collects the facts about a server.
type asker struct {
	*target
	found []fact
}

func (a *asker) add(key string, values map[string]string) {
	a.found = append(a.found, fact{key, values})
}

// facts is `discovery facts SERVER CERTS`: prints a line of JSON for each fact about a server that has the fleet behind it.
// Nothing in them changes from run to run, so that those of kube-apiserver can be kept.
func facts(url, certificates string) error {
	target, err := newTarget(url, certificates)
	if err != nil {
		return err
	}
	target.settle()
	a := &asker{target: target}
	for _, step := range []func() error{
		func() error { return a.list("aggregated", aggregatedType, "items") },
		func() error { return a.list("APIGroupList", jsonType, "groups") },
		a.groups, a.versions, a.negotiation, a.conditions, a.walks,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	out := bufio.NewWriter(os.Stdout)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	for _, fact := range a.found {
		if err := encoder.Encode(fact); err != nil {
			return err
		}
	}
	return out.Flush()
}

func readFacts(file string) (all []fact, err error) {
	opened, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	decoder := json.NewDecoder(opened)
	for {
		var read fact
		switch err := decoder.Decode(&read); err {
		case nil:
			all = append(all, read)
		case io.EOF:
			return all, nil
		default:
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
}

// list is a list of groups: their order, and each one's bytes.
func (a *asker) list(what, accept, list string) error {
	answered, err := a.ask(http.MethodGet, "/apis", "Accept: "+accept)
	if err != nil {
		return err
	}
	if answered.code != http.StatusOK {
		a.add(what, map[string]string{"order": "none: status " + strconv.Itoa(answered.code)})
		return nil
	}
	found, err := items(answered.body, list)
	if err != nil {
		return err
	}
	var names []string
	for _, item := range found {
		names = append(names, strings.TrimSuffix(item.name, fleetDomain))
	}
	a.add(what, map[string]string{"order": strings.Join(names, " ")})
	for _, item := range found {
		a.add(what+" of "+item.name, map[string]string{"JSON": string(item.raw)})
	}
	return nil
}

// groups are the APIGroups of the fleet in every form, whole.
func (a *asker) groups() error {
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
			answered, err := a.ask(http.MethodGet, path, "Accept: "+form.accept)
			if err != nil {
				return err
			}
			values := head(answered)
			values["body"] = strconv.Quote(string(answered.body))
			a.add("APIGroup "+path+" as "+form.accept, values)
		}
	}
	return nil
}

// versions is what the APIResourceLists say; not in which bytes, for upstream passes on what its backend wrote.
func (a *asker) versions() error {
	all := []string{ownGroup + "/v1"}
	for _, server := range fleet() {
		for _, api := range server.apis {
			all = append(all, api.group+"/"+api.version)
		}
	}
	for _, groupVersion := range all {
		answered, err := a.ask(http.MethodGet, "/apis/"+groupVersion, "Accept: "+jsonType)
		if err != nil {
			return err
		}
		values := map[string]string{"status": strconv.Itoa(answered.code), "Content-Type": answered.header.Get("Content-Type"), "Retry-After": answered.header.Get("Retry-After")}
		if answered.code == http.StatusOK {
			values["content"] = canonical(answered.body)
		}
		a.add("APIResourceList of "+groupVersion, values)
	}
	return nil
}

// canonical is an APIResourceList in the bytes of upstream's encoder.
func canonical(document []byte) string {
	var list metav1.APIResourceList
	if err := json.Unmarshal(document, &list); err != nil {
		return fmt.Sprintf("%v in %s", err, document)
	}
	return text(list)
}

// head is what an answer says before its body; lines of one header are one list.
func head(r *response) map[string]string {
	values := map[string]string{"status": strconv.Itoa(r.code)}
	for _, name := range []string{"Content-Type", "Vary", "Cache-Control", "Content-Encoding", "Retry-After", "Allow"} {
		if lines := r.header.Values(name); len(lines) > 0 {
			values[name] = strings.Join(lines, ", ")
		}
	}
	if r.header.Get("ETag") != "" {
		values["ETag"] = "yes"
	}
	return values
}

// walks is what client-go makes of the server: the groups, each version's resources, and what it calls an error.
func (a *asker) walks() error {
	for _, walk := range []struct{ form, wire string }{{"aggregated", "json"}, {"legacy", "json"}, {"legacy", "protobuf"}} {
		var printed bytes.Buffer
		if err := a.walk(&printed, walk.form, walk.wire); err != nil {
			fmt.Fprintln(&printed, "error", err)
		}
		var groups []string
		key := "client-go " + walk.form + " " + walk.wire
		for _, block := range blocks(printed.String()) {
			title, rest, _ := strings.Cut(block, "\n")
			if strings.HasPrefix(title, "group ") {
				groups = append(groups, title)
			} else {
				a.add(key+": "+title, map[string]string{"says": rest})
			}
		}
		a.add(key+": groups", map[string]string{"in order": strings.Join(groups, "\n")})
	}
	return nil
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
