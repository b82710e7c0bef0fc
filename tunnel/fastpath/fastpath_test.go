package fastpath

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel"
	"uvxlan/tunnel/internal/family"
)

func TestObjection(t *testing.T) {
	locals := []netip.AddrPort{netip.MustParseAddrPort("10.66.0.1:4789"), netip.MustParseAddrPort("[fd66::1]:4789")}
	peer := func(underlay string, direct bool) tunnel.FastPeer {
		p := tunnel.FastPeer{Peer: tunnel.Peer{Underlay: netip.MustParseAddr(underlay)}}
		if direct {
			p.Direct = &tunnel.DirectWay{Link: 2}
		}
		return p
	}
	for4 := func(src, dst string, proto int) policy {
		p := netlink.XfrmPolicy{Proto: netlink.Proto(proto)}
		for text, to := range map[string]**net.IPNet{src: &p.Src, dst: &p.Dst} {
			if text != "" {
				*to = asRead(t, text)
			}
		}
		return policyOf(p, locals[0].Addr())
	}
	for6 := func(src, dst string) policy {
		return policyOf(netlink.XfrmPolicy{Src: asRead(t, src), Dst: asRead(t, dst)}, locals[1].Addr())
	}
	for name, c := range map[string]struct {
		peer     tunnel.FastPeer
		policies []policy
		carried  bool
	}{
		"no policy":                {peer("10.66.0.2", false), nil, true},
		"IPv6, no policy":          {peer("fd66::2", false), nil, true},
		"IPv6, to the peer":        {peer("fd66::2", false), []policy{for6("fd66::1/128", "fd66::2/128")}, false},
		"IPv6, from a network":     {peer("fd66::2", false), []policy{for6("fd66::/64", "fd66::1/128")}, false},
		"IPv6, to a short network": {peer("fd66::2", false), []policy{for6("fd66::1/128", "fd66::/16")}, false},
		"IPv6, of anybody":         {peer("fd66::2", false), []policy{for6("::/0", "::/0")}, false},
		"IPv6, to another peer":    {peer("fd66::2", false), []policy{for6("fd66::1/128", "fd66::3/128")}, true},
		"IPv6, to another network": {peer("fd66::2", false), []policy{for6("fd66::1/128", "fd67::/64")}, true},
		"IPv6, of IPv4":            {peer("fd66::2", false), []policy{for4("0.0.0.0/0", "0.0.0.0/0", 0)}, true},
		"of IPv6":                  {peer("10.66.0.2", false), []policy{for6("::/0", "::/0")}, true},
		"to the peer":              {peer("10.66.0.2", false), []policy{for4("10.66.0.1/32", "10.66.0.2/32", 0)}, false},
		"from the peer":            {peer("10.66.0.2", false), []policy{for4("10.66.0.2/32", "10.66.0.1/32", 0)}, false},
		"from an on-link peer":     {peer("10.66.0.2", true), []policy{for4("10.66.0.2/32", "10.66.0.1/32", 0)}, false},
		"to a network":             {peer("10.66.0.2", false), []policy{for4("10.66.0.0/24", "10.66.0.3/24", unix.IPPROTO_UDP)}, false},
		"of anybody":               {peer("10.66.0.2", false), []policy{for4("", "", 0)}, false},
		"of TCP":                   {peer("10.66.0.2", false), []policy{for4("10.66.0.1/32", "10.66.0.2/32", unix.IPPROTO_TCP)}, true},
		"to another peer":          {peer("10.66.0.2", false), []policy{for4("10.66.0.1/32", "10.66.0.3/32", 0)}, true},
		"the second of two covers": {peer("10.66.0.2", false), []policy{for4("10.66.0.1/32", "10.66.0.3/32", 0), for4("0.0.0.0/0", "0.0.0.0/0", 0)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			v := view{policies: c.policies}
			if reason := v.objection(locals, c.peer); (reason == "") != c.carried {
				t.Errorf("the objection is %q", reason)
			}
		})
	}
}

// asRead is a prefix as package netlink reads it of the kernel.
func asRead(t *testing.T, text string) *net.IPNet {
	t.Helper()
	p := netip.MustParsePrefix(text)
	var a nl.XfrmAddress
	copy(a[:], p.Addr().AsSlice())
	return a.ToIPNet(uint8(p.Bits()), uint16(familyOf(p.Addr())))
}

// Peers of a family that we have no address of, or that can't be carried, are the
// workers'.
func TestObjectionToFamily(t *testing.T) {
	v := view{families: [family.Count]string{family.IPv6: "no IPv6"}}
	for underlay, want := range map[string]string{"10.66.0.2": "", "fd66::2": "no IPv6"} {
		p := tunnel.FastPeer{Peer: tunnel.Peer{Underlay: netip.MustParseAddr(underlay)}}
		if got := v.objection(nil, p); got != want {
			t.Errorf("%s: %q, want %q", underlay, got, want)
		}
	}
}

func TestDescriptorsOfNobody(t *testing.T) {
	var d *Descriptors
	if len(d.All()) != 0 || d.Close() != nil {
		t.Error("nil has descriptors")
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	d = &Descriptors{Maps: map[string]int{"peers4": fds[0]}, Links: []int{fds[1]}}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	for _, fd := range fds {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("descriptor %d: %v, want it closed", fd, err)
		}
	}
}
