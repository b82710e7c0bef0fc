package lease_test

import (
	"path/filepath"
	"testing"
	"time"

	"uvxlan/lease"
	"uvxlan/lease/etcd/etcdtest"
)

// await waits until a manager's status is as wanted.
func await(t *testing.T, m *lease.Manager, what string, is func(lease.Status) bool) lease.Status {
	t.Helper()
	for deadline := time.After(patience); ; {
		s := m.Status()
		if is(s) {
			return s
		}
		select {
		case <-deadline:
			t.Fatalf("never %s: %+v", what, s)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestStatusTellsOfTheWatch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	s := etcdtest.StartAt(t, dir, "http://127.0.0.1:0")
	m := manager(t, lease.Options{Registry: etcdtest.Open(t, s.Endpoint())})
	if st := m.Status(); st.Connected || st.Failures != 0 || !st.Since.IsZero() || !st.Watched.IsZero() {
		t.Errorf("before the first attempt %+v", st)
	}
	begun := time.Now()
	own, err := m.Acquire(t.Context(), parse(t, network), host("192.168.14.21", "02:00:00:00:00:21"))
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, m, own)
	r.next()
	watched := func(s lease.Status) bool { return !s.Watched.IsZero() }
	st := await(t, m, "watching", watched)
	if st.Watched.Before(begun) || st.Renewed.Before(begun) || st.Failures != 0 || st.LastErr != nil {
		t.Errorf("while watching %+v", st)
	}
	put(t, etcdtest.Client(t, s.Endpoint()), subnets+"172.7.200.0-24", value("192.168.14.99"))
	r.next()
	if heard := m.Status(); !heard.Heard.After(st.Heard) || heard.Watched != st.Watched {
		t.Errorf("after an event %+v, before it %+v", heard, st)
	}
	heard := m.Status().Heard
	put(t, etcdtest.Client(t, s.Endpoint()), subnets+own.Key(), valueOf(own))
	await(t, m, "hearing of the own lease", func(s lease.Status) bool { return s.Heard.After(heard) })

	s.Close()
	st = await(t, m, "down", func(s lease.Status) bool { return !s.Connected })
	if watched(st) || st.Failures == 0 || st.LastErr == nil || st.LastErrAt.Before(st.Since) || st.Lease.Subnet != own.Subnet {
		t.Errorf("in an outage %+v", st)
	}
	etcdtest.StartAt(t, dir, s.Endpoint())
	// A request from before may fail late.
	st = await(t, m, "watching again", func(s lease.Status) bool { return watched(s) && s.Connected })
	if st.Err != nil || st.LastErr == nil || st.Failures == 0 {
		t.Errorf("after an outage %+v", st)
	}
	r.cancel()
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if st := m.Status(); watched(st) || st.Lease.Subnet.IsValid() || !st.Renewed.IsZero() {
		t.Errorf("after Run %+v", st)
	}
}
