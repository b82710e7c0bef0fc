package underlay

import (
	"errors"
	"net/netip"
	"testing"

	"uvxlan/tunnel/internal/testhost"
)

func TestListenRefusesTakenPort(t *testing.T) {
	c := Config{Address: netip.MustParseAddr("127.0.0.1"), Port: testhost.FreePort(t), Workers: 2}
	first, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(c); !errors.Is(err, ErrPortInUse) {
		t.Fatalf("second listener on the port: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}
