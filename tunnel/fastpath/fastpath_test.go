package fastpath

import (
	"errors"
	"net"
	"net/netip"
	"strings"
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

// Only interfaces that the programs were tried on are the underlay's, and none that
// belongs to another, whose rules are for what it gets.
func TestLinkObjection(t *testing.T) {
	attrs := func(name, encap string, master int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Name: name, EncapType: encap, MasterIndex: master}
	}
	masters := map[int]netlink.Link{
		7: &netlink.Bond{LinkAttrs: attrs("bond0", "ether", 0)}, 8: &netlink.Bridge{LinkAttrs: attrs("br0", "ether", 0)},
		9: &netlink.Vrf{LinkAttrs: attrs("red", "ether", 0)}, 10: &netlink.GenericLink{LinkAttrs: attrs("team0", "ether", 0), LinkType: "team"},
	}
	tun := func(master int) netlink.Link { return &netlink.Tuntap{LinkAttrs: attrs("flannel.1", "none", master)} }
	for name, c := range map[string]struct {
		device, underlay netlink.Link
		want             string
	}{
		"NIC":         {tun(0), &netlink.Device{LinkAttrs: attrs("eth0", "ether", 0)}, ""},
		"veth":        {tun(0), &netlink.Veth{LinkAttrs: attrs("eth0", "ether", 0)}, ""},
		"bridge":      {tun(0), masters[8], ""},
		"macvlan":     {tun(0), &netlink.Macvlan{LinkAttrs: attrs("mv0", "ether", 0)}, ""},
		"TAP":         {tun(0), &netlink.Tuntap{LinkAttrs: attrs("tap0", "ether", 0)}, ""},
		"TUN":         {tun(0), &netlink.Tuntap{LinkAttrs: attrs("tun0", "none", 0)}, "tun0 isn't an Ethernet interface"},
		"loopback":    {tun(0), &netlink.Device{LinkAttrs: attrs("lo", "loopback", 0)}, "lo isn't an Ethernet interface"},
		"VLAN":        {tun(0), &netlink.Vlan{LinkAttrs: attrs("eth0.5", "ether", 0)}, "eth0.5 is a vlan interface"},
		"bond":        {tun(0), masters[7], "bond0 is a bond interface"},
		"VRF":         {tun(0), masters[9], "red is a vrf interface"},
		"ipvlan":      {tun(0), &netlink.IPVlan{LinkAttrs: attrs("iv0", "ether", 0)}, "iv0 is a ipvlan interface"},
		"macvtap":     {tun(0), &netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: attrs("mt0", "ether", 0)}}, "mt0 is a macvtap interface"},
		"dummy":       {tun(0), &netlink.Dummy{LinkAttrs: attrs("d0", "ether", 0)}, "d0 is a dummy interface"},
		"VXLAN":       {tun(0), &netlink.Vxlan{LinkAttrs: attrs("vx0", "ether", 0)}, "vx0 is a vxlan interface"},
		"WireGuard":   {tun(0), &netlink.Wireguard{LinkAttrs: attrs("wg0", "none", 0)}, "wg0 is a wireguard interface"},
		"bond member": {tun(0), &netlink.Device{LinkAttrs: attrs("eth0", "ether", 7)}, "eth0 belongs to bond0 (bond)"},
		"port":        {tun(0), &netlink.Device{LinkAttrs: attrs("eth0", "ether", 8)}, "eth0 belongs to br0 (bridge)"},
		"VRF member":  {tun(0), &netlink.Device{LinkAttrs: attrs("eth0", "ether", 9)}, "eth0 belongs to red (vrf)"},
		"team member": {tun(0), &netlink.Device{LinkAttrs: attrs("eth0", "ether", 10)}, "eth0 belongs to team0 (team)"},
		"device in a VRF": {
			tun(9), &netlink.Device{LinkAttrs: attrs("eth0", "ether", 0)}, "flannel.1 belongs to red (vrf)",
		},
		"no device": {nil, &netlink.Device{LinkAttrs: attrs("eth0", "ether", 0)}, "the device is gone"},
	} {
		if got := linkObjection(c.device, c.underlay, masters); (got == "") != (c.want == "") || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
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
