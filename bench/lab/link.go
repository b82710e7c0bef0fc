package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// linkTimeout is how long a link may take to carry packets, linkInterval how
	// often it is asked. The kernel needs milliseconds.
	linkTimeout  = 10 * time.Second
	linkInterval = 2 * time.Millisecond
)

// addVeth makes a link from the named interface of the node to eth0 of the
// peer.
func (n *Node) addVeth(name string, peer *Node, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	link := &netlink.Veth{
		LinkAttrs:     attrs,
		PeerName:      eth0,
		PeerNamespace: netlink.NsFd(peer.ns.Fd()),
	}
	if err := n.addLink(link); err != nil {
		return fmt.Errorf("link %s to %s: %w", n.Name, peer.Name, err)
	}
	return nil
}

func (n *Node) addLink(link netlink.Link) error {
	return n.withHandle(func(h *netlink.Handle) error { return h.LinkAdd(link) })
}

// addBridge makes a bridge with an address of the node's own.
func (n *Node) addBridge(name string, mtu int, address netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	if err := n.addLink(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge %s in %s: %w", name, n.Name, err)
	}
	return n.configure(name, address)
}

// enslave makes the interface a port of the bridge and sets it up.
func (n *Node) enslave(name, bridge string) error {
	return n.withLink(name, "add port", func(h *netlink.Handle, port netlink.Link) error {
		master, err := h.LinkByName(bridge)
		if err != nil {
			return err
		}
		if err := h.LinkSetMaster(port, master); err != nil {
			return err
		}
		return h.LinkSetUp(port)
	})
}

// configure gives the interface its address and sets it up.
func (n *Node) configure(name string, address netip.Prefix) error {
	return n.withLink(name, "configure", func(h *netlink.Handle, link netlink.Link) error {
		addr := &netlink.Addr{IPNet: ipNet(address)}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", address, err)
		}
		return h.LinkSetUp(link)
	})
}

// addIPv6 gives the interface an IPv6 address, unless it has it.
func (n *Node) addIPv6(name string, address netip.Prefix) error {
	return n.withLink(name, "add IPv6 address", func(h *netlink.Handle, link netlink.Link) error {
		return h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(address), Flags: unix.IFA_F_NODAD})
	})
}

// addDefaultRoute makes the gateway, which is on eth0's network, the default
// route.
func (n *Node) addDefaultRoute(gateway netip.Addr) error {
	return n.withLink(eth0, "add default route", func(h *netlink.Handle, link netlink.Link) error {
		return h.RouteReplace(&netlink.Route{
			LinkIndex: link.Attrs().Index,
			Gw:        gateway.AsSlice(),
		})
	})
}

// deleteLink removes the interface if there is one.
func (n *Node) deleteLink(name string) error {
	err := n.withLink(name, "delete", (*netlink.Handle).LinkDel)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil
	}
	return err
}

// withLink runs f on the interface and names both in its error.
func (n *Node) withLink(name, operation string, f func(*netlink.Handle, netlink.Link) error) error {
	err := n.withHandle(func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		return f(h, link)
	})
	if err != nil {
		return fmt.Errorf("%s: %s in %s: %w", operation, name, n.Name, err)
	}
	return nil
}

// awaitLinks waits until both links of the host carry packets at both ends.
func (h *Host) awaitLinks(ctx context.Context) error {
	type end struct {
		node *Node
		name string
	}
	ends := []end{{h.Node, eth0}, {h.router, h.Name}}
	if !h.bare {
		ends = append(ends, end{h.Container.Node, eth0}, end{h.Node, containerPort})
	}
	ctx, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	for _, end := range ends {
		if err := end.node.awaitUp(ctx, end.name); err != nil {
			return err
		}
	}
	return nil
}

// awaitUp waits until the interface is operational: the kernel drops packets
// between the moment a link is set up and the moment it has noticed so.
func (n *Node) awaitUp(ctx context.Context, name string) error {
	tick := time.NewTicker(linkInterval)
	defer tick.Stop()
	for {
		var state netlink.LinkOperState
		err := n.withLink(name, "wait for link", func(_ *netlink.Handle, link netlink.Link) error {
			state = link.Attrs().OperState
			return ctx.Err()
		})
		if err != nil || state == netlink.OperUp {
			return err
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
