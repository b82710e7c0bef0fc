package lab

import (
	"errors"
	"fmt"
	"os"
)

// Offload is what the underlay's interfaces do for their host, as NICs of
// different quality would.
type Offload int

const (
	// Veth is a link as it is made: even tunnel superpackets pass unsplit.
	Veth Offload = iota
	// NIC can't segment or checksum tunnels, as most NICs.
	NIC
	// NICPlain can't segment UDP or fill checksums either; it has GRO.
	NICPlain
)

// String returns the name that the benchmarks use.
func (o Offload) String() string {
	switch o {
	case Veth:
		return "veth"
	case NIC:
		return "nic"
	case NICPlain:
		return "nic-plain"
	}
	return fmt.Sprintf("Offload(%d)", int(o))
}

// features returns the kernel's names of what the kind has on and off. TCP
// segmentation follows the checksum by the kernel's own rule.
func (o Offload) features() map[string]bool {
	tunnel, transport := o == Veth, o != NICPlain
	return map[string]bool{
		"tx-udp_tnl-segmentation":      tunnel,
		"tx-udp_tnl-csum-segmentation": tunnel,
		"tx-udp-segmentation":          transport,
		"tx-checksum-ip-generic":       transport,
		"rx-gro":                       !transport,
	}
}

// SetOffloads makes every underlay link, of hosts added later too, one of that
// kind at both ends.
func (l *Lab) SetOffloads(kind Offload) error {
	if kind < Veth || kind > NICPlain {
		return fmt.Errorf("set offloads: unknown kind %s", kind)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return os.ErrClosed
	}
	l.offload = kind
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, h.setOffloads(kind))
	}
	return errors.Join(errs...)
}

func (h *Host) setOffloads(kind Offload) error {
	features := kind.features()
	return errors.Join(h.SetFeatures(eth0, features), h.router.SetFeatures(h.Name, features))
}
