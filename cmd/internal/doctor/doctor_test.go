package doctor

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/firewall"
	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel"
)

var errRefused = errors.New("refused")

func noDrops(tunnel.DropReason) uint64 { return 0 }

func host(n byte) Host {
	return Host{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, n, 0}), 24), netip.AddrFrom4([4]byte{192, 0, 2, n})}
}

// Findings stand in order of harm, and those that are alike are one.
func TestArrange(t *testing.T) {
	of := func(s Severity, kind, remedy string, peers ...Host) Finding {
		return Finding{Severity: s, Kind: kind, Remedy: remedy, Peers: peers, What: kind, Evidence: "seen"}
	}
	got := arrange([]Finding{
		of(Warning, "note", ""), of(Fault, "blocked", "allow", host(1)), of(Warning, "mtu", "raise", host(1)), of(Fault, "gone", "release", host(2)),
		of(Fault, "gone", "release", host(3)), of(Fault, "gone", "release", host(3)), of(Fault, "gone", "release it", host(4)), of(Fault, "firewall", "accept"),
	})
	var words []string
	for _, f := range got {
		words = append(words, f.Kind+" "+f.Subject())
	}
	want := []string{
		"firewall this host", "gone each of 192.0.2.2 (10.0.2.0/24), 192.0.2.3 (10.0.3.0/24)", "blocked 192.0.2.1 (10.0.1.0/24)",
		"gone 192.0.2.4 (10.0.4.0/24)", "note this host", "mtu 192.0.2.1 (10.0.1.0/24)",
	}
	if !slices.Equal(words, want) {
		t.Errorf("they are\n%s\nwant\n%s", strings.Join(words, "\n"), strings.Join(want, "\n"))
	}
	if e := got[1].Evidence; e != "of 192.0.2.2: seen" {
		t.Errorf("the evidence of two peers is %q", e)
	}
	if w := (&Report{Findings: got}).Worst(); w != Fault {
		t.Errorf("the worst is a %s", w)
	}
	many := Finding{Peers: []Host{host(1), host(2), host(3), host(4), host(5)}}
	if s := many.Subject(); !strings.HasSuffix(s, "192.0.2.3 (10.0.3.0/24) and 2 more peers") {
		t.Error(s)
	}
}

func TestCounters(t *testing.T) {
	before, after := counters{}, counters{}
	before.add("Udp: InDatagrams InCsumErrors\nUdp: 5 2\nTcp: MaxConn InCsumErrors\nTcp: -1 7\n")
	after.add("Udp: InDatagrams InCsumErrors\nUdp: 9 3\nTcp: MaxConn InCsumErrors\nTcp: -1 4\n")
	if n := after.since(before, udpChecksums); n != 1 {
		t.Errorf("%s has grown by %d", udpChecksums, n)
	}
	if n := after.since(before, tcpChecksums); n != 0 {
		t.Errorf("%s, which has begun anew, has grown by %d", tcpChecksums, n)
	}
}

// The search finds the largest size, in few rounds.
func TestSearch(t *testing.T) {
	for _, c := range [][3]int{{36, 1450, 1449}, {36, 1450, 36}, {36, 1450, 37}, {36, 1450, 970}, {36, 9000, 1350}, {36, 65535, 1472}, {36, 37, 36}} {
		rounds := 0
		got := search(c[0], c[1], func(sizes []int) int {
			rounds++
			if !slices.IsSorted(sizes) || sizes[0] <= c[0] || sizes[len(sizes)-1] >= c[1] {
				t.Fatalf("from %d to %d it tries %v", c[0], c[1], sizes)
			}
			n := 0
			for n < len(sizes) && sizes[n] <= c[2] {
				n++
			}
			return n
		})
		if got != c[2] || rounds > 7 {
			t.Errorf("from %d to %d, it finds %d in %d rounds, want %d", c[0], c[1], got, rounds, c[2])
		}
	}
}

func TestClockOffset(t *testing.T) {
	day := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		now  time.Time
		said uint32
		want time.Duration
	}{
		{day.Add(10 * time.Hour), 36_000_000, 0},
		{day.Add(10 * time.Hour), 36_000_000 + 90_000, 90 * time.Second},
		{day.Add(10 * time.Hour), 36_000_000 - 90_000, -90 * time.Second},
		{day.Add(time.Second), 86_400_000 - 1000, -2 * time.Second},
		{day.Add(-time.Second), 1000, 2 * time.Second},
	} {
		got := clockOffset(c.said, c.now.Add(-2*time.Millisecond), c.now.Add(2*time.Millisecond))
		if got == nil || *got != c.want {
			t.Errorf("at %s, %d ms since midnight are %v, want %s", c.now, c.said, got, c.want)
		}
	}
	if got := clockOffset(1<<31|5, day, day); got != nil {
		t.Errorf("a time that isn't since midnight is %s", got)
	}
}

func row(n byte, ip, mac string) control.LeaseRow {
	return control.LeaseRow{Subnet: host(n).Subnet, PublicIP: netip.MustParseAddr(ip), MAC: mac, Backend: lease.TypeVXLAN}
}

func TestJudgeLeases(t *testing.T) {
	damaged := control.LeaseRow{Subnet: host(8).Subnet, Damaged: true}
	for _, c := range []struct {
		kinds, remedy string
		rows          []control.LeaseRow
	}{
		{"", "", []control.LeaseRow{row(1, "192.0.2.1", "02:00:00:00:00:01"), row(2, "192.0.2.2", "02:00:00:00:00:02"), {Subnet: host(3).Subnet, PublicIP: host(1).PublicIP, Reserved: true}}},
		{"duplicate-public-ip", "leases release -force 10.0.2.0/24", []control.LeaseRow{row(1, "192.0.2.1", "02:00:00:00:00:01"), row(2, "192.0.2.1", "02:00:00:00:00:02")}},
		{"duplicate-mac", "on the clone", []control.LeaseRow{row(1, "192.0.2.1", "02:00:00:00:00:01"), row(2, "192.0.2.2", "02:00:00:00:00:01")}},
		{"two-leases two-leases", "leases release -force 10.0.2.0/24", []control.LeaseRow{row(1, "192.0.2.1", "02:00:00:00:00:01"), row(2, "192.0.2.1", "02:00:00:00:00:01")}},
		{"damaged-lease", "leases release -force 10.0.8.0/24", []control.LeaseRow{damaged}},
	} {
		found, shared := judgeLeases(c.rows, func(n netip.Prefix) bool { return n == host(2).Subnet })
		var kinds []string
		for _, f := range found {
			kinds = append(kinds, f.Kind)
			if strings.HasPrefix(f.Subject(), "each of ") {
				t.Errorf("%s: of leases that share something, the subject is %q", f.Kind, f.Subject())
			}
			if !strings.Contains(f.Remedy, c.remedy) {
				t.Errorf("%s: the remedy is %q, without %q", f.Kind, f.Remedy, c.remedy)
			}
		}
		if got := strings.Join(kinds, " "); got != c.kinds {
			t.Errorf("found %q, want %q", got, c.kinds)
		}
		if want := strings.HasPrefix(c.kinds, "duplicate-public-ip") || strings.HasPrefix(c.kinds, "two"); shared[host(1).Subnet] != want {
			t.Errorf("%s: shared %v", c.kinds, shared)
		}
	}
}

// What the daemon says of its host is told once, by its harm.
func TestJudgeStatus(t *testing.T) {
	now := time.Now()
	s := control.Status{
		Now:     now,
		Faults:  []control.Fault{{Part: "route", What: "it is gone", Remedy: "ip route add", Stops: true, Since: now}, {Part: "containers", What: "odd", Since: now}},
		Reasons: []string{"it is gone: ip route add", "the host has no lease"}, Notes: []string{"odd", "etcd doesn't answer"},
	}
	var words []string
	for _, f := range judgeStatus(s) {
		words = append(words, f.Severity.String()+" "+f.Kind)
	}
	if got := strings.Join(words, ", "); got != "fault host-route, warning host-containers, fault not-ready, warning note" {
		t.Error(got)
	}
}

// bystander is a judgement of a peer that answers nothing by the overlay, of which
// what was seen is given.
func bystander(path string, seen ...sighting) *judgement {
	x := &examiner{
		status: control.Status{Device: "flannel.1", Interface: "eth0", MTU: 1450, Lease: &control.Lease{Subnet: host(1).Subnet}}, vni: 1, port: 4789, device: 7, ids: 0x100,
		local: host(1).PublicIP, vtep: host(1).Subnet.Addr(), mac: encap.MAC{2, 0, 0, 0, 0, 1}, tap: &tap{seen: seen, more: make(chan struct{})},
	}
	p := &evidence{Host: host(2), peer: control.Peer{Subnet: host(2).Subnet, PublicIP: host(2).PublicIP, Path: path}, answered: map[test]bool{}}
	p.overlay.Sent, p.underlay.Sent, p.underlay.Received = few, few, few
	return &judgement{p: p, scene: &scene{
		x: x, known: map[netip.Addr]bool{host(1).PublicIP: true, host(2).PublicIP: true, host(3).PublicIP: true},
		grown: func(string) uint64 { return 0 }, drops: noDrops, peers: map[netip.Prefix]control.Peer{},
	}}
}

func (j *judgement) kinds() string {
	var kinds []string
	for _, f := range j.judge(j.p) {
		kinds = append(kinds, f.Kind)
	}
	return strings.Join(kinds, " ")
}

// What can't be made in a network of its own, or not for long, is judged all the same.
func TestJudgeDead(t *testing.T) {
	out := sighting{out: true, src: host(1).PublicIP, dst: host(2).PublicIP, frame: &frame{port: 4789, vni: 1, src: host(1).Subnet.Addr(), dst: host(2).Subnet.Addr()}}
	in := sighting{src: host(2).PublicIP, dst: host(1).PublicIP, frame: &frame{
		port: 4789, vni: 1, mac: encap.MAC{2, 0, 0, 0, 0, 1}, src: host(2).Subnet.Addr(), dst: host(1).Subnet.Addr(),
	}}
	change := func(s sighting, by func(*sighting, *frame)) sighting {
		f := *s.frame
		s.frame = &f
		by(&s, &f)
		return s
	}
	plain := sighting{link: 2, src: host(2).Subnet.Addr(), dst: host(1).Subnet.Addr()}
	for name, c := range map[string]struct {
		path, want string
		seen       []sighting
		set        func(j *judgement)
	}{
		"another host's address": {want: "wrong-public-ip", seen: []sighting{out, change(in, func(s *sighting, _ *frame) { s.src = host(3).PublicIP })}},
		"another VNI":            {want: "vni-differs", seen: []sighting{out, change(in, func(_ *sighting, f *frame) { f.vni = 2 })}},
		"not delivered":          {want: "own-firewall-in", seen: []sighting{out, in}},
		"a rule that may drop it": {want: "own-firewall-in", seen: []sighting{out, in}, set: func(j *judgement) {
			j.rules = map[bool][]firewall.Obstacle{false: {{What: "a rule", Remedy: "accept", Drops: true}}}
		}},
		"a rule that drops it": {seen: []sighting{out, in}, set: func(j *judgement) {
			j.rules = map[bool][]firewall.Obstacle{false: {{What: "a rule", Remedy: "accept", Drops: true, Sure: true}}}
		}},
		"refused here":             {want: "own-firewall-out", set: func(j *judgement) { j.p.refused = errRefused }},
		"no neighbour to leave to": {want: "blocked", set: func(j *judgement) { j.p.sent = true; j.p.neigh.failed = true }},
		"never left": {want: "", set: func(j *judgement) {
			j.rules = map[bool][]firewall.Obstacle{false: {{Out: true, Drops: true, Sure: true}}}
		}},
		"a rule, but nobody to send to": {want: "no-host", set: func(j *judgement) {
			j.rules = map[bool][]firewall.Obstacle{false: {{Out: true, What: "a rule"}}}
			j.p.underlay.Received, j.p.neigh.failed, j.p.neigh.onLink = 0, true, true
		}},
		"not all was seen": {want: "blocked", set: func(j *judgement) { j.p.sent, j.missed = true, true }},
		"no gateway":       {want: "no-gateway", seen: []sighting{out}, set: func(j *judgement) { j.p.underlay.Received, j.p.neigh.failed = 0, true }},
		"inside, past a rule": {want: "echo-dropped", seen: []sighting{out, in, {link: 7, src: host(2).Subnet.Addr()}}, set: func(j *judgement) {
			j.rules = map[bool][]firewall.Obstacle{false: {{What: "a rule", Drops: true}}}
		}},
		"the reverse path":              {want: "reverse-path", seen: []sighting{out, in}, set: func(j *judgement) { j.grown = func(string) uint64 { return 5 } }},
		"the reverse path, direct":      {path: control.PathDirect, want: "reverse-path", seen: []sighting{plain}, set: func(j *judgement) { j.grown = func(string) uint64 { return 5 } }},
		"a rule, direct":                {path: control.PathDirect, want: "own-firewall-in", seen: []sighting{plain}},
		"inside, and no further":        {want: "echo-dropped", seen: []sighting{out, in, {link: 7, src: host(2).Subnet.Addr()}}},
		"the carrier":                   {want: "carrier", seen: []sighting{out}, set: func(j *judgement) { j.p.answered[summed] = true }},
		"a foreign route":               {path: control.PathForeign},
		"a lease that is none":          {path: control.PathNone, want: "config-differs"},
		"a reservation":                 {path: control.PathNone, set: func(j *judgement) { j.p.peer.Unclaimed = true }},
		"host-gw without a route":       {path: control.PathNone, want: "no-route", set: func(j *judgement) { j.x.status.Device = "" }},
		"host-gw, and nobody there":     {path: control.PathDirect, want: "silent", set: func(j *judgement) { j.x.status.Device = ""; j.p.underlay.Received = 0 }},
		"no route to its address":       {want: "no-route", set: func(j *judgement) { j.p.underlay.Received = 0; j.p.neigh.err = errRefused; j.p.refused = errRefused }},
		"nothing known":                 {want: "blocked", seen: []sighting{out}},
		"another lease has its address": {seen: []sighting{out}, set: func(j *judgement) { j.shared = map[netip.Prefix]bool{host(2).Subnet: true} }},
	} {
		if c.path == "" {
			c.path = control.PathVXLAN
		}
		j := bystander(c.path, c.seen...)
		if c.set != nil {
			c.set(j)
		}
		if j.rulesFor == nil {
			j.rulesFor = func(a netip.Addr) []firewall.Obstacle { return j.rules[a.Is6()] }
		}
		if got := j.kinds(); got != c.want {
			t.Errorf("%s: found %q, want %q", name, got, c.want)
		}
	}
}

// Frames that are changed, and answered by all peers all the same, are no fault: kernels
// take them from any address.
func TestHarmOfChanges(t *testing.T) {
	changes := []firewall.Obstacle{{Out: true, Sure: true, What: "a rule"}}
	drops := []firewall.Obstacle{{Out: true, Sure: true, Drops: true, What: "a rule"}}
	for _, received := range []int{0, few} {
		j := bystander(control.PathVXLAN, sighting{out: true, src: host(3).PublicIP, dst: host(2).PublicIP, frame: &frame{port: 4789}})
		j.p.overlay.Received = received
		s := &session{x: j.x, peers: []*evidence{j.p}, rules: map[bool][]firewall.Obstacle{false: changes}}
		want := map[int]Severity{0: Fault, few: Warning}[received]
		if h := s.harm(); h != want {
			t.Errorf("with %d answers, the harm is a %s", received, h)
		}
		for _, f := range append(judgeRules(changes, nil, s.harm()), j.judgeSources(s.harm())...) {
			if f.Severity != want {
				t.Errorf("with %d answers, %s is a %s", received, f.Kind, f.Severity)
			}
		}
		if f := judgeRules(drops, nil, s.harm()); f[0].Severity != Fault {
			t.Errorf("%+v", f)
		}
	}
}

// Whatever arrives, reading it ends well.
func FuzzSighting(f *testing.F) {
	e := overlayEcho{vni: 1, src: host(1).Subnet.Addr(), dst: host(2).Subnet.Addr(), id: 5}
	f.Add((&wire{near: host(1).PublicIP, other: host(2).PublicIP}).datagram(append(e.frame(), e.frame()...), 0))
	f.Add((&wire{near: host(1).PublicIP, other: host(2).PublicIP}).datagram(e.question(encap.MAC{2}), 1))
	f.Add(e.frame()[encap.FrameHeaderLen:])
	f.Fuzz(func(t *testing.T, packet []byte) {
		for _, s := range (sighting{}).parse(packet, true) {
			if !s.src.IsValid() || !s.dst.IsValid() || s.frame != nil && (!s.frame.src.IsValid() || !s.frame.dst.IsValid()) {
				t.Errorf("a sighting without addresses: %+v", s)
			}
		}
	})
}
