package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"uvxlan/cmd/internal/sysctl"
)

// Containers says where the host's containers are and how the overlay's packets
// come to them.
type Containers struct {
	// Networks are where hosts of the overlay have subnets, and Subnets are this
	// host's.
	Networks, Subnets []netip.Prefix
	// Arrivals are the names of the interfaces on which packets of other hosts'
	// containers arrive beside the overlay's device, at the moment; nil if there
	// are none.
	Arrivals func() []string
	// Ours tells whether an interface is the overlay's own.
	Ours func(name string) bool
}

// Parts are the forwarding of what the containers send and get, and the
// containers' own interfaces, which should be of this host's subnets. Both are the
// operator's.
func (c Containers) Parts() []Part {
	return []Part{
		{Name: "forwarding", Check: c.checkForwarding, Wakes: Is(Setting, Address), Interval: 5 * time.Second},
		{Name: "containers", Check: c.checkSubnets, Wakes: Is(Address), Interval: 5 * time.Second},
	}
}

// bridge is an interface with an address of the overlay's network.
type bridge struct {
	name    string
	address netip.Prefix
}

// bridges are the containers' interfaces: all with an address in one of the
// prefixes, but for the overlay's own.
func (c Containers) bridges(in []netip.Prefix) (found []bridge, err error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || !slices.ContainsFunc(in, func(n netip.Prefix) bool { return n.Contains(ip.Unmap()) }) {
			continue
		}
		link, err := netlink.LinkByIndex(a.LinkIndex) // net's lists all interfaces
		if err != nil || c.Ours(link.Attrs().Name) {
			continue // gone meanwhile
		}
		bits, _ := a.Mask.Size()
		found = append(found, bridge{link.Attrs().Name, netip.PrefixFrom(ip.Unmap(), bits)})
	}
	return found, nil
}

// checkForwarding looks at what the kernel goes by: for IPv4 the setting of the
// interface on which a packet arrives, for IPv6 that of the host.
func (c Containers) checkForwarding(context.Context) (faults []Fault) {
	bridges, err := c.bridges(c.Subnets)
	if err != nil {
		return []Fault{{What: fmt.Sprintf("whether the host forwards is not known: %v", err)}}
	}
	arrivals := []string{}
	if c.Arrivals != nil {
		arrivals = c.Arrivals()
	}
	none := true
	for _, b := range bridges {
		if b.address.Addr().Is4() {
			none = false
			arrivals = append(arrivals, b.name)
		}
	}
	const remedy = "sysctl -w net.ipv4.ip_forward=1"
	hostOff := off("ipv4/ip_forward")
	setting := func(name string) string { return "ipv4/conf/" + name + "/forwarding" }
	slices.Sort(arrivals)
	silent := slices.DeleteFunc(slices.Compact(arrivals), func(name string) bool { return !off(setting(name)) })
	if len(silent) > 0 {
		which, does := silent[0], "doesn't"
		if len(silent) > 1 {
			which, does = fmt.Sprintf("%s and %d more interfaces", silent[0], len(silent)-1), "don't"
		}
		f := Fault{What: fmt.Sprintf("%s %s forward IPv4 packets, so containers are cut off", which, does), Remedy: remedy, Stops: true}
		if !hostOff { // to write the host's again would change nothing
			f.Remedy = "sysctl -w net/" + setting(silent[0]) + "=1"
		}
		faults = append(faults, f)
	}
	if hostOff && none && len(faults) == 0 {
		faults = append(faults, Fault{What: "the host doesn't forward IPv4 packets: containers will be cut off", Remedy: remedy})
	}
	if slices.ContainsFunc(c.Subnets, func(n netip.Prefix) bool { return n.Addr().Is6() }) {
		if off("ipv6/conf/all/forwarding") {
			faults = append(faults, Fault{
				What: "the host doesn't forward IPv6 packets, so containers are cut off", Remedy: "sysctl -w net.ipv6.conf.all.forwarding=1", Stops: len(bridges) > 0,
			})
		}
	}
	return faults
}

// off tells whether a variable is known to be 0.
func off(path string) bool {
	v, _, err := sysctl.Read(path)
	return err == nil && v == "0"
}

// checkSubnets names containers' interfaces that are of another host's subnet, as
// a lease that was lost leaves them.
func (c Containers) checkSubnets(context.Context) (faults []Fault) {
	bridges, err := c.bridges(c.Networks)
	if err != nil {
		return []Fault{{What: fmt.Sprintf("whether the containers' subnet is this host's is not known: %v", err)}}
	}
	for _, b := range bridges {
		if slices.ContainsFunc(c.Subnets, func(n netip.Prefix) bool { return n.Contains(b.address.Addr()) }) {
			continue
		}
		own := c.Subnets[0]
		for _, n := range c.Subnets {
			if n.Addr().Is4() == b.address.Addr().Is4() {
				own = n
			}
		}
		faults = append(faults, Fault{
			What:   fmt.Sprintf("%s has the address %s, which is not of this host's subnet %s: other hosts don't reach what is behind it", b.name, b.address, own),
			Remedy: "restart the container runtime, so that it reads the subnet file again",
		})
	}
	return faults
}
