package tunnel

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const tunPath = "/dev/net/tun"

// Errors of [OpenDevice].
var (
	// ErrNoTUN says that the kernel offers no TUN driver here: load the module
	// or pass the device node into the container.
	ErrNoTUN = errors.New("no " + tunPath)
	// ErrDeviceExists says that an interface of the wanted name is already
	// there: remove it or choose another name.
	ErrDeviceExists = errors.New("the interface exists")
)

// nativeDevice is a TUN device of this kernel with a vnet header on every
// packet and a descriptor for every queue.
type nativeDevice struct {
	name     string
	queues   []Queue
	offloads Offloads
}

// DeviceConfig says what [OpenDevice] opens.
type DeviceConfig struct {
	// Queues is the number of queues, one for each worker; 0 means one.
	Queues int
	// Offloads are those wanted of the device; what the kernel refuses is left
	// out.
	Offloads Offloads
}

// OpenDevice makes the TUN interface name and opens all of its queues, in the
// calling thread's network namespace. The interface
// is down, without addresses, and goes when the device is closed; see
// [ConfigureLink]. It needs CAP_NET_ADMIN.
//
// It returns [ErrNoTUN], [ErrDeviceExists] or the kernel's refusal (unix.EPERM
// for want of privilege), wrapped.
func OpenDevice(name string, c DeviceConfig) (Device, error) {
	if len(name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("open TUN device %q: the name is longer than %d bytes", name, unix.IFNAMSIZ-1)
	}
	d := &nativeDevice{name: name}
	for i := range max(c.Queues, 1) {
		q, err := openNativeQueue(name, i == 0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open TUN device %s: %w", name, err), d.Close())
		}
		d.queues = append(d.queues, q)
	}
	d.offloads = setOffloads(d.queues[0].FD(), c.Offloads)
	return d, nil
}

// setOffloads asks the device for superpackets, for as many kinds as the kernel
// knows. Whether it takes UDP superpackets is told by whether it would give
// them: both came with Linux 6.2.
func setOffloads(fd int, want Offloads) Offloads {
	const (
		tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
		udp = unix.TUN_F_CSUM | unix.TUN_F_USO4 | unix.TUN_F_USO6
	)
	set := func(flags int) bool { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags) == nil }
	got := want & OffloadTCP
	if want&(OffloadUSO|OffloadUDP) != 0 && set(udp) {
		got |= want & (OffloadUSO | OffloadUDP)
	}
	if want.Has(OffloadTSO) && set(tcp) {
		got |= OffloadTSO
	}
	flags := 0
	if got.Has(OffloadTSO) {
		flags |= tcp
	}
	if got.Has(OffloadUSO) {
		flags |= udp
	}
	if !set(flags) {
		set(0)
		got &^= OffloadTSO | OffloadUSO
	}
	return got
}

// openNativeQueue attaches one queue. The first must make the interface, so
// that a second process of the same name is refused rather than given a share
// of the first one's packets.
func openNativeQueue(name string, first bool) (*nativeQueue, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return nil, fmt.Errorf("%w: %w", ErrNoTUN, err)
	case err != nil:
		return nil, os.NewSyscallError("open "+tunPath, err)
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
	if first {
		flags |= unix.IFF_TUN_EXCL
	}
	if err := attachQueue(fd, name, flags); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &nativeQueue{fd: fd}, nil
}

func attachQueue(fd int, name string, flags uint16) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(flags)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) && flags&unix.IFF_TUN_EXCL != 0 {
		return fmt.Errorf("%w: %w", ErrDeviceExists, err)
	}
	return os.NewSyscallError("ioctl TUNSETIFF", err)
}

func (d *nativeDevice) Name() string    { return d.name }
func (d *nativeDevice) Queues() []Queue { return d.queues }

func (d *nativeDevice) Offloads() Offloads { return d.offloads }

func (d *nativeDevice) Close() error {
	var errs []error
	for _, q := range d.queues {
		if err := unix.Close(q.FD()); err != nil {
			errs = append(errs, fmt.Errorf("close TUN device %s: %w", d.name, err))
		}
	}
	d.queues = nil
	return errors.Join(errs...)
}

// nativeQueue is one descriptor of a nativeDevice. The vnet header travels in
// an iovec of its own, so callers' buffers hold nothing but the packet.
type nativeQueue struct {
	fd  int
	hdr vnetHeader
	iov [MaxParts + 1]unix.Iovec
}

func (q *nativeQueue) FD() int { return q.fd }

func (q *nativeQueue) Read(buf []byte) (int, Offload, error) {
	q.setIovec(0, q.hdr[:])
	q.setIovec(1, buf)
	n, err := q.vectored(unix.SYS_READV, 2)
	if err != nil {
		return 0, Offload{}, err
	}
	if n < vnetHeaderLen {
		return 0, Offload{}, fmt.Errorf("read TUN: %d bytes: %w", n, unix.EBADMSG)
	}
	return n - vnetHeaderLen, q.hdr.offload(), nil
}

func (q *nativeQueue) Write(o Offload, parts [][]byte) error {
	if len(parts) > MaxParts {
		return unix.EMSGSIZE
	}
	q.hdr.set(o)
	q.setIovec(0, q.hdr[:])
	for i, p := range parts {
		q.setIovec(i+1, p)
	}
	_, err := q.vectored(unix.SYS_WRITEV, len(parts)+1)
	return err
}

func (q *nativeQueue) setIovec(i int, b []byte) {
	q.iov[i].Base = unsafe.SliceData(b)
	q.iov[i].SetLen(len(b))
}

// vectored runs readv or writev over the first n iovecs. The descriptor never
// blocks, so the scheduler need not hear of the call.
func (q *nativeQueue) vectored(call uintptr, n int) (int, error) {
	for {
		r, _, errno := unix.RawSyscall(call, uintptr(q.fd), uintptr(unsafe.Pointer(&q.iov[0])), uintptr(n))
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
