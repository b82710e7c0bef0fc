package lab

import (
	"net/netip"
	"strings"
	"testing"
)

func TestValidateHosts(t *testing.T) {
	tests := []struct {
		name   string
		change func([]HostSpec) []HostSpec
		want   string // part of the error, empty for none
	}{
		{"default", func(h []HostSpec) []HostSpec { return h }, ""},
		{"one host", func(h []HostSpec) []HostSpec { return h[2:] }, ""},
		{"none", func([]HostSpec) []HostSpec { return nil }, "at least one host"},
		{"no name", func(h []HostSpec) []HostSpec { h[0].Name = ""; return h }, `name ""`},
		{"path as name", func(h []HostSpec) []HostSpec { h[0].Name = "a/b"; return h }, `name "a/b"`},
		{"parent as name", func(h []HostSpec) []HostSpec { h[0].Name = ".."; return h }, `name ".."`},
		{"long name", func(h []HostSpec) []HostSpec { h[0].Name = strings.Repeat("k", 16); return h }, "15 bytes"},
		{"router's name", func(h []HostSpec) []HostSpec { h[0].Name = routerName; return h }, "the router's"},
		{"no underlay", func(h []HostSpec) []HostSpec { h[0].Underlay = netip.Prefix{}; return h }, "underlay"},
		{"IPv6 underlay", func(h []HostSpec) []HostSpec { h[0].Underlay = netip.MustParsePrefix("fd00::1/64"); return h }, "not an IPv4"},
		{"gateway elsewhere", func(h []HostSpec) []HostSpec { h[0].Gateway = h[2].Gateway; return h }, "not another address"},
		{"gateway is host", func(h []HostSpec) []HostSpec { h[0].Gateway = h[0].Underlay.Addr(); return h }, "not another address"},
		{"subnet with host bits", func(h []HostSpec) []HostSpec { h[0].Subnet = netip.MustParsePrefix("172.7.21.1/24"); return h }, "not an IPv4 network"},
		{"small subnet", func(h []HostSpec) []HostSpec { h[0].Subnet = netip.MustParsePrefix("172.7.21.0/31"); return h }, "30 bits"},
		{"subnet in underlay", func(h []HostSpec) []HostSpec { h[0].Subnet = h[0].Underlay.Masked(); return h }, "overlaps the underlay"},
		{"same name", func(h []HostSpec) []HostSpec { h[1].Name = h[0].Name; return h }, "same namespace"},
		{"container's name", func(h []HostSpec) []HostSpec { h[1].Name = "kb21-c1"; return h }, "same namespace"},
		{"same address", func(h []HostSpec) []HostSpec { h[1].Underlay = h[0].Underlay; return h }, "same underlay address"},
		{"same subnet", func(h []HostSpec) []HostSpec { h[1].Subnet = h[0].Subnet; return h }, "overlapping subnets"},
		{"subnet in other's underlay", func(h []HostSpec) []HostSpec { h[0].Subnet = h[2].Underlay.Masked(); return h }, "overlapping subnets"},
		{"underlays overlap", func(h []HostSpec) []HostSpec { h[1].Underlay = netip.MustParsePrefix("192.168.14.22/16"); return h }, "overlapping underlay"},
		{"routed neighbour", func(h []HostSpec) []HostSpec { h[1].Routed = true; return h }, "its own"},
		{"two gateways", func(h []HostSpec) []HostSpec { h[1].Gateway = netip.MustParseAddr("192.168.14.2"); return h }, "different gateways"},
	}
	dual := func(change func([]HostSpec)) func([]HostSpec) []HostSpec {
		return func([]HostSpec) []HostSpec {
			h := DualHosts()
			change(h)
			return h
		}
	}
	tests = append(tests, []struct {
		name   string
		change func([]HostSpec) []HostSpec
		want   string
	}{
		{"dual", dual(func([]HostSpec) {}), ""},
		{"half of them dual", dual(func(h []HostSpec) { h[2].IPv6 = IPv6Spec{} }), ""},
		{"IPv4 as IPv6", dual(func(h []HostSpec) { h[0].IPv6.Underlay = h[0].Underlay }), "not an IPv6 address"},
		{"IPv6 gateway elsewhere", dual(func(h []HostSpec) { h[0].IPv6.Gateway = h[2].IPv6.Gateway }), "not another address"},
		{"no IPv6 subnet", dual(func(h []HostSpec) { h[0].IPv6.Subnet = netip.Prefix{} }), "not an IPv6 network"},
		{"IPv6 subnet in underlay", dual(func(h []HostSpec) { h[0].IPv6.Subnet = h[0].IPv6.Underlay.Masked() }), "overlaps the underlay"},
		{"same IPv6 subnet", dual(func(h []HostSpec) { h[1].IPv6.Subnet = h[0].IPv6.Subnet }), "overlapping IPv6 subnets"},
		{"one of a network", dual(func(h []HostSpec) { h[1].IPv6 = IPv6Spec{} }), "different IPv6 gateways"},
	}...)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := validateHosts(tt.change(DefaultHosts()))
			if tt.want == "" {
				must(t, err)
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestPacket(t *testing.T) {
	frame := []byte{
		0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x08, 0x00, // Ethernet, IPv4
		0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, // IPv4, UDP
		192, 168, 14, 21, 192, 168, 14, 22,
		0x80, 0, 0x12, 0xb5, 0, 8, 0, 0, // UDP to 4789
	}
	p := Packet{Frame: frame, Length: len(frame)}
	src, dst, protocol, ok := p.IPv4()
	if !ok || src.String() != "192.168.14.21" || dst.String() != "192.168.14.22" || protocol != 17 {
		t.Errorf("got %v %v %v %v", src, dst, protocol, ok)
	}
	if !p.IsUDP(4789) || p.IsUDP(4790) {
		t.Error("port not recognised")
	}
	for n := range frame {
		if (Packet{Frame: frame[:n]}).IsUDP(4789) && n < 38 {
			t.Errorf("cut at %d taken for a datagram", n)
		}
	}
	frame[21] = 1 // a later fragment
	if p.IsUDP(4789) {
		t.Error("fragment taken for a datagram")
	}
}

func TestAnswers(t *testing.T) {
	request := icmp4.echo(4, 0x01020304)
	if internetChecksum(request) != 0 {
		t.Error("wrong checksum")
	}
	reply := icmp4.echo(4, 0x01020304)
	reply[0] = icmp4.reply
	foreign := icmp4.echo(4, 0x01020305)
	foreign[0] = icmp4.reply
	quoted := append([]byte{icmp4.refused, 0, 0, 0, 0, 0, 0, 0, 0x45}, make([]byte, 19)...)
	quoted = append(quoted, request[:icmpHeader]...)
	if done, err := icmp4.answers(reply, request); !done || err != nil {
		t.Errorf("reply: %v %v", done, err)
	}
	if done, _ := icmp4.answers(foreign, request); done {
		t.Error("foreign reply taken")
	}
	if done, err := icmp4.answers(quoted, request); !done || err == nil {
		t.Errorf("unreachable: %v %v", done, err)
	}
	for n := range quoted {
		if done, _ := icmp4.answers(quoted[:n], request); done {
			t.Errorf("message of %d bytes taken", n)
		}
	}
}
