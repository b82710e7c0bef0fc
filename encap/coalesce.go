package encap

const (
	// maxBatch is the number of packets that a Coalescer takes between two
	// Resets, enough for 32 receive buffers of 64 datagrams each.
	maxBatch = 2048
	// maxParts bounds a superpacket to what a kernel takes of datagrams in one
	// (UDP_MAX_SEGMENTS, 128 since Linux 6.9), well below writev's 1024.
	maxParts = 128
	// maxTotal is the length of the longest superpacket, that of the largest
	// IPv4 packet. IPv6 could hold 40 bytes more.
	maxTotal = 0xffff
)

// Coalescer gathers the packets of one receive batch into superpackets, each to
// be written to a TUN device in one call: the reverse of [Segmenter], which,
// like a kernel, turns a superpacket back into the packets it was made of.
//
// TCP segments join when they continue each other and differ in nothing but
// sequence number, length, checksums, IPv4 ID and a last PSH; UDP datagrams when
// they are of one size, with a shorter last one. All else, and everything whose
// checksum is wrong or missing, passes alone and untouched. Packets of a flow
// stay in order; a superpacket takes the place of its first packet.
//
// A checksum that the sender's kernel left unfilled is finished by the device's
// (Offload.NeedsChecksum). A kernel on this machine also sends its superpackets
// unsplit. Those of UDP come with the size of their datagrams
// ([Coalescer.AddSuperpacket]). Those of TCP don't; their segments are to fill the
// packets that the flow may have ([Coalescer.SetLimit]).
//
// IPv4 IDs of a superpacket count up, so that segmentation restores them. Where
// DF makes the ID meaningless (RFC 6864 section 4.1) it may also stay the same,
// for that is what Linux sends from unconnected sockets; such IDs count up after
// segmentation. Checksums come back as senders compute them: the TCP checksum
// 0xffff, which none does, as its equal 0.
//
// A Coalescer is for one goroutine.
type Coalescer struct {
	mtu      int
	limit    func(packet []byte) int // nil if the MTU is the only one
	tcp, udp bool
	taken    int // packets since Reset
	made     int // superpackets, lone packets included
	last     int // the superpacket that was added to last
	flat     int // used of parts
	batch    uint16
	supers   [maxBatch]super
	packets  [maxBatch][]byte // payloads of all but a superpacket's first packet
	next     [maxBatch]uint16 // the packet that follows in the same superpacket
	parts    [maxBatch][]byte // of finished superpackets
	slots    [tableSize]slot
	barriers [barrierCount]uint16
}

// Coalesced is a packet to be written: a superpacket or a lone packet.
type Coalesced struct {
	Offload Offload
	// Parts are the packet's bytes in order; the first holds all headers.
	Parts [][]byte
	// Packets is the number of packets that were added to it, Len its length in
	// bytes.
	Packets, Len int
}

// Segments is how many packets p stands for: those that were added to it, an
// unsplit superpacket counted by its segments.
func (p *Coalesced) Segments() int {
	payload, size := p.Len-int(p.Offload.HeaderLen), int(p.Offload.SegmentSize)
	if size == 0 || payload <= 0 {
		return p.Packets
	}
	return (payload + size - 1) / size
}

// NewCoalescer returns an empty Coalescer for an inner network of the given
// MTU. It has all the memory it will ever use, some 250 KiB.
func NewCoalescer(mtu InnerMTU) *Coalescer {
	return &Coalescer{mtu: int(mtu), tcp: true, udp: true, batch: 1}
}

// SetTCP tells whether TCP segments are to be joined, which is the default. What
// comes as a superpacket stays one all the same.
func (c *Coalescer) SetTCP(on bool) { c.tcp = on }

// SetUDP tells whether UDP datagrams are to be joined, which is the default.
// Kernels before Linux 6.2 take no UDP superpackets from a TUN device. What comes
// as a superpacket stays one all the same.
func (c *Coalescer) SetUDP(on bool) { c.udp = on }

// SetLimit sets a function that tells the length in bytes of the longest packet
// that may be made for a packet's flow; 0 or more than the MTU means the MTU. It
// is asked about TCP packets only, those that may be unsplit superpackets: longer
// than the MTU or with an unfilled checksum. They are cut by the answer.
func (c *Coalescer) SetLimit(limit func(packet []byte) int) { c.limit = limit }

// Add takes a whole IP packet, as [ParseIPv4] or [ParseIPv6] return it. It is
// borrowed until Reset and its headers may be rewritten. Add returns how many
// packets it stands for: 1, or an unsplit superpacket's segments. It returns 0,
// and has taken nothing, when the batch is full: write what is there, Reset, and
// add the packet again.
func (c *Coalescer) Add(packet []byte) (segments int) { return c.AddSuperpacket(packet, 0) }

// AddSuperpacket is Add for a packet that may be an unsplit superpacket of UDP,
// each of whose datagrams but the last has size bytes of payload. It joins no
// other.
func (c *Coalescer) AddSuperpacket(packet []byte, size int) (segments int) {
	if c.taken >= maxBatch {
		return 0
	}
	d := candidate{size: size}
	d.read(packet, c.mtu)
	if d.divisible && (d.state == ChecksumPartial || len(packet) > c.mtu) {
		c.divide(&d)
	}
	if !d.fits || !c.wants(d.tcp) {
		c.pass(&d)
	} else if !c.join(c.last, &d) {
		c.place(&d)
	}
	return d.segments()
}

// divide makes d a superpacket if it is longer than a packet of TCP may be.
func (c *Coalescer) divide(d *candidate) {
	limit := c.mtu
	if c.limit != nil {
		if n := c.limit(d.packet); n > 0 {
			limit = min(limit, n)
		}
	}
	switch {
	case len(d.packet) <= limit:
	case d.headers < limit:
		d.segment = limit - d.headers
	default:
		d.fits = false
	}
}

func (c *Coalescer) wants(tcp bool) bool { return tcp && c.tcp || !tcp && c.udp }

// pass adds a packet that stands alone. It ends the superpacket that its flow
// has open, so that nothing behind it gets ahead of it.
func (c *Coalescer) pass(d *candidate) {
	switch {
	case d.plain:
		hash, _ := flowOf(d.packet, d.l4)
		if s, found := c.find(hash); found {
			c.supers[s.super].open = false
		}
	case d.stray:
		c.bar(d.packet)
	}
	c.add(d)
}

// place adds a packet to its flow's superpacket or starts a new one.
func (c *Coalescer) place(d *candidate) {
	hash, barrier := flowOf(d.packet, d.l4)
	s, found := c.find(hash)
	if found && c.join(int(s.super), d) {
		c.last = int(s.super)
		return
	}
	// Without its slot, and no longer the last, what was there is closed.
	i := c.add(d)
	*s = slot{hash: hash, batch: c.batch, super: uint16(i)}
	o := &c.supers[i]
	o.start(d)
	o.barrier = barrier
	c.last = i
}

// add makes the next packet to write from d alone.
func (c *Coalescer) add(d *candidate) int {
	i := c.made
	c.supers[i] = super{
		head: d.packet, total: len(d.packet), count: 1,
		l4: uint16(d.l4), headers: uint16(d.headers), field: uint8(d.field),
		partial: d.state == ChecksumPartial,
	}
	if d.segment > 0 {
		c.supers[i].size = uint16(d.segment)
	}
	c.made++
	c.taken++
	return i
}

// Len returns the number of packets to write.
func (c *Coalescer) Len() int { return c.made }

// Packet finishes packet i of Len and returns it; writing them in order of i
// keeps every flow in order. Nothing can be added to it afterwards. The result
// is valid until Reset. An i out of range returns a packet without parts.
func (c *Coalescer) Packet(i int) Coalesced {
	if i < 0 || i >= c.made {
		return Coalesced{}
	}
	o := &c.supers[i]
	if !o.finished {
		o.finish()
		c.gather(o)
	}
	first := int(o.flat)
	end := first + int(o.count)
	return Coalesced{
		Offload: o.offload, Parts: c.parts[first:end:end],
		Packets: int(o.count), Len: o.total,
	}
}

// gather lists the parts of o one behind the other.
func (c *Coalescer) gather(o *super) {
	o.flat = uint16(c.flat)
	parts := c.parts[c.flat:][:o.count]
	parts[0] = o.head
	k := o.first
	for j := range parts[1:] {
		parts[1+j] = c.packets[k%maxBatch]
		k = c.next[k%maxBatch]
	}
	c.flat += len(parts)
}

// Reset forgets all packets and gives them back to the caller.
func (c *Coalescer) Reset() {
	c.taken, c.made, c.last, c.flat = 0, 0, 0, 0
	c.supers[0].open = false
	c.forgetFlows()
}
