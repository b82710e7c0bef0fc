package link

import (
	"net/netip"
	"testing"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
)

// The queue's length is set before the interface is up, and never afterwards: the
// kernel would throw packets away meanwhile.
func TestIntegrationQueueLen(t *testing.T) {
	h := testhost.New(t)
	d := testhost.Inside(h, func() (device.Device, error) { return device.Open("tun0", device.Config{}) })
	defer d.Close()
	c := Config{Networks: []netip.Prefix{netip.MustParsePrefix("172.7.0.0/16")}, MTU: 1450}
	configured := func() int {
		testhost.Inside(h, func() (struct{}, error) { return struct{}{}, Configure("tun0", c) })
		return h.Link("tun0").Attrs().TxQLen
	}
	if n := configured(); n != DefaultQueueLen {
		t.Errorf("the queue's length is %d, not %d", n, DefaultQueueLen)
	}
	const another = 3000
	testhost.Must(t, h.LinkSetTxQLen(h.Link("tun0"), another))
	if n := configured(); n != another {
		t.Errorf("somebody set the length %d, and it became %d", another, n)
	}
}
