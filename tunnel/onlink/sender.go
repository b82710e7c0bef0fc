package onlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/batch"
	"uvxlan/tunnel/internal/descriptor"
	"uvxlan/tunnel/internal/mmsg"
	"uvxlan/tunnel/internal/vnet"
)

// The direct route: a packet to a host of the same Ethernet leaves as it was
// read from the device, a superpacket whole, behind an Ethernet header to that
// host's MAC. It goes through a packet socket that takes a vnet header
// (PACKET_VNET_HDR, packet(7)), so the kernel or the NIC segments it and fills in
// checksums as it would for its own. What comes back arrives at the kernel.

// Neighbour is where frames to one on-link host go. It never changes.
type Neighbour struct {
	to             address
	header4        [encap.EthernetHeaderLen]byte
	header6        [encap.EthernetHeaderLen]byte
	index          int
	source, target encap.MAC
}

// address is a struct sockaddr_ll. Its protocol is left zero: the kernel
// reads it from the frame.
type address [unix.SizeofSockaddrLinklayer]byte

func newNeighbour(index int, source, target encap.MAC) *Neighbour {
	l := &Neighbour{index: index, source: source, target: target}
	binary.NativeEndian.PutUint16(l.to[:], unix.AF_PACKET)
	binary.NativeEndian.PutUint32(l.to[4:], uint32(index))
	l.to[11] = byte(copy(l.to[12:], target[:]))
	for header, kind := range map[*[encap.EthernetHeaderLen]byte]uint16{
		&l.header4: encap.EtherTypeIPv4, &l.header6: encap.EtherTypeIPv6,
	} {
		n := copy(header[:], target[:])
		n += copy(header[n:], source[:])
		binary.BigEndian.PutUint16(header[n:], kind)
	}
	return l
}

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

// maxPieces bounds the parts of a batch: those that a Coalescer may give,
// and a vnet and an Ethernet header each.
const maxPieces = 4 * MaxBatch

// sendPatience is how long a full socket buffer may hold up a worker in one batch;
// then what doesn't fit is dropped, as a full interface queue would.
const sendPatience = 5 * time.Millisecond

// MaxBatch is the most packets of a batch.
const MaxBatch = 64

// Sender is a worker's packet socket and its part of a batch. What add is given
// is borrowed until send.
//
// Small UDP datagrams, which a sender that doesn't know superpackets sends one
// by one, are joined: it is packets that cost time, on this host, on the next,
// and in a NIC that segments them itself.
type Sender struct {
	fd        int
	coalescer *encap.Coalescer // nil if the kernel takes no UDP superpackets
	patient   bool             // this batch may still wait for room
	count     int
	pieces    int
	frames    [MaxBatch]Frame // messages
	waiting   []Frame         // in the coalescer
	hops      []*Hop          // of everything in the batch
	vnets     [MaxBatch]vnet.Header
	headers   [MaxBatch]mmsg.Header
	iovs      [maxPieces]unix.Iovec
	whole     []byte // a message that is sent by VXLAN instead, in one piece
}

// Frame is a packet to an on-link host, and what it takes to send it by VXLAN
// instead.
type Frame struct {
	Hop     *Hop
	Via     *Neighbour // nil: by VXLAN
	Room    []byte     // the packet behind its encap.FrameHeaderLen, or a message's first part
	ECN     uint8
	Offload encap.Offload
	Tag     int // the caller's
	size    int // bytes of a message
}

// Sent is what a batch came to: packets that the kernel took, as they were
// added or joined, and packets that were dropped.
type Sent struct {
	Packets, Bytes, Dropped int
}

// NewSender makes a sender of a packet socket, which stays the caller's. With
// joinUDP the kernel takes UDP superpackets.
func NewSender(fd int, joinUDP bool, mtu encap.InnerMTU) *Sender {
	d := &Sender{fd: fd, waiting: make([]Frame, 0, MaxBatch), hops: make([]*Hop, 0, MaxBatch)}
	if joinUDP {
		d.coalescer = encap.NewCoalescer(mtu)
		d.coalescer.SetTCP(false)
	}
	return d
}

// Add puts a packet, which lies behind its encap.FrameHeaderLen, into the batch. A batch of
// the device has room. No flow is overtaken by its own packets: TCP never waits,
// and nothing but UDP is let past what waits.
func (d *Sender) Add(f Frame) {
	d.hops = append(d.hops, f.Hop)
	packet := f.Room[encap.FrameHeaderLen:]
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
	d.message(f, packet, nil)
}

// Holds tells whether packets to a host are in the batch.
func (d *Sender) Holds(h *Hop) bool { return slices.Contains(d.hops, h) }

// joinable tells whether a Coalescer finds out by itself what is left undone of
// a UDP packet. A checksum that lies deeper, in what a tunnel carries, it doesn't.
func joinable(o encap.Offload, transport int) bool {
	return o.GSO == encap.GSONone && (!o.NeedsChecksum || int(o.ChecksumStart) == transport)
}

// settle makes messages of what waits in the coalescer, whose superpackets stand
// in the order of their first packets.
func (d *Sender) flushCoalescer() {
	if len(d.waiting) == 0 {
		return
	}
	next := 0
	for i := range d.coalescer.Len() {
		p := d.coalescer.Packet(i)
		first := unsafe.SliceData(p.Parts[0])
		for unsafe.SliceData(d.waiting[next].Room[encap.FrameHeaderLen:]) != first {
			next++
		}
		f := d.waiting[next]
		f.Offload = p.Offload
		d.message(f, p.Parts[0], p.Parts[1:])
	}
	d.coalescer.Reset()
	d.waiting = d.waiting[:0]
}

// message appends a message: the packet of f, and more to follow it.
func (d *Sender) message(f Frame, packet []byte, more [][]byte) {
	i := d.count
	header := &f.Via.header4
	if packet[0]>>4 == 6 {
		header = &f.Via.header6
	}
	data := f.Room[encap.FrameHeaderLen-encap.EthernetHeaderLen:]
	copy(data, header[:])
	d.vnets[i].Set(framed(f.Offload, packet))
	first := d.pieces
	d.put(d.vnets[i][:])
	d.put(data)
	f.size = len(packet)
	for _, part := range more {
		d.put(part)
		f.size += len(part)
	}
	d.frames[i] = f
	h := &d.headers[i].Hdr
	h.Name, h.Namelen = &f.Via.to[0], uint32(len(f.Via.to))
	h.Iov = &d.iovs[first]
	h.SetIovlen(d.pieces - first)
	d.count++
}

func (d *Sender) put(b []byte) {
	d.iovs[d.pieces].Base = unsafe.SliceData(b)
	d.iovs[d.pieces].SetLen(len(b))
	d.pieces++
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

// Send passes the batch to the kernel, in one call unless something is refused,
// and forgets it. What a link takes no more is handed to divert, which is done
// with the memory when it returns, and so is all that follows on that link.
func (d *Sender) Send(divert func(*Frame)) (sent Sent) {
	d.flushCoalescer()
	d.patient = true
	for next := 0; next < d.count; {
		if d.frames[next].Via == nil {
			d.divert(next, divert)
			next++
			continue
		}
		n, err := mmsg.Do(unix.SYS_SENDMMSG, d.fd, d.headers[next:d.run(next)])
		for i := range d.frames[next : next+n] {
			sent.Packets++
			sent.Bytes += d.frames[next+i].size
		}
		next += n
		switch {
		case err == nil || d.waited(err):
		case congested(err):
			sent.Dropped++
			next++
		default:
			d.refuse(next, err)
		}
	}
	d.count, d.pieces, d.hops = 0, 0, d.hops[:0]
	return sent
}

// run is where the messages end that can be sent in one call from i on.
func (d *Sender) run(i int) int {
	for i < d.count && d.frames[i].Via != nil {
		i++
	}
	return i
}

// congested tells whether err is what would drop the message on any path.
// Any other error is the link's.
func congested(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM)
}

// refuse takes the link of message i from its host, and from that message and
// all that follow.
func (d *Sender) refuse(i int, err error) {
	refused := d.frames[i].Via
	d.frames[i].Hop.refuse(refused, err)
	for ; i < d.count; i++ {
		if d.frames[i].Via == refused {
			d.frames[i].Via = nil
		}
	}
}

// divert hands over message i in one piece.
func (d *Sender) divert(i int, divert func(*Frame)) {
	f := &d.frames[i]
	pieces := unsafe.Slice(d.headers[i].Hdr.Iov, d.headers[i].Hdr.Iovlen)
	if len(pieces) > 2 {
		d.whole = append(d.whole[:0], f.Room...)
		for _, p := range pieces[2:] {
			d.whole = append(d.whole, unsafe.Slice(p.Base, p.Len)...)
		}
		f.Room = d.whole
	}
	divert(f)
}

// waited tells whether err was a full buffer that has room again.
func (d *Sender) waited(err error) bool {
	if !d.patient || !errors.Is(err, unix.EAGAIN) {
		return false
	}
	d.patient = descriptor.Writable(d.fd, sendPatience)
	return d.patient
}
