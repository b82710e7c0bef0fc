package device

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"uvxlan/encap"
	"uvxlan/tunnel/internal/vnet"
	"uvxlan/tunnel/offload"
)

// openNative opens a device with a vnet header on every packet.
func openNative(name string, c Config) (Device, error) {
	d := &kernelDevice{name: name, kind: DriverNative}
	flags := uint16(unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
	for i := range max(c.Queues, 1) {
		fd, err := openTUN(name, flags|exclusive(i))
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		d.queues = append(d.queues, &nativeQueue{fd: fd})
	}
	d.offloads = setOffloads(d.queues[0].FD(), c.Offloads)
	return d, nil
}

// exclusive is the flag by which the first of a device's queues must make the
// interface.
func exclusive(queue int) uint16 {
	if queue == 0 {
		return unix.IFF_TUN_EXCL
	}
	return 0
}

// setOffloads asks the device for superpackets, for as many kinds as the kernel
// knows. Whether it takes UDP superpackets is told by whether it would give
// them: both came with Linux 6.2.
func setOffloads(fd int, want offload.Set) offload.Set {
	const (
		tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		udp = unix.TUN_F_CSUM | unix.TUN_F_USO4 | unix.TUN_F_USO6
	)
	set := func(flags int) bool { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags) == nil }
	if all := offload.TSO | offload.USO; want.Has(all) && set(tcp|udp) {
		return want & (all | offload.TCP | offload.UDP) // one step, and none if it is so already
	}
	got := want & offload.TCP
	if want&(offload.USO|offload.UDP) != 0 && set(udp) {
		got |= want & (offload.USO | offload.UDP)
	}
	if want.Has(offload.TSO) && set(tcp) {
		got |= offload.TSO
	}
	flags := 0
	if got.Has(offload.TSO) {
		flags |= tcp
	}
	if got.Has(offload.USO) {
		flags |= udp
	}
	if !set(flags) {
		set(0)
		got &^= offload.TSO | offload.USO
	}
	return got
}

// nativeQueue is one queue of a native device. The vnet header travels in an
// iovec of its own, so callers' buffers hold nothing but the packet.
type nativeQueue struct {
	fd  int
	hdr vnet.Header
	vec vector
}

func (q *nativeQueue) FD() int { return q.fd }

func (q *nativeQueue) Read(buf []byte) (int, encap.Offload, error) {
	q.vec.set(0, q.hdr[:])
	q.vec.set(1, buf)
	n, err := q.vec.read(q.fd, 2)
	if err != nil {
		return 0, encap.Offload{}, err
	}
	if n < vnet.HeaderLen {
		return 0, encap.Offload{}, fmt.Errorf("read TUN: %d bytes: %w", n, unix.EBADMSG)
	}
	return n - vnet.HeaderLen, q.hdr.Offload(), nil
}

func (q *nativeQueue) Write(o encap.Offload, parts [][]byte) error {
	if len(parts) > MaxParts {
		return unix.EMSGSIZE
	}
	q.hdr.Set(o)
	q.vec.set(0, q.hdr[:])
	for i, p := range parts {
		q.vec.set(i+1, p)
	}
	_, err := q.vec.write(q.fd, len(parts)+1)
	return err
}
