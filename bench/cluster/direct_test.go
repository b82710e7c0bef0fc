package cluster

import (
	"net/netip"
	"testing"
)

func TestIsDirect(t *testing.T) {
	const (
		peer   = `level=INFO msg=peer subnet=172.7.22.0/24 public_ip=192.168.14.22` + "\n"
		direct = `level=INFO msg="peer is direct now" subnet=172.7.22.0/24 public_ip=192.168.14.22 via="eth0 (0a:00:00:00:00:16)"` + "\n"
		other  = `level=INFO msg="peer is direct now" subnet=172.7.2.0/24 public_ip=192.168.14.2 via=eth0` + "\n"
		back   = `level=INFO msg="peer is back to vxlan" subnet=172.7.22.0/24 public_ip=192.168.14.22 reason="neighbour failed"` + "\n"
		none   = `level=WARN msg="no route to peer" subnet=172.7.22.0/24 public_ip=192.168.14.22 error="file exists"` + "\n"
		there  = `level=INFO msg="route to peer is there now" subnet=172.7.22.0/24 public_ip=192.168.14.22` + "\n"
	)
	for log, want := range map[string]bool{
		"":                             false,
		peer:                           false,
		other + peer:                   false,
		direct + peer + other:          true,
		direct + back:                  false,
		direct + back + direct:         true,
		direct + none:                  false,
		direct + none + there:          true,
		other + back + peer:            false,
		direct + other + back + direct: true,
	} {
		if got, words := isDirect(log, netip.MustParsePrefix("172.7.22.0/24")); got != want {
			t.Errorf("direct is %t by %q, in\n%s", got, words, log)
		}
	}
}
