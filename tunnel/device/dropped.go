package device

import (
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// counters is the kernel's table of interface counters (proc_pid_net(5)) of the
// network namespace in which it was opened. Unlike a request by netlink, to read it
// waits for nobody who changes interfaces.
type counters struct{ file *os.File }

// isHere tells whether a queue's interface is in the calling thread's network
// namespace. Another may have an interface of the same name.
func isHere(queue int) bool {
	fd, err := unix.IoctlRetInt(queue, unix.TUNGETDEVNETNS)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var there, here unix.Stat_t
	return unix.Fstat(fd, &there) == nil && unix.Stat("/proc/thread-self/ns/net", &here) == nil &&
		there.Ino == here.Ino && there.Dev == here.Dev
}

// openCounters opens the calling thread's, if the interface is in it.
func openCounters(name string) *counters {
	file, err := os.Open("/proc/thread-self/net/dev")
	if err != nil {
		return nil
	}
	c := &counters{file}
	if _, ok := c.txDropped(name); !ok {
		c.close()
		return nil
	}
	return c
}

func (c *counters) close() {
	if c != nil {
		c.file.Close()
	}
}

// txDropped is how many packets the interface's queues had no room for.
func (c *counters) txDropped(name string) (n uint64, ok bool) {
	if c == nil {
		return 0, false
	}
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
// since its interface was made; false if that isn't known: of a device in memory, of
// one of wireguard-go's, or of an adopted one in another network namespace than the
// thread's that adopted it. Devices of other packages have it if they have a method
// of that name and type.
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

// Dropped is described with the function of that name.
func (d *kernelDevice) Dropped() (uint64, bool) { return d.counters.txDropped(d.name) }
