package etcd_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcd/etcdtest"
)

// keep runs a manager with a lease of its own until the test ends, and reports
// what it sees.
func keep(t *testing.T, r *etcd.Registry, o lease.Options, report func(lease.Update)) (*lease.Manager, lease.Lease) {
	t.Helper()
	o.Registry = r
	m, err := lease.NewManager(o)
	if err != nil {
		t.Fatal(err)
	}
	own, err := r.Create(t.Context(), sample("10.5.200.0/24"), o.TTL)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- m.Run(t.Context(), own, report) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Errorf("the manager ended with %v", err)
		}
	})
	return m, own
}

// await waits until the condition holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// A host that watches and renews doesn't notice that its token has expired, as
// it has whenever it renews: its entry is never written again, and no event is
// late. An etcd that was killed has forgotten all simple tokens; that heals too.
func TestTokensExpire(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]etcdtest.Options{
		"simple": {AuthTokenTTL: int(tokenTTL / time.Second)},
		"jwt":    {AuthToken: etcdtest.JWT(t, tokenTTL)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcdtest.EachBuild(t, func(t *testing.T, b etcdtest.Build) { expire(t, o, b) })
		})
	}
}

const tokenTTL = 2 * time.Second

func expire(t *testing.T, o etcdtest.Options, b etcdtest.Build) {
	o.Build = b
	c := etcdtest.StartCluster(t, etcdtest.RandomHost(), o)
	etcdtest.EnableAuth(t, c.Admin(t, nil, ""), etcdtest.User{Name: "flannel", Password: "secret", May: "READWRITE"})
	as := func() *etcd.Registry {
		return open(t, etcd.Options{Endpoints: c.Endpoints(), Username: "flannel", Password: "secret"})
	}
	var seen atomic.Int64
	m, own := keep(t, as(), lease.Options{TTL: 10 * time.Second, RenewMargin: 6 * time.Second}, func(u lease.Update) {
		seen.Store(u.Revision)
	})
	await(t, "the snapshot", func() bool { return seen.Load() > 0 })
	for range 2 {
		renewed := m.Status().Renewed
		await(t, "a renewal", func() bool { return m.Status().Renewed.After(renewed) })
		changed, err := as().Create(t.Context(), sample("10.5.1.0/24"), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		await(t, "the change", func() bool { return seen.Load() >= changed.Revision })
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("the change was seen after %s", took)
		}
		if err := as().Delete(t.Context(), changed); err != nil {
			t.Fatal(err)
		}
		if s := m.Status(); s.Lease.Revision != own.Revision || s.Lease.ID != own.ID || s.Failures > 0 {
			t.Errorf("after a renewal: %+v", s)
		}
	}
	c.Members[0].Kill()
	await(t, "the outage", func() bool { return !m.Status().Connected })
	c.Members[0].Start()
	begin := time.Now()
	await(t, "the return", func() bool { return m.Status().Connected && !m.Status().Watched.IsZero() })
	t.Logf("back %s after the start of etcd", time.Since(begin).Round(time.Millisecond))
	all, _, err := as().List(t.Context())
	if err != nil || len(all) != 1 || !all[0].Equal(own) || all[0].ID != own.ID {
		t.Errorf("in the end there is %+v, %v", all, err)
	}
}

// A user who loses the permission, as by an operator's mistake, loses neither
// the lease nor the watch for longer than that.
func TestPermissionIsTakenBack(t *testing.T) {
	t.Parallel()
	c := etcdtest.StartCluster(t, etcdtest.RandomHost(), etcdtest.Options{Build: etcdtest.Embedded()})
	etcdtest.EnableAuth(t, c.Admin(t, nil, ""),
		etcdtest.User{Name: "flannel", Password: "secret", May: "READWRITE"})
	root := c.Admin(t, nil, etcdtest.RootPassword)
	r := open(t, etcd.Options{Endpoints: c.Endpoints(), Username: "flannel", Password: "secret"})
	var seen atomic.Int64
	m, own := keep(t, r, lease.Options{TTL: 60 * time.Second, RenewMargin: 59 * time.Second}, func(u lease.Update) { seen.Store(u.Revision) })
	await(t, "the snapshot", func() bool { return seen.Load() > 0 })
	if _, err := root.UserRevokeRole(t.Context(), "flannel", "flannel"); err != nil {
		t.Fatal(err)
	}
	await(t, "the refusal", func() bool { return errors.Is(m.Status().WriteErr, etcd.ErrAccess) })
	t.Log(m.Status().WriteErr)
	if _, err := root.UserGrantRole(t.Context(), "flannel", "flannel"); err != nil {
		t.Fatal(err)
	}
	await(t, "the return", func() bool { return m.Status().WriteErr == nil })
	put, err := r.Create(t.Context(), sample("10.5.1.0/24"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the change", func() bool { return seen.Load() >= put.Revision })
	if l := m.Status().Lease; l.Revision != own.Revision || l.ID != own.ID {
		t.Errorf("the lease was %+v and is %+v", own, l)
	}
}
