package device

import (
	"errors"
	"fmt"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/offload"
)

const tunPath = "/dev/net/tun"

// openTUN opens a descriptor of the interface name, which it makes if there is
// none. IFF_TUN_EXCL among the flags, which are those of TUNSETIFF
// (Documentation/networking/tuntap.rst), makes sure of that: a second process
// of the same name is then refused rather than given a share of the first one's
// packets.
func openTUN(name string, flags uint16) (int, error) {
	if len(name) >= unix.IFNAMSIZ {
		return -1, fmt.Errorf("the name is longer than %d bytes", unix.IFNAMSIZ-1)
	}
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return -1, fmt.Errorf("%w: %w", ErrNoTUN, err)
	case err != nil:
		return -1, os.NewSyscallError("open "+tunPath, err)
	}
	if err := attachQueue(fd, name, flags|unix.IFF_TUN|unix.IFF_NO_PI); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// attachQueue makes fd a queue of the interface. Old kernels pass over flags
// that they don't know, so it looks what came of them.
func attachQueue(fd int, name string, flags uint16) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(flags)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL) && flags&unix.IFF_TUN_EXCL != 0 && linkExists(name):
		return fmt.Errorf("%w: %w", ErrExists, err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: ioctl TUNSETIFF, flags %#x: %w", ErrDriverRefused, flags, err)
	case err != nil:
		return os.NewSyscallError("ioctl TUNSETIFF", err)
	}
	const modes = unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE
	err = unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr)
	if got := ifr.Uint16(); err == nil && (got^flags)&modes != 0 {
		return fmt.Errorf("%w: of flags %#x it took %#x", ErrDriverRefused, flags, got)
	}
	return os.NewSyscallError("ioctl TUNGETIFF", err)
}

func linkExists(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}

// kernelDevice is a TUN device of this kernel with a descriptor for every queue.
type kernelDevice struct {
	name     string
	kind     Driver
	queues   []Queue
	offloads offload.Set
}

func (d *kernelDevice) Name() string    { return d.name }
func (d *kernelDevice) Queues() []Queue { return d.queues }
func (d *kernelDevice) driver() Driver  { return d.kind }

func (d *kernelDevice) Offloads() offload.Set { return d.offloads }

func (d *kernelDevice) Close() error {
	var errs []error
	for _, q := range d.queues {
		if err := unix.Close(q.FD()); err != nil {
			errs = append(errs, fmt.Errorf("close TUN device %s: %w", d.name, err))
		}
	}
	d.queues = nil
	return errors.Join(errs...)
}

// vector are the parts of a packet for readv(2) and writev(2).
type vector [MaxParts + 1]unix.Iovec

func (v *vector) set(i int, b []byte) {
	v[i].Base = unsafe.SliceData(b)
	v[i].SetLen(len(b))
}

// do runs readv or writev over the first n parts. The descriptor never blocks,
// so the scheduler need not hear of the call.
func (v *vector) do(call uintptr, fd, n int) (int, error) {
	for {
		r, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&v[0])), uintptr(n))
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
