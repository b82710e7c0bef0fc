package tcprog

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// NeedsRelay tells that the kernel can rid superpackets of the marks of a UDP tunnel by a
// relay only.
func (p *Programs) NeedsRelay() bool {
	return p.options&(optionDecapL4UDP|optionDecapOther) == optionDecapOther
}

// RelayAddress is what the relay's route of SRv6 is for.
var RelayAddress = netip.MustParseAddr("fd00::1")

// RelayOut is the program for the egress of the interface in the relay's namespace that
// packets come and leave by. It stays the Programs'.
func (p *Programs) RelayOut() *ebpf.Program { return p.objects.VxlanRelayOut }

// RelayIn is the program for the ingress of that interface's peer, by which packets come
// back. It stays the Programs'.
func (p *Programs) RelayIn() *ebpf.Program { return p.objects.VxlanRelayIn }

// DeliverRelay is [Programs.Deliver] for the interface that leads to the relay: one of a
// pair of veths, whose other one is in another network namespace. There RelayAddress has
// a route with End.DX2 to that one, which has RelayOut; this one has RelayIn.
func (p *Programs) DeliverRelay(link int) error {
	if err := p.objects.Devices.Put(uint32(1), uint32(link)); err != nil {
		return fmt.Errorf("give the fast path its relay: %w", err)
	}
	return nil
}

// Relayed counts the packets that went to the relay and that came back.
func (p *Programs) Relayed() (out, back uint64, err error) {
	var all []struct{ Out, Back uint64 }
	if err := p.objects.Relayed.Lookup(uint32(0), &all); err != nil {
		return 0, 0, fmt.Errorf("read what the fast path's relay has had: %w", err)
	}
	for _, n := range all {
		out, back = out+n.Out, back+n.Back
	}
	return out, back, nil
}
