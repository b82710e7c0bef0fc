package device_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/offload"
)

func TestIntegrationAdoptChecksDevice(t *testing.T) {
	const good = unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR
	h := testhost.New(t)
	for _, c := range []struct {
		name   string
		flags  uint16
		queues int
		want   string // in the error; empty if it is adopted
	}{
		{"fit0", good, 1, ""},
		{"fit1", good | unix.IFF_MULTI_QUEUE, 1, ""},
		{"fit3", good | unix.IFF_MULTI_QUEUE, 3, ""},
		{"tap0", unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR, 1, "IFF_TUN"},
		{"plain0", unix.IFF_TUN | unix.IFF_NO_PI, 1, "IFF_VNET_HDR"},
		{"twice0", good | unix.IFF_MULTI_QUEUE, 0, "twice"},
	} {
		fds := testhost.Inside(h, func() (fds []int, err error) {
			for range max(c.queues, 1) {
				fd, err := testhost.AttachTUN(testhost.TUNPath, c.name, c.flags)
				if err != nil {
					return nil, err
				}
				fds = append(fds, fd)
			}
			return fds, nil
		})
		if c.queues == 0 {
			fds = append(fds, fds[0])
		}
		d, err := device.Adopt(fds, offload.All)
		switch {
		case c.want != "":
			if !errors.Is(err, device.ErrUnfit) || !testhost.IsOpen(fds[0]) {
				t.Errorf("%s: %v; its descriptor is open: %t", c.name, err, testhost.IsOpen(fds[0]))
			}
			testhost.Must(t, unix.Close(fds[0]))
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		default:
			if d.Name() != c.name || len(d.Queues()) != c.queues || !d.Offloads().Has(offload.TSO) {
				t.Errorf("%s: %s, %d queues, %s", c.name, d.Name(), len(d.Queues()), d.Offloads())
			}
			testhost.Must(t, d.Close())
			if testhost.IsOpen(fds[0]) {
				t.Errorf("%s: a queue is open after Close", c.name)
			}
		}
	}
}

func TestAdoptRefusesDevices(t *testing.T) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	testhost.Must(t, err)
	t.Cleanup(func() { unix.Close(socket) })
	for name, fds := range map[string][]int{"none": nil, "a socket": {socket}, "a descriptor that is not": {1 << 20}} {
		if d, err := device.Adopt(fds, 0); d != nil || !errors.Is(err, device.ErrUnfit) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !testhost.IsOpen(socket) {
		t.Error("the socket was closed")
	}
}
