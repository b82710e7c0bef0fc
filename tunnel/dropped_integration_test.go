package tunnel

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/underlay"
)

// What is lost in the device's queue and at the sockets, before a worker reads it, is
// counted, and stays counted once the router is closed.
func TestIntegrationCountsWhatNobodyRead(t *testing.T) {
	h := testhost.New(t)
	h.Address("lo", "192.0.2.1/32")
	testhost.Must(t, h.LinkSetUp(h.Link("lo")))
	c := link.Config{
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.1.0")}, Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
		MTU: 1450, QueueLen: 10,
	}
	r := testhost.Inside(h, func() (*Router, error) {
		d, err := device.Open("overlay0", device.Config{Offloads: offload.All})
		if err != nil {
			return nil, err
		}
		u, err := underlay.Listen(underlay.Config{Address: netip.MustParseAddr("192.0.2.1"), Port: testhost.Port})
		if err != nil {
			return nil, err
		}
		if err := link.Configure("overlay0", c); err != nil {
			return nil, err
		}
		return New(d, u, Config{VNI: testVNI, MAC: testMAC(1), Link: c})
	})
	defer r.Close()
	if s := r.Stats(); s.Drop(DropTUNQueue) != 0 || s.Drop(DropSocketBuffer) != 0 {
		t.Fatalf("counted before anything was sent: %v", s.Drops)
	}
	flood := func(to string, size int, lost func() bool) {
		t.Helper()
		conn := testhost.Inside(h, func() (net.Conn, error) { return net.Dial("udp4", to) })
		defer conn.Close()
		testhost.Await(t, "a loss on the way to "+to, func() bool {
			for range 1000 {
				_, _ = conn.Write(make([]byte, size)) // what is lost is the point
			}
			return lost()
		})
	}
	flood("10.0.2.9:9", 100, func() bool { return r.Stats().Drop(DropTUNQueue) > 0 })
	flood("192.0.2.1:4789", 1400, func() bool { return r.Stats().Drop(DropSocketBuffer) > 0 })
	l := testhost.Inside(h, func() (netlink.Link, error) { return netlink.LinkByName("overlay0") })
	before := r.Stats()
	if want := l.Attrs().Statistics.TxDropped; before.Drop(DropTUNQueue) != want {
		t.Errorf("%d packets were lost in the queue, %d counted", want, before.Drop(DropTUNQueue))
	}
	// What nobody has asked about before Close counts too.
	var dropped uint64
	flood("10.0.2.9:9", 100, func() bool {
		dropped = testhost.Inside(h, func() (netlink.Link, error) { return netlink.LinkByName("overlay0") }).Attrs().Statistics.TxDropped
		return dropped > before.Drop(DropTUNQueue)
	})
	testhost.Must(t, r.Close())
	if after := r.Stats(); after.Drop(DropTUNQueue) != dropped || after.Drop(DropSocketBuffer) != before.Drop(DropSocketBuffer) {
		t.Errorf("%s before Close, %s after, and the queue lost %d", before.Drops, after.Drops, dropped)
	}
}
