// streams is both ends of what the tests in tests/real send through portico:
//
//	streams certs DIR                     authorities and a certificate for each part
//	streams serve DIR PORT-FILE           an extension API server; commands are really run, so only the front proxy may call it
//	streams kubelet DIR PORT-FILE         what a kube-apiserver asks of a kubelet: see kubelet.go
//	streams exec SERVER DIR TRANSPORT …   client-go's remote command clients: see exec.go
//	streams watch SERVER DIR …            thousands of watches and one event to all: see load.go
//	streams overload SERVER DIR …         more requests than are let in: see load.go
//	streams relay DIR ADDRESS PORT-FILE   the admin's connections for those who cannot show a certificate
//	streams endpoint DIR ADDRESS …        one of several endpoints that freeze, fall silent and are restarted: see endpoint.go
//	streams drive SERVER DIR …            a steady load on those, and what became of it: see drive.go
//	streams press SERVER DIR …            a thousand callers of an API whose only endpoint is frozen: see press.go
//	streams linger SERVER DIR             somebody who is refused on a connection that he has: see linger.go
//	streams attack SERVER DIR KIND …      clients that misbehave: see attack.go
//	streams steady SERVER DIR …           one that behaves, and what it got meanwhile: see steady.go
//
// DIR is the folder with the certificates, SERVER is portico's URL. Exit status: 0 when everything was as it should be, 1
// otherwise, and then the last line on standard error says what was not.
package main

import (
	"fmt"
	"os"
)

const (
	group   = "streams.example.com"
	version = "v1"
	// Where its own API is; the core API's is /api/v1, so that kubectl finds pods there.
	groupPath = "/apis/" + group + "/" + version
)

func main() {
	commands := map[string]struct {
		arguments int
		run       func([]string) error
	}{
		"certs":    {1, func(a []string) error { return makeCertificates(a[0]) }},
		"serve":    {2, func(a []string) error { return serve(a[0], a[1]) }},
		"kubelet":  {2, func(a []string) error { return serveKubelet(a[0], a[1]) }},
		"exec":     {4, execCommand},
		"watch":    {5, watchCommand},
		"overload": {6, overloadCommand},
		"endpoint": {4, endpoint},
		"drive":    {5, drive},
		"press":    {5, press},
		"linger":   {2, linger},
		"attack":   {5, attack},
		"steady":   {4, steady},
		"relay":    {3, func(a []string) error { return relay(a[0], a[1], a[2]) }},
	}
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "streams: which command?")
		os.Exit(2)
	}
	command, known := commands[os.Args[1]]
	if !known || len(os.Args)-2 < command.arguments {
		fmt.Fprintf(os.Stderr, "streams: unknown command %q or too few arguments\n", os.Args[1])
		os.Exit(2)
	}
	if err := command.run(os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "streams: %v\n", err)
		os.Exit(1)
	}
}
