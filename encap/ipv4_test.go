package encap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"uvxlan/encap"
)

func TestParseIPv4(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []byte
		n    int
		err  error
	}{
		{"golden", goldenUDP4, 31, nil},
		{"padded", slices.Concat(goldenUDP4, make([]byte, 15)), 31, nil},
		{"no payload", edit(goldenUDP4[:20], map[int][]byte{3: {20}}), 20, nil},
		{"options", edit(goldenUDP4, map[int][]byte{0: {0x46}}), 31, nil},
		{"short", goldenUDP4[:19], 0, encap.ErrShort},
		{"truncated", goldenUDP4[:30], 0, encap.ErrShort},
		{"empty", nil, 0, encap.ErrShort},
		{"version", goldenUDP6, 0, encap.ErrVersion},
		{"IHL 4", edit(goldenUDP4, map[int][]byte{0: {0x44}}), 0, encap.ErrHeader},
		{"IHL past the end", edit(goldenUDP4, map[int][]byte{0: {0x48}}), 0, encap.ErrHeader},
		{"total below the header", edit(goldenUDP4, map[int][]byte{3: {19}}), 0, encap.ErrHeader},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := encap.ParseIPv4(tt.in)
			if !errors.Is(err, tt.err) || len(p) != tt.n || cap(p) != tt.n {
				t.Errorf("len %d, cap %d, error %v; want %d, %v", len(p), cap(p), err, tt.n, tt.err)
			}
		})
	}
}

func TestIPv4Fields(t *testing.T) {
	p := mustIPv4(t, goldenUDP4)
	src, dst := netip.MustParseAddr("172.7.21.2"), netip.MustParseAddr("172.7.22.3")
	for name, ok := range map[string]bool{
		"HeaderLen":        p.HeaderLen() == 20,
		"TotalLen":         p.TotalLen() == 31,
		"TOS":              p.TOS() == 2,
		"ECN":              p.ECN() == encap.ECNECT0,
		"ID":               p.ID() == 0x1234,
		"TTL":              p.TTL() == 64,
		"Protocol":         p.Protocol() == encap.ProtoUDP,
		"DontFragment":     p.DontFragment(),
		"MoreFragments":    !p.MoreFragments(),
		"FragmentOffset":   p.FragmentOffset() == 0,
		"IsFragment":       !p.IsFragment(),
		"Src":              p.Src() == src,
		"Dst":              p.Dst() == dst,
		"HeaderChecksumOK": p.HeaderChecksumOK(),
		"Payload":          bytes.Equal(p.Payload(), goldenUDP4[20:]),
	} {
		if !ok {
			t.Errorf("%s is wrong in % x", name, p)
		}
	}
}

func TestIPv4Fragments(t *testing.T) {
	for _, tt := range []struct {
		name           string
		field          []byte
		more, fragment bool
		offset         int
	}{
		{"whole", []byte{0x40, 0x00}, false, false, 0},
		{"first", []byte{0x20, 0x00}, true, true, 0},
		{"middle", []byte{0x20, 0xb9}, true, true, 1480},
		{"last", []byte{0x1f, 0xff}, false, true, 65528},
	} {
		p := mustIPv4(t, edit(goldenUDP4, map[int][]byte{6: tt.field}))
		if p.MoreFragments() != tt.more || p.IsFragment() != tt.fragment || p.FragmentOffset() != tt.offset {
			t.Errorf("%s: more %v, fragment %v, offset %d", tt.name, p.MoreFragments(), p.IsFragment(), p.FragmentOffset())
		}
	}
}

func TestIPv4Setters(t *testing.T) {
	p := mustIPv4(t, slices.Clone(goldenUDP4))
	p.SetTotalLen(1450)
	p.SetID(0xabcd)
	p.SetTTL(7)
	p.SetTOS(0xb9)
	if p.TotalLen() != 1450 || p.ID() != 0xabcd || p.TTL() != 7 || p.TOS() != 0xb9 {
		t.Errorf("fields read back as %d %#x %d %#x", p.TotalLen(), p.ID(), p.TTL(), p.TOS())
	}
	if p.HeaderChecksumOK() {
		t.Error("stale checksum verifies")
	}
	if p.UpdateChecksum(); !p.HeaderChecksumOK() {
		t.Error("updated checksum doesn't verify")
	}
	if !bytes.Equal(p[12:], goldenUDP4[12:]) {
		t.Error("bytes beyond the fields changed")
	}
}

func TestIPv4SetECNEqualsFullChecksum(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		p := randomHeader(random)
		before := binary.BigEndian.Uint16(p[10:])
		damage := uint16(random.Uint32()) * uint16(random.Uint32()&1)
		binary.BigEndian.PutUint16(p[10:], before^damage)
		wasOK := p.HeaderChecksumOK()

		ecn := uint8(random.Uint32())
		p.SetECN(ecn)
		if p.ECN() != ecn&3 || p.HeaderChecksumOK() != wasOK {
			t.Fatalf("ECN %02b, checksum ok %v, was %v: % x", p.ECN(), p.HeaderChecksumOK(), wasOK, p)
		}
		if incremental := binary.BigEndian.Uint16(p[10:]); damage == 0 {
			p.UpdateChecksum()
			if full := binary.BigEndian.Uint16(p[10:]); incremental != full {
				t.Fatalf("incremental %04x, full %04x: % x", incremental, full, p)
			}
		}
	}
}

// randomHeader returns a header of random fields and options with a right
// checksum.
func randomHeader(random *rand.Rand) encap.IPv4 {
	p := encap.IPv4(make([]byte, 20+4*random.IntN(11)))
	for i := range p {
		p[i] = byte(random.Uint32())
	}
	p[0] = 4<<4 | byte(len(p)/4)
	p.SetTotalLen(len(p))
	p.UpdateChecksum()
	return p
}

func mustIPv4(t testing.TB, b []byte) encap.IPv4 {
	t.Helper()
	p, err := encap.ParseIPv4(b)
	if err != nil {
		t.Fatalf("ParseIPv4: %v: % x", err, b)
	}
	return p
}
