package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"

	"golang.zx2c4.com/wireguard/tun/netstack"

	"uvxlan/encap"
	"uvxlan/lease"
	"uvxlan/tunnel"
	"uvxlan/tunnel/device"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/underlay"
)

// stack is the process's own TCP/IP.
type stack = *netstack.Net

// membership is what a member of the overlay must know: what the cluster's
// configuration says, its own subnet, and its peers, or who tells of them.
type membership struct {
	vni    uint32
	port   uint16
	mtu    encap.InnerMTU
	subnet netip.Prefix
	peers  []tunnel.Peer

	manager *lease.Manager // nil if it all was given by hand
	own     lease.Lease
}

// acquire takes a lease.
func acquire(ctx context.Context, registry lease.Registry, address netip.Addr) (*membership, error) {
	manager, err := lease.NewManager(lease.Options{Registry: registry, Logger: slog.Default()})
	if err != nil {
		return nil, err
	}
	config, err := manager.Config(ctx)
	if err != nil {
		return nil, err
	}
	if config.Backend.Type != lease.TypeVXLAN || config.Backend.DirectRouting {
		return nil, errors.New("the cluster's backend must be vxlan without direct routing: what comes without VXLAN goes to the kernel")
	}
	own, err := manager.Acquire(ctx, config, func(*lease.Lease) (lease.Attrs, error) {
		data, err := json.Marshal(lease.VXLANData{VNI: config.Backend.VNI, VtepMAC: macOf(address).String()})
		return lease.Attrs{PublicIP: address, BackendType: lease.TypeVXLAN, BackendData: data}, err
	})
	if err != nil {
		return nil, err
	}
	m := &membership{vni: config.Backend.VNI, port: config.Backend.Port, mtu: 1450, subnet: own.Subnet, manager: manager, own: own}
	if config.Backend.MTU > 0 {
		m.mtu = encap.OuterMTU(config.Backend.MTU).Inner(false)
	}
	return m, nil
}

// follow keeps the router's peers until ctx ends, and closes loaded when it has
// the first of them.
func (m *membership) follow(ctx context.Context, r *tunnel.Router, loaded chan<- struct{}) error {
	if m.manager == nil {
		if err := r.ReplacePeers(m.peers); err != nil {
			return err
		}
		close(loaded)
		<-ctx.Done()
		return nil
	}
	var once sync.Once
	return m.manager.Run(ctx, m.own, func(u lease.Update) {
		if err := r.Apply(u); err != nil {
			slog.Warn("leases that are no peers were left out", "error", err)
		}
		once.Do(func() { close(loaded) })
	})
}

// join puts a TCP/IP stack in the place of a host's device. It has the subnet's
// second address; the first is the VTEP's.
func join(address netip.Addr, m *membership) (*node, error) {
	vtep := m.subnet.Masked().Addr()
	own := vtep.Next()
	dev, stack, err := netstack.CreateNetTUN([]netip.Addr{own}, nil, int(m.mtu))
	if err != nil {
		return nil, fmt.Errorf("make TCP/IP stack: %w", err)
	}
	device, err := device.WrapWireGuard(dev)
	if err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	underlay, err := underlay.Listen(underlay.Config{Address: address, Port: m.port, Offloads: offload.All})
	if err != nil {
		return nil, errors.Join(err, device.Close())
	}
	router, err := tunnel.New(device, underlay, tunnel.Config{
		VNI: encap.VNI(m.vni), MAC: macOf(address), Link: link.Config{MTU: m.mtu, Addresses: []netip.Addr{vtep}},
		Logger: slog.Default(),
	})
	if err != nil {
		return nil, errors.Join(err, underlay.Close(), device.Close())
	}
	return &node{router, stack, own}, nil
}

// macOf is the VTEP's address of the member at an IPv4 address: locally
// administered, and the same whenever it starts.
func macOf(address netip.Addr) encap.MAC {
	a := address.As4()
	return encap.MAC{2, 0, a[0], a[1], a[2], a[3]}
}

// parsePeer reads "subnet,address,MAC".
func parsePeer(s string) (p tunnel.Peer, err error) {
	parts := strings.Split(s, ",")
	if len(parts) != 3 {
		return p, errors.New("it must be subnet,address,MAC")
	}
	var errs [3]error
	p.Subnet, errs[0] = netip.ParsePrefix(parts[0])
	p.Underlay, errs[1] = netip.ParseAddr(parts[1])
	p.MAC, errs[2] = encap.ParseMAC(parts[2])
	return p, errors.Join(errs[:]...)
}
