package device_test

import (
	"runtime"
	"testing"

	"golang.zx2c4.com/wireguard/tun/tuntest"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
)

// The memory for packets isn't of the heap: it would be most of that, and what else
// gathers there would be collected late.
func TestWrapWireGuardTakesLittleHeap(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	c := tuntest.NewChannelTUN()
	before := heap()
	d, err := device.WrapWireGuard(c.TUN())
	testhost.Must(t, err)
	const most = 1 << 20
	if after := heap(); after > before+most {
		t.Errorf("the device takes %d KiB of the heap, at most %d", (after-before)>>10, most>>10)
	}
	testhost.Must(t, d.Close())
}
