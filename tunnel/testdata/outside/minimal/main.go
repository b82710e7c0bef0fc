// Command minimal is the least that embeds uvxlan.
package main

import (
	"context"
	"net/netip"
	"os"

	"example.test/outside/join"
	"uvxlan/encap"
	"uvxlan/tunnel"
)

func main() {
	join.Join(context.Background(), netip.MustParseAddr(os.Args[1]), netip.MustParseAddr(os.Args[2]),
		netip.MustParsePrefix(os.Args[3]), encap.MAC{2, 1}, tunnel.Peer{})
}
