package nexthop

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

type neighbourKey struct {
	index int
	addr  netip.Addr
}

// neighbour is an entry of the kernel's; the zero value is none.
type neighbour struct {
	state int // one of netlink.NUD_*
	mac   encap.MAC
}

const validStates = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY |
	netlink.NUD_PROBE | netlink.NUD_PERMANENT

// valid says that the kernel itself would send to the entry's MAC.
func (n neighbour) valid() bool { return n.state&validStates != 0 && n.mac != (encap.MAC{}) }

// stale says that the MAC is valid but was not heard of for long. The kernel
// finds out more only when it sends a packet itself.
func (n neighbour) stale() bool { return n.valid() && n.state == netlink.NUD_STALE }

// resolvable says that asking may bring a MAC. It must not be asked for a
// permanent entry, which since Linux 5.16 would turn into an ordinary one.
func (n neighbour) resolvable() bool {
	return !n.valid() && n.state&(netlink.NUD_NOARP|netlink.NUD_PERMANENT) == 0
}

func (n neighbour) reason() string {
	switch {
	case n.valid():
		return ""
	case n.state == netlink.NUD_FAILED:
		return "neighbour failed"
	case n.state == netlink.NUD_NOARP:
		return "neighbour needs no MAC"
	}
	return "neighbour unresolved"
}

// on is the hop with what the entry has to say.
func (n neighbour) on(h Hop) Hop {
	if !h.OnLink {
		return h
	}
	h.Reason = n.reason()
	if n.valid() {
		h.MAC = n.mac
	}
	return h
}

// parseNeighbour reads an entry of IPv4 or IPv6; ok is false for any other, such
// as those of bridges and proxies.
func parseNeighbour(entry *netlink.Neigh) (k neighbourKey, n neighbour, ok bool) {
	if entry.Family != unix.AF_INET && entry.Family != unix.AF_INET6 || entry.Flags&netlink.NTF_PROXY != 0 {
		return k, n, false
	}
	addr, ok := netip.AddrFromSlice(entry.IP)
	if !ok {
		return k, n, false
	}
	n.state = entry.State
	if len(entry.HardwareAddr) == len(n.mac) {
		n.mac = encap.MAC(entry.HardwareAddr)
	}
	return neighbourKey{entry.LinkIndex, addr.Unmap()}, n, true
}
