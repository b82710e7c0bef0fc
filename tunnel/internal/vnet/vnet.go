// Package vnet is the header by which a TUN device and a packet socket tell what
// a packet's sender left undone.
package vnet

import (
	"encoding/binary"

	"uvxlan/encap"
)

// HeaderLen is the size of struct virtio_net_hdr, the kernel's default for
// IFF_VNET_HDR (Documentation/networking/tuntap.rst) and PACKET_VNET_HDR.
const HeaderLen = 10

const needsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM

// Header is struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size,
// csum_start, csum_offset, in native byte order.
type Header [HeaderLen]byte

// Offload is what the header says.
func (h *Header) Offload() encap.Offload {
	e := binary.NativeEndian
	return encap.Offload{
		NeedsChecksum:  h[0]&needsChecksum != 0,
		GSO:            encap.GSOType(h[1]),
		HeaderLen:      e.Uint16(h[2:]),
		SegmentSize:    e.Uint16(h[4:]),
		ChecksumStart:  e.Uint16(h[6:]),
		ChecksumOffset: e.Uint16(h[8:]),
	}
}

// Set makes the header say o.
func (h *Header) Set(o encap.Offload) {
	e := binary.NativeEndian
	h[0] = 0
	if o.NeedsChecksum {
		h[0] = needsChecksum
	}
	h[1] = byte(o.GSO)
	e.PutUint16(h[2:], o.HeaderLen)
	e.PutUint16(h[4:], o.SegmentSize)
	e.PutUint16(h[6:], o.ChecksumStart)
	e.PutUint16(h[8:], o.ChecksumOffset)
}
