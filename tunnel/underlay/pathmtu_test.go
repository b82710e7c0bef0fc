package underlay

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/testhost"
)

// The MTU of a path is what the kernel goes by, in the sockets' namespace, and isn't
// known elsewhere.
func TestIntegrationPathMTU(t *testing.T) {
	a, b := testhost.New(t), testhost.New(t)
	testhost.Join(a, b, "eth0", "10.66.0")
	a.Address("eth0", "fd66::1/64")
	before := testhost.Descriptors(t)
	listen := func(h *testhost.Host) *UDP {
		return testhost.Inside(h, func() (*UDP, error) {
			return Listen(Config{Address: netip.MustParseAddr("10.66.0.1"), AddressV6: netip.MustParseAddr("fd66::1"), Port: testhost.Port})
		})
	}
	expect := func(u *UDP, to string, want encap.OuterMTU) {
		t.Helper()
		if got := u.PathMTU(netip.MustParseAddr(to)); got != want {
			t.Errorf("the MTU to %s is %d, want %d", to, got, want)
		}
	}
	u := listen(a)
	expect(u, "10.66.0.2", 1500)
	expect(u, "10.67.0.9", 0) // no route
	for _, subnet := range []string{"10.67.0.0/24", "fd67::/64"} {
		testhost.Must(t, a.RouteAdd(&netlink.Route{
			Dst: testhost.IPNet(netip.MustParsePrefix(subnet)), LinkIndex: a.Index("eth0"), MTU: 1400,
		}))
	}
	expect(u, "10.67.0.9", 1400)
	expect(u, "fd67::9", 1400)
	expect(u, "fd66::9", 1500)
	testhost.Must(t, a.LinkSetMTU(a.Link("eth0"), 1450))
	expect(u, "10.66.0.2", 1450)
	expect(u, "10.67.0.9", 1400)

	given := u.Descriptors()
	testhost.Must(t, u.Release())
	expect(u, "10.67.0.9", 0)
	b.Address("lo", "10.66.0.1/32") // what is bound there isn't a's
	b.Address("lo", "fd66::1/128")
	adopt := func(h *testhost.Host) *UDP {
		return testhost.Inside(h, func() (*UDP, error) { return Adopt(given, 0) })
	}
	elsewhere := adopt(b)
	expect(elsewhere, "10.66.0.2", 0)
	testhost.Must(t, elsewhere.Release())
	u = adopt(a)
	expect(u, "10.67.0.9", 1400)
	expect(u, "fd67::9", 1400)
	testhost.Must(t, u.Close())
	if after := testhost.Descriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}
