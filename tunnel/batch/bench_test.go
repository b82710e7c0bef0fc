package batch

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/mmsg"
)

// benchmark is a batch over 16 sockets. Its messages go to a receiver that drops
// them, or without the kernel nowhere.
func benchmark(b *testing.B, kernel bool) (*Batch, *Destination) {
	s, to, conn := loopback(b, 16, true, false)
	_ = conn.SetReadBuffer(1)
	if !kernel {
		s.sendmmsg = func(_ int, msgs []mmsg.Header) (int, unix.Errno) { return len(msgs), 0 }
	}
	return s, to
}

func eachWay(b *testing.B, f func(b *testing.B, s *Batch, to *Destination)) {
	for _, kernel := range []bool{false, true} {
		b.Run(fmt.Sprintf("kernel=%t", kernel), func(b *testing.B) {
			s, to := benchmark(b, kernel)
			f(b, s, to)
		})
	}
}

// BenchmarkSmall sends 64 packets of 64 bytes, of flows that alternate between 16
// sockets.
func BenchmarkSmall(b *testing.B) {
	eachWay(b, func(b *testing.B, s *Batch, to *Destination) {
		var of Counters
		arena := make([]byte, 64*114)
		b.ReportAllocs()
		b.SetBytes(64 * 64)
		for b.Loop() {
			for i := range 64 {
				if s.Begin(to, &of, uint32(i), 0, 1, 92) {
					s.Append(arena[i*114:][:114:114], nil)
				}
			}
			s.Flush(1)
		}
	})
}

// BenchmarkSuperpacket sends 8 superpackets of 44 datagrams, each of a header
// block and payload that stays where it is.
func BenchmarkSuperpacket(b *testing.B) {
	const segments, header, payload = 44, 74, 1398
	eachWay(b, func(b *testing.B, s *Batch, to *Destination) {
		var of Counters
		arena, headers := make([]byte, 8*segments*payload), make([]byte, 8*segments*header)
		b.ReportAllocs()
		b.SetBytes(int64(len(arena)))
		for b.Loop() {
			for i := range 8 {
				if !s.Begin(to, &of, uint32(i), 0, segments, segments*payload) {
					continue
				}
				for j := range segments {
					n := i*segments + j
					s.Append(headers[n*header:][:header:header], arena[n*payload:][:payload:payload])
				}
			}
			s.Flush(1)
		}
	})
}
