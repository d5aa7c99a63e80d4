package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	namespace      = "default"
	aggregatedType = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	betaType       = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"
)

// running is a server of the fleet on its port.
type running struct {
	server
	mode     atomic.Value
	requests atomic.Int64
	document []byte
	etag     string
}

// serve runs the whole fleet on free ports of the loopback interface and writes into dir: `manifests/NAME.yaml`, with which
// portico and kube-apiserver find each server, `core/core.yaml` for the one that kube-apiserver cannot have, and last `control`, the URL at which `POST /NAME/MODE` changes how a server answers and `GET /NAME` says how
// often it was asked. Only the front proxy may call the fleet.
func serve(certificates, dir string) error {
	certificate, err := tls.LoadX509KeyPair(filepath.Join(certificates, "fleet.crt"), filepath.Join(certificates, "fleet.key"))
	if err != nil {
		return err
	}
	proxies, err := pool(filepath.Join(certificates, "front-proxy-ca.crt"))
	if err != nil {
		return err
	}
	settings := &tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: proxies, MinVersion: tls.VersionTLS12}
	bundle, err := os.ReadFile(filepath.Join(certificates, "serving-ca.crt"))
	if err != nil {
		return err
	}
	ended := make(chan error)
	servers := map[string]*running{}
	for _, definition := range append(fleet(), core()) {
		started, port, err := start(definition, settings, ended)
		if err != nil {
			return fmt.Errorf("%s: %w", definition.name, err)
		}
		servers[definition.name] = started
		folder := "manifests"
		if definition.apis[0].group == "" {
			folder = "core"
		}
		if err := put(filepath.Join(dir, folder), definition.name+".yaml", manifests(definition, port, bundle)); err != nil {
			return err
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { ended <- http.Serve(listener, control(servers)) }()
	if err := put(dir, "control", "http://"+listener.Addr().String()); err != nil {
		return err
	}
	return <-ended
}

// put writes a file at once, so that whoever awaits it never reads half.
func put(dir, name, content string) error {
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file+".new", []byte(content), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

func pool(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return pool, nil
}

func start(definition server, settings *tls.Config, ended chan<- error) (*running, int, error) {
	started := &running{server: definition}
	started.mode.Store(definition.mode)
	started.document = document(definition)
	started.etag = fmt.Sprintf("%q", fmt.Sprintf("%X", sha256.Sum256(started.document)))
	if definition.mode == modeRefuse {
		port, err := reserve()
		return started, port, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, 0, err
	}
	server := &http.Server{Handler: started, TLSConfig: settings.Clone()}
	go func() { ended <- server.ServeTLS(listener, "", "") }()
	return started, listener.Addr().(*net.TCPAddr).Port, nil
}

// reserve takes a port on which nobody listens, so that connections are refused and nobody else gets it.
func reserve() (int, error) {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, err
	}
	address, err := syscall.Getsockname(socket)
	if err != nil {
		return 0, err
	}
	return address.(*syscall.SockaddrInet4).Port, nil
}

func manifests(definition server, port int, bundle []byte) string {
	var all strings.Builder
	for _, object := range objects(definition, port, bundle) {
		// JSON is YAML.
		all.WriteString("---\n" + text(object) + "\n")
	}
	return all.String()
}

// objects are an ExternalName Service, which every server resolves alike, and the APIServices.
func objects(definition server, port int, bundle []byte) []any {
	service := definition.name + "-fleet"
	all := []any{map[string]any{
		"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"namespace": namespace, "name": service},
		"spec": map[string]any{"type": "ExternalName", "externalName": "localhost", "ports": []any{map[string]any{"port": port, "protocol": "TCP", "targetPort": port}}},
	}}
	for _, api := range definition.apis {
		metadata := map[string]any{"name": api.name()}
		if api.annotations != nil {
			metadata["annotations"] = api.annotations
		}
		all = append(all, map[string]any{
			"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": metadata,
			"spec": map[string]any{
				"group": api.group, "version": api.version, "groupPriorityMinimum": api.groupPriority, "versionPriority": api.versionPriority,
				"service": map[string]any{"namespace": namespace, "name": service, "port": port}, "caBundle": base64.StdEncoding.EncodeToString(bundle),
			},
		})
	}
	return all
}

// document is the aggregated one, put together from text, so that what is odd in it stays so.
func document(definition server) []byte {
	var groups []string
	items := map[string][]string{}
	for _, api := range definition.apis {
		if api.absent {
			continue
		}
		if _, known := items[api.group]; !known {
			groups = append(groups, api.group)
		}
		items[api.group] = append(items[api.group], fmt.Sprintf(`{"version":%q,"resources":%s,"freshness":"Current"}`, api.version, api.aggregated))
	}
	var all []string
	for _, group := range groups {
		all = append(all, fmt.Sprintf(`{"metadata":{"name":%q,"creationTimestamp":null},"versions":[%s]}`, group, strings.Join(items[group], ",")))
	}
	for _, foreign := range definition.foreign {
		all = append(all, text(foreign))
	}
	return []byte(`{"kind":"APIGroupDiscoveryList","apiVersion":"apidiscovery.k8s.io/v2","metadata":{},"items":[` + strings.Join(all, ",") + "]}\n")
}

func text(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(text)
}

func (s *running) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	switch mode := s.mode.Load().(string); {
	case mode == modeHang, mode == modeStuck && s.isDiscovery(r.URL.Path):
		<-r.Context().Done()
	case mode == modeBusy:
		answer(w, http.StatusServiceUnavailable, "application/json", status(http.StatusServiceUnavailable, "busy"))
	case r.URL.Path == "/apis" && s.apis[0].group != "", r.URL.Path == "/api" && s.apis[0].group == "":
		s.groups(w, r, mode)
	default:
		for _, api := range s.apis {
			if r.URL.Path == api.path() {
				answer(w, http.StatusOK, "application/json", fmt.Sprintf(`{"kind":"APIResourceList","apiVersion":"v1","groupVersion":%q,"resources":%s}`+"\n", api.groupVersion(), api.legacy))
				return
			}
		}
		answer(w, http.StatusNotFound, "application/json", status(http.StatusNotFound, "the server could not find the requested resource"))
	}
}

func (s *running) isDiscovery(path string) bool {
	return path == "/apis" || slices.ContainsFunc(s.apis, func(a api) bool { return path == a.path() })
}

func (s *running) groups(w http.ResponseWriter, r *http.Request, mode string) {
	switch mode {
	case modeAggregated:
		w.Header().Set("ETag", s.etag)
		if r.Header.Get("If-None-Match") == s.etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		answer(w, http.StatusOK, aggregatedType, string(s.document))
	case modeLegacy:
		answer(w, http.StatusNotAcceptable, "application/json", status(http.StatusNotAcceptable, "only the following media types are accepted: application/json"))
	case modeBare:
		answer(w, http.StatusNotFound, "text/plain; charset=utf-8", "404 page not found\n")
	case modeBeta:
		answer(w, http.StatusOK, betaType, strings.Replace(string(s.document), "apidiscovery.k8s.io/v2", "apidiscovery.k8s.io/v2beta1", 1))
	case modeGarbled:
		answer(w, http.StatusOK, aggregatedType, string(s.document[:len(s.document)/2]))
	default:
		answer(w, http.StatusInternalServerError, "text/plain; charset=utf-8", "broken\n")
	}
}

func answer(w http.ResponseWriter, code int, contentType, body string) {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(code)
	_, _ = w.Write([]byte(body))
}

func status(code int32, message string) string {
	return text(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: code, Message: message})
}

// control changes modes and counts requests.
func control(servers map[string]*running) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{name}/{mode}", func(w http.ResponseWriter, r *http.Request) {
		server, known := servers[r.PathValue("name")]
		mode := r.PathValue("mode")
		if !known || mode == modeRefuse || server.server.mode == modeRefuse {
			http.Error(w, "no such server, or no mode that it can take", http.StatusNotFound)
			return
		}
		server.mode.Store(mode)
		fmt.Fprintln(w, mode)
	})
	mux.HandleFunc("GET /{name}", func(w http.ResponseWriter, r *http.Request) {
		server, known := servers[r.PathValue("name")]
		if !known {
			http.NotFound(w, r)
			return
		}
		fmt.Fprintln(w, server.requests.Load())
	})
	return mux
}
