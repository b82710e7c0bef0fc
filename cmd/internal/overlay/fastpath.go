package overlay

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"uvxlan/cmd/internal/attach"
	"uvxlan/cmd/internal/control"
	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/firewall"
	"uvxlan/tunnel"
	"uvxlan/tunnel/fastpath"
)

func (v *Overlay) fastConfig() attach.Config {
	var rules [2]firewall.Bypass
	return attach.Config{
		Mode: v.opts.FastPath, Interval: v.opts.FastPathCheck, Wake: v.wake, Logger: v.log,
		Attach: v.attachFast, Discard: v.discardFast,
		Hazards: func() ([]string, error) { return v.hazards(&rules) },
	}
}

// useFast has the fast path serve the router in force. Only where must is set is it an
// error that it can't, though the operator wants it so.
func (v *Overlay) useFast(must bool) error {
	router, _ := v.inForce()
	err := v.fast.Use(router)
	if err != nil && !must {
		v.log.Warn("the workers carry all packets", "error", err)
		return nil
	}
	return err
}

// hazards tells in words which rules of the host's firewall the fast path would bypass.
func (v *Overlay) hazards(rules *[2]firewall.Bypass) (words []string, err error) {
	router, _ := v.inForce()
	for i, t := range tunnels(v.external(), v.config.Backend.Port, router.Peers()) {
		more, e := rules[i].Hazards(t)
		err = errors.Join(err, e)
		for _, w := range more {
			if !slices.Contains(words, w) { // a rule may be for both families
				words = append(words, w)
			}
		}
	}
	return words, err
}

// tunnels are the datagrams of each family that the host has an address of, at most
// two.
func tunnels(ext extiface.Interface, port uint16, peers []tunnel.Peer) (all []firewall.Tunnel) {
	v4, v6 := ext.Sockets()
	for _, local := range []netip.Addr{v4, v6} {
		if !local.IsValid() {
			continue
		}
		t := firewall.Tunnel{Local: local, Port: port}
		t.Link.Name, t.Link.Index = ext.Name, ext.Index
		seen := map[netip.Addr]bool{}
		for _, p := range peers {
			if p.Underlay.Is4() == local.Is4() && !seen[p.Underlay] {
				seen[p.Underlay] = true
				t.Remotes = append(t.Remotes, p.Underlay)
			}
		}
		all = append(all, t)
	}
	return all
}

// attached is a fast path, with the kind of the interface that it is attached to.
type attached struct {
	*fastpath.FastPath
	kind string
}

// attachFast attaches a fast path to the router.
func (v *Overlay) attachFast(r *tunnel.Router, inherited *fastpath.Descriptors) (attach.Path, error) {
	c := fastpath.Config{Link: v.external().Name, Inherited: inherited, Logger: v.log}
	f, err := fastpath.Attach(r, c)
	if err != nil && inherited != nil {
		v.log.Warn("the fast path that was handed over is of no use", "error", err)
		c.Inherited = nil
		f, err = fastpath.Attach(r, c)
	}
	if err != nil {
		return nil, err
	}
	a := attached{FastPath: f}
	if l, err := netlink.LinkByName(c.Link); err == nil {
		a.kind = l.Type()
	}
	return a, nil
}

// discardFast detaches what another process has left attached.
func (v *Overlay) discardFast(inherited *fastpath.Descriptors) error {
	_, err := fastpath.RemoveStale(v.name)
	return errors.Join(inherited.Close(), err)
}

// removeStaleFast detaches what a run that was killed has left attached, where the
// kernel doesn't do so.
func (v *Overlay) removeStaleFast() {
	removed, err := fastpath.RemoveStale(v.name)
	if err != nil {
		v.log.Warn("a fast path of an earlier run may be left", "error", err)
	}
	for _, what := range removed {
		v.log.Info("detached the fast path of an earlier run", "was", what)
	}
}

// Carries implements [attach.Path].
func (a attached) Carries(p tunnel.Peer) (bool, string) { return a.FastPath.Carries(p.Subnet) }

// Describe implements [attach.Path].
func (a attached) Describe() control.FastPath {
	r, s := a.Report(), a.Stats()
	return control.FastPath{
		On: r.On, Reason: r.Reason, Link: strings.TrimSpace(a.kind + " " + r.Link), Superpackets: r.Superpackets, Relay: r.Relay, NoRelay: r.NoRelay,
		Sent:     control.FastDirection{Packets: s.TxPackets, Bytes: s.TxBytes, Left: r.LeftTx},
		Received: control.FastDirection{Packets: s.RxPackets, Bytes: s.RxBytes, Left: r.LeftRx},
	}
}
