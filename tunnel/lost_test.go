package tunnel

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/underlay"
)

// lossyDevice says what was lost in its queue.
type lossyDevice struct {
	*testhost.MemoryDevice
	dropped func() (uint64, bool)
}

func (d *lossyDevice) Dropped() (uint64, bool) { return d.dropped() }

// lossyUnderlay says what its sockets have lost.
type lossyUnderlay struct {
	underlay.Underlay
	lost func() uint64
}

type lossyConn struct {
	underlay.Conn
	lost func() uint64
}

func (u *lossyUnderlay) Open(worker int, hugePages bool) (underlay.Conn, error) {
	c, err := u.Underlay.Open(worker, hugePages)
	return &lossyConn{c, u.lost}, err
}

func (c *lossyConn) Lost() uint64 { return c.lost() }

func newLossy(t *testing.T, dropped func() (uint64, bool), lost func() uint64) *Router {
	t.Helper()
	u, err := underlay.NewMemory().Listen(1, netip.MustParseAddrPort("192.0.2.1:4789"))
	testhost.Must(t, err)
	var d device.Device = &lossyDevice{testhost.NewMemoryDevice(t, 1, 0), dropped}
	r, err := New(d, &lossyUnderlay{u, lost}, Config{VNI: testVNI, MAC: testMAC(1), Link: link.Config{MTU: 1450}})
	testhost.Must(t, err)
	t.Cleanup(func() { testhost.Must(t, r.Close()) })
	return r
}

// What was lost counts from New on, or from when it is known.
func TestLossesCountFromNew(t *testing.T) {
	var inQueue, atSockets uint64
	var known bool
	r := newLossy(t, func() (uint64, bool) { return inQueue, known }, func() uint64 { return atSockets })
	for _, step := range []struct {
		name           string
		inQueue        uint64
		known          bool
		atSockets      uint64
		queue, sockets uint64 // wanted
	}{
		{"nothing known", 0, false, 0, 0, 0},
		{"known from here on", 1000, true, 3, 0, 3},
		{"more", 1004, true, 5, 4, 5},
		{"unknown again", 0, false, 5, 4, 5},
		{"of another interface", 7, true, 5, 4, 5},
		{"and back", 1009, true, 6, 9, 6},
	} {
		inQueue, known, atSockets = step.inQueue, step.known, step.atSockets
		s := r.Stats()
		if s.Drop(DropTUNQueue) != step.queue || s.Drop(DropSocketBuffer) != step.sockets {
			t.Errorf("%s: %s, want %d and %d", step.name, s.Drops, step.queue, step.sockets)
		}
	}
	inQueue, atSockets = 1010, 8
	testhost.Must(t, r.Close())
	inQueue, atSockets = 2000, 2000 // somebody else's
	if s := r.Stats(); s.Drop(DropTUNQueue) != 10 || s.Drop(DropSocketBuffer) != 8 {
		t.Errorf("closed: %s, want 10 and 8", s.Drops)
	}
}

// Whoever asks beside others never sees fewer losses than before.
func TestLossesNeverFall(t *testing.T) {
	var inQueue, atSockets atomic.Uint64
	slowly := func(count *atomic.Uint64) uint64 {
		n := count.Add(1)
		runtime.Gosched() // others ask meanwhile
		return n
	}
	r := newLossy(t, func() (uint64, bool) { return slowly(&inQueue), true }, func() uint64 { return slowly(&atSockets) })
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			var before Stats
			for range 20000 {
				now := r.Stats()
				for _, reason := range []DropReason{DropTUNQueue, DropSocketBuffer} {
					if now.Drop(reason) < before.Drop(reason) {
						t.Errorf("%s is %d, and was %d", reason, now.Drop(reason), before.Drop(reason))
						return
					}
				}
				before = now
			}
		})
	}
	asking.Wait()
}
