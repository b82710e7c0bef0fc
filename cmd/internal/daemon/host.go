package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"

	"uvxlan/cmd/internal/extiface"
	"uvxlan/cmd/internal/host"
	"uvxlan/cmd/internal/subnetfile"
	"uvxlan/lease"
	"uvxlan/tunnel"

	"uvxlan/cmd/internal/overlay"
)

// hostOf is what a daemon wants on its host, beside what the backend wants.
type hostOf struct {
	opts     Options
	config   *lease.Config
	own      lease.Lease
	keeper   *host.Keeper
	network  backend
	rules    rules
	underlay *underlay
}

// ready looks at all parts once the backend carries packets, and then has the
// container runtime find the subnet file.
func (h *hostOf) ready(ctx context.Context, done func()) error {
	h.keeper.Add(h.parts()...)
	if err := h.keeper.AwaitLook(ctx); err != nil {
		return err // the daemon ends
	}
	file, err := h.subnetFile(sync.OnceFunc(done))
	if err != nil {
		return err
	}
	_ = file.Repair(ctx) // once in any case, as the file of a start; the keeper tells what is wrong
	h.keeper.Add(file)
	return nil
}

func (h *hostOf) parts() []host.Part {
	subnets := h.own.Subnets()
	containers := host.Containers{Networks: h.config.Allocatable(), Subnets: subnets, Ours: isOverlayDevice}
	direct := overlay.DirectMode(h.config.Backend) != tunnel.DirectOff
	if direct || h.config.Backend.Type == lease.TypeHostGW {
		containers.Arrivals = func() []string { return []string{h.underlay.name()} }
	}
	parts := append([]host.Part{h.underlay.part()}, containers.Parts()...)
	parts = append(parts, h.rules.parts(h.own, h.devices)...)
	if direct {
		parts = append(parts, host.ReversePath(h.opts.StateDir, h.underlay.name))
	}
	if h.opts.Blackhole {
		parts = append(parts, host.Blackholes(h.opts.StateDir, subnets))
	}
	return parts
}

// devices are the interfaces by which the overlay's packets come and go.
func (h *hostOf) devices() (names []string) {
	b := h.config.Backend
	if b.Type != lease.TypeHostGW {
		names = append(names, overlay.DeviceName(b.VNI))
	}
	if b.Type == lease.TypeHostGW || overlay.DirectMode(b) != tunnel.DirectOff {
		names = append(names, h.underlay.name())
	}
	return names
}

// isOverlayDevice tells whether an interface is this daemon's or another's device.
func isOverlayDevice(name string) bool {
	return strings.HasPrefix(name, "flannel.") || strings.HasPrefix(name, "flannel-v6.")
}

// subnetFile notes where the file is, which stays when the daemon ends.
func (h *hostOf) subnetFile(right func()) (host.Part, error) {
	path, err := filepath.Abs(h.opts.SubnetFile)
	if err != nil {
		return host.Part{}, fmt.Errorf("write subnet file: %w", err)
	}
	want := func() subnetfile.File {
		return subnetfile.File{
			Network: h.config.Network, Subnet: h.own.Subnet, NetworkV6: h.networkV6(), SubnetV6: h.own.IPv6Subnet,
			MTU: h.network.MTU(), IPMasq: h.opts.Firewall.Masquerade,
		}
	}
	return host.SubnetFile(h.opts.StateDir, path, want, right), nil
}

func (h *hostOf) networkV6() netip.Prefix {
	if !h.config.EnableIPv6 {
		return netip.Prefix{}
	}
	return h.config.IPv6Network
}

// move has the daemon reach the other hosts by ext, and has them know of it.
func (h *hostOf) move(m *monitor, manager *lease.Manager, ext extiface.Interface) error {
	if err := checkHidden(h.opts, h.config, ext); err != nil {
		return err
	}
	if err := h.network.Move(ext); err != nil {
		return err
	}
	m.set(func(m *monitor) { m.ext = ext })
	attrs, err := h.network.Attrs(nil)
	if err != nil {
		return err
	}
	manager.Publish(attrs)
	h.keeper.Wake("subnet-file") // which has the MTU
	return nil
}
