package tcprog

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// manyPeers are so many, each with a /28.
func manyPeers(n int) []Peer {
	peers := make([]Peer, n)
	for i := range peers {
		peers[i] = Peer{
			Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 12), byte(i >> 4), byte(i << 4)}), 28),
			Underlay: netip.AddrFrom4([4]byte{172, byte(16 + i>>16), byte(i >> 8), byte(i)}),
			MAC:      encap.MAC{2, 1, 0, byte(i >> 16), byte(i >> 8), byte(i)}, MaxPacket: testMTU,
		}
	}
	return peers
}

func BenchmarkPut(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			peers := manyPeers(n)
			for range b.N {
				b.StopTimer()
				p, err := Load(n, nil)
				if err != nil {
					b.Skip(err)
				}
				b.StartTimer()
				must(b, p.Put(peers))
				b.StopTimer()
				must(b, p.Close())
				b.StartTimer()
			}
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		p, err := Load(0, nil)
		if err != nil {
			b.Skip(err)
		}
		must(b, p.Close())
	}
}

// reportRuns runs something and reports how long the program ran each time.
func reportRuns(b *testing.B, p *ebpf.Program, run func()) {
	b.Helper()
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	must(b, err)
	defer stats.Close()
	before, err := p.Stats()
	must(b, err)
	for b.Loop() {
		run()
	}
	after, err := p.Stats()
	must(b, err)
	b.ReportMetric(float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount), "ns/run")
}

// BenchmarkEgress and BenchmarkIngress report how long the programs run for a packet,
// what comes before and after not included.
func BenchmarkEgress(b *testing.B) {
	r := newRig(b)
	for name, packet := range map[string][]byte{
		"carried": ping("10.0.1.9", "10.0.2.9", 0),
		"nobody":  ping("10.0.1.9", "10.0.99.9", 0),
	} {
		b.Run(name, func(b *testing.B) {
			reportRuns(b, r.Egress(), func() { r.pass(packet, encap.EtherTypeIPv4, encap.Offload{}) })
		})
	}
}

func BenchmarkIngress(b *testing.B) {
	in := newInbound(b)
	other := pingFrame(0, 0)
	other[14+23] ^= 1 // the destination port
	for name, frame := range map[string][]byte{"carried": pingFrame(0, 0), "another's": other} {
		b.Run(name, func(b *testing.B) {
			reportRuns(b, in.Ingress(), func() { in.run(frame) })
		})
	}
}

// BenchmarkFIBLookup is the part of the egress program's that bpf_fib_lookup takes.
func BenchmarkFIBLookup(b *testing.B) {
	r := newRig(b)
	for name, peer := range map[string]string{"neighbour": "10.66.0.2", "gateway": "10.77.0.3"} {
		dst := netip.MustParseAddr(peer)
		for _, lookup := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/%v", name, lookup), func(b *testing.B) {
				p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
					Type: ebpf.SchedCLS, License: "Dual BSD/GPL", Instructions: lookupProgram(r.device, dst, lookup),
				})
				must(b, err)
				defer p.Close()
				must(b, r.host.Do(func() error {
					result, err := p.Run(&ebpf.RunOptions{Data: pingFrame(0, 0), Repeat: uint32(max(b.N, 1))})
					if err == nil && result != 0 {
						err = fmt.Errorf("the lookup's result is %d", int32(result))
					}
					return err
				}))
			})
		}
	}
}

// lookupProgram fills struct bpf_fib_lookup as the egress program does and looks it up.
func lookupProgram(device int, dst netip.Addr, lookup bool) asm.Instructions {
	const size = 64
	var all asm.Instructions
	for at := int16(-size); at < 0; at += 4 {
		all = append(all, asm.StoreImm(asm.RFP, at, 0, asm.Word))
	}
	all = append(all,
		asm.StoreImm(asm.RFP, -size, unix.AF_INET, asm.Byte),
		asm.StoreImm(asm.RFP, -size+1, unix.IPPROTO_UDP, asm.Byte),
		asm.StoreImm(asm.RFP, -size+6, 114, asm.Half), // length
		asm.StoreImm(asm.RFP, -size+8, int64(device), asm.Word),
		asm.StoreImm(asm.RFP, -size+16, int64(int32(word(testLocal.AsSlice()))), asm.Word),
		asm.StoreImm(asm.RFP, -size+32, int64(int32(word(dst.AsSlice()))), asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -size),
		asm.Mov.Imm(asm.R3, size), asm.Mov.Imm(asm.R4, 0),
	)
	if lookup {
		all = append(all, asm.FnFibLookup.Call())
	} else {
		all = append(all, asm.Mov.Imm(asm.R0, 0))
	}
	return append(all, asm.Return())
}
