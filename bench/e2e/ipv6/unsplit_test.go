package ipv6_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/bench/cluster"
	"uvxlan/bench/e2e"
	"uvxlan/bench/lab"
)

// A kernel VXLAN peer on the same machine passes its containers' superpackets
// unsplit: those of UDP arrive as the datagrams they were made of, also where the
// device takes no superpackets of UDP.
func TestIntegrationUnsplitUDP(t *testing.T) {
	for _, args := range [][]string{nil, {"-offload-disable=udp"}, {"-offload-disable=gro"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			w := e2e.NewDualWorld(t, e2e.DualConfig, "kb21", "kb22")
			w.Cluster.Args = append(w.Cluster.Args, args...)
			w.Start("kb21")
			t.Run("datagrams", func(t *testing.T) {
				dualKernelPeer(w, t, "kb22")
				w.DualMesh("kb21", "kb22")
				expectDatagrams(w, t)
			})
		})
	}
}

// expectDatagrams sends superpackets of datagrams from kb22's container to kb21's.
func expectDatagrams(w *e2e.World, t *testing.T) {
	t.Helper()
	from, to := w.Container("kb22"), w.Container("kb21")
	for _, at := range e2e.AddressesOf(w.Host("kb21")) {
		for _, size := range []int{200, 1200, 1252, e2e.DualMTU - 48} {
			if got, err := segmentedDatagrams(from.Node, to.Node, at, size, 1000); got != 1000 {
				t.Errorf("to %s: %d of 1000 datagrams of %d bytes arrived: %v", at, got, size, err)
			}
		}
	}
}

// segmentedDatagrams sends count datagrams of size bytes, 20 in one call as QUIC
// stacks do (UDP_SEGMENT, udp(7)), and returns how many arrive in order and whole.
// The next are sent when those before have come, so that no queue runs over.
func segmentedDatagrams(from, to *lab.Node, at netip.Addr, size, count int) (got int, err error) {
	const inCall = 20
	var in, out *net.UDPConn
	err = to.Do(func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	})
	if err != nil {
		return 0, err
	}
	defer in.Close()
	err = from.Do(func() (err error) {
		out, err = net.DialUDP("udp", nil, in.LocalAddr().(*net.UDPAddr))
		return err
	})
	if err != nil {
		return 0, err
	}
	defer out.Close()
	control := make([]byte, unix.CmsgSpace(2))
	binary.NativeEndian.PutUint64(control, uint64(unix.CmsgLen(2)))
	binary.NativeEndian.PutUint32(control[8:], unix.IPPROTO_UDP)
	binary.NativeEndian.PutUint32(control[12:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(control[16:], uint16(size))
	datagram := func(n int) []byte { return bytes.Repeat([]byte{byte(n), byte(n >> 8)}, size/2) }
	buffer := make([]byte, 1<<16)
	for got < count {
		var message []byte
		for i := range inCall {
			message = append(message, datagram(got+i)...)
		}
		if _, _, err := out.WriteMsgUDP(message, control, nil); err != nil {
			return got, err
		}
		for range inCall {
			if err := in.SetReadDeadline(time.Now().Add(e2e.Patience)); err != nil {
				return got, err
			}
			n, err := in.Read(buffer)
			if err != nil {
				return got, err
			}
			if !bytes.Equal(buffer[:n], datagram(got)) {
				return got, errors.New("the next is another")
			}
			got++
		}
	}
	return got, nil
}

// TCP into a container whose MTU is below the device's, as other networks of the
// runtime's may have it, gets segments that the container takes: those of its MSS
// and, where the daemon has started amid the connection, of the kernel's ICMP
// errors.
func TestIntegrationUnsplitTCP(t *testing.T) {
	w := e2e.NewDualWorld(t, e2e.DualConfig, "kb21", "kb22")
	d := w.Start("kb21")[0]
	host, from, to := w.Host("kb21"), w.Container("kb22"), w.Container("kb21")
	t.Run("small MTU", func(t *testing.T) {
		dualKernelPeer(w, t, "kb22")
		w.DualMesh("kb21", "kb22")
		e2e.Command(t, to.Node, "ip link set eth0 mtu 1300")
		e2e.Command(t, host.Node, "ip link set veth-c1 mtu 1300")
		e2e.Command(t, host.Node, "ip link set cni0 mtu 1300")
		for _, at := range e2e.AddressesOf(host) {
			if err := pour(from.Node, to.Node, at, 64<<20, func() error { return nil }); err != nil {
				t.Errorf("to %s: %v", at, err)
			}
			err := pour(from.Node, to.Node, at, 64<<20, func() (err error) {
				e2e.End(t, unix.SIGKILL, d)
				d, err = restart(w, host)
				return err
			})
			if err != nil {
				t.Errorf("to %s, with a restart: %v", at, err)
			}
		}
	})
}

// restart starts the daemon of a host again, for as long as the world lasts.
func restart(w *e2e.World, h *lab.Host) (*cluster.Daemon, error) {
	d, err := w.Cluster.Restart(w.T.Context(), h)
	if err != nil {
		return nil, err
	}
	return d, d.Ready(w.Context())
}

// pour sends size bytes over a TCP connection, half of them before and half after
// something is done, and compares what arrives by its SHA-256.
func pour(from, to *lab.Node, at netip.Addr, size int64, between func() error) error {
	var listener net.Listener
	var in, out net.Conn
	err := to.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
		return err
	})
	if err != nil {
		return err
	}
	defer listener.Close()
	err = from.Do(func() (err error) {
		out, err = net.DialTimeout("tcp", listener.Addr().String(), e2e.Patience)
		return err
	})
	if err != nil {
		return err
	}
	defer out.Close()
	if in, err = listener.Accept(); err != nil {
		return err
	}
	defer in.Close()
	sent, received := sha256.New(), sha256.New()
	data := rand.NewChaCha8([32]byte{})
	for half := range 2 {
		if half == 1 {
			if err := between(); err != nil {
				return err
			}
		}
		limit := time.Now().Add(2 * e2e.Patience)
		if err := errors.Join(out.SetDeadline(limit), in.SetDeadline(limit)); err != nil {
			return err
		}
		failed := make(chan error, 1)
		go func() {
			_, err := io.CopyN(io.MultiWriter(out, sent), data, size/2)
			failed <- err
		}()
		n, err := io.CopyN(received, in, size/2)
		if err = errors.Join(err, <-failed); err != nil {
			return fmt.Errorf("after %d bytes of half %d: %w", n, half, err)
		}
	}
	if !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
		return errors.New("other bytes arrived than were sent")
	}
	return nil
}
