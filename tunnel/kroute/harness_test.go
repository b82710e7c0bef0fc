package kroute_test

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"uvxlan/tunnel/kroute"
	"uvxlan/tunnel/netnstest"
)

const protocol = 89

// host is a network namespace with an interface eth0 that has the addresses
// 192.168.9.1/24 and fd09::1/64.
type host struct {
	*testing.T
	eth0 netlink.Link
}

// newHost moves the test into a namespace of its own, for as long as it runs.
func newHost(t *testing.T) *host {
	t.Helper()
	netnstest.Enter(t)
	h := &host{T: t}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	h.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth1"}))
	var err error
	h.eth0, err = netlink.LinkByName("eth0")
	h.must(err)
	peer, err := netlink.LinkByName("eth1")
	h.must(err)
	h.must(netlink.LinkSetUp(peer))
	h.must(netlink.LinkSetUp(h.eth0))
	h.address("192.168.9.1/24")
	h.address("fd09::1/64")
	return h
}

func (h *host) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *host) address(cidr string) {
	h.Helper()
	a, err := netlink.ParseAddr(cidr)
	h.must(err)
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	h.must(netlink.AddrAdd(h.eth0, a))
}

// ip is the administrator's hand.
func (h *host) ip(command string) {
	h.Helper()
	netnstest.Run(h, "ip", strings.Fields(command)...)
}

func (h *host) open() *kroute.Set {
	h.Helper()
	s, err := kroute.Open(kroute.Config{Protocol: protocol})
	h.must(err)
	h.Cleanup(func() { h.must(s.Close()) })
	return s
}

func (h *host) route(subnet, via string) kroute.Route {
	return kroute.Route{Subnet: netip.MustParsePrefix(subnet), Via: netip.MustParseAddr(via), Link: h.eth0.Attrs().Index}
}

// table lists the kernel's routes that have a gateway or go nowhere, as "subnet
// via gateway proto number", in order of their text.
func (h *host) table() []string {
	h.Helper()
	var table []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		h.must(err)
		for _, r := range routes {
			if r.Gw == nil && r.Type == unix.RTN_UNICAST {
				continue
			}
			line := r.Dst.String() + " " + via(r.Gw) + " proto " + r.Protocol.String()
			if r.Src != nil {
				line += " src " + r.Src.String()
			}
			table = append(table, line)
		}
	}
	slices.Sort(table)
	return table
}

func via(gateway net.IP) string {
	if gateway == nil {
		return "nowhere"
	}
	return "via " + gateway.String()
}

func (h *host) expect(want ...string) {
	h.Helper()
	slices.Sort(want)
	if got := h.table(); !slices.Equal(got, want) {
		h.Fatalf("the kernel has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// restore calls Restore and expects it to have put back n routes.
func (h *host) restore(s *kroute.Set, n int) {
	h.Helper()
	if got, err := s.Restore(); err != nil || got != n {
		h.Fatalf("restored %d routes, want %d: %v", got, n, err)
	}
}

// routeError expects err to be about one route, for the reason, and to say all
// of the words.
func (h *host) routeError(err, reason error, r kroute.Route, words ...string) {
	h.Helper()
	var e *kroute.Error
	if !errors.As(err, &e) || !errors.Is(err, reason) || e.Route != r {
		h.Fatalf("the error is %v, want %v about %v", err, reason, r)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			h.Errorf("the error doesn't say %q: %v", w, err)
		}
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
