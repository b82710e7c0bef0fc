package encap

import "encoding/binary"

const (
	// tableSize is the number of flows that are remembered, a power of two.
	tableSize = 1024
	// maxProbes bounds a search, so that flows chosen to collide cost no more
	// than others.
	maxProbes = 4
	// barrierCount is the number of barriers, a power of two.
	barrierCount = 64
)

// slot remembers a flow's latest superpacket. Two flows of one hash take turns
// in it, which costs them their superpackets but nothing else: all headers are
// compared before a packet joins.
type slot struct {
	hash  uint32
	batch uint16 // the slot is free unless this is the Coalescer's
	super uint16
}

// find returns the slot of the flow with that hash or, if none is found, the one
// to use for it.
func (c *Coalescer) find(hash uint32) (s *slot, found bool) {
	for i := range uint32(maxProbes) {
		s := &c.slots[(hash+i)%tableSize]
		if s.batch != c.batch {
			return s, false
		}
		if s.hash == hash {
			return s, true
		}
	}
	return &c.slots[hash%tableSize], false
}

// forgetFlows frees all slots and lifts all barriers.
func (c *Coalescer) forgetFlows() {
	c.barriers = [barrierCount]uint16{}
	c.batch++
	if c.batch == 0 {
		c.slots = [tableSize]slot{}
		c.batch = 1
	}
}

// flowOf hashes addresses and ports of a plain packet and tells which barrier
// its addresses belong to.
func flowOf(p []byte, l4 int) (hash uint32, barrier uint8) {
	h := hashAddresses(p)
	ports := binary.LittleEndian.Uint32(p[l4:])
	// TCP and UDP of the same ports are rare enough to share a slot.
	return uint32(mix(h^uint64(ports)) >> 32), uint8(h % barrierCount)
}

// hashAddresses hashes both addresses of p, at least a fixed IP header long.
func hashAddresses(p []byte) uint64 {
	if p[0]>>4 == 4 {
		return mix(hashSeed ^ binary.LittleEndian.Uint64(p[12:]))
	}
	h := (*[IPv6HeaderLen]byte)(p)
	src := mix(hashSeed^binary.LittleEndian.Uint64(h[8:])) ^ binary.LittleEndian.Uint64(h[16:])
	dst := mix(src) ^ binary.LittleEndian.Uint64(h[24:])
	return mix(mix(dst) ^ binary.LittleEndian.Uint64(h[32:]))
}

// bar closes all superpackets between the addresses of p, a packet such as a
// fragment that doesn't tell its flow; p must not be overtaken by what follows.
func (c *Coalescer) bar(p []byte) {
	c.barriers[hashAddresses(p)%barrierCount] = uint16(c.made)
}
