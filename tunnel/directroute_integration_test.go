package tunnel

import (
	"net/netip"
	"testing"

	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/onlink"
)

// By kernel routes on-link peers never come to the device; Close leaves none,
// those of an earlier run included.
func TestIntegrationDirectRoute(t *testing.T) {
	n := newNeighbours(t, onlink.Route, 1)
	testhost.StaleRoute(n.a, "10.0.9.0/24", "10.66.0.9")
	testhost.Must(t, n.ReplacePeers([]Peer{n.peer}))
	n.start()
	n.awaitPath("direct via eth0")
	testhost.Await(t, "the route", func() bool { return len(n.a.Routes()) == 1 })
	n.a.ExpectRoutes("10.0.2.0/24 via 10.66.0.2")
	packet := testhost.UDPPacket("10.0.1.9", "10.0.2.9", 100)
	n.queue.Send(t, packet) // one that was on its way
	n.expect(n.eth0, true, packet)

	testhost.Must(t, n.UpdatePeers(nil, []netip.Prefix{netip.MustParsePrefix("10.0.2.9/24")}))
	n.a.ExpectRoutes()
	testhost.Must(t, n.UpdatePeers([]Peer{n.peer}, nil))
	testhost.Await(t, "the route", func() bool { return len(n.a.Routes()) == 1 })
	testhost.StaleRoute(n.a, "10.0.9.0/24", "10.66.0.9")
	testhost.Must(t, n.ReplacePeers([]Peer{n.peer, {netip.MustParsePrefix("10.0.3.0/24"), netip.MustParseAddr("10.66.0.3"), testMAC(3)}}))
	testhost.Must(t, n.Close())
	n.a.ExpectRoutes()
	testhost.Must(t, n.UpdatePeers([]Peer{n.peer}, nil))
	testhost.Must(t, n.ReplacePeers([]Peer{n.peer}))
	n.a.ExpectRoutes()
}
