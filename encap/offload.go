package encap

// GSOType says how a superpacket is to be segmented; the values are those of
// struct virtio_net_hdr (virtio 1.3, section 5.1.6).
type GSOType uint8

// The kinds of superpackets.
const (
	GSONone  GSOType = 0
	GSOTCPv4 GSOType = 1
	GSOTCPv6 GSOType = 4
	GSOUDP   GSOType = 5
	// GSOECN is set beside a TCP type when the superpacket carries CWR.
	GSOECN GSOType = 0x80
)

// Offload is what a packet's sender left to whoever passes the packet on:
// the transport checksum, segmentation or both. Its zero value is a complete
// packet. Offsets count in bytes from the start of the IP header.
type Offload struct {
	// NeedsChecksum tells that the 16 bits at ChecksumStart+ChecksumOffset hold
	// the pseudo-header's sum only; the checksum covers ChecksumStart onwards.
	NeedsChecksum  bool
	ChecksumStart  uint16
	ChecksumOffset uint16
	// GSO, unless GSONone, asks for segments of SegmentSize bytes of payload
	// behind HeaderLen bytes of headers.
	GSO         GSOType
	SegmentSize uint16
	HeaderLen   uint16
}

// HeadersEnd is where a superpacket's payload begins, in bytes from the start
// of packet, by its transport header. HeaderLen says the same only of packets
// that this host's own stack made.
func (o Offload) HeadersEnd(packet []byte) int {
	const dataOffset = 12 // in the TCP header, RFC 9293 section 3.1
	start := int(o.ChecksumStart)
	switch {
	case o.GSO == GSOUDP:
		return min(start+udpHeaderLen, len(packet))
	case start+dataOffset < len(packet):
		return min(start+int(packet[start+dataOffset]>>4)*4, len(packet))
	}
	return len(packet)
}

// Segments is how many packets a superpacket stands for, 1 for any other packet.
func (o Offload) Segments(packet []byte) int {
	if o.GSO == GSONone || o.SegmentSize == 0 {
		return 1
	}
	size := int(o.SegmentSize)
	return max((len(packet)-o.HeadersEnd(packet)+size-1)/size, 1)
}
