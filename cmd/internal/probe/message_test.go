package probe

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"uvxlan/encap"
)

// errorV4 and errorV6 are ICMP errors that quote the request of an ID and a number.
func errorV4(kind, code byte, mtu, id, seq uint16) []byte {
	b := []byte{
		kind, code, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu),
		0x46, 0, 0, 60, 0, 0, 0x40, 0, 64, encap.ProtoICMP, 0, 0, // the quoted header, with options
		10, 0, 0, 1, 10, 0, 0, 2,
		1, 1, 1, 1, // options
		typeEcho, 0, 0, 0,
	}
	b = binary.BigEndian.AppendUint16(b, id)
	return binary.BigEndian.AppendUint16(b, seq)
}

func errorV6(kind, code byte, mtu uint32, id, seq uint16, fragmented bool) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, mtu)
	b = append(b, 0x60, 0, 0, 0, 0, 40, 58, 64)
	if fragmented {
		b[len(b)-2] = 44
	}
	from, to := addr("fd00::1").As16(), addr("fd00::2").As16()
	b = append(append(b, from[:]...), to[:]...)
	if fragmented {
		b = append(b, 58, 0, 0, 1, 1, 2, 3, 4)
	}
	b = append(b, typeEchoV6, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, id)
	return binary.BigEndian.AppendUint16(b, seq)
}

func TestParseErrors(t *testing.T) {
	const id, seq = 0x1234, 7
	for _, c := range []struct {
		packet []byte
		v6     bool
		words  string
	}{
		{packet: errorV4(3, 1, 0, id, seq), words: "192.0.2.1 says: host unreachable"},
		{packet: errorV4(3, 13, 0, id, seq), words: "192.0.2.1 says: administratively prohibited"},
		{packet: errorV4(3, 4, 1400, id, seq), words: "192.0.2.1 says: packet too big, the MTU is 1400"},
		{packet: errorV4(3, 4, 0, id, seq), words: "192.0.2.1 says: packet too big"},
		{packet: errorV4(11, 0, 0, id, seq), words: "192.0.2.1 says: TTL exceeded, the packets loop"},
		{packet: errorV4(3, 99, 0, id, seq), words: "192.0.2.1 says: ICMP type 3, code 99"},
		{packet: errorV6(1, 3, 0, id, seq, false), v6: true, words: "fd00::1 says: address unreachable"},
		{packet: errorV6(1, 1, 0, id, seq, false), v6: true, words: "fd00::1 says: administratively prohibited"},
		{packet: errorV6(2, 0, 1280, id, seq, true), v6: true, words: "fd00::1 says: packet too big, the MTU is 1280"},
	} {
		f, from, to := formatV4, addr("192.0.2.1"), addr("10.0.0.2")
		if c.v6 {
			f, from, to = formatV6, addr("fd00::1"), addr("fd00::2")
		}
		m, ok := f.parse(c.packet, from, id)
		if !ok || m.seq != seq || m.to != to || m.failure.Error() != c.words {
			t.Errorf("%s: %+v, %t", c.words, m, ok)
		}
		for n := range c.packet {
			if _, ok := f.parse(c.packet[:n], from, id); ok {
				t.Errorf("%s: the first %d of %d bytes do", c.words, n, len(c.packet))
			}
		}
		if _, ok := f.parse(c.packet, from, id+1); ok {
			t.Errorf("%s: it is another ID's as well", c.words)
		}
	}
}

func TestParseReply(t *testing.T) {
	const id, seq, mark, size = 0x1234, 0xff01, 1 << 60, 100
	request := formatV4.appendRequest(nil, id, seq, mark, size)
	if encap.Checksum(request, 0) != 0 {
		t.Error("the request's checksum is wrong")
	}
	if _, ok := formatV4.parse(request, addr("192.0.2.1"), id); ok {
		t.Error("a request is an answer")
	}
	reply := slices.Clone(request)
	reply[0], reply[2] = typeEchoReply, reply[2]+typeEcho // RFC 1624
	m, ok := formatV4.parse(reply, addr("192.0.2.1"), id)
	if !ok || m.damaged || m.seq != seq || !isEcho(m.payload, mark, size) || isEcho(m.payload, mark+1, size) || isEcho(m.payload, mark, size-1) {
		t.Errorf("the reply is %+v, %t", m, ok)
	}
	reply[50]++
	if m, ok := formatV4.parse(reply, addr("192.0.2.1"), id); !ok || !m.damaged || isEcho(m.payload, mark, size) {
		t.Errorf("the damaged reply is %+v, %t", m, ok)
	}
}

// A clock that was set meanwhile makes no round-trip time.
func TestSince(t *testing.T) {
	sent := time.Now()
	const read = 5 * time.Millisecond
	for kernel, want := range map[time.Duration]time.Duration{
		time.Millisecond: time.Millisecond, -time.Hour: read, time.Hour: read,
	} {
		m := message{read: sent.Add(read), kernel: sent.Round(0).Add(kernel)}
		if got := m.since(sent); got != want {
			t.Errorf("the kernel's clock at %s: %s, want %s", kernel, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(errorV4(3, 4, 1400, 1, 2), false)
	f.Add(errorV6(2, 0, 1280, 1, 2, true), true)
	f.Add(formatV4.appendRequest(nil, 1, 2, 3, 40), false)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		format, from := formatV4, addr("192.0.2.1")
		if v6 {
			format, from = formatV6, addr("fd00::1")
		}
		if m, ok := format.parse(b, from, 1); ok && m.failure != nil && m.failure.words() == "" {
			t.Error("an error without words")
		}
	})
}
