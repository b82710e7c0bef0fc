package scenario

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/lab"
	"uvxlan/tunnel/netnstest"
)

func TestStream(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(1000, int64(ms)*int64(time.Millisecond)) }
	s := stream{sent: 5, arrivals: []arrival{{0, at(0), at(1)}, {2, at(2), at(5)}, {2, at(2), at(5)}, {1, at(1), at(25)}}}
	const ms = time.Millisecond
	if got := s.lost(); got != 2 {
		t.Errorf("%d are lost, want 2: a copy is none of those that are missing", got)
	}
	if got, want := s.gaps(), []time.Duration{4 * ms, 0, 20 * ms}; !slices.Equal(got, want) {
		t.Errorf("gaps are %v, want %v", got, want)
	}
	if got, want := s.delays(), []time.Duration{ms, 3 * ms, 3 * ms, 24 * ms}; !slices.Equal(got, want) {
		t.Errorf("delays are %v, want %v", got, want)
	}
}

func TestParseArrival(t *testing.T) {
	b := make([]byte, numberedSize)
	binary.BigEndian.PutUint64(b, 7)
	binary.BigEndian.PutUint64(b[8:], uint64(3*time.Second))
	stamp := make([]byte, unix.CmsgSpace(16))
	header := (*[16]byte)(stamp)
	binary.NativeEndian.PutUint64(header[:], uint64(unix.CmsgLen(16)))
	binary.NativeEndian.PutUint32(header[8:], unix.SOL_SOCKET)
	binary.NativeEndian.PutUint32(header[12:], unix.SO_TIMESTAMPNS)
	binary.NativeEndian.PutUint64(stamp[unix.CmsgLen(0):], 4)
	binary.NativeEndian.PutUint64(stamp[unix.CmsgLen(8):], 5)
	a, err := parseArrival(b, stamp)
	if want := (arrival{7, time.Unix(3, 0), time.Unix(4, 5)}); err != nil || a != want {
		t.Errorf("%+v, %v; want %+v", a, err, want)
	}
	for _, c := range [][2][]byte{{b, nil}, {b[1:], stamp}} {
		if _, err := parseArrival(c[0], c[1]); !errors.Is(err, errNumbered) {
			t.Errorf("%d bytes and %d of control messages: %v", len(c[0]), len(c[1]), err)
		}
	}
}

// All that is sent over a path without loss comes, there and back, no earlier than
// it was sent.
func TestIntegrationNumbered(t *testing.T) {
	netnstest.RequireRoot(t)
	l, err := lab.New(t.Context(), lab.Options{Hosts: lab.DefaultHosts()[:1]})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host := l.Host("kb21")
	// The host as the other end: its address on the container's bridge.
	here := &lab.Container{Node: host.Node, Address: host.Subnet.Addr().Next()}
	for _, echo := range []bool{false, true} {
		s, err := numbered{from: here, to: host.Container, rate: 1000, echo: echo}.run(t.Context(), 200*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if s.sent != 200 || s.lost() != 0 || len(s.arrivals) != 200 {
			t.Errorf("echo %t: %d sent, %d came, %d lost", echo, s.sent, len(s.arrivals), s.lost())
		}
		if least := quantile(s.delays(), 0); least < 0 {
			t.Errorf("echo %t: a datagram came %s before it was sent", echo, -least)
		}
	}
}
