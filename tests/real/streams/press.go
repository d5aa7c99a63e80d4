package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"
)

const (
	// Callers that share a connection.
	pressEach = 50
	// Until a caller who was told nothing about it comes again.
	pressPause = 100 * time.Millisecond
)

type pressed struct {
	Requests int            `json:"requests"`
	Slowest  float64        `json:"slowest"`
	Answers  map[string]int `json:"answers"`
}

// press is `streams press SERVER DIR CALLERS BYTES SECONDS`: so many callers create something of that size at the only endpoint
// of an API, again and again, and come back when they are told to. Prints how often each answer came, and the milliseconds
// of the slowest.
func press(arguments []string) error {
	var numbers [3]int
	for index := range numbers {
		number, err := strconv.Atoi(arguments[2+index])
		if err != nil || number < 1 {
			return fmt.Errorf("%q is no number", arguments[2+index])
		}
		numbers[index] = number
	}
	callers, size, until := numbers[0], numbers[1], time.Now().Add(time.Duration(numbers[2])*time.Second)
	report := pressed{Answers: map[string]int{}}
	var mutex sync.Mutex
	var all sync.WaitGroup
	var client *http.Client
	for number := range callers {
		if number%pressEach == 0 {
			clients, err := drivingClients(arguments[1])
			if err != nil {
				return err
			}
			client = clients[0]
		}
		mine := client
		all.Go(func() {
			for time.Now().Before(until) {
				begun := time.Now()
				answer, pause := pressOnce(mine, arguments[0], size)
				took := float64(time.Since(begun).Microseconds()) / 1000
				mutex.Lock()
				report.Requests++
				report.Answers[answer]++
				report.Slowest = max(report.Slowest, took)
				mutex.Unlock()
				time.Sleep(pause)
			}
		})
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(report)
}

func pressOnce(client *http.Client, server string, size int) (string, time.Duration) {
	request, err := http.NewRequest(http.MethodPost, server+lonelyPath+thingsOfDefault, bytes.NewReader(make([]byte, size)))
	if err != nil {
		return err.Error(), pressPause
	}
	request.GetBody = nil
	response, err := client.Do(request)
	if err != nil {
		return withoutAddresses(err), pressPause
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return withoutAddresses(err), pressPause
	}
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil {
		return fmt.Sprintf("%d %s", response.StatusCode, cause(text)), time.Duration(seconds) * time.Second
	}
	return fmt.Sprintf("%d %s", response.StatusCode, cause(text)), pressPause
}
