package onlink

import (
	"encoding/binary"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/internal/vnet"
)

// The direct route: a packet to a host of the same Ethernet leaves as it was
// read from the device, a superpacket whole, behind an Ethernet header to that
// host's MAC. It goes through a packet socket that takes a vnet header
// (PACKET_VNET_HDR, packet(7)), so the kernel or the NIC segments it and fills in
// checksums as it would for its own. What comes back arrives at the kernel.

// Neighbour is where frames to one on-link host go. It never changes.
type Neighbour struct {
	index          int
	source, target encap.MAC

	to      *batch.Destination
	header4 [encap.EthernetHeaderLen]byte
	header6 [encap.EthernetHeaderLen]byte
}

func newNeighbour(index int, source, target encap.MAC) *Neighbour {
	l := &Neighbour{index: index, source: source, target: target, to: batch.NewLinkDestination(index, target)}
	for header, kind := range map[*[encap.EthernetHeaderLen]byte]uint16{
		&l.header4: encap.EtherTypeIPv4, &l.header6: encap.EtherTypeIPv6,
	} {
		n := copy(header[:], target[:])
		n += copy(header[n:], source[:])
		binary.BigEndian.PutUint16(header[n:], kind)
	}
	return l
}

// Link is where frames leave, by the interface's index, and their two addresses.
func (l *Neighbour) Link() (index int, source, target encap.MAC) { return l.index, l.source, l.target }

// openSocket opens a packet socket that only sends, in the calling thread's
// network namespace. It needs CAP_NET_RAW.
func openSocket() (int, error) {
	// Protocol 0 receives nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open packet socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("set PACKET_VNET_HDR: %w", err)
	}
	_ = batch.SetSendBuffer(fd)
	return fd, nil
}

// MaxBatch is the most packets of a batch.
const MaxBatch = 64

// maxRoutes is how many routes a Sender remembers at most once a batch is sent.
const maxRoutes = 256

// Sender is a worker's packet socket and its batch. What Add is given is borrowed
// until Flush.
//
// Small UDP datagrams, which a sender that doesn't know superpackets sends one
// by one, are joined: it is packets that cost time, on this host, on the next,
// and in a NIC that segments them itself.
type Sender struct {
	batch     *batch.Batch
	coalescer *encap.Coalescer // nil if the kernel takes no UDP superpackets
	waiting   []Frame          // in the coalescer
	hops      []*Hop           // of everything in the batch
	routes    map[*batch.Destination]route
	vnets     [MaxBatch]vnet.Header
	used      int    // of vnets
	whole     []byte // a message that the kernel refused
}

// route is how packets to a host were sent.
type route struct {
	hop *Hop
	via *Neighbour
}

// Frame is a packet to an on-link host.
type Frame struct {
	Hop *Hop
	Via *Neighbour
	// Of counts for the packet's peer.
	Of *batch.Counters
	// Buffer is the packet behind encap.FrameHeaderLen bytes that may be written to.
	Buffer  []byte
	Offload encap.Offload
}

// NewSender makes a sender of a packet socket, which stays the caller's. With
// joinUDP the kernel takes UDP superpackets.
func NewSender(fd int, joinUDP bool, mtu encap.InnerMTU) (*Sender, error) {
	b, err := batch.NewPacket(fd)
	if err != nil {
		return nil, err
	}
	d := &Sender{
		batch: b, waiting: make([]Frame, 0, MaxBatch), hops: make([]*Hop, 0, MaxBatch),
		routes: map[*batch.Destination]route{},
	}
	if joinUDP {
		d.coalescer = encap.NewCoalescer(mtu)
		d.coalescer.SetTCP(false)
	}
	return d, nil
}

// Close gives back what NewSender took. The socket stays.
func (d *Sender) Close() error { return d.batch.Close() }

// Add puts a packet into the batch, which takes up to MaxBatch. No flow is overtaken
// by its own packets: TCP never waits, and nothing but UDP is let past what waits.
func (d *Sender) Add(f Frame) {
	d.hops = append(d.hops, f.Hop)
	packet := f.Buffer[encap.FrameHeaderLen:]
	kind, transport := packet[9], int(packet[0]&15)*4
	if packet[0]>>4 == 6 {
		kind, transport = packet[6], encap.IPv6HeaderLen
	}
	switch {
	case kind == encap.ProtoUDP && d.coalescer != nil && joinable(f.Offload, transport):
		d.coalescer.Add(packet) // always has room for a batch
		d.waiting = append(d.waiting, f)
		return
	case kind != encap.ProtoTCP:
		d.flushCoalescer()
	}
	d.message(f, packet, nil, f.Offload.Segments(packet))
}

// Holds tells whether packets to a host are in the batch.
func (d *Sender) Holds(h *Hop) bool { return slices.Contains(d.hops, h) }

// joinable tells whether a Coalescer finds out by itself what is left undone of
// a UDP packet. A checksum that lies deeper, in what a tunnel carries, it doesn't.
func joinable(o encap.Offload, transport int) bool {
	return o.GSO == encap.GSONone && (!o.NeedsChecksum || int(o.ChecksumStart) == transport)
}

// flushCoalescer makes messages of what waits in the coalescer, whose superpackets
// stand in the order of their first packets.
func (d *Sender) flushCoalescer() {
	if len(d.waiting) == 0 {
		return
	}
	next := 0
	for i := range d.coalescer.Len() {
		p := d.coalescer.Packet(i)
		first := unsafe.SliceData(p.Parts[0])
		for unsafe.SliceData(d.waiting[next].Buffer[encap.FrameHeaderLen:]) != first {
			next++
		}
		f := d.waiting[next]
		f.Offload = p.Offload
		d.message(f, p.Parts[0], p.Parts[1:], p.Packets)
	}
	d.coalescer.Reset()
	d.waiting = d.waiting[:0]
}

// message makes a message of a frame's packet and what follows it, which are so many
// packets on the wire.
func (d *Sender) message(f Frame, packet []byte, more [][]byte, packets int) {
	bytes := len(packet)
	for _, part := range more {
		bytes += len(part)
	}
	if !d.batch.Whole(f.Via.to, f.Of, packets, bytes) {
		return
	}
	header := &f.Via.header4
	if packet[0]>>4 == 6 {
		header = &f.Via.header6
	}
	data := f.Buffer[encap.FrameHeaderLen-encap.EthernetHeaderLen:]
	copy(data, header[:])
	v := &d.vnets[d.used]
	d.used++
	v.Set(framed(f.Offload, packet))
	d.batch.Part(v[:])
	d.batch.Part(data)
	for _, part := range more {
		d.batch.Part(part)
	}
	if d.routes[f.Via.to].hop != f.Hop {
		d.routes[f.Via.to] = route{f.Hop, f.Via}
	}
}

// framed is a packet's offload once an Ethernet header stands before it. The
// header length of a forwarded packet may be any; the kernel copies that much
// into a block of its own.
func framed(o encap.Offload, packet []byte) encap.Offload {
	o.HeaderLen = 0
	if o.GSO != encap.GSONone {
		o.HeaderLen = uint16(encap.EthernetHeaderLen + o.HeadersEnd(packet))
	}
	if o.NeedsChecksum {
		o.ChecksumStart += encap.EthernetHeaderLen
	}
	return o
}

// unframed is the opposite of framed, but for the header's length.
func unframed(o encap.Offload) encap.Offload {
	o.HeaderLen = 0
	if o.NeedsChecksum {
		o.ChecksumStart -= encap.EthernetHeaderLen
	}
	return o
}

// Flush passes the batch to the kernel and forgets it; now is [batch.Batch.Flush]'s. A
// packet that its link takes no more is handed to divert, behind
// encap.FrameHeaderLen bytes that may be written to, and so is all that follows on that
// link; divert is done with the memory when it returns.
func (d *Sender) Flush(now int64, divert func(buffer []byte, o encap.Offload)) batch.Result {
	d.flushCoalescer()
	r := d.batch.Flush(now)
	d.divert(r, divert)
	d.hops, d.used = d.hops[:0], 0
	if len(d.routes) > maxRoutes && !d.batch.Blocked() {
		clear(d.routes)
	}
	return r
}

// Blocked tells whether packets wait for room in the socket's send buffer, so that
// Retry is to be called.
func (d *Sender) Blocked() bool { return d.batch.Blocked() }

// AppendBlocked appends the socket if it is blocked: it polls writable once it has
// room.
func (d *Sender) AppendBlocked(fds []int) []int { return d.batch.AppendBlocked(fds) }

// Retry sends what waits, if there is room. The rest is as with Flush.
func (d *Sender) Retry(now int64, divert func(buffer []byte, o encap.Offload)) batch.Result {
	r := d.batch.Retry(now)
	d.divert(r, divert)
	return r
}

// divert takes the links that refused messages from their hosts, and hands over the
// messages.
func (d *Sender) divert(r batch.Result, divert func([]byte, encap.Offload)) {
	const packet = vnet.HeaderLen + encap.EthernetHeaderLen
	for i := range r.Returned {
		message, to, reason := d.batch.Returned(i, d.whole[:0])
		d.whole = message
		if used, ok := d.routes[to]; ok {
			used.hop.refuse(used.via, reason)
		}
		header := vnet.Header(message)
		divert(message[packet-encap.FrameHeaderLen:], unframed(header.Offload()))
	}
}
