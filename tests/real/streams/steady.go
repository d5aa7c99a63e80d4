package main

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// steady is `streams steady SERVER DIR RATE SECONDS`: so many small requests a second, sent when they are due whatever becomes of
// those before, half of them on a connection that is kept and half on new ones. Prints what became of them.
func steady(arguments []string) error {
	rate, seconds, err := rateAndSeconds(arguments[2:4])
	if err != nil {
		return err
	}
	clients, err := drivingClients(arguments[1])
	if err != nil {
		return err
	}
	kept, fresh := clients[0], clients[1]
	fresh.Transport.(*http.Transport).DisableKeepAlives = true
	took := make([]time.Duration, rate*seconds)
	failed, why := 0, ""
	var mutex sync.Mutex
	var all sync.WaitGroup
	begun := time.Now()
	for number := range took {
		due := begun.Add(time.Duration(number) * time.Second / time.Duration(rate))
		time.Sleep(time.Until(due))
		all.Go(func() {
			client := kept
			if number%2 == 1 {
				client = fresh
			}
			err := getOnce(client, arguments[0]+groupPath+"/namespaces/default/pods/echo")
			took[number] = time.Since(due)
			if err != nil {
				mutex.Lock()
				defer mutex.Unlock()
				failed, why = failed+1, withoutAddresses(err)
			}
		})
	}
	all.Wait()
	slices.Sort(took)
	milliseconds := func(share float64) float64 {
		return float64(took[int(share*float64(len(took)-1))].Microseconds()) / 1000
	}
	fmt.Printf("%d failed of %d requests, p50 %.1f ms, p99 %.1f ms %s\n", failed, len(took), milliseconds(0.5), milliseconds(0.99), why)
	return nil
}

func getOnce(client *http.Client, url string) error {
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%d %s", response.StatusCode, cause(text))
	}
	return nil
}
