package offload_test

import (
	"fmt"

	"uvxlan/tunnel/offload"
)

func ExampleParse() {
	offloads, err := offload.Parse("tso,gso,gro")
	fmt.Println(offloads, offloads.Has(offload.GSO), offloads.Has(offload.UDP), err)
	_, err = offload.Parse("tso,lro")
	fmt.Println(err)
	// Output:
	// tso,gso,gro true false <nil>
	// offload "lro": there are tso,uso,gso,gro,tcp,udp
}
