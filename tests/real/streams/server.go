package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// What the pods' names mean.
const (
	// Answers 403 with a Status to whatever is asked of its streams.
	podRefusing = "refusing"
	// Answers 200 where 101 would be due.
	podNot101 = "not101"
	// Refuses WebSockets, as servers of old do; kubectl then falls back to SPDY.
	podSPDYOnly = "spdy-only"
)

const (
	streamIdleTimeout  = 4 * time.Hour
	napLongest         = 30 * time.Second
	watchEventsWaiting = 16
)

type server struct {
	mutex   sync.Mutex
	watches map[chan []byte]struct{}
	events  int
}

// serve is the extension API server; only the front proxy may call it.
func serve(certificates, portFile string) error {
	s := &server{watches: map[chan []byte]struct{}{}}
	return listen(certificates, "front-proxy-ca.crt", portFile, http.HandlerFunc(s.handle))
}

// listen serves on a free port of the loopback interface, writes its number to portFile, and demands a certificate of this
// authority of whoever calls.
func listen(certificates, authority, portFile string, handler http.Handler) error {
	certificate, err := tls.LoadX509KeyPair(filepath.Join(certificates, "backend.crt"), filepath.Join(certificates, "backend.key"))
	if err != nil {
		return err
	}
	callers, err := pool(filepath.Join(certificates, authority))
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	port := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	if err := os.WriteFile(portFile+".new", []byte(port), 0o600); err != nil {
		return err
	}
	if err := os.Rename(portFile+".new", portFile); err != nil {
		return err
	}
	return (&http.Server{
		Handler:   handler,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: callers, MinVersion: tls.VersionTLS12},
	}).ServeTLS(listener, "", "")
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

func (s *server) handle(w http.ResponseWriter, r *http.Request) {
	path, ours := strings.CutPrefix(r.URL.Path, groupPath)
	if !ours {
		path, ours = strings.CutPrefix(r.URL.Path, "/api/v1")
	}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case r.URL.Path == "/api":
		answer(w, http.StatusOK, metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions", APIVersion: "v1"}, Versions: []string{"v1"}})
	case !ours:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, "the server could not find the requested resource")
	case path == "":
		answer(w, http.StatusOK, resources(r.URL.Path))
	case path == "/slow":
		nap(w, r)
	case path == "/large":
		fill(w, r)
	case path == "/sink":
		sink(w, r)
	case path == "/emit" && r.Method == http.MethodPost:
		answer(w, http.StatusOK, map[string]int{"watches": s.emit()})
	case len(parts) == 3 && parts[2] == "pods" && r.URL.Query().Get("watch") != "":
		s.watch(w, r)
	case len(parts) == 4 && parts[2] == "pods" && r.Method == http.MethodGet:
		answer(w, http.StatusOK, pod(parts[1], parts[3]))
	case len(parts) == 5 && parts[2] == "pods":
		stream(w, r, parts[3], parts[4])
	default:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, "the server could not find the requested resource")
	}
}

func answer(w http.ResponseWriter, code int, document any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(document)
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	answer(w, code, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message})
}

func resources(path string) metav1.APIResourceList {
	groupVersion := "v1"
	if path == groupPath {
		groupVersion = group + "/" + version
	}
	list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: groupVersion}
	list.APIResources = append(list.APIResources, metav1.APIResource{Name: "pods", SingularName: "pod", Namespaced: true, Kind: "Pod", Verbs: metav1.Verbs{"get", "list", "watch"}})
	for name, kind := range map[string]string{"exec": "PodExecOptions", "attach": "PodAttachOptions", "portforward": "PodPortForwardOptions"} {
		list.APIResources = append(list.APIResources, metav1.APIResource{Name: "pods/" + name, Namespaced: true, Kind: kind, Verbs: metav1.Verbs{"create", "get"}})
	}
	return list
}

func pod(namespace, name string) corev1.Pod {
	return corev1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name)},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "none", Stdin: true}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

// nap answers after ?ms= milliseconds, or not at all when the caller is gone before.
func nap(w http.ResponseWriter, r *http.Request) {
	milliseconds, err := strconv.Atoi(r.URL.Query().Get("ms"))
	length := time.Duration(milliseconds) * time.Millisecond
	if err != nil || length < 0 || length > napLongest {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, "ms is a number of milliseconds")
		return
	}
	select {
	case <-time.After(length):
		answer(w, http.StatusOK, map[string]string{"slept": length.String()})
	case <-r.Context().Done():
	}
}

// fill answers with ?bytes= bytes.
func fill(w http.ResponseWriter, r *http.Request) {
	left, err := strconv.Atoi(r.URL.Query().Get("bytes"))
	if err != nil || left < 0 {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, "bytes is a number of bytes")
		return
	}
	piece := bytes.Repeat([]byte("x"), 64<<10)
	for ; left > 0 && err == nil; left -= len(piece) {
		_, err = w.Write(piece[:min(left, len(piece))])
	}
}

// sink reads what comes, and says how much that was.
func sink(w http.ResponseWriter, r *http.Request) {
	read, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		return
	}
	answer(w, http.StatusOK, map[string]int64{"bytes": read})
}

// --- watches -----------------------------------------------------------------------------------------------------------

func (s *server) watch(w http.ResponseWriter, r *http.Request) {
	events := make(chan []byte, watchEventsWaiting)
	s.mutex.Lock()
	s.watches[events] = struct{}{}
	s.mutex.Unlock()
	defer func() {
		s.mutex.Lock()
		delete(s.watches, events)
		s.mutex.Unlock()
	}()
	w.Header().Set("Content-Type", "application/json")
	flusher := http.NewResponseController(w)
	_ = flusher.Flush()
	if r.URL.Query().Get("floods") != "" {
		// As fast as they are taken.
		event := append(bytes.Repeat([]byte(" "), 16<<10), '\n')
		for err := error(nil); err == nil; _, err = w.Write(event) {
		}
		return
	}
	for {
		select {
		case event := <-events:
			if _, err := w.Write(event); err != nil || flusher.Flush() != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// emit sends one event to every watch and says to how many. One that does not take its events loses them, and the client
// that counts finds out.
func (s *server) emit() int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.events++
	object := pod("default", "echo")
	object.ResourceVersion = strconv.Itoa(s.events)
	event, err := json.Marshal(map[string]any{"type": "MODIFIED", "object": object})
	if err != nil {
		panic(err)
	}
	event = append(event, '\n')
	reached := 0
	for events := range s.watches {
		select {
		case events <- event:
			reached++
		default:
		}
	}
	return reached
}

// --- streams -----------------------------------------------------------------------------------------------------------

func stream(w http.ResponseWriter, r *http.Request, name, kind string) {
	query := r.URL.Query()
	options := &remotecommand.Options{
		Stdin: query.Get("stdin") == "true", Stdout: query.Get("stdout") == "true", Stderr: query.Get("stderr") == "true", TTY: query.Get("tty") == "true",
	}
	webSocket := wsstream.IsWebSocketRequest(r)
	switch {
	case strings.Contains(strings.ToLower(strings.Join(r.Header.Values("Sec-Websocket-Protocol"), ",")), "bearer.authorization") || r.Header.Get("Authorization") != "":
		refuse(w, http.StatusInternalServerError, metav1.StatusReasonInternalError, "the caller's token was passed on")
	case r.Header.Get("X-Remote-User") == "":
		refuse(w, http.StatusUnauthorized, metav1.StatusReasonUnauthorized, "nobody")
	case name == podRefusing:
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, `pods "refusing" is forbidden: it takes no streams`)
	case name == podNot101:
		answer(w, http.StatusOK, map[string]string{"message": "no switch"})
	case webSocket && (name == podSPDYOnly || kind == "portforward"):
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, "no WebSocket here")
	case kind == "exec" && webSocket:
		serveWebSocket(w, r, options, query["command"])
	case kind == "exec":
		remotecommand.ServeExec(w, r, runner{}, name, "", "main", query["command"], options, streamIdleTimeout, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
	case kind == "attach" && webSocket:
		serveWebSocket(w, r, options, []string{"cat"})
	case kind == "attach":
		remotecommand.ServeAttach(w, r, runner{}, name, "", "main", options, streamIdleTimeout, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
	case kind == "portforward":
		portforward.ServePortForward(w, r, runner{}, name, "", nil, streamIdleTimeout, remotecommand.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
	default:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, "no such subresource")
	}
}

// serveWebSocket does what kube-apiserver does in front of a kubelet: the fifth version of the protocol, which the kubelet's
// own server has not.
func serveWebSocket(w http.ResponseWriter, r *http.Request, options *remotecommand.Options, command []string) {
	kinds := []wsstream.ChannelType{wsstream.ReadChannel, wsstream.WriteChannel, wsstream.WriteChannel, wsstream.WriteChannel, wsstream.ReadChannel}
	for channel, asked := range []bool{options.Stdin, options.Stdout, options.Stderr} {
		if !asked {
			kinds[channel] = wsstream.IgnoreChannel
		}
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{remotecommand.StreamProtocolV5Name: {Binary: true, Channels: kinds}})
	conn.SetIdleTimeout(streamIdleTimeout)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		fmt.Fprintln(os.Stderr, "no WebSocket:", err)
		return
	}
	defer conn.Close()
	status := metav1.Status{Status: metav1.StatusSuccess}
	err = runner{}.ExecInContainer(r.Context(), "", "", "", command, streams[remotecommand.StreamStdIn], streams[remotecommand.StreamStdOut], streams[remotecommand.StreamStdErr], options.TTY, nil, 0)
	var exit utilexec.ExitError
	switch {
	case errors.As(err, &exit):
		status = metav1.Status{Status: metav1.StatusFailure, Reason: remotecommand.NonZeroExitCodeReason, Message: err.Error(), Details: &metav1.StatusDetails{
			Causes: []metav1.StatusCause{{Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.ExitStatus())}},
		}}
	case err != nil:
		status = metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Message: err.Error()}
	}
	_ = json.NewEncoder(streams[remotecommand.StreamErr]).Encode(status)
}

// runner really runs commands, so that kubectl's own (tar, for `kubectl cp`) work.
type runner struct{}

func (runner) ExecInContainer(ctx context.Context, _, _, _ string, command []string, in io.Reader, out, errs io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	if len(command) == 0 {
		return errors.New("which command?")
	}
	process := exec.CommandContext(ctx, command[0], command[1:]...)
	if in != nil {
		// Not process.Stdin: waiting for the process would then wait for the client to end its input too.
		pipe, err := process.StdinPipe()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(pipe, in)
			_ = pipe.Close()
		}()
	}
	if out != nil {
		process.Stdout = out
	}
	if errs != nil {
		process.Stderr = errs
	}
	err := process.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return utilexec.CodeExitError{Err: err, Code: exit.ExitCode()}
	}
	return err
}

func (runner) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, errs io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	return runner{}.ExecInContainer(ctx, "", "", "", []string{"cat"}, in, out, errs, false, nil, 0)
}

// PortForward is an HTTP server that knows only its port's number.
func (runner) PortForward(_ context.Context, _, _ string, port int32, data io.ReadWriteCloser) error {
	request, err := http.ReadRequest(bufio.NewReader(data))
	if err != nil {
		return err
	}
	text := fmt.Sprintf("port %d: %s\n", port, request.URL.Path)
	_, err = fmt.Fprintf(data, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text)
	return err
}
