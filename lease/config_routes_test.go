package lease

import (
	"fmt"
	"testing"
)

func TestAllocatable(t *testing.T) {
	for _, c := range []struct{ config, want string }{
		{`"Network":"172.7.0.0/16"`, "[172.7.0.0/16]"},
		{`"Network":"172.7.0.0/16","SubnetMin":"172.7.0.0"`, "[172.7.0.0/16]"},
		{`"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.244.0.0","SubnetMax":"10.244.255.0"`, "[10.244.0.0/16]"},
		{`"Network":"172.7.0.0/16","SubnetMin":"172.7.3.0","SubnetMax":"172.7.6.0"`, "[172.7.3.0/24 172.7.4.0/23 172.7.6.0/24]"},
		{`"Network":"172.7.0.0/16","SubnetMax":"172.7.127.0"`, "[172.7.0.0/17]"},
		{`"Network":"255.255.0.0/16","SubnetMin":"255.255.255.0"`, "[255.255.255.0/24]"},
		{
			`"Network":"172.7.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8:7::/48","IPv6SubnetMin":"2001:db8:7:8::","IPv6SubnetMax":"2001:db8:7:b::"`,
			"[172.7.0.0/16 2001:db8:7:8::/62]",
		},
	} {
		cfg, err := ParseConfig(fmt.Appendf(nil, `{%s,"Backend":{"Type":"vxlan"}}`, c.config))
		if err != nil {
			t.Fatalf("%s: %v", c.config, err)
		}
		if got := fmt.Sprint(cfg.Allocatable()); got != c.want {
			t.Errorf("%s: %s, want %s", c.config, got, c.want)
		}
	}
}
