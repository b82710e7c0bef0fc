package leasefile_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"uvxlan/cmd/internal/leasefile"
	"uvxlan/lease"
)

const (
	prefix = "/coreos.com/network"
	config = `{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}`
)

func newLease(subnet, ip string) lease.Lease {
	return lease.Lease{Subnet: netip.MustParsePrefix(subnet), Attrs: lease.Attrs{
		PublicIP: netip.MustParseAddr(ip), BackendType: lease.TypeVXLAN,
		BackendData: json.RawMessage(`{"VNI":1,"VtepMAC":"0e:00:00:00:00:22"}`),
	}}
}

func sample(peers int) lease.State {
	now := time.Now().UTC().Round(0)
	s := lease.State{Config: []byte(config), Own: newLease("172.7.21.0/24", "192.168.14.21"), Renewed: now.Add(-time.Hour), AsOf: now}
	s.Own.Expires = now.Add(23 * time.Hour)
	for i := range peers {
		l := newLease(fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255), fmt.Sprintf("192.168.%d.%d", i>>8, i&255))
		l.Revision = int64(i)
		s.Peers = append(s.Peers, l)
	}
	return s
}

func TestSaveAndLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	store := leasefile.Store{Dir: dir, Prefix: prefix}
	if s, err := store.Load(); s != nil || err != nil {
		t.Fatalf("before anything is stored: %+v, %v", s, err)
	}
	dual := newLease("172.7.23.0/24", "192.168.14.23")
	dual.IPv6Subnet, dual.Attrs.PublicIPv6 = netip.MustParsePrefix("fd00:7:0:23::/64"), netip.MustParseAddr("fd00::23")
	want := sample(2)
	want.Peers = append(want.Peers, dual)
	for range 2 {
		if err := store.Save(want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := store.Load()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got.Peers, func(a, b lease.Lease) int { return a.Subnet.Compare(b.Subnet) })
	if string(got.Config) != config || !got.Own.Equal(want.Own) || !got.Own.Expires.Equal(want.Own.Expires) || !got.Renewed.Equal(want.Renewed) ||
		!got.AsOf.Equal(want.AsOf) || !slices.EqualFunc(got.Peers, want.Peers, lease.Lease.Equal) {
		t.Errorf("read back %+v\nwant %+v", got, want)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left beside the file: %v, %v", entries, err)
	}
	want.Own = lease.Lease{}
	if err := store.Save(want); err != nil {
		t.Fatal(err)
	}
	if got, err := store.Load(); err != nil || got.Own.Subnet.IsValid() {
		t.Errorf("a lost lease became %+v, %v", got, err)
	}
}

func TestWhatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	store := leasefile.Store{Dir: dir, Prefix: prefix}
	if err := store.Save(sample(3)); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(leasefile.Path(dir))
	if err != nil {
		t.Fatal(err)
	}
	good := string(text)
	for name, c := range map[string]struct{ text, want string }{
		"empty":           {"", "unexpected end"},
		"cut short":       {good[:len(good)/2], "unexpected end"},
		"another version": {strings.Replace(good, `"version":1`, `"version":2`, 1), "version 2, not 1"},
		"no version":      {"{}", "version 0, not 1"},
		"another network": {strings.Replace(good, prefix, "/other", 1), "the network at /other, not " + prefix},
		"a bad key":       {strings.Replace(good, "10.0.1.0-24", "10.0.1.7-24", 1), "10.0.1.7"},
		"a bad own key":   {strings.Replace(good, "172.7.21.0-24", "172.7.21.0", 1), "172.7.21.0"},
		"a bad value":     {strings.Replace(good, "192.168.0.1", "host", 1), "PublicIP"},
	} {
		if err := os.WriteFile(leasefile.Path(dir), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := store.Load(); s != nil || err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), leasefile.Path(dir)) {
			t.Errorf("%s: %+v, %v; want %q", name, s, err, c.want)
		}
	}
	if err := (leasefile.Store{Dir: "/proc/nothing"}).Save(sample(0)); err == nil {
		t.Error("saved where nothing can be")
	}
}

// A clone of a machine has its state directory as well.
func TestAnotherMachinesFile(t *testing.T) {
	dir := t.TempDir()
	at := func(machine string) leasefile.Store {
		return leasefile.Store{Dir: dir, Prefix: prefix, Machine: machine}
	}
	if err := at("one").Save(sample(1)); err != nil {
		t.Fatal(err)
	}
	if s, err := at("two").Load(); s != nil || err == nil || !strings.Contains(err.Error(), "another machine") {
		t.Errorf("on a clone: %+v, %v", s, err)
	}
	for _, same := range []string{"one", ""} {
		if s, err := at(same).Load(); s == nil || err != nil {
			t.Errorf("on machine %q: %+v, %v", same, s, err)
		}
	}
	if id := leasefile.MachineID(); id != leasefile.MachineID() || id != "" && len(id) != 32 {
		t.Errorf("this machine is %q", id)
	}
}

func BenchmarkSave(b *testing.B) {
	store, s := leasefile.Store{Dir: b.TempDir(), Prefix: prefix}, sample(10_000)
	for b.Loop() {
		if err := store.Save(s); err != nil {
			b.Fatal(err)
		}
	}
	info, err := os.Stat(leasefile.Path(store.Dir))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(info.Size()), "bytes")
}

func BenchmarkLoad(b *testing.B) {
	store := leasefile.Store{Dir: b.TempDir(), Prefix: prefix}
	if err := store.Save(sample(10_000)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := store.Load(); err != nil {
			b.Fatal(err)
		}
	}
}
