package etcdserver

import (
	"net"
	"net/netip"
	"strconv"

	"go.etcd.io/etcd/server/v3/embed"
)

// endpoints pairs the configured URLs with the listeners, which etcd keeps in
// no certain order, to learn the ports that were chosen.
func endpoints(cfg *embed.Config, listeners []net.Listener) []string {
	var out []string
	for _, u := range cfg.ListenClientUrls {
		for i, l := range listeners {
			at, err := netip.ParseAddrPort(l.Addr().String())
			if err != nil || !serves(at, u.Hostname(), u.Port()) {
				continue
			}
			u.Host = netip.AddrPortFrom(reachable(at.Addr(), u.Hostname()), at.Port()).String()
			out = append(out, u.String())
			listeners = append(listeners[:i:i], listeners[i+1:]...)
			break
		}
	}
	return out
}

func serves(at netip.AddrPort, host, port string) bool {
	if port != "0" && port != strconv.Itoa(int(at.Port())) {
		return false
	}
	want, err := netip.ParseAddr(host)
	return err != nil || want == at.Addr().Unmap() || want.IsUnspecified() && at.Addr().IsUnspecified()
}

// reachable gives loopback for a listener on all addresses.
func reachable(a netip.Addr, host string) netip.Addr {
	switch {
	case !a.IsUnspecified():
		return a
	case host == "::":
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}
