package underlay

import (
	"errors"
	"net/netip"
	"testing"

	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/internal/testhost"
)

// Closing a host again doesn't take the address from whoever has it since.
func TestMemoryClosesTwice(t *testing.T) {
	network, at := NewMemory(), netip.MustParseAddrPort("192.0.2.1:4789")
	first, err := network.Listen(1, at)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := network.Listen(1, at)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	if third, err := network.Listen(1, at); !errors.Is(err, ErrPortInUse) {
		t.Errorf("the address is free while somebody has it: %v, %v", third, err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}

// What is lost before anybody has a host open isn't whoever's who opens it.
func TestMemoryLostCountsFromOpen(t *testing.T) {
	network, at := NewMemory(), netip.MustParseAddrPort("192.0.2.1:4789")
	to, err := network.Listen(1, at)
	testhost.Must(t, err)
	defer to.Close()
	from, err := network.Listen(1, netip.MustParseAddrPort("192.0.2.2:4789"))
	testhost.Must(t, err)
	defer from.Close()
	out, err := from.Open(0, false)
	testhost.Must(t, err)
	send := func(count int) {
		for range count {
			var of batch.Counters
			out.Begin(batch.NewDestination(at), &of, 0, 0, 1, 1)
			out.Append([]byte{1}, nil)
			out.Flush(0)
		}
	}
	send(memoryQueue + 7)
	in, err := to.Open(0, false)
	testhost.Must(t, err)
	if n := in.Lost(); n != 0 {
		t.Errorf("%d datagrams are lost before any came", n)
	}
	send(5)
	if n := in.Lost(); n != 5 {
		t.Errorf("%d datagrams of 5 are lost at a full queue", n)
	}
}
