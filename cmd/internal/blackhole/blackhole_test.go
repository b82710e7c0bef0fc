package blackhole

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"uvxlan/tunnel/netnstest"
)

// newHost moves the test, and the commands it runs, into a network namespace of
// its own.
func newHost(t *testing.T) {
	t.Helper()
	netnstest.Enter(t)
	ip(t, "link add cni0 type bridge")
	ip(t, "link set cni0 up")
}

func ip(t *testing.T, command string) string {
	t.Helper()
	return netnstest.Run(t, "ip", strings.Fields(command)...)
}

// A bridge's route is preferred, whichever is there first, and nobody else's
// blackhole is removed.
func TestIntegrationBlackhole(t *testing.T) {
	newHost(t)
	for _, subnet := range []netip.Prefix{netip.MustParsePrefix("172.7.21.0/24"), netip.MustParsePrefix("2001:db8:21::/64")} {
		gateway, family := subnet.Addr().Next().String(), "-4 "
		if subnet.Addr().Is6() {
			family = "-6 "
		}
		for range 2 {
			if err := Add(subnet); err != nil {
				t.Fatal(err)
			}
		}
		inside := subnet.Addr().Next().Next().String()
		if out, err := exec.CommandContext(t.Context(), "ip", "route", "get", inside).CombinedOutput(); err == nil {
			t.Errorf("without a bridge, the way is %s", out)
		}
		ip(t, "address add "+gateway+"/"+strings.Split(subnet.String(), "/")[1]+" dev cni0 nodad")
		if got := ip(t, "route get "+inside); !strings.Contains(got, "dev cni0") {
			t.Errorf("with a bridge, the way is %s", got)
		}
		ip(t, family+"route add blackhole "+subnet.String()+" metric 77 proto 89")
		ip(t, family+"route add blackhole "+subnet.String()+" metric 78")
		for _, want := range []bool{true, false} {
			if found, err := Exists(subnet); err != nil || found != want {
				t.Errorf("it is there: %t, %v, want %t", found, err, want)
			}
			if was, err := Remove(subnet); err != nil || was != want {
				t.Errorf("it was there: %t, %v, want %t", was, err, want)
			}
		}
		table := ip(t, family+"route show")
		if strings.Count(table, "blackhole "+subnet.String()) != 2 || !strings.Contains(table, "dev cni0") {
			t.Errorf("afterwards the table is\n%s", table)
		}
	}
	if found, err := Exists(netip.Prefix{}); err != nil || found {
		t.Errorf("no subnet: %t, %v", found, err)
	}
}
