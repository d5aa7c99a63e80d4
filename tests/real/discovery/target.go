package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/rest"
)

const (
	requestLimit = 30 * time.Second
	settleLimit  = 30 * time.Second
	settlePeriod = 200 * time.Millisecond

	ownGroup = "apiregistration.k8s.io"
)

// target is a server that somebody asks; its config, for client-go, is an admin's.
type target struct {
	url    string
	client *http.Client
	config *rest.Config
}

// newTarget talks to a server of which `streams certs` made the certificates.
func newTarget(url, certificates string) (*target, error) {
	made, err := newCaller(url, certificates, "admin")
	if err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(certificates, name) }
	made.config = &rest.Config{Host: url, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAFile: file("serving-ca.crt"), CertFile: file("admin.crt"), KeyFile: file("admin.key")}}
	return made, nil
}

// newCaller is somebody of whom there is a certificate, or `nobody`, who shows none.
func newCaller(url, certificates, name string) (*target, error) {
	file := func(name string) string { return filepath.Join(certificates, name) }
	roots, err := pool(file("serving-ca.crt"))
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: roots}
	if name != "nobody" {
		certificate, err := tls.LoadX509KeyPair(file(name+".crt"), file(name+".key"))
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{certificate}
	}
	return &target{url: url, client: &http.Client{
		Timeout: requestLimit,
		// What was not asked for is not undone either, and a redirect is an answer.
		Transport:     &http.Transport{ForceAttemptHTTP2: true, DisableCompression: true, TLSClientConfig: config},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

type response struct {
	code   int
	header http.Header
	body   []byte
}

// ask sends one request; headers are given as `Name: value`.
func (t *target) ask(method, path string, headers ...string) (*response, error) {
	request, err := http.NewRequest(method, t.url+path, nil)
	if err != nil {
		return nil, err
	}
	return t.do(request, headers)
}

func (t *target) do(request *http.Request, headers []string) (*response, error) {
	// Not a name that makes servers answer with indentation.
	request.Header.Set("User-Agent", "discovery")
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		if name == "User-Agent" {
			request.Header.Del(name)
		}
		request.Header.Add(name, value)
	}
	answered, err := t.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answered.Body.Close()
	body, err := io.ReadAll(answered.Body)
	if err != nil {
		return nil, fmt.Errorf("the body of %s: %w", request.URL.Path, err)
	}
	return &response{answered.StatusCode, answered.Header, body}, nil
}

// get is `ask` for a document that has to be there.
func (t *target) get(path, accept string) ([]byte, error) {
	answered, err := t.ask(http.MethodGet, path, "Accept: "+accept)
	if err != nil {
		return nil, err
	}
	if answered.code != http.StatusOK {
		return nil, fmt.Errorf("GET %s with Accept: %s: status %d: %s", path, accept, answered.code, answered.body)
	}
	return answered.body, nil
}

// item is an element of a list as the server spelt it.
type item struct {
	name string
	raw  json.RawMessage
}

// items takes the fleet's groups and the own one out of a list, which may have others that only that server brings.
func items(document []byte, list string) ([]item, error) {
	var whole map[string]json.RawMessage
	if err := json.Unmarshal(document, &whole); err != nil {
		return nil, err
	}
	var elements []json.RawMessage
	if err := json.Unmarshal(whole[list], &elements); err != nil {
		return nil, fmt.Errorf("%s: %w", list, err)
	}
	var found []item
	for _, element := range elements {
		var names struct {
			Name     string
			Metadata struct{ Name string }
		}
		if err := json.Unmarshal(element, &names); err != nil {
			return nil, err
		}
		if name := names.Name + names.Metadata.Name; ours(name) {
			found = append(found, item{name, element})
		}
	}
	return found, nil
}

func ours(group string) bool { return group == ownGroup || strings.HasSuffix(group, fleetDomain) }

// settle waits until everybody in the fleet who answers is listed as Current. It says nothing when that never happens, for the
// comparison then will.
func (t *target) settle() {
	deadline := time.Now().Add(settleLimit)
	for {
		document, err := t.get("/apis", aggregatedType)
		if err == nil && allCurrent(document) || time.Now().After(deadline) {
			return
		}
		time.Sleep(settlePeriod)
	}
}

func allCurrent(document []byte) bool {
	for _, server := range fleet() {
		switch server.mode {
		case modeAggregated, modeLegacy, modeBare, modeBeta, modeBroken:
		default:
			continue
		}
		for _, api := range server.apis {
			if server.name != "mixed" && !api.absent && !isCurrent(document, api) {
				return false
			}
		}
	}
	return true
}

func isCurrent(document []byte, a api) bool {
	found, err := items(document, "items")
	if err != nil {
		return false
	}
	for _, item := range found {
		var group struct {
			Versions []struct{ Version, Freshness string }
		}
		if item.name != a.group || json.Unmarshal(item.raw, &group) != nil {
			continue
		}
		for _, version := range group.Versions {
			if version.Version == a.version && version.Freshness == "Current" {
				return true
			}
		}
	}
	return false
}
