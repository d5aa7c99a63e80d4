// discovery is both ends of what tests/real/discovery-* ask of portico's merged discovery, and of kube-apiserver's, and what
// tests/real/front compares both with:
//
//	discovery serve CERTS DIR                    the fleet of extension API servers: see fleet.go and catalogue.go
//	discovery walk SERVER CERTS FORM WIRE        client-go's discovery of a server: see walk.go
//	discovery encode SERVER CERTS                every document in the bytes that upstream's own encoders give: see encode.go
//	discovery facts SERVER CERTS                 all that can be seen of a server's discovery: see facts.go and negotiation.go
//	discovery requests SERVER CERTS FILE         what a server answers to a list of requests: see requests.go
//	discovery conformance SERVER CERTS           client-go goes the steps of Kubernetes' conformance tests: see conformance.go
//	discovery compare FACTS FACTS ALLOWED        what differs between two servers: see compare.go
//
// CERTS is the folder that `streams certs` made, SERVER a URL. Exit status: 0 when everything was as it should be, 1
// otherwise, and then standard error says what was not.
package main

import (
	"fmt"
	"os"
)

func main() {
	commands := map[string]struct {
		arguments int
		run       func([]string) error
	}{
		"serve":       {2, func(a []string) error { return serve(a[0], a[1]) }},
		"walk":        {4, func(a []string) error { return walk(a[0], a[1], a[2], a[3]) }},
		"encode":      {2, func(a []string) error { return encode(a[0], a[1]) }},
		"facts":       {2, func(a []string) error { return facts(a[0], a[1]) }},
		"requests":    {3, func(a []string) error { return requests(a[0], a[1], a[2]) }},
		"conformance": {2, func(a []string) error { return conformance(a[0], a[1]) }},
		"compare":     {3, func(a []string) error { return compare(a[0], a[1], a[2]) }},
	}
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "discovery: which command?")
		os.Exit(2)
	}
	command, known := commands[os.Args[1]]
	if !known || len(os.Args)-2 != command.arguments {
		fmt.Fprintf(os.Stderr, "discovery: unknown command %q or another number of arguments than it takes\n", os.Args[1])
		os.Exit(2)
	}
	if err := command.run(os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "discovery: %v\n", err)
		os.Exit(1)
	}
}
