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
	// NIC can't segment or checksum tunnels, as most NICs. What comes in isn't
	// joined, since a veth has no GRO unless it is told to.
	NIC
	// NICGRO is NIC with GRO at the hosts' ends, as every NIC has it.
	NICGRO
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
	case NICGRO:
		return "nic-gro"
	case NICPlain:
		return "nic-plain"
	}
	return fmt.Sprintf("Offload(%d)", int(o))
}

// About says in a line what the kind is like.
func (o Offload) About() string {
	switch o {
	case Veth:
		return "a link as it is made: even tunnels' superpackets pass unsplit, which no NIC can; uvxlan's workers split all they encapsulate, its fast path doesn't"
	case NIC:
		return "TCP and UDP superpackets pass whole, tunnels' don't; packets that arrive one by one aren't joined"
	case NICGRO:
		return "as most NICs: TCP and UDP are segmented by the link, tunnels aren't; single packets arrive, and the host joins them (GRO)"
	case NICPlain:
		return "neither TCP nor UDP is segmented and checksums aren't filled; the host joins what comes in (GRO)"
	}
	return ""
}

// features returns the kernel's names of what a link's end of the kind has on and
// off; host tells the host's end from the router's. A veth joins nothing of what
// its peer could have sent as superpackets (veth_skb_is_eligible_for_gro in
// drivers/net/veth.c), so with NICGRO the router's end sends single packets, as a
// wire has them.
func (o Offload) features(host bool) map[string]bool {
	tunnel := o == Veth
	checksum := o != NICPlain
	segmentation := checksum && (o != NICGRO || host)
	return map[string]bool{
		"tx-udp_tnl-segmentation":      tunnel,
		"tx-udp_tnl-csum-segmentation": tunnel,
		"tx-udp-segmentation":          segmentation,
		"tx-tcp-segmentation":          segmentation,
		"tx-tcp6-segmentation":         segmentation,
		"tx-tcp-ecn-segmentation":      segmentation,
		"tx-checksum-ip-generic":       checksum,
		"rx-gro":                       o == NICPlain || o == NICGRO && host,
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
	return errors.Join(h.SetFeatures(eth0, kind.features(true)), h.router.SetFeatures(h.Name, kind.features(false)))
}
