package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/internal/cli"
)

var (
	now       = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	twoOthers = []control.Peer{
		{
			Subnet: netip.MustParsePrefix("172.7.22.0/24"), PublicIP: netip.MustParseAddr("192.168.14.22"),
			Path: control.PathDirect, Fast: true, Link: "eth0", NextMAC: "02:00:00:00:00:22", Since: now.Add(-90 * time.Second),
		},
		{
			Subnet: netip.MustParsePrefix("172.7.31.0/24"), PublicIP: netip.MustParseAddr("192.168.15.31"),
			Path: control.PathVXLAN, PathMTU: 1350, Reason: "via gateway 192.168.14.1", FastReason: "by another interface, eth1",
			Health: &control.Health{
				State: control.HealthAnswers, RTTSeconds: 214567e-9, Loss: control.Loss{Missed: 1, Of: 20}, FullSize: control.FullSizePasses, FullSizeBytes: 1350,
			},
			LastHeard: now.Add(-2 * time.Second),
		},
	}
)

func TestPrintPeers(t *testing.T) {
	var out bytes.Buffer
	p := printer{out: &out}
	if err := p.peers(twoOthers, now); err != nil {
		t.Fatal(err)
	}
	want := `SUBNET         PUBLIC IP      PATH    CARRIER  MTU      RTT        LOSS       HEARD   SINCE  WHY
172.7.22.0/24  192.168.14.22  direct  fast     route's  not asked  not asked  never   1m30s  via eth0 02:00:00:00:00:22
172.7.31.0/24  192.168.15.31  vxlan   workers  1350     215µs      5%         2s ago  start  via gateway 192.168.14.1; not fast: by another interface, eth1
`
	if out.String() != want {
		t.Errorf("it printed\n%swant\n%s", &out, want)
	}

	out.Reset()
	p.colour = true
	if err := p.peers(twoOthers, now); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "\x1b[32mdirect\x1b[0m") {
		t.Errorf("no colour in %q", &out)
	}
	bare := out.String()
	for _, c := range []colour{plain, red, green, yellow} {
		bare = strings.ReplaceAll(bare, "\x1b["+string(c)+"m", "")
	}
	if bare = strings.ReplaceAll(bare, "\x1b[0m", ""); bare != want {
		t.Errorf("with colours the columns are\n%s", bare)
	}

	out.Reset()
	p.json = true
	if err := p.peers(twoOthers, now); err != nil {
		t.Fatal(err)
	}
	var back []control.Peer
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || len(back) != 2 || back[0] != twoOthers[0] || back[1].PathMTU != 1350 {
		t.Errorf("JSON %s, %v", &out, err)
	}
}

// No cell is empty, whatever the path.
func TestPrintPeersInWords(t *testing.T) {
	subnet, ip := netip.MustParsePrefix("172.7.22.0/24"), netip.MustParseAddr("192.168.14.22")
	var out bytes.Buffer
	p := printer{out: &out}
	err := p.peers([]control.Peer{
		{Subnet: subnet, PublicIP: ip, Path: control.PathVXLAN, PathMTU: 1450, Fast: true},
		{Subnet: subnet, PublicIP: ip, Path: control.PathNone, Reason: "no route"},
		{Subnet: subnet, PublicIP: ip, Path: control.PathForeign, Reason: "by a route of others"},
	}, now)
	want := `SUBNET         PUBLIC IP      PATH     CARRIER  MTU      RTT        LOSS       HEARD  SINCE  WHY
172.7.22.0/24  192.168.14.22  vxlan    fast     1450     not asked  not asked  never  start  direct routing is off
172.7.22.0/24  192.168.14.22  none     nobody   none     not asked  not asked  never  start  no route
172.7.22.0/24  192.168.14.22  foreign  kernel   route's  not asked  not asked  never  start  by a route of others
`
	if err != nil || out.String() != want {
		t.Errorf("it printed\n%swant\n%s%v", &out, want, err)
	}
}

// What ails a peer is said first.
func TestPrintPeersHealth(t *testing.T) {
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		health control.Health
		heard  time.Time
		want   string
	}{
		{control.Health{State: control.HealthUnknown}, time.Time{}, "not yet  not yet  never  start  direct routing is off"},
		{
			control.Health{State: control.HealthUnknown, Problem: "it can't be asked: sendto: operation not permitted"}, ago(time.Hour),
			"unknown  not yet  1h0m ago  start  it can't be asked: sendto: operation not permitted; direct routing is off",
		},
		{
			control.Health{State: control.HealthSilent, Problem: control.NoAnswer, Loss: control.Loss{Missed: 3, Of: 3}}, time.Time{},
			"silent  100%  never  start  it never answered; direct routing is off",
		},
		{
			control.Health{
				State: control.HealthSilent, Problem: "192.168.14.1 says: host unreachable", Loss: control.Loss{Missed: 7, Of: 20},
				Since: ago(time.Minute), LastAnswer: ago(80 * time.Second),
			}, ago(80 * time.Second),
			"silent  35%   1m20s ago  start  it last answered 1m20s ago, 192.168.14.1 says: host unreachable; direct routing is off",
		},
		{
			control.Health{State: control.HealthSilent, Problem: control.NoAnswer, Loss: control.Loss{Missed: 20, Of: 20}, Since: ago(time.Minute)}, ago(time.Second),
			"silent  100%  1s ago  start  it never answered, but its packets come: the way to it is blocked, or it refuses pings; direct routing is off",
		},
		{
			control.Health{
				State: control.HealthAnswers, RTTSeconds: 0.0123456, Loss: control.Loss{Of: 20}, FullSize: control.FullSizeLost, FullSizeBytes: 1450,
			}, now,
			"12.3ms  0%    0s ago  start  packets of 1450 bytes get lost, short ones pass; direct routing is off",
		},
	} {
		var out bytes.Buffer
		p := printer{out: &out}
		if err := p.peers([]control.Peer{{Path: control.PathVXLAN, PathMTU: 1450, Health: &c.health, LastHeard: c.heard}}, now); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(out.String(), " 1450  "+c.want+"\n") {
			t.Errorf("it printed\n%swant %q", &out, c.want)
		}
	}
}

func TestPrintStatus(t *testing.T) {
	s := control.Status{
		Version: "v1", PID: 42, Started: now.Add(-3 * time.Hour), Now: now, Ready: true, Notes: []string{"etcd is away"},
		Model: "vxlan", Interface: "eth0", PublicIP: netip.MustParseAddr("192.168.14.21"), Device: "flannel.1", MTU: 1450,
		Network: netip.MustParsePrefix("172.7.0.0/16"), Peers: 2,
		FastPath: &control.FastPath{On: true, Link: "veth eth0", Superpackets: true},
		Traffic: &control.Traffic{
			Sent: control.Direction{Packets: 1, Bytes: 1_234_567, Datagrams: 2}, Drops: map[string]uint64{"no_route": 3, "send": 0},
			Offloads: map[string]bool{"uso": true, "tso": true, "gro": false},
		},
	}
	var out bytes.Buffer
	p := printer{out: &out}
	if err := p.status(s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"state       ready, with notes\n", "note        etcd is away\n", "daemon      v1, pid 42, up for 3h0m\n",
		"host        192.168.14.21 on eth0\n", "network     172.7.0.0/16, MTU 1450 bytes\n", "device      flannel.1\n", "fast path   on (veth eth0, superpackets whole)\n", "lease       none yet\n",
		"offloads    tso uso\n", "sent        1 packets, 1.23 MB, in 2 datagrams\n", "dropped     3 packets\n  no_route  3\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "\x1b") || strings.Contains(out.String(), "send  ") {
		t.Errorf("it printed %q", &out)
	}
}

// Where the network has IPv6, each line tells of both families.
func TestPrintBothFamilies(t *testing.T) {
	s := control.Status{
		Now: now, PublicIP: netip.MustParseAddr("192.168.14.21"), PublicIPv6: netip.MustParseAddr("fd00:14::21"), Interface: "eth0", MTU: 1430,
		Network: netip.MustParsePrefix("172.7.0.0/16"), NetworkV6: netip.MustParsePrefix("fd00:7::/56"),
		Lease: &control.Lease{
			Subnet: netip.MustParsePrefix("172.7.21.0/24"), SubnetV6: netip.MustParsePrefix("fd00:7:0:21::/64"),
			Renewed: now.Add(-time.Second), Expires: now.Add(time.Hour),
		},
	}
	l := control.LeaseRow{
		Subnet: netip.MustParsePrefix("172.7.22.0/24"), IPv6Subnet: netip.MustParsePrefix("fd00:7:0:22::/64"),
		PublicIP: netip.MustParseAddr("192.168.14.22"), PublicIPv6: netip.MustParseAddr("fd00:14::22"),
		Backend: "vxlan", MAC: "02:00:00:00:00:22", MACv6: "02:00:00:00:00:66", Reserved: true,
	}
	same := l
	same.Subnet, same.MACv6 = netip.MustParsePrefix("172.7.23.0/24"), l.MAC
	var out bytes.Buffer
	p := printer{out: &out}
	if err := errors.Join(p.status(s), p.leases([]control.LeaseRow{l, same}, now)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"192.168.14.21 and fd00:14::21 on eth0\n", "172.7.0.0/16 and fd00:7::/56, MTU 1430 bytes\n",
		"172.7.21.0/24 and fd00:7:0:21::/64, renewed 1s ago, expires in 1h0m\n",
		"172.7.22.0/24 fd00:7:0:22::/64  192.168.14.22 fd00:14::22  vxlan    02:00:00:00:00:22 02:00:00:00:00:66  never    reservation\n",
		"172.7.23.0/24 fd00:7:0:22::/64  192.168.14.22 fd00:14::22  vxlan    02:00:00:00:00:22                    never    reservation\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
}

func TestPrintLeases(t *testing.T) {
	var out bytes.Buffer
	p := printer{out: &out}
	err := p.leases([]control.LeaseRow{
		{
			Subnet: netip.MustParsePrefix("172.7.9.0/24"), PublicIP: netip.MustParseAddr("192.168.14.22"), Backend: "vxlan", MAC: "02:00:00:00:00:22",
			Expires: now.Add(3*time.Hour + 20*time.Minute),
		},
		{Subnet: netip.MustParsePrefix("172.7.10.0/24"), PublicIP: netip.MustParseAddr("192.168.14.23"), Backend: "host-gw"},
		{Subnet: netip.MustParsePrefix("172.7.31.0/24"), Reserved: true},
		{Subnet: netip.MustParsePrefix("172.7.32.0/24"), PublicIP: netip.MustParseAddr("192.168.14.24"), Backend: "host-gw", Reserved: true},
		{Subnet: netip.MustParsePrefix("172.7.33.0/24"), Damaged: true},
	}, now)
	want := `SUBNET         PUBLIC IP      BACKEND  VTEP MAC           EXPIRES    KIND
172.7.9.0/24   192.168.14.22  vxlan    02:00:00:00:00:22  in 3h20m   lease
172.7.10.0/24  192.168.14.23  host-gw  none               not known  lease
172.7.31.0/24  none           none     none               never      reservation, not used yet
172.7.32.0/24  192.168.14.24  host-gw  none               never      reservation
172.7.33.0/24  none           none     none               not known  damaged: not readable
`
	if err != nil || out.String() != want {
		t.Errorf("it printed\n%swant\n%s%v", &out, want, err)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1 kB", 1536: "1.54 kB", 999_499: "999 kB", 999_999: "1 MB",
		1_234_567_890: "1.23 GB", 1<<64 - 1: "18.4 EB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

func TestCommandsWithoutADaemon(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "uvxlan.sock")
	for _, name := range []string{"status", "peers"} {
		err := run(t.Context(), []string{name, "-control-socket", socket})
		if !errors.Is(err, control.ErrNotRunning) || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), "start it") {
			t.Errorf("%s: %v", name, err)
		}
		if err := run(t.Context(), []string{name, "-o", "xml"}); err == nil || !strings.Contains(err.Error(), "table or json") {
			t.Errorf("%s -o xml: %v", name, err)
		}
		if err := run(t.Context(), []string{name, "all"}); err == nil || !strings.Contains(err.Error(), `"all"`) {
			t.Errorf("%s all: %v", name, err)
		}
	}
}

func TestColourIsForTerminals(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if cli.IsTerminal(f) {
		t.Error("a file is taken for a terminal")
	}
}
