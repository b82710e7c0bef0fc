package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
)

// The direct route: a packet to a host of the same Ethernet leaves as it was
// read from the device, a superpacket whole, behind an Ethernet header to that
// host's MAC. It goes through a packet socket that takes a vnet header
// (PACKET_VNET_HDR, packet(7)), so the kernel or the NIC segments it and fills in
// checksums as it would for its own. What comes back arrives at the kernel.

// link is where frames to one on-link host go. It never changes.
type link struct {
	to             linkAddress
	header4        [encap.EthernetHeaderLen]byte
	header6        [encap.EthernetHeaderLen]byte
	index          int
	source, target encap.MAC
}

// linkAddress is a struct sockaddr_ll. Its protocol is left zero: the kernel
// reads it from the frame.
type linkAddress [unix.SizeofSockaddrLinklayer]byte

func newLink(index int, source, target encap.MAC) *link {
	l := &link{index: index, source: source, target: target}
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

// direct is a worker's packet socket and its part of a batch. What add is given
// is borrowed until send.
type direct struct {
	fd      int
	patient bool // this batch may still wait for room
	count   int
	frames  [txBatch]frame
	vnets   [txBatch]vnetHeader
	headers [txBatch]mmsghdr
	iovs    [txBatch][2]unix.Iovec
}

// frame is a packet on the direct route, and what it takes to send it by VXLAN
// instead.
type frame struct {
	peer    *entry
	link    *link
	room    []byte
	ecn     uint8
	offload Offload
}

func newDirect(fd int) *direct {
	d := &direct{fd: fd}
	for i := range d.headers {
		d.iovs[i][0].Base = &d.vnets[i][0]
		d.iovs[i][0].SetLen(vnetHeaderLen)
		h := &d.headers[i].hdr
		h.Iov = &d.iovs[i][0]
		h.SetIovlen(2)
	}
	return d
}

// add puts a packet, which lies behind its headroom, into the batch. A batch of
// the device has room.
func (d *direct) add(f frame) {
	i := d.count
	d.frames[i] = f
	packet := f.room[headroom:]
	header := &f.link.header4
	if packet[0]>>4 == 6 {
		header = &f.link.header6
	}
	data := f.room[headroom-encap.EthernetHeaderLen:]
	copy(data, header[:])
	d.vnets[i].set(framed(f.offload, packet))
	d.iovs[i][1].Base = unsafe.SliceData(data)
	d.iovs[i][1].SetLen(len(data))
	h := &d.headers[i].hdr
	h.Name, h.Namelen = &f.link.to[0], uint32(len(f.link.to))
	d.count++
}

// framed is a packet's offload once an Ethernet header stands before it. The
// header length of a forwarded packet may be any; the kernel copies that much
// into a block of its own.
func framed(o Offload, packet []byte) Offload {
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
// and forgets it. A frame that the link takes no more is handed to divert, and
// so is all that follows on that link.
func (d *direct) send(t *tally, divert func(*frame)) {
	d.patient = true
	for next := 0; next < d.count; {
		n, err := mmsg(unix.SYS_SENDMMSG, d.fd, d.headers[next:d.count])
		for i := range d.frames[next : next+n] {
			f := &d.frames[next+i]
			t.direct++
			t.packets++
			t.bytes += uint64(len(f.room) - headroom)
		}
		next += n
		if err == nil || d.waited(err) {
			continue
		}
		f := &d.frames[next]
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) {
			t.drop(DropSend) // a full queue, on any path
		} else {
			f.peer.hop.refuse(f.link, err)
			divert(f)
		}
		next++
	}
	d.count = 0
}

// waited tells whether err was a full buffer that has room again.
func (d *direct) waited(err error) bool {
	if !d.patient || !errors.Is(err, unix.EAGAIN) {
		return false
	}
	d.patient = writable(d.fd, sendPatience)
	return d.patient
}
