package lease_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/lease"
	"uvxlan/lease/etcd/etcdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	subnets = etcdtest.Prefix + "/subnets/"
	network = `{"Network":"172.7.0.0/16","Backend":{"Type":"VxLAN"}}`
	// patience bounds the wait for what should be at once.
	patience = 20 * time.Second
)

func parse(t *testing.T, s string) *lease.Config {
	t.Helper()
	c, err := lease.ParseConfig([]byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func manager(t *testing.T, o lease.Options) *lease.Manager {
	t.Helper()
	m, err := lease.NewManager(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// host returns what a host at the address writes: its previous MAC or a new one.
func host(ip, mac string) func(*lease.Lease) (lease.Attrs, error) {
	return func(previous *lease.Lease) (lease.Attrs, error) {
		a := lease.Attrs{PublicIP: netip.MustParseAddr(ip), BackendType: lease.TypeVXLAN}
		a.BackendData = json.RawMessage(`{"VNI":1,"VtepMAC":"` + mac + `"}`)
		if previous != nil {
			if d, err := previous.Attrs.VXLAN(); err == nil {
				a.BackendData, _ = json.Marshal(d)
			}
		}
		return a, nil
	}
}

func value(ip string) string {
	a, _ := host(ip, "02:00:00:00:00:99")(nil)
	out, _ := json.Marshal(a)
	return string(out)
}

func put(t *testing.T, c *clientv3.Client, key, value string) {
	t.Helper()
	if _, err := c.Put(t.Context(), key, value); err != nil {
		t.Fatal(err)
	}
}

func acquire(t *testing.T, o lease.Options, config, ip, mac string) lease.Lease {
	t.Helper()
	l, err := manager(t, o).Acquire(t.Context(), parse(t, config), host(ip, mac))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAcquireOrder(t *testing.T) {
	s := etcdtest.Start(t)
	c := etcdtest.Client(t, s.Endpoint())
	o := lease.Options{Registry: etcdtest.Open(t, s.Endpoint()), Pick: func(int) int { return 0 }}

	first := acquire(t, o, network, "192.168.14.21", "02:00:00:00:00:21")
	if first.Subnet.String() != "172.7.1.0/24" {
		t.Errorf("fresh lease %s", first.Subnet)
	}
	again := acquire(t, o, network, "192.168.14.21", "02:00:00:00:00:ff")
	if !again.Equal(first) || again.Revision != first.Revision {
		t.Errorf("own lease is not reused: %+v, was %+v", again, first)
	}
	o.Previous = netip.MustParsePrefix("172.7.22.0/24")
	if l := acquire(t, o, network, "192.168.14.22", "02:00:00:00:00:22"); l.Subnet != o.Previous {
		t.Errorf("previous subnet is not taken: %s", l.Subnet)
	}
	if l := acquire(t, o, network, "192.168.14.23", "02:00:00:00:00:23"); l.Subnet.String() != "172.7.2.0/24" {
		t.Errorf("taken previous subnet led to %s", l.Subnet)
	}

	put(t, c, subnets+"172.7.99.0-24", value("192.168.14.24"))
	reserved := acquire(t, o, network, "192.168.14.24", "02:00:00:00:00:24")
	if reserved.Subnet.String() != "172.7.99.0/24" || !reserved.Permanent {
		t.Errorf("reservation is not used: %+v", reserved)
	}
	got, err := c.Get(t.Context(), subnets+"172.7.99.0-24")
	if err != nil || got.Kvs[0].Lease != 0 {
		t.Errorf("reservation got a time to live: %v, %v", got, err)
	}
}

func TestAcquireRemovesALeaseThatDoesNotFit(t *testing.T) {
	s := etcdtest.Start(t)
	o := lease.Options{Registry: etcdtest.Open(t, s.Endpoint())}
	old := acquire(t, o, network, "192.168.14.21", "02:00:00:00:00:21")
	l := acquire(t, o, `{"Network":"10.9.0.0/16","Backend":{"Type":"vxlan"}}`, "192.168.14.21", "02:00:00:00:00:ff")
	if !netip.MustParsePrefix("10.9.0.0/16").Overlaps(l.Subnet) || !l.Attrs.Equal(old.Attrs) {
		t.Errorf("got %+v, want the old MAC in the new network", l)
	}
	if all, _, err := o.Registry.List(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("left %+v, %v", all, err)
	}
}

func TestDualStackLease(t *testing.T) {
	s := etcdtest.Start(t)
	o := lease.Options{Registry: etcdtest.Open(t, s.Endpoint()), Pick: func(int) int { return 0 }}
	const dual = `{"EnableIPv6":true,"Network":"172.7.0.0/16","IPv6Network":"fd00:7::/56","Backend":{"Type":"vxlan"}}`
	a := acquire(t, o, dual, "192.168.14.21", "02:00:00:00:00:21")
	b := acquire(t, o, dual, "192.168.14.22", "02:00:00:00:00:22")
	if a.Key() != "172.7.1.0-24&fd00:7:0:1::-64" || b.Key() != "172.7.2.0-24&fd00:7:0:2::-64" {
		t.Errorf("got %s and %s", a.Key(), b.Key())
	}
	o.Previous, o.PreviousV6 = netip.MustParsePrefix("172.7.33.0/24"), netip.MustParsePrefix("fd00:7:0:44::/64")
	if l := acquire(t, o, dual, "192.168.14.23", "02:00:00:00:00:23"); l.Key() != "172.7.33.0-24&fd00:7:0:44::-64" {
		t.Errorf("with the earlier run's subnets got %s", l.Key())
	}
	// Each family by itself: one that is taken doesn't cost the other.
	o.Previous = netip.MustParsePrefix("172.7.34.0/24")
	if l := acquire(t, o, dual, "192.168.14.24", "02:00:00:00:00:24"); l.Key() != "172.7.34.0-24&fd00:7:0:3::-64" {
		t.Errorf("with half of the earlier run's subnets free got %s", l.Key())
	}
	if again := acquire(t, o, dual, "192.168.14.21", "02:00:00:00:00:ff"); again.Key() != a.Key() || again.Revision != a.Revision {
		t.Errorf("own lease is not reused: %+v, was %+v", again, a)
	}
}

// A host keeps its IPv4 subnet when IPv6 comes to a network or goes.
func TestIPv6ComesAndGoes(t *testing.T) {
	s := etcdtest.Start(t)
	last := 0
	o := lease.Options{Registry: etcdtest.Open(t, s.Endpoint()), Pick: func(int) int { last++; return last }}
	const dual = `{"EnableIPv6":true,"Network":"172.7.0.0/16","IPv6Network":"fd00:7::/56","Backend":{"Type":"vxlan"}}`
	before := acquire(t, o, network, "192.168.14.21", "02:00:00:00:00:21")
	for _, config := range []string{dual, network} {
		l := acquire(t, o, config, "192.168.14.21", "02:00:00:00:00:ff")
		if l.Subnet != before.Subnet || l.IPv6Subnet.IsValid() != (config == dual) || !l.Attrs.Equal(before.Attrs) {
			t.Errorf("%s was followed by %s, with %+v", before.Key(), l.Key(), l.Attrs)
		}
		if all, _, err := o.Registry.List(t.Context()); err != nil || len(all) != 1 {
			t.Errorf("left %+v, %v", all, err)
		}
	}
}

// A hundred hosts start at once, each with its own connection. There is a
// subnet for each and no more. One subnet is reserved for one of the hosts, and
// one more for a host that isn't there.
func TestHundredHostsShareHundredSubnets(t *testing.T) {
	const n = 100
	s := etcdtest.Start(t)
	c := etcdtest.Client(t, s.Endpoint())
	put(t, c, subnets+"172.7.7.0-24", value("192.168.14.1"))
	put(t, c, subnets+"172.7.8.0-24", value("192.168.15.8"))
	cfg := parse(t, `{"Network":"172.7.0.0/16","SubnetMin":"172.7.1.0","SubnetMax":"172.7.101.0","Backend":{"Type":"vxlan"}}`)
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		owners = map[netip.Prefix]string{}
		failed []error
		begin  = make(chan struct{})
	)
	acquire := func(ip string) {
		m := manager(t, lease.Options{Registry: etcdtest.Open(t, s.Endpoint())})
		wg.Go(func() {
			<-begin
			l, err := m.Acquire(t.Context(), cfg, host(ip, "02:00:00:00:00:01"))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, err)
				return
			}
			owners[l.Subnet] = ip
		})
	}
	for i := range n {
		acquire(fmt.Sprintf("192.168.14.%d", i+1))
	}
	since := time.Now()
	close(begin)
	wg.Wait()
	t.Logf("%d hosts have a subnet each after %s", len(owners), time.Since(since))
	if len(owners) != n || len(failed) > 0 {
		t.Errorf("%d hosts have a subnet of their own, errors %v", len(owners), failed)
	}
	all, _, err := etcdtest.Open(t, s.Endpoint()).List(t.Context())
	if err != nil || len(all) != n+1 {
		t.Fatalf("%d leases, %v", len(all), err)
	}
	owners[netip.MustParsePrefix("172.7.8.0/24")] = "192.168.15.8" // as it was reserved
	for _, l := range all {
		reserved := l.Subnet.String() == "172.7.7.0/24" || l.Subnet.String() == "172.7.8.0/24"
		if l.Permanent != reserved || l.Attrs.PublicIP.String() != owners[l.Subnet] {
			t.Errorf("%s is held by %s, permanent: %t; %s thinks it has it", l.Subnet, l.Attrs.PublicIP, l.Permanent, owners[l.Subnet])
		}
	}
	if owner := owners[netip.MustParsePrefix("172.7.7.0/24")]; owner != "192.168.14.1" {
		t.Errorf("a subnet that is reserved went to %s", owner)
	}
	m := manager(t, lease.Options{Registry: etcdtest.Open(t, s.Endpoint())})
	if l, err := m.Acquire(t.Context(), cfg, host("192.168.15.1", "02:00:00:00:01:00")); !errors.Is(err, lease.ErrNoSubnet) {
		t.Errorf("one more host got %s, %v", l.Subnet, err)
	}
}

// running is a Run under test.
type running struct {
	t       *testing.T
	updates chan lease.Update
	done    chan error
	cancel  context.CancelFunc
}

func run(t *testing.T, m *lease.Manager, own lease.Lease) *running {
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{t, make(chan lease.Update, 100), make(chan error, 1), cancel}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.done <- m.Run(ctx, own, func(u lease.Update) { r.updates <- u })
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return r
}

func (r *running) next() lease.Update {
	r.t.Helper()
	select {
	case u := <-r.updates:
		return u
	case err := <-r.done:
		r.t.Fatalf("Run ended: %v", err)
	case <-time.After(patience):
		r.t.Fatal("no update came")
	}
	panic("unreachable")
}

func (r *running) end() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(patience):
		r.t.Fatal("Run doesn't end")
	}
	panic("unreachable")
}

// stored waits until etcd holds the wanted value under the key, in a version
// after the given one.
func stored(t *testing.T, c *clientv3.Client, key string, after int64, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for resp := range c.Watch(ctx, key, clientv3.WithRev(after+1)) {
		for _, e := range resp.Events {
			if string(e.Kv.Value) == want {
				return
			}
		}
	}
	t.Fatalf("%s never became %s", key, want)
}

func TestRunReportsPeersAndNotItself(t *testing.T) {
	s := etcdtest.Start(t)
	c, o := etcdtest.Client(t, s.Endpoint()), lease.Options{Registry: etcdtest.Open(t, s.Endpoint())}
	put(t, c, subnets+"172.7.200.0-24", value("192.168.14.99"))
	m := manager(t, o)
	own, err := m.Acquire(t.Context(), parse(t, network), host("192.168.14.21", "02:00:00:00:00:21"))
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, m, own)
	if u := r.next(); !u.Reset || len(u.Leases) != 1 || u.Leases[0].Key() != "172.7.200.0-24" {
		t.Errorf("snapshot %+v", u)
	}
	if st := m.Status(); !st.Connected || st.Lease.Subnet != own.Subnet {
		t.Errorf("status %+v", st)
	}
	put(t, c, subnets+own.Key(), valueOf(own)) // an echo of our own
	put(t, c, subnets+"172.7.201.0-24", value("192.168.14.98"))
	if u := r.next(); u.Reset || len(u.Leases) != 1 || u.Leases[0].Key() != "172.7.201.0-24" || u.Leases[0].Attrs.PublicIP.String() != "192.168.14.98" {
		t.Errorf("new lease %+v", u)
	}
	if _, err := c.Delete(t.Context(), subnets+"172.7.201.0-24"); err != nil {
		t.Fatal(err)
	}
	if u := r.next(); u.Reset || len(u.Leases) != 0 || len(u.Deleted) != 1 || u.Deleted[0].Subnet.String() != "172.7.201.0/24" {
		t.Errorf("deletion %+v", u)
	}
	r.cancel()
	if err := r.end(); err != nil {
		t.Errorf("Run returned %v", err)
	}
}

func valueOf(l lease.Lease) string {
	out, _ := json.Marshal(l.Attrs)
	return string(out)
}

func TestRunRenewsInTime(t *testing.T) {
	s := etcdtest.Start(t)
	c := etcdtest.Client(t, s.Endpoint())
	o := lease.Options{Registry: etcdtest.Open(t, s.Endpoint()), TTL: 6 * time.Second, RenewMargin: 5 * time.Second}
	m := manager(t, o)
	own, err := m.Acquire(t.Context(), parse(t, network), host("192.168.14.21", "02:00:00:00:00:21"))
	if err != nil {
		t.Fatal(err)
	}
	run(t, m, own)
	for deadline := time.After(patience); m.Status().Lease.Expires.Before(own.Expires.Add(2 * time.Second)); {
		select {
		case <-deadline:
			t.Fatal("never renewed")
		case <-time.After(10 * time.Millisecond):
		}
	}
	got, err := c.Get(t.Context(), subnets+own.Key())
	if err != nil || len(got.Kvs) != 1 || got.Kvs[0].ModRevision != own.Revision || got.Kvs[0].Lease != own.ID {
		t.Errorf("after two renewals %v, %v; want the entry untouched", got, err)
	}
	if all, err := c.Leases(t.Context()); err != nil || len(all.Leases) != 1 {
		t.Errorf("after two renewals there are etcd's leases %v, %v", all, err)
	}
}

func TestRunPutsItsLeaseBack(t *testing.T) {
	s := etcdtest.Start(t)
	c, o := etcdtest.Client(t, s.Endpoint()), lease.Options{Registry: etcdtest.Open(t, s.Endpoint())}
	m := manager(t, o)
	own, err := m.Acquire(t.Context(), parse(t, network), host("192.168.14.21", "02:00:00:00:00:21"))
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, m, own)
	r.next()
	gone, err := c.Delete(t.Context(), subnets+own.Key())
	if err != nil {
		t.Fatal(err)
	}
	stored(t, c, subnets+own.Key(), gone.Header.Revision, valueOf(own))

	edited, err := c.Put(t.Context(), subnets+own.Key(), value("192.168.14.21"))
	if err != nil {
		t.Fatal(err)
	}
	stored(t, c, subnets+own.Key(), edited.Header.Revision, valueOf(own))
	if len(r.updates) > 0 {
		t.Errorf("the own lease was reported: %+v", <-r.updates)
	}
}

func TestRunEndsWhenAnotherHostHoldsItsSubnet(t *testing.T) {
	s := etcdtest.Start(t)
	c, o := etcdtest.Client(t, s.Endpoint()), lease.Options{Registry: etcdtest.Open(t, s.Endpoint())}
	m := manager(t, o)
	own, err := m.Acquire(t.Context(), parse(t, network), host("192.168.14.21", "02:00:00:00:00:21"))
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, m, own)
	r.next()
	put(t, c, subnets+own.Key(), value("192.168.14.66"))
	err = r.end()
	if want := own.Subnet.String() + " is held by 192.168.14.66"; !errors.Is(err, lease.ErrLeaseLost) || !strings.Contains(err.Error(), want) {
		t.Errorf("Run returned %v, want %q in it", err, want)
	}
}

func TestRunOutlivesAnOutage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	s := etcdtest.StartAt(t, dir, "http://127.0.0.1:0")
	var log bytes.Buffer
	o := lease.Options{Registry: etcdtest.Open(t, s.Endpoint()), Logger: slog.New(slog.NewTextHandler(&log, nil))}
	m := manager(t, o)
	own, err := m.Acquire(t.Context(), parse(t, network), host("192.168.14.21", "02:00:00:00:00:21"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, etcdtest.Client(t, s.Endpoint()), subnets+"172.7.200.0-24", value("192.168.14.99"))
	r := run(t, m, own)
	r.next()
	s.Close()
	for deadline := time.After(patience); m.Status().Connected; {
		select {
		case <-deadline:
			t.Fatal("the outage isn't noticed")
		case <-time.After(10 * time.Millisecond):
		}
	}
	if len(r.updates) > 0 {
		t.Errorf("the outage led to %+v", <-r.updates)
	}

	// The host of a subnet becomes another one unseen.
	unseen := etcdtest.StartAt(t, dir, "http://127.0.0.1:0")
	put(t, etcdtest.Client(t, unseen.Endpoint()), subnets+"172.7.200.0-24", value("192.168.14.97"))
	unseen.Close()
	s = etcdtest.StartAt(t, dir, s.Endpoint())
	if u := r.next(); !u.Reset || len(u.Leases) != 1 || u.Leases[0].Key() != "172.7.200.0-24" || u.Leases[0].Attrs.PublicIP.String() != "192.168.14.97" {
		t.Errorf("after the outage %+v", u)
	}
	put(t, etcdtest.Client(t, s.Endpoint()), subnets+"172.7.201.0-24", value("192.168.14.98"))
	if u := r.next(); len(u.Leases) != 1 || u.Leases[0].Key() != "172.7.201.0-24" {
		t.Errorf("a new lease after the outage %+v", u)
	}
	r.cancel()
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("the outage is logged %d times:\n%s", n, &log)
	}
}

func TestConfigWaitsForEtcdAndForAKey(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "etcd")
	s := etcdtest.StartAt(t, dir, "http://127.0.0.1:0")
	s.Close()
	m := manager(t, lease.Options{Registry: etcdtest.Open(t, s.Endpoint())})
	type result struct {
		c   *lease.Config
		err error
	}
	got := make(chan result, 1)
	go func() {
		c, err := m.Config(t.Context())
		got <- result{c, err}
	}()
	s = etcdtest.StartAt(t, dir, s.Endpoint())
	put(t, etcdtest.Client(t, s.Endpoint()), etcdtest.Prefix+"/config", network)
	if r := <-got; r.err != nil || r.c.Backend.Type != lease.TypeVXLAN {
		t.Errorf("got %+v, %v", r.c, r.err)
	}
	put(t, etcdtest.Client(t, s.Endpoint()), etcdtest.Prefix+"/config", `{"Network":"172.7.0.0/16","Backend":{"Type":"udp"}}`)
	if _, err := m.Config(t.Context()); err == nil || !strings.Contains(err.Error(), `Backend.Type "udp"`) {
		t.Errorf("a bad configuration gave %v", err)
	}
}

// compacting makes the first watch start in history that is gone.
type compacting struct {
	lease.Registry
	t    *testing.T
	c    *clientv3.Client
	once sync.Once
}

func (r *compacting) Watch(ctx context.Context, from int64, report func(lease.Update)) error {
	r.once.Do(func() {
		put(r.t, r.c, subnets+"172.7.201.0-24", value("192.168.14.98"))
		last, err := r.c.Put(ctx, "/elsewhere", "")
		if err == nil {
			_, err = r.c.Compact(ctx, last.Header.Revision)
		}
		if err != nil {
			r.t.Error(err)
		}
	})
	return r.Registry.Watch(ctx, from, report)
}

func TestRunReadsEverythingAgainAfterCompaction(t *testing.T) {
	s := etcdtest.Start(t)
	c := etcdtest.Client(t, s.Endpoint())
	m := manager(t, lease.Options{Registry: &compacting{Registry: etcdtest.Open(t, s.Endpoint()), t: t, c: c}})
	own, err := m.Acquire(t.Context(), parse(t, network), host("192.168.14.21", "02:00:00:00:00:21"))
	if err != nil {
		t.Fatal(err)
	}
	r := run(t, m, own)
	if u := r.next(); !u.Reset || len(u.Leases) != 0 {
		t.Errorf("first snapshot %+v", u)
	}
	if u := r.next(); !u.Reset || len(u.Leases) != 1 || u.Leases[0].Key() != "172.7.201.0-24" {
		t.Errorf("second snapshot %+v", u)
	}
}

// rival takes the same IPv6 subnet just before we create our lease. It renews
// its own lease just after, as flannel does.
type rival struct {
	lease.Registry
	take, renew sync.Once
	its         lease.Lease
}

func (r *rival) Create(ctx context.Context, l lease.Lease, ttl time.Duration) (lease.Lease, error) {
	var err error
	r.take.Do(func() {
		other := l
		other.Subnet = netip.MustParsePrefix("172.7.77.0/24")
		other.Attrs, _ = host("192.168.14.77", "02:00:00:00:00:77")(nil)
		r.its, err = r.Registry.Create(ctx, other, ttl)
	})
	if err != nil {
		return l, err
	}
	l, err = r.Registry.Create(ctx, l, ttl)
	if err == nil {
		r.renew.Do(func() { _, err = r.Update(ctx, r.its, ttl) })
	}
	return l, err
}

func TestTheLaterOfTwoGivesUpACommonIPv6Subnet(t *testing.T) {
	s := etcdtest.Start(t)
	o := lease.Options{Registry: &rival{Registry: etcdtest.Open(t, s.Endpoint())}, Pick: func(int) int { return 0 }}
	const dual = `{"EnableIPv6":true,"Network":"172.7.0.0/16","IPv6Network":"fd00:7::/56","Backend":{"Type":"vxlan"}}`
	l := acquire(t, o, dual, "192.168.14.21", "02:00:00:00:00:21")
	if l.Key() != "172.7.1.0-24&fd00:7:0:2::-64" {
		t.Errorf("got %s", l.Key())
	}
	if all, _, err := o.Registry.List(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("left %+v, %v", all, err)
	}
}
