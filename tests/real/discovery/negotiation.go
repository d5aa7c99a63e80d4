package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

const (
	v2   = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	beta = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
)

// row is one request to `/apis` and its relatives.
type row struct {
	method, path string
	headers      []string
}

func get(path string, headers ...string) row { return row{http.MethodGet, path, headers} }

// rows are the requests that upstream's tests know, and what they leave open: how Accept is read, conditions, methods, paths.
func rows() (all []row) {
	accepts := []string{
		"", "*/*", "application/*", "application/json", "application/json;foo=bar", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor",
		v2, strings.Replace(v2, "json", "yaml", 1), strings.Replace(v2, "json", "vnd.kubernetes.protobuf", 1), strings.Replace(v2, "json", "cbor", 1),
		strings.Replace(v2, "application/json", "application/*", 1), strings.Replace(v2, "application/json", "*/*", 1),
		v2 + ",application/json", "application/json," + v2, "application/json, " + v2 + ";q=0.1", v2 + ";q=0", beta, beta + ",application/json", v2 + "," + beta,
		"application/json;as=APIGroupDiscoveryList;v=v2;g=apidiscovery.k8s.io", "application/json; g=apidiscovery.k8s.io; v=v2; as=APIGroupDiscoveryList",
		v2 + ";profile=nopeer", v2 + ";profile=nopeer," + v2 + ",application/json", v2 + ";profile=foo", v2 + ";charset=utf-8", v2 + ";foo=bar", v2 + ";pretty=1",
		v2 + ";stream=watch", v2 + ";stream=other", v2 + ";sv=v1", v2 + ";sv=",
		"application/json;g=apidiscovery.k8s.io;v=v2", "application/json;v=v2;as=APIGroupDiscoveryList", "application/json;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList",
		"application/json;as=Table;v=v1;g=meta.k8s.io", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
		"application/json;g=apidiscovery.k8s.io;v=v2;as=APIResourceList", "application/json;g=other.k8s.io;v=v2;as=APIGroupDiscoveryList", "application/json;g=apidiscovery.k8s.io;v=v1;as=APIGroupDiscoveryList",
		"text/html", "text/html,application/json;q=0.1", "text/html,*/*;q=0.8", "application/json;q=0", "application/json;q=0.1,application/yaml", "application/yaml;q=0.5,application/json;q=0.7",
		"application/yaml;q=0.5,*/*", "*/*;q=0.9,application/yaml;q=0.1", "application/vnd.kubernetes.protobuf,application/json", "application/vnd.kubernetes.protobuf;q=0.5,application/json",
		"Application/JSON", "application/json;G=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", "APPLICATION/JSON;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
		"*", "json", "application", "/", ",", ";", ";;;", "application/json;q=abc", "application/json;q=2", "application/json;a=b=c", "application/json ; q=0.5 , application/yaml",
		"application/json;pretty=1", "application/json;pretty=0", "application/json;stream=watch", "application/json;charset=utf-8", "application/json;sv=v1",
		`application/json;g="apidiscovery.k8s.io";v="v2";as="APIGroupDiscoveryList"`, `"application/json"`, "application/json,", ",application/json", "*/json", "text/*", "text/*,application/yaml",
		"application/yaml;pretty=1", "application/*;q=0.5,application/yaml;q=0.5", "*/*,application/yaml", "application/*,application/yaml",
	}
	for _, accept := range accepts {
		for _, path := range []string{"/apis", "/apis/", "/apis/shop.example.com"} {
			all = append(all, get(path, "Accept: "+accept))
		}
	}
	all = append(all,
		get("/apis"), get("/apis/"), get("/apis/shop.example.com"), get("/apis/shop.example.com/"),
		row{http.MethodGet, "/apis", []string{"Accept: application/json", "Accept: " + v2}}, row{http.MethodGet, "/apis", []string{"Accept: " + v2, "Accept: application/json"}},
	)
	for _, agent := range []string{"curl/8.0.1", "Wget/1.21", "Mozilla/5.0 (X11)", "curling/1", "Curl/8", "kubectl/v1.37.1"} {
		for _, path := range []string{"/apis", "/apis?pretty=0", "/apis?pretty=false", "/apis?pretty=1", "/apis?pretty", "/apis?pretty="} {
			all = append(all, get(path, "User-Agent: "+agent), get(path, "User-Agent: "+agent, "Accept: "+v2))
		}
	}
	for _, query := range []string{"?pretty=1", "?pretty=true", "?pretty=True", "?pretty=t", "?pretty=yes", "?pretty=0", "?pretty=nonsense", "?pretty=1&pretty=0", "?timeout=32s", "?unknown=1", "?timeout=nonsense"} {
		all = append(all, get("/apis"+query), get("/apis"+query, "Accept: "+v2), get("/apis/shop.example.com"+query))
	}
	for _, method := range []string{http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodPatch} {
		for _, path := range []string{"/apis", "/apis/", "/apis/shop.example.com", "/apis/apiregistration.k8s.io", "/apis/apiregistration.k8s.io/v1"} {
			all = append(all, row{method, path, []string{"Accept: application/json"}}, row{method, path, []string{"Accept: " + v2}})
		}
	}
	for _, path := range []string{
		"/apis/unknown.example.com", "/apis/unknown.example.com/", "/apis/unknown.example.com/v1", "/apis/shop.example.com/v9", "/apis/apiregistration.k8s.io/v9", "/apis/apiregistration.k8s.io/",
		"/apis/apiregistration.k8s.io/v1", "/apis/apiregistration.k8s.io/v1/", "/apis//", "/apis//shop.example.com", "/apis/nobody.example.com", "/apis/refused.example.com", "/apis/hung.example.com",
	} {
		all = append(all, get(path, "Accept: application/json"), get(path, "Accept: text/html"), get(path, "Accept: "+v2))
	}
	for _, accept := range []string{"application/yaml", "application/vnd.kubernetes.protobuf", "text/html", "application/json;pretty=1"} {
		all = append(all, get("/apis/apiregistration.k8s.io/v1", "Accept: "+accept))
	}
	for _, encoding := range []string{"gzip", "gzip, deflate, br", "identity", "br", "*", "gzip;q=0", "deflate, gzip;q=1.0", "GZIP", "xgzip"} {
		all = append(all, get("/apis", "Accept: "+v2, "Accept-Encoding: "+encoding), get("/apis", "Accept-Encoding: "+encoding), get("/apis/shop.example.com", "Accept-Encoding: "+encoding))
	}
	return all
}

func (r row) String() string {
	return r.method + " " + r.path + " [" + strings.Join(r.headers, "; ") + "]"
}

// negotiation is the answers to all rows. Of bodies it has the shapes, because a server lists groups of its own too.
func (a *asker) negotiation() error {
	for _, row := range rows() {
		answered, err := a.ask(row.method, row.path, row.headers...)
		if err != nil {
			return fmt.Errorf("%s: %w", row, err)
		}
		a.answered(row.String(), answered)
	}
	return nil
}

func (a *asker) answered(key string, answered *response) {
	values := head(answered)
	values["body"] = shape(answered.body)
	a.add(key, values)
}

// shape is what can be said of a body without its content.
func shape(body []byte) string {
	switch {
	case len(body) == 0:
		return "empty"
	case bytes.HasPrefix(body, []byte{0x1f, 0x8b}):
		return "gzip"
	case bytes.HasPrefix(body, []byte("k8s\x00")):
		return "protobuf of " + kindIn(body[4:min(64, len(body))])
	}
	var document struct{ Kind, APIVersion, Message, Reason string }
	if json.Unmarshal(body, &document) != nil {
		first, _, _ := strings.Cut(string(body), "\n")
		return "text: " + first
	}
	layout := "compact"
	if bytes.HasPrefix(body, []byte("{\n  \"")) {
		layout = "indented"
	}
	if bytes.HasSuffix(body, []byte("\n")) {
		layout += " with a newline"
	}
	said := fmt.Sprintf("%s JSON of %s %s", layout, document.APIVersion, document.Kind)
	if document.Kind == "Status" {
		said += ": " + document.Reason + ": " + document.Message
	}
	return said
}

// kindIn finds the kind in a protobuf envelope, where it is before the content.
func kindIn(text []byte) string {
	for _, kind := range []string{"APIGroupDiscoveryList", "APIGroupList", "APIGroup", "APIResourceList", "Status"} {
		if bytes.Contains(text, []byte(kind)) {
			return kind
		}
	}
	return "something else"
}

// conditions is the answers to conditional requests with the server's own ETag.
func (a *asker) conditions() error {
	answered, err := a.ask(http.MethodGet, "/apis", "Accept: "+v2)
	if err != nil {
		return err
	}
	tag := answered.header.Get("ETag")
	a.add("ETag", map[string]string{"length": strconv.Itoa(len(tag)), "quoted": fmt.Sprint(strings.HasPrefix(tag, `"`) && strings.HasSuffix(tag, `"`))})
	for _, condition := range []string{"ETAG", "W/ETAG", `"x", ETAG`, `ETAG, "x"`, "*", `"x"`, ""} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			for _, accept := range []string{v2, strings.Replace(v2, "json", "yaml", 1), strings.Replace(v2, "json", "vnd.kubernetes.protobuf", 1), v2 + ",application/json", "application/json"} {
				header := "If-None-Match: " + strings.ReplaceAll(condition, "ETAG", tag)
				answered, err := a.ask(method, "/apis", "Accept: "+accept, "Accept-Encoding: gzip", header)
				if err != nil {
					return err
				}
				a.answered(fmt.Sprintf("condition: %s [%s] If-None-Match: %s", method, accept, condition), answered)
			}
		}
	}
	return nil
}
