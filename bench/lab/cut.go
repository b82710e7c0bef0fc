package lab

import (
	"context"

	"github.com/vishvananda/netlink"
)

// LinkDown sets the host's eth0 down, as an administrator would: the kernel
// forgets its routes.
func (h *Host) LinkDown() error {
	return h.withLink(eth0, "set down", (*netlink.Handle).LinkSetDown)
}

// LinkUp undoes LinkDown, the default route included, and waits until the link
// carries packets.
func (h *Host) LinkUp(ctx context.Context) error {
	if err := h.withLink(eth0, "set up", (*netlink.Handle).LinkSetUp); err != nil {
		return err
	}
	if err := h.awaitLinks(ctx); err != nil {
		return err
	}
	return h.addDefaultRoute(h.Gateway)
}

// Unplug pulls the cable: the host's eth0 stays up and loses its carrier.
func (h *Host) Unplug() error {
	return h.router.withLink(h.Name, "unplug", (*netlink.Handle).LinkSetDown)
}

// Plug undoes Unplug and waits until the link carries packets.
func (h *Host) Plug(ctx context.Context) error {
	if err := h.router.withLink(h.Name, "plug", (*netlink.Handle).LinkSetUp); err != nil {
		return err
	}
	return h.awaitLinks(ctx)
}
