package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/vnet"
)

// The direct route: a packet to a host of the same Ethernet leaves as it was
// read from the device, a superpacket whole, behind an Ethernet header to that
// host's MAC. It goes through a packet socket that takes a vnet header
// (PACKET_VNET_HDR, packet(7)), so the kernel or the NIC segments it and fills in
// checksums as it would for its own. What comes back arrives at the kernel.

// neighbour is where frames to one on-link host go. It never changes.
type neighbour struct {
	to             neighbourAddress
	header4        [encap.EthernetHeaderLen]byte
	header6        [encap.EthernetHeaderLen]byte
	index          int
	source, target encap.MAC
}

// neighbourAddress is a struct sockaddr_ll. Its protocol is left zero: the kernel
// reads it from the frame.
type neighbourAddress [unix.SizeofSockaddrLinklayer]byte

func newNeighbour(index int, source, target encap.MAC) *neighbour {
	l := &neighbour{index: index, source: source, target: target}
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

// openDirect opens a packet socket that only sends, in the calling thread's
// network namespace. It needs CAP_NET_RAW.
func openDirect() (int, error) {
	// Protocol 0 receives nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open packet socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("set PACKET_VNET_HDR: %w", err)
	}
	growBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	return fd, nil
}

// maxDirectPieces bounds the parts of a batch: those that a Coalescer may give,
// and a vnet and an Ethernet header each.
const maxDirectPieces = 4 * txBatch

// direct is a worker's packet socket and its part of a batch. What add is given
// is borrowed until send.
//
// Small UDP datagrams, which a sender that doesn't know superpackets sends one
// by one, are joined: it is packets that cost time, on this host, on the next,
// and in a NIC that segments them itself.
type direct struct {
	fd        int
	coalescer *encap.Coalescer // nil if the kernel takes no UDP superpackets
	patient   bool             // this batch may still wait for room
	count     int
	pieces    int
	frames    [txBatch]frame // messages
	waiting   []frame        // in the coalescer
	hops      []*hop         // of everything in the batch
	vnets     [txBatch]vnet.Header
	headers   [txBatch]mmsghdr
	iovs      [maxDirectPieces]unix.Iovec
	whole     []byte // a message that is sent by VXLAN instead, in one piece
}

// frame is a packet on the direct route, and what it takes to send it by VXLAN
// instead.
type frame struct {
	peer    *entry
	link    *neighbour // nil: by VXLAN
	room    []byte     // the packet behind its headroom, or a message's first part
	ecn     uint8
	offload encap.Offload
	size    int // bytes of a message
}

func newDirect(fd int, joinUDP bool, mtu encap.InnerMTU) *direct {
	d := &direct{fd: fd, waiting: make([]frame, 0, txBatch), hops: make([]*hop, 0, txBatch)}
	if joinUDP {
		d.coalescer = encap.NewCoalescer(mtu)
		d.coalescer.SetTCP(false)
	}
	return d
}

// add puts a packet, which lies behind its headroom, into the batch. A batch of
// the device has room. No flow is overtaken by its own packets: TCP never waits,
// and nothing but UDP is let past what waits.
func (d *direct) add(f frame) {
	d.hops = append(d.hops, f.peer.hop)
	packet := f.room[headroom:]
	kind, transport := packet[9], int(packet[0]&15)*4
	if packet[0]>>4 == 6 {
		kind, transport = packet[6], encap.IPv6HeaderLen
	}
	switch {
	case kind == encap.ProtoUDP && d.coalescer != nil && joinable(f.offload, transport):
		d.coalescer.Add(packet) // always has room for a batch
		d.waiting = append(d.waiting, f)
		return
	case kind != encap.ProtoTCP:
		d.settle()
	}
	d.message(f, packet, nil)
}

// holds tells whether packets to a host are in the batch.
func (d *direct) holds(h *hop) bool { return slices.Contains(d.hops, h) }

// joinable tells whether a Coalescer finds out by itself what is left undone of
// a UDP packet. A checksum that lies deeper, in what a tunnel carries, it doesn't.
func joinable(o encap.Offload, transport int) bool {
	return o.GSO == encap.GSONone && (!o.NeedsChecksum || int(o.ChecksumStart) == transport)
}

// settle makes messages of what waits in the coalescer, whose superpackets stand
// in the order of their first packets.
func (d *direct) settle() {
	if len(d.waiting) == 0 {
		return
	}
	next := 0
	for i := range d.coalescer.Len() {
		p := d.coalescer.Packet(i)
		first := unsafe.SliceData(p.Parts[0])
		for unsafe.SliceData(d.waiting[next].room[headroom:]) != first {
			next++
		}
		f := d.waiting[next]
		f.offload = p.Offload
		d.message(f, p.Parts[0], p.Parts[1:])
	}
	d.coalescer.Reset()
	d.waiting = d.waiting[:0]
}

// message appends a message: the packet of f, and more to follow it.
func (d *direct) message(f frame, packet []byte, more [][]byte) {
	i := d.count
	header := &f.link.header4
	if packet[0]>>4 == 6 {
		header = &f.link.header6
	}
	data := f.room[headroom-encap.EthernetHeaderLen:]
	copy(data, header[:])
	d.vnets[i].Set(framed(f.offload, packet))
	first := d.pieces
	d.put(d.vnets[i][:])
	d.put(data)
	f.size = len(packet)
	for _, part := range more {
		d.put(part)
		f.size += len(part)
	}
	d.frames[i] = f
	h := &d.headers[i].hdr
	h.Name, h.Namelen = &f.link.to[0], uint32(len(f.link.to))
	h.Iov = &d.iovs[first]
	h.SetIovlen(d.pieces - first)
	d.count++
}

func (d *direct) put(b []byte) {
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

// send passes the batch to the kernel, in one call unless something is refused,
// and forgets it. What a link takes no more is handed to divert, which is done
// with the memory when it returns, and so is all that follows on that link.
func (d *direct) send(t *tally, divert func(*frame)) {
	d.settle()
	d.patient = true
	for next := 0; next < d.count; {
		if d.frames[next].link == nil {
			d.divert(next, divert)
			next++
			continue
		}
		n, err := mmsg(unix.SYS_SENDMMSG, d.fd, d.headers[next:d.run(next)])
		for i := range d.frames[next : next+n] {
			t.direct++
			t.packets++
			t.bytes += uint64(d.frames[next+i].size)
		}
		next += n
		switch {
		case err == nil || d.waited(err):
		case congested(err):
			t.drop(DropSend)
			next++
		default:
			d.refuse(next, err)
		}
	}
	d.count, d.pieces, d.hops = 0, 0, d.hops[:0]
}

// run is where the messages end that can be sent in one call from i on.
func (d *direct) run(i int) int {
	for i < d.count && d.frames[i].link != nil {
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
func (d *direct) refuse(i int, err error) {
	refused := d.frames[i].link
	d.frames[i].peer.hop.refuse(refused, err)
	for ; i < d.count; i++ {
		if d.frames[i].link == refused {
			d.frames[i].link = nil
		}
	}
}

// divert hands over message i in one piece.
func (d *direct) divert(i int, divert func(*frame)) {
	f := &d.frames[i]
	pieces := unsafe.Slice(d.headers[i].hdr.Iov, d.headers[i].hdr.Iovlen)
	if len(pieces) > 2 {
		d.whole = append(d.whole[:0], f.room...)
		for _, p := range pieces[2:] {
			d.whole = append(d.whole, unsafe.Slice(p.Base, p.Len)...)
		}
		f.room = d.whole
	}
	divert(f)
}

// waited tells whether err was a full buffer that has room again.
func (d *direct) waited(err error) bool {
	if !d.patient || !errors.Is(err, unix.EAGAIN) {
		return false
	}
	d.patient = writable(d.fd, sendPatience)
	return d.patient
}
