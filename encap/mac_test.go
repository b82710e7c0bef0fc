package encap_test

import (
	"strings"
	"testing"

	"uvxlan/encap"
)

func TestParseMAC(t *testing.T) {
	for _, s := range []string{"0a:11:22:33:44:55", "00:00:00:00:00:00", "FF:FF:FF:FF:FF:FF", "aB:cD:eF:09:90:1f"} {
		m, err := encap.ParseMAC(s)
		if err != nil {
			t.Errorf("ParseMAC(%q): %v", s, err)
		} else if got := m.String(); got != strings.ToLower(s) {
			t.Errorf("ParseMAC(%q) = %v", s, got)
		}
	}
}

func TestParseMACRefuses(t *testing.T) {
	for _, s := range []string{
		"", "0a:11:22:33:44", "0a:11:22:33:44:55:66", "0a-11-22-33-44-55",
		"0a:11:22:33:44:5g", "0a:11:22:33:44: 5", "0a1:1:22:33:44:55", "0a:11:22:33:44:55 ",
	} {
		if m, err := encap.ParseMAC(s); err == nil {
			t.Errorf("ParseMAC(%q) = %v, want an error", s, m)
		} else if m != (encap.MAC{}) || !strings.HasPrefix(err.Error(), "encap: parse MAC") {
			t.Errorf("ParseMAC(%q) = %v, %v", s, m, err)
		}
	}
}

func TestMACIsGroup(t *testing.T) {
	for s, want := range map[string]bool{
		"0a:11:22:33:44:55": false,
		"ff:ff:ff:ff:ff:ff": true,
		"01:00:5e:00:00:01": true,
		"33:33:ff:00:00:01": true,
	} {
		m, err := encap.ParseMAC(s)
		if err != nil || m.IsGroup() != want {
			t.Errorf("%s: IsGroup %v, error %v", s, m.IsGroup(), err)
		}
	}
}
