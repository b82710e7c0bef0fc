package encap

import (
	"testing"
)

func TestOffloadHeadersEnd(t *testing.T) {
	tcp := func(ip, words, payload int) []byte {
		p := make([]byte, ip+4*words+payload)
		p[ip+12] = byte(words) << 4
		return p
	}
	for _, c := range []struct {
		name   string
		gso    GSOType
		start  uint16
		packet []byte
		want   int
	}{
		{"TCP", GSOTCPv4, 20, tcp(20, 5, 100), 40},
		{"TCP with options", GSOTCPv4, 20, tcp(20, 8, 100), 52},
		{"TCP with most options, behind IP options", GSOTCPv4, 60, tcp(60, 15, 1), 120},
		{"TCP over IPv6 with CWR", GSOTCPv6 | GSOECN, 40, tcp(40, 5, 9), 60},
		{"TCP without payload", GSOTCPv4, 20, tcp(20, 5, 0), 40},
		{"TCP whose header is said to be longer than the packet", GSOTCPv4, 20, tcp(20, 15, 0)[:50], 50},
		{"TCP cut before its length", GSOTCPv4, 20, make([]byte, 32), 32},
		{"TCP cut behind its length", GSOTCPv4, 20, tcp(20, 5, 0)[:33], 33},
		{"UDP", GSOUDP, 20, make([]byte, 128), 28},
		{"UDP over IPv6", GSOUDP, 40, make([]byte, 128), 48},
		{"UDP cut in its header", GSOUDP, 20, make([]byte, 24), 24},
		{"start beyond the packet", GSOTCPv4, 0xffff, make([]byte, 60), 60},
		{"UDP start beyond the packet", GSOUDP, 0xffff, make([]byte, 60), 60},
		{"nothing", GSOTCPv4, 0, nil, 0},
	} {
		o := Offload{GSO: c.gso, NeedsChecksum: true, ChecksumStart: c.start, HeaderLen: 7}
		if got := o.HeadersEnd(c.packet); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
