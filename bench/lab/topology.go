package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

const (
	underlayMTU = 1500
	// eth0 is the one interface that every host and container has.
	eth0 = "eth0"
	// containerPort and containerBridge are a host's interfaces towards its
	// container.
	containerPort   = "veth-c1"
	containerBridge = "cni0"
)

// build makes the router and the hosts of the options.
func (l *Lab) build(ctx context.Context) error {
	router, err := l.addNode(ctx, routerName)
	if err != nil {
		return err
	}
	if err := router.Sysctl("ipv4/ip_forward", "1"); err != nil {
		return err
	}
	if err := router.quietBridges(); err != nil {
		return err
	}
	l.router = router
	for _, spec := range l.options.Hosts {
		if _, err := l.AddHost(ctx, spec); err != nil {
			return err
		}
	}
	return nil
}

// addNode makes a namespace that Close removes.
func (l *Lab) addNode(ctx context.Context, name string) (*Node, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n, err := newNode(name, l.spawner, l.options.Keep)
	if err != nil {
		return nil, err
	}
	l.nodes = append(l.nodes, n)
	return n, nil
}

// addHostLocked builds the host from its namespaces outwards.
func (l *Lab) addHostLocked(ctx context.Context, spec HostSpec) (*Host, error) {
	host, err := l.addNode(ctx, spec.Name)
	if err != nil {
		return nil, err
	}
	container, err := l.addNode(ctx, containerName(spec.Name))
	if err != nil {
		return nil, err
	}
	h := &Host{
		Node: host, Address: spec.Underlay.Addr(), Underlay: spec.Underlay, Gateway: spec.Gateway, Subnet: spec.Subnet,
		IPv6:      spec.IPv6,
		Container: &Container{Node: container, Address: spec.containerAddress(), AddressV6: spec.IPv6.container()},
		router:    l.router,
		bare:      l.options.Bare,
	}
	steps := []func() error{
		func() error { return l.connectHost(h, spec) },
		func() error { return l.connectContainer(h, spec) },
		func() error { return l.connectIPv6(h, spec.Routed) },
		func() error { return h.awaitLinks(ctx) },
	}
	for _, step := range steps {
		if err := errors.Join(ctx.Err(), step()); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// rollbackLocked removes what a failed AddHost made.
func (l *Lab) rollbackLocked(spec HostSpec, before int) error {
	var errs []error
	if l.router != nil {
		// The port would go with the host's namespace, but only some time later.
		errs = append(errs, l.router.deleteLink(spec.Name))
	}
	for _, n := range slices.Backward(l.nodes[before:]) {
		errs = append(errs, killIn(context.Background(), []*Node{n}), n.remove())
	}
	l.nodes = l.nodes[:before]
	return errors.Join(errs...)
}

// connectHost joins the host to its underlay network.
func (l *Lab) connectHost(h *Host, spec HostSpec) error {
	router := l.router
	if err := router.addVeth(spec.Name, h.Node, underlayMTU); err != nil {
		return err
	}
	if err := h.configure(eth0, spec.Underlay); err != nil {
		return err
	}
	if err := l.connectPort(spec); err != nil {
		return err
	}
	return h.addDefaultRoute(spec.Gateway)
}

// connectPort gives the router's end of a host's link its place.
func (l *Lab) connectPort(spec HostSpec) error {
	gateway := netip.PrefixFrom(spec.Gateway, spec.Underlay.Bits())
	if spec.Routed {
		return l.router.configure(spec.Name, gateway)
	}
	network := spec.network().String()
	bridge, ok := l.bridges[network]
	if !ok {
		bridge = fmt.Sprintf("br%d", len(l.bridges))
		if err := l.router.addBridge(bridge, underlayMTU, gateway); err != nil {
			return err
		}
		l.bridges[network] = bridge
	}
	return l.router.enslave(spec.Name, bridge)
}

// connectContainer joins the container to its host.
func (l *Lab) connectContainer(h *Host, spec HostSpec) error {
	if h.bare {
		return nil
	}
	if err := h.Sysctl("ipv4/ip_forward", "1"); err != nil {
		return err
	}
	mtu, bits := l.options.ContainerMTU, spec.Subnet.Bits()
	gateway := netip.PrefixFrom(spec.subnetGateway(), bits)
	if err := h.addVeth(containerPort, h.Container.Node, mtu); err != nil {
		return err
	}
	if err := h.Container.configure(eth0, netip.PrefixFrom(h.Container.Address, bits)); err != nil {
		return err
	}
	if err := l.connectContainerPort(h.Node, gateway, mtu); err != nil {
		return err
	}
	return h.Container.addDefaultRoute(gateway.Addr())
}

func (l *Lab) connectContainerPort(host *Node, gateway netip.Prefix, mtu int) error {
	if l.options.PlainVeth {
		return host.configure(containerPort, gateway)
	}
	if err := host.addBridge(containerBridge, mtu, gateway); err != nil {
		return err
	}
	return host.enslave(containerPort, containerBridge)
}

// connectIPv6 gives everything of the host its IPv6 addresses and routes.
func (l *Lab) connectIPv6(h *Host, routed bool) error {
	v6 := h.IPv6
	if v6 == (IPv6Spec{}) {
		return nil
	}
	routerPort := h.Name
	if !routed {
		routerPort = l.bridges[h.Underlay.Masked().String()]
	}
	port := containerBridge
	if l.options.PlainVeth {
		port = containerPort
	}
	gateway := v6.Subnet.Addr().Next()
	for _, step := range []func() error{
		func() error { return l.router.Sysctl("ipv6/conf/all/forwarding", "1") },
		func() error { return h.Sysctl("ipv6/conf/all/forwarding", "1") },
		func() error { return l.router.addIPv6(routerPort, netip.PrefixFrom(v6.Gateway, v6.Underlay.Bits())) },
		func() error { return h.addIPv6(eth0, v6.Underlay) },
		func() error { return h.addIPv6(port, netip.PrefixFrom(gateway, v6.Subnet.Bits())) },
		func() error {
			return h.Container.addIPv6(eth0, netip.PrefixFrom(h.Container.AddressV6, v6.Subnet.Bits()))
		},
		func() error { return h.addDefaultRoute(v6.Gateway) },
		func() error { return h.Container.addDefaultRoute(gateway) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
