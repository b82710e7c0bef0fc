package nexthop_test

import (
	"context"
	"fmt"
	"net/netip"

	"uvxlan/tunnel/nexthop"
)

func ExampleWatcher() {
	ctx, cancel := context.WithCancel(context.Background())
	w, err := nexthop.Open(nexthop.Config{Changed: func(changes []nexthop.Change) {
		for _, c := range changes {
			fmt.Println(c.Addr, "is on-link:", c.Hop.OnLink, "-", c.Hop.Reason)
		}
		cancel()
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer w.Close()
	w.Track([]netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil)
	if err := w.Run(ctx); err != nil {
		fmt.Println(err)
	}
	// Output: 127.0.0.1 is on-link: false - own address
}
