package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcd/etcdtest"
)

// view is what a manager has been told: the table that a daemon would have, and
// each version of each entry.
type view struct {
	mu       sync.Mutex // guards all
	table    map[string]lease.Lease
	versions map[string]bool // key and revision
	resets   []int64         // the snapshots' revisions
	last     time.Time       // of the newest event
	revision int64
}

func newView() *view {
	return &view{table: map[string]lease.Lease{}, versions: map[string]bool{}}
}

func version(key string, revision int64) string { return fmt.Sprintf("%s@%d", key, revision) }

func (v *view) report(u lease.Update) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if u.Reset {
		clear(v.table)
		v.resets = append(v.resets, u.Revision)
	}
	for _, l := range u.Leases {
		v.table[l.Key()] = l
		v.versions[version(l.Key(), l.Revision)] = true
	}
	for _, l := range u.Deleted {
		delete(v.table, l.Key())
		v.versions[version(l.Key(), l.Revision)] = true
	}
	if !u.Reset {
		v.last = time.Now()
	}
	v.revision = u.Revision
}

func (v *view) upTo() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.revision
}

// missed are the events of the history that the view was never told of, neither
// by themselves nor by a snapshot.
func (v *view) missed(history []*clientv3.Event) (missed []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, e := range history {
		key := strings.TrimPrefix(string(e.Kv.Key), subnets)
		inSnapshot := false
		for _, r := range v.resets {
			// The first one covers what was before, the others what the
			// outage before them hid.
			inSnapshot = inSnapshot || e.Kv.ModRevision <= r
		}
		if !v.versions[version(key, e.Kv.ModRevision)] && !inSnapshot {
			missed = append(missed, version(key, e.Kv.ModRevision))
		}
	}
	return missed
}

// history is every event under the subnets' prefix so far.
func history(t *testing.T, c *clientv3.Client) (all []*clientv3.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	now, err := c.Put(ctx, subnets+"end", "")
	if err != nil {
		t.Fatal(err)
	}
	for resp := range c.Watch(ctx, subnets, clientv3.WithPrefix(), clientv3.WithRev(1)) {
		for _, e := range resp.Events {
			if e.Kv.ModRevision >= now.Header.Revision {
				return all
			}
			all = append(all, e)
		}
	}
	t.Fatal("no history")
	return nil
}

// load changes leases of other hosts, one after the other, until stopped.
type load struct {
	stop    context.CancelFunc
	done    sync.WaitGroup
	mu      sync.Mutex // guards what follows
	writes  int
	written time.Time // the newest write that succeeded
	err     error
}

func startLoad(t *testing.T, r *etcd.Registry) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{stop: cancel}
	l.done.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			err := l.change(ctx, r, i)
			l.mu.Lock()
			if err == nil {
				l.writes++
				l.written = time.Now()
			} else if ctx.Err() == nil && !errors.Is(err, lease.ErrUnavailable) && !errors.Is(err, lease.ErrExists) {
				l.err = err
			}
			l.mu.Unlock()
		}
	})
	return l
}

// change makes a lease come, or go if it is there.
func (l *load) change(ctx context.Context, r *etcd.Registry, i int) error {
	other := sample(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i % 100), 0}), 24).String())
	_, err := r.Create(ctx, other, time.Hour)
	if !errors.Is(err, lease.ErrExists) {
		return err
	}
	all, _, err := r.List(ctx)
	if err != nil {
		return err
	}
	for _, old := range all {
		if old.Subnet == other.Subnet {
			return r.Delete(ctx, old)
		}
	}
	return nil
}

func (l *load) status() (writes int, written time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writes, l.written, l.err
}

func startThree(t *testing.T, b etcdtest.Build) (*etcdtest.Cluster, *clientv3.Client) {
	t.Helper()
	c := etcdtest.StartCluster(t, etcdtest.RandomHost(), etcdtest.Options{Members: 3, Build: b})
	return c, c.Admin(t, nil, "")
}

// The leader of three members is killed while leases change all the time: no
// event is missed, no lease lost or written again. Nor when the next leader,
// once the first is back, falls silent without hanging up.
func TestLeaderIsKilled(t *testing.T) {
	t.Parallel()
	etcdtest.EachBuild(t, func(t *testing.T, b etcdtest.Build) {
		c, admin := startThree(t, b)
		v := newView()
		m, own := keep(t, open(t, etcd.Options{Endpoints: c.Endpoints()}), lease.Options{TTL: 20 * time.Second, RenewMargin: 18 * time.Second}, v.report)
		l := startLoad(t, open(t, etcd.Options{Endpoints: c.Endpoints()}))
		await(t, "events", func() bool { return v.upTo() > own.Revision+50 })
		for _, how := range []string{"killed", "silent"} {
			leader := c.Leader(t, admin)
			end, back := leader.Kill, leader.Start
			if how == "silent" {
				end, back = leader.Freeze, leader.Thaw
			}
			begin := time.Now()
			end()
			watched, wrote := false, time.Duration(0)
			await(t, "writes and events afterwards", func() bool {
				_, written, _ := l.status()
				if wrote == 0 && written.After(begin.Add(300*time.Millisecond)) {
					wrote = written.Sub(begin)
				}
				v.mu.Lock()
				defer v.mu.Unlock()
				watched = v.last.After(begin.Add(300 * time.Millisecond))
				return wrote > 0 && watched
			})
			t.Logf("leader %s: writes go on after %s, events after %s", how, wrote.Round(time.Millisecond), time.Since(begin).Round(time.Millisecond))
			back()
			from := v.upTo()
			await(t, "more events", func() bool { return v.upTo() > from+50 })
		}
		l.stop()
		l.done.Wait()
		writes, _, err := l.status()
		if err != nil {
			t.Errorf("a write was refused: %v", err)
		}
		events := history(t, admin)
		last := events[len(events)-1].Kv.ModRevision
		await(t, "the last event", func() bool { return v.upTo() >= last || len(v.missed(events)) == 0 })
		expectView(t, v, events, own)
		if s := m.Status(); s.Lease.Revision != own.Revision || s.Lease.ID != own.ID || !s.Connected {
			t.Errorf("own lease was %+v, and the manager says %+v", own, s)
		}
		t.Logf("%d writes, %d events, %d snapshots, %d failures", writes, len(events), len(v.resets), m.Status().Failures)
	})
}

// expectView compares what was reported with etcd's history.
func expectView(t *testing.T, v *view, events []*clientv3.Event, own lease.Lease) {
	t.Helper()
	table := map[string]int64{}
	var others []*clientv3.Event
	for _, e := range events {
		key := strings.TrimPrefix(string(e.Kv.Key), subnets)
		if key == own.Key() {
			if e.Kv.ModRevision != own.Revision {
				t.Errorf("own entry was written or removed again: %s at %d", e.Type, e.Kv.ModRevision)
			}
			continue
		}
		others = append(others, e)
		table[key] = e.Kv.ModRevision
		if e.Type == clientv3.EventTypeDelete {
			delete(table, key)
		}
	}
	if missed := v.missed(others); len(missed) > 0 {
		t.Errorf("%d of %d events were missed: %v", len(missed), len(others), missed)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(table) != len(v.table) {
		t.Errorf("etcd has %d leases of others, the manager %d", len(table), len(v.table))
	}
	for key, revision := range table {
		if v.table[key].Revision != revision {
			t.Errorf("%s is at %d, for the manager at %d", key, revision, v.table[key].Revision)
		}
	}
}

// With two of three members gone nothing can be written or renewed: the manager
// says so, its table and its lease stay, also for longer than the lease lasts,
// and all goes on when the members are back.
func TestQuorumIsLost(t *testing.T) {
	t.Parallel()
	const ttl = 4 * time.Second
	etcdtest.EachBuild(t, func(t *testing.T, b etcdtest.Build) {
		c, _ := startThree(t, b)
		v := newView()
		m, own := keep(t, open(t, etcd.Options{Endpoints: c.Endpoints()}), lease.Options{TTL: ttl, RenewMargin: 3 * time.Second}, v.report)
		other := open(t, etcd.Options{Endpoints: c.Endpoints()})
		before, err := other.Create(t.Context(), sample("10.5.1.0/24"), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		await(t, "the first event", func() bool { return v.upTo() >= before.Revision })
		begin := time.Now()
		for _, gone := range c.Members[:2] {
			gone.Kill()
		}
		await(t, "the outage", func() bool { return !m.Status().Connected })
		t.Logf("after %s: %v", time.Since(begin).Round(time.Millisecond), m.Status().Err)
		time.Sleep(time.Until(begin.Add(ttl + 2*time.Second))) // longer than the lease lasts
		v.mu.Lock()
		if len(v.table) != 1 {
			t.Errorf("the table is %v", v.table)
		}
		v.mu.Unlock()
		begin = time.Now()
		for _, back := range c.Members[:2] {
			back.Start()
		}
		await(t, "the return", func() bool { return m.Status().Connected && !m.Status().Watched.IsZero() })
		t.Logf("back %s after the members' start", time.Since(begin).Round(time.Millisecond))
		var after lease.Lease
		await(t, "a write", func() bool {
			after, err = other.Create(t.Context(), sample("10.5.2.0/24"), time.Hour)
			return err == nil || errors.Is(err, lease.ErrExists)
		})
		await(t, "the event after it", func() bool {
			v.mu.Lock()
			defer v.mu.Unlock()
			return v.table[sample("10.5.2.0/24").Key()].Revision >= after.Revision
		})
		if s := m.Status(); s.Lease.Revision != own.Revision || s.Lease.ID != own.ID {
			t.Errorf("own lease was %+v and is %+v", own, s.Lease)
		}
	})
}
