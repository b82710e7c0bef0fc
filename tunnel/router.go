package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/family"
	"uvxlan/tunnel/internal/flowlimit"
	"uvxlan/tunnel/internal/leasepeer"
	"uvxlan/tunnel/internal/lifecycle"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

// ErrClosed is what Run returns on a router or gateway that was closed before.
var ErrClosed = lifecycle.ErrClosed

// Config is what a [Router] must know beside its device and sockets. MAC and the
// link's MTU are required.
type Config struct {
	// VNI is the VXLAN segment; frames of any other are dropped.
	VNI encap.VNI
	// MAC is our VTEP's address, which peers put into their frames to us.
	MAC encap.MAC
	// Link is what the device's interface is configured with ([link.Configure]).
	// ARP and neighbour solicitations for its addresses, at most one a family, are
	// answered, and ICMP errors come from them. A peer whose outer address lies in
	// one of its routes is refused, for its packets would loop.
	Link link.Config
	// AnySource also takes frames from outer addresses that no peer has and with
	// inner sources that aren't the peer's, as kernel VXLAN does.
	AnySource bool
	// OnLink keeps on-link peers on a path without VXLAN; nil means that everything
	// goes by VXLAN.
	OnLink *onlink.Paths
	// HugePages has packets lie on transparent huge pages where the kernel has them:
	// at most a little faster, for up to 6 MiB a worker that become resident 2 MiB at
	// a time.
	HugePages bool
	// Logger gets what happens rarely; nil means nothing is logged.
	Logger *slog.Logger
}

func (c *Config) validate(dev device.Device, u underlay.Underlay) error {
	var errs []error
	if !c.VNI.Valid() {
		errs = append(errs, fmt.Errorf("VNI %d is not of 24 bits", c.VNI))
	}
	if c.MAC == (encap.MAC{}) || c.MAC.IsGroup() {
		errs = append(errs, fmt.Errorf("%s is no VTEP's MAC", c.MAC))
	}
	least := encap.InnerMTU(minMTU)
	if slices.ContainsFunc(c.Link.Networks, func(n netip.Prefix) bool { return n.Addr().Is6() }) {
		least = minMTUv6
	}
	if c.Link.MTU < least {
		errs = append(errs, fmt.Errorf("MTU %d is below %d", c.Link.MTU, least))
	}
	queues := len(dev.Queues())
	if queues == 0 || queues != u.Workers() {
		errs = append(errs, fmt.Errorf("the device has %d queues and the underlay is for %d workers", queues, u.Workers()))
	}
	if s := c.OnLink.Sockets(); s != nil && len(s) != queues {
		errs = append(errs, fmt.Errorf("the device has %d queues and there are %d packet sockets", queues, len(s)))
	}
	if len(u.Locals()) == 0 {
		errs = append(errs, errors.New("the underlay has no address"))
	}
	return errors.Join(errs...)
}

// The least MTUs are IPv4's (RFC 791, section 3.2) and IPv6's (RFC 8200, section 5).
const (
	minMTU   = 68
	minMTUv6 = 1280
)

// Router moves packets between a device and the peers. Its methods may be
// called from any goroutine.
type Router struct {
	// immutable
	config   Config
	log      *slog.Logger
	device   device.Device
	underlay underlay.Underlay
	locals   []netip.AddrPort // the underlay's
	paths    *onlink.Paths    // nil with DirectOff
	peers    *peerTable
	workers  []*worker

	lost losses
	life lifecycle.Life

	fast     fastPath
	changing sync.Mutex // held while the peers are changed
	// changing guards it
	destinations map[netip.Addr]*batch.Destination
}

// New makes a router of a device and as many receiving sockets as the device
// has queues; see [device.Open] and [underlay.Listen]. It starts nothing. The router owns
// both and c.OnLink from here on and closes them in Close; when New returns an
// error they are still the caller's. The error names everything that is wrong with c.
func New(dev device.Device, u underlay.Underlay, c Config) (*Router, error) {
	if err := c.validate(dev, u); err != nil {
		return nil, fmt.Errorf("configure router: %w", err)
	}
	r := &Router{
		config: c, device: dev, underlay: u, locals: u.Locals(), paths: c.OnLink, peers: newPeerTable(),
		destinations: map[netip.Addr]*batch.Destination{},
		log:          cmp.Or(c.Logger, slog.New(slog.DiscardHandler)),
		fast:         newFastPath(),
	}
	if r.paths != nil {
		r.paths.Attach(onlink.Settings{MTU: c.Link.MTU, Networks: c.Link.Networks, Logger: c.Logger, Changed: r.fast.mark})
	}
	limits := flowlimit.New(c.Link.MTU)
	for i := range dev.Queues() {
		w, err := newWorker(&r.config, dev, u, i, r.peers, limits, r.fast.passed)
		if err != nil {
			return nil, errors.Join(err, r.closeWorkers())
		}
		r.workers = append(r.workers, w)
	}
	r.lookOutside()
	return r, nil
}

// Run moves packets until ctx ends or Close is called, and then returns nil
// after the last worker has stopped; the peers stay as they are. It returns
// early with [device.ErrGone] when the interface is deleted, with
// [underlay.ErrGone] when a receiving socket fails, and [ErrClosed] on a closed
// router. Run is called once; after the first two, close the router and make
// another, to which [Router.Peers] carries over.
func (r *Router) Run(ctx context.Context) error {
	if err := r.life.Start(); err != nil {
		return fmt.Errorf("run router: %w", err)
	}
	defer r.life.Done()
	stopped := context.AfterFunc(ctx, r.halt)
	defer stopped()
	failed := make(chan error, len(r.workers))
	var wg sync.WaitGroup
	following, cancel := context.WithCancel(ctx)
	var followers sync.WaitGroup
	followers.Go(func() { r.newMTUFollower().run(following) })
	followers.Go(func() { r.followFastPath(following) })
	if p := r.paths; p != nil {
		followers.Go(func() { r.follow(following, p) })
	}
	defer followers.Wait()
	defer cancel()
	for _, w := range r.workers {
		wg.Go(func() {
			failed <- w.run()
			r.halt()
		})
	}
	wg.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			return err
		}
	}
	return nil
}

// follow keeps the peers on their best paths.
func (r *Router) follow(ctx context.Context, p *onlink.Paths) {
	if err := p.Run(ctx); err != nil {
		r.log.Error("direct routes are off, every peer takes vxlan", "error", err)
	}
}

// halt makes every worker return soon.
func (r *Router) halt() { r.life.While(r.haltWorkers) }

func (r *Router) haltWorkers() {
	for _, w := range r.workers {
		w.halt()
	}
}

// Close ends Run, waits for it and closes the device and the sockets. Further
// calls do nothing.
func (r *Router) Close() error {
	return r.life.Close(r.haltWorkers, func() error {
		r.lookOutside() // for the last time
		return errors.Join(r.closeWorkers(), r.paths.Close(), r.underlay.Close(), r.device.Close())
	})
}

func (r *Router) closeWorkers() error {
	var errs []error
	for _, w := range r.workers {
		errs = append(errs, w.close())
	}
	return errors.Join(errs...)
}

// Apply takes over what a watch of leases reports. A lease that can't be a peer
// is left out, and is named in the error; all others are in force when Apply
// returns. A lease's IPv6 subnet is a peer of its own, by the lease's IPv6
// address; a router without an IPv6 underlay passes it over.
func (r *Router) Apply(u lease.Update) error {
	peers, gone, errs := leasepeer.Read(u, r.hasLocal(family.IPv6), vxlanPeer)
	if u.Reset {
		errs = append(errs, r.ReplacePeers(peers))
	} else {
		errs = append(errs, r.UpdatePeers(peers, gone))
	}
	return errors.Join(errs...)
}

// ReplacePeers makes peers all there are, before or while the router runs. One
// that cannot be reached is left out, and is named in the error.
func (r *Router) ReplacePeers(peers []Peer) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	entries, _, err := r.entries(peers)
	if p := r.paths; p != nil {
		p.Replace(members(entries))
	}
	r.attach(entries)
	r.carryOn(entries)
	f := r.fast.path
	if f != nil {
		f.Remove(without(r.peers.load().allSubnets(), entries))
	}
	r.peers.replace(entries)
	if f != nil {
		f.Replace(r.fastPeers(r.peers.load().entries()))
		notify(r.fast.begun)
	}
	r.forget()
	return err
}

// UpdatePeers removes the peers of the subnets gone and adds peers, each in the
// place of the one that had its subnet. One that cannot be reached is left out,
// so that its subnet has no peer, and is named in the error.
func (r *Router) UpdatePeers(peers []Peer, gone []netip.Prefix) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	entries, refused, err := r.entries(peers)
	gone = slices.Concat(gone, refused)
	for i, subnet := range gone {
		gone[i] = subnet.Masked()
	}
	if p := r.paths; p != nil {
		p.Update(members(entries), gone)
	}
	r.attach(entries)
	r.carryOn(entries)
	f := r.fast.path
	if f != nil {
		f.Remove(without(gone, entries)) // of the others the counters go on
	}
	r.peers.update(entries, gone)
	if f != nil && len(entries) > 0 {
		f.Put(r.fastPeers(entries))
		notify(r.fast.begun)
	}
	r.forget()
	return err
}

// attach gives entries the ways to their hosts.
func (r *Router) attach(entries []*entry) {
	for _, e := range entries {
		e.hop = r.paths.Hop(e.Underlay)
	}
}

func members(entries []*entry) []onlink.Member {
	all := make([]onlink.Member, len(entries))
	for i, e := range entries {
		all[i] = onlink.Member{Subnet: e.Subnet, Underlay: e.Underlay}
	}
	return all
}

func (r *Router) entries(peers []Peer) (entries []*entry, refused []netip.Prefix, err error) {
	var errs []error
	for _, p := range peers {
		p.Subnet, p.Underlay = p.Subnet.Masked(), p.Underlay.Unmap()
		if err := p.check(r.config.Link.Destinations(), r.locals); err != nil {
			errs = append(errs, err)
			refused = append(refused, p.Subnet)
			continue
		}
		entries = append(entries, newEntry(p, r.config.VNI, r.config.MAC, r.destination(p.Underlay)))
	}
	return entries, refused, errors.Join(errs...)
}

// destination is where datagrams to the peers of an address go. What sending them
// has taught outlives a change of the peers.
func (r *Router) destination(a netip.Addr) *batch.Destination {
	d := r.destinations[a]
	if d == nil {
		d = batch.NewDestination(netip.AddrPortFrom(a, r.locals[0].Port()))
		updateMTU(d, r.underlay.PathMTU)
		r.destinations[a] = d
	}
	return d
}

// forget drops destinations that no peer has any more, once there are many.
func (r *Router) forget() {
	peers := r.peers.load()
	const few = 64
	if len(r.destinations) < 2*peers.underlay.Size()+few {
		return
	}
	maps.DeleteFunc(r.destinations, func(a netip.Addr, _ *batch.Destination) bool { return !peers.knows(a) })
}

// hasLocal tells whether the underlay has an address of a family.
func (r *Router) hasLocal(f family.Family) bool {
	return slices.ContainsFunc(r.locals, func(l netip.AddrPort) bool { return family.Of(l.Addr()) == f })
}

// Peers lists the peers, sorted by subnet.
func (r *Router) Peers() []Peer {
	var peers []Peer
	for _, e := range r.peers.load().subnets.AllSorted() {
		peers = append(peers, e.Peer)
	}
	return peers
}

// HasPeer tells whether there is a peer with that very subnet.
func (r *Router) HasPeer(subnet netip.Prefix) bool {
	_, ok := r.peers.load().subnets.Get(subnet.Masked())
	return ok
}

// Path is how packets to the peer of a subnet travel at the moment, the zero
// Path if there is no such peer.
func (r *Router) Path(subnet netip.Prefix) onlink.Path { return r.paths.Path(subnet.Masked()) }

// Offloads are those in use: wanted of the device and the sockets, and granted.
func (r *Router) Offloads() offload.Set { return r.device.Offloads() | r.underlay.Offloads() }

// Stats is what the router has counted so far.
func (r *Router) Stats() Stats {
	s := Stats{Peers: r.peers.load().subnets.Size(), Offloads: r.Offloads()}
	for _, w := range r.workers {
		w.total.addTo(&s)
	}
	r.life.While(r.lookOutside)
	r.lost.addTo(&s)
	r.fast.addTo(&s)
	return s
}

// lookOutside asks the kernel for what was lost before a worker saw it.
func (r *Router) lookOutside() { r.lost.look(r.device, r.workers) }
