package encap_test

import (
	"bytes"
	"slices"
	"testing"

	"uvxlan/encap"
)

// benchBatch is a batch of packets that can be coalesced again and again.
type benchBatch struct {
	packets [][]byte
	changed []int    // the packets whose headers are rewritten
	headers [][]byte // as they were
	bytes   int
	made    int
}

// newBenchBatch lays the samples out one behind the other, as the receiver does
// with its datagrams.
func newBenchBatch(all []sample) *benchBatch {
	b := &benchBatch{}
	var pristine [][]byte
	buffer := make([]byte, 0, 4<<20)
	for _, s := range all {
		p, _ := s.build()
		start := len(buffer) + encap.FrameHeaderLen
		buffer = append(buffer[:start], p...)
		b.packets = append(b.packets, buffer[start:])
		b.bytes += len(p)
		pristine = append(pristine, p)
	}
	c := encap.NewCoalescer(coalesceMTU)
	b.made = b.run(c)
	for i, p := range b.packets {
		if !bytes.Equal(p, pristine[i]) {
			b.changed = append(b.changed, i)
			b.headers = append(b.headers, slices.Clone(pristine[i][:min(72, len(p))]))
		}
	}
	b.restore()
	return b
}

func (b *benchBatch) restore() {
	for i, k := range b.changed {
		copy(b.packets[k], b.headers[i])
	}
}

// run coalesces the batch and returns what it made of it.
func (b *benchBatch) run(c *encap.Coalescer) (made int) {
	for _, p := range b.packets {
		c.Add(p)
	}
	made = c.Len()
	for i := range made {
		c.Packet(i)
	}
	c.Reset()
	return made
}

// interleave deals n packets of size bytes to flows, round robin.
func interleave(s sample, flows, n, size int) []sample {
	all := make([]sample, 0, n)
	for i := range n {
		s.port, s.payload = byte(i%flows), size
		s.host = byte(i % flows >> 8)
		all = append(all, s)
		if i%flows == flows-1 {
			s = after(s)
		}
	}
	return all
}

func benchBatches() map[string]*benchBatch {
	mss := coalesceMTU - 52
	return map[string]*benchBatch{
		"TCP-1flow":      newBenchBatch(stream(tcp4, 45, mss)),
		"TCP-1flow-v6":   newBenchBatch(stream(tcp6, 45, mss-20)),
		"TCP-4flows":     newBenchBatch(interleave(tcp4, 4, 180, mss)),
		"TCP-16flows":    newBenchBatch(interleave(tcp4, 16, 180, mss)),
		"TCP-oversized":  newBenchBatch(stream(func() sample { s := tcp4; s.partial = true; return s }(), 1, 45*mss)),
		"TCP-acks":       newBenchBatch(interleave(tcp4, 4, 64, 0)),
		"UDP-64B-1flow":  newBenchBatch(stream(udp4, 128, 64)),
		"UDP-64B-random": newBenchBatch(interleave(udp4, 1024, 1024, 64)),
	}
}

func BenchmarkCoalescer(b *testing.B) {
	for name, batch := range benchBatches() {
		b.Run(name, func(b *testing.B) {
			c := encap.NewCoalescer(coalesceMTU)
			b.SetBytes(int64(batch.bytes))
			b.ReportAllocs()
			for b.Loop() {
				if batch.run(c) != batch.made {
					b.Fatal("coalesced otherwise")
				}
				batch.restore()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(batch.packets)), "ns/packet")
		})
		b.Run(name+"/verify-only", func(b *testing.B) {
			b.SetBytes(int64(batch.bytes))
			for b.Loop() {
				for _, p := range batch.packets {
					encap.TransportChecksum(p)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(batch.packets)), "ns/packet")
		})
	}
}
