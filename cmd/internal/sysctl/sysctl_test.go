package sysctl

import (
	"strings"
	"testing"

	"uvxlan/tunnel/netnstest"
)

func TestRead(t *testing.T) {
	if v, there, err := Read("ipv4/ip_forward"); err != nil || !there || v != "0" && v != "1" {
		t.Errorf("ip_forward is %q, %t, %v", v, there, err)
	}
	if v, there, err := Read("ipv4/conf/none-such/forwarding"); err != nil || there || v != "" {
		t.Errorf("a variable that isn't there is %q, %t, %v", v, there, err)
	}
	for _, path := range []string{"../kernel/hostname", "/etc/passwd", ""} {
		if _, _, err := Read(path); err == nil {
			t.Errorf("%q was read", path)
		}
		if err := Write(path, "x"); err == nil || !strings.Contains(err.Error(), "not below") {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestIntegrationWrite(t *testing.T) {
	netnstest.RequireRoot(t)
	netnstest.Enter(t)
	for _, want := range []string{"1", "0"} {
		if err := Write("ipv4/ip_forward", want); err != nil {
			t.Fatal(err)
		}
		if v, _, err := Read("ipv4/ip_forward"); err != nil || v != want {
			t.Errorf("it is %q, %v, want %q", v, err, want)
		}
	}
	if err := Write("ipv4/conf/none-such/forwarding", "1"); err == nil {
		t.Error("a variable that isn't there was set")
	}
}
