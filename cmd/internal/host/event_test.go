package host

import (
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"sync"
	"testing"

	"uvxlan/tunnel/netnstest"
)

// Every kind of change that parts are woken by is reported by the kernel.
func TestIntegrationEvents(t *testing.T) {
	netnstest.RequireRoot(t)
	netnstest.Enter(t)
	k, err := Open(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	var mu sync.Mutex
	seen := map[string]int{}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, s := range k.subscriptions {
		wg.Go(func() {
			if err := s.run(ctx, func(e Event) {
				mu.Lock()
				defer mu.Unlock()
				seen[fmt.Sprint(e.Kind, " ", e.Prefix, " ", e.Table)]++
			}); err != nil {
				t.Error(err)
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	for _, c := range []struct{ command, want string }{
		{"ip link add d0 type veth peer name d1", fmt.Sprint(Link, " invalid Prefix ")},
		{"ip addr add 192.0.2.1/24 dev d0", fmt.Sprint(Address, " invalid Prefix ")},
		{"ip link set d1 up; ip link set d0 up", fmt.Sprint(Route, " 192.0.2.0/24 ")},
		{"ip route add 198.51.100.0/25 dev d0", fmt.Sprint(Route, " 198.51.100.0/25 ")},
		{"ip route add default dev d0", fmt.Sprint(Route, " 0.0.0.0/0 ")},
		{"ip -6 route add 2001:db8::/48 dev d0", fmt.Sprint(Route, " 2001:db8::/48 ")},
		{"ip rule add from 192.0.2.9 table 7", fmt.Sprint(Rule, " invalid Prefix ")},
		{"sysctl -qw net.ipv4.conf.d0.rp_filter=2", fmt.Sprint(Setting, " invalid Prefix ")},
		{"nft add table inet somebodys", fmt.Sprint(Firewall, " invalid Prefix somebodys")},
	} {
		mu.Lock()
		before := seen[c.want]
		mu.Unlock()
		if out, err := exec.CommandContext(ctx, "sh", "-c", c.command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", c.command, err, out)
		}
		await(t, c.command, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return seen[c.want] > before
		})
	}
}
