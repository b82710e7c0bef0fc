package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/cmd/internal/control"
)

// busy is a daemon that has sent 1000 packets of 100 bytes to one of its peers,
// and dropped one, each time it is asked.
type busy struct {
	mu    sync.Mutex
	asked uint64
}

func (b *busy) Status() control.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	return control.Status{
		Ready: true, Started: time.Unix(1, 0), Model: "vxlan", Peers: 2,
		Lease:   &control.Lease{Subnet: netip.MustParsePrefix("172.7.21.0/24")},
		Traffic: &control.Traffic{Drops: map[string]uint64{"no_route": b.asked, "send": 0}},
	}
}

func (b *busy) Peers() []control.Peer {
	b.mu.Lock()
	defer b.mu.Unlock()
	return []control.Peer{
		{
			Subnet: netip.MustParsePrefix("172.7.22.0/24"), PublicIP: netip.MustParseAddr("192.168.14.22"), Path: control.PathDirect,
			Traffic: &control.PeerTraffic{},
		},
		{
			Subnet: netip.MustParsePrefix("172.7.31.0/24"), PublicIP: netip.MustParseAddr("192.168.15.31"), Path: control.PathVXLAN,
			Traffic: &control.PeerTraffic{Sent: control.Count{Packets: 1000 * b.asked, Bytes: 100_000 * b.asked}, LastSeen: time.Now()},
		},
	}
}

// serve answers on a control socket until the test ends.
func serve(t *testing.T, s control.Source) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := control.Serve(l, control.Handler(s, nil), slog.New(slog.DiscardHandler))
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return socket
}

func TestTopJSON(t *testing.T) {
	var out bytes.Buffer
	show := top{client: control.NewClient(serve(t, &busy{})), printer: &printer{out: &out, json: true}, interval: 10 * time.Millisecond, count: 2}
	if err := show.run(t.Context(), nil, nil); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines: %s", len(lines), out.String())
	}
	for i, line := range lines {
		var r rates
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		if len(r.Peers) != 2 || r.Seconds <= 0 || r.Peers[1].Sent == nil {
			t.Fatalf("%s", line)
		}
		// However long the interval was.
		if packets, bits := r.Peers[1].Sent.Packets*r.Seconds, r.Sent.Bits*r.Seconds; !near(packets, 1000) || !near(bits, 800_000) {
			t.Errorf("%f packets, %f bits: %s", packets, bits, line)
		}
		if d := r.Drops["no_route"]; d.Total != uint64(i+2) || !near(d.PerSecond*r.Seconds, 1) {
			t.Errorf("the drops are %+v", r.Drops)
		}
		if p := r.Peers[1]; p.Path != control.PathVXLAN || p.LastSeen.IsZero() || !r.Peers[0].LastSeen.IsZero() {
			t.Errorf("the peers are %+v", r.Peers)
		}
	}
}

func near(got, want float64) bool { return got > want*0.999 && got < want*1.001 }

func TestTopTable(t *testing.T) {
	var out bytes.Buffer
	p := printer{out: &out}
	source := &busy{}
	before, now := sample{at: time.Unix(100, 0)}, sample{at: time.Unix(102, 0)}
	for _, s := range []*sample{&before, &now} {
		s.status, s.peers = source.Status(), source.Peers()
	}
	now.peers[1].Traffic.LastSeen = time.Unix(100, 500e6)
	if err := p.rates(between(before, now)); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`172.7.21.0/24  ready  vxlan  %s
sent 500 pkt/s 400 kbit/s  received 0 pkt/s 0 bit/s  peers 2
dropped 0.5 pkt/s, since the start 2: no_route 2
what arrives directly is taken and counted by the kernel

SUBNET         PUBLIC IP      PATH    SENT pkt/s  bit/s  RECEIVED pkt/s  bit/s  RTT        LAST SEEN
172.7.31.0/24  192.168.15.31  vxlan   500         400 k  0               0      not asked  1.5s
172.7.22.0/24  192.168.14.22  direct  0           0      0               0      not asked  -
`, now.at.Format(time.TimeOnly))
	if got := withoutTrailingSpace(out.String()); got != want {
		t.Errorf("it shows\n%s\nwant\n%s", got, want)
	}
}

func withoutTrailingSpace(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n")
}

// What can't be compared has no rate: another daemon's numbers, those of a
// device made again, and what only the kernel counts.
func TestRatesOfWhatStartsAnew(t *testing.T) {
	source := &busy{}
	take := func(at int64) sample {
		return sample{at: time.Unix(at, 0), status: source.Status(), peers: source.Peers()}
	}
	before, now := take(100), take(101)
	if r := between(before, now); r.Sent.Packets != 1000 {
		t.Fatalf("the rate is %+v", r.Sent)
	}
	if r := between(now, before); r.Sent != (rate{}) {
		t.Errorf("numbers that became less have the rate %+v", r.Sent)
	}
	if r := between(sample{}, now); r.Sent != (rate{}) || r.Seconds != 0 {
		t.Errorf("the first sample has the rate %+v in %f s", r.Sent, r.Seconds)
	}
	other := now
	other.status.Started = time.Unix(2, 0)
	if r := between(before, other); r.Sent != (rate{}) {
		t.Errorf("another daemon's numbers have the rate %+v", r.Sent)
	}
	now.peers[1].Traffic, now.peers[0].Traffic = nil, nil
	r := between(before, now)
	if r.Peers[1].Sent != nil {
		t.Errorf("what isn't counted has the rate %+v", r.Peers[1].Sent)
	}
	if words := uncounted(r.Peers); !strings.Contains(words, "kernel") {
		t.Errorf("it says %q", words)
	}
}

func TestShort(t *testing.T) {
	for f, want := range map[float64]string{
		0: "0 ", 0.5: "0.5 ", 999: "999 ", 999.6: "1 k", 1234: "1.23 k", 9.87e9: "9.87 G", 5e15: "5e+03 T",
	} {
		if got := short(f); got != want {
			t.Errorf("%g is %q, want %q", f, got, want)
		}
	}
}

// openTerminal makes a pseudo-terminal.
func openTerminal(t *testing.T) (user, program *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close() })
	fd := int(user.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 8, Col: 80}); err != nil {
		t.Fatal(err)
	}
	return user, program
}

// On a terminal q ends it, and the terminal is then as before.
func TestTopOnTerminal(t *testing.T) {
	user, program := openTerminal(t)
	before, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	show := top{client: control.NewClient(serve(t, &busy{})), printer: &printer{out: program, colour: true}, interval: 10 * time.Millisecond}
	ended := make(chan error, 1)
	go func() { ended <- show.run(t.Context(), program, program) }()
	var seen bytes.Buffer
	for buf := make([]byte, 4096); strings.Count(seen.String(), home) < 3; {
		n, err := user.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(buf[:n])
	}
	if _, err := user.WriteString("q"); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 4096); !strings.HasSuffix(seen.String(), leaveScreen); {
		n, err := user.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		seen.Write(buf[:n])
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	frames := strings.Split(seen.String(), home)
	// There is room for one of the two peers: the busier one.
	last := frames[len(frames)-1]
	if frames[0] != enterScreen || strings.Contains(last, "172.7.22.0/24") || !strings.Contains(last, "172.7.31.0/24") {
		t.Errorf("it drew %q", frames)
	}
	if after, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS); err != nil || *after != *before {
		t.Errorf("the terminal was %+v and is %+v, %v", before, after, err)
	}
}

func TestTopWithoutDaemon(t *testing.T) {
	err := run(t.Context(), []string{"top", "-control-socket", filepath.Join(t.TempDir(), "none"), "-n", "1"})
	if err == nil || !strings.Contains(err.Error(), "-control-socket") {
		t.Errorf("the error is %v", err)
	}
	for _, args := range [][]string{{"top", "-n", "-1"}, {"top", "-interval", "0s"}} {
		if err := run(t.Context(), args); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}
