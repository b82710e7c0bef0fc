package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"

	"uvxlan/cmd/internal/cniconf"
	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/host"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/lease"

	"uvxlan/cmd/internal/overlay"
	"uvxlan/tunnel/onlink"
)

// ready looks at all parts once the backend carries packets, and then has the
// container runtime find the subnet file.
func (s *service) ready(ctx context.Context) error {
	s.keeper.Add(s.parts()...)
	if err := s.keeper.AwaitLook(ctx); err != nil {
		return err // the daemon ends
	}
	file, err := s.subnetFile(sync.OnceFunc(s.monitor.beReady))
	if err != nil {
		return err
	}
	// Once in any case, as the file of a start. If it is right, the daemon is ready; if
	// not, the keeper tells why and tries again.
	_ = file.Repair(ctx)
	file.Check(ctx)
	s.keeper.Add(file)
	return s.configureCNI(ctx)
}

func (s *service) parts() []host.Part {
	subnets := s.own.Subnets()
	containers := host.Containers{Networks: s.config.Allocatable(), Subnets: subnets, Ours: isOverlayDevice}
	direct := overlay.DirectMode(s.config.Backend) != onlink.Off
	if direct || s.config.Backend.Type == lease.TypeHostGW {
		containers.Arrivals = func() []string { return []string{s.underlay.name()} }
	}
	parts := append([]host.Part{s.underlay.part(), host.Record(s.opts.StateDir)}, containers.Parts()...)
	parts = append(parts, s.rules.parts(s.own, s.devices)...)
	if direct {
		parts = append(parts, host.ReversePath(s.opts.StateDir, s.underlay.name))
	}
	if s.opts.Blackhole {
		parts = append(parts, host.Blackholes(s.opts.StateDir, subnets))
	}
	return parts
}

// devices are the interfaces by which the overlay's packets come and go.
func (s *service) devices() (names []string) {
	b := s.config.Backend
	if b.Type != lease.TypeHostGW {
		names = append(names, overlay.DeviceName(b.VNI))
	}
	if b.Type == lease.TypeHostGW || overlay.DirectMode(b) != onlink.Off {
		names = append(names, s.underlay.name())
	}
	return names
}

// isOverlayDevice tells whether an interface is this daemon's or another's device.
func isOverlayDevice(name string) bool {
	return strings.HasPrefix(name, "flannel.") || strings.HasPrefix(name, "flannel-v6.")
}

// subnetFile notes where the file is, which stays when the daemon ends.
func (s *service) subnetFile(right func()) (host.Part, error) {
	path, err := filepath.Abs(s.opts.SubnetFile)
	if err != nil {
		return host.Part{}, fmt.Errorf("write subnet file: %w", err)
	}
	want := func() subnetfile.File {
		return subnetfile.File{
			Network: s.config.Network, Subnet: s.own.Subnet, NetworkV6: s.networkV6(), SubnetV6: s.own.IPv6Subnet,
			MTU: s.network.MTU(), IPMasq: s.opts.Firewall.Masquerade,
		}
	}
	return host.SubnetFile(s.opts.StateDir, path, want, right), nil
}

// configureCNI has the container runtime connect containers, after all else: some
// take the file for the sign that they can.
func (s *service) configureCNI(ctx context.Context) error {
	if s.opts.CNIConfig == "" {
		return nil
	}
	path, err := filepath.Abs(s.opts.CNIConfig)
	if err != nil {
		return fmt.Errorf("write the CNI configuration: %w", err)
	}
	part := host.CNIConfig(s.opts.StateDir, path, func() cniconf.Config {
		return cniconf.Config{
			Network: s.config.Network, Subnet: s.own.Subnet, NetworkV6: s.networkV6(), SubnetV6: s.own.IPv6Subnet,
			MTU: s.network.MTU(), Masquerade: !s.opts.Firewall.Masquerade,
		}
	})
	if len(part.Check(ctx)) > 0 {
		_ = part.Repair(ctx) // if it fails, the keeper tells why and tries again
	}
	s.keeper.Add(part)
	return nil
}

func (s *service) networkV6() netip.Prefix {
	if !s.config.EnableIPv6 {
		return netip.Prefix{}
	}
	return s.config.IPv6Network
}

// move has the daemon reach the other hosts by ext, and has them know of it.
func (s *service) move(ext extiface.Interface) error {
	if err := checkHidden(s.opts, s.config, ext); err != nil {
		return err
	}
	if err := s.network.Move(ext); err != nil {
		return err
	}
	s.monitor.set(func(m *monitor) { m.ext = ext })
	if err := s.publish(); err != nil {
		return err
	}
	s.keeper.Wake("subnet-file") // which has the MTU
	s.keeper.Wake("cni-config")  // as well
	if before := s.underlay.current(); before.Address != ext.Address || before.AddressV6 != ext.AddressV6 {
		s.leases.Reconnect()
	}
	return nil
}
