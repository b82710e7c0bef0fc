package fastpath

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel"
	"uvxlan/tunnel/internal/osthread"
	"uvxlan/tunnel/internal/tcprog"
)

// relay is where superpackets lose the marks of a UDP tunnel, for which the kernel would
// segment them at a bridge: a network namespace that has nothing but one end of a pair of
// veths and a route of SRv6. Packets come in by that end, and the route sends them out by it
// again. All of it goes when the namespace's last descriptor is closed: with the process, if
// none was handed over.
type relay struct {
	ns     *os.File
	inside *netlink.Handle // in the namespace
	index  int             // of the veth in the host's namespace
	name   string          // of the same
}

// Names of the veths: in the relay's namespace, and a pattern in the host's, where the
// kernel chooses the number.
const (
	relayName     = "relay"
	relayHostName = "uvxrelay%d"
)

// relayMAC is the address of the veth in the host's namespace, RELAY_MAC of the programs.
var relayMAC = net.HardwareAddr{0x02, 'u', 'v', 'x', 'l', 1}

// relayMTU is the largest that the kernel allows: the route compares superpackets with it.
const relayMTU = 65535

// relaying is what a fast path knows of its relay.
type relaying struct {
	*relay            // nil if there is none
	why     string    // there can be none; empty if that wasn't found
	tried   time.Time // when one was to be made last
	useless bool      // packets didn't come back from it
	looked  time.Time // at what follows
	relayed relayed
	silent  int // how many looks found that packets had gone in, since any came back
}

// relayed counts the packets that have gone to a relay, and those that have come back.
type relayed struct{ out, back uint64 }

// relayRetry is the time after which another relay is tried, since what was missing may
// have been memory or descriptors.
const relayRetry = time.Minute

// haveRelay goes on with an inherited relay, or makes one if superpackets may come that
// need it. The calling thread is in the host's network namespace.
func (f *FastPath) haveRelay(v view, inherited *Descriptors) {
	f.mu.Lock()
	f.loseRelayLocked()
	ok := f.relay.relay == nil && !f.relay.useless && time.Since(f.relay.tried) > relayRetry && !f.released && f.programs.NeedsRelay()
	f.mu.Unlock()
	if !ok {
		return
	}
	var r *relay
	var err error
	if fd, ok := inherited.takeRelay(); ok {
		if r, err = adoptRelay(f.host, f.programs, fd); err != nil {
			f.log.Warn("the relay that was handed over is of no use", "error", err)
			r, err = nil, nil
		}
	}
	wanted := v.superpackets && (v.virtual || f.hasMarked())
	if r == nil && wanted {
		r, err = openRelay(f.host, f.programs)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err != nil:
		if err.Error() != f.relay.why {
			f.log.Info("superpackets for bridges are the workers'", "error", err)
		}
		f.relay.why, f.relay.tried = err.Error(), time.Now()
	case f.released:
		if err := r.close(); err != nil {
			f.log.Debug("close the relay", "error", err)
		}
	case r != nil:
		f.relay = relaying{relay: r}
	}
}

// loseRelayLocked forgets a relay whose interface somebody has taken away.
func (f *FastPath) loseRelayLocked() {
	r := f.relay.relay
	if r == nil || f.released {
		return
	}
	if _, err := f.host.netlink.LinkByIndex(r.index); err == nil || !errors.As(err, &netlink.LinkNotFoundError{}) {
		return
	}
	f.log.Warn("the way to the relay is gone", "link", r.name)
	f.relay = relaying{}
	if err := r.close(); err != nil {
		f.log.Debug("close the relay", "error", err)
	}
}

// hasMarked tells that superpackets have come that a relay would have helped.
func (f *FastPath) hasMarked() bool {
	left, err := f.programs.Left()
	return err == nil && left.Rx[tcprog.Superpacket] > 0
}

// checkRelay gives the relay up if for some seconds no packet comes back from it.
func (f *FastPath) checkRelay() {
	f.mu.Lock()
	r := f.silentRelayLocked()
	if r != nil {
		f.relay = relaying{why: "packets don't come back from the relay", useless: true}
		f.log.Warn("superpackets for bridges are the workers'", "error", f.relay.why)
		if err := f.programs.Configure(f.settingsLocked()); err != nil {
			f.log.Error("leave superpackets to the workers", "error", err)
		}
	}
	f.mu.Unlock()
	if err := r.close(); err != nil {
		f.log.Warn("close the relay", "error", err)
	}
}

// silentRelayLocked is the relay if nothing comes back from it, else nil.
func (f *FastPath) silentRelayLocked() *relay {
	if f.relay.relay == nil || f.released || time.Since(f.relay.looked) < checkInterval {
		return nil
	}
	var now relayed
	var err error
	before := f.relay.relayed
	now.out, now.back, err = f.programs.Relayed()
	f.relay.relayed, f.relay.looked = now, time.Now()
	switch {
	case err != nil:
	case now.back != before.back:
		f.relay.silent = 0
	case now.out != before.out:
		f.relay.silent++ // connections send less and less often
	}
	if f.relay.silent < 2 {
		return nil
	}
	return f.relay.relay
}

// emptyRelay waits until what is in the relay has come back; the programs are detached.
func (f *FastPath) emptyRelay() {
	if f.relay.relay == nil {
		return
	}
	const pause, most = time.Millisecond, 20 // without a packet
	var last uint64
	for n := 0; n < most; n++ {
		out, back, err := f.programs.Relayed()
		if err != nil || out == back {
			return
		}
		if back != last {
			last, n = back, 0
		}
		time.Sleep(pause)
	}
}

// openRelay makes a relay for the programs, which doesn't get packets yet. The calling
// thread is in the host's network namespace. It needs CAP_SYS_ADMIN.
func openRelay(h *host, p *tcprog.Programs) (r *relay, err error) {
	r = &relay{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
			r = nil
		}
	}()
	if r.ns, err = newNamespace(); err != nil {
		return r, err
	}
	if err := r.enter(); err != nil {
		return r, err
	}
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: relayName, MTU: relayMTU}, PeerName: relayHostName, PeerMTU: relayMTU,
		PeerHardwareAddr: relayMAC, PeerNamespace: netlink.NsFd(h.ns.Fd()),
	}
	if err := r.inside.LinkAdd(pair); err != nil {
		return r, fmt.Errorf("make a relay of a pair of veths: %w", err)
	}
	within, outside, err := r.links(h)
	if err != nil {
		return r, err
	}
	if err := r.attach(h, p, within); err != nil {
		return r, err
	}
	// The host's has no address of its own, not even a link-local one.
	if err := h.netlink.LinkSetIP6AddrGenMode(outside, nl.IN6_ADDR_GEN_MODE_NONE); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return r, fmt.Errorf("leave %s without addresses: %w", outside.Attrs().Name, err)
	}
	if err := r.raise(h, within, outside); err != nil {
		return r, err
	}
	return r, nil
}

// raise sets the veths up, and the route.
func (r *relay) raise(h *host, within, outside netlink.Link) error {
	if err := r.inside.LinkSetIP6AddrGenMode(within, nl.IN6_ADDR_GEN_MODE_NONE); err != nil {
		return fmt.Errorf("leave the relay without addresses: %w", err)
	}
	if err := r.inside.LinkSetUp(within); err != nil {
		return fmt.Errorf("set the relay up: %w", err)
	}
	if err := h.netlink.LinkSetUp(outside); err != nil {
		return fmt.Errorf("set %s up: %w", outside.Attrs().Name, err)
	}
	to := &netlink.SEG6LocalEncap{Action: nl.SEG6_LOCAL_ACTION_END_DX2, Oif: within.Attrs().Index}
	to.Flags[nl.SEG6_LOCAL_ACTION], to.Flags[nl.SEG6_LOCAL_OIF] = true, true
	a := tcprog.RelayAddress
	err := r.inside.RouteAdd(&netlink.Route{
		LinkIndex: within.Attrs().Index, Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Encap: to,
	})
	if err != nil {
		return fmt.Errorf("make a relay of a route of SRv6 with End.DX2: %w", err)
	}
	return nil
}

// adoptRelay goes on with an inherited relay, whose descriptor it owns, by other programs.
// The calling thread is in the host's network namespace.
func adoptRelay(h *host, p *tcprog.Programs, fd int) (r *relay, err error) {
	r = &relay{ns: os.NewFile(uintptr(fd), "relay")}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("take the relay over: %w", err), r.close())
			r = nil
		}
	}()
	if err := r.enter(); err != nil {
		return r, err
	}
	within, _, err := r.links(h)
	if err != nil {
		return r, err
	}
	return r, r.attach(h, p, within)
}

// newNamespace makes a network namespace.
func newNamespace() (ns *os.File, err error) {
	err = osthread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("a relay needs a network namespace, which takes CAP_SYS_ADMIN (and in a systemd unit RestrictNamespaces=net): %w", err)
		}
		ns, err = os.Open(ownNamespace)
		return err
	})
	return ns, err
}

// enter opens the handle in the namespace.
func (r *relay) enter() error {
	return tunnel.Inside(r.ns, func() (err error) {
		r.inside, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
}

// links finds the veths.
func (r *relay) links(h *host) (within, outside netlink.Link, err error) {
	if within, err = r.inside.LinkByName(relayName); err != nil {
		return nil, nil, fmt.Errorf("find the relay's veth: %w", err)
	}
	// Kernels leave it out where both have the same index.
	if r.index = within.Attrs().ParentIndex; r.index == 0 {
		r.index = within.Attrs().Index
	}
	if outside, err = h.netlink.LinkByIndex(r.index); err != nil {
		return nil, nil, fmt.Errorf("find the veth that leads to the relay: %w", err)
	}
	r.name = outside.Attrs().Name
	return within, outside, nil
}

// attach attaches the veths' programs, in the place of any that are there. They go with
// the veths.
func (r *relay) attach(h *host, p *tcprog.Programs, within netlink.Link) error {
	for _, at := range []struct {
		handle  *netlink.Handle
		index   int
		parent  uint32
		program *ebpf.Program
	}{
		{r.inside, within.Attrs().Index, netlink.HANDLE_MIN_EGRESS, p.RelayOut()},
		{h.netlink, r.index, netlink.HANDLE_MIN_INGRESS, p.RelayIn()},
	} {
		if err := at.handle.QdiscAdd(clsact(at.index)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add a clsact qdisc: %w", err)
		}
		err := at.handle.FilterReplace(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: at.index, Parent: at.parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
			Fd:          at.program.FD(), Name: relayName, DirectAction: true,
		})
		if err != nil {
			return fmt.Errorf("add a filter: %w", err)
		}
	}
	return p.DeliverRelay(r.index)
}

// close removes the relay. A nil relay is none.
func (r *relay) close() error {
	if r == nil {
		return nil
	}
	var err error
	if r.inside != nil {
		// The kernel takes its time to remove a namespace.
		if within, e := r.inside.LinkByName(relayName); e == nil {
			err = r.inside.LinkDel(within)
		}
	}
	return errors.Join(err, r.giveUp())
}

// giveUp closes the descriptors. The relay stays for as long as there are others.
func (r *relay) giveUp() (err error) {
	if r == nil {
		return nil
	}
	if r.inside != nil {
		r.inside.Close()
	}
	if r.ns != nil {
		err = r.ns.Close()
	}
	return err
}
