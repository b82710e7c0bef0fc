package device

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/descriptor"
	"uvxlan/tunnel/internal/vnet"
	"uvxlan/tunnel/offload"
)

// ErrUnfit says that a descriptor is not what it has to be to be adopted; the
// words around it say which and why.
var ErrUnfit = descriptor.ErrUnfit

// Adopt makes a device of the queues of a TUN interface that the caller has
// made. It may be in another network namespace, where it stays. Each descriptor was
// attached (TUNSETIFF) with IFF_TUN, IFF_NO_PI and IFF_VNET_HDR, several of them
// with IFF_MULTI_QUEUE; what can be seen to be otherwise is [ErrUnfit]. It takes no
// privilege. [link.Configure] is for whoever is in that namespace.
//
// The device owns the descriptors from here on and closes them; they become
// non-blocking and close-on-exec, and what the kernel has of the wanted offloads is
// set. After an error they are still the caller's.
func Adopt(queues []int, want offload.Set) (Device, error) {
	d := &kernelDevice{kind: DriverNative}
	for i, fd := range queues {
		name, err := queueName(fd, len(queues) > 1)
		switch {
		case err != nil:
		case i > 0 && name != d.name:
			err = fmt.Errorf("%w: a queue of %s beside one of %s", ErrUnfit, name, d.name)
		case slices.Contains(queues[:i], fd):
			err = fmt.Errorf("%w: it is there twice", ErrUnfit)
		}
		if err != nil {
			return nil, fmt.Errorf("adopt TUN queue %d: %w", fd, err)
		}
		d.name = name
		d.queues = append(d.queues, &nativeQueue{fd: fd})
	}
	if len(queues) == 0 {
		return nil, fmt.Errorf("adopt TUN device: %w: there is none", ErrUnfit)
	}
	if err := descriptor.Own(queues); err != nil {
		return nil, fmt.Errorf("adopt TUN device %s: %w", d.name, err)
	}
	if err := unix.IoctlSetPointerInt(queues[0], unix.TUNSETVNETHDRSZ, vnet.HeaderLen); err != nil {
		return nil, fmt.Errorf("adopt TUN device %s: %w", d.name, os.NewSyscallError("ioctl TUNSETVNETHDRSZ", err))
	}
	d.offloads = setOffloads(queues[0], want)
	if d.counters = openCounters(); d.counters != nil {
		if here, _ := d.counters.have(queues[0]); !here {
			Disown(d)
		}
	}
	return d, nil
}

// queueName checks that fd is a queue as nativeQueue reads it, and returns the
// interface's name. IFF_NO_PI can't be seen: TUNGETIFF uses its bit for something
// else as well.
func queueName(fd int, several bool) (string, error) {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return "", fmt.Errorf("%w: no queue of a TUN interface: %w", ErrUnfit, err)
	}
	flags := ifr.Uint16()
	for _, f := range []struct {
		name        string
		mask, value uint16
	}{
		{"IFF_TUN", unix.IFF_TUN | unix.IFF_TAP, unix.IFF_TUN},
		{"IFF_VNET_HDR", unix.IFF_VNET_HDR, unix.IFF_VNET_HDR},
	} {
		if flags&f.mask != f.value {
			return "", fmt.Errorf("%w: %s was opened without %s", ErrUnfit, ifr.Name(), f.name)
		}
	}
	if several && flags&unix.IFF_MULTI_QUEUE == 0 {
		return "", fmt.Errorf("%w: %s was opened without IFF_MULTI_QUEUE", ErrUnfit, ifr.Name())
	}
	return ifr.Name(), nil
}

// Descriptors are those of the queues of a device that [Adopt] would take, of
// another process perhaps: one of [DriverNative]. ok is false for any other. They
// stay the device's.
func Descriptors(d Device) (queues []int, ok bool) {
	k, ok := d.(*kernelDevice)
	if !ok || k.kind != DriverNative {
		return nil, false
	}
	for _, q := range k.queues {
		queues = append(queues, q.FD())
	}
	return queues, true
}
