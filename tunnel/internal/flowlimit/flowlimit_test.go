package flowlimit

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"

	"uvxlan/encap"
)

const (
	flagSYN = 0x02
	flagACK = 0x10
)

// segment is a TCP segment between 10.0.9.1 and 10.0.1.9, inbound or outbound, of
// the flow with that port.
func segment(inbound bool, port uint16, flags byte, mss uint16, payload int) []byte {
	p := make([]byte, 44+payload)
	copy(p, []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, encap.ProtoTCP, 0, 0, 10, 0, 9, 1, 10, 0, 1, 9})
	ports := []uint16{port, 443}
	if !inbound {
		copy(p[12:], []byte{10, 0, 1, 9, 10, 0, 9, 1})
		ports = []uint16{443, port}
	}
	binary.BigEndian.PutUint16(p[20:], ports[0])
	binary.BigEndian.PutUint16(p[22:], ports[1])
	p[32], p[33] = 0x60, flags
	p[40], p[41] = 2, 4
	binary.BigEndian.PutUint16(p[42:], mss)
	encap.IPv4(p).SetTotalLen(len(p))
	encap.IPv4(p).UpdateChecksum()
	return p
}

func data(port uint16) []byte { return segment(true, port, flagACK, 0, 3000) }

// tooLong is the kernel's answer to data.
func tooLong(port uint16, mtu encap.InnerMTU) []byte {
	b := make([]byte, encap.MaxICMPLen)
	return b[:encap.ICMPFragmentationNeeded(b, data(port), netip.MustParseAddr("10.0.1.1"), mtu)]
}

func TestTable(t *testing.T) {
	type step struct {
		learn []byte
		want  int
	}
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"SYN-ACK", []step{{segment(false, 1, flagSYN|flagACK, 1260, 0), 1300}}},
		{"SYN", []step{{segment(false, 1, flagSYN, 1260, 0), 1300}}},
		{"full MSS", []step{{segment(false, 1, flagSYN, 1410, 0), 0}}},
		{"MSS above", []step{{segment(false, 1, flagSYN, 8960, 0), 0}}},
		{"their SYN", []step{{segment(true, 1, flagSYN, 1260, 0), 0}}},
		{"other flow", []step{{segment(false, 2, flagSYN, 1260, 0), 0}}},
		{"data", []step{{segment(false, 1, flagACK, 1260, 0), 0}}},
		{"too long", []step{{tooLong(1, 1300), 1300}}},
		{"too long, not for us", []step{{tooLong(1, 1500), 0}}},
		{"too long, less and more", []step{{tooLong(1, 1300), 1300}, {tooLong(1, 1200), 1200}, {tooLong(1, 1300), 1200}}},
		{"too long behind a SYN", []step{{segment(false, 1, flagSYN, 1260, 0), 1300}, {tooLong(1, 1200), 1200}}},
		{"SYN again", []step{{tooLong(1, 1200), 1200}, {segment(false, 1, flagSYN, 1260, 0), 1300}}},
		{"SYN of a full MSS again", []step{{tooLong(1, 1200), 1200}, {segment(false, 1, flagSYN, 1410, 0), 0}}},
		{"other flow's SYN", []step{{tooLong(1, 1200), 1200}, {segment(false, 2, flagSYN, 1410, 0), 1200}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := New(1450)
			for i, s := range tt.steps {
				table.Learn(s.learn)
				if got := table.Limit(data(1)); got != s.want {
					t.Errorf("step %d: limit %d, want %d", i, got, s.want)
				}
			}
		})
	}
}

// A short packet is no superpacket, whatever its flow's limit.
func TestTableOfShortPackets(t *testing.T) {
	table := New(1450)
	table.Learn(tooLong(1, 1300))
	if got := table.Limit(segment(true, 1, flagACK, 0, 1300-44)); got != 0 {
		t.Errorf("limit %d of a packet that is no longer", got)
	}
}

// Two flows of one slot take its place in turn.
func TestTableForgetsTheFlowBefore(t *testing.T) {
	table := New(1450)
	other := uint16(2)
	for encap.FlowHash(data(other))%slots != encap.FlowHash(data(1))%slots {
		other++
	}
	table.Learn(tooLong(1, 1300))
	table.Learn(tooLong(other, 1200))
	if a, b := table.Limit(data(1)), table.Limit(data(other)); a != 0 || b != 1200 {
		t.Errorf("limits %d and %d", a, b)
	}
}

// Workers learn and ask at the same time.
func TestTableConcurrently(t *testing.T) {
	table := New(1450)
	var wg sync.WaitGroup
	for port := range uint16(4) {
		for range 2 {
			wg.Go(func() {
				for range 1000 {
					table.Learn(tooLong(port, encap.InnerMTU(1200+port)))
					if got := table.Limit(data(port)); got != 1200+int(port) {
						t.Errorf("limit %d of flow %d", got, port)
						return
					}
				}
			})
		}
	}
	wg.Wait()
}

func TestTableDoesNotAllocate(t *testing.T) {
	table, learned, packet := New(1450), tooLong(1, 1300), data(1)
	if n := testing.AllocsPerRun(100, func() { table.Learn(learned); table.Limit(packet) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
