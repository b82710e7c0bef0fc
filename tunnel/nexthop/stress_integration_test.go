package nexthop

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// Events are lost while Run is kept from reading; what they would have told is
// found out all the same.
func TestIntegrationOverflow(t *testing.T) {
	a, b := hosts(t)
	held, released := make(chan struct{}, 1), make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	hold := true
	w := a.watchWith(Config{
		Neighbours: true,
		Routes: func() { // in Run's goroutine
			if hold {
				hold = false
				held <- struct{}{}
				<-released
			}
		},
	}, 1, peer4, peer6)
	<-held
	w.await(peer4, "known", onLink)
	index := a.link(device).Attrs().Index
	for i := range 500 {
		a.routeAdd(route(fmt.Sprintf("172.7.%d.%d/32", i/250, i%250), via(gate4)))
		a.setNeighbour(netip.AddrFrom4([4]byte{10, 66, 0, byte(100 + i%100)}), netlink.NUD_STALE, encapMAC(i))
	}
	a.routeAdd(route(peer4.String(), via(gate4)))
	a.setNeighbour(peer6, netlink.NUD_PERMANENT, otherMAC)
	must(t, a.LinkSetMTU(a.link(device), 1280))
	began := time.Now()
	release()
	w.await(peer4, "behind the gateway", func(h Hop) bool { return h.Reason == "via gateway "+gate4.String() && h.MTU == 1280 })
	w.await(peer6, "of the new MAC", macIs(otherMAC))
	t.Logf("in order after %v", time.Since(began).Round(time.Millisecond))
	if h, _ := w.Lookup(peer6); h.MTU != 1280 || h.Index != index || h.MAC == b.mac() {
		t.Errorf("%+v", h)
	}
	must(t, w.Close())
	if w.losses == 0 {
		t.Error("nothing was lost: this tested nothing")
	}
}

func encapMAC(i int) (mac [6]byte) { return [6]byte{2, 0, 0, 1, byte(i >> 8), byte(i)} }

// Many addresses are decided, and don't hold up neighbours meanwhile.
func TestIntegrationMany(t *testing.T) {
	a, _ := hosts(t)
	const count = 10000
	a.address(device, "10.80.0.1/16")
	var addrs []netip.Addr
	for addr := netip.MustParseAddr("10.80.1.0"); len(addrs) < count; addr = addr.Next() {
		addrs = append(addrs, addr)
	}
	w := a.watch(Config{Neighbours: true}, peer4)
	w.await(peer4, "resolved", resolved)
	began := time.Now()
	w.Track(addrs, nil)
	t.Logf("Track of %d returned after %v", count, time.Since(began).Round(time.Microsecond))
	w.after(func() { a.setNeighbour(peer4, netlink.NUD_STALE, otherMAC) }, peer4, "of another MAC meanwhile", macIs(otherMAC))
	w.await(addrs[count-1], "on-link", onLink)
	t.Logf("all decided after %v", time.Since(began).Round(time.Millisecond))
	for _, addr := range addrs {
		if h, ok := w.Lookup(addr); !ok || !h.OnLink {
			t.Fatalf("%s is %+v", addr, h)
		}
	}
	began = time.Now()
	w.after(func() { a.down(device) }, peer4, "off the link", func(h Hop) bool { return !h.OnLink })
	w.await(addrs[0], "off the link", func(h Hop) bool { return !h.OnLink })
	w.await(addrs[count-1], "off the link", func(h Hop) bool { return !h.OnLink })
	t.Logf("all decided again after %v", time.Since(began).Round(time.Millisecond))
}

// A thousand routes of containers are no reason to decide anything, and few to
// call Routes.
func TestIntegrationRoutesBurst(t *testing.T) {
	a, _ := hosts(t)
	w := a.watch(Config{Neighbours: true}, peer4, peer6)
	w.await(peer4, "resolved", resolved)
	w.await(peer6, "resolved", resolved)
	w.until("first round", func() bool { _, routes := w.counts(); return routes > 0 })
	changesBefore, routesBefore := w.counts()
	began := time.Now()
	for i := range 1000 {
		a.routeAdd(route(fmt.Sprintf("172.%d.%d.0/24", 16+i/250, i%250), via(gate4)))
	}
	took := time.Since(began)
	last := route("172.31.0.0/24", via(gate4))
	a.routeAdd(last)
	w.until("Routes", func() bool { _, routes := w.counts(); return routes > routesBefore })
	changes, routes := w.counts()
	t.Logf("%d calls of Routes for 1001 routes in %v", routes-routesBefore, took.Round(time.Millisecond))
	if most := int(took/quietFor) + 3; routes-routesBefore > most {
		t.Errorf("%d calls of Routes in %v", routes-routesBefore, took)
	}
	if changes != changesBefore {
		t.Errorf("%d changes", changes-changesBefore)
	}
}

// Routes comes after Changed was told of the same events.
func TestIntegrationRoutesAfterChanged(t *testing.T) {
	a, _ := hosts(t)
	order := make(chan string, 100)
	w := a.watch(Config{
		Changed: func([]Change) { order <- "changed" },
		Routes:  func() { order <- "routes" },
	}, peer4)
	w.await(peer4, "on-link", onLink)
	w.until("first round", func() bool { _, routes := w.counts(); return routes > 0 })
	for len(order) > 0 {
		<-order
	}
	a.routeAdd(route(peer4.String(), via(gate4)))
	for i, want := range []string{"changed", "routes"} {
		select {
		case got := <-order:
			if got != want {
				t.Errorf("event %d is %s, want %s", i, got, want)
			}
		case <-time.After(patience):
			t.Fatalf("no %s", want)
		}
	}
}

// Run ends with its context, and nothing stays: goroutines are TestMain's to check.
func TestIntegrationNothingStays(t *testing.T) {
	a, _ := hosts(t)
	before := descriptors(t)
	for range 3 {
		w := do(a, func() (*Watcher, error) { return Open(Config{Neighbours: true}) })
		w.Replace([]netip.Addr{peer4, peer6})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error)
		go func() { ran <- w.Run(ctx) }()
		cancel()
		must(t, <-ran)
		if err := w.Run(t.Context()); err == nil {
			t.Error("Run runs twice")
		}
		must(t, w.Close())
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}
