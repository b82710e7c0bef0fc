package lease_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/lease"
	"uvxlan/lease/etcd/etcdtest"
)

// lines is a log that may be read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// damage puts a value that can't be read under a lease's key, and returns its
// revision.
func damage(t *testing.T, c *clientv3.Client, l lease.Lease) int64 {
	t.Helper()
	r, err := c.Put(t.Context(), subnets+l.Key(), `{"PublicIP":"192.168.14.`)
	if err != nil {
		t.Fatal(err)
	}
	return r.Header.Revision
}

// Somebody damages our entry while we run. It is put right at once, with a time
// to live. Damage to a peer's entry changes nothing.
func TestRunPutsADamagedEntryRight(t *testing.T) {
	s := etcdtest.Start(t)
	c, log := etcdtest.Client(t, s.Endpoint()), &lines{}
	put(t, c, subnets+"172.7.200.0-24", value("192.168.14.99"))
	m := manager(t, lease.Options{Registry: etcdtest.Open(t, s.Endpoint()), Logger: slog.New(slog.NewTextHandler(log, nil))})
	own, err := m.Acquire(t.Context(), parse(t, network), host("192.168.14.21", "02:00:00:00:00:21"))
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, m, own)
	r.next()
	peer := lease.Lease{Subnet: netip.MustParsePrefix("172.7.200.0/24")}
	damage(t, c, peer)
	stored(t, c, subnets+own.Key(), damage(t, c, own), valueOf(own))
	got, err := c.Get(t.Context(), subnets+own.Key())
	if err != nil || len(got.Kvs) != 1 || got.Kvs[0].Lease == 0 {
		t.Errorf("it was put back as %v, %v", got, err)
	}
	await(t, m, "right", func(st lease.Status) bool { return st.Lease.Revision > own.Revision && !st.Lease.Permanent })
	if want := "cause=damaged"; !strings.Contains(log.String(), want) {
		t.Errorf("no %q in\n%s", want, log)
	}

	put(t, c, subnets+"172.7.201.0-24", value("192.168.14.98"))
	if u := r.next(); len(u.Leases) != 1 || u.Leases[0].Key() != "172.7.201.0-24" {
		t.Errorf("an update %+v", u)
	}
}

// A peer's damaged entry says nothing new, not even in a snapshot.
func TestDamagedPeerStaysKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(network)
		m.put(peer("172.7.31.0/24", "192.168.15.31"), 0)
		way := newLink(m)
		h := live(t, way, nil, "192.168.14.21")
		for _, subnet := range []string{"172.7.31.0/24", "172.7.32.0/24"} {
			m.put(lease.Lease{Subnet: netip.MustParsePrefix(subnet), Damaged: true}, 0)
			way.cut()
			pause(time.Minute)
			way.restore()
			pause(time.Minute)
			h.knows("172.7.31.0/24 192.168.15.31")
		}
		h.stop()
	})
}

// A starting host that finds its own entry damaged puts it right and keeps its
// subnet. A host that has no record of the subnet takes another one.
func TestStartWithADamagedEntry(t *testing.T) {
	for _, recorded := range []bool{true, false} {
		t.Run(fmt.Sprintf("recorded %t", recorded), func(t *testing.T) {
			s := etcdtest.Start(t)
			c, log, state := etcdtest.Client(t, s.Endpoint()), &lines{}, &shelf{}
			put(t, c, etcdtest.Prefix+"/config", network)
			o := lease.Options{Registry: etcdtest.Open(t, s.Endpoint()), Store: state}
			m := manager(t, o)
			cfg, err := m.Config(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			own, err := m.Acquire(t.Context(), cfg, host("192.168.14.21", "02:00:00:00:00:21"))
			if err != nil {
				t.Fatal(err)
			}
			r := run(t, m, own)
			r.next()
			r.cancel()
			if err := r.end(); err != nil {
				t.Error(err)
			}
			damage(t, c, own)
			if !recorded {
				o.Store, o.Previous = nil, own.Subnet
			}
			o.Logger = slog.New(slog.NewTextHandler(log, nil))
			again := acquire(t, o, network, "192.168.14.21", "02:00:00:00:00:22")
			if (again.Subnet == own.Subnet) != recorded || again.Permanent || again.Damaged {
				t.Errorf("after %s it has %+v", own.Subnet, again)
			}
			if recorded && (!again.Attrs.Equal(own.Attrs) || !strings.Contains(log.String(), "own lease is damaged")) {
				t.Errorf("it has %s, was %s\n%s", valueOf(again), valueOf(own), log)
			}
		})
	}
}

// What is in the way of a subnet need not be a lease at all.
func TestStartWithoutASubnetThatCannotBeHad(t *testing.T) {
	s := etcdtest.Start(t)
	log := &lines{}
	put(t, etcdtest.Client(t, s.Endpoint()), subnets+"172.7.21.0-24&fd00::-64-and-more", "?")
	o := lease.Options{
		Registry: etcdtest.Open(t, s.Endpoint()), Previous: netip.MustParsePrefix("172.7.21.0/24"), Logger: slog.New(slog.NewTextHandler(log, nil)),
	}
	l := acquire(t, o, network, "192.168.14.21", "02:00:00:00:00:21")
	if !l.Subnet.IsValid() || l.Subnet == o.Previous || !strings.Contains(log.String(), "choosing another subnet") {
		t.Errorf("it has %s and says\n%s", l.Subnet, log)
	}
}
