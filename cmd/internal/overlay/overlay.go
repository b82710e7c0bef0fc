// Package overlay is the host's part of a VXLAN network: the device, the sockets
// and the router between them. They are made anew when somebody takes one of them
// away, moved when the underlay moves, and handed over to another process.
package overlay

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"time"

	"uvxlan/cmd/internal/attach"
	"uvxlan/cmd/internal/cpuquota"
	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/handover"
	"uvxlan/cmd/internal/hoststate"
	"uvxlan/cmd/internal/peerlog"
	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/kroute"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

// maxWorkers bounds the default number of workers: beyond it the flows of one
// host seldom spread.
const maxWorkers = 8

// Options are the user's choices.
type Options struct {
	// Workers is the number of threads that move packets, where the device has as
	// many queues; 0 means one a CPU, within the CPU quota, at most 8.
	Workers int
	// Driver is the device's; empty means the first that the kernel allows.
	Driver device.Driver
	// AnySource takes packets whatever address they come from.
	AnySource bool
	// HugePages has packets lie on huge pages.
	HugePages bool
	// Offloads are those to use, where the kernel has them; with MustOffload it
	// must.
	Offloads    offload.Set
	MustOffload bool
	// FastPath is whether packets are to be carried in the kernel where they can be.
	// FastPathCheck is the time after which the host is looked at again for what
	// speaks against it.
	FastPath      attach.Mode
	FastPathCheck time.Duration
	// SysctlDir is where the network's variables can be written; empty means
	// /proc/sys/net.
	SysctlDir string
}

func (o *Options) workers() int {
	if o.Workers > 0 {
		return o.Workers
	}
	return defaultWorkers()
}

// processors is how many CPUs the process may run on as it starts, or what
// GOMAXPROCS in its environment says.
var processors = runtime.GOMAXPROCS(0)

// defaultWorkers is one worker a CPU, and no more than whole CPUs' worth of time
// that the control group may use: workers that are busy together would use up a
// quota early in each period, and until its end nothing would pass either way.
var defaultWorkers = sync.OnceValue(func() int {
	quota, _ := cpuquota.Read() // one that can't be read limits nothing
	return workersFor(processors, quota)
})

func workersFor(processors int, quota float64) int {
	return max(1, int(min(float64(processors), math.Floor(quota), maxWorkers)))
}

// Config is what an Overlay must know. All of it is required.
type Config struct {
	Options
	// Network is the cluster's configuration.
	Network *lease.Config
	// Interface leads to the other hosts.
	Interface extiface.Interface
	// StateDir has the record of what is put on the host.
	StateDir string
	// Wake asks for a look at a part of the host; see [Overlay.Parts].
	Wake   func(part string)
	Logger *slog.Logger
}

// Overlay is the device, the sockets and the router. Its methods may be called
// from any goroutine once Start has returned; before, from one.
type Overlay struct {
	// immutable
	log    *slog.Logger
	config *lease.Config
	name   string
	opts   Options
	state  string // the state directory
	wake   func(part string)
	direct onlink.Mode
	fast   *attach.Keeper // called without mu, which it may wait for

	mac encap.MAC // before Start: the one to propose
	own lease.Lease

	peerlog *peerlog.Log
	remade  time.Time // when the device was last made again; Run's alone

	// opened, until a router owns them
	device   device.Device
	underlay *underlay.UDP
	onLink   *onlink.Paths // nil with onlink.Off
	driver   device.Driver // the device's
	workers  int

	// taken over, until this daemon carries the packets; nil if there was none
	before *handover.State

	loaded chan struct{} // closed when the first snapshot of leases is in force
	once   sync.Once     // closes loaded

	mu     sync.Mutex // guards the rest
	ext    extiface.Interface
	inner  encap.InnerMTU
	router *tunnel.Router
	down   error // why the router doesn't carry packets, nil if it does
	handed bool  // the router is released: another process carries the packets
	moved  *move // the last one; nil if there was none
	// offered is the router whose descriptors another process was last told.
	offered *tunnel.Router
	// outliers are peers' subnets that no host could be given by the configuration.
	outliers map[netip.Prefix]struct{}
	// bypassed are the peers that a foreign route takes the packets of, with that
	// route in words.
	bypassed map[netip.Prefix]string
}

// Open opens whatever may fail before there is a lease, or takes over what the
// daemon before had open. Where flannel's kernel interface carries packets, it leaves
// that and all that can't be beside it to [Overlay.Start]: a lease may take long.
func Open(c Config, before *handover.State) (*Overlay, error) {
	if err := device.Check(); err != nil {
		return nil, err
	}
	v := newOverlay(c)
	if before != nil {
		v.fast = attach.New(v.fastConfig(), before.FastPath)
	}
	if err := v.checkMTU(c.Interface); err != nil {
		return nil, err
	}
	if err := hoststate.Update(c.StateDir, func(s *hoststate.State) { s.Device = v.name }); err != nil {
		return nil, err
	}
	if before != nil {
		return v, v.takeOver(before)
	}
	if kind, err := link.Stale(v.name); err == nil && kind == "vxlan" {
		v.log.Info("an earlier interface stays until there is a lease", "name", v.name, "type", kind)
		return v, nil
	}
	return v, v.open()
}

// newOverlay opens nothing yet.
func newOverlay(c Config) *Overlay {
	v := &Overlay{
		log: c.Logger, config: c.Network, ext: c.Interface, opts: c.Options, state: c.StateDir, wake: c.Wake,
		name:   DeviceName(c.Network.Backend.VNI),
		inner:  outerMTU(c.Network, c.Interface).Inner(c.Network.EnableIPv6),
		direct: DirectMode(c.Network.Backend),
		mac:    randomMAC(), loaded: make(chan struct{}), down: ErrLoading, peerlog: peerlog.New(c.Logger),
	}
	v.fast = attach.New(v.fastConfig(), nil)
	// Busy workers must leave the rest of the daemon room to run.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), c.workers()+2))
	return v
}

// ErrLoading is the fault of a backend until the first snapshot of leases is in
// force.
var ErrLoading = errors.New("the peers' leases are not read yet")

// DirectMode is how the configuration wants on-link peers to be reached.
func DirectMode(b lease.Backend) onlink.Mode {
	switch {
	case !b.DirectRouting:
		return onlink.Off
	case b.DirectMode == lease.DirectRoute:
		return onlink.Route
	}
	return onlink.Socket
}

// DeviceName is what the interface of a VNI is called.
func DeviceName(vni uint32) string { return "flannel." + strconv.FormatUint(uint64(vni), 10) }

// minMTUv6 is the least that IPv6 runs on (RFC 8200, section 5).
const minMTUv6 encap.InnerMTU = 1280

func (v *Overlay) checkMTU(ext extiface.Interface) error {
	inner := outerMTU(v.config, ext).Inner(v.config.EnableIPv6)
	if v.config.EnableIPv6 && inner < minMTUv6 {
		return fmt.Errorf("the MTU of %s leaves %d bytes to the containers, and IPv6 needs %d: raise it to %d",
			ext.Name, inner, minMTUv6, minMTUv6.Outer(true))
	}
	return nil
}

// MTU is the containers'. With IPv6 it leaves room for the larger of the two
// outer headers: a device and its containers have one MTU for both families.
func (v *Overlay) MTU() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return int(v.inner)
}

func outerMTU(c *lease.Config, ext extiface.Interface) encap.OuterMTU {
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
func (v *Overlay) open() error {
	err := v.acquire()
	if err == nil {
		err = v.checkOffloads()
	}
	if err == nil {
		err = link.Prepare(v.name, v.link())
	}
	if v.own.Subnet.IsValid() && errors.Is(err, link.ErrRouteExists) {
		err = nil // only a start is refused for it
	}
	if err != nil {
		return errors.Join(err, v.closeOpened())
	}
	return nil
}

func (v *Overlay) acquire() error {
	v.removeStaleFast()
	removed, err := link.RemoveStale(v.name)
	if err != nil {
		return err
	}
	if removed != "" {
		v.log.Info("removed an earlier interface", "name", v.name, "type", removed)
	}
	if err := v.removeStaleV6(); err != nil {
		return err
	}
	v.device, err = device.Open(v.name, device.Config{
		Driver: v.opts.Driver, Queues: v.opts.workers(), Offloads: v.opts.Offloads,
	})
	if err != nil {
		return err
	}
	v.driver, v.workers = device.DriverOf(v.device), len(v.device.Queues())
	if v.driver != device.DriverNative && v.opts.Driver != v.driver {
		v.log.Warn("this kernel's TUN has no superpackets for us: packets pass slower than they might", "driver", v.driver)
	}
	return v.listen()
}

// listen opens the sockets on the underlay's addresses.
func (v *Overlay) listen() (err error) {
	local, localV6 := v.external().Sockets()
	v.underlay, err = underlay.Listen(underlay.Config{
		Address: local, AddressV6: localV6, Port: v.config.Backend.Port, Workers: v.workers, Offloads: v.opts.Offloads,
	})
	if err != nil {
		return err
	}
	v.underlay.LogFewPorts(v.log)
	return v.follow(nil)
}

// follow opens what keeps on-link peers on a direct path, with the packet sockets
// of the router before, if there are.
func (v *Overlay) follow(sockets []int) (err error) {
	if v.direct != onlink.Socket {
		closeAll(sockets)
		sockets = nil
	}
	if v.direct != onlink.Off {
		v.onLink, err = onlink.Open(onlink.Config{Mode: v.direct, Workers: v.workers, Sockets: sockets})
	}
	return err
}

// external is the interface that leads to the other hosts at the moment.
func (v *Overlay) external() extiface.Interface {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ext
}

// removeStaleV6 removes the second interface that flanneld leaves behind, which
// holds the IPv6 port. Anything else of its name isn't in the way.
func (v *Overlay) removeStaleV6() error {
	name := "flannel-v6." + strconv.FormatUint(uint64(v.config.Backend.VNI), 10)
	if kind, _ := link.Stale(name); kind != "vxlan" || !v.config.EnableIPv6 {
		return nil
	}
	if _, err := link.RemoveStale(name); err != nil {
		return err
	}
	v.log.Info("removed an earlier interface", "name", name, "type", "vxlan")
	return nil
}

func (v *Overlay) checkOffloads() error {
	missing := v.opts.Offloads &^ (v.device.Offloads() | v.underlay.Offloads())
	if missing != 0 && v.opts.MustOffload {
		return fmt.Errorf("-offload=on: with device driver %s, this kernel refuses %s", v.driver, missing)
	}
	return nil
}

// link is what the interface needs; without addresses before there is a lease.
func (v *Overlay) link() link.Config {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.linkLocked()
}

func (v *Overlay) linkLocked() link.Config {
	c := link.Config{
		Networks: v.config.Networks(), Routes: v.routesLocked(), MTU: v.inner, SysctlDir: v.opts.SysctlDir,
		LooseReversePath: v.direct == onlink.Route,
	}
	if v.own.Subnet.IsValid() {
		c.Addresses = []netip.Addr{v.own.Subnet.Addr()}
	}
	if v.own.IPv6Subnet.IsValid() {
		c.Addresses = append(c.Addresses, v.own.IPv6Subnet.Addr())
	}
	return c
}

// Attrs is what our lease says. The VTEP's MAC is the one our previous lease
// told the peers, if there is one; it is the same for both families, since one
// device serves both.
func (v *Overlay) Attrs(previous *lease.Lease) (lease.Attrs, error) {
	if previous != nil {
		if p, err := tunnel.PeerFromLease(*previous); err == nil {
			v.mac = p.MAC
		}
	}
	return v.attrs()
}

// attrs is what the lease of this VTEP says.
func (v *Overlay) attrs() (lease.Attrs, error) {
	data, err := json.Marshal(lease.VXLANData{VNI: v.config.Backend.VNI, VtepMAC: v.mac.String()})
	if err != nil {
		return lease.Attrs{}, fmt.Errorf("write lease: %w", err)
	}
	ext := v.external()
	a := lease.Attrs{PublicIP: ext.PublicIP, BackendType: lease.TypeVXLAN, BackendData: data}
	if v.config.EnableIPv6 {
		a.PublicIPv6, a.BackendV6Data = ext.PublicIPv6, data
	}
	return a, nil
}

// Start makes the router for our lease. The device stays down, so that nothing
// is sent into it before the peers are known.
func (v *Overlay) Start(own lease.Lease) error {
	if v.device == nil {
		if err := v.open(); err != nil {
			return err
		}
	}
	v.own = own
	if err := v.startRouter(); err != nil {
		return err
	}
	if v.before != nil {
		v.goOn()
	}
	return nil
}

func (v *Overlay) startRouter() error {
	c := v.link()
	c.Routes = v.config.Allocatable() // those of outliers come and go
	router, err := tunnel.New(v.device, v.underlay, tunnel.Config{
		VNI: encap.VNI(v.config.Backend.VNI), MAC: v.mac, Link: c, AnySource: v.opts.AnySource, HugePages: v.opts.HugePages,
		OnLink: v.onLink, Logger: v.log,
	})
	if err != nil {
		return errors.Join(err, v.closeOpened())
	}
	v.device, v.underlay, v.onLink = nil, nil, nil
	return v.use(router)
}

// raise brings the device up with its address and route.
func (v *Overlay) raise() error {
	c := v.link()
	if err := link.Configure(v.name, c); err != nil {
		return err
	}
	router, _ := v.inForce()
	attrs := []any{
		"name", v.name, "address", c.Addresses[0], "route", c.Routes[0], "mtu", int(c.MTU), "mac", v.mac.String(),
		"driver", v.driver, "workers", v.workers, "offloads", router.Offloads().String(),
	}
	if v.own.IPv6Subnet.IsValid() {
		attrs = append(attrs, "ipv6_address", v.own.IPv6Subnet.Addr(), "ipv6_route", v.config.IPv6Network)
	}
	v.log.Info("device is up, the kernel forwards what arrives on it", attrs...)
	return v.removeStaleRoutes()
}

// removeStaleRoutes removes routes to peers that another model left.
func (v *Overlay) removeStaleRoutes() error {
	if v.direct == onlink.Route {
		return nil // the router's business
	}
	stale, err := kroute.RemoveLeftover(kroute.Protocol, v.config.Networks()...)
	if err != nil {
		return fmt.Errorf("remove an earlier run's routes: %w", err)
	}
	if len(stale) > 0 {
		v.log.Info("removed an earlier run's routes", "count", len(stale))
	}
	return nil
}

// use puts router in the place of the one before, with all its peers; an update
// goes to the one or to the other, never between them.
func (v *Overlay) use(router *tunnel.Router) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.router
	v.router = router
	if old == nil {
		return nil
	}
	return router.ReplacePeers(old.Peers())
}

// Apply passes on what the watch reports.
func (v *Overlay) Apply(u lease.Update) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.peerlog.LeftOut(u, v.router.Apply(u))
	v.routeOutliersLocked(u)
	if u.Reset {
		v.log.Info("peers loaded", "count", len(v.router.Peers()))
		v.once.Do(func() { close(v.loaded) })
		return
	}
	v.peerlog.Tell(u)
}

// Close removes the device, and with it its routes and addresses.
func (v *Overlay) Close() {
	if v.isHanded() {
		return
	}
	v.fast.Close()
	err := v.closeOpened()
	if router, _ := v.inForce(); router != nil {
		s := router.Stats()
		err = errors.Join(err, router.Close())
		v.log.Info("router stopped", "sent", s.TxPackets, "received", s.RxPackets, "dropped", s.Dropped())
	}
	if err != nil {
		v.log.Warn("close the overlay", "error", err)
	}
}

// closeOpened closes what no router owns.
func (v *Overlay) closeOpened() error {
	var errs []error
	if v.onLink != nil {
		errs = append(errs, v.onLink.Close())
	}
	if v.underlay != nil {
		errs = append(errs, v.underlay.Close())
	}
	if v.device != nil {
		errs = append(errs, v.device.Close())
	}
	v.device, v.underlay, v.onLink = nil, nil, nil
	return errors.Join(errs...)
}

// Standby carries the packets of a daemon that is becoming another program, by
// VXLAN alone and by the table as it was, once ready has returned and until stop is
// called. It leaves the host alone.
func Standby(c Config, s *handover.State) (run func(context.Context) error, err error) {
	v := newOverlay(c)
	v.direct, s.Tunnel.Sockets.Packet = onlink.Off, nil
	v.before = s
	if err := v.adopt(s); err != nil {
		return nil, err
	}
	if err := v.Start(s.Own); err != nil {
		return nil, err
	}
	return v.router.Run, nil
}
