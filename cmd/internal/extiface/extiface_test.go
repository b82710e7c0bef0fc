package extiface

import (
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel/netnstest"
)

func ipAddr(s string, scope, flags int) netlink.Addr {
	p := netip.MustParsePrefix(s)
	network := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
	return netlink.Addr{IPNet: network, Scope: scope, Flags: flags}
}

func TestRank(t *testing.T) {
	const permanent, secondary = unix.IFA_F_PERMANENT, unix.IFA_F_SECONDARY
	for _, c := range []struct {
		name          string
		better, worse netlink.Addr
	}{
		{"scope global before link", ipAddr("192.0.2.1/24", 0, 0), ipAddr("192.0.2.2/24", unix.RT_SCOPE_LINK, permanent)},
		{"global before link-local address", ipAddr("192.0.2.1/24", 0, 0), ipAddr("169.254.2.2/16", 0, permanent)},
		{"permanent before dynamic", ipAddr("192.0.2.1/24", 0, permanent), ipAddr("192.0.2.2/24", 0, 0)},
		{"first before secondary", ipAddr("192.0.2.1/24", 0, permanent), ipAddr("192.0.2.2/24", 0, permanent|secondary)},
	} {
		if rank(c.better) >= rank(c.worse) {
			t.Errorf("%s: ranks %d and %d", c.name, rank(c.better), rank(c.worse))
		}
	}
}

// newHost moves the test, and the commands it runs, into a network namespace of
// its own: a host with two networks, an interface that is down and one that has
// no address.
func newHost(t *testing.T) {
	t.Helper()
	netnstest.Enter(t)
	for _, command := range []string{
		"link add eth0 type veth peer name peer0",
		"link add eth1 mtu 9000 type veth peer name peer1 mtu 9000",
		"link add br0 type bridge",
		"link add br1 type bridge",
		"link set peer0 up", "link set eth0 up", "link set peer1 up", "link set eth1 up", "link set br1 up",
		"address add 169.254.7.7/16 dev eth0",
		"address add 192.168.9.9/24 dev eth0 preferred_lft 0", // deprecated
		"address add 192.168.8.7/24 dev eth0 valid_lft 3600 preferred_lft 3600",
		"address add 192.168.7.7/24 dev eth0",
		"address add 192.168.7.8/24 dev eth0", // secondary
		"address add 10.1.0.7/16 dev eth1",
		"address add 10.2.0.7/16 dev br0",
		"route add 10.99.0.0/16 via 10.1.0.1 src 192.168.7.8",
		"route add unreachable default metric 1",
	} {
		ip(t, command)
	}
}

func ip(t *testing.T, command string) {
	t.Helper()
	netnstest.Run(t, "ip", strings.Fields(command)...)
}

func patterns(all ...string) (compiled []*regexp.Regexp) {
	for _, p := range all {
		compiled = append(compiled, regexp.MustCompile(p))
	}
	return compiled
}

func TestIntegrationChoose(t *testing.T) {
	newHost(t)
	at := netip.MustParseAddr
	check := func(name string, w Wanted, link, address string) {
		t.Helper()
		got, err := Choose(w)
		want := Interface{Name: link, Index: got.Index, MTU: 1500, Address: at(address), PublicIP: at(address)}
		if link == "eth1" {
			want.MTU = 9000
		}
		if w.PublicIP.IsValid() {
			want.PublicIP = w.PublicIP
		}
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
		if i, err := net.InterfaceByName(link); err != nil || got.Index != i.Index {
			t.Errorf("%s: the number is %d: %+v, %v", name, got.Index, i, err)
		}
	}
	check("name, its best address", Wanted{Names: []string{"eth0"}}, "eth0", "192.168.7.7")
	check("name with an address of it", Wanted{Names: []string{"eth0"}, PublicIP: at("192.168.7.8")}, "eth0", "192.168.7.8")
	check("name behind a NAT", Wanted{Names: []string{"eth0"}, PublicIP: at("203.0.113.7")}, "eth0", "192.168.7.7")
	check("address", Wanted{Names: []string{"169.254.7.7"}}, "eth0", "169.254.7.7")
	check("second name", Wanted{Names: []string{"eth9", "eth1"}}, "eth1", "10.1.0.7")
	check("name that is down", Wanted{Names: []string{"br0"}}, "br0", "10.2.0.7")
	check("names before patterns", Wanted{Names: []string{"eth1"}, Patterns: patterns("eth0")}, "eth1", "10.1.0.7")
	check("address before name", Wanted{Patterns: patterns(`eth0|^10\.1\.`)}, "eth1", "10.1.0.7")
	check("the address that matches", Wanted{Patterns: patterns(`\.8$`)}, "eth0", "192.168.7.8")
	check("pattern of names", Wanted{Patterns: patterns("^eth[0-9]$")}, "eth0", "192.168.7.7")
	check("second pattern", Wanted{Patterns: patterns("wlan", "eth1")}, "eth1", "10.1.0.7")
	check("passes over what can't be used", Wanted{Patterns: patterns(`^127\.|\.9\.9$|^10\.2\.|^lo$|^br|^eth1$`)}, "eth1", "10.1.0.7")
	check("patterns before reach", Wanted{Patterns: patterns("eth0"), CanReach: at("10.1.0.99")}, "eth0", "192.168.7.7")
	check("reach on-link", Wanted{CanReach: at("10.1.0.99")}, "eth1", "10.1.0.7")
	check("reach by a route's source", Wanted{CanReach: at("10.99.1.1")}, "eth1", "192.168.7.8")
	check("reach after others", Wanted{Names: []string{"eth9"}, Patterns: patterns("wlan"), CanReach: at("10.1.0.99")}, "eth1", "10.1.0.7")
	check("public address", Wanted{PublicIP: at("10.1.0.7")}, "eth1", "10.1.0.7")

	ip(t, "route add default dev br1 metric 5") // which has no address
	ip(t, "route add default via 192.168.7.1 metric 20")
	ip(t, "route add default via 10.1.0.1 metric 10")
	check("default route", Wanted{}, "eth1", "10.1.0.7")
	ip(t, "route delete default via 10.1.0.1 metric 10")
	ip(t, "route add default metric 10 nexthop via 192.168.7.1 nexthop via 10.1.0.1")
	check("default route of several ways", Wanted{}, "eth0", "192.168.7.7")
}

func TestIntegrationChooseErrors(t *testing.T) {
	newHost(t)
	at := netip.MustParseAddr
	for _, c := range []struct {
		name string
		w    Wanted
		want []string
	}{
		{"nothing wanted", Wanted{}, []string{"no default route", "-iface"}},
		{"no such name", Wanted{Names: []string{"eth9"}}, []string{"no interface is called eth9"}},
		{"no address", Wanted{Names: []string{"br1"}}, []string{"br1 has no IPv4 address"}},
		{"loopback", Wanted{Names: []string{"127.0.0.1"}}, []string{"lo has the address 127.0.0.1, but that is of this host only"}},
		{"deprecated", Wanted{PublicIP: at("192.168.9.9")}, []string{"eth0 has the address 192.168.9.9, but that is deprecated"}},
		{"behind a NAT", Wanted{PublicIP: at("203.0.113.7")}, []string{"no interface has the address 203.0.113.7", "-iface"}},
		{"no match", Wanted{Patterns: patterns("^wlan", "^172")}, []string{`-iface-regex "^wlan" matches no address and no name`, `"^172" matches no`}},
		{"bad match", Wanted{Patterns: patterns(`^br`)}, []string{"matches only what can't be used", "br0, which is down", "br1 has no IPv4 address"}},
		{"bad address", Wanted{Patterns: patterns(`^127|\.9\.9$|^10\.2`)}, []string{"127.0.0.1 of lo, which is of this host only", "192.168.9.9 of eth0, which is deprecated", "10.2.0.7 of br0, which is down"}},
		{"out of reach", Wanted{CanReach: at("203.0.113.7")}, []string{"-iface-can-reach: route to 203.0.113.7"}},
		{"reach ourselves", Wanted{CanReach: at("10.1.0.7")}, []string{"10.1.0.7 is no other host's address"}},
		{"all of them", Wanted{Names: []string{"eth9"}, Patterns: patterns("^wlan"), CanReach: at("203.0.113.7")}, []string{"eth9", "^wlan", "203.0.113.7"}},
	} {
		got, err := Choose(c.w)
		if err == nil {
			t.Errorf("%s: it chose %+v", c.name, got)
			continue
		}
		candidates := []string{
			"lo (up) 127.0.0.1 of this host only", "br0 (down) 10.2.0.7", "no IPv4 address", "eth1 (up) 10.1.0.7",
			"eth0 (up) 192.168.9.9 deprecated, 192.168.7.7, 192.168.8.7, 192.168.7.8, 169.254.7.7, ",
		}
		for _, want := range append(candidates, c.want...) {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: it doesn't say %q: %v", c.name, want, err)
			}
		}
	}
}

func TestChooseV6(t *testing.T) {
	const permanent, temporary = unix.IFA_F_PERMANENT, unix.IFA_F_TEMPORARY
	local := ipAddr("fe80::7/64", unix.RT_SCOPE_LINK, permanent)
	privacy, dynamic := ipAddr("2001:db8::1234/64", 0, temporary), ipAddr("2001:db8::7/64", 0, 0)
	static, old := ipAddr("fd00:14::7/64", 0, permanent), ipAddr("fd00:14::9/64", 0, permanent|unix.IFA_F_DEPRECATED)
	fresh := ipAddr("fd00:14::8/64", 0, permanent|unix.IFA_F_TENTATIVE)
	hopeful := ipAddr("fd00:14::a/64", 0, permanent|unix.IFA_F_TENTATIVE|unix.IFA_F_OPTIMISTIC)
	taken := ipAddr("fd00:14::b/64", 0, permanent|unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED)
	for _, c := range []struct {
		name   string
		addrs  []netlink.Addr
		prefer []string
		want   string
		words  []string // of the error
	}{
		{"the permanent one", []netlink.Addr{local, privacy, dynamic, static, old}, nil, "fd00:14::7", nil},
		{"no temporary one", []netlink.Addr{local, privacy, dynamic}, nil, "2001:db8::7", nil},
		{"better than none", []netlink.Addr{local, privacy}, nil, "2001:db8::1234", nil},
		{"the wanted one", []netlink.Addr{static, dynamic}, []string{"fd00:99::1", "2001:db8::7"}, "2001:db8::7", nil},
		{"one that isn't here", []netlink.Addr{static, dynamic}, []string{"fd00:99::1"}, "fd00:14::7", nil},
		{"the wanted one is no good", []netlink.Addr{static, old}, []string{"fd00:14::9"}, "", []string{"eth0 has the address fd00:14::9, but that is deprecated"}},
		{"optimistic", []netlink.Addr{hopeful}, nil, "fd00:14::a", nil},
		{"not confirmed", []netlink.Addr{fresh}, nil, "", []string{errTentative.Error()}},
		{"nothing to be told", []netlink.Addr{local, old, taken}, nil, "", []string{
			"eth0 has no IPv6 address that peers could be told", "-iface", "fe80::7 link-local", "fd00:14::9 deprecated", "fd00:14::b somebody else's",
		}},
		{"nothing", nil, nil, "", []string{"there are: none"}},
	} {
		var prefer []netip.Addr
		for _, p := range c.prefer {
			prefer = append(prefer, netip.MustParseAddr(p))
		}
		slices.SortStableFunc(c.addrs, func(a, b netlink.Addr) int { return rank(a) - rank(b) })
		got, err := candidate{name: "eth0", addrsV6: c.addrs}.chooseV6(prefer)
		if c.want != "" && (err != nil || got.String() != c.want) {
			t.Errorf("%s: %s, %v", c.name, got, err)
		}
		for _, word := range c.words {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("%s: it doesn't say %q: %s, %v", c.name, word, got, err)
			}
		}
	}
}

func TestIntegrationAddIPv6(t *testing.T) {
	newHost(t)
	at := netip.MustParseAddr
	choose := func(w Wanted) (Interface, error) {
		t.Helper()
		found, err := Choose(w)
		if err != nil {
			t.Fatal(err)
		}
		return found.AddIPv6(t.Context(), w)
	}
	if got, err := choose(Wanted{Names: []string{"eth0"}}); err == nil || !strings.Contains(err.Error(), "eth0 has no IPv6 address") {
		t.Errorf("without one: %+v, %v", got, err)
	}
	// The kernel asks for it first, and takes a second for that.
	ip(t, "address add fd00:14::7/64 dev eth0")
	ip(t, "address add fd00:14::8/64 dev eth0 nodad")
	ip(t, "address add fd00:15::7/64 dev eth1 nodad")
	for _, c := range []struct {
		name              string
		w                 Wanted
		link, own, public string
	}{
		{"name and address", Wanted{Names: []string{"eth0", "fd00:14::7"}}, "eth0", "fd00:14::7", "fd00:14::7"},
		{"address alone", Wanted{Names: []string{"fd00:14::8"}}, "eth0", "fd00:14::8", "fd00:14::8"},
		{"public address", Wanted{Names: []string{"eth0"}, PublicIPv6: at("fd00:14::8")}, "eth0", "fd00:14::8", "fd00:14::8"},
		{"behind a NAT", Wanted{Names: []string{"eth1"}, PublicIPv6: at("2001:db8::1")}, "eth1", "fd00:15::7", "2001:db8::1"},
	} {
		got, err := choose(c.w)
		if err != nil || got.Name != c.link || got.AddressV6 != at(c.own) || got.PublicIPv6 != at(c.public) || !got.Address.Is4() {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}
