package host

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// patience bounds what should take a moment, on a loaded machine.
const patience = 20 * time.Second

// logged is a log that a test reads while it is written.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// runKeeper runs a keeper without the kernel's events until the test ends.
func runKeeper(t *testing.T, parts ...Part) (*Keeper, *logged) {
	t.Helper()
	log := &logged{}
	k := &Keeper{log: slog.New(slog.NewTextHandler(log, nil))}
	k.Add(parts...)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = k.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	look, end := context.WithTimeout(ctx, patience)
	defer end()
	if err := k.AwaitLook(look); err != nil {
		t.Fatal(err)
	}
	return k, log
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %s", what, patience)
		}
		time.Sleep(time.Millisecond)
	}
}

func checkBool(broken *atomic.Bool, f Fault) func(context.Context) []Fault {
	return func(context.Context) []Fault {
		if broken.Load() {
			return []Fault{f}
		}
		return nil
	}
}

func TestRepairsAtOnce(t *testing.T) {
	var broken atomic.Bool
	p := Part{
		Name: "route", Interval: time.Hour, Wakes: Is(Route),
		Check:  checkBool(&broken, Fault{What: "the route is missing", Stops: true}),
		Repair: func(context.Context) error { broken.Store(false); return nil },
	}
	k, log := runKeeper(t, p)
	broken.Store(true)
	k.report(Event{Kind: Link}) // not the part's
	k.report(Event{Kind: Route})
	await(t, "repair", func() bool { return !broken.Load() })
	await(t, "log", func() bool { return strings.Contains(log.String(), "repaired") })
	if f := k.Findings(); len(f) > 0 {
		t.Errorf("found %+v after the repair", f)
	}
}

func TestTellsOnceOfAFault(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	p := Part{Name: "forwarding", Interval: quiet, Check: checkBool(&broken, Fault{What: "off", Remedy: "sysctl", Stops: true})}
	k, log := runKeeper(t, p)
	first := k.Findings()
	if len(first) != 1 || !first[0].Stops || first[0].Part != "forwarding" || first[0].String() != "off: sysctl" {
		t.Fatalf("found %+v", first)
	}
	for range 3 {
		k.Wake("forwarding")
	}
	broken.Store(false)
	await(t, "healing", func() bool { return len(k.Findings()) == 0 })
	if text := log.String(); strings.Count(text, "not as it should be") != 1 || strings.Count(text, "should be again") != 1 {
		t.Errorf("the log says\n%s", text)
	}
}

// A part that is asked about an event may wait for somebody who wakes a part.
func TestWakesMayWaitForWake(t *testing.T) {
	asked, woken, reported := make(chan struct{}), make(chan struct{}), make(chan struct{})
	p := Part{
		Name: "route", Interval: time.Hour, Check: func(context.Context) []Fault { return nil },
		Wakes: func(Event) bool {
			close(asked)
			<-woken
			return true
		},
	}
	k, _ := runKeeper(t, p)
	go func() { k.report(Event{Kind: Route}); close(reported) }()
	go func() { <-asked; k.Wake("route"); close(woken) }()
	select {
	case <-reported:
	case <-time.After(patience):
		t.Fatal("they wait for each other")
	}
}

// A repair that fails is tried again, and told of once.
func TestRepairIsRepeated(t *testing.T) {
	var broken atomic.Bool
	var tries atomic.Int32
	broken.Store(true)
	p := Part{Name: "firewall", Interval: quiet, Check: checkBool(&broken, Fault{What: "rules are missing"})}
	p.Repair = func(context.Context) error {
		if tries.Add(1) < 3 {
			return errors.New("the lock is held")
		}
		broken.Store(false)
		return nil
	}
	k, log := runKeeper(t, p)
	await(t, "the third try", func() bool { return len(k.Findings()) == 0 })
	if n := strings.Count(log.String(), "tried again"); n != 1 {
		t.Errorf("told %d times:\n%s", n, log.String())
	}
}

// A repair that waits for something in vain is tried again after the interval,
// however long it waited.
func TestWaitingDelaysNoRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const waits, interval = 5 * time.Second, 2 * time.Second
		var ends []time.Time
		p := Part{Name: "firewall", Interval: interval, Check: func(context.Context) []Fault { return []Fault{{What: "rules are missing"}} }}
		p.Repair = func(context.Context) error {
			time.Sleep(waits)
			ends = append(ends, time.Now())
			return errors.New("the lock is held")
		}
		k := &Keeper{log: slog.New(slog.DiscardHandler)}
		k.Add(p)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := k.Run(ctx); err != nil {
			t.Fatal(err)
		}
		for i := range ends[1:] {
			if pause := ends[i+1].Sub(ends[i]) - waits; pause != interval+quiet {
				t.Errorf("try %d began %s after the one before, want %s", i+1, pause, interval+quiet)
			}
		}
	})
}

// A part that waits delays no other, and what stops packets is named first.
func TestPartsAreApart(t *testing.T) {
	release := make(chan struct{})
	var slow atomic.Bool
	k, _ := runKeeper(t,
		Part{Name: "files", Check: func(context.Context) []Fault { return []Fault{{What: "not written"}} }},
		Part{Name: "lock", Interval: quiet, Check: func(context.Context) []Fault {
			if slow.Load() {
				<-release
			}
			return nil
		}})
	slow.Store(true)
	k.Wake("lock")
	k.Add(Part{Name: "route", Check: func(context.Context) []Fault { return []Fault{{What: "missing", Stops: true}} }})
	await(t, "the part that was added", func() bool { return len(k.Findings()) == 2 })
	close(release)
	if f := k.Findings(); f[0].Part != "route" || f[1].Part != "files" {
		t.Errorf("found %+v", f)
	}
	if names := strings.Join(k.Parts(), " "); names != "files lock route" {
		t.Errorf("parts are %s", names)
	}
}

// Whoever awaits a look gets one that began after he asked, at once.
func TestAwaitLookIsFresh(t *testing.T) {
	var broken atomic.Bool
	broken.Store(true)
	k, _ := runKeeper(t, Part{Name: "peers", Interval: time.Hour, Check: checkBool(&broken, Fault{What: "not loaded", Starting: true})})
	for range 3 {
		broken.Store(!broken.Load())
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := k.AwaitLook(ctx)
		cancel()
		if got := len(k.Findings()) > 0; err != nil || got != broken.Load() {
			t.Fatalf("faulty is %t, %v; want %t", got, err, broken.Load())
		}
	}
}
