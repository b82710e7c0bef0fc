package tunnel

import (
	"encoding/binary"

	"uvxlan/encap"
)

// vnetHeaderLen is the size of struct virtio_net_hdr, the kernel's default for
// IFF_VNET_HDR (Documentation/networking/tuntap.rst) and PACKET_VNET_HDR.
const vnetHeaderLen = 10

const vnetNeedsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM

// vnetHeader is struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size,
// csum_start, csum_offset, in native byte order.
type vnetHeader [vnetHeaderLen]byte

func (h *vnetHeader) offload() Offload {
	e := binary.NativeEndian
	return Offload{
		NeedsChecksum:  h[0]&vnetNeedsChecksum != 0,
		GSO:            encap.GSOType(h[1]),
		HeaderLen:      e.Uint16(h[2:]),
		SegmentSize:    e.Uint16(h[4:]),
		ChecksumStart:  e.Uint16(h[6:]),
		ChecksumOffset: e.Uint16(h[8:]),
	}
}

func (h *vnetHeader) set(o Offload) {
	e := binary.NativeEndian
	h[0] = 0
	if o.NeedsChecksum {
		h[0] = vnetNeedsChecksum
	}
	h[1] = byte(o.GSO)
	e.PutUint16(h[2:], o.HeaderLen)
	e.PutUint16(h[4:], o.SegmentSize)
	e.PutUint16(h[6:], o.ChecksumStart)
	e.PutUint16(h[8:], o.ChecksumOffset)
}
