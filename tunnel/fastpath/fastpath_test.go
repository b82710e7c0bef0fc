package fastpath

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel"
)

func TestObjection(t *testing.T) {
	local := netip.MustParseAddr("10.66.0.1")
	peer := func(underlay string, direct bool) tunnel.FastPeer {
		p := tunnel.FastPeer{Peer: tunnel.Peer{Underlay: netip.MustParseAddr(underlay)}}
		if direct {
			p.Direct = &tunnel.DirectWay{Link: 2}
		}
		return p
	}
	policy := func(src, dst string, proto int) netlink.XfrmPolicy {
		p := netlink.XfrmPolicy{Proto: netlink.Proto(proto)}
		for text, to := range map[string]**net.IPNet{src: &p.Src, dst: &p.Dst} {
			if text == "" {
				continue
			}
			_, n, err := net.ParseCIDR(text)
			if err != nil {
				t.Fatal(err)
			}
			*to = n
		}
		return p
	}
	for name, c := range map[string]struct {
		peer     tunnel.FastPeer
		policies []netlink.XfrmPolicy
		carried  bool
	}{
		"no policy":                {peer("10.66.0.2", false), nil, true},
		"IPv6":                     {peer("fd01::2", false), nil, false},
		"to the peer":              {peer("10.66.0.2", false), []netlink.XfrmPolicy{policy("10.66.0.1/32", "10.66.0.2/32", 0)}, false},
		"from the peer":            {peer("10.66.0.2", false), []netlink.XfrmPolicy{policy("10.66.0.2/32", "10.66.0.1/32", 0)}, false},
		"from an on-link peer":     {peer("10.66.0.2", true), []netlink.XfrmPolicy{policy("10.66.0.2/32", "10.66.0.1/32", 0)}, false},
		"to a network":             {peer("10.66.0.2", false), []netlink.XfrmPolicy{policy("10.66.0.0/24", "10.66.0.3/24", unix.IPPROTO_UDP)}, false},
		"of anybody":               {peer("10.66.0.2", false), []netlink.XfrmPolicy{policy("", "", 0)}, false},
		"of TCP":                   {peer("10.66.0.2", false), []netlink.XfrmPolicy{policy("10.66.0.1/32", "10.66.0.2/32", unix.IPPROTO_TCP)}, true},
		"to another peer":          {peer("10.66.0.2", false), []netlink.XfrmPolicy{policy("10.66.0.1/32", "10.66.0.3/32", 0)}, true},
		"the second of two covers": {peer("10.66.0.2", false), []netlink.XfrmPolicy{policy("10.66.0.1/32", "10.66.0.3/32", 0), policy("0.0.0.0/0", "0.0.0.0/0", 0)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			v := view{policies: c.policies}
			if reason := v.objection(local, c.peer); (reason == "") != c.carried {
				t.Errorf("the objection is %q", reason)
			}
		})
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
