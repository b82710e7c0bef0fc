package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/underlay"
)

// lossy is a host whose router doesn't run, so that all that is sent to it is lost in
// the end.
type lossy struct {
	*testhost.Host
	link link.Config
}

func newLossyHost(t *testing.T) *lossy {
	t.Helper()
	h := &lossy{testhost.New(t), link.Config{
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.1.0")}, Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
		MTU: 1450, QueueLen: 10,
	}}
	h.Address("lo", "192.0.2.1/32")
	testhost.Must(t, h.LinkSetUp(h.Link("lo")))
	return h
}

func (h *lossy) open() (device.Device, *underlay.UDP) {
	h.T.Helper()
	d := testhost.Inside(h.Host, func() (device.Device, error) {
		d, err := device.Open("overlay0", device.Config{Offloads: offload.All})
		return d, errors.Join(err, link.Configure("overlay0", h.link))
	})
	u := testhost.Inside(h.Host, func() (*underlay.UDP, error) {
		return underlay.Listen(underlay.Config{Address: netip.MustParseAddr("192.0.2.1"), Port: testhost.Port})
	})
	return d, u
}

func (h *lossy) router(d device.Device, u *underlay.UDP) *Router {
	h.T.Helper()
	r, err := New(d, u, Config{VNI: testVNI, MAC: testMAC(1), Link: h.link})
	testhost.Must(h.T, err)
	h.T.Cleanup(func() { testhost.Must(h.T, r.Close()) })
	return r
}

// lostInQueue is what the interface's own statistics say.
func (h *lossy) lostInQueue() uint64 { return h.Link("overlay0").Attrs().Statistics.TxDropped }

// flood sends to an address until something is lost.
func (h *lossy) flood(to string, size int, lost func() bool) {
	h.T.Helper()
	conn := testhost.Inside(h.Host, func() (net.Conn, error) { return net.Dial("udp4", to) })
	defer conn.Close()
	testhost.Await(h.T, "a loss on the way to "+to, func() bool {
		for range 1000 {
			_, _ = conn.Write(make([]byte, size)) // what is lost is the point
		}
		return lost()
	})
}

func (h *lossy) floodQueue() (lost uint64) {
	h.T.Helper()
	before := h.lostInQueue()
	h.flood("10.0.2.9:9", 100, func() bool { return h.lostInQueue() > before })
	return h.lostInQueue() - before
}

// floodSockets has the sockets of a router overflow, by what they themselves say.
func (h *lossy) floodSockets(r *Router) (lost uint64) {
	h.T.Helper()
	c := r.workers[0].conn
	before := c.Lost()
	h.flood("192.0.2.1:4789", 1400, func() bool { return c.Lost() > before })
	return c.Lost() - before
}

// What is lost in the device's queue and at the sockets, before a worker reads it, is
// counted from New to the end, whether anybody asks meanwhile or not.
func TestIntegrationCountsWhatNobodyRead(t *testing.T) {
	h := newLossyHost(t)
	d, u := h.open()
	h.floodQueue() // is nobody's
	var queue, sockets uint64
	expect := func(when string, r *Router) {
		t.Helper()
		if s := r.Stats(); s.Drop(DropTUNQueue) != queue || s.Drop(DropSocketBuffer) != sockets {
			t.Errorf("%s: counted %s, lost %d in the queue and %d at the sockets", when, s.Drops, queue, sockets)
		}
	}
	r := h.router(d, u)
	expect("after New", r)
	queue, sockets = h.floodQueue(), h.floodSockets(r)
	expect("after losses", r)
	queue, sockets = queue+h.floodQueue(), sockets+h.floodSockets(r)
	given, err := r.Release()
	testhost.Must(t, err)
	expect("after Release", r)

	queue, sockets = 0, 0
	u = testhost.Inside(h.Host, func() (*underlay.UDP, error) { return underlay.Adopt(given.Sockets.UDP, offload.All) })
	d = testhost.Inside(h.Host, func() (device.Device, error) { return device.Adopt(given.Queues, offload.All) })
	next := h.router(d, u)
	expect("after another New", next)
	queue, sockets = h.floodQueue(), h.floodSockets(next)
	testhost.Must(t, next.Close())
	expect("after Close", next)
}
