// Package registrytest has the tests that every [lease.Registry] passes: what it
// promises by itself, and what a [lease.Manager] makes of it.
package registrytest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"uvxlan/lease"
)

// Config is the network configuration that the tests write.
const Config = `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":8472}}`

// otherConfig is another one.
const otherConfig = `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":4789}}`

// patience bounds the wait for what should be at once.
const patience = 30 * time.Second

// Cluster is where a registry's leases are, and who can spoil them. Hosts are counted
// from 1, and there are three at least. What it can't do ends the test.
type Cluster interface {
	// Configure writes the network configuration.
	Configure(tb testing.TB, config string)
	// Open returns a registry as the host has it, closed when the test ends.
	Open(tb testing.TB, host int) Registry
	// Rewrite has somebody else change the public address in the host's lease.
	Rewrite(tb testing.TB, host int, publicIP string)
	// Spoil has somebody make the host's lease unreadable, and Remove remove it.
	Spoil(tb testing.TB, host int)
	Remove(tb testing.TB, host int)
	// Down has nobody answer, and Up everybody again.
	Down(tb testing.TB)
	Up(tb testing.TB)
}

// Registry is a registry that can be closed.
type Registry interface {
	lease.Registry
	Close() error
}

// Subnet is the one that a host has, or is to choose.
func Subnet(host int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(host), 0}), 24)
}

// Run runs the tests, each with a cluster of its own that start makes. Its hosts have no
// leases, and there is no configuration.
func Run(t *testing.T, start func(t *testing.T) Cluster) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Cluster)
	}{
		{"Configuration", configuration},
		{"LifeOfALease", lifeOfALease},
		{"Watch", watch},
		{"Outage", outage},
		{"Close", closing},
		{"HostsFindEachOther", hostsFindEachOther},
		{"OwnLeaseIsPutBack", ownLeaseIsPutBack},
		{"StartWithoutTheRegistry", startWithoutTheRegistry},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, start(t)) })
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for late := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

func publicIP(host int) string { return fmt.Sprintf("192.168.14.%d", 20+host) }

func attrs(host int) lease.Attrs {
	return lease.Attrs{
		PublicIP: netip.MustParseAddr(publicIP(host)), BackendType: lease.TypeVXLAN,
		BackendData: json.RawMessage(fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:00:%02d"}`, host)),
	}
}

// create makes a host's lease without a manager.
func create(t *testing.T, r lease.Registry, host int) lease.Lease {
	t.Helper()
	l := lease.Lease{Subnet: Subnet(host)}
	if a, ok := r.(lease.Assigner); ok {
		var err error
		if l, err = a.Assigned(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	l.Attrs = attrs(host)
	l, err := r.Create(t.Context(), l, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if l.Subnet != Subnet(host) || l.Revision == 0 {
		t.Fatalf("created %+v", l)
	}
	return l
}

func configuration(t *testing.T, c Cluster) {
	r := c.Open(t, 1)
	if _, err := r.Config(t.Context()); !errors.Is(err, lease.ErrNoConfig) {
		t.Errorf("without a configuration: %v", err)
	}
	c.Configure(t, Config)
	if text, err := r.Config(t.Context()); string(text) != Config || err != nil {
		t.Errorf("it is %s, %v", text, err)
	}
	f := follow(t, r)
	// It may change before the watch has begun, too.
	c.Configure(t, otherConfig)
	eventually(t, "the changed configuration", func() bool { return f.configured() == otherConfig })
}

func lifeOfALease(t *testing.T, c Cluster) {
	c.Configure(t, Config)
	one, two := c.Open(t, 1), c.Open(t, 2)
	if all, at, err := two.List(t.Context()); len(all) != 0 || at == 0 || err != nil {
		t.Errorf("at first there are %+v at %d, %v", all, at, err)
	}
	l := create(t, one, 1)
	f := follow(t, two)
	eventually(t, "the lease", func() bool { return f.has(1, attrs(1)) })
	before := f.reports()
	renewed, err := one.Renew(t.Context(), l, time.Hour)
	if err != nil || !renewed.Equal(l) {
		t.Errorf("renewed %+v, %v", renewed, err)
	}
	changed := renewed
	changed.Attrs = attrs(3)
	if changed, err = one.Update(t.Context(), changed, time.Hour); err != nil || changed.Revision <= l.Revision {
		t.Errorf("updated %+v, %v", changed, err)
	}
	eventually(t, "the update", func() bool { return f.has(1, attrs(3)) })
	if n := f.reports() - before; n != 1 {
		t.Errorf("%d reports: a renewal is none", n)
	}
	if _, err := one.Renew(t.Context(), l, time.Hour); !errors.Is(err, lease.ErrConflict) {
		t.Errorf("renewed what has changed: %v", err)
	}
}

func watch(t *testing.T, c Cluster) {
	c.Configure(t, Config)
	one, two, three := c.Open(t, 1), c.Open(t, 2), c.Open(t, 3)
	create(t, two, 2)
	_, at, err := one.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	create(t, three, 3) // between the list and the watch
	f := followFrom(t, one, nil, at+1)
	eventually(t, "what came before the watch", func() bool { return f.has(3, attrs(3)) })
	c.Rewrite(t, 2, "192.168.14.99")
	rewritten := attrs(2)
	rewritten.PublicIP = netip.MustParseAddr("192.168.14.99")
	eventually(t, "a change", func() bool { return f.has(2, rewritten) })
	c.Spoil(t, 2)
	eventually(t, "a lease that can't be read", func() bool { return f.damaged(2) })
	c.Remove(t, 3)
	eventually(t, "a removal", func() bool { return !f.has(3, attrs(3)) })
	all, _, err := c.Open(t, 2).List(t.Context())
	if err != nil || len(all) != 1 || !all[0].Damaged || all[0].Subnet != Subnet(2) {
		t.Errorf("listed %+v, %v", all, err)
	}
}

func outage(t *testing.T, c Cluster) {
	c.Configure(t, Config)
	one, two := c.Open(t, 1), c.Open(t, 2)
	create(t, two, 2)
	f := follow(t, one)
	c.Down(t)
	<-f.done
	if !errors.Is(f.err, lease.ErrUnavailable) {
		t.Errorf("the watch ended with %v", f.err)
	}
	if _, _, err := one.List(t.Context()); !errors.Is(err, lease.ErrUnavailable) {
		t.Errorf("listed: %v", err)
	}
	c.Up(t)
	eventually(t, "the return", func() bool {
		_, _, err := one.List(t.Context())
		return err == nil
	})
	again := follow(t, one)
	c.Rewrite(t, 2, "192.168.14.99")
	eventually(t, "a change after it", func() bool { return !again.has(2, attrs(2)) })
}

func closing(t *testing.T, c Cluster) {
	c.Configure(t, Config)
	r := c.Open(t, 1)
	f := follow(t, r)
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	<-f.done
	if f.err == nil {
		t.Error("the watch ended without an error")
	}
	if _, _, err := r.List(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("listed: %v", err)
	}
}

// following is what a watch has told.
type following struct {
	done chan struct{}

	mu     sync.Mutex // guards the rest; err is free once done is closed
	table  map[netip.Prefix]lease.Lease
	gone   []netip.Prefix
	config string
	count  int
	err    error
}

func newFollowing(all []lease.Lease) *following {
	f := &following{done: make(chan struct{}), table: map[netip.Prefix]lease.Lease{}}
	for _, l := range all {
		f.table[l.Subnet] = l
	}
	return f
}

// follow lists and watches until the test ends or the watch does.
func follow(t *testing.T, r lease.Registry) *following {
	t.Helper()
	all, at, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return followFrom(t, r, all, at+1)
}

func followFrom(t *testing.T, r lease.Registry, all []lease.Lease, from int64) *following {
	t.Helper()
	f := newFollowing(all)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(f.done)
		f.err = r.Watch(ctx, from, f.report)
	}()
	t.Cleanup(func() {
		cancel()
		<-f.done
	})
	return f
}

func (f *following) report(u lease.Update) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if u.Config != nil {
		f.config = string(u.Config)
		return
	}
	f.count++
	if u.Reset {
		clear(f.table)
	}
	for _, l := range u.Deleted {
		delete(f.table, l.Subnet)
		f.gone = append(f.gone, l.Subnet)
	}
	for _, l := range u.Leases {
		f.table[l.Subnet] = l
	}
}

func (f *following) has(host int, a lease.Attrs) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	l, ok := f.table[Subnet(host)]
	return ok && l.Attrs.Equal(a)
}

func (f *following) damaged(host int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.table[Subnet(host)].Damaged
}

func (f *following) reports() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

func (f *following) configured() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.config
}

func (f *following) leases() map[netip.Prefix]lease.Lease {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.table
}

// hasLost tells whether a host's lease was ever reported to be gone.
func (f *following) hasLost(host int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.gone, Subnet(host))
}
