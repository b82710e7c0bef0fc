package lab

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
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
	for _, kind := range []Offload{NICPlain, NIC, Veth} {
		must(t, l.SetOffloads(kind))
		h, err := l.AddHost(t.Context(), DefaultHosts()[1])
		if kind == NICPlain {
			must(t, err)
		} else {
			h = l.Host("kb22")
		}
		expectFeatures(t, h.Node, eth0, kind)
		expectFeatures(t, l.Router(), "kb21", kind)
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

func expectFeatures(t *testing.T, n *Node, iface string, kind Offload) {
	t.Helper()
	active, err := n.Features(iface)
	must(t, err)
	for name, on := range kind.features() {
		if active[name] != on {
			t.Errorf("%s of %s in %s as %s: %v", name, iface, n.Name, kind, active[name])
		}
	}
	if want := kind != NICPlain; active["tx-tcp-segmentation"] != want {
		t.Errorf("TCP segmentation as %s: %v", kind, !want)
	}
}
