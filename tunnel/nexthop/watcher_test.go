package nexthop

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

func TestDebounce(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	var d debounce
	expect := func(want time.Time, wantOK bool) {
		t.Helper()
		if got, ok := d.due(); ok != wantOK || ok && !got.Equal(want) {
			t.Errorf("due %v, %t, want %v, %t", got, ok, want, wantOK)
		}
	}
	expect(at(0), false)
	d.event(at(0))
	expect(at(20), true)
	d.event(at(15))
	expect(at(35), true)
	for ms := 30; ms < 120; ms += 15 {
		d.event(at(ms))
	}
	expect(at(100), true)
	d.start()
	expect(at(0), false)
	d.done(at(100), at(600))
	d.event(at(610))
	expect(at(1100), true)
}

func TestAddressesWithin(t *testing.T) {
	s := newAddressSet()
	for _, a := range []string{"10.0.0.1", "10.0.1.1", "10.0.1.255", "10.0.2.0", "fd00::1", "fd00:1::1", "::1"} {
		s.add(netip.MustParseAddr(a))
	}
	for prefix, want := range map[string][]string{
		"10.0.1.0/24":    {"10.0.1.1", "10.0.1.255"},
		"10.0.1.7/24":    {"10.0.1.1", "10.0.1.255"},
		"10.0.2.0/32":    {"10.0.2.0"},
		"0.0.0.0/0":      {"10.0.0.1", "10.0.1.1", "10.0.1.255", "10.0.2.0"},
		"::/0":           {"::1", "fd00::1", "fd00:1::1"},
		"fd00::/32":      {"fd00::1"},
		"172.16.0.0/12":  nil,
		"fe80::/10":      nil,
		"0.0.0.0/32":     nil,
		"ffff::/16":      nil,
		"10.0.1.128/25":  {"10.0.1.255"},
		"10.0.1.255/32":  {"10.0.1.255"},
		"192.168.0.0/16": nil,
	} {
		var got []string
		for a := range s.within(netip.MustParsePrefix(prefix)) {
			got = append(got, a.addr.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", prefix, got, want)
		}
	}
	s.remove(netip.MustParseAddr("10.0.1.1"))
	for a := range s.within(netip.MustParsePrefix("10.0.1.0/25")) {
		t.Errorf("%s is still there", a.addr)
	}
}

// newState is a watcher without sockets, for what needs none.
func newState(addrs ...string) *Watcher {
	w := &Watcher{
		addresses: newAddressSet(), links: make(map[int]link), neighbours: make(map[neighbourKey]neighbour),
		onLink: make(map[*address]struct{}),
	}
	for _, a := range addrs {
		w.addresses.add(netip.MustParseAddr(a))
	}
	return w
}

func routeMessage(prefix string, edit func(*nl.RtMsg)) syscall.NetlinkMessage {
	p := netip.MustParsePrefix(prefix)
	head := nl.NewRtMsg()
	head.Family, head.Dst_len = uint8(nl.GetIPFamily(p.Addr().AsSlice())), uint8(p.Bits())
	if edit != nil {
		edit(head)
	}
	data := head.Serialize()
	if p.Bits() > 0 {
		data = append(data, nl.NewRtAttr(unix.RTA_DST, p.Addr().AsSlice()).Serialize()...)
	}
	return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWROUTE}, Data: data}
}

// Only the addresses inside a route's destination are decided anew.
func TestRouteEventMarks(t *testing.T) {
	for _, c := range []struct {
		message syscall.NetlinkMessage
		want    int
		quiet   bool
	}{
		{message: routeMessage("172.7.21.0/24", nil), want: 0},
		{message: routeMessage("10.0.0.0/24", nil), want: 1},
		{message: routeMessage("0.0.0.0/0", nil), want: 2},
		{message: routeMessage("::/0", nil), want: 1},
		{message: routeMessage("fd00::/64", nil), want: 1},
		{message: routeMessage("10.0.0.0/8", func(m *nl.RtMsg) { m.Flags = unix.RTM_F_CLONED }), quiet: true},
		{message: routeMessage("10.0.0.0/8", func(m *nl.RtMsg) { m.Family = unix.AF_MPLS }), quiet: true},
	} {
		w := newState("10.0.0.1", "10.0.1.1", "fd00::1")
		for range 2 {
			must(t, w.topology(c.message))
		}
		if _, pending := w.debounce.due(); len(w.marked) != c.want || w.all || pending == c.quiet {
			t.Errorf("%x: %d marked, all %t, pending %t", c.message.Data, len(w.marked), w.all, pending)
		}
	}
}

func linkMessage(kind uint16, flags uint32, edit func(*nl.IfInfomsg)) syscall.NetlinkMessage {
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Index, head.Type, head.Flags = 2, unix.ARPHRD_ETHER, flags
	mtu := nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(1500))
	if edit != nil {
		edit(head)
	}
	if head.Change == 1 {
		mtu = nl.NewRtAttr(unix.IFLA_WIRELESS, nil)
	}
	data := slices.Concat(head.Serialize(), nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("eth0")).Serialize(), mtu.Serialize())
	return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: data}
}

// Of what the kernel says of links, only what changes routes or frames counts.
func TestLinkEvents(t *testing.T) {
	const up = unix.IFF_UP | unix.IFF_LOWER_UP
	w := newState("10.0.0.1")
	for i, c := range []struct {
		message            syscall.NetlinkMessage
		pending, all, gone bool
	}{
		{message: linkMessage(unix.RTM_NEWLINK, 0, nil), pending: true},
		{message: linkMessage(unix.RTM_NEWLINK, up, nil), pending: true, all: true},
		{message: linkMessage(unix.RTM_NEWLINK, up, nil)},
		{message: linkMessage(unix.RTM_NEWLINK, up|unix.IFF_PROMISC, nil)},
		{message: linkMessage(unix.RTM_NEWLINK, 0, func(m *nl.IfInfomsg) { m.Change = 1 })}, // a wireless event
		{message: linkMessage(unix.RTM_DELLINK, up, func(m *nl.IfInfomsg) { m.Family = unix.AF_BRIDGE })},
		{message: linkMessage(unix.RTM_NEWLINK, unix.IFF_UP, nil), pending: true, all: true},
		{message: linkMessage(unix.RTM_DELLINK, 0, nil), pending: true, all: true, gone: true},
		{message: linkMessage(unix.RTM_DELLINK, 0, nil), gone: true},
	} {
		w.all, w.debounce, w.repeat = false, debounce{}, time.Time{}
		must(t, w.topology(c.message))
		_, pending := w.debounce.due()
		_, there := w.links[2]
		if pending != c.pending || w.all != c.all || w.repeat.IsZero() == c.all || there == c.gone {
			t.Errorf("event %d: pending %t, all %t, repeated %v, there %t", i, pending, w.all, w.repeat, there)
		}
	}
}

// What can't be read is an error rather than a panic or nothing.
func TestMalformedEvents(t *testing.T) {
	w := newState()
	overlong := routeMessage("10.0.0.0/24", func(m *nl.RtMsg) { m.Dst_len = 99 })
	torn := routeMessage("10.0.0.0/24", nil)
	torn.Data = torn.Data[:len(torn.Data)-2]
	for name, m := range map[string]syscall.NetlinkMessage{"overlong": overlong, "torn": torn} {
		if w.topology(m) == nil {
			t.Errorf("%s route is taken", name)
		}
	}
	for _, kind := range []uint16{unix.RTM_NEWLINK, unix.RTM_NEWROUTE} {
		if w.topology(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: make([]byte, 3)}) == nil {
			t.Errorf("empty message %d is taken", kind)
		}
	}
	if w.neighbourEvent(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_NEWNEIGH}}) == nil {
		t.Error("empty neighbour is taken")
	}
	header := make([]byte, unix.NLMSG_HDRLEN)
	header[0] = 200 // longer than what follows
	if handleAll(header, func(syscall.NetlinkMessage) error { return nil }) {
		t.Error("a truncated message is taken")
	}
}

// Who isn't used is asked for ever more rarely, and never many at once.
func TestWants(t *testing.T) {
	w := newState("10.0.0.1")
	now := time.Unix(1000, 0)
	a := w.addresses.byAddr[netip.MustParseAddr("10.0.0.1")]
	a.path = Hop{OnLink: true, Index: 2}
	w.onLink[a] = struct{}{}
	mac := encap.MAC{2}
	for _, c := range []struct {
		name string
		n    neighbour
		edit func()
		want bool
	}{
		{"unused, at first", neighbour{}, func() {}, true},
		{"unused, asked before", neighbour{}, func() { a.ask = now.Add(1) }, false},
		{"unused, too many", neighbour{}, func() { w.idleLeft = 0 }, false},
		{"unused, table full", neighbour{}, func() { w.idleFrom = now.Add(1) }, false},
		{"used, whatever", neighbour{}, func() { a.used, w.idleLeft, a.ask, w.idleFrom = true, 0, now.Add(1), now.Add(1) }, true},
		{"used, failed", neighbour{netlink.NUD_FAILED, mac}, func() { a.used = true }, true},
		{"used, stale", neighbour{netlink.NUD_STALE, mac}, func() { a.used = true }, true},
		{"unused, stale", neighbour{netlink.NUD_STALE, mac}, func() {}, false},
		{"used, permanent", neighbour{netlink.NUD_PERMANENT, mac}, func() { a.used = true }, false},
		{"used, reachable", neighbour{netlink.NUD_REACHABLE, mac}, func() { a.used = true }, false},
		{"used, off-link", neighbour{}, func() { a.used, a.path.OnLink = true, false }, false},
		{"used, removed", neighbour{}, func() { a.used, a.gone = true, true }, false},
	} {
		*a = address{addr: a.addr, path: Hop{OnLink: true, Index: 2}}
		w.idleLeft, w.idleFrom = 1, time.Time{}
		w.neighbours[a.neighbourKey()] = c.n
		c.edit()
		if got := w.wants(a, now); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestClosed(t *testing.T) {
	warm, err := Open(Config{}) // the runtime's poller stays
	must(t, err)
	must(t, warm.Close())
	before := descriptors(t)
	w, err := Open(Config{Neighbours: true})
	must(t, err)
	for range 2 {
		must(t, w.Close())
	}
	w.Track([]netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil)
	w.Replace(nil)
	if err := w.Run(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Run on a closed watcher: %v", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// descriptors counts open files, without that of the list.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list) - 1
}
