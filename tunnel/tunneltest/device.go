// Package tunneltest offers a [device.Device] without a kernel: its far end is
// the program itself, which sends packets into the overlay and receives those
// that come out of it. A router on such a device needs no privilege, so that a
// runtime's tests can have whole networks of them on loopback addresses.
package tunneltest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/encap"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/offload"
)

// Device is a device in memory. It takes part in no offload: every packet is
// whole, with its checksums. Its methods may be called from any goroutine.
type Device struct {
	name   string
	queues []device.Queue
	in     []*os.File // where Send puts each queue's packets
	out    *os.File   // where Receive finds every queue's

	receiving sync.Mutex // held by Receive
	closing   sync.Once  // closes
}

var _ device.Device = (*Device)(nil)

// NewDevice makes a device with a number of queues, at least one. Whoever owns
// it, as a router does, closes it.
func NewDevice(name string, queues int) (*Device, error) {
	d := &Device{name: name}
	near, out, err := pair()
	if err != nil {
		return nil, fmt.Errorf("open memory device: %w", err)
	}
	d.out = out
	if err := d.open(near, max(queues, 1)); err != nil {
		return nil, errors.Join(fmt.Errorf("open memory device: %w", err), d.Close())
	}
	return d, nil
}

// open opens the queues, of which all write to one socket.
func (d *Device) open(near, queues int) (err error) {
	for i := range queues {
		write := near
		if i > 0 {
			if write, err = unix.FcntlInt(uintptr(near), unix.F_DUPFD_CLOEXEC, 0); err != nil {
				return os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
			}
		}
		q := &queue{read: -1, write: write}
		d.queues = append(d.queues, q)
		var in *os.File
		if q.read, in, err = pair(); err != nil {
			return err
		}
		d.in = append(d.in, in)
	}
	return nil
}

// pair is a pair of sockets that keep packets apart.
func pair() (near int, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, os.NewSyscallError("socketpair", err)
	}
	return fds[0], os.NewFile(uintptr(fds[1]), "memory device"), nil
}

// Name implements [device.Device].
func (d *Device) Name() string { return d.name }

// Queues implements [device.Device].
func (d *Device) Queues() []device.Queue { return d.queues }

// Offloads implements [device.Device]: there are none.
func (d *Device) Offloads() offload.Set { return 0 }

// Send sends one IP packet into the overlay, as a container does: a router reads
// it from the queue that its flow always takes. It waits while that is full. On a
// closed device the error is [os.ErrClosed].
func (d *Device) Send(packet []byte) error {
	if len(packet) == 0 || len(packet) > device.MaxPacket {
		return fmt.Errorf("send into memory device: %d bytes are no packet", len(packet))
	}
	_, err := d.in[encap.FlowHash(packet)%uint32(len(d.in))].Write(packet)
	if err != nil {
		return fmt.Errorf("send into memory device: %w", err)
	}
	return nil
}

// Receive waits for the next packet that came out of the overlay, by any queue.
// The packet is the caller's. When ctx ends, the error is its cause, and on a
// closed device [os.ErrClosed].
func (d *Device) Receive(ctx context.Context) ([]byte, error) {
	d.receiving.Lock()
	defer d.receiving.Unlock()
	buf := make([]byte, device.MaxPacket)
	n, err := d.read(ctx, buf)
	if err != nil {
		return nil, fmt.Errorf("receive from memory device: %w", err)
	}
	return bytes.Clone(buf[:n]), nil
}

func (d *Device) read(ctx context.Context, buf []byte) (int, error) {
	if d.out.SetReadDeadline(time.Time{}) != nil {
		return 0, os.ErrClosed
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = d.out.SetReadDeadline(time.Unix(1, 0)) // fails on a closed device, of which Read tells
	})
	n, err := d.out.Read(buf)
	if !stop() {
		<-ended
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, context.Cause(ctx)
	case errors.Is(err, io.EOF): // the queues are closed first
		return 0, os.ErrClosed
	}
	return n, err
}

// Remove does what deleting the interface does to a TUN device: a router that
// runs on it ends with [device.ErrGone]. The device is still to be closed.
func (d *Device) Remove() error {
	var errs []error
	for _, f := range d.in {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Close implements [device.Device]. It ends Receive as well.
func (d *Device) Close() (err error) {
	d.closing.Do(func() { err = d.close() })
	return err
}

func (d *Device) close() error {
	var errs []error
	for _, q := range d.queues {
		errs = append(errs, q.(*queue).close())
	}
	for _, f := range slices.Concat(d.in, []*os.File{d.out}) {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
