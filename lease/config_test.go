package lease

import (
	"net/netip"
	"strings"
	"testing"
)

func config4(network string, bits int, first, last string, b Backend) Config {
	return Config{
		EnableIPv4: true, Network: netip.MustParsePrefix(network), SubnetLen: bits,
		SubnetMin: netip.MustParseAddr(first), SubnetMax: netip.MustParseAddr(last), Backend: b,
	}
}

func vxlan() Backend {
	return Backend{Type: TypeVXLAN, VNI: 1, Port: 4789, DirectMode: DirectSocket}
}

func TestParseConfig(t *testing.T) {
	direct := vxlan()
	direct.DirectRouting, direct.DirectMode = true, DirectRoute
	full := Backend{Type: TypeVXLAN, VNI: 1<<24 - 1, Port: 8472, MTU: 9000, DirectMode: DirectSocket, Learning: true}
	hostGW := vxlan()
	hostGW.Type = TypeHostGW
	dual := config4("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0", vxlan())
	dual.EnableIPv6, dual.IPv6Network, dual.IPv6SubnetLen = true, netip.MustParsePrefix("2001:cafe:42::/56"), 64
	dual.IPv6SubnetMin, dual.IPv6SubnetMax = netip.MustParseAddr("2001:cafe:42:1::"), netip.MustParseAddr("2001:cafe:42:ff::")
	nft := config4("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0", vxlan())
	nft.EnableNFTables = true

	for name, c := range map[string]struct {
		in   string
		want Config
	}{
		"defaults":         {`{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN"}}`, config4("172.7.0.0/16", 24, "172.7.1.0", "172.7.255.0", vxlan())},
		"host-gw":          {`{"Network":"172.7.0.0/16","Backend":{"Type":"Host-GW","VNI":"ignored"}}`, config4("172.7.0.0/16", 24, "172.7.1.0", "172.7.255.0", hostGW)},
		"keys in any case": {`{"network":"172.7.0.0/16","BACKEND":{"type":"VXLAN","Directrouting":true,"directMODE":"Route"}}`, config4("172.7.0.0/16", 24, "172.7.1.0", "172.7.255.0", direct)},
		"host bits":        {`{"Network":"172.7.9.9/16","Backend":{"Type":"vxlan"}}`, config4("172.7.0.0/16", 24, "172.7.1.0", "172.7.255.0", vxlan())},
		"unknown and null": {`{"Network":"172.7.0.0/16","SubnetLen":null,"X":1,"Backend":{"Type":"vxlan","Port":null,"Y":2}}`, config4("172.7.0.0/16", 24, "172.7.1.0", "172.7.255.0", vxlan())},
		"network /22":      {`{"Network":"10.0.0.0/22","Backend":{"Type":"vxlan"}}`, config4("10.0.0.0/22", 24, "10.0.1.0", "10.0.3.0", vxlan())},
		"network /23":      {`{"Network":"10.0.0.0/23","Backend":{"Type":"vxlan"}}`, config4("10.0.0.0/23", 25, "10.0.0.128", "10.0.1.128", vxlan())},
		"network /28":      {`{"Network":"10.0.0.0/28","Backend":{"Type":"vxlan"}}`, config4("10.0.0.0/28", 30, "10.0.0.4", "10.0.0.12", vxlan())},
		"min and max":      {`{"Network":"10.5.0.0/16","SubnetLen":28,"SubnetMin":"10.5.10.0","SubnetMax":"10.5.99.16","Backend":{"Type":"vxlan"}}`, config4("10.5.0.0/16", 28, "10.5.10.0", "10.5.99.16", vxlan())},
		"all of vxlan":     {`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777215,"Port":8472,"MTU":9000,"GBP":false,"Learning":true}}`, config4("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0", full)},
		"dual stack":       {`{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"2001:cafe:42::/56","Backend":{"Type":"vxlan"}}`, dual},
		"nftables":         {`{"EnableNFTables":true,"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}`, nft},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseConfig([]byte(c.in))
			if err != nil {
				t.Fatal(err)
			}
			if *got != c.want {
				t.Errorf("got  %+v\nwant %+v", *got, c.want)
			}
		})
	}
}

func TestParseConfigErrors(t *testing.T) {
	const vx = `"Backend":{"Type":"vxlan"}`
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"not an object":     {`[]`, []string{"one JSON object: json"}},
		"out of a log":      {`{\"Network\":\"10.0.0.0/16\"}`, []string{"one JSON object, but has backslashes before its quotes, as a log shows them: leave them out"}},
		"out of a page":     {`{“Network”:“10.0.0.0/16”}`, []string{`one JSON object, but has quotes of another kind than JSON's "`}},
		"by the shell":      {`{Network:10.0.0.0/16}`, []string{"one JSON object, but has no quotes: the shell leaves them if all of it stands between ' and '"}},
		"flannel's udp":     {`{"Network":"10.0.0.0/16","Backend":{"Type":"UDP"}}`, []string{`Backend.Type "UDP": must be "vxlan" or "host-gw"; what flannel's udp is for, vxlan does here: it needs no VXLAN of the kernel's`}},
		"nearly a type":     {`{"Network":"10.0.0.0/16","Backend":{"Type":"hostgw"}}`, []string{`must be "vxlan" or "host-gw": did you mean "host-gw"?`}},
		"no network":        {`{` + vx + `}`, []string{"Network missing: must be an IPv4 network"}},
		"empty network":     {`{"Network":"",` + vx + `}`, []string{`Network "": must be an IPv4 network`}},
		"network is v6":     {`{"Network":"fd00::/48",` + vx + `}`, []string{`Network "fd00::/48": must be an IPv4 network`}},
		"network too small": {`{"Network":"10.0.0.0/29",` + vx + `}`, []string{`Network "10.0.0.0/29": must have a prefix of at most /28`}},
		"subnets too large": {`{"Network":"10.0.0.0/16","SubnetLen":17,` + vx + `}`, []string{"SubnetLen 17: must be at least 18"}},
		"subnets too small": {`{"Network":"10.0.0.0/16","SubnetLen":31,` + vx + `}`, []string{"SubnetLen 31: must be a whole number from 0 to 30"}},
		"bounds":            {`{"Network":"10.0.0.0/16","SubnetMin":"10.1.0.0","SubnetMax":"10.0.7.1",` + vx + `}`, []string{`SubnetMin "10.1.0.0": must lie inside 10.0.0.0/16`, `SubnetMax "10.0.7.1": must be the first address of a /24`}},
		"empty bound":       {`{"Network":"10.0.0.0/16","SubnetMin":"",` + vx + `}`, []string{`SubnetMin "": must be an IPv4 address`}},
		"bounds crossed":    {`{"Network":"10.0.0.0/16","SubnetMin":"10.0.9.0","SubnetMax":"10.0.8.0",` + vx + `}`, []string{`SubnetMax "10.0.8.0": must not be below SubnetMin 10.0.9.0`}},
		"no backend":        {`{"Network":"10.0.0.0/16"}`, []string{`Backend missing: must name a type, {"Type":"vxlan"} or {"Type":"host-gw"}`}},
		"no type":           {`{"Network":"10.0.0.0/16","Backend":{}}`, []string{`Backend.Type missing: must be "vxlan" or "host-gw"`}},
		"unknown type":      {`{"Network":"10.0.0.0/16","Backend":{"Type":"ipsec"}}`, []string{`Backend.Type "ipsec": must be "vxlan" or "host-gw"`}},
		"IPv4 off":          {`{"EnableIPv4":false,"Network":"10.0.0.0/16",` + vx + `}`, []string{"EnableIPv4 false: must be true"}},
		"IPv6 missing":      {`{"EnableIPv6":true,"Network":"10.0.0.0/16",` + vx + `}`, []string{"IPv6Network missing: must be an IPv6 network"}},
		"IPv6 MTU":          {`{"EnableIPv6":true,"Network":"10.0.0.0/16","IPv6Network":"fd00::/48","Backend":{"Type":"vxlan","MTU":1300}}`, []string{"Backend.MTU 1300: must be 0, for the external interface's, or at least 1350"}},
		"a null network":    {`{"Network":null,` + vx + `}`, []string{"Network null: must be an IPv4 network"}},
		"not a length":      {`{"Network":"10.0.0.0/16","SubnetLen":"24",` + vx + `}`, []string{`SubnetLen "24": must be a whole number from 0 to 30`}},
		"a negative length": {`{"Network":"10.0.0.0/16","SubnetLen":-1,` + vx + `}`, []string{"SubnetLen -1: must be a whole number"}},
		"length of /28":     {`{"Network":"10.0.0.0/29","SubnetLen":30,` + vx + `}`, []string{"SubnetLen 30: must be at least 31"}},
		"not an address":    {`{"Network":"10.0.0.0/16","SubnetMin":7,"SubnetMax":"fd00::",` + vx + `}`, []string{"SubnetMin 7: must be an IPv4 address", `SubnetMax "fd00::": must be an IPv4 address`}},
		"backend no object": {`{"Network":"10.0.0.0/16","Backend":"vxlan"}`, []string{`Backend "vxlan": must be an object such as {"Type":"vxlan"}`}},
		"null backend":      {`{"Network":"10.0.0.0/16","Backend":null}`, []string{"Backend null: must name a type"}},
		"type no string":    {`{"Network":"10.0.0.0/16","Backend":{"Type":4}}`, []string{"Backend.Type 4: must be a string"}},
		"IPv4 no bool":      {`{"EnableIPv4":"yes","EnableIPv6":1,"Network":"10.0.0.0/16",` + vx + `}`, []string{`EnableIPv4 "yes": must be true or false`, "EnableIPv6 1: must be true or false"}},
		"IPv6 too small":    {`{"EnableIPv6":true,"Network":"10.0.0.0/16","IPv6Network":"fd00::/125",` + vx + `}`, []string{`IPv6Network "fd00::/125": must have a prefix of at most /124`}},
		"IPv6 subnet len":   {`{"EnableIPv6":true,"Network":"10.0.0.0/16","IPv6Network":"fd00::/56","IPv6SubnetLen":57,` + vx + `}`, []string{"IPv6SubnetLen 57: must be at least 58"}},
		"IPv6 subnets":      {`{"EnableIPv6":true,"Network":"10.0.0.0/16","IPv6Network":"fd00::/56","IPv6SubnetLen":127,` + vx + `}`, []string{"IPv6SubnetLen 127: must be a whole number from 0 to 126"}},
		"IPv6 bounds": {
			`{"EnableIPv6":true,"Network":"10.0.0.0/16","IPv6Network":"fd00::/56","IPv6SubnetMin":"fe00::","IPv6SubnetMax":"fd00::1",` + vx + `}`,
			[]string{`IPv6SubnetMin "fe00::": must lie inside fd00::/56`, `IPv6SubnetMax "fd00::1": must be the first address of a /64`},
		},
		"IPv6 bounds crossed": {
			`{"EnableIPv6":true,"Network":"10.0.0.0/16","IPv6Network":"fd00::/56","IPv6SubnetMin":"fd00:0:0:9::","IPv6SubnetMax":"fd00:0:0:8::",` + vx + `}`,
			[]string{`IPv6SubnetMax "fd00:0:0:8::": must not be below IPv6SubnetMin fd00:0:0:9::`},
		},
		"fields beside a bad network": {
			`{"Network":"x","SubnetLen":31,"SubnetMin":"y","SubnetMax":"10.0.0.1",` + vx + `}`,
			[]string{`Network "x":`, "SubnetLen 31:", `SubnetMin "y": must be an IPv4 address`},
		},
		"fields beside a bad length": {
			`{"Network":"10.0.0.0/16","SubnetLen":17,"SubnetMin":"10.1.0.0","SubnetMax":"10.0.0.1",` + vx + `}`,
			[]string{"SubnetLen 17:", `SubnetMin "10.1.0.0": must lie inside`},
		},
		"all at once": {
			`{"EnableNFTables":1,"Network":"x","Backend":{"Type":"vxlan","VNI":16777216,"Port":0,"MTU":100,"DirectRouting":"yes","DirectMode":"fast","GBP":true}}`,
			[]string{"EnableNFTables 1:", `Network "x":`, "Backend.VNI 16777216:", "Backend.Port 0:", "Backend.MTU 100:", `Backend.DirectRouting "yes":`, `Backend.DirectMode "fast":`, "Backend.GBP true:"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseConfig([]byte(c.in))
			all, _ := err.(ConfigError) //nolint:errorlint // the type is promised
			if len(all) != len(c.want) {
				t.Fatalf("got %d problems, want %d: %v", len(all), len(c.want), err)
			}
			for i, want := range c.want {
				if !strings.Contains(all[i].Error(), want) {
					t.Errorf("problem %d is %q, want %q in it", i, all[i], want)
				}
			}
		})
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN"}}`))
	f.Add([]byte(`{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"::/1","IPv6SubnetLen":126,"Backend":{"Type":"vxlan"}}`))
	f.Add([]byte(`{"Network":"255.255.255.240/28","Backend":{"Type":"host-gw"}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := ParseConfig(in)
		if err != nil {
			return
		}
		free := c.ipv4().free(nil, choices)
		if c.EnableIPv6 {
			free = append(free, c.ipv6().free(nil, choices)...)
		}
		if len(free) == 0 {
			t.Errorf("a valid configuration has no subnet: %+v", c)
		}
		for _, n := range free {
			if !c.ipv4().contains(n) && !c.ipv6().contains(n) {
				t.Errorf("%s is free but doesn't fit %+v", n, c)
			}
		}
	})
}
