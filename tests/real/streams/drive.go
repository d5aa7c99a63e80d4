package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// Each with a connection of its own, so that requests that hang are not the client's limit.
	drivers = 8
	// Of ten requests.
	posts = 3
	// After which a request counts as failed.
	driveLimit = 20 * time.Second
)

// drivenReport is what `drive` prints, in one line of JSON.
type drivenReport struct {
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	Over1s   int `json:"over1s"`
	// Requests of which a backend did more than one was asked for.
	Twice int `json:"twice"`
	// In milliseconds.
	P50  float64        `json:"p50"`
	P99  float64        `json:"p99"`
	Most float64        `json:"most"`
	Why  map[string]int `json:"why,omitempty"`
}

// drive is `streams drive SERVER DIR RATE SECONDS LOGS`: so many requests a second, sent when they are due whatever becomes of
// those before, of which three of ten create something and have 1 KiB; LOGS is a folder with what the endpoints write.
func drive(arguments []string) error {
	rate, seconds, err := rateAndSeconds(arguments[2:4])
	if err != nil {
		return err
	}
	clients, err := drivingClients(arguments[1])
	if err != nil {
		return err
	}
	run := strconv.FormatInt(time.Now().UnixNano(), 36)
	report := drivenReport{Requests: rate * seconds, Why: map[string]int{}}
	took := make([]time.Duration, report.Requests)
	var mutex sync.Mutex
	var all sync.WaitGroup
	begun := time.Now()
	for number := range report.Requests {
		due := begun.Add(time.Duration(number) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due))
		all.Go(func() {
			why := driveOnce(clients[number%drivers], arguments[0], fmt.Sprintf("%s-%d", run, number), number%10 < posts)
			took[number] = time.Since(due)
			if why == "" {
				return
			}
			mutex.Lock()
			defer mutex.Unlock()
			report.Failed++
			report.Why[why]++
		})
	}
	all.Wait()
	for _, time := range took {
		if time.Seconds() > 1 {
			report.Over1s++
		}
	}
	slices.Sort(took)
	milliseconds := func(share float64) float64 {
		return float64(took[int(share*float64(len(took)-1))].Microseconds()) / 1000
	}
	report.P50, report.P99, report.Most = milliseconds(0.5), milliseconds(0.99), milliseconds(1)
	if report.Twice, err = doneTwice(arguments[4], run); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}

func rateAndSeconds(arguments []string) (rate, seconds int, err error) {
	if rate, err = strconv.Atoi(arguments[0]); err != nil || rate < 1 {
		return 0, 0, fmt.Errorf("%q is no rate", arguments[0])
	}
	if seconds, err = strconv.Atoi(arguments[1]); err != nil || seconds < 1 {
		return 0, 0, fmt.Errorf("%q is no number of seconds", arguments[1])
	}
	return rate, seconds, nil
}

func drivingClients(certificates string) ([]*http.Client, error) {
	certificate, err := tls.LoadX509KeyPair(filepath.Join(certificates, "admin.crt"), filepath.Join(certificates, "admin.key"))
	if err != nil {
		return nil, err
	}
	roots, err := pool(filepath.Join(certificates, "serving-ca.crt"))
	if err != nil {
		return nil, err
	}
	clients := make([]*http.Client, drivers)
	for index := range clients {
		clients[index] = &http.Client{Timeout: driveLimit, Transport: &http.Transport{
			ForceAttemptHTTP2: true, DisableCompression: true,
			TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}},
		}}
	}
	return clients, nil
}

// driveOnce gives why it failed, in few words; nothing when it did not. An answer to somebody else's request is a failure.
func driveOnce(client *http.Client, server, id string, creates bool) string {
	method, body := http.MethodGet, io.Reader(nil)
	if creates {
		method, body = http.MethodPost, bytes.NewReader(make([]byte, 1024))
	}
	request, err := http.NewRequest(method, server+thingsPath, body)
	if err != nil {
		return err.Error()
	}
	// A client that sends a request again by itself would hide what is looked for.
	request.GetBody = nil
	request.Header.Set(idHeader, id)
	response, err := client.Do(request)
	if err != nil {
		return method + " " + withoutAddresses(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return method + " body: " + withoutAddresses(err)
	case response.StatusCode/100 != 2:
		return fmt.Sprintf("%s %d %s", method, response.StatusCode, cause(text))
	case !bytes.Contains(text, []byte(`"`+id+`"`)):
		return method + " answered with another one's"
	default:
		return ""
	}
}

// cause is the word for it that portico gives, or the reason that a Status has.
func cause(text []byte) string {
	var status struct {
		Reason  string `json:"reason"`
		Details struct {
			Causes []struct {
				Reason string `json:"reason"`
			} `json:"causes"`
		} `json:"details"`
	}
	if json.Unmarshal(text, &status) != nil {
		return strings.TrimSpace(string(text[:min(len(text), 60)]))
	}
	if len(status.Details.Causes) > 0 {
		return status.Details.Causes[0].Reason
	}
	return status.Reason
}

func withoutAddresses(err error) string {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	return err.Error()
}

// doneTwice counts the run's ids that the endpoints wrote down more than once.
func doneTwice(folder, run string) (int, error) {
	logs, err := filepath.Glob(filepath.Join(folder, "*.ids"))
	if err != nil {
		return 0, err
	}
	times, twice := map[string]int{}, 0
	for _, log := range logs {
		text, err := os.ReadFile(log)
		if err != nil {
			return 0, err
		}
		for id := range strings.FieldsSeq(string(text)) {
			if strings.HasPrefix(id, run+"-") {
				times[id]++
			}
		}
	}
	for _, number := range times {
		if number > 1 {
			twice++
		}
	}
	return twice, nil
}
