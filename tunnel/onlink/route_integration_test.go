package onlink

import (
	"net/netip"
	"testing"

	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/nexthop"
)

// When the underlay can't be followed any longer the routes go with it: all goes by
// VXLAN.
func TestIntegrationGiveUpRemovesRoutes(t *testing.T) {
	h := testhost.New(t)
	testhost.Join(h, testhost.New(t), "eth0", "10.66.0")
	p := testhost.Inside(h, func() (*Paths, error) { return Open(Config{Mode: Route}) })
	t.Cleanup(func() { testhost.Must(t, p.Close()) })
	m := Member{netip.MustParsePrefix("10.0.2.0/24"), netip.MustParseAddr("10.66.0.2")}
	p.Replace([]Member{m})
	p.Found([]nexthop.Change{{Addr: m.Underlay, Hop: nexthop.Hop{OnLink: true, Link: "eth0", Index: h.Index("eth0"), MTU: 1500}}})
	h.ExpectRoutes("10.0.2.0/24 via 10.66.0.2")
	p.giveUp()
	h.ExpectRoutes()
	if path := p.Path(m.Subnet); path.Direct {
		t.Errorf("the path is %v", path)
	}
}
