package claim

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"uvxlan/tunnel/netnstest"
)

func networks(all ...string) (prefixes []netip.Prefix) {
	for _, n := range all {
		prefixes = append(prefixes, netip.MustParsePrefix(n))
	}
	return prefixes
}

func TestIntegrationClaims(t *testing.T) {
	netnstest.RequireRoot(t)
	netnstest.Enter(t)
	first, err := Networks(networks("172.7.0.0/16", "2001:db8:7::/48"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"172.7.0.0/16", "172.0.0.0/8", "172.7.9.0/24", "2001:db8:7:1::/64"} {
		_, err := Networks(networks("10.0.0.0/8", n))
		if !errors.Is(err, ErrOverlap) || !strings.Contains(err.Error(), fmt.Sprintf("(pid %d)", os.Getpid())) {
			t.Errorf("%s: %v", n, err)
		}
	}
	beside, err := Networks(networks("172.8.0.0/16", "10.0.0.0/8"))
	if err != nil {
		t.Fatalf("a network beside it, and one that a refused claim had named: %v", err)
	}
	if err := errors.Join(first.Close(), beside.Close()); err != nil {
		t.Fatal(err)
	}
	again, err := Networks(networks("172.7.0.0/16"))
	if err != nil {
		t.Fatalf("after the first was given up: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// Whoever has a name without listening by it keeps nobody from a network; nor does
// another network namespace.
func TestIntegrationClaimsOfOthers(t *testing.T) {
	netnstest.RequireRoot(t)
	other := netnstest.New(t)
	netnstest.Enter(t)
	conn, err := net.ListenPacket("unixgram", lead+"172.7.0.0/16/somebody")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = other.Do(func() error {
		c, err := Networks(networks("172.7.0.0/16"))
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Networks(networks("172.7.0.0/16"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
