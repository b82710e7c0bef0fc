package attach

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/tunnel"
	"uvxlan/tunnel/fastpath"
)

// world is what a keeper works on.
type world struct {
	config    Config
	mu        sync.Mutex
	hazards   []string
	unread    error // why the rules can't be read
	refusal   error // why nothing can be attached
	off       string
	attached  []*fake
	discarded []*fastpath.Descriptors
	woken     int
}

// fake is a fast path that does nothing.
type fake struct {
	router    *tunnel.Router
	inherited *fastpath.Descriptors
	lose      chan error // ends Run
	closed    bool
	released  bool
	off       string // why it carries nothing though it is attached
}

func newWorld(m Mode) *world {
	w := &world{}
	w.config = Config{
		Mode: m, Interval: time.Second, Logger: slog.New(slog.DiscardHandler),
		Attach: func(r *tunnel.Router, inherited *fastpath.Descriptors) (Path, error) {
			if w.refusal != nil {
				return nil, w.refusal
			}
			f := &fake{router: r, inherited: inherited, lose: make(chan error, 1), off: w.off}
			w.attached = append(w.attached, f)
			return f, nil
		},
		Discard: func(d *fastpath.Descriptors) error { w.discarded = append(w.discarded, d); return nil },
		Hazards: func() ([]string, error) { return w.hazards, w.unread },
		Wake: func(string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.woken++
		},
	}
	return w
}

func (f *fake) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-f.lose:
		return err
	}
}

func (f *fake) Describe() control.FastPath {
	return control.FastPath{On: f.off == "", Reason: f.off, Link: "veth eth0"}
}
func (f *fake) Carries(tunnel.Peer) (bool, string) { return true, "" }
func (f *fake) Release() (d *fastpath.Descriptors, err error) {
	f.released = true
	return &fastpath.Descriptors{Links: []int{9}}, nil
}
func (f *fake) Close() error { f.closed = true; return nil }

func (w *world) isOn(t *testing.T, k *Keeper, reason string) {
	t.Helper()
	d := k.Describe()
	if d.On != (reason == "") || !strings.Contains(d.Reason, reason) {
		t.Errorf("it is on: %t, %q; want %q", d.On, d.Reason, reason)
	}
	attached := 0
	for _, f := range w.attached {
		if !f.closed && !f.released {
			attached++
		}
	}
	if (attached == 1) != d.On || attached > 1 {
		t.Errorf("%d are attached", attached)
	}
}

// Rules that appear detach the fast path at the next look, and their end attaches it
// again.
func TestAutoFollowsTheRules(t *testing.T) {
	w := newWorld(Auto)
	k := New(w.config, nil)
	w.hazards = []string{"the rule x drops VXLAN datagrams"}
	if err := k.Use(new(tunnel.Router)); err != nil {
		t.Fatal(err)
	}
	w.isOn(t, k, "the rule x drops")
	w.hazards = nil
	if faults := k.check(t.Context()); faults != nil {
		t.Errorf("faults: %v", faults)
	}
	w.isOn(t, k, "")
	w.unread = errors.New("busy")
	k.check(t.Context())
	w.isOn(t, k, "") // what isn't known for a moment changes nothing
	w.unread, w.hazards = nil, []string{"the policy drops VXLAN datagrams"}
	k.check(t.Context())
	w.isOn(t, k, "the policy drops")
	w.hazards, w.unread = nil, errors.New("busy")
	k.check(t.Context())
	w.isOn(t, k, "can't be read: busy")
	w.unread = nil
	k.check(t.Context())
	w.isOn(t, k, "")
	k.Close()
	w.isOn(t, k, "the daemon stops")
}

// With on, rules are no more than a note, and a start without a fast path is refused.
func TestOn(t *testing.T) {
	w := newWorld(On)
	w.hazards = []string{"the rule x drops VXLAN datagrams"}
	k := New(w.config, nil)
	if err := k.Use(new(tunnel.Router)); err != nil {
		t.Fatal(err)
	}
	w.isOn(t, k, "")
	if faults := k.check(t.Context()); len(faults) != 1 || faults[0].Stops || !strings.Contains(faults[0].String(), "the rule x drops") {
		t.Errorf("faults: %v", faults)
	}
	k.Close()

	w = newWorld(On)
	w.refusal = errors.New("no CAP_BPF")
	k = New(w.config, nil)
	if err := k.Use(new(tunnel.Router)); !errors.Is(err, ErrNone) || !errors.Is(err, w.refusal) || strings.Contains(err.Error(), "\n") {
		t.Errorf("it says %v", err)
	}
	if faults := k.check(t.Context()); len(faults) != 1 || !strings.Contains(faults[0].What, "no CAP_BPF") {
		t.Errorf("faults: %v", faults)
	}
}

// One that is attached and may carry nothing, for the host's sake, is off too.
func TestOnAndTheHost(t *testing.T) {
	w := newWorld(On)
	w.off = "there is a tc filter"
	k := New(w.config, nil)
	if err := k.Use(new(tunnel.Router)); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), w.off) {
		t.Errorf("it says %v", err)
	}
	if faults := k.check(t.Context()); len(faults) != 1 || !strings.Contains(faults[0].What, w.off) {
		t.Errorf("faults: %v", faults)
	}
	k.Close()
}

func TestOff(t *testing.T) {
	w := newWorld(Off)
	k := New(w.config, &fastpath.Descriptors{Links: []int{7}})
	if err := k.Use(new(tunnel.Router)); err != nil {
		t.Fatal(err)
	}
	w.isOn(t, k, "-fast-path=off")
	if len(w.discarded) != 1 || w.discarded[0].Links[0] != 7 {
		t.Errorf("what was left attached: %v", w.discarded)
	}
}

// Another router, after a move or a device that was deleted, gets a fast path of its
// own, after the one before is detached.
func TestAnotherRouter(t *testing.T) {
	w := newWorld(Auto)
	k := New(w.config, nil)
	one, two := new(tunnel.Router), new(tunnel.Router)
	for range 2 {
		if err := k.Use(one); err != nil {
			t.Fatal(err)
		}
	}
	k.Detach()
	w.isOn(t, k, "are being made again")
	k.check(t.Context()) // attaches nothing to a router that is about to end
	if len(w.attached) != 1 || !w.attached[0].closed {
		t.Errorf("%d were attached", len(w.attached))
	}
	if err := k.Use(two); err != nil {
		t.Fatal(err)
	}
	w.isOn(t, k, "")
	if last := w.attached[len(w.attached)-1]; last.router != two {
		t.Error("it is attached to the router before")
	}
	k.Close()
}

// What can't be attached is tried again, ever more seldom.
func TestTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(Auto)
		w.refusal = errors.New("busy")
		tries := 0
		attach := w.config.Attach
		w.config.Attach = func(r *tunnel.Router, d *fastpath.Descriptors) (Path, error) { tries++; return attach(r, d) }
		k := New(w.config, nil)
		if err := k.Use(new(tunnel.Router)); err != nil {
			t.Fatal(err)
		}
		for range 3600 {
			time.Sleep(time.Second)
			k.check(t.Context())
		}
		if tries < 10 || tries > 25 {
			t.Errorf("%d tries in an hour", tries)
		}
		w.isOn(t, k, "busy")
		w.refusal = nil
		time.Sleep(retryLast)
		k.check(t.Context())
		w.isOn(t, k, "")
		k.Close()
	})
}

// A fast path that has become of no use is detached, and another look asked for.
func TestLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(Auto)
		k := New(w.config, nil)
		if err := k.Use(new(tunnel.Router)); err != nil {
			t.Fatal(err)
		}
		w.attached[0].lose <- errors.New("the link is gone")
		synctest.Wait()
		w.isOn(t, k, "the link is gone")
		if !w.attached[0].closed || w.woken != 1 {
			t.Errorf("closed: %t, woken %d times", w.attached[0].closed, w.woken)
		}
		time.Sleep(retryFirst)
		k.check(t.Context())
		w.isOn(t, k, "")
		k.Close()
	})
}

// A program that takes over gets the descriptors; one that doesn't know them leaves
// nothing attached.
func TestHandOver(t *testing.T) {
	for _, keep := range []bool{true, false} {
		w := newWorld(Auto)
		k := New(w.config, &fastpath.Descriptors{Links: []int{7}})
		if err := k.Use(new(tunnel.Router)); err != nil {
			t.Fatal(err)
		}
		f := w.attached[0]
		if !reflect.DeepEqual(f.inherited, &fastpath.Descriptors{Links: []int{7}}) || len(w.discarded) != 0 {
			t.Errorf("it got %v, discarded %v", f.inherited, w.discarded)
		}
		d := k.Release(keep)
		if keep != reflect.DeepEqual(d, &fastpath.Descriptors{Links: []int{9}}) || f.released != keep || f.closed == keep {
			t.Errorf("keep %t: %v, released %t, closed %t", keep, d, f.released, f.closed)
		}
		k.check(t.Context())
		if len(w.attached) != 1 {
			t.Error("it is attached again by the process that hands over")
		}
	}
}
