package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// routerName is the namespace of the router that joins the underlay networks.
const routerName = "kb-router"

// maxName is what fits an interface name: the router's port is named after its host.
const maxName = 15

// HostSpec describes one host and the container behind it.
type HostSpec struct {
	// Name is the name of the host's namespace, at most 15 bytes.
	Name string
	// Underlay is the address of the host's eth0 with its network's length.
	Underlay netip.Prefix
	// Gateway is the router's address on that network, the host's default route.
	Gateway netip.Addr
	// Subnet is the container subnet: its first address is the gateway, its
	// second the container. At most 30 bits long.
	Subnet netip.Prefix
	// Routed gives the host a link of its own to the router. Otherwise it is a
	// port of its network's bridge, which other hosts may join.
	Routed bool
	// IPv6 is the same of IPv6; the zero value if the host has none.
	IPv6 IPv6Spec
}

// IPv6Spec is a host's part of the IPv6 networks, in addition to IPv4's; each
// field means what [HostSpec]'s of its name does.
type IPv6Spec struct {
	Underlay netip.Prefix
	Gateway  netip.Addr
	Subnet   netip.Prefix
}

// DefaultHosts returns kb21 and kb22, which share a layer-2 network, and kb31
// behind the router.
func DefaultHosts() []HostSpec {
	spec := func(name, underlay, gateway, subnet string) HostSpec {
		return HostSpec{
			Name:     name,
			Underlay: netip.MustParsePrefix(underlay),
			Gateway:  netip.MustParseAddr(gateway),
			Subnet:   netip.MustParsePrefix(subnet),
		}
	}
	hosts := []HostSpec{
		spec("kb21", "192.168.14.21/24", "192.168.14.1", "172.7.21.0/24"),
		spec("kb22", "192.168.14.22/24", "192.168.14.1", "172.7.22.0/24"),
		spec("kb31", "192.168.15.31/24", "192.168.15.1", "172.7.31.0/24"),
	}
	hosts[2].Routed = true
	return hosts
}

// DualHosts returns the default hosts with IPv6 as well.
func DualHosts() []HostSpec {
	hosts := DefaultHosts()
	for i, v6 := range [][3]string{
		{"fd00:14::21/64", "fd00:14::1", "fd00:7:0:21::/64"},
		{"fd00:14::22/64", "fd00:14::1", "fd00:7:0:22::/64"},
		{"fd00:15::31/64", "fd00:15::1", "fd00:7:0:31::/64"},
	} {
		hosts[i].IPv6 = IPv6Spec{netip.MustParsePrefix(v6[0]), netip.MustParseAddr(v6[1]), netip.MustParsePrefix(v6[2])}
	}
	return hosts
}

// containerName is the namespace of a host's container.
func containerName(host string) string { return host + "-c1" }

// network is the underlay network of the host.
func (s HostSpec) network() netip.Prefix { return s.Underlay.Masked() }

// subnetGateway is the host's own address in the container subnet.
func (s HostSpec) subnetGateway() netip.Addr { return s.Subnet.Addr().Next() }

// containerAddress is the container's address.
func (s HostSpec) containerAddress() netip.Addr { return s.subnetGateway().Next() }

// validate reports the first thing that makes the host impossible by itself.
func (s HostSpec) validate() error {
	switch {
	case s.Name == "" || len(s.Name) > maxName || strings.ContainsAny(s.Name, "/.: \t\n"):
		return fmt.Errorf("host name %q is not 1 to %d bytes without slash, dot, colon or space", s.Name, maxName)
	case s.Name == routerName:
		return fmt.Errorf("host name %q is the router's", s.Name)
	case !s.Underlay.IsValid() || !s.Underlay.Addr().Is4():
		return fmt.Errorf("host %s: underlay %s is not an IPv4 address with prefix length", s.Name, s.Underlay)
	case !s.network().Contains(s.Gateway) || s.Gateway == s.Underlay.Addr():
		return fmt.Errorf("host %s: gateway %s is not another address of %s", s.Name, s.Gateway, s.network())
	case !s.Subnet.IsValid() || !s.Subnet.Addr().Is4() || s.Subnet != s.Subnet.Masked() || s.Subnet.Bits() > 30:
		return fmt.Errorf("host %s: subnet %s is not an IPv4 network of at most 30 bits", s.Name, s.Subnet)
	case s.Subnet.Overlaps(s.Underlay):
		return fmt.Errorf("host %s: subnet %s overlaps the underlay %s", s.Name, s.Subnet, s.Underlay)
	}
	return s.IPv6.validate(s.Name)
}

func (s IPv6Spec) validate(name string) error {
	switch {
	case s == IPv6Spec{}:
		return nil
	case !s.Underlay.IsValid() || !s.Underlay.Addr().Is6():
		return fmt.Errorf("host %s: underlay %s is not an IPv6 address with prefix length", name, s.Underlay)
	case !s.Underlay.Contains(s.Gateway) || s.Gateway == s.Underlay.Addr():
		return fmt.Errorf("host %s: gateway %s is not another address of %s", name, s.Gateway, s.Underlay.Masked())
	case !s.Subnet.IsValid() || !s.Subnet.Addr().Is6() || s.Subnet != s.Subnet.Masked() || s.Subnet.Bits() > 126:
		return fmt.Errorf("host %s: subnet %s is not an IPv6 network of at most 126 bits", name, s.Subnet)
	case s.Subnet.Overlaps(s.Underlay):
		return fmt.Errorf("host %s: subnet %s overlaps the underlay %s", name, s.Subnet, s.Underlay)
	}
	return nil
}

// container is the container's address.
func (s IPv6Spec) container() netip.Addr {
	if s == (IPv6Spec{}) {
		return netip.Addr{}
	}
	return s.Subnet.Addr().Next().Next()
}

// validateHosts checks every host and that they fit together.
func validateHosts(hosts []HostSpec) error {
	if len(hosts) == 0 {
		return errors.New("a lab needs at least one host")
	}
	for i, s := range hosts {
		if err := s.validate(); err != nil {
			return err
		}
		for _, other := range hosts[:i] {
			if err := s.conflict(other); err != nil {
				return err
			}
		}
	}
	return nil
}

// conflict reports why the two hosts can't be in one lab.
func (s HostSpec) conflict(o HostSpec) error {
	clash := func(what string) error {
		return fmt.Errorf("hosts %s and %s: %s", o.Name, s.Name, what)
	}
	sameNetwork := s.network() == o.network()
	switch {
	case s.Name == o.Name || s.Name == containerName(o.Name) || containerName(s.Name) == o.Name:
		return clash("same namespace name")
	case s.Underlay.Addr() == o.Underlay.Addr():
		return clash("same underlay address")
	case s.Subnet.Overlaps(o.Subnet) || s.Subnet.Overlaps(o.network()) || o.Subnet.Overlaps(s.network()):
		return clash("overlapping subnets")
	case !sameNetwork && s.network().Overlaps(o.network()):
		return clash("overlapping underlay networks")
	case sameNetwork && (s.Routed || o.Routed):
		return clash("a routed host's network is its own")
	case sameNetwork && s.Gateway != o.Gateway:
		return clash("different gateways on one network")
	case s.IPv6 != IPv6Spec{} && o.IPv6 != IPv6Spec{} && (s.IPv6.Underlay.Addr() == o.IPv6.Underlay.Addr() || s.IPv6.Subnet.Overlaps(o.IPv6.Subnet)):
		return clash("same IPv6 address or overlapping IPv6 subnets")
	case sameNetwork && s.IPv6.Gateway != o.IPv6.Gateway:
		return clash("different IPv6 gateways on one network")
	}
	return nil
}
