package etcd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcd/etcdtest"
)

func TestMain(m *testing.M) {
	etcdtest.Main()
	flag.Parse()
	// They wait, for servers and timeouts, more than they compute.
	_ = flag.Set("test.parallel", "10")
	goleak.VerifyTestMain(m)
}

const (
	subnets = etcdtest.Prefix + "/subnets/"
	value   = `{"PublicIP":"192.168.14.21","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}`
)

func sample(subnet string) lease.Lease {
	return lease.Lease{Subnet: netip.MustParsePrefix(subnet), Attrs: lease.Attrs{
		PublicIP:    netip.MustParseAddr("192.168.14.21"),
		BackendType: lease.TypeVXLAN,
		BackendData: json.RawMessage(`{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}`),
	}}
}

// leases counts etcd's leases, to see that none leaks.
func leases(t *testing.T, c *clientv3.Client) int {
	t.Helper()
	all, err := c.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(all.Leases)
}

func ok(t *testing.T) func(l lease.Lease, err error) lease.Lease {
	return func(l lease.Lease, err error) lease.Lease {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
}

func TestLifeOfALease(t *testing.T) {
	s := etcdtest.Start(t)
	r, c := etcdtest.Open(t, s.Endpoint()), etcdtest.Client(t, s.Endpoint())
	ctx, must := t.Context(), ok(t)

	l := must(r.Create(ctx, sample("10.5.52.0/24"), time.Hour))
	kv, err := c.Get(ctx, subnets+"10.5.52.0-24")
	if err != nil || len(kv.Kvs) != 1 || string(kv.Kvs[0].Value) != value {
		t.Fatalf("stored %v, %v", kv, err)
	}
	if l.Revision != kv.Kvs[0].ModRevision || l.ID != kv.Kvs[0].Lease || time.Until(l.Expires) < 59*time.Minute {
		t.Errorf("created %+v", l)
	}
	for name, other := range map[string]lease.Lease{"same": sample("10.5.52.0/24"), "dual": {Subnet: l.Subnet, IPv6Subnet: netip.MustParsePrefix("fd00:1::/64")}} {
		if _, err := r.Create(ctx, other, time.Hour); !errors.Is(err, lease.ErrExists) {
			t.Errorf("%s subnet created again: %v", name, err)
		}
	}

	renewed := must(r.Renew(ctx, l, time.Hour))
	if renewed.Revision != l.Revision || renewed.ID != l.ID {
		t.Errorf("renewal rewrote the entry: %+v, was %+v", renewed, l)
	}
	changed := renewed
	changed.Attrs.PublicIP = netip.MustParseAddr("192.168.14.22")
	changed = must(r.Update(ctx, changed, time.Hour))
	if changed.Revision <= l.Revision || changed.ID != l.ID {
		t.Errorf("update %+v, was %+v", changed, l)
	}
	for name, op := range map[string]func() error{
		"renew":  func() error { _, err := r.Renew(ctx, l, time.Hour); return err },
		"update": func() error { _, err := r.Update(ctx, l, 2*time.Hour); return err },
		"delete": func() error { return r.Delete(ctx, l) },
	} {
		if err := op(); !errors.Is(err, lease.ErrConflict) {
			t.Errorf("%s of a stale lease: %v", name, err)
		}
	}

	longer := must(r.Renew(ctx, changed, 2*time.Hour))
	if longer.ID == changed.ID || leases(t, c) != 1 {
		t.Errorf("another length kept etcd lease %x or left %d", longer.ID, leases(t, c))
	}
	if _, err := c.Revoke(ctx, clientv3.LeaseID(longer.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Renew(ctx, longer, time.Hour); !errors.Is(err, lease.ErrConflict) {
		t.Errorf("renewal of an expired lease: %v", err)
	}
	again := must(r.Create(ctx, sample("10.5.52.0/24"), time.Hour))
	if err := r.Delete(ctx, again); err != nil {
		t.Error(err)
	}
	if n := leases(t, c); n != 0 {
		t.Errorf("%d etcd leases leaked", n)
	}
}

func TestReservationStaysWithoutEtcdLease(t *testing.T) {
	s := etcdtest.Start(t)
	r, c, ctx, must := etcdtest.Open(t, s.Endpoint()), etcdtest.Client(t, s.Endpoint()), t.Context(), ok(t)
	l := sample("10.5.52.0/24")
	l.Permanent = true
	l = must(r.Create(ctx, l, time.Hour))
	l.Attrs.BackendType = lease.TypeHostGW
	l = must(r.Renew(ctx, must(r.Update(ctx, l, time.Hour)), time.Hour))
	all, _, err := r.List(ctx)
	if err != nil || len(all) != 1 || !all[0].Permanent || !all[0].Equal(l) || !l.Expires.IsZero() || leases(t, c) != 0 {
		t.Errorf("listed %+v, %v; kept %+v", all, err, l)
	}
}

func TestJunkIsIgnoredWarnedAboutOnceAndCounted(t *testing.T) {
	s := etcdtest.Start(t)
	c, ctx := etcdtest.Client(t, s.Endpoint()), t.Context()
	var log bytes.Buffer
	r, err := etcd.Open(etcd.Options{Endpoints: []string{s.Endpoint()}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	for k, v := range map[string]string{
		subnets + "10.5.1.0-24":                        value,
		subnets + "10.5.2.0-24":                        `{"PublicIP":`,
		subnets + "junk":                               value,
		etcdtest.Prefix + "/subnets-other/10.5.3.0-24": value,
	} {
		if _, err := c.Put(ctx, k, v); err != nil {
			t.Fatal(err)
		}
	}
	var rev int64
	for range 2 {
		var all []lease.Lease
		if all, rev, err = r.List(ctx); err != nil || len(all) != 2 || all[0].Key() != "10.5.1.0-24" || all[0].Damaged ||
			all[1].Key() != "10.5.2.0-24" || !all[1].Damaged || all[1].Revision == 0 {
			t.Fatalf("listed %+v, %v", all, err)
		}
	}
	if n := strings.Count(log.String(), "\n"); n != 2 || r.Skipped() != 2 {
		t.Errorf("%d lines, %d counted, want 2:\n%s", n, r.Skipped(), &log)
	}

	watching, cancel := context.WithCancel(ctx)
	seen := make(chan lease.Update, 10)
	done := make(chan error)
	go func() { done <- r.Watch(watching, rev+1, func(u lease.Update) { seen <- u }) }()
	for _, op := range []clientv3.Op{
		clientv3.OpPut(subnets+"10.5.1.0-24", "not JSON"), clientv3.OpPut(subnets+"x", value), clientv3.OpDelete(subnets + "junk"),
		clientv3.OpPut(etcdtest.Prefix+"/subnets-other/10.5.3.0-24", value), clientv3.OpPut(subnets+"10.5.9.0-24", value),
	} {
		if _, err := c.Do(ctx, op); err != nil {
			t.Fatal(err)
		}
	}
	var reported []lease.Lease
	for len(reported) < 2 {
		u := <-seen
		if u.Reset || len(u.Deleted) != 0 {
			t.Errorf("reported %+v", u)
		}
		reported = append(u.Leases, reported...) // each update has the last first
	}
	if len(reported) != 2 || reported[0].Key() != "10.5.9.0-24" || reported[1].Key() != "10.5.1.0-24" || !reported[1].Damaged {
		t.Errorf("reported %+v", reported)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("watch ended with %v", err)
	}
}

func TestWatchKeepsTheLastOfSeveralEvents(t *testing.T) {
	s := etcdtest.Start(t)
	r, c, ctx := etcdtest.Open(t, s.Endpoint()), etcdtest.Client(t, s.Endpoint()), t.Context()
	for _, op := range []clientv3.Op{
		clientv3.OpPut(subnets+"10.5.1.0-24", value), clientv3.OpDelete(subnets + "10.5.1.0-24"),
		clientv3.OpPut(subnets+"10.5.2.0-24", value), clientv3.OpDelete(subnets + "10.5.2.0-24"), clientv3.OpPut(subnets+"10.5.2.0-24", value),
	} {
		if _, err := c.Do(ctx, op); err != nil {
			t.Fatal(err)
		}
	}
	watching, cancel := context.WithCancel(ctx)
	var got lease.Update
	err := r.Watch(watching, 1, func(u lease.Update) { got = u; cancel() })
	if !errors.Is(err, context.Canceled) || len(got.Leases) != 1 || len(got.Deleted) != 1 ||
		got.Leases[0].Key() != "10.5.2.0-24" || got.Deleted[0].Key() != "10.5.1.0-24" {
		t.Errorf("reported %+v, %v", got, err)
	}
}

func TestCompactedWatch(t *testing.T) {
	s := etcdtest.Start(t)
	r, c, ctx := etcdtest.Open(t, s.Endpoint()), etcdtest.Client(t, s.Endpoint()), t.Context()
	put, err := c.Put(ctx, subnets+"10.5.1.0-24", value)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(ctx, "x", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(ctx, put.Header.Revision+1); err != nil {
		t.Fatal(err)
	}
	if err := r.Watch(ctx, put.Header.Revision, func(lease.Update) {}); !errors.Is(err, lease.ErrCompacted) {
		t.Errorf("watch ended with %v", err)
	}
}

func TestErrorsAreInWords(t *testing.T) {
	s := etcdtest.StartAt(t, filepath.Join(t.TempDir(), "etcd"), "http://127.0.0.1:0")
	r, ctx := etcdtest.Open(t, s.Endpoint()), t.Context()
	_, err := r.Config(ctx)
	if !errors.Is(err, lease.ErrNoConfig) || !strings.Contains(err.Error(), etcdtest.Prefix+"/config") {
		t.Errorf("no configuration: %v", err)
	}
	watch := make(chan error)
	go func() { watch <- r.Watch(ctx, 1, func(lease.Update) {}) }()
	s.Close()
	if err := <-watch; !errors.Is(err, lease.ErrUnavailable) {
		t.Errorf("watch ended with %v", err)
	}
	host := strings.TrimPrefix(s.Endpoint(), "http://")
	want := "etcd at " + s.Endpoint() + " does not answer: dial tcp " + host + ": connect: connection refused"
	for deadline := time.Now().Add(20 * time.Second); ; {
		// A connection that is in the making may still break first.
		if _, err = r.Config(ctx); !errors.Is(err, lease.ErrUnavailable) || strings.Contains(err.Error(), "desc =") {
			t.Fatalf("got %v", err)
		}
		if err.Error() == want {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("got  %v\nwant %s", err, want)
		}
	}
}

// ending is an etcd that ends, at the moment in which it still says so.
type ending struct{ pb.UnimplementedWatchServer }

func (ending) Watch(pb.Watch_WatchServer) error { return rpctypes.ErrGRPCWatchCanceled }

func TestWatchThatEtcdCancels(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	pb.RegisterWatchServer(s, ending{})
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r := etcdtest.Open(t, "http://"+l.Addr().String())
	if err := r.Watch(t.Context(), 1, func(lease.Update) {}); !errors.Is(err, lease.ErrUnavailable) {
		t.Errorf("watch ended with %v", err)
	}
}

func TestOneOfTwoEndpointsIsEnough(t *testing.T) {
	s := etcdtest.Start(t)
	r, err := etcd.Open(etcd.Options{Endpoints: []string{"http://127.0.0.1:1", s.Endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if _, _, err := r.List(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestPasswordIsCheckedOnFirstUse(t *testing.T) {
	s := etcdtest.Start(t)
	c, ctx := etcdtest.Client(t, s.Endpoint()), t.Context()
	_, err1 := c.UserAdd(ctx, "root", "right")
	_, err2 := c.UserGrantRole(ctx, "root", "root")
	_, err3 := c.AuthEnable(ctx)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	for password, refused := range map[string]bool{"right": false, "wrong": true} {
		r, err := etcd.Open(etcd.Options{Endpoints: []string{s.Endpoint()}, Username: "root", Password: password})
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = r.List(ctx)
		if (err != nil) != refused || errors.Is(err, lease.ErrUnavailable) {
			t.Errorf("password %s: %v", password, err)
		}
		_ = r.Close()
	}
}

func TestCloseEndsCalls(t *testing.T) {
	s := etcdtest.Start(t)
	r := etcdtest.Open(t, s.Endpoint())
	_, rev, err := r.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	watch := make(chan error)
	go func() { watch <- r.Watch(t.Context(), rev+1, func(lease.Update) {}) }()
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := <-watch; err == nil {
		t.Error("the watch ended without an error")
	}
	if _, _, err := r.List(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestOpenChecksOptions(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing.pem")
	for name, c := range map[string]struct {
		options etcd.Options
		words   string
	}{
		"no endpoints":     {etcd.Options{}, "no endpoints"},
		"empty endpoint":   {etcd.Options{Endpoints: []string{""}}, "empty endpoint"},
		"half a pair":      {etcd.Options{Endpoints: []string{"https://127.0.0.1:1"}, CertFile: missing}, "both"},
		"no CA file":       {etcd.Options{Endpoints: []string{"https://127.0.0.1:1"}, CAFile: missing}, missing},
		"no port":          {etcd.Options{Endpoints: []string{"http://10.0.0.1"}}, "endpoint http://10.0.0.1 has no port: write http://10.0.0.1:2379"},
		"no scheme either": {etcd.Options{Endpoints: []string{"http://10.0.0.2:2379", "10.0.0.1"}}, "has no port: write 10.0.0.1:2379"},
		"no port of IPv6":  {etcd.Options{Endpoints: []string{"https://[fd00::1]/"}}, "write https://[fd00::1]:2379"},
		"another scheme":   {etcd.Options{Endpoints: []string{"htp://10.0.0.1:2379"}}, "endpoint htp://10.0.0.1:2379: must be an URL"},
		"an empty port":    {etcd.Options{Endpoints: []string{"http://10.0.0.1:"}}, "http://10.0.0.1:"},
	} {
		r, err := etcd.Open(c.options)
		if err == nil {
			_ = r.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %q", name, err, c.words)
		}
	}
}

// The certificate that a server is checked against is enough by itself; flannel
// ignores it then.
func TestCAFileAlone(t *testing.T) {
	proxy := newTLSProxy(t, etcdtest.Start(t).Endpoint())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	const config = `{"Network":"172.7.0.0/16"}`
	for name, c := range map[string]struct {
		file string
		ok   bool
	}{"its certificate": {proxy.caFile, true}, "the system's certificates": {"", false}} {
		r, err := etcd.Open(etcd.Options{Endpoints: []string{proxy.endpoint}, CAFile: c.file})
		if err != nil {
			t.Fatal(err)
		}
		err = r.SetConfig(ctx, []byte(config))
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: the error doesn't say what is wrong: %v", name, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDialAndSetConfig(t *testing.T) {
	s := etcdtest.Start(t)
	dialled := make(chan string, 10)
	r, err := etcd.Open(etcd.Options{Endpoints: []string{s.Endpoint()}, Dial: func(ctx context.Context, address string) (net.Conn, error) {
		dialled <- address
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	const config = `{"Network":"172.7.0.0/16"}`
	if err := r.SetConfig(t.Context(), []byte(config)); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Config(t.Context()); err != nil || string(got) != config {
		t.Errorf("read %s, %v", got, err)
	}
	if want := strings.TrimPrefix(s.Endpoint(), "http://"); <-dialled != want {
		t.Errorf("dialled another address than %s", want)
	}
}
