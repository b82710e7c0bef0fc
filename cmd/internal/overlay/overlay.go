package daemon

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"strconv"
	"sync"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel"
	"uvxlan/tunnel/kroute"
)

// overlay is the host's part of the overlay: the device, the sockets and the
// router between them, made anew when somebody takes one of them away.
type overlay struct {
	// immutable
	log    *slog.Logger
	config *lease.Config
	ext    extiface.Interface
	name   string
	opts   Options
	inner  encap.InnerMTU
	direct tunnel.DirectMode

	mac    encap.MAC // before start: the one to propose
	filter reverseFilter
	own    lease.Lease

	changes changeLog

	// opened, until a router owns them
	device   tunnel.Device
	underlay *tunnel.Underlay
	driver   tunnel.Driver // the device's
	workers  int

	// inherited, until this daemon carries the packets; nil if there was none
	before *handoverState

	loaded chan struct{} // closed when the first snapshot of leases is in force
	once   sync.Once     // closes loaded

	mu     sync.Mutex // guards the rest
	router *tunnel.Router
	down   error // why the router doesn't carry packets, nil if it does
	handed bool  // the router is released: another process carries the packets
}

func openOverlay(o Options, c *lease.Config, ext extiface.Interface, before *handoverState) (*overlay, error) {
	if err := checkTUN(); err != nil {
		return nil, err
	}
	if inner := underlayMTU(c, ext).Inner(c.EnableIPv6); c.EnableIPv6 && inner < minMTUv6 {
		return nil, fmt.Errorf("the MTU of %s leaves %d bytes to the containers, and IPv6 needs %d: raise it to %d",
			ext.Name, inner, minMTUv6, minMTUv6.Outer(true))
	}
	v := newOverlay(o, c, ext)
	if err := hoststate.Update(o.StateDir, func(s *hoststate.State) { s.Device = v.name }); err != nil {
		return nil, err
	}
	if before != nil {
		return v, v.takeOver(before)
	}
	return v, v.open()
}

// newOverlay opens nothing yet.
func newOverlay(o Options, c *lease.Config, ext extiface.Interface) *overlay {
	v := &overlay{
		log: o.Logger, config: c, ext: ext, opts: o,
		name:   "flannel." + strconv.FormatUint(uint64(c.Backend.VNI), 10),
		inner:  underlayMTU(c, ext).Inner(c.EnableIPv6),
		direct: directMode(c.Backend),
		filter: reverseFilter{log: o.Logger, stateDir: o.StateDir, iface: ext.Name},
		mac:    randomMAC(), loaded: make(chan struct{}), down: errLoading, changes: changeLog{log: o.Logger},
	}
	// Busy workers must leave the rest of the daemon room to run.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), o.workers()+2))
	return v
}

// minMTUv6 is the least that IPv6 runs on (RFC 8200, section 5).
const minMTUv6 encap.InnerMTU = 1280

// mtu is the containers'. With IPv6 it leaves room for the larger of the two
// outer headers: a device and its containers have one MTU for both families.
func (v *overlay) mtu() int { return int(v.inner) }

func underlayMTU(c *lease.Config, ext extiface.Interface) encap.OuterMTU {
	if c.Backend.MTU > 0 {
		return encap.OuterMTU(c.Backend.MTU)
	}
	return ext.MTU
}

// randomMAC is locally administered and of one station (IEEE 802, section 8.2).
func randomMAC() (m encap.MAC) {
	rand.Read(m[:]) // never fails
	m[0] = m[0]&^1 | 2
	return m
}

// open acquires the sockets and the device, and does whatever else may fail
// before there is a lease.
func (v *overlay) open() error {
	err := v.acquire()
	if err == nil {
		err = v.checkOffloads()
	}
	if err == nil {
		err = tunnel.PrepareLink(v.name, v.link())
	}
	if err != nil {
		return errors.Join(err, v.closeOpened())
	}
	return nil
}

func (v *overlay) acquire() error {
	removed, err := tunnel.RemoveStaleLink(v.name)
	if err != nil {
		return err
	}
	if removed != "" {
		v.log.Info("removed an earlier interface", "name", v.name, "type", removed)
	}
	if err := v.removeStaleV6(); err != nil {
		return err
	}
	v.device, err = tunnel.OpenDevice(v.name, tunnel.DeviceConfig{
		Driver: v.opts.Driver, Queues: v.opts.workers(), Offloads: v.opts.Offloads,
	})
	if err != nil {
		return err
	}
	v.driver, v.workers = tunnel.DriverOf(v.device), len(v.device.Queues())
	if v.driver != tunnel.DriverNative && v.opts.Driver != v.driver {
		v.log.Warn("this kernel's TUN has no superpackets for us: packets pass slower than they might", "driver", v.driver)
	}
	v.underlay, err = tunnel.Listen(tunnel.UnderlayConfig{
		Address: v.ext.Address, AddressV6: v.ext.AddressV6, Port: v.config.Backend.Port, Workers: v.workers, Offloads: v.opts.Offloads,
		Direct: v.direct, Logger: v.log,
	})
	return err
}

// removeStaleV6 removes the second interface that flanneld leaves behind, which
// holds the IPv6 port. Anything else of its name isn't in the way.
func (v *overlay) removeStaleV6() error {
	name := "flannel-v6." + strconv.FormatUint(uint64(v.config.Backend.VNI), 10)
	if kind, _ := tunnel.StaleLink(name); kind != "vxlan" || !v.config.EnableIPv6 {
		return nil
	}
	if _, err := tunnel.RemoveStaleLink(name); err != nil {
		return err
	}
	v.log.Info("removed an earlier interface", "name", name, "type", "vxlan")
	return nil
}

func (v *overlay) checkOffloads() error {
	missing := v.opts.Offloads &^ (v.device.Offloads() | v.underlay.Offloads())
	if missing != 0 && v.opts.MustOffload {
		return fmt.Errorf("-offload=on: with device driver %s, this kernel refuses %s", v.driver, missing)
	}
	return nil
}

// link is what the interface needs; without addresses before there is a lease.
func (v *overlay) link() tunnel.LinkConfig {
	c := tunnel.LinkConfig{Networks: networks(v.config), MTU: v.inner}
	if v.own.Subnet.IsValid() {
		c.Addresses = []netip.Addr{v.own.Subnet.Addr()}
	}
	if v.own.IPv6Subnet.IsValid() {
		c.Addresses = append(c.Addresses, v.own.IPv6Subnet.Addr())
	}
	return c
}

// attrs is what our lease says. The VTEP's MAC is the one our previous lease
// told the peers, if there is one; it is the same for both families, since one
// device serves both.
func (v *overlay) attrs(previous *lease.Lease) (lease.Attrs, error) {
	if previous != nil {
		if p, err := tunnel.PeerFromLease(*previous); err == nil {
			v.mac = p.MAC
		}
	}
	data, err := json.Marshal(lease.VXLANData{VNI: v.config.Backend.VNI, VtepMAC: v.mac.String()})
	if err != nil {
		return lease.Attrs{}, fmt.Errorf("write lease: %w", err)
	}
	a := lease.Attrs{PublicIP: v.ext.PublicIP, BackendType: lease.TypeVXLAN, BackendData: data}
	if v.config.EnableIPv6 {
		a.PublicIPv6, a.BackendV6Data = v.ext.PublicIPv6, data
	}
	return a, nil
}

// start makes the router for our lease. The device stays down, so that nothing
// is sent into it before the peers are known.
func (v *overlay) start(own lease.Lease) error {
	v.own = own
	link := v.link()
	router, err := tunnel.New(v.device, v.underlay, tunnel.Config{
		VNI: encap.VNI(v.config.Backend.VNI), Port: v.config.Backend.Port, MAC: v.mac, MTU: v.inner,
		Addresses: link.Addresses, Networks: link.Networks, AnySource: v.opts.AnySource, Logger: v.log,
	})
	if err != nil {
		return errors.Join(err, v.closeOpened())
	}
	v.device, v.underlay = nil, nil
	if v.before != nil {
		v.goOn(router)
	}
	return v.use(router)
}

// raise brings the device up with its address and route.
func (v *overlay) raise() error {
	link := v.link()
	if err := tunnel.ConfigureLink(v.name, link); err != nil {
		return err
	}
	attrs := []any{
		"name", v.name, "address", link.Addresses[0], "route", v.config.Network, "mtu", v.mtu(), "mac", v.mac.String(),
		"driver", v.driver, "workers", v.workers, "offloads", v.router.Offloads().String(),
	}
	if v.own.IPv6Subnet.IsValid() {
		attrs = append(attrs, "ipv6_address", v.own.IPv6Subnet.Addr(), "ipv6_route", v.config.IPv6Network)
	}
	v.log.Info("device is up, the kernel forwards what arrives on it", attrs...)
	checkForwarding(v.log, v.config.EnableIPv6)
	return v.settleRoutes()
}

// settleRoutes makes the host's other routes and filters agree with the model:
// routes to peers that another one left are removed, and what comes without
// VXLAN is let in.
func (v *overlay) settleRoutes() error {
	if v.direct != tunnel.DirectRoute {
		stale, err := kroute.RemoveLeftover(tunnel.RouteProtocol, networks(v.config)...)
		if err != nil {
			return fmt.Errorf("remove an earlier run's routes: %w", err)
		}
		if len(stale) > 0 {
			v.log.Info("removed an earlier run's routes", "count", len(stale))
		}
	}
	if v.direct == tunnel.DirectSocket {
		v.filter.loosen()
	}
	return nil
}

// use puts router in the place of the one before, with all its peers; an update
// goes to the one or to the other, never between them.
func (v *overlay) use(router *tunnel.Router) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.router
	v.router = router
	if old == nil {
		return nil
	}
	return router.ReplacePeers(old.Peers())
}

// apply passes on what the watch reports.
func (v *overlay) apply(u lease.Update) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.changes.leftOut(v.router.Apply(u))
	if u.Reset {
		v.log.Info("peers loaded", "count", len(v.router.Peers()))
		v.once.Do(func() { close(v.loaded) })
		return
	}
	v.changes.tell(u)
}

// close removes the device, and with it its routes and addresses.
func (v *overlay) close() {
	if v.isHanded() {
		return
	}
	err := v.closeOpened()
	if v.router != nil {
		s := v.router.Stats()
		err = errors.Join(err, v.router.Close())
		v.log.Info("router stopped", "sent", s.TxPackets, "received", s.RxPackets, "dropped", s.Dropped())
	}
	if err != nil {
		v.log.Warn("close the overlay", "error", err)
	}
	restoreSysctls(v.opts)
}

// closeOpened closes what no router owns.
func (v *overlay) closeOpened() error {
	var errs []error
	if v.underlay != nil {
		errs = append(errs, v.underlay.Close())
	}
	if v.device != nil {
		errs = append(errs, v.device.Close())
	}
	v.device, v.underlay = nil, nil
	return errors.Join(errs...)
}
