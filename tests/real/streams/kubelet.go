package main

import (
	"io"
	"net/http"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// logLine is all that a container of serveKubelet's has said.
const logLine = "said by the container\n"

// serveKubelet is what a kube-apiserver asks of a kubelet for pods: logs, and what switches its connection's protocol. It demands
// a client's certificate, since commands are really run.
func serveKubelet(certificates, portFile string) error {
	return listen(certificates, "client-ca.crt", portFile, http.HandlerFunc(kubelet))
}

func kubelet(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	// The kubelet's names for what the API calls stdin, stdout and stderr.
	options := &remotecommand.Options{
		Stdin: query.Get("input") == "1", Stdout: query.Get("output") == "1", Stderr: query.Get("error") == "1", TTY: query.Get("tty") == "1",
	}
	kind, names, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	parts := strings.Split(names, "/")
	switch {
	case kind == "containerLogs" && len(parts) == 3:
		writeLog(w, r)
	case kind == "exec" && len(parts) == 3:
		remotecommand.ServeExec(w, r, runner{}, parts[1], "", parts[2], query["command"], options, streamIdleTimeout, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
	case kind == "attach" && len(parts) == 3:
		remotecommand.ServeAttach(w, r, runner{}, parts[1], "", parts[2], options, streamIdleTimeout, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
	case kind == "portForward" && len(parts) == 2:
		portforward.ServePortForward(w, r, runner{}, parts[1], "", nil, streamIdleTimeout, remotecommand.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
	default:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, "a kubelet has no such path")
	}
}

// writeLog goes on, without another line, as long as somebody follows it.
func writeLog(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	_, _ = io.WriteString(w, logLine)
	if r.URL.Query().Get("follow") == "true" {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}
