package doctor

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/probe"
	"uvxlan/encap"
)

const (
	// patience is how long an answer is waited for.
	patience = time.Second
	// few and gap are the echoes that every peer gets. Where some of them are lost,
	// more tell how many are.
	few, more = 5, 20
	gap       = 50 * time.Millisecond
	// heardOf is how long after a packet that was too long the daemon knows it.
	heardOf    = 1200 * time.Millisecond
	togetherN  = 3
	togetherOf = 1000 // bytes of an inner packet
)

// test is one of the packets of our own making, told apart by its ICMP ID.
type test uint16

// The tests.
const (
	// summed and unsummed are frames with and without a UDP checksum. They are
	// answered by the overlay.
	summed test = iota
	unsummed
	// wayOut is a frame whose inner source is this host's address beside the overlay,
	// where the answer comes to.
	wayOut
	// wayBack is an echo beside the overlay from our VTEP's address: the answer comes
	// by the overlay.
	wayBack
	// otherPort is a frame to another port.
	otherPort
	// question is one by ARP. Its answer has no ID.
	question
	// together are frames that are sent as one message, and apart are such by
	// themselves.
	together
	apart
	// clock is a timestamp request.
	clock
)

// evidence is what is known of a peer.
type evidence struct {
	Host
	peer  control.Peer
	lease *control.LeaseRow // nil if it isn't known
	index uint16            // tells its packets from other peers'

	overlay, underlay outcome
	// limit is what made overlay.MTU less than the device's MTU: what was answered
	// to a longer packet, [probe.ErrNoAnswer] if nothing was.
	limit, underlayLimit error
	// bigOut tells whether a packet that gets no answer reaches the peer all the same.
	bigOut verdict

	// Of a peer that doesn't answer by the overlay.
	sent     bool  // frames of ours were
	refused  error // by which the kernel refused them
	answered map[test]bool

	// Of one that does.
	segments verdict // frames that are sent as one message arrive
	tcp      verdict // the kernel's own TCP segments are answered
	syn      segment // what came to a segment of our own making where they aren't
	offset   *time.Duration
	neigh    neighbour
}

// verdict is the result of a test that may tell nothing.
type verdict int

const (
	untold verdict = iota
	passes
	fails
)

// outcome is what became of echoes.
type outcome struct {
	Echoes
	err     error // the most telling one
	damaged int
}

// lost is how many echoes got no answer.
func (o outcome) lost() int { return o.Sent - o.Received }

// dead says that no echo was answered.
func (o outcome) dead() bool { return o.Sent > 0 && o.Received == 0 }

// examiner does what is done to each peer. Its fields are immutable.
type examiner struct {
	status  control.Status
	mac     encap.MAC // of our VTEP, zero if it isn't known
	vni     encap.VNI
	port    uint16
	others  []uint16   // ports that VXLAN may use as well
	local   netip.Addr // the underlay's address; invalid where there is none
	vtep    netip.Addr
	device  int // the overlay's interface, 0 if there is none
	gso     bool
	overlay map[bool]*probe.Prober // by whether it is IPv6
	beside  map[bool]*probe.Prober
	linkMTU int
	tap     *tap
	sender  *sender // nil without IPv4
	ids     uint16
}

// localOf is the underlay's address of the same family as another.
func (x *examiner) localOf(a netip.Addr) netip.Addr {
	if a.Is6() {
		return x.status.LocalV6
	}
	return x.local
}

// vtepOf is our VTEP's address of the same family as another.
func (x *examiner) vtepOf(a netip.Addr) netip.Addr {
	switch {
	case x.status.Lease == nil:
		return netip.Addr{}
	case a.Is6():
		return x.status.Lease.SubnetV6.Addr()
	}
	return x.status.Lease.Subnet.Addr()
}

func (x *examiner) id(t test) uint16 { return x.ids + uint16(t) }

// isTest tells whether an ID is that of one of the tests, whose answers are only seen
// and never delivered to anybody.
func (x *examiner) isTest(id uint16) bool { return id-x.ids <= uint16(clock) }

// examine does all that is done to a peer.
func (x *examiner) examine(ctx context.Context, p *evidence) {
	var both sync.WaitGroup
	if o := x.overlay[p.vtep().Is6()]; o != nil && p.peer.Path != control.PathNone {
		both.Go(func() { p.overlay = x.echoes(ctx, o, p.vtep()) })
	}
	if b := x.beside[p.PublicIP.Is6()]; b != nil {
		both.Go(func() { p.underlay = x.echoes(ctx, b, p.PublicIP) })
	}
	both.Wait()
	p.neigh = neighbourOf(p.PublicIP)
	switch {
	case ctx.Err() != nil:
	case p.overlay.Received == 0:
		x.dig(p)
	default:
		x.measure(ctx, p)
	}
}

// vtep is the address of the peer's end of the overlay.
func (p *evidence) vtep() netip.Addr { return p.Subnet.Addr() }
