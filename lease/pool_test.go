package lease

import (
	"net/netip"
	"slices"
	"testing"
)

func prefixes(in ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestFree(t *testing.T) {
	pool4 := pool{netip.MustParsePrefix("10.5.0.0/16"), 24, netip.MustParseAddr("10.5.1.0"), netip.MustParseAddr("10.5.6.0")}
	pool6 := pool{netip.MustParsePrefix("ffff::/16"), 64, netip.MustParseAddr("ffff::"), netip.MustParseAddr("ffff:ffff:ffff:ffff::")}
	top := pool{netip.MustParsePrefix("255.255.255.0/24"), 26, netip.MustParseAddr("255.255.255.128"), netip.MustParseAddr("255.255.255.192")}
	for name, c := range map[string]struct {
		p     pool
		taken []netip.Prefix
		limit int
		want  []netip.Prefix
	}{
		"nothing taken": {pool4, nil, 2, prefixes("10.5.1.0/24", "10.5.2.0/24")},
		"gaps":          {pool4, prefixes("10.5.5.0/24", "10.5.1.0/24", "10.5.3.0/24"), 9, prefixes("10.5.2.0/24", "10.5.4.0/24", "10.5.6.0/24")},
		"smaller":       {pool4, prefixes("10.5.1.4/30", "10.5.1.64/26", "10.5.2.255/32"), 1, prefixes("10.5.3.0/24")},
		"larger":        {pool4, prefixes("10.5.0.0/22", "10.5.2.0/24"), 1, prefixes("10.5.4.0/24")},
		"full":          {pool4, prefixes("10.0.0.0/8"), 1, nil},
		"huge gap":      {pool6, prefixes("ffff::/17"), 1, prefixes("ffff:8000::/64")},
		"end of family": {top, prefixes("255.255.255.128/26"), 9, prefixes("255.255.255.192/26")},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.p.free(c.taken, c.limit); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}
