package tunneltest

import (
	"bytes"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"uvxlan/encap"

	"uvxlan/tunnel/device"
)

// queue is one queue of a device, two sockets of its own.
type queue struct {
	read, write int
	segmenter   encap.Segmenter
}

// FD implements [device.Queue].
func (q *queue) FD() int { return q.read }

// Read implements [device.Queue]. The end of what is sent is the interface's.
func (q *queue) Read(buf []byte) (int, encap.Offload, error) {
	for {
		n, err := unix.Read(q.read, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, encap.Offload{}, err
		case n == 0:
			return 0, encap.Offload{}, unix.EBADFD
		default:
			return n, encap.Offload{}, nil
		}
	}
}

// Write implements [device.Queue]. A packet's receiver is no kernel that would
// finish what its sender left undone, so that is done here.
func (q *queue) Write(o encap.Offload, parts [][]byte) error {
	switch {
	case len(parts) > device.MaxParts:
		return unix.EMSGSIZE
	case o.GSO != encap.GSONone:
		return q.segment(bytes.Join(parts, nil), o)
	case o.NeedsChecksum:
		packet := bytes.Join(parts, nil)
		if !encap.FillChecksum(packet, o) {
			return unix.EINVAL
		}
		return q.send(packet)
	}
	return q.send(parts...)
}

func (q *queue) segment(packet []byte, o encap.Offload) error {
	if err := q.segmenter.Start(packet, o); err != nil {
		return err
	}
	var header [encap.MaxHeaderLen]byte
	for {
		n, payload := q.segmenter.Next(header[:])
		if n == 0 {
			return nil
		}
		if err := q.send(header[:n], payload); err != nil {
			return err
		}
	}
}

// send sends one packet. With nobody to receive it there is room for some only.
func (q *queue) send(parts ...[]byte) error {
	for {
		_, err := unix.SendmsgBuffers(q.write, parts, nil, nil, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (q *queue) close() error {
	var errs []error
	for _, fd := range []int{q.read, q.write} {
		if fd >= 0 {
			errs = append(errs, os.NewSyscallError("close", unix.Close(fd)))
		}
	}
	return errors.Join(errs...)
}
