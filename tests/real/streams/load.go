package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	openLimit  = 2 * time.Minute
	eventLimit = 30 * time.Second
	// While the crowd is there, readiness is asked for so often, each time on a new connection and on a kept one.
	readinessPeriod = 20 * time.Millisecond
	requestLimit    = 30 * time.Second
)

// connection is somebody's client with one connection of its own, over HTTP/2.
func connection(certificates string) (*http.Client, error) {
	certificate, err := tls.LoadX509KeyPair(filepath.Join(certificates, "somebody.crt"), filepath.Join(certificates, "somebody.key"))
	if err != nil {
		return nil, err
	}
	roots, err := pool(filepath.Join(certificates, "serving-ca.crt"))
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &http.Transport{
		ForceAttemptHTTP2: true, DisableCompression: true,
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}},
	}}, nil
}

// watchCommand is `streams watch SERVER DIR CONNECTIONS WATCHES-ON-EACH EVENTS`. Prints OPEN when all are, awaits a line on
// its standard input, makes the events one after the other, and prints how long each took to reach every watch. A watch that
// ends or misses an event is a failure.
func watchCommand(arguments []string) error {
	var numbers [3]int
	for index := range numbers {
		number, err := strconv.Atoi(arguments[2+index])
		if err != nil || number < 1 {
			return fmt.Errorf("%q is no number of connections, watches or events", arguments[2+index])
		}
		numbers[index] = number
	}
	connections, each, events := numbers[0], numbers[1], numbers[2]
	w := watchers{seen: make(chan int, connections*each), ended: make(chan error, connections*each)}
	opened := make(chan error, connections)
	for range connections {
		go func() { opened <- w.open(arguments[0], arguments[1], each) }()
	}
	started, late := time.Now(), time.After(openLimit)
	for range connections {
		select {
		case err := <-opened:
			if err != nil {
				return err
			}
		case <-late:
			return fmt.Errorf("the watches were not open after %v", openLimit)
		}
	}
	fmt.Printf("OPEN %d watches on %d connections after %.1f s\n", connections*each, connections, time.Since(started).Seconds())
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	for event := 1; event <= events; event++ {
		if err := w.event(arguments[0], arguments[1], event, connections*each); err != nil {
			return err
		}
	}
	return nil
}

type watchers struct {
	// The resourceVersion of each event that came, from any watch.
	seen  chan int
	ended chan error
}

func (w *watchers) open(server, certificates string, each int) error {
	client, err := connection(certificates)
	if err != nil {
		return err
	}
	for range each {
		response, err := client.Get(server + groupPath + "/namespaces/default/pods?watch=true")
		if err != nil {
			return err
		}
		if response.StatusCode != http.StatusOK || response.ProtoMajor != 2 {
			return fmt.Errorf("a watch was answered %s over %s", response.Status, response.Proto)
		}
		go w.read(response.Body)
	}
	return nil
}

func (w *watchers) read(body io.Reader) {
	decoder := json.NewDecoder(body)
	for {
		var event struct {
			Type   string
			Object metav1.PartialObjectMetadata
		}
		if err := decoder.Decode(&event); err != nil {
			w.ended <- fmt.Errorf("a watch ended: %w", err)
			return
		}
		number, err := strconv.Atoi(event.Object.ResourceVersion)
		if err != nil || event.Type != "MODIFIED" {
			w.ended <- fmt.Errorf("a watch brought %q of version %q", event.Type, event.Object.ResourceVersion)
			return
		}
		w.seen <- number
	}
}

func (w *watchers) event(server, certificates string, number, count int) error {
	client, err := connection(certificates)
	if err != nil {
		return err
	}
	started := time.Now()
	response, err := client.Post(server+groupPath+"/emit", "application/json", nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var reached struct{ Watches int }
	if err := json.NewDecoder(response.Body).Decode(&reached); err != nil || reached.Watches != count {
		return fmt.Errorf("the backend sent the event to %d watches of %d (%v)", reached.Watches, count, err)
	}
	late := time.After(eventLimit)
	for arrived := range count {
		select {
		case came := <-w.seen:
			if came != number {
				return fmt.Errorf("event %d came where %d was due", came, number)
			}
		case err := <-w.ended:
			return err
		case <-late:
			return fmt.Errorf("after %v event %d had reached %d watches of %d", eventLimit, number, arrived, count)
		}
	}
	fmt.Printf("EVENT %d seen by %d watches after %d ms\n", number, count, time.Since(started).Milliseconds())
	return nil
}

// overloadCommand is `streams overload SERVER DIR CONCURRENT CONNECTIONS SECONDS NAP-MS`: so many callers ask for a path that
// takes NAP-MS milliseconds, and each that is sent away comes again when Retry-After says. Every answer has to be 200 or a
// 429 as Kubernetes' clients want it, there must be both, and /readyz has to say 200 all the while.
func overloadCommand(arguments []string) error {
	var numbers [4]int
	for index := range numbers {
		number, err := strconv.Atoi(arguments[2+index])
		if err != nil || number < 1 {
			return fmt.Errorf("%q is no number", arguments[2+index])
		}
		numbers[index] = number
	}
	server, certificates := arguments[0], arguments[1]
	concurrent, connections, length, nap := numbers[0], numbers[1], time.Duration(numbers[2])*time.Second, numbers[3]
	c := crowd{url: fmt.Sprintf("%s%s/slow?ms=%d", server, groupPath, nap), until: time.Now().Add(length), wrong: make(chan error, concurrent+2)}
	var everybody sync.WaitGroup
	for range connections {
		client, err := connection(certificates)
		if err != nil {
			return err
		}
		client.Timeout = requestLimit
		for range concurrent / connections {
			everybody.Go(func() { c.ask(client) })
		}
	}
	var fresh, kept []time.Duration
	everybody.Go(func() { fresh = c.readiness(server, certificates, true) })
	everybody.Go(func() { kept = c.readiness(server, certificates, false) })
	everybody.Wait()
	select {
	case err := <-c.wrong:
		return err
	default:
	}
	fmt.Printf("OVERLOAD %d callers for %v: %d answers 200, %d answers 429\n", concurrent, length, c.served.Load(), c.refused.Load())
	report("new connection", fresh)
	report("kept connection", kept)
	if c.served.Load() == 0 || c.refused.Load() == 0 {
		return fmt.Errorf("both should be there: %d answers 200, %d answers 429", c.served.Load(), c.refused.Load())
	}
	return nil
}

type crowd struct {
	url             string
	until           time.Time
	served, refused atomic.Int64
	wrong           chan error
}

func (c *crowd) ask(client *http.Client) {
	for time.Now().Before(c.until) {
		response, err := client.Get(c.url)
		if err != nil {
			c.wrong <- err
			return
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		switch {
		case err != nil:
			c.wrong <- err
			return
		case response.StatusCode == http.StatusOK:
			c.served.Add(1)
			continue
		}
		wait, err := sentAway(response, body)
		if err != nil {
			c.wrong <- err
			return
		}
		c.refused.Add(1)
		time.Sleep(wait)
	}
}

// sentAway checks a 429, or the 503 of a backend that leaves others no more room, and says when to come again.
func sentAway(response *http.Response, body []byte) (time.Duration, error) {
	var status metav1.Status
	crowded := response.StatusCode == http.StatusServiceUnavailable && cause(body) == "Overloaded"
	if response.StatusCode != http.StatusTooManyRequests && !crowded {
		return 0, fmt.Errorf("neither 200, 429 nor a 503 Overloaded: %s: %s", response.Status, body)
	}
	seconds, err := strconv.Atoi(response.Header.Get("Retry-After"))
	if err != nil || seconds < 1 {
		return 0, fmt.Errorf("a refusal with Retry-After %q", response.Header.Get("Retry-After"))
	}
	reason := metav1.StatusReasonTooManyRequests
	if crowded {
		reason = metav1.StatusReasonServiceUnavailable
	}
	if err := json.Unmarshal(body, &status); err != nil || int(status.Code) != response.StatusCode || status.Reason != reason {
		return 0, fmt.Errorf("a refusal whose body is no such Status: %s", body)
	}
	return time.Duration(seconds) * time.Second, nil
}

func (c *crowd) readiness(server, certificates string, fresh bool) []time.Duration {
	var took []time.Duration
	client, err := connection(certificates)
	for ; err == nil && time.Now().Before(c.until); time.Sleep(readinessPeriod) {
		started := time.Now()
		var response *http.Response
		if response, err = client.Get(server + "/readyz"); err != nil {
			break
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			err = fmt.Errorf("/readyz answered %s", response.Status)
			break
		}
		took = append(took, time.Since(started))
		if fresh {
			client.CloseIdleConnections()
		}
	}
	if err != nil {
		c.wrong <- fmt.Errorf("readiness: %w", err)
	}
	return took
}

func report(what string, took []time.Duration) {
	slices.Sort(took)
	at := func(share float64) float64 {
		if len(took) == 0 {
			return 0
		}
		return float64(took[int(float64(len(took)-1)*share)].Microseconds()) / 1000
	}
	fmt.Printf("READYZ %s: %d answers, p50 %.1f ms, p99 %.1f ms, max %.1f ms\n", what, len(took), at(0.5), at(0.99), at(1))
}
