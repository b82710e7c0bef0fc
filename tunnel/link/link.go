// Package link gives the TUN interface what it needs to carry the overlay: MTU,
// addresses, routes and forwarding. It says what somebody has changed of it, and
// mends that.
package link

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
)

// DefaultQueueLen is the number of packets the kernel queues for each of a
// device's readers. It bridges a handover from one process to another: 100 ms at
// 100,000 packets a second, should the other one wait that long for a CPU. To set
// another length on a device that carries packets loses some of them: the kernel
// takes its transmit queues down meanwhile.
const DefaultQueueLen = 10_000

// ErrRouteExists says that another interface has the route to one of the
// overlay's networks: remove that route or choose another network.
var ErrRouteExists = errors.New("the route exists")

// sysctlDir is where the kernel's network variables are.
const sysctlDir = "/proc/sys/net"

// Config is what a TUN interface needs to carry the overlay.
type Config struct {
	// Addresses are the VTEP's own, as /32 or /128 so that no subnet route comes
	// with them.
	Addresses []netip.Addr
	// Networks are the overlay's.
	Networks []netip.Prefix
	// Routes lead into the interface; nil means one to each of Networks.
	Routes []netip.Prefix
	// MTU is the inner MTU.
	MTU encap.InnerMTU
	// QueueLen is the transmit queue's length in packets; 0 means DefaultQueueLen.
	// That of an interface that is up stays as it is.
	QueueLen int
	// SysctlDir is where the kernel's network variables can be written, if that isn't
	// /proc/sys/net itself, which a container often may only read.
	SysctlDir string
	// LooseReversePath lets packets in whose way back leads by another interface,
	// as with [onlink.Route] where only one of two hosts finds the other on-link.
	LooseReversePath bool
}

// ipv6 tells whether the interface carries IPv6.
func (c *Config) ipv6() bool {
	return slices.ContainsFunc(c.Networks, func(n netip.Prefix) bool { return n.Addr().Is6() })
}

// Destinations are those of the routes: Routes, or else Networks.
func (c *Config) Destinations() []netip.Prefix {
	if c.Routes != nil {
		return c.Routes
	}
	return c.Networks
}

func (c *Config) sysctlDir() string { return cmp.Or(c.SysctlDir, sysctlDir) }

func (c *Config) queueLen() int {
	if c.QueueLen > 0 {
		return c.QueueLen
	}
	return DefaultQueueLen
}

// Prepare does what can be done to the interface name before its addresses
// are known, in the calling thread's network namespace: it allows the kernel to
// forward what arrives there, sets the MTU and looks whether the way is free for
// the routes. Nothing of it carries packets yet. Before Linux 6.17 IPv6 packets
// are forwarded only if the host forwards IPv6; see [IPv6Forwarding]. It
// needs CAP_NET_ADMIN and a writable [Config.SysctlDir]. A route in the way is
// [ErrRouteExists].
func Prepare(name string, c Config) error {
	return configure(name, append(c.settings(name),
		step{"look for other routes", func(l netlink.Link) error { return checkRoutes(l, c.Destinations()) }}))
}

// settings are the steps that take no addresses.
func (c *Config) settings(name string) []step {
	return []step{
		{"set sysctl", func(netlink.Link) error { return setSysctls(c.sysctlDir(), c.sysctls(name)) }},
		{fmt.Sprintf("set MTU %d", c.MTU), func(l netlink.Link) error { return netlink.LinkSetMTU(l, int(c.MTU)) }},
		{"set queue length", func(l netlink.Link) error { return setQueueLen(l, c.queueLen()) }},
	}
}

// Configure makes the settings that [Prepare] makes, gives the interface its
// addresses, brings it up and adds the routes; then packets come. What is there already
// stays, so that it also repairs an interface that somebody has changed; routes of
// [kroute.Protocol] into the interface that aren't wanted go. All of it goes with the
// interface. An interface that was deleted is [device.ErrGone], and a route in the way
// [ErrRouteExists]; all else is done then.
func Configure(name string, c Config) error {
	return configure(name, append(c.settings(name),
		step{"add address", func(l netlink.Link) error { return addAddresses(l, c.Addresses) }},
		step{"bring up", netlink.LinkSetUp},
		step{"remove route", func(l netlink.Link) error { return removeRoutes(l, c) }},
		step{"add route", func(l netlink.Link) error { return addRoutes(l, c) }},
	))
}

// Check says in what the interface name isn't as [Configure] leaves it, an
// error each, none if it is; the queue's length doesn't count. An interface that is
// gone is [device.ErrGone] alone.
func Check(name string, c Config) (wrong []error) {
	link, err := find(name)
	if err != nil {
		return []error{err}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		wrong = append(wrong, errors.New("it is down"))
	}
	if mtu := link.Attrs().MTU; mtu != int(c.MTU) {
		wrong = append(wrong, fmt.Errorf("its MTU is %d, not %d", mtu, c.MTU))
	}
	wrong = append(wrong, wrongSysctls(c.sysctls(name))...)
	wrong = append(wrong, missingAddresses(link, c.Addresses)...)
	return append(wrong, wrongRoutes(link, c)...)
}

// step is one setting of an interface.
type step struct {
	what string
	do   func(netlink.Link) error
}

func configure(name string, steps []step) error {
	link, err := find(name)
	if err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	for _, s := range steps {
		if err := s.do(link); err != nil {
			return fmt.Errorf("configure %s: %s: %w", name, s.what, err)
		}
	}
	return nil
}

// setQueueLen leaves an interface alone that is up, and so may carry packets.
func setQueueLen(l netlink.Link, packets int) error {
	if l.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	return netlink.LinkSetTxQLen(l, packets)
}

func find(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		err = fmt.Errorf("%w: %w", device.ErrGone, err)
	}
	return link, err
}

// addAddresses adds addresses that are usable at once: nobody else in the overlay
// could have one of them.
func addAddresses(link netlink.Link, addrs []netip.Addr) error {
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen()))}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	return nil
}

func missingAddresses(link netlink.Link, addrs []netip.Addr) (wrong []error) {
	has, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return []error{fmt.Errorf("list addresses: %w", err)}
	}
	for _, a := range addrs {
		if !slices.ContainsFunc(has, func(h netlink.Addr) bool { return h.IP.Equal(a.AsSlice()) }) {
			wrong = append(wrong, fmt.Errorf("its address %s is missing", a))
		}
	}
	return wrong
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// sysctls are what the overlay needs on its own interface
// (Documentation/networking/ip-sysctl.rst): forwarding of what arrives there;
// our own address as a source, which the router's ICMP errors carry; and no
// autoconfiguration, whose packets nobody in the overlay would answer. The
// latter is for quiet only, and a kernel without IPv6 has none of it. An overlay
// with IPv6 needs IPv6 on the interface, which container hosts often leave off.
func (c *Config) sysctls(name string) []sysctl {
	settings := []sysctl{
		{filepath.Join("ipv4/conf", name, "forwarding"), "1", false},
		{filepath.Join("ipv4/conf", name, "accept_local"), "1", false},
		{filepath.Join("ipv6/conf", name, "addr_gen_mode"), "1", true},
		{filepath.Join("ipv6/conf", name, "accept_ra"), "0", true},
	}
	if c.LooseReversePath {
		settings = append(settings, sysctl{filepath.Join("ipv4/conf", name, "rp_filter"), "2", false})
	}
	if c.ipv6() {
		settings = append(settings,
			sysctl{filepath.Join("ipv6/conf", name, "disable_ipv6"), "0", false},
			sysctl{filepath.Join("ipv6/conf", name, "force_forwarding"), "1", true})
	}
	return settings
}

func setSysctls(dir string, settings []sysctl) error {
	for _, s := range settings {
		if err := setSysctl(dir, s.path, s.value); err != nil && !s.optional {
			return fmt.Errorf("net/%s=%s: %w", s.path, s.value, err)
		}
	}
	return nil
}

// wrongSysctls passes over those that are optional: a kernel may lack them.
func wrongSysctls(settings []sysctl) (wrong []error) {
	for _, s := range settings {
		if s.optional {
			continue
		}
		now, err := os.ReadFile(filepath.Join(sysctlDir, s.path))
		switch value := strings.TrimSpace(string(now)); {
		case errors.Is(err, fs.ErrNotExist): // the interface has gone meanwhile
		case err != nil:
			wrong = append(wrong, fmt.Errorf("read sysctl net/%s: %w", s.path, err))
		case value != s.value:
			wrong = append(wrong, fmt.Errorf("sysctl net/%s is %s, not %s", s.path, value, s.value))
		}
	}
	return wrong
}

type sysctl struct {
	path, value string
	optional    bool
}

// setSysctl sets a variable unless it has the value already, as it may where a
// container's /proc/sys can only be read.
func setSysctl(dir, path, value string) error {
	err := os.WriteFile(filepath.Join(dir, path), []byte(value), 0)
	if err == nil {
		return nil
	}
	if now, readErr := os.ReadFile(filepath.Join(sysctlDir, path)); readErr == nil && strings.TrimSpace(string(now)) == value {
		return nil
	}
	return err
}

// IPv4Forwarding tells whether the host forwards IPv4 packets that arrive on
// interfaces other than ours, as those of its containers do.
func IPv4Forwarding() (bool, error) { return switchedOn("ipv4/ip_forward") }

// IPv6Forwarding tells whether the host forwards IPv6 packets, which it
// does on all interfaces or on none.
func IPv6Forwarding() (bool, error) { return switchedOn("ipv6/conf/all/forwarding") }

func switchedOn(path string) (bool, error) {
	b, err := os.ReadFile(filepath.Join(sysctlDir, path))
	if err != nil {
		return false, fmt.Errorf("read sysctl net.%s: %w", strings.ReplaceAll(path, "/", "."), err)
	}
	return strings.TrimSpace(string(b)) != "0", nil
}

// RemoveStale makes way for the device name: it deletes what [Stale]
// finds. It returns the deleted interface's type, "" when there was none.
func RemoveStale(name string) (string, error) {
	link, err := staleLink(name)
	if err != nil || link == nil {
		return "", err
	}
	if err := remove(link); err != nil {
		return "", fmt.Errorf("delete interface %s: %w", name, err)
	}
	return link.Type(), nil
}

// remove deletes an interface and returns when there is none of its name. The kernel
// itself is done some ten milliseconds later, for which packets need not wait.
func remove(link netlink.Link) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer h.Close()
		done <- h.LinkDel(link)
	}()
	for {
		select {
		case err := <-done:
			return err
		case <-time.After(time.Millisecond / 2):
			if _, err := netlink.LinkByName(link.Attrs().Name); errors.As(err, new(netlink.LinkNotFoundError)) {
				return nil
			}
		}
	}
}

// Stale looks for an interface that is in the way of the device name and of
// no use to anybody: a kernel VXLAN interface ("vxlan"), as flanneld leaves one
// behind, or a persistent TUN device that no process holds ("tuntap"). It
// returns its type, "" when there is none, and [device.ErrExists] for anything
// else.
func Stale(name string) (string, error) {
	link, err := staleLink(name)
	if err != nil || link == nil {
		return "", err
	}
	return link.Type(), nil
}

// staleLink returns nil without an error when no interface has the name.
func staleLink(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for interface %s: %w", name, err)
	}
	if tap, ok := link.(*netlink.Tuntap); ok && (tap.NonPersist || tap.Queues > 0 || tap.Attrs().OperState == netlink.OperUp) {
		return nil, fmt.Errorf("interface %s: %w: a running process holds it", name, device.ErrExists)
	}
	if t := link.Type(); t != "vxlan" && t != "tuntap" && t != "tun" {
		return nil, fmt.Errorf("interface %s: %w, of type %s", name, device.ErrExists, t)
	}
	return link, nil
}
