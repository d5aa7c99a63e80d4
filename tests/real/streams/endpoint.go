package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	faultsPath = "/apis/faults.example.com/v1"
	// Of an API that has one endpoint only.
	lonelyPath      = "/apis/lonely.example.com/v1"
	thingsOfDefault = "/namespaces/default/things"
	thingsPath      = faultsPath + thingsOfDefault
	// By it a request is known again at whichever endpoint it comes.
	idHeader = "X-Id"
	// How long requests on the way may take once it is told to end.
	shutdownLimit = 10 * time.Second
)

// endpoint is `streams endpoint DIR ADDRESS LOG GOAWAY-PERCENT`: one of several that are alike. What creates something is
// written to LOG, id by id, before it is answered. After so many of a hundred answers, GOAWAY is sent. TERM ends it as Kubernetes'
// servers end; USR1 has it receive no packet any more, on any connection, without a word to who sends them.
func endpoint(arguments []string) error {
	goawayPercent, err := strconv.ParseFloat(arguments[3], 64)
	if err != nil {
		return fmt.Errorf("%q is no percentage", arguments[3])
	}
	log, err := os.OpenFile(arguments[2], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	certificate, err := tls.LoadX509KeyPair(filepath.Join(arguments[0], "backend.crt"), filepath.Join(arguments[0], "backend.key"))
	if err != nil {
		return err
	}
	callers, err := pool(filepath.Join(arguments[0], "front-proxy-ca.crt"))
	if err != nil {
		return err
	}
	plain, err := net.Listen("tcp", arguments[1])
	if err != nil {
		return err
	}
	open := &sockets{TCPListener: plain.(*net.TCPListener)}
	server := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, ClientCAs: callers, ClientAuth: tls.RequireAndVerifyClientCert},
		Handler: http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
			if rand.Float64()*100 < goawayPercent {
				response.Header().Set("Connection", "close")
			}
			serveThing(response, request, log)
		}),
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1)
	ended := make(chan error, 1)
	go func() {
		for received := range signals {
			if received == syscall.SIGUSR1 {
				open.deafen()
				continue
			}
			limit, cancel := context.WithTimeout(context.Background(), shutdownLimit)
			ended <- server.Shutdown(limit)
			cancel()
		}
	}()
	if err := server.ServeTLS(open, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-ended
}

func serveThing(response http.ResponseWriter, request *http.Request, log *os.File) {
	response.Header().Set("Content-Type", "application/json")
	switch {
	case request.URL.Path == faultsPath || request.URL.Path == lonelyPath:
		fmt.Fprintf(response, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":%q,"resources":[`+
			`{"name":"things","singularName":"thing","namespaced":true,"kind":"Thing","verbs":["get","create"]}]}`,
			strings.TrimPrefix(request.URL.Path, "/apis/"))
	case request.URL.Path != thingsPath && request.URL.Path != lonelyPath+thingsOfDefault:
		response.WriteHeader(http.StatusNotFound)
		fmt.Fprint(response, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
	case request.Method == http.MethodPost:
		if _, err := io.Copy(io.Discard, request.Body); err != nil {
			return
		}
		// One write, so that lines do not mix.
		if _, err := fmt.Fprintln(log, request.Header.Get(idHeader)); err != nil {
			response.WriteHeader(http.StatusInternalServerError)
			return
		}
		response.WriteHeader(http.StatusCreated)
		fmt.Fprintf(response, `{"kind":"Thing","id":%q}`, request.Header.Get(idHeader))
	default:
		fmt.Fprintf(response, `{"kind":"Thing","id":%q,"padding":%q}`, request.Header.Get(idHeader), strings.Repeat("x", 1024))
	}
}

// sockets are the listener's and those of its connections.
type sockets struct {
	*net.TCPListener
	mutex sync.Mutex
	open  []*net.TCPConn
}

func (s *sockets) Accept() (net.Conn, error) {
	accepted, err := s.AcceptTCP()
	if err != nil {
		return nil, err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.open = append(s.open, accepted)
	return accepted, nil
}

// deafen has the kernel drop what comes, before TCP sees it: nothing is acknowledged, and nothing refused.
func (s *sockets) deafen() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, socket := range append([]*net.TCPConn(nil), s.open...) {
		drop(socket)
	}
	drop(s.TCPListener)
}

func drop(socket syscall.Conn) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return
	}
	// One instruction: of each packet, nothing is let in.
	const returnConstant = 0x06
	_ = raw.Control(func(descriptor uintptr) {
		if err := syscall.AttachLsf(int(descriptor), []syscall.SockFilter{{Code: returnConstant}}); err != nil && !errors.Is(err, syscall.EBADF) {
			fmt.Fprintf(os.Stderr, "streams: packets are not dropped: %v\n", err)
		}
	})
}
