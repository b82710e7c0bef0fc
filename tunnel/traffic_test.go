package tunnel

import (
	"net/netip"
	"testing"
	"time"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/testhost"
)

// awaitTraffic waits until a router has counted what it should have of a peer:
// it does so at the end of a batch, after the batch was delivered.
func awaitTraffic(t *testing.T, n *node, peer Peer, want PeerTraffic) PeerTraffic {
	t.Helper()
	var got PeerTraffic
	for end := time.Now().Add(testhost.Patience); time.Now().Before(end); {
		got = n.Traffic(peer.Subnet)
		seen := got.LastSeen
		want.LastSeen = seen
		if got == want && seen.IsZero() == (want.RxPackets == 0) {
			return got
		}
	}
	t.Fatalf("of %s there is %+v, want %+v", peer.Subnet, got, want)
	return got
}

func TestRouterCountsByPeer(t *testing.T) {
	port, started := testhost.FreePort(t), time.Now()
	a, b, c := startNode(t, 1, port, nil), startNode(t, 2, port, nil), startNode(t, 3, port, nil)
	addPeers(t, a, b.peer, c.peer)
	addPeers(t, b, a.peer)
	addPeers(t, c, a.peer)
	for _, to := range []*node{b, c, b, b} {
		dst := to.peer.Subnet.Addr().Next().Next()
		a.queue.Send(t, testhost.UDPPacket("10.0.1.9", dst.String(), 100))
		to.queue.Receive(t)
	}
	awaitTraffic(t, a, b.peer, PeerTraffic{TxPackets: 3, TxBytes: 3 * 128})
	awaitTraffic(t, a, c.peer, PeerTraffic{TxPackets: 1, TxBytes: 128})
	awaitTraffic(t, c, a.peer, PeerTraffic{RxPackets: 1, RxBytes: 128})
	got := awaitTraffic(t, b, a.peer, PeerTraffic{RxPackets: 3, RxBytes: 3 * 128})
	if got.LastSeen.Before(started) || got.LastSeen.After(time.Now()) {
		t.Errorf("last seen at %s, between %s and now", got.LastSeen, started)
	}

	// A lease that is renewed with another MAC is the same peer's.
	renewed := a.peer
	renewed.MAC = testMAC(99)
	addPeers(t, b, renewed)
	want := PeerTraffic{RxPackets: 3, RxBytes: 3 * 128}
	if after := awaitTraffic(t, b, a.peer, want); after.LastSeen.Before(got.LastSeen) {
		t.Errorf("after a change of the lease it was last seen at %s, before at %s", after.LastSeen, got.LastSeen)
	}
	if err := b.ReplacePeers([]Peer{a.peer}); err != nil {
		t.Fatal(err)
	}
	if after := awaitTraffic(t, b, a.peer, want); after.LastSeen.Before(got.LastSeen) {
		t.Errorf("after a new list of leases it was last seen at %s, before at %s", after.LastSeen, got.LastSeen)
	}
	if err := b.ReplacePeers(nil); err != nil {
		t.Fatal(err)
	}
	if after := b.Traffic(a.peer.Subnet); after != (PeerTraffic{}) {
		t.Errorf("of a peer that is gone there is %+v", after)
	}
}

func TestSegments(t *testing.T) {
	packet := testhost.UDPPacket("10.0.1.9", "10.0.2.9", 2500)
	for _, c := range []struct {
		offload encap.Offload
		want    int
	}{
		{encap.Offload{}, 1},
		{encap.Offload{GSO: encap.GSOUDP, ChecksumStart: 20, SegmentSize: 1000}, 3},
		{encap.Offload{GSO: encap.GSOUDP, ChecksumStart: 20, SegmentSize: 1250}, 2},
		{encap.Offload{GSO: encap.GSOUDP, ChecksumStart: 20, SegmentSize: 2500}, 1},
		{encap.Offload{GSO: encap.GSOUDP, ChecksumStart: 20}, 1},
		{encap.Offload{GSO: encap.GSOUDP, ChecksumStart: 0xffff, SegmentSize: 1}, 1},
		{encap.Offload{GSO: encap.GSOTCPv4, ChecksumStart: 0xffff, SegmentSize: 1}, 1},
	} {
		if got := c.offload.Segments(packet); got != c.want {
			t.Errorf("%+v makes %d packets, want %d", c.offload, got, c.want)
		}
	}
}

// Whose packets are taken from any source are counted of the peer whose subnet they
// come from, and what comes from no peer's of none.
func TestAnySourceCountsByPeer(t *testing.T) {
	a := startNode(t, 1, testhost.FreePort(t), func(c *Config) { c.AnySource = true })
	elsewhere := Peer{netip.MustParsePrefix("10.0.8.0/24"), netip.MustParseAddr("127.0.0.8"), testMAC(8)}
	addPeers(t, a, testPeer9, elsewhere)
	w := newWire(t, 9, a)
	for _, src := range []string{"10.0.9.1", "10.0.9.1", "10.0.8.1", "10.0.7.1", "10.0.9.2"} {
		w.send(t, encap.MakeFrameHeader(testVNI, testMAC(1), testMAC(9), encap.EtherTypeIPv4), testhost.UDPPacket(src, "10.0.1.9", 100))
		a.queue.Receive(t)
	}
	awaitTraffic(t, a, testPeer9, PeerTraffic{RxPackets: 3, RxBytes: 3 * 128})
	awaitTraffic(t, a, elsewhere, PeerTraffic{RxPackets: 1, RxBytes: 128})
}
