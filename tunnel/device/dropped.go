package device

import (
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// counters is the kernel's table of interface counters (proc_pid_net(5)) of a network
// namespace. Unlike a request by netlink, to read it waits for nobody who changes
// interfaces.
type counters struct {
	file      *os.File
	namespace unix.Stat_t // as namespaces(7) are told apart
}

// openCounters opens those of the calling thread's network namespace.
func openCounters() *counters {
	file, err := os.Open("/proc/thread-self/net/dev")
	if err != nil {
		return nil
	}
	c := &counters{file: file}
	_ = unix.Stat("/proc/thread-self/ns/net", &c.namespace) // a kernel with one has no file
	return c
}

// have tells whether a queue's interface is in the namespace, by TUNGETDEVNETNS
// (Linux 5.2), which takes CAP_NET_ADMIN there.
func (c *counters) have(queue int) (yes, known bool) {
	fd, err := unix.IoctlRetInt(queue, unix.TUNGETDEVNETNS)
	if err != nil {
		return false, false
	}
	defer unix.Close(fd)
	var s unix.Stat_t
	err = unix.Fstat(fd, &s)
	return s.Dev == c.namespace.Dev && s.Ino == c.namespace.Ino, err == nil
}

func (c *counters) close() {
	if c != nil {
		c.file.Close()
	}
}

// txDropped is how many packets the interface's queues had no room for.
func (c *counters) txDropped(name string) (n uint64, ok bool) {
	const dropped = 11 // after 8 columns of what was received
	table, err := io.ReadAll(io.NewSectionReader(c.file, 0, 1<<20))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(table)) {
		interfaceName, values, _ := strings.Cut(line, ":")
		columns := strings.Fields(values)
		if strings.TrimSpace(interfaceName) != name || len(columns) <= dropped {
			continue
		}
		n, err := strconv.ParseUint(columns[dropped], 10, 64)
		return n, err == nil
	}
	return 0, false
}

// Dropped is how many packets were lost in the queues of a device for want of room,
// since its interface was made, whatever it is called by then. It is false if that
// isn't known: of a device in memory, of one of wireguard-go's, of an interface that
// was moved to another network namespace than that of the thread that opened or
// adopted it, and of an adopted one that can't be seen to be in that thread's (which
// takes Linux 5.2 and CAP_NET_ADMIN). Devices of other packages have it if they have a
// method of that name and type. It must not be called beside Close.
func Dropped(d Device) (uint64, bool) {
	if d, ok := d.(interface{ Dropped() (uint64, bool) }); ok {
		return d.Dropped()
	}
	return 0, false
}

// Disown closes what a device has open beside its queues, whose descriptors are
// somebody else's from here on; see [Descriptors].
func Disown(d Device) {
	if k, ok := d.(*kernelDevice); ok {
		k.counters.close()
		k.counters = nil
	}
}

// Dropped is described with the function of that name. The interface may have been
// renamed or moved, and another may have its name.
func (d *kernelDevice) Dropped() (uint64, bool) {
	if d.counters == nil || len(d.queues) == 0 {
		return 0, false
	}
	queue := d.queues[0].FD()
	if here, known := d.counters.have(queue); known && !here {
		return 0, false
	}
	name, ok := interfaceOf(queue)
	if !ok {
		return 0, false
	}
	return d.counters.txDropped(name)
}
