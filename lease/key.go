package lease

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Key returns the last element of the lease's registry key in flannel's form,
// "10.5.52.0-24", or with IPv6 "10.5.52.0-24&2001:cafe:42:1::-64".
func (l Lease) Key() string {
	if !l.IPv6Subnet.IsValid() {
		return subnetKey(l.Subnet)
	}
	return subnetKey(l.Subnet) + "&" + subnetKey(l.IPv6Subnet)
}

func subnetKey(n netip.Prefix) string {
	return n.Addr().String() + "-" + strconv.Itoa(n.Bits())
}

// ParseKey reads what [Lease.Key] writes and nothing else: a key in another
// spelling would name the same subnet under a second key. The IPv6 subnet is
// the zero Prefix if the key has none.
func ParseKey(s string) (v4, v6 netip.Prefix, err error) {
	first, second, both := strings.Cut(s, "&")
	v4, err = parseSubnetKey(first, 32)
	if err == nil && both {
		v6, err = parseSubnetKey(second, 128)
	}
	if err != nil {
		return netip.Prefix{}, netip.Prefix{}, fmt.Errorf("lease key %q: %w", s, err)
	}
	return v4, v6, nil
}

// parseSubnetKey takes lengths from 1 to width-1, as flannel does.
func parseSubnetKey(s string, width int) (netip.Prefix, error) {
	addr, bits, _ := strings.Cut(s, "-")
	n, err := netip.ParsePrefix(addr + "/" + bits)
	switch {
	case err != nil || n.Addr().BitLen() != width || subnetKey(n) != s:
		return netip.Prefix{}, fmt.Errorf("%q is not an address and a length, as in %s", s, keyExample(width))
	case n.Bits() < 1 || n.Bits() >= width:
		return netip.Prefix{}, fmt.Errorf("length %d is not from 1 to %d", n.Bits(), width-1)
	case n != n.Masked():
		return netip.Prefix{}, fmt.Errorf("%s is not the first address of a /%d", n.Addr(), n.Bits())
	}
	return n, nil
}

func keyExample(width int) string {
	if width == 32 {
		return "10.5.52.0-24"
	}
	return "2001:cafe:42:1::-64"
}
