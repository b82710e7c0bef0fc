// Package encap knows the bytes of the overlay: VXLAN frames (RFC 7348), the
// Ethernet, IP and transport headers inside them, Internet checksums, ECN at
// the tunnel's end, superpackets and the packets they stand for, and the few
// packets a router must answer itself (ARP, neighbour solicitation, ICMP
// errors).
//
// The package is pure. It does no I/O, starts no goroutine, logs nothing and,
// apart from the text forms of [MAC], allocates nothing. Views such as [IPv4]
// and [Frame.Payload] alias the caller's buffer and live as long as it does;
// functions that build a packet write it to the front of a caller-owned dst,
// return its length in bytes, and return 0 for "nothing to send". Only
// [Segmenter] and [Coalescer] keep what they are given, as their methods say;
// each is for one goroutine. Everything else may be called concurrently on
// distinct buffers.
//
// Multi-byte fields are taken and returned in host form; the bytes are in
// network order.
package encap
