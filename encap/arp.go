package encap

import (
	"encoding/binary"
	"net/netip"
)

// ARPLen is the length of an ARP packet for IPv4 over Ethernet, in bytes.
const ARPLen = 28

// The first eight bytes of such a packet (RFC 826): hardware type Ethernet,
// protocol IPv4, address lengths 6 and 4, operation.
const (
	arpRequestHead = 0x0001_0800_06_04_0001
	arpReplyHead   = 0x0001_0800_06_04_0002
)

// ARPReply answers request, an Ethernet payload, if it asks over IPv4 for
// ours, and returns ARPLen, the number of bytes written to dst. It returns 0
// for any other packet and for a dst shorter than ARPLen. dst may be request.
//
// A probe (RFC 5227 section 1.1, sender 0.0.0.0) is answered, or the prober
// would take our address. An announcement of our address by someone else
// (sender and target both ours) isn't: that is a conflict, not a question.
func ARPReply(dst, request []byte, ours netip.Addr, mac MAC) (n int) {
	if len(dst) < ARPLen || !isARPRequest(request) || !ours.Is4() {
		return 0
	}
	address := ours.As4()
	sender, senderIP, target := ARPSender(request), [4]byte(request[14:18]), [4]byte(request[24:28])
	if target != address || senderIP == address || sender.IsGroup() {
		return 0
	}
	binary.BigEndian.PutUint64(dst, arpReplyHead)
	copy(dst[8:14], mac[:])
	copy(dst[14:18], address[:])
	copy(dst[18:24], sender[:])
	copy(dst[24:28], senderIP[:])
	return ARPLen
}

// ARPSender returns the sender's hardware address of an IPv4-over-Ethernet
// request, where the Ethernet frame of the reply goes; the zero MAC for any
// other packet. Call it before ARPReply if dst is the request.
func ARPSender(request []byte) MAC {
	if !isARPRequest(request) {
		return MAC{}
	}
	return MAC(request[8:14])
}

func isARPRequest(b []byte) bool {
	return len(b) >= ARPLen && binary.BigEndian.Uint64(b) == arpRequestHead
}
