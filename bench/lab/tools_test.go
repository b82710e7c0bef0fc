package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestIntegrationCommand(t *testing.T) {
	l := newLab(t, Options{Hosts: DefaultHosts()[:1]})
	host := l.Host("kb21")
	out, err := host.Command(t.Context(), "readlink", "/proc/self/ns/net").Output()
	must(t, err)
	var want string
	must(t, host.Do(func() (err error) {
		want, err = os.Readlink(threadNamespace)
		return err
	}))
	if got := strings.TrimSpace(string(out)); got != want {
		t.Errorf("command ran in %s, want %s", got, want)
	}
	_, err = host.Run(t.Context(), "sh", "-c", "echo reason >&2; exit 3")
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "sh in kb21") || !strings.Contains(err.Error(), "reason") {
		t.Errorf("got %v", err)
	}
	if err := host.Command(t.Context(), "/does/not/exist").Run(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestIntegrationStop(t *testing.T) {
	l := newLab(t, Options{Hosts: DefaultHosts()[:1]})
	host := l.Host("kb21")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	polite := host.Command(t.Context(), "sleep", "1000")
	must(t, polite.Start())
	must(t, polite.Stop(ctx))
	must(t, polite.Stop(ctx))

	stubborn := host.Command(t.Context(), "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
	out := &signalWriter{written: make(chan struct{})}
	stubborn.Stdout = out
	must(t, stubborn.Start())
	<-out.written
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := stubborn.Stop(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	must(t, host.Command(t.Context(), "never-started").Stop(ctx))
}

// signalWriter tells of the first write.
type signalWriter struct {
	once    sync.Once
	written chan struct{}
}

func (w *signalWriter) Write(b []byte) (int, error) {
	w.once.Do(func() { close(w.written) })
	return len(b), nil
}

func TestIntegrationCommandContext(t *testing.T) {
	l := newLab(t, Options{Hosts: DefaultHosts()[:1]})
	ctx, cancel := context.WithCancel(t.Context())
	c := l.Host("kb21").Command(ctx, "sh", "-c", "sleep 1000 & sleep 1000")
	must(t, c.Start())
	cancel()
	if err := c.Wait(); err == nil {
		t.Error("no error from a killed command")
	}
	select {
	case <-c.Done():
	default:
		t.Error("not done after Wait")
	}
	id, err := namespaceID(l.Host("kb21").Namespace())
	must(t, err)
	deadline := time.Now().Add(patience)
	for {
		pids, err := processesIn(map[nsID]bool{id: true})
		must(t, err)
		if len(pids) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("descendants left: %v", pids)
		}
	}
}

func TestIntegrationCapture(t *testing.T) {
	l := newLab(t, Options{})
	from, to := l.Host("kb21"), l.Host("kb31")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := l.Router().Capture(ctx, "kb31", func(p Packet) bool {
		_, _, protocol, ok := p.IPv4()
		return ok && protocol == 1
	})
	must(t, err)
	reach(t, from.Node, to.Address, 1000)
	must(t, c.Await(ctx, 2))
	drops, err := c.Drops()
	must(t, err)
	must(t, c.Close())
	request, reply := c.Packets()[0], c.Packets()[1]
	src, dst, _, _ := request.IPv4()
	if !request.Outgoing || reply.Outgoing || request.Length != 1014 || len(request.Frame) != snapLength || drops != 0 {
		t.Errorf("got %+v, %+v, %d drops", request, reply, drops)
	}
	if src != from.Address || dst != to.Address {
		t.Errorf("request from %s to %s", src, dst)
	}
	if err := c.Await(ctx, 3); err == nil {
		t.Error("no error from a closed capture")
	}
	if _, err := from.Capture(ctx, "none", nil); err == nil {
		t.Error("capture on no interface")
	}
}

func TestIntegrationCaptureEndsWithContext(t *testing.T) {
	l := newLab(t, Options{Hosts: DefaultHosts()[:1]})
	ctx, cancel := context.WithCancel(t.Context())
	c, err := l.Host("kb21").Capture(ctx, eth0, nil)
	must(t, err)
	cancel()
	c.wg.Wait()
	must(t, c.Close())
	must(t, c.Close())
}

func TestIntegrationCutLinks(t *testing.T) {
	l := newLab(t, Options{})
	host, peer := l.Host("kb21"), l.Host("kb31")
	cuts := map[string]struct {
		cut  func() error
		mend func(context.Context) error
	}{
		"link":  {host.LinkDown, host.LinkUp},
		"cable": {peer.Unplug, peer.Plug},
	}
	for name, c := range cuts {
		t.Run(name, func(t *testing.T) {
			reach(t, host.Node, peer.Address, 100)
			must(t, c.cut())
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if _, err := host.Ping(ctx, peer.Address, 100); err == nil {
				t.Error("reached over a cut link")
			}
			must(t, c.mend(t.Context()))
			reach(t, host.Node, peer.Address, 100)
		})
	}
}

func TestIntegrationOffloads(t *testing.T) {
	l := newLab(t, Options{Hosts: DefaultHosts()[:1]})
	made, err := l.Host("kb21").Features(eth0)
	must(t, err)
	for _, kind := range []Offload{NICPlain, NIC, NICGRO, Veth} {
		must(t, l.SetOffloads(kind))
		h, err := l.AddHost(t.Context(), DefaultHosts()[1])
		if kind == NICPlain {
			must(t, err)
		} else {
			h = l.Host("kb22")
		}
		expectFeatures(t, h.Node, eth0, kind, true)
		expectFeatures(t, l.Router(), "kb21", kind, false)
		reach(t, h.Node, l.Host("kb21").Address, underlayMTU)
	}
	now, err := l.Host("kb21").Features(eth0)
	must(t, err)
	for name := range made {
		if !now[name] {
			t.Errorf("veth is not as it was made: %s", name)
		}
	}
	if err := l.SetOffloads(-1); err == nil {
		t.Error("unknown kind accepted")
	}
	if err := l.Router().SetFeatures("kb21", map[string]bool{"no-such-feature": true}); err == nil {
		t.Error("unknown feature accepted")
	}
}

func expectFeatures(t *testing.T, n *Node, iface string, kind Offload, host bool) {
	t.Helper()
	active, err := n.Features(iface)
	must(t, err)
	for name, on := range kind.features(host) {
		if active[name] != on {
			t.Errorf("%s of %s in %s as %s: %v", name, iface, n.Name, kind, active[name])
		}
	}
}

// A burst of single datagrams reaches a socket joined where there is GRO, and only
// there.
func TestIntegrationGRO(t *testing.T) {
	const size, number = 1000, 10
	l := newLab(t, Options{Hosts: DefaultHosts()[:2]})
	from, to := l.Host("kb21"), l.Host("kb22")
	for kind, joined := range map[Offload]bool{NIC: false, NICGRO: true, NICPlain: true} {
		must(t, l.SetOffloads(kind))
		// The kernel splits the burst, so single datagrams are on the wire.
		must(t, from.SetFeatures(eth0, map[string]bool{"tx-udp-segmentation": false}))
		var in, out *net.UDPConn
		must(t, to.Do(func() (err error) {
			in, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Address, 0)))
			return err
		}))
		must(t, from.Do(func() (err error) {
			out, err = net.DialUDP("udp4", nil, in.LocalAddr().(*net.UDPAddr))
			return err
		}))
		setUDP(t, in, unix.UDP_GRO, 1)
		setUDP(t, out, unix.UDP_SEGMENT, size)
		_, err := out.Write(make([]byte, size*number))
		must(t, err)
		must(t, in.SetReadDeadline(time.Now().Add(patience)))
		messages, b := 0, make([]byte, 1<<16)
		for got := 0; got < size*number; messages++ {
			n, err := in.Read(b)
			must(t, err)
			got += n
		}
		if joined != (messages < number) || !joined && messages != number {
			t.Errorf("%s: %d datagrams came as %d messages", kind, number, messages)
		}
		must(t, errors.Join(in.Close(), out.Close()))
	}
}

func setUDP(t *testing.T, c *net.UDPConn, option, value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, option, value) }))
	must(t, err)
}
