package onlink

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/nexthop"
)

// followed are paths by packet socket whose watcher doesn't run: the test says
// what it finds.
type followed struct {
	*Paths
	t   *testing.T
	log *bytes.Buffer
}

func follow(t *testing.T, level slog.Level) *followed {
	t.Helper()
	f := &followed{t: t, log: &bytes.Buffer{}}
	var err error
	f.Paths, err = Open(Config{Mode: Socket, Sockets: []int{}})
	if err != nil {
		t.Fatal(err)
	}
	f.Attach(Settings{Logger: slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: level}))})
	t.Cleanup(func() {
		if err := errors.Join(f.Close(), f.Close(), f.Release()); err != nil {
			t.Error(err)
		}
	})
	return f
}

func mac(n byte) encap.MAC { return encap.MAC{2, 0, 0, 0, 0, n} }

func underlayOf(n int) netip.Addr { return netip.AddrFrom4([4]byte{192, 168, byte(n >> 8), byte(n)}) }

func subnetOf(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24)
}

// behind are subnets behind host n.
func behind(n int, subnets ...int) (members []Member) {
	for _, s := range subnets {
		members = append(members, Member{subnetOf(s), underlayOf(n)})
	}
	return members
}

var onLinkHop = nexthop.Hop{OnLink: true, Link: "eth0", Index: 7, MTU: 1500, Source: mac(0xa), MAC: mac(0xb)}

// found tells the paths of a host.
func (f *followed) found(n int, next nexthop.Hop) {
	f.Found([]nexthop.Change{{Addr: underlayOf(n), Hop: next}})
}

func (f *followed) expect(subnet int, want string) {
	f.t.Helper()
	p := f.Path(subnetOf(subnet))
	if p.String() != want {
		f.t.Errorf("subnet %d: %q, want %q", subnet, p, want)
	}
	if h := f.Hop(f.owners[subnetOf(subnet)]); (h.Direct() != nil) != p.Direct {
		f.t.Errorf("subnet %d: %q, but its link is %v", subnet, p, h.Direct())
	}
}

const direct7 = "direct via eth0 02:00:00:00:00:0b"

func TestPathString(t *testing.T) {
	for want, p := range map[string]Path{
		"vxlan":                       {},
		"vxlan: no route":             {Reason: "no route"},
		"unreachable: no route":       {Reason: "no route", Unreachable: true},
		"direct via eth0":             {Direct: true, Link: "eth0"},
		direct7:                       {Direct: true, Link: "eth0", MAC: mac(0xb)},
		"unreachable":                 {Unreachable: true},
		"vxlan: onLinkHop unresolved": {Reason: "onLinkHop unresolved", Since: time.Now()},
	} {
		if p.String() != want {
			t.Errorf("%q, want %q", p, want)
		}
	}
}

func TestPathsFollowHops(t *testing.T) {
	f := follow(t, slog.LevelInfo)
	f.mtu, f.only = 1450, "eth0"
	f.Replace(behind(1, 1))
	f.expect(1, "vxlan: not looked at yet")
	changed := func(edit func(*nexthop.Hop)) nexthop.Hop {
		h := onLinkHop
		edit(&h)
		return h
	}
	for _, c := range []struct {
		next nexthop.Hop
		want string
	}{
		{onLinkHop, direct7},
		{changed(func(h *nexthop.Hop) { h.MAC = mac(0xc) }), "direct via eth0 02:00:00:00:00:0c"},
		{changed(func(h *nexthop.Hop) { h.MAC, h.Reason = mac(0), "onLinkHop failed"; h.MAC = [6]byte{} }), "vxlan: onLinkHop failed"},
		{changed(func(h *nexthop.Hop) { h.MTU = 1450 }), direct7},
		{changed(func(h *nexthop.Hop) { h.MTU = 1449 }), "vxlan: the MTU of eth0 is 1449, below the overlay's 1450"},
		{changed(func(h *nexthop.Hop) { h.Link = "eth1" }), "vxlan: on-link via eth1, not via eth0"},
		{nexthop.Hop{Reason: "via gateway 192.168.0.254"}, "vxlan: via gateway 192.168.0.254"},
		{onLinkHop, direct7},
	} {
		f.found(1, c.next)
		f.expect(1, c.want)
	}
	since := f.Path(subnetOf(1)).Since
	f.found(1, onLinkHop)
	if f.Path(subnetOf(1)).Since != since {
		t.Error("a change that changed nothing counts")
	}
	f.found(2, onLinkHop) // of nobody
	if p := f.Path(subnetOf(2)); p != (Path{}) {
		t.Errorf("a stranger has a path: %v", p)
	}
}

// known tells whether host n has a hop.
func (f *followed) known(n int) bool { return f.Hop(underlayOf(n)) != nil }

func TestPathsMembers(t *testing.T) {
	f := follow(t, slog.LevelInfo)
	f.Replace(append(behind(1, 1, 2), behind(2, 3)...))
	f.found(1, onLinkHop)
	f.expect(1, direct7)
	f.expect(2, direct7)
	f.expect(3, "vxlan: not looked at yet")
	one := f.Hop(underlayOf(1))

	f.Update(behind(2, 2), nil) // moves
	f.expect(1, direct7)
	f.expect(2, "vxlan: not looked at yet")
	f.Update(behind(1, 2), nil) // and back
	f.expect(2, direct7)
	f.Update(behind(1, 1), []netip.Prefix{subnetOf(1), subnetOf(9)}) // removed and added
	f.expect(1, direct7)
	f.Update(behind(1, 1, 2), []netip.Prefix{subnetOf(1), subnetOf(2)}) // all of a host
	f.expect(1, direct7)
	if f.Hop(underlayOf(1)) != one {
		t.Error("a host that stays is another")
	}
	f.Update(append(behind(1, 3), behind(2, 1, 2)...), nil) // hosts change places
	f.expect(1, "vxlan: not looked at yet")
	f.expect(3, direct7)

	f.Update(nil, []netip.Prefix{subnetOf(3)})
	if f.known(1) || f.Path(subnetOf(3)) != (Path{}) {
		t.Error("a host without subnets is still there")
	}
	f.Update(behind(1, 3), nil)
	f.expect(3, "vxlan: not looked at yet")
	f.Replace(nil)
	if f.known(1) || f.known(2) || len(f.owners) != 0 {
		t.Error("not empty")
	}
}

// The watcher knows an IPv4 address in IPv6 form for what it is.
func TestPathsMappedAddress(t *testing.T) {
	f := follow(t, slog.LevelInfo)
	mapped := netip.AddrFrom16(underlayOf(1).As16())
	f.Replace([]Member{{subnetOf(1), mapped}})
	f.found(1, onLinkHop)
	f.expect(1, direct7)
	if f.Hop(mapped) == nil {
		t.Error("an entry with that address has no hop")
	}
}

// A link that refused a frame isn't used for a while, longer each time, and then
// again.
func TestPathsRefusal(t *testing.T) {
	f := follow(t, slog.LevelInfo)
	f.Replace(behind(1, 1))
	f.found(1, onLinkHop)
	h := f.Hop(underlayOf(1))
	rest := minRetry
	for range 10 {
		h.refuse(h.Direct(), unix.EMSGSIZE)
		f.expect(1, "vxlan: eth0 takes no frames: message too long")
		if !f.inUse(h.addr) || f.inUse(h.addr) {
			t.Error("use isn't told once")
		}
		f.expect(1, "vxlan: eth0 takes no frames: message too long")
		if h.wait != rest {
			t.Errorf("rests for %v, want %v", h.wait, rest)
		}
		f.retryLocked(h, h.retry.Add(-1))
		f.expect(1, "vxlan: eth0 takes no frames: message too long")
		f.retryLocked(h, h.retry)
		f.expect(1, direct7)
		rest = min(2*rest, maxRetry)
	}
	h.refuse(h.Direct(), unix.EMSGSIZE)
	f.inUse(h.addr)
	f.found(1, onLinkHop)
	f.expect(1, direct7)
	if h.wait != 0 || !h.retry.IsZero() {
		t.Error("a change doesn't begin anew")
	}
	h.refuse(h.Direct(), unix.EMSGSIZE)
	f.found(1, nexthop.Hop{Reason: "no route"})
	f.inUse(h.addr)
	f.expect(1, "vxlan: no route")
}

// Whoever keeps hosts' ways elsewhere hears of each change, whatever its cause, when
// the way is what it has come to be.
func TestPathsTellWhoChanged(t *testing.T) {
	f := follow(t, slog.LevelInfo)
	heard := map[netip.Addr]*Neighbour{}
	f.changed = func(host netip.Addr) { heard[host] = f.hops[host].Neighbour() }
	f.Replace(append(behind(1, 1), behind(2, 2)...))
	f.found(2, onLinkHop)
	h := f.Hop(underlayOf(1))
	other := onLinkHop
	other.Source = mac(0xd) // of the same path to who looks at it
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"found on-link", func() { f.found(1, onLinkHop) }},
		{"the link's MAC", func() { f.found(1, other) }},
		{"a refusal that is noticed", func() {
			h.refuse(h.Direct(), unix.EMSGSIZE)
			f.inUse(h.addr)
		}},
		{"the link is tried again", func() { f.retryLocked(h, h.retry) }},
		{"gone", func() { f.found(1, nexthop.Hop{Reason: "no route"}) }},
		{"found again", func() { f.found(1, onLinkHop) }},
	} {
		clear(heard)
		c.do()
		if now, ok := heard[h.addr]; len(heard) != 1 || !ok || now != h.Neighbour() {
			t.Errorf("%s: %v are told, and the neighbour is %v", c.what, heard, h.Neighbour())
		}
	}
	clear(heard)
	f.giveUp()
	if len(heard) != 2 || heard[h.addr] != nil || heard[underlayOf(2)] != nil {
		t.Errorf("when all are given up, %v are told", heard)
	}
}

// Without a watcher that runs there is only VXLAN.
func TestPathsGiveUp(t *testing.T) {
	f := follow(t, slog.LevelInfo)
	f.Replace(behind(1, 1))
	f.found(1, onLinkHop)
	f.giveUp()
	f.expect(1, "vxlan: the underlay can't be followed")
}

// Many hosts whose paths change at once are one line in the log.
func TestPathsTellOfManyTogether(t *testing.T) {
	const hosts = 10000
	turnAll := func(f *followed, n int, next nexthop.Hop) {
		var changes []nexthop.Change
		for i := range n {
			changes = append(changes, nexthop.Change{Addr: underlayOf(i), Hop: next})
		}
		f.Found(changes)
	}
	lines := func(f *followed) (lines []string) {
		for line := range strings.Lines(f.log.String()) {
			_, line, _ = strings.Cut(line, "level=")
			lines = append(lines, strings.TrimSpace(line))
		}
		f.log.Reset()
		return lines
	}
	all := func(n int) (members []Member) {
		for i := range n {
			members = append(members, behind(i, i)...)
		}
		return members
	}
	lost := nexthop.Hop{Reason: "no route"}
	for _, c := range []struct {
		hosts  int
		alone  bool
		next   []nexthop.Hop
		many   string // the only line
		single string // of each host
	}{
		{hosts, false, []nexthop.Hop{onLinkHop}, `INFO msg="paths changed" direct=10000 vxlan=0`, ""},
		{hosts, false, []nexthop.Hop{onLinkHop, lost}, `INFO msg="paths changed" direct=0 vxlan=10000`, ""},
		{hosts, false, []nexthop.Hop{lost}, "", ""}, // nothing changed for packets
		{hosts, true, []nexthop.Hop{lost}, `INFO msg="paths changed" direct=0 unreachable=10000`, ""},
		{manyChanges + 1, true, []nexthop.Hop{onLinkHop}, `INFO msg="paths changed" direct=21 unreachable=0`, ""},
		{manyChanges, false, []nexthop.Hop{onLinkHop}, "", "INFO msg=\"peer is direct now\""},
		{manyChanges, false, []nexthop.Hop{onLinkHop, lost}, "", "INFO msg=\"peer is back to vxlan\""},
		{manyChanges, true, []nexthop.Hop{lost}, "", "ERROR msg=\"peer can't be reached\""},
	} {
		name := fmt.Sprintf("%d hosts, alone: %t, %d changes", c.hosts, c.alone, len(c.next))
		for _, level := range []slog.Level{slog.LevelInfo, slog.LevelDebug} {
			f := follow(t, level)
			f.alone = c.alone
			f.Replace(all(c.hosts))
			for _, next := range c.next {
				lines(f)
				turnAll(f, c.hosts, next)
			}
			got := lines(f)
			single := 0
			for _, line := range got {
				if c.single != "" && strings.HasPrefix(line, c.single) || c.single == "" && strings.HasPrefix(line, "DEBUG msg=\"peer ") {
					single++
				}
			}
			want := 0
			if c.single != "" || level == slog.LevelDebug {
				want = c.hosts
			}
			if single != want {
				t.Errorf("%s, %v: %d lines of single hosts, want %d", name, level, single, want)
			}
			if c.many != "" {
				want++
			}
			if len(got) != want || c.many != "" && got[0] != c.many {
				t.Errorf("%s, %v: %d lines, the first %q, want %d, %q", name, level, len(got), got[0], want, c.many)
			}
		}
	}
}
