package encap

import "encoding/binary"

// The VXLAN header, RFC 7348 section 5:
//
//	 0                   1                   2                   3
//	 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|R|R|R|R|I|R|R|R|                   Reserved                    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//	|        VXLAN Network Identifier (VNI)         |   Reserved    |
//	+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//
// The inner Ethernet header follows: destination (6), source (6), type (2).

// Header lengths in bytes.
const (
	VXLANHeaderLen    = 8
	EthernetHeaderLen = 14
	FrameHeaderLen    = VXLANHeaderLen + EthernetHeaderLen // what precedes the inner packet
)

// EtherTypes of the payloads that the overlay carries (IANA, IEEE 802 numbers).
const (
	EtherTypeIPv4 uint16 = 0x0800
	EtherTypeARP  uint16 = 0x0806
	EtherTypeIPv6 uint16 = 0x86dd
)

const flagVNI = 0x08 // the I flag: the VNI field is valid

// VNI is a VXLAN network identifier, 24 bits.
type VNI uint32

// Valid reports whether v fits its 24 bits.
func (v VNI) Valid() bool { return v < 1<<24 }

// FrameHeader is all that precedes the inner packet in a UDP datagram, ready
// to be copied in front of it.
type FrameHeader [FrameHeaderLen]byte

// MakeFrameHeader returns the header of a frame from src to dst in network
// vni. The caller ensures vni.Valid(); bits above 24 are lost.
func MakeFrameHeader(vni VNI, dst, src MAC, etherType uint16) FrameHeader {
	var h FrameHeader
	h[0] = flagVNI
	binary.BigEndian.PutUint32(h[4:], uint32(vni)<<8)
	copy(h[8:], dst[:])
	copy(h[14:], src[:])
	binary.BigEndian.PutUint16(h[20:], etherType)
	return h
}

// Frame is a decoded VXLAN frame.
type Frame struct {
	HasVNI    bool   // the I flag; a frame without it is to be dropped
	VNI       VNI    // zero unless HasVNI
	Dst, Src  MAC    // of the inner Ethernet header
	EtherType uint16 // of Payload; an 802.1Q tag is left for the caller to refuse
	Payload   []byte // what follows the Ethernet header; aliases the input
}

// Decode overwrites every field of f from b, the payload of one UDP datagram.
// Reserved bits are ignored, as RFC 7348 section 5 asks of receivers. The only
// error is ErrShort, which leaves f zero.
func (f *Frame) Decode(b []byte) error {
	if len(b) < FrameHeaderLen {
		*f = Frame{}
		return ErrShort
	}
	f.HasVNI = b[0]&flagVNI != 0
	f.VNI = 0
	if f.HasVNI {
		f.VNI = VNI(binary.BigEndian.Uint32(b[4:]) >> 8)
	}
	f.Dst = MAC(b[8:14])
	f.Src = MAC(b[14:20])
	f.EtherType = binary.BigEndian.Uint16(b[20:])
	f.Payload = b[FrameHeaderLen:]
	return nil
}
