package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// request is one of the list: `### NAME`, `METHOD PATH`, headers, an empty line, and the body. The header `As` is not sent
// but says who asks: admin (when there is none), somebody, or nobody. `$NAME` in a header is the environment's.
type request struct {
	name, method, path, as string
	headers                []string
	body                   string
}

// What differs from run to run, wherever it is in a document.
var volatile = regexp.MustCompile(`"(uid|resourceVersion|creationTimestamp|deletionTimestamp|time|token|expirationTimestamp|lastTransitionTime|continue)":( ?)"[^"]*"`)

// Who wrote what is in the order of when it was, and of names within a second; the fields have no lists.
var managers = regexp.MustCompile(`"managedFields":( ?)\[[^\]]*\]`)

// And how old something is, or when it was made, in the cells of tables.
var ages = regexp.MustCompile(`"([0-9]+[smhd]){1,2}"|"20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z"`)

// kube-apiserver's own documents change between two contents as APIServices come and go, of which these are the hashes.
var hashes = regexp.MustCompile(`\?hash=[0-9A-F]+`)

// Headers that say when, in which order or on which connection something was answered.
var unsteady = map[string]bool{"Date": true, "Content-Length": true, "Connection": true, "Last-Modified": true}

// requests is `discovery requests SERVER CERTS FILE`: asks a server everything in the list, one after the other, and prints a
// fact for each answer: its status, its headers and its body, but for what is volatile.
func requests(url, certificates, file string) error {
	list, err := readRequests(file)
	if err != nil {
		return err
	}
	callers := map[string]*target{}
	for _, name := range []string{"admin", "somebody", "nobody"} {
		if callers[name], err = newCaller(url, certificates, name); err != nil {
			return err
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	for _, request := range list {
		caller, known := callers[request.as]
		if !known {
			return fmt.Errorf("%s: %s: nobody is called %q", file, request.name, request.as)
		}
		answered, err := caller.send(request.method, request.path, request.body, request.headers...)
		if err != nil {
			return fmt.Errorf("%s: %w", request.name, err)
		}
		if err := encoder.Encode(fact{request.name, seen(answered)}); err != nil {
			return err
		}
	}
	return nil
}

func seen(answered *response) map[string]string {
	values := map[string]string{"status": strconv.Itoa(answered.code)}
	for name, all := range answered.header {
		switch {
		case unsteady[name]:
		case name == "Audit-Id":
			values[name] = strconv.Itoa(len(all))
		default:
			values[name] = strings.Join(all, "\n")
		}
	}
	body := volatile.ReplaceAllString(string(answered.body), `"$1":$2"*"`)
	body = managers.ReplaceAllString(body, `"managedFields":$1["*"]`)
	body = hashes.ReplaceAllString(body, "?hash=*")
	body = inOrder(ages.ReplaceAllString(body, `"*"`))
	if !utf8.ValidString(body) {
		body = strconv.QuoteToASCII(body)
	}
	values["body"] = body
	return values
}

// inOrder has the fields of a Status by their names: whoever makes one, their order says nothing.
func inOrder(body string) string {
	var status map[string]any
	if json.Unmarshal([]byte(body), &status) != nil || status["kind"] != "Status" {
		return body
	}
	ordered, err := json.Marshal(status)
	if err != nil {
		return body
	}
	return string(ordered) + "\n"
}

func readRequests(file string) (list []request, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	// What is before the first one is the file's head.
	for _, part := range strings.Split("\n"+string(text), "\n### ")[1:] {
		head, body, _ := strings.Cut(part, "\n\n")
		lines := strings.Split(strings.TrimRight(head, "\n"), "\n")
		read := request{name: lines[0], as: "admin", body: strings.TrimSpace(body)}
		var whole bool
		if len(lines) > 1 {
			read.method, read.path, whole = strings.Cut(lines[1], " ")
		}
		if !whole || names[read.name] {
			return nil, fmt.Errorf("%s: %q has no line METHOD PATH, or its name twice", file, read.name)
		}
		names[read.name] = true
		for _, line := range lines[2:] {
			if who, is := strings.CutPrefix(line, "As: "); is {
				read.as = who
			} else {
				read.headers = append(read.headers, os.ExpandEnv(line))
			}
		}
		list = append(list, read)
	}
	return list, nil
}

// send is `ask` with a body.
func (t *target) send(method, path, body string, headers ...string) (*response, error) {
	made, err := http.NewRequest(method, t.url+path, bytes.NewReader([]byte(body)))
	if err != nil {
		return nil, err
	}
	return t.do(made, headers)
}
