package nexthop

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// link is what matters of a network interface. It is comparable, so that of the
// kernel's many reports those that change something can be told.
type link struct {
	name     string
	index    int
	mtu      encap.OuterMTU
	mac      encap.MAC // zero if it isn't Ethernet's
	ethernet bool
	kind     string
	flags    uint32 // those of linkFlags
	excluded bool
}

const linkFlags = unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_NOARP | unix.IFF_POINTOPOINT | unix.IFF_LOOPBACK

func newLink(l netlink.Link, exclude func(name string) bool) link {
	a := l.Attrs()
	out := link{
		name: a.Name, index: a.Index, mtu: encap.OuterMTU(a.MTU), ethernet: a.EncapType == "ether",
		kind: l.Type(), flags: a.RawFlags & linkFlags, excluded: exclude(a.Name),
	}
	if len(a.HardwareAddr) == len(out.mac) {
		out.mac = encap.MAC(a.HardwareAddr)
	}
	return out
}

func (l link) has(flag uint32) bool { return l.flags&flag != 0 }

// carries says that routes by the link can be in use.
func (l link) carries() bool { return l.has(unix.IFF_UP) }

// unfit says why no address is on-link here; it is empty for a link that will
// do.
func (l link) unfit() string {
	switch {
	case l.excluded:
		return fmt.Sprintf("link %s is not the underlay's", l.name)
	case l.has(unix.IFF_LOOPBACK):
		return "loopback link " + l.name
	case l.has(unix.IFF_POINTOPOINT):
		return "point-to-point link " + l.name
	case isTunnel(l.kind):
		return fmt.Sprintf("tunnel link %s (%s)", l.name, l.kind)
	case !l.ethernet || l.mac == (encap.MAC{}):
		return fmt.Sprintf("link %s is not Ethernet", l.name)
	case l.has(unix.IFF_NOARP):
		return fmt.Sprintf("link %s resolves no addresses", l.name)
	case !l.has(unix.IFF_UP):
		return fmt.Sprintf("link %s is down", l.name)
	case !l.has(unix.IFF_LOWER_UP):
		return fmt.Sprintf("link %s has no carrier", l.name)
	}
	return ""
}

// isTunnel tells the kinds of links that look like Ethernet and aren't: what
// they carry goes through an IP network or a process. TAP devices are "tun" to
// the kernel, "tuntap" to the netlink package.
func isTunnel(kind string) bool {
	switch kind {
	case "vxlan", "geneve", "gretap", "ip6gretap", "erspan", "ip6erspan", "bareudp", "gtp", "amt",
		"tun", "tuntap", "wireguard", "ovpn", "ovpn-dco":
		return true
	}
	return false
}
