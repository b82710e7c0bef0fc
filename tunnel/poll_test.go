package tunnel

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"uvxlan/tunnel/internal/procs"
	"uvxlan/tunnel/internal/wake"
)

func openWaker(t *testing.T) wake.Waker {
	t.Helper()
	w, err := wake.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// A poll out of the scheduler's sight doesn't hold up the garbage collector.
func TestDozeLetsTheCollectorIn(t *testing.T) {
	const long = 10 * time.Minute
	waker := openWaker(t)
	var stop atomic.Bool
	dozing := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		fds := []unix.PollFd{{Fd: int32(waker.FD), Events: unix.POLLIN}}
		close(dozing)
		for !stop.Load() {
			if _, err := pollRaw(fds, long); err != nil {
				t.Error(err)
				return
			}
		}
	})
	<-dozing
	collected := make(chan struct{})
	go func() {
		for range 20 {
			runtime.GC()
		}
		close(collected)
	}()
	// The doze ends by itself only long after the test's own limit.
	<-collected
	stop.Store(true)
	waker.Wake()
	wg.Wait()
}

// poller waits for a socket and a device, and tells which of them is ready.
func TestPollerTellsTheReadyEnd(t *testing.T) {
	halt, device, sockets := openWaker(t), openWaker(t), []wake.Waker{openWaker(t), openWaker(t)}
	p := newPoller(halt.FD, []int{sockets[0].FD, sockets[1].FD}, device.FD)
	defer p.close()
	for _, c := range []struct {
		ready []wake.Waker
		want  readiness
	}{
		{[]wake.Waker{halt}, readiness{}},
		{[]wake.Waker{device}, readiness{device: true}},
		{[]wake.Waker{sockets[0]}, readiness{underlay: true}},
		{[]wake.Waker{sockets[1]}, readiness{underlay: true}},
		{[]wake.Waker{sockets[1], device}, anywhere},
	} {
		for _, w := range c.ready {
			w.Wake()
		}
		for _, idle := range []time.Duration{0, doze} { // dozing and blocked
			got := readiness{}
			for woken := false; !woken; woken = p.fds[0].Revents != 0 || got != (readiness{}) {
				var err error
				if got, err = p.wait(idle); err != nil {
					t.Fatal(err)
				}
			}
			if got != c.want {
				t.Errorf("idle for %v, it says %+v, not %+v", idle, got, c.want)
			}
		}
		for _, w := range c.ready {
			w.Reset()
		}
	}
}

// A worker dozes only while there is a P for others.
func TestPollerLeavesAP(t *testing.T) {
	before := procs.Workers()
	p := newPoller(-1, nil, -1)
	for limit, want := range map[int]bool{before + 1: false, before + 2: true} {
		p.procs = limit
		if got := p.dozes(0); got != want {
			t.Errorf("%d workers and %d Ps: dozes: %t", before+1, limit, got)
		}
	}
	p.procs = before + 2
	if p.dozes(doze) {
		t.Errorf("dozes after %v without packets", doze)
	}
	another := newPoller(-1, nil, -1)
	if p.dozes(0) {
		t.Error("dozes though another worker may have the last P")
	}
	another.close()
	if !p.dozes(0) {
		t.Error("doesn't doze after another worker's end")
	}
	p.close()
	if after := procs.Workers(); after != before {
		t.Errorf("%d workers after their end, not %d", after, before)
	}
}

// A socket that takes more ends the wait, though neither end has packets.
func TestPollerAwaitsRoom(t *testing.T) {
	p := newPoller(openWaker(t).FD, []int{openWaker(t).FD}, openWaker(t).FD)
	defer p.close()
	for _, idle := range []time.Duration{0, doze} {
		p.blocked = append(p.blocked[:0], openWaker(t).FD) // an eventfd takes more
		if at, err := p.wait(idle); err != nil || at != (readiness{}) {
			t.Errorf("idle for %v, it says %+v and %v", idle, at, err)
		}
		if len(p.fds) != 3 {
			t.Errorf("%d descriptors are polled after the wait, not 3", len(p.fds))
		}
	}
}
