package lease_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"uvxlan/lease"
	"uvxlan/lease/etcd/etcdtest"
)

// flannel's hosts renew their leases by writing them again as they are.
func TestPeerRenewsItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(network), &shelf{}
		m.put(peer("172.7.31.0/24", "192.168.15.31"), 0)
		h := live(t, newLink(m), s, "192.168.14.21")
		pause(time.Minute)
		updates, saves, heard := len(h.updates), len(s.saves), h.m.Status().Heard
		for range 3 {
			m.put(peer("172.7.31.0/24", "192.168.15.31"), 24*time.Hour)
			pause(time.Minute)
		}
		if len(h.updates) != updates || len(s.saves) != saves {
			t.Errorf("%d updates and %d saves although nothing changed", len(h.updates)-updates, len(s.saves)-saves)
		}
		if again := h.m.Status().Heard; !again.After(heard.Add(2 * time.Minute)) {
			t.Errorf("heard at %s, before at %s", again, heard)
		}
		m.remove(peer("172.7.31.0/24", "192.168.15.31"))
		pause(time.Second)
		h.knows()
		h.stop()
	})
}

// A lease that is handed over to another process stays as old as it is.
func TestRenewedSurvivesAHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := newMemory(network), &shelf{}
		h := live(t, newLink(m), s, "192.168.14.21")
		begun := h.m.Status().Renewed
		pause(30 * time.Hour)
		before := h.m.Status()
		if renewed := before.Renewed.Sub(begun); renewed < 22*time.Hour || renewed > 24*time.Hour {
			t.Errorf("renewed after %s", renewed)
		}
		text, err := json.Marshal(before.Lease)
		if err != nil {
			t.Fatal(err)
		}
		h.stop()
		pause(time.Hour)
		var own lease.Lease
		if err := json.Unmarshal(text, &own); err != nil {
			t.Fatal(err)
		}
		next := manager(t, lease.Options{Registry: newLink(m), Store: s})
		next.Resume()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- next.Run(ctx, own, func(lease.Update) {}) }()
		pause(2 * time.Second)
		if st := next.Status(); !st.Renewed.Equal(before.Renewed) || !st.Lease.Expires.Equal(before.Lease.Expires) || !s.last().Renewed.Equal(before.Renewed) {
			t.Errorf("renewed at %s, before at %s; stored %+v", st.Renewed, before.Renewed, s.last())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A lease is renewed in time although the machine was suspended: timers and the
// monotonic clock stand still then.
func TestRenewalAfterSuspend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var suspended atomic.Int64
		m := newMemory(network)
		h := live(t, newLink(m), nil, "192.168.14.21", func(o *lease.Options) {
			o.Logger = slog.New(slog.DiscardHandler)
			o.Now = func() time.Time { return time.Now().Round(0).Add(time.Duration(suspended.Load())) }
		})
		pause(20 * time.Hour)
		expires := h.m.Status().Lease.Expires
		suspended.Store(int64(3*time.Hour + 10*time.Minute))
		pause(time.Minute)
		if again := h.m.Status().Lease.Expires; !again.After(expires) {
			t.Errorf("50 minutes before its end the lease isn't renewed: it expires at %s", again)
		}
		h.stop()
	})
}

// An etcd without space answers and takes no writes. The status says so and
// doesn't alternate. The lease is kept, and what is to be written waits.
func TestRegistryWithoutSpace(t *testing.T) {
	s := etcdtest.Start(t)
	c, log := etcdtest.Client(t, s.Endpoint()), &lines{}
	o := lease.Options{Registry: etcdtest.Open(t, s.Endpoint()), Logger: slog.New(slog.NewTextHandler(log, nil))}
	m := manager(t, o)
	own, err := m.Acquire(t.Context(), parse(t, network), host("192.168.14.21", "02:00:00:00:00:21"))
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, m, own)
	r.next()
	end := etcdtest.RaiseNoSpace(t, c)
	attrs, _ := host("192.168.14.71", "02:00:00:00:00:21")(nil)
	m.Publish(attrs)
	refused := await(t, m, "refused", func(s lease.Status) bool { return s.WriteErr != nil && s.Failures >= 5 })
	if !refused.Connected || refused.Err != nil || !errors.Is(refused.WriteErr, lease.ErrReadOnly) {
		t.Errorf("the status is %+v", refused)
	}

	// Another host starts, and waits.
	other := manager(t, lease.Options{Registry: etcdtest.Open(t, s.Endpoint())})
	got := make(chan lease.Lease)
	go func() {
		defer close(got)
		if l, err := other.Acquire(t.Context(), parse(t, network), host("192.168.14.22", "02:00:00:00:00:22")); err == nil {
			got <- l
		}
	}()
	await(t, other, "refused", func(s lease.Status) bool { return s.WriteErr != nil && s.Connected })
	if since := m.Status().Since; !since.Equal(refused.Since) {
		t.Errorf("the status has alternated: %+v, before %+v", m.Status(), refused)
	}
	end()
	if l := <-got; !l.Subnet.IsValid() || other.Status().WriteErr != nil {
		t.Errorf("the other host got %+v, status %+v", l, other.Status())
	}
	await(t, m, "written", func(s lease.Status) bool { return s.Lease.Attrs.Equal(attrs) && s.WriteErr == nil })
	if n := strings.Count(log.String(), "refuses to write"); n != 1 || strings.Contains(log.String(), "waiting for") {
		t.Errorf("it says %d times\n%s", n, log)
	}
}
