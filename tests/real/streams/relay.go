package main

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// How long the near end may take to close after the far end has.
const lingerLimit = time.Second

// relay is `streams relay DIR ADDRESS PORT-FILE`: whoever connects to the port it writes down gets what an HTTP/2 connection
// of the admin's to ADDRESS carries, byte by byte. For programs that cannot show a client certificate.
func relay(certificates, address, portFile string) error {
	roots, err := pool(filepath.Join(certificates, "serving-ca.crt"))
	if err != nil {
		return err
	}
	certificate, err := tls.LoadX509KeyPair(filepath.Join(certificates, "admin.crt"), filepath.Join(certificates, "admin.key"))
	if err != nil {
		return err
	}
	config := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2"}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := os.WriteFile(portFile+".new", []byte(strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)), 0o600); err != nil {
		return err
	}
	if err := os.Rename(portFile+".new", portFile); err != nil {
		return err
	}
	for {
		near, err := listener.Accept()
		if err != nil {
			return err
		}
		go carry(near, address, config)
	}
}

// carry is over when the far end has closed and the near end has seen all of it: closing before that, with bytes of the near
// end unread, would reset its connection and could take the far end's last words from it.
func carry(near net.Conn, address string, config *tls.Config) {
	defer near.Close()
	far, err := tls.Dial("tcp", address, config)
	if err != nil {
		return
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		if _, err := io.Copy(far, near); err != nil {
			_, _ = io.Copy(io.Discard, near)
		}
		_ = far.Close()
	}()
	_, _ = io.Copy(near, far)
	_ = near.(*net.TCPConn).CloseWrite()
	_ = near.SetReadDeadline(time.Now().Add(lingerLimit))
	<-over
}
