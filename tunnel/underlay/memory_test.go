package underlay

import (
	"errors"
	"net/netip"
	"testing"
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
