package leaseadmin

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"uvxlan/cmd/internal/control"
	"uvxlan/lease"
	"uvxlan/lease/etcd"
	"uvxlan/lease/etcd/etcdtest"
)

func TestMain(m *testing.M) {
	etcdtest.Main()
	m.Run()
}

const (
	config = `{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}`
	ttl    = time.Hour
)

// held is a lease of the host 192.168.14.x with its subnet.
func held(subnet, host string, permanent bool) lease.Lease {
	return lease.Lease{Subnet: netip.MustParsePrefix(subnet), Permanent: permanent, Attrs: lease.Attrs{
		PublicIP: netip.MustParseAddr(host), BackendType: lease.TypeVXLAN,
		BackendData: json.RawMessage(`{"VNI":1,"VtepMAC":"02:00:00:00:00:22"}`),
	}}
}

// open returns an etcd with the configuration and the leases.
func open(t *testing.T, leases ...lease.Lease) (*etcd.Registry, string) {
	t.Helper()
	endpoint := etcdtest.Start(t).Endpoint()
	r := etcdtest.Open(t, endpoint)
	if err := r.SetConfig(t.Context(), []byte(config)); err != nil {
		t.Fatal(err)
	}
	for _, l := range leases {
		if _, err := r.Create(t.Context(), l, ttl); err != nil {
			t.Fatal(err)
		}
	}
	return r, endpoint
}

func find1(t *testing.T, r *etcd.Registry, subnet string) (control.LeaseRow, bool) {
	t.Helper()
	rows, err := List(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if row.Subnet.String() == subnet {
			return row, true
		}
	}
	return control.LeaseRow{}, false
}

// The list is in order and tells when each lease ends.
func TestList(t *testing.T) {
	r, _ := open(t, held("172.7.22.0/24", "192.168.14.22", false), held("172.7.9.0/24", "192.168.14.9", true))
	before := time.Now()
	rows, err := List(t.Context(), r)
	if err != nil || len(rows) != 2 {
		t.Fatalf("%+v, %v", rows, err)
	}
	if !rows[0].Reserved || !rows[0].Expires.IsZero() || rows[0].Subnet.String() != "172.7.9.0/24" {
		t.Errorf("the reservation is %+v", rows[0])
	}
	if l := rows[1]; l.Reserved || l.Expires.Before(before) || l.Expires.After(time.Now().Add(ttl)) || l.MAC != "02:00:00:00:00:22" {
		t.Errorf("the lease is %+v", rows[1])
	}
}

func TestRelease(t *testing.T) {
	r, endpoint := open(t, held("172.7.22.0/24", "192.168.14.22", false), held("172.7.23.0/24", "192.168.14.23", true),
		lease.Lease{Subnet: netip.MustParsePrefix("172.7.24.0/24"), Permanent: true, Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("192.168.14.24")}})
	if _, err := etcdtest.Client(t, endpoint).Put(t.Context(), etcd.DefaultPrefix+"/subnets/172.7.25.0-24", "{"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ subnet, refused, forced string }{
		{"172.7.22.0/24", "192.168.14.22 holds it, renewed", "released 172.7.22.0/24 of 192.168.14.22"},
		{"172.7.23.0/24", "192.168.14.23 uses this reservation", "released 172.7.23.0/24 of 192.168.14.23"},
		{"172.7.24.0/24", "", ""},
		{"172.7.25.0/24", "", ""},
	} {
		words, err := Release(t.Context(), r, netip.MustParsePrefix(c.subnet), false)
		if c.refused == "" {
			if err != nil || !strings.Contains(words, "released "+c.subnet) {
				t.Errorf("%s: %q, %v", c.subnet, words, err)
			}
		} else {
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.refused) || !strings.Contains(err.Error(), "-force") {
				t.Errorf("%s: %q, %v, want %s", c.subnet, words, err, c.refused)
			}
			if _, there := find1(t, r, c.subnet); !there {
				t.Errorf("%s was refused and is gone", c.subnet)
			}
			if words, err = Release(t.Context(), r, netip.MustParsePrefix(c.subnet), true); err != nil || !strings.Contains(words, c.forced) {
				t.Errorf("%s with force: %q, %v", c.subnet, words, err)
			}
		}
		if _, there := find1(t, r, c.subnet); there {
			t.Errorf("%s is there", c.subnet)
		}
	}
	if _, err := Release(t.Context(), r, netip.MustParsePrefix("172.7.99.0/24"), true); err == nil || !strings.Contains(err.Error(), "there is no such lease") {
		t.Error(err)
	}
}

// A lease that is reserved keeps its value and loses its end, as flannel's
// documentation has it.
func TestReserveLease(t *testing.T) {
	r, endpoint := open(t, held("172.7.22.0/24", "192.168.14.22", false))
	client := etcdtest.Client(t, endpoint)
	const key = etcd.DefaultPrefix + "/subnets/172.7.22.0-24"
	before, err := client.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	l := lease.Lease{Subnet: netip.MustParsePrefix("172.7.22.0/24")}
	if _, err := Reserve(t.Context(), r, l, netip.MustParseAddr("192.168.14.99")); !errors.Is(err, ErrRefused) {
		t.Errorf("for another host: %v", err)
	}
	for _, want := range []string{"no longer expires", "reserved for 192.168.14.22 already"} {
		if words, err := Reserve(t.Context(), r, l, netip.Addr{}); err != nil || !strings.Contains(words, want) {
			t.Errorf("%q, %v, want %s", words, err, want)
		}
	}
	after, err := client.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if got := after.Kvs[0]; got.Lease != 0 || string(got.Value) != string(before.Kvs[0].Value) {
		t.Errorf("the entry is %s on the etcd lease %x, was %s", got.Value, got.Lease, before.Kvs[0].Value)
	}
	if left, err := client.Leases(t.Context()); err != nil || len(left.Leases) > 0 {
		t.Errorf("etcd leases are left: %v, %v", left, err)
	}
}

// A subnet that nobody has is reserved for a host, which takes it.
func TestReserveFreeSubnet(t *testing.T) {
	r, _ := open(t, held("172.7.22.0/24", "192.168.14.22", false))
	host := netip.MustParseAddr("192.168.14.22")
	for subnet, want := range map[string]string{
		"172.7.50.0/25": "subnets of /24 from 172.7.1.0 to 172.7.255.0",
		"10.1.1.0/24":   "subnets of /24 from 172.7.1.0 to 172.7.255.0",
	} {
		if _, err := Reserve(t.Context(), r, lease.Lease{Subnet: netip.MustParsePrefix(subnet)}, host); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", subnet, err)
		}
	}
	free := lease.Lease{Subnet: netip.MustParsePrefix("172.7.50.0/24")}
	if _, err := Reserve(t.Context(), r, free, netip.Addr{}); err == nil || !strings.Contains(err.Error(), "-public-ip") {
		t.Errorf("for nobody: %v", err)
	}
	words, err := Reserve(t.Context(), r, free, host)
	if err != nil || !strings.Contains(words, "at its next start instead of 172.7.22.0/24") {
		t.Fatalf("%q, %v", words, err)
	}
	m, err := lease.NewManager(lease.Options{Registry: r})
	if err != nil {
		t.Fatal(err)
	}
	c, err := m.Config(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own, err := m.Acquire(t.Context(), c, func(*lease.Lease) (lease.Attrs, error) { return held("172.7.1.0/24", host.String(), false).Attrs, nil })
	if err != nil || own.Subnet != free.Subnet || !own.Permanent {
		t.Errorf("the host takes %+v, %v", own, err)
	}
}

func TestChange(t *testing.T) {
	r, _ := open(t)
	subnet := netip.MustParsePrefix("172.7.50.0/24")
	for _, c := range []struct {
		change control.LeaseChange
		there  bool
	}{
		{control.LeaseChange{Do: control.ReserveLease, Subnet: subnet, PublicIP: netip.MustParseAddr("192.168.14.22")}, true},
		{control.LeaseChange{Do: control.ReleaseLease, Subnet: subnet}, false},
	} {
		if _, err := Change(t.Context(), r, c.change); err != nil {
			t.Error(err)
		}
		if _, there := find1(t, r, subnet.String()); there != c.there {
			t.Errorf("after %s it is there: %t", c.change.Do, there)
		}
	}
	if _, err := Change(t.Context(), r, control.LeaseChange{Do: "sell", Subnet: subnet}); err == nil {
		t.Error("it sells a lease")
	}
}
