package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/websocket"
	clientexec "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

const (
	tunnelLimit = 60 * time.Second
	bulkLimit   = 10 * time.Minute
	// Each tunnel's lines go to and fro so often while all are open.
	rounds = 5
)

// execCommand is `streams exec SERVER DIR TRANSPORT MODE [ARGUMENT]`; TRANSPORT is spdy, websocket or fallback (kubectl's: a
// WebSocket, and SPDY where that is refused). The modes:
//
//	echo         a few lines to and fro, standard error, and an exit status
//	many N       N tunnels at once, lines to and fro on each while all are open. Prints OPEN when they are, then awaits a line
//	             on its own standard input
//	bulk BYTES   that many bytes to the backend and back
//	refused      the backend's 403 comes through with its message, which is all that client-go makes of it
//	not101       the backend's 200 ends in an error
//	token TOKEN  a bearer token among the WebSocket's subprotocols counts as credential
func execCommand(arguments []string) error {
	config, err := clientConfig(arguments[0], arguments[1])
	if err != nil {
		return err
	}
	c := client{config, arguments[2]}
	argument := ""
	if len(arguments) > 4 {
		argument = arguments[4]
	}
	switch mode := arguments[3]; mode {
	case "echo":
		return c.echo()
	case "many", "bulk":
		number, err := strconv.ParseInt(argument, 10, 64)
		if err != nil || number < 1 {
			return fmt.Errorf("%s: how many?", mode)
		}
		if mode == "many" {
			return c.many(int(number))
		}
		return c.bulk(number)
	case "refused":
		return c.refused()
	case "not101":
		return c.not101()
	case "token":
		return c.token(argument)
	default:
		return fmt.Errorf("unknown mode %q", mode)
	}
}

func clientConfig(server, certificates string) (*rest.Config, error) {
	address, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	return &rest.Config{Host: address.String(), TLSClientConfig: rest.TLSClientConfig{
		CAFile: filepath.Join(certificates, "serving-ca.crt"), CertFile: filepath.Join(certificates, "admin.crt"), KeyFile: filepath.Join(certificates, "admin.key"),
	}}, nil
}

type client struct {
	config    *rest.Config
	transport string
}

func (c client) url(pod string, command ...string) string {
	query := url.Values{"stdin": {"true"}, "stdout": {"true"}, "stderr": {"true"}, "command": command}
	return c.config.Host + groupPath + "/namespaces/default/pods/" + pod + "/exec?" + query.Encode()
}

func (c client) executor(pod string, command ...string) (remotecommand.Executor, error) {
	text := c.url(pod, command...)
	address, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	spdy, err := remotecommand.NewSPDYExecutor(c.config, http.MethodPost, address)
	if err != nil || c.transport == "spdy" {
		return spdy, err
	}
	webSocket, err := remotecommand.NewWebSocketExecutor(c.config, http.MethodGet, text)
	if err != nil || c.transport == "websocket" {
		return webSocket, err
	}
	if c.transport != "fallback" {
		return nil, fmt.Errorf("unknown transport %q", c.transport)
	}
	return remotecommand.NewFallbackExecutor(webSocket, spdy, func(err error) bool { return httpstream.IsUpgradeFailure(err) })
}

func (c client) run(limit time.Duration, in io.Reader, out, errs io.Writer, pod string, command ...string) error {
	executor, err := c.executor(pod, command...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: errs})
}

func (c client) echo() error {
	pod := "echo"
	if c.transport == "fallback" {
		pod = podSPDYOnly
	}
	sent := "one\ntwo\n\x00\xff three\n"
	var out, errs bytes.Buffer
	if err := c.run(tunnelLimit, strings.NewReader(sent), &out, &errs, pod, "sh", "-c", "cat; echo heard >&2"); err != nil {
		return err
	}
	if out.String() != sent || errs.String() != "heard\n" {
		return fmt.Errorf("sent %q, came back %q, on standard error %q", sent, out.String(), errs.String())
	}
	err := c.run(tunnelLimit, strings.NewReader(""), io.Discard, io.Discard, pod, "sh", "-c", "exit 3")
	var exit clientexec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 3 {
		return fmt.Errorf("the exit status was 3; the client saw %v", err)
	}
	return nil
}

// many keeps number tunnels open at once, which the barrier after the first round shows.
func (c client) many(number int) error {
	failures := make(chan error, number)
	var first sync.WaitGroup
	first.Add(number)
	goOn := make(chan struct{})
	for index := range number {
		go func() { failures <- c.converse(index, first.Done, goOn) }()
	}
	opened := make(chan struct{})
	go func() { first.Wait(); close(opened) }()
	// A tunnel that fails before its first round ends the wait, for it says why.
	select {
	case <-opened:
		fmt.Println("OPEN", number)
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		close(goOn)
	case err := <-failures:
		return fmt.Errorf("before all were open: %w", err)
	case <-time.After(tunnelLimit):
		return fmt.Errorf("%d tunnels were not open after %v", number, tunnelLimit)
	}
	for range number {
		if err := <-failures; err != nil {
			return err
		}
	}
	fmt.Println("DONE", number)
	return nil
}

func (c client) converse(index int, opened func(), goOn <-chan struct{}) error {
	toThem, in := io.Pipe()
	out, fromThem := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := c.run(2*tunnelLimit, toThem, fromThem, io.Discard, "echo", "cat")
		_ = fromThem.CloseWithError(io.ErrUnexpectedEOF)
		ended <- err
	}()
	answers := bufio.NewReader(out)
	for round := range rounds {
		line := fmt.Sprintf("tunnel %d, round %d, %d\n", index, round, rand.Uint64())
		if _, err := io.WriteString(in, line); err != nil {
			return fmt.Errorf("tunnel %d: %w", index, err)
		}
		if answer, err := answers.ReadString('\n'); err != nil || answer != line {
			return fmt.Errorf("tunnel %d: sent %q, came back %q (%v; the end: %v)", index, line, answer, err, soon(ended))
		}
		if round == 0 {
			opened()
			<-goOn
		}
	}
	_ = in.Close()
	return <-ended
}

func soon(ended <-chan error) error {
	select {
	case err := <-ended:
		return err
	case <-time.After(time.Second):
		return nil
	}
}

// bulk sends bytes that do not repeat, and compares what comes back while it comes.
func (c client) bulk(size int64) error {
	seed := [32]byte{1}
	back := &comparison{expected: io.LimitReader(rand.NewChaCha8(seed), size)}
	started := time.Now()
	if err := c.run(bulkLimit, io.LimitReader(rand.NewChaCha8(seed), size), back, io.Discard, "echo", "cat"); err != nil {
		return err
	}
	if back.seen != size {
		return fmt.Errorf("of %d bytes %d came back", size, back.seen)
	}
	took := time.Since(started)
	fmt.Printf("BULK %d bytes there and back in %.1f s: %.0f MB/s each way\n", size, took.Seconds(), float64(size)/1e6/took.Seconds())
	return nil
}

// comparison is a writer that takes only what is expected.
type comparison struct {
	expected io.Reader
	seen     int64
}

func (c *comparison) Write(came []byte) (int, error) {
	expected := make([]byte, len(came))
	if _, err := io.ReadFull(c.expected, expected); err != nil || !bytes.Equal(came, expected) {
		return 0, fmt.Errorf("other bytes came back, somewhere in the %d after the first %d", len(came), c.seen)
	}
	c.seen += int64(len(came))
	return len(came), nil
}

func (c client) refused() error {
	err := c.run(tunnelLimit, strings.NewReader(""), io.Discard, io.Discard, podRefusing, "cat")
	const message = `pods "refusing" is forbidden: it takes no streams`
	switch {
	case err == nil:
		return errors.New("it was not refused")
	case !strings.Contains(err.Error(), message):
		return fmt.Errorf("the backend's message is missing: %w", err)
	}
	fmt.Println("REFUSED", err)
	return nil
}

func (c client) not101() error {
	err := c.run(tunnelLimit, strings.NewReader(""), io.Discard, io.Discard, podNot101, "cat")
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("a 200 instead of a 101 should end in an error at once, not in: %v", err)
	}
	fmt.Println("NOT101", err)
	return nil
}

// token has no client certificate, only the subprotocol that browsers have to use, because they can set no headers.
func (c client) token(token string) error {
	attempt := func(token string) error {
		config := rest.AnonymousClientConfig(c.config)
		transport, holder, err := websocket.RoundTripperFor(config)
		if err != nil {
			return err
		}
		request, err := http.NewRequest(http.MethodGet, c.url("echo", "true"), nil)
		if err != nil {
			return err
		}
		protocol := "base64url.bearer.authorization.k8s.io." + base64.RawURLEncoding.EncodeToString([]byte(token))
		conn, err := websocket.Negotiate(transport, holder, request, protocol, "v5.channel.k8s.io")
		if err != nil {
			return err
		}
		defer conn.Close()
		if conn.Subprotocol() != "v5.channel.k8s.io" {
			return fmt.Errorf("the chosen subprotocol is %q", conn.Subprotocol())
		}
		return nil
	}
	if err := attempt(token); err != nil {
		return fmt.Errorf("the token was not taken: %w", err)
	}
	if err := attempt(token + "x"); err == nil {
		return errors.New("a wrong token was taken")
	}
	return nil
}
