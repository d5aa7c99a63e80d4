package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"time"
)

const (
	lingerPeriod = 20 * time.Millisecond
	refusedLimit = time.Minute
)

// linger is `streams linger SERVER DIR`: somebody who asks again and again over one connection. Prints OPEN after his first
// answer, and ends when he is refused; with another connection, or never refused, that is a failure.
func linger(arguments []string) error {
	client, err := connection(arguments[1])
	if err != nil {
		return err
	}
	connections := 0
	trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		if !got.Reused {
			connections++
		}
	}}
	for begun, opened := time.Now(), false; time.Since(begun) < refusedLimit; time.Sleep(lingerPeriod) {
		request, err := http.NewRequest(http.MethodGet, arguments[0]+groupPath+"/namespaces/default/pods/echo", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
		if err != nil {
			return err
		}
		response.Body.Close()
		switch {
		case connections > 1:
			return errors.New("it took another connection")
		case response.StatusCode == http.StatusOK && !opened:
			fmt.Println("OPEN")
			opened = true
		case response.StatusCode != http.StatusOK:
			fmt.Printf("REFUSED %d\n", response.StatusCode)
			return nil
		}
	}
	return fmt.Errorf("not refused within %v", refusedLimit)
}
