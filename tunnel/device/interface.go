package device

import (
	"golang.org/x/sys/unix"
)

// Interface is the name that a device's interface has at the moment, in its network
// namespace: it may have been renamed. It is false if the device is none of the
// kernel's, such as one in memory or a TCP/IP stack, or is closed. Devices of other
// packages have it if they have a method of that name and type. It must not be called
// beside Close.
func Interface(d Device) (name string, ok bool) {
	if d, ok := d.(interface{ Interface() (string, bool) }); ok {
		return d.Interface()
	}
	return "", false
}

// Interface is described with the function of that name.
func (d *kernelDevice) Interface() (string, bool) {
	if len(d.queues) == 0 {
		return "", false
	}
	return interfaceOf(d.queues[0].FD())
}

// Interface is described with the function of that name.
func (d *wireguardDevice) Interface() (name string, ok bool) {
	file := d.dev.File()
	if file == nil {
		return "", false
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return "", false
	}
	if err := raw.Control(func(fd uintptr) { name, ok = interfaceOf(int(fd)) }); err != nil {
		return "", false
	}
	return name, ok
}

// interfaceOf asks the kernel for the name of the interface that fd is a queue of.
func interfaceOf(fd int) (string, bool) {
	ifr, err := unix.NewIfreq("")
	if err != nil || unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr) != nil {
		return "", false
	}
	return ifr.Name(), true
}
