package trace

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"uvxlan/tunnel/netnstest"
)

func BenchmarkForward(b *testing.B) {
	for _, kind := range []string{"nft", "legacy"} {
		b.Run(kind, func(b *testing.B) {
			netnstest.Enter(b)
			var script strings.Builder
			script.WriteString("*filter\n:KUBE-SERVICES - [0:0]\n-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n")
			for i := range 5000 {
				fmt.Fprintf(&script, "-A KUBE-SERVICES -d 10.96.%d.%d/32 -p tcp -m tcp --dport 80 -m comment --comment x -j REJECT\n", i/256, i%256)
			}
			script.WriteString("COMMIT\n")
			cmd := exec.Command("iptables-" + kind + "-restore")
			cmd.Stdin = strings.NewReader(script.String())
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			for b.Loop() {
				var rules Rules
				if _, err := rules.Forward(inbound(overlay4, subnet4), outbound(overlay4, subnet4)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
