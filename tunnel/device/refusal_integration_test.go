package device_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/internal/wake"
	"uvxlan/tunnel/offload"
)

// A TUN that knows no vnet headers, no queues and no exclusive flag, as gVisor's:
// auto has water, with one queue, and native by name is refused. Packets pass.
func TestIntegrationAutoWithoutVnetHeaders(t *testing.T) {
	h := testhost.New(t)
	var refused error
	d := testhost.Inside(h, func() (device.Device, error) {
		stop, err := refuseFlags(unix.IFF_TUN | unix.IFF_NO_PI)
		if err != nil {
			return nil, err
		}
		defer stop()
		_, refused = device.Open("tun0", device.Config{Driver: device.DriverNative, Queues: 2, Offloads: offload.All})
		return device.Open("tun0", device.Config{Queues: 2, Offloads: offload.All})
	})
	defer d.Close()
	if !errors.Is(refused, device.ErrDriverRefused) {
		t.Errorf("native: %v", refused)
	}
	if device.DriverOf(d) != device.DriverWater || len(d.Queues()) != 1 {
		t.Fatalf("driver %s with %d queues", device.DriverOf(d), len(d.Queues()))
	}
	h.Address("tun0", ourAddress+"/24")
	testhost.Must(t, h.LinkSetUp(h.Link("tun0")))
	s := &subject{t: t, device: d, far: newRawFar(h), mtu: 1500, kernel: h}
	for n := 20; n <= s.mtu; n += 37 {
		s.roundTrip(n)
	}
}

// refuseFlags makes TUNSETIFF fail with EINVAL on this thread for flags beyond
// those known (seccomp_unotify(2)). The thread must not be used for anything
// else; stop ends the judging.
func refuseFlags(known uint16) (stop func(), err error) {
	runtime.LockOSThread() // for good
	listener, err := filterTUNSETIFF()
	if err != nil {
		return nil, err
	}
	w, err := wake.Open()
	if err != nil {
		return nil, errors.Join(err, unix.Close(listener))
	}
	var judging sync.WaitGroup
	judging.Go(func() {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}, {Fd: int32(w.FD), Events: unix.POLLIN}}
		for {
			_, err := unix.Ppoll(fds, nil, nil)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err != nil, fds[1].Revents != 0, judge(listener, known) != nil:
				return
			}
		}
	})
	return func() {
		w.Wake()
		judging.Wait()
		w.Close()
		unix.Close(listener)
	}, nil
}

// filterTUNSETIFF puts a filter on this thread that asks us about TUNSETIFF.
func filterTUNSETIFF() (listener int, err error) {
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		end   = unix.BPF_RET | unix.BPF_K
	)
	request := uint32(24) // the second argument's lower half in struct seccomp_data
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		request += 4
	}
	filter := []unix.SockFilter{
		{Code: load, K: 0}, // the call's number
		{Code: equal, Jf: 3, K: unix.SYS_IOCTL},
		{Code: load, K: request},
		{Code: equal, Jf: 1, K: unix.TUNSETIFF},
		{Code: end, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: end, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return -1, fmt.Errorf("install seccomp filter: %w", errno)
	}
	return int(fd), nil
}

// judge answers one question of the filter.
func judge(listener int, known uint16) error {
	var question struct { // struct seccomp_notif
		id         uint64
		pid, flags uint32
		nr, arch   uint32
		ip         uint64
		args       [6]uint64
	}
	if err := notifyCall(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&question)); err != nil {
		return ignoreGone(err)
	}
	flags, err := flagsAt(question.args[2])
	if err != nil {
		return err
	}
	answer := struct { // struct seccomp_notif_resp
		id    uint64
		val   int64
		errno int32
		flags uint32
	}{id: question.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if flags&^known != 0 {
		answer.flags, answer.errno = 0, -int32(unix.EINVAL)
	}
	return ignoreGone(notifyCall(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&answer)))
}

// ignoreGone passes over calls that a signal interrupted: they come again.
func ignoreGone(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

func notifyCall(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// flagsAt reads the flags of a struct ifreq in our own memory.
func flagsAt(address uint64) (uint16, error) {
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		return 0, err
	}
	defer memory.Close()
	var b [2]byte
	if _, err := memory.ReadAt(b[:], int64(address)+unix.IFNAMSIZ); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint16(b[:]), nil
}
