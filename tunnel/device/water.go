package device

import (
	"errors"
	"fmt"
	"os"

	"uvxlan/encap"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// openWater opens a device that hands over and takes single packets.
func openWater(name string, c Config) (Device, error) {
	d := &kernelDevice{name: name, kind: DriverWater}
	hold, queues, err := holdName(name, max(c.Queues, 1))
	if err != nil {
		return nil, err
	}
	if queues == 1 {
		// Water makes the interface anew: its only queue would be ours.
		unix.Close(hold)
	} else {
		defer unix.Close(hold)
	}
	for range queues {
		fd, err := waterDescriptor(name, queues > 1)
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		d.queues = append(d.queues, &plainQueue{fd: fd})
	}
	return d, nil
}

// holdName makes the interface, with all checks that water leaves out, and
// returns its descriptor and how many queues the kernel allows of those wanted.
// Water can't fail after that, which is as well, as it would leave its
// descriptor open.
func holdName(name string, queues int) (fd, allowed int, err error) {
	if linkExists(name) {
		return -1, 0, ErrExists
	}
	if queues > 1 {
		fd, err = openTUN(name, unix.IFF_MULTI_QUEUE|unix.IFF_TUN_EXCL)
		if !errors.Is(err, ErrDriverRefused) {
			return fd, queues, err
		}
	}
	fd, err = openTUN(name, 0)
	return fd, 1, err
}

// waterDescriptor has water attach one queue and takes its descriptor over.
// Water's own stays with Go's poller, which would wake for every packet that a
// worker has polled already.
func waterDescriptor(name string, multiQueue bool) (int, error) {
	i, err := water.New(water.Config{
		DeviceType:             water.TUN,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name, MultiQueue: multiQueue},
	})
	if err != nil {
		return -1, err
	}
	defer i.Close()
	file, ok := i.ReadWriteCloser.(*os.File)
	if !ok {
		return -1, fmt.Errorf("water has a %T instead of a file", i.ReadWriteCloser)
	}
	return duplicate(file)
}

// duplicate returns another descriptor of the file, which is closed on exec.
func duplicate(file *os.File) (fd int, err error) {
	conn, err := file.SyscallConn()
	if err != nil {
		return -1, err
	}
	failed := conn.Control(func(own uintptr) {
		fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(failed, err); err != nil {
		return -1, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return fd, nil
}

// plainQueue is a queue without vnet headers.
type plainQueue struct {
	fd  int
	vec vector
}

func (q *plainQueue) FD() int { return q.fd }

func (q *plainQueue) Read(buf []byte) (int, encap.Offload, error) {
	q.vec.set(0, buf)
	n, err := q.vec.read(q.fd, 1)
	return n, encap.Offload{}, err
}

func (q *plainQueue) Write(o encap.Offload, parts [][]byte) error {
	if len(parts) > MaxParts {
		return unix.EMSGSIZE
	}
	if o != (encap.Offload{}) {
		return unix.EINVAL
	}
	for i, p := range parts {
		q.vec.set(i, p)
	}
	_, err := q.vec.write(q.fd, len(parts))
	return err
}
