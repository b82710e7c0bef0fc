package lease

import (
	"net/netip"
	"testing"
)

func TestKey(t *testing.T) {
	for name, c := range map[string]struct {
		key    string
		v4, v6 string
	}{
		"IPv4":       {"10.5.52.0-24", "10.5.52.0/24", ""},
		"dual":       {"10.5.52.0-24&2001:cafe:42:1::-64", "10.5.52.0/24", "2001:cafe:42:1::/64"},
		"length 31":  {"10.5.52.2-31", "10.5.52.2/31", ""},
		"length 127": {"10.5.52.0-24&::2-127", "10.5.52.0/24", "::2/127"},
	} {
		t.Run(name, func(t *testing.T) {
			v4, v6, err := ParseKey(c.key)
			if err != nil {
				t.Fatal(err)
			}
			var want6 netip.Prefix
			if c.v6 != "" {
				want6 = netip.MustParsePrefix(c.v6)
			}
			if v4 != netip.MustParsePrefix(c.v4) || v6 != want6 {
				t.Errorf("got %s and %s", v4, v6)
			}
			if got := (Lease{Subnet: v4, IPv6Subnet: v6}).Key(); got != c.key {
				t.Errorf("Key %q", got)
			}
		})
	}
	for name, key := range map[string]string{
		"empty":          "",
		"config":         "config",
		"slash":          "10.5.52.0/24",
		"no length":      "10.5.52.0",
		"IPv6 alone":     "2001:cafe:42:1::-64",
		"families":       "2001:cafe:42:1::-64&10.5.52.0-24",
		"dangling":       "10.5.52.0-24&",
		"third":          "10.5.52.0-24&2001:cafe:42:1::-64&::-64",
		"prefixed":       "x10.5.52.0-24",
		"host bits":      "10.5.52.1-24",
		"everything":     "0.0.0.0-0",
		"one address":    "10.5.52.1-32",
		"leading zero":   "10.5.52.0-024",
		"not compressed": "10.5.52.0-24&2001:cafe:42:1:0:0:0:0-64",
		"upper case":     "10.5.52.0-24&2001:CAFE:42:1::-64",
		"zone":           "10.5.52.0-24&fe80::%eth0-64",
	} {
		t.Run(name, func(t *testing.T) {
			if v4, v6, err := ParseKey(key); err == nil {
				t.Errorf("%q is taken as %s and %s", key, v4, v6)
			}
		})
	}
}

func FuzzParseKey(f *testing.F) {
	for _, s := range []string{"10.5.52.0-24", "10.5.52.0-24&2001:cafe:42:1::-64", "0.0.0.0-1&::-1", "&", "10.5.52.0-24&::ffff:1.2.3.0-120"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v4, v6, err := ParseKey(s)
		if err != nil {
			return
		}
		if got := (Lease{Subnet: v4, IPv6Subnet: v6}).Key(); got != s {
			t.Errorf("%q comes back as %q", s, got)
		}
	})
}
