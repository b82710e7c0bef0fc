package underlay_test

import (
	"errors"
	"log/slog"

	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/underlay"
)

// A runtime without privileges, whose sockets somebody else has opened.
func ExampleAdopt() {
	inherited := []underlay.Sockets{{Receive: []int{4}, Send: [][]int{{5, 6, 7, 8}}}}
	sockets, err := underlay.Adopt(inherited, offload.All)
	if errors.Is(err, underlay.ErrUnfit) {
		slog.Error("one of the sockets isn't what it should be", "error", err)
	}
	if err != nil {
		return
	}
	defer sockets.Close() // until a router owns it
}
