package encap

import "encoding/binary"

// Extension headers of IPv6 (RFC 8200 section 4, RFC 4302 section 2). ESP is
// not among them: what follows it is not readable.
const (
	protoHopByHop       = 0
	protoRouting        = 43
	protoFragment       = 44
	protoAuthentication = 51
	protoDestination    = 60
)

const (
	// maxExtensions bounds the walk: RFC 8200 section 4.1 orders seven.
	maxExtensions   = 8
	minExtensionLen = 8
)

// chain is a place in the chain of headers of an IPv6 packet and what the
// extension headers before it said.
type chain struct {
	proto    uint8 // of the header at offset
	offset   int   // from the start of the packet
	fragment bool  // the packet is a part of a larger one
	later    bool  // and not the first: no transport header inside
	routed   bool  // the destination is not the final one
}

// walk follows the chain to the first header that is no extension header.
func (p IPv6) walk() (c chain, ok bool) {
	c = chain{proto: p.NextHeader(), offset: IPv6HeaderLen}
	for range maxExtensions {
		if c.later || !isExtension(c.proto) {
			return c, true
		}
		if !c.step(p[c.offset:]) {
			return c, false
		}
	}
	return c, c.later || !isExtension(c.proto)
}

// step moves c behind the extension header at the front of ext.
func (c *chain) step(ext []byte) bool {
	if len(ext) < minExtensionLen {
		return false
	}
	n := (int(ext[1]) + 1) * 8
	switch c.proto {
	case protoRouting:
		c.routed = c.routed || ext[3] != 0
	case protoAuthentication:
		n = (int(ext[1]) + 2) * 4
	case protoFragment:
		n = minExtensionLen
		place := binary.BigEndian.Uint16(ext[2:])
		c.later = place>>3 != 0
		c.fragment = c.fragment || c.later || place&1 != 0
	}
	if n > len(ext) {
		return false
	}
	c.proto = ext[0]
	c.offset += n
	return true
}

func isExtension(proto uint8) bool {
	switch proto {
	case protoHopByHop, protoRouting, protoFragment, protoAuthentication, protoDestination:
		return true
	}
	return false
}
