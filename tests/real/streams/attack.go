package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	// How long a connection may take to be there.
	attackDialLimit = 10 * time.Second
	// Between two bytes of those who are slow.
	dripPeriod = 200 * time.Millisecond
	// Between two requests of those who are patient with their resets.
	pacePeriod = 100 * time.Microsecond
	// Frames, or pairs of them, that are written at a time.
	attackBatch = 20
	// Streams that are opened on a connection: as many as portico allows.
	attackStreams = 100
	// Connections that are dialled at a time.
	attackDialers = 64
)

// attacks are what one connection does until it is over: `http/1.1` or `h2`, and what is sent on it after the handshake.
var attacks = map[string]struct {
	protocol string
	run      func(*attacker) error
}{
	"rapid-reset":     {"h2", (*attacker).rapidReset},
	"paced-reset":     {"h2", (*attacker).pacedReset},
	"made-you-reset":  {"h2", (*attacker).madeYouReset},
	"continuation":    {"h2", (*attacker).continuations},
	"ping":            {"h2", (*attacker).pings},
	"settings":        {"h2", (*attacker).settings},
	"empty-data":      {"h2", (*attacker).emptyData},
	"tiny-window":     {"h2", (*attacker).tinyWindows},
	"no-window":       {"h2", (*attacker).noWindows},
	"no-window-watch": {"h2", (*attacker).noWindowsForWatches},
	"no-read":         {"h2", (*attacker).noReading},
	"no-read-1":       {"http/1.1", (*attacker).noReading1},
	"slow-headers":    {"h2", (*attacker).slowHeaders},
	"slow-headers-1":  {"http/1.1", (*attacker).slowHeaders1},
	"slow-body":       {"h2", (*attacker).slowBody},
	"slow-body-1":     {"http/1.1", (*attacker).slowBody1},
	"idle":            {"h2", (*attacker).idle},
	"idle-1":          {"http/1.1", (*attacker).idle},
	"silent":          {"", (*attacker).idle},
	"vanished":        {"h2", (*attacker).vanish},
	"vanished-1":      {"http/1.1", (*attacker).vanish1},
}

// attack is `streams attack SERVER DIR KIND CONNECTIONS SECONDS`: so many connections do what KIND says for so long, each anew
// when it is ended. Printed is what was sent, and how connections ended; those that are open at the end close.
func attack(arguments []string) error {
	kind, known := attacks[arguments[2]]
	if !known {
		return fmt.Errorf("unknown attack %q", arguments[2])
	}
	connections, err := strconv.Atoi(arguments[3])
	if err != nil || connections < 1 {
		return fmt.Errorf("%q is no number of connections", arguments[3])
	}
	seconds, err := strconv.Atoi(arguments[4])
	if err != nil || seconds < 1 {
		return fmt.Errorf("%q is no number of seconds", arguments[4])
	}
	certificate, err := tls.LoadX509KeyPair(filepath.Join(arguments[1], "somebody.crt"), filepath.Join(arguments[1], "somebody.key"))
	if err != nil {
		return err
	}
	roots, err := pool(filepath.Join(arguments[1], "serving-ca.crt"))
	if err != nil {
		return err
	}
	b := battle{
		address: strings.TrimPrefix(arguments[0], "https://"), protocol: kind.protocol, run: kind.run, ends: map[string]int{},
		until: time.Now().Add(time.Duration(seconds) * time.Second), dialling: make(chan struct{}, attackDialers),
		config: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}, NextProtos: []string{kind.protocol}},
	}
	var all sync.WaitGroup
	for range connections {
		all.Go(b.fight)
	}
	all.Wait()
	b.report()
	return nil
}

type battle struct {
	address, protocol string
	config            *tls.Config
	run               func(*attacker) error
	until             time.Time
	dialling          chan struct{}
	sent, dialled     atomic.Int64
	mutex             sync.Mutex
	ends              map[string]int
}

func (b *battle) fight() {
	for time.Now().Before(b.until) {
		a, err := b.dial()
		end := ""
		if err != nil {
			end = "not connected: " + withoutAddresses(err)
			// A refusal is at once; attackers in a hurry would measure their own machine.
			time.Sleep(dripPeriod)
		} else {
			end = a.fight(b.until)
		}
		b.mutex.Lock()
		b.ends[end]++
		b.mutex.Unlock()
	}
}

func (b *battle) report() {
	var ends []string
	for end, count := range b.ends {
		ends = append(ends, fmt.Sprintf("%d %s", count, end))
	}
	slices.Sort(ends)
	fmt.Printf("%d connections, %d sent; %s\n", b.dialled.Load(), b.sent.Load(), strings.Join(ends, "; "))
}

func (b *battle) dial() (*attacker, error) {
	b.dialling <- struct{}{}
	defer func() { <-b.dialling }()
	plain, err := net.DialTimeout("tcp", b.address, attackDialLimit)
	if err != nil {
		return nil, err
	}
	a := &attacker{battle: b, plain: plain.(*net.TCPConn), conn: plain, over: make(chan struct{}), resets: map[http2.ErrCode]bool{}}
	b.dialled.Add(1)
	if b.protocol == "" {
		return a, nil
	}
	config := b.config.Clone()
	config.ServerName = "localhost"
	secured := tls.Client(plain, config)
	_ = plain.SetDeadline(time.Now().Add(attackDialLimit))
	if err := secured.Handshake(); err != nil {
		plain.Close()
		return nil, err
	}
	_ = plain.SetDeadline(time.Time{})
	a.conn = secured
	a.writer = bufio.NewWriterSize(secured, 16<<10)
	a.framer = http2.NewFramer(a.writer, secured)
	a.framer.AllowIllegalWrites = true
	a.encoder = hpack.NewEncoder(&a.block)
	return a, nil
}

// attacker is one connection. What is sent is its own goroutine's to send; what comes is read by another one.
type attacker struct {
	*battle
	plain   *net.TCPConn
	conn    net.Conn
	writer  *bufio.Writer
	framer  *http2.Framer
	encoder *hpack.Encoder
	block   bytes.Buffer
	last    uint32
	unread  bool
	// The windows that the server is told of in the settings; what HTTP/2 begins with when 0.
	window uint32
	over   chan struct{}
	// Held while frames are written, which may take for ever.
	writing sync.Mutex
	mutex   sync.Mutex
	end     string
	resets  map[http2.ErrCode]bool
}

// fight gives how the connection ended.
func (a *attacker) fight(until time.Time) string {
	defer a.conn.Close()
	if a.protocol == "h2" {
		_, _ = a.writer.WriteString(http2.ClientPreface)
	}
	failed := make(chan error, 1)
	go func() { failed <- a.run(a) }()
	left := time.After(time.Until(until))
	select {
	case <-a.over:
	case <-left:
		a.mutex.Lock()
		defer a.mutex.Unlock()
		return "open at the end" + a.resetsText()
	case <-failed:
		// What ended it may be on its way.
		select {
		case <-a.over:
		case <-time.After(time.Second):
			return "closed while written to"
		}
	}
	a.mutex.Lock()
	defer a.mutex.Unlock()
	return a.end + a.resetsText()
}

func (a *attacker) resetsText() string {
	var texts []string
	for code := range a.resets {
		texts = append(texts, code.String())
	}
	if len(texts) == 0 {
		return ""
	}
	slices.Sort(texts)
	return ", streams reset with " + strings.Join(texts, " and ")
}

func (a *attacker) ended(end string) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if a.end == "" {
		a.end = end
		close(a.over)
	}
}

// read takes what comes, as a well-behaved client does, and knows how it ended.
func (a *attacker) read() {
	goaway := ""
	for {
		frame, err := a.framer.ReadFrame()
		if err != nil {
			a.ended(closedBy(goaway, err))
			return
		}
		switch frame := frame.(type) {
		case *http2.GoAwayFrame:
			goaway = "GOAWAY " + frame.ErrCode.String()
			if data := frame.DebugData(); len(data) > 0 {
				goaway += " (" + string(data) + ")"
			}
		case *http2.RSTStreamFrame:
			a.mutex.Lock()
			a.resets[frame.ErrCode] = true
			a.mutex.Unlock()
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = a.write(func() { _ = a.framer.WritePing(true, frame.Data) })
			}
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = a.write(func() { _ = a.framer.WriteSettingsAck() })
			}
		}
	}
}

// read1 takes what comes on HTTP/1.1.
func (a *attacker) read1() {
	text, err := io.ReadAll(a.conn)
	answer, _, found := strings.Cut(string(text), "\r\n")
	if !found {
		answer = ""
	}
	a.ended(closedBy(answer, err))
}

func closedBy(before string, err error) string {
	how := "closed"
	if errors.Is(err, syscall.ECONNRESET) {
		how = "reset"
	}
	if before == "" {
		return how
	}
	return before + ", " + how
}

// write has frames written, and sends them.
func (a *attacker) write(frames func()) error {
	a.writing.Lock()
	defer a.writing.Unlock()
	frames()
	return a.writer.Flush()
}

// begin sends the settings and, unless the connection is one that is not read, reads it.
func (a *attacker) begin() error {
	settings := []http2.Setting{}
	if a.window > 0 {
		settings = append(settings, http2.Setting{ID: http2.SettingInitialWindowSize, Val: a.window})
	}
	if !a.unread {
		go a.read()
	}
	return a.write(func() { _ = a.framer.WriteSettings(settings...) })
}

// request writes a head on the next stream and gives the stream.
func (a *attacker) request(method, path string, end bool) uint32 {
	if a.last == 0 {
		a.last = 1
	} else {
		a.last += 2
	}
	block := a.head(method, path)
	_ = a.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: a.last, BlockFragment: block, EndStream: end, EndHeaders: true})
	a.sent.Add(1)
	return a.last
}

func (a *attacker) head(method, path string) []byte {
	a.block.Reset()
	for _, field := range [][2]string{{":method", method}, {":scheme", "https"}, {":authority", "localhost"}, {":path", path}} {
		_ = a.encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	return a.block.Bytes()
}

// flood writes batch after batch until the connection takes no more.
func (a *attacker) flood(frame func(number int)) error {
	for batch := 0; ; batch++ {
		err := a.write(func() {
			for number := range attackBatch {
				frame(batch*attackBatch + number)
			}
		})
		if err != nil {
			return err
		}
		select {
		case <-a.over:
			return nil
		default:
		}
	}
}

// isGone tells whether the other end has ended the connection, of which who does not read learns nothing else.
func isGone(socket *net.TCPConn) bool {
	raw, err := socket.SyscallConn()
	if err != nil {
		return true
	}
	// The first byte of `struct tcp_info`.
	const established = 1
	state := established
	_ = raw.Control(func(descriptor uintptr) {
		if info, err := syscall.GetsockoptInt(int(descriptor), syscall.IPPROTO_TCP, syscall.TCP_INFO); err == nil {
			state = info & 0xff
		}
	})
	return state != established
}

// drip writes one byte after the other, slowly.
func (a *attacker) drip(byte func() []byte) error {
	for {
		time.Sleep(dripPeriod)
		a.writing.Lock()
		_, err := a.conn.Write(byte())
		a.writing.Unlock()
		if err != nil {
			return err
		}
		a.sent.Add(1)
		select {
		case <-a.over:
			return nil
		default:
		}
	}
}
