package tunnel

import (
	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/device"
)

// segmentWriter writes superpackets segment by segment, and unfilled checksums filled
// in: for kernels that refuse some superpackets (Linux 6.6.44 and its neighbours) or
// take none of UDP, and for devices that take packets only as they are to be.
type segmentWriter struct {
	segmenter encap.Segmenter
	packet    []byte
	header    [encap.MaxHeaderLen]byte
	parts     [2][]byte
}

func (s *segmentWriter) write(q device.Queue, o encap.Offload, parts [][]byte) error {
	packet := parts[0]
	if len(parts) > 1 {
		s.packet = s.packet[:0]
		for _, p := range parts {
			s.packet = append(s.packet, p...)
		}
		packet = s.packet
	}
	if o.GSO == encap.GSONone {
		if !encap.FillChecksum(packet, o) {
			return unix.EINVAL
		}
		s.parts = [2][]byte{packet}
		return q.Write(encap.Offload{}, s.parts[:1])
	}
	if err := s.segmenter.Start(packet, o); err != nil {
		return err
	}
	for {
		n, payload := s.segmenter.Next(s.header[:])
		if n == 0 {
			return nil
		}
		s.parts = [2][]byte{s.header[:n], payload}
		if err := q.Write(encap.Offload{}, s.parts[:]); err != nil {
			return err
		}
	}
}
