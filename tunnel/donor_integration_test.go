package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/device"
	"uvxlan/tunnel/internal/testhost"
	"uvxlan/tunnel/link"
	"uvxlan/tunnel/offload"
	"uvxlan/tunnel/onlink"
	"uvxlan/tunnel/underlay"
)

// donated are descriptors that an embedder has opened, and keeps duplicates of.
type donated struct {
	queue   int
	sockets underlay.Sockets
	kept    []int // of the same open file descriptions
}

// open opens a TUN queue and UDP sockets as anybody would.
func (d *donated) open(name string) (err error) {
	d.queue, err = testhost.AttachTUN(testhost.TUNPath, name, unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR)
	if err != nil {
		return err
	}
	all := []int{d.queue}
	for _, port := range []int{testhost.Port, 0, 0} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: vtepPeer(1).Underlay.As4()}); err != nil {
			return err
		}
		all = append(all, fd)
	}
	d.sockets = underlay.Sockets{Receive: all[1:2], Send: [][]int{all[2:]}}
	for _, fd := range all {
		duplicate, err := unix.Dup(fd)
		if err != nil {
			return err
		}
		d.kept = append(d.kept, duplicate)
	}
	return nil
}

// clear makes the open file descriptions blocking, and checks that they were not.
func (d *donated) clear() error {
	for _, fd := range d.kept {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err == nil && flags&unix.O_NONBLOCK == 0 {
			err = fmt.Errorf("descriptor %d was blocking before", fd)
		}
		if err := errors.Join(err, unix.SetNonblock(fd, false)); err != nil {
			return err
		}
	}
	return nil
}

// playDonor runs a router on what it has opened, makes all of it blocking
// meanwhile, and says what still works then.
func playDonor(plan partPlan) error {
	var given donated
	if err := given.open("overlay0"); err != nil {
		return err
	}
	dev, err := device.Adopt([]int{given.queue}, offload.All)
	if err != nil {
		return err
	}
	u, err := underlay.Adopt([]underlay.Sockets{given.sockets}, offload.All)
	if err != nil {
		return err
	}
	r, err := New(dev, u, vtepConfig(1))
	if err != nil {
		return err
	}
	if err := errors.Join(link.Configure("overlay0", vtepLink(1)), r.ReplacePeers([]Peer{vtepPeer(2)})); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- r.Run(context.Background()) }()
	conn, err := net.Dial("udp4", plan.Target)
	if err != nil {
		return err
	}
	defer conn.Close()
	// By the first round trip the worker is in its loop.
	if err := echo(conn, 1); err != nil {
		return err
	}
	if err := given.clear(); err != nil {
		return err
	}
	// After each packet the worker finds its queue or socket empty.
	if err := echo(conn, 100); err != nil {
		return err
	}
	fmt.Println("packets pass")
	runtime.GC()
	fmt.Println("collected")
	if err := errors.Join(r.Close(), <-ended); err != nil {
		return err
	}
	fmt.Println("closed")
	return nil
}

// echo sends packets one at a time, each once the one before has come back.
func echo(conn net.Conn, times int) error {
	got := make([]byte, 64)
	for i := range times {
		sent := fmt.Appendf(nil, "packet %d", i)
		if _, err := conn.Write(sent); err != nil {
			return err
		}
		n, err := conn.Read(got)
		if err != nil {
			return err
		}
		if !bytes.Equal(got[:n], sent) {
			return fmt.Errorf("%q came back as %q", sent, got[:n])
		}
	}
	return nil
}

// A donor makes the open file descriptions that it shares with a running router
// blocking, as os.File.Fd once did: packets pass both ways, a garbage collection
// ends, and so does Close. In a process of its own, since one whose collector is
// held up can't say so.
func TestIntegrationDonorClearsNonblock(t *testing.T) {
	host, peer := testhost.New(t), &vtep{Host: testhost.New(t), n: 2}
	testhost.Join(host, peer.Host, "eth0", "10.66.0")
	peer.start(1, onlink.Off, vtepPeer(1))
	in := testhost.Inside(peer.Host, func() (net.PacketConn, error) { return net.ListenPacket("udp4", "10.99.2.1:0") })
	defer in.Close()
	go func() {
		buf := make([]byte, 64)
		for {
			n, from, err := in.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = in.WriteTo(buf[:n], from)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), testhost.Patience)
	defer cancel()
	c, out := part(ctx, "donor", planOf(t, partPlan{Target: in.LocalAddr().String()}))
	testhost.Inside(host, func() (struct{}, error) { return struct{}{}, c.Start() })
	err := c.Wait()
	for _, want := range []string{"packets pass", "collected", "closed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the donor's process never said %q: %v\n%s", want, err, out.String())
			break
		}
	}
	if err != nil {
		t.Error(err)
	}
}
