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
	fd, err := openDriver(tunPath)
	if err != nil {
		return -1, err
	}
	if err := attachQueue(fd, name, flags|unix.IFF_TUN|unix.IFF_NO_PI); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Check finds out whether this process can open the TUN driver at all; it makes no
// interface. It returns [ErrNoTUN] or the kernel's error.
func Check() error {
	fd, err := openDriver(tunPath)
	if err != nil {
		return err
	}
	return os.NewSyscallError("close", unix.Close(fd))
}

// openDriver opens the TUN driver, which has its device node at path.
func openDriver(path string) (int, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	if kind := st.Mode & unix.S_IFMT; err == nil && kind != unix.S_IFCHR {
		return -1, fmt.Errorf("%w: in its place is %s; remove that first", ErrNoTUN, kindName(kind))
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return -1, fmt.Errorf("%w: %w", ErrNoTUN, err)
	case err != nil:
		return -1, os.NewSyscallError("open "+path, err)
	}
	return fd, nil
}

// kindName is a kind of file (inode(7)) in words.
func kindName(kind uint32) string {
	switch kind {
	case unix.S_IFREG:
		return "a plain file"
	case unix.S_IFDIR:
		return "a directory"
	}
	return "something that is no character device"
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
	case errors.Is(err, unix.ENOTTY):
		return fmt.Errorf("%w: in its place is another device; remove that first", ErrNoTUN)
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
	counters *counters // nil if they can't be seen
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
	Disown(d)
	return errors.Join(errs...)
}

// vector are the parts of a packet for readv(2) and writev(2).
type vector struct {
	parts [MaxParts + 1]unix.Iovec
	// descriptionOnly says that the kernel's TUN takes no flags with a call (Linux
	// before 5.11): then only O_NONBLOCK keeps it from blocking.
	descriptionOnly bool
}

func (v *vector) set(i int, b []byte) {
	v.parts[i].Base = unsafe.SliceData(b)
	v.parts[i].SetLen(len(b))
}

// read reads one packet into the first n parts.
func (v *vector) read(fd, n int) (int, error) { return v.do(unix.SYS_PREADV2, unix.SYS_READV, fd, n) }

// write writes one packet of the first n parts.
func (v *vector) write(fd, n int) (int, error) {
	return v.do(unix.SYS_PWRITEV2, unix.SYS_WRITEV, fd, n)
}

// do runs one of two calls over the first n parts. It never blocks, so the scheduler
// need not hear of it: O_NONBLOCK belongs to the open file description, which others
// may share and change (fcntl(2)), RWF_NOWAIT to the call (preadv2(2)).
func (v *vector) do(flagged, plain uintptr, fd, n int) (int, error) {
	for {
		r, errno := v.call(flagged, plain, fd, n)
		switch {
		case errno == 0:
			return r, nil
		case errno == unix.EINTR:
		case !v.descriptionOnly && flagsRefused(errno):
			v.descriptionOnly = true
		default:
			return 0, errno
		}
	}
}

func (v *vector) call(flagged, plain uintptr, fd, n int) (int, unix.Errno) {
	if v.descriptionOnly {
		r, _, errno := unix.RawSyscall(plain, uintptr(fd), uintptr(unsafe.Pointer(&v.parts[0])), uintptr(n))
		return int(r), errno
	}
	const current = ^uintptr(0) // the file's own position, of which TUN has none
	r, _, errno := unix.RawSyscall6(flagged, uintptr(fd), uintptr(unsafe.Pointer(&v.parts[0])), uintptr(n),
		current, current, unix.RWF_NOWAIT)
	return int(r), errno
}

// flagsRefused tells whether the kernel doesn't know the call (Linux 4.6), the flag
// (4.14) or the flag for TUN (5.11), or a sandbox keeps the call from us. A refusal of
// another cause comes again without the flag.
func flagsRefused(errno unix.Errno) bool {
	return errno == unix.EOPNOTSUPP || errno == unix.ENOSYS || errno == unix.EPERM
}
